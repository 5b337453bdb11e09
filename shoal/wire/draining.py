"""How a server that is about to end says so: in the trailing metadata of every answer."""

from collections.abc import Iterable
from typing import Any

DRAINING = ("shoal-draining", "1")


def drains(trailing_metadata: Iterable[Any] | None) -> bool:
    """Whether an answer or an error with these (key, value) pairs says so."""
    return any((key, value) == DRAINING for key, value in trailing_metadata or ())
