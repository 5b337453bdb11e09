"""Whose writes a shard takes."""

from enum import Enum


class Writers(Enum):
    """By what the shard's generation is there for."""

    USERS = "users"
    BUILDER = "builder"
    NOBODY = "nobody"
