"""Generations beside the one that serves: their names, their differences, when one is due."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from enum import Enum

from shoal.ids import id_hash

LEAST_TOKENS = 50_000
"""Below so many tokens a collection of kind colbert keeps its vectors in fixed point."""


class GenerationPhase(Enum):
    """What a generation is there for."""

    SERVING = "serving"
    TRAINING = "training"
    COPYING = "copying"
    PREVIOUS = "previous"


def record_name(name: str, generation: int, phase: GenerationPhase) -> str:
    """Name of a generation's record: no user's collection has a dot in its name.

    >>> record_name("papers", 2, GenerationPhase.COPYING)
    'papers.2'
    """
    return name if phase is GenerationPhase.SERVING else f"{name}.{generation}"


@dataclass(frozen=True, slots=True)
class Listed:
    """A document in the order of (id hash, id).

    Attributes:
        id: its id.
        digest: of its content.
    """

    id: str
    digest: bytes

    @property
    def place(self) -> tuple[int, bytes]:
        """Where it comes."""
        key = self.id.encode()
        return id_hash(key), key


@dataclass(frozen=True, slots=True)
class Change:
    """What makes the next generation equal to the one that serves, for one document."""

    id: str
    gone: bool


async def differences(
    source: AsyncIterator[Listed], target: AsyncIterator[Listed]
) -> AsyncIterator[Change]:
    """What the target lacks, has otherwise, or has too much.

    Both come in the order of (id hash, id), so that two documents are held at a time,
    however many there are.
    """
    left, right = await anext(source, None), await anext(target, None)
    while left is not None or right is not None:
        if right is None or (left is not None and left.place < right.place):
            assert left is not None
            yield Change(left.id, gone=False)
            left = await anext(source, None)
        elif left is None or right.place < left.place:
            yield Change(right.id, gone=True)
            right = await anext(target, None)
        else:
            if left.digest != right.digest:
                yield Change(left.id, gone=False)
            left, right = await anext(source, None), await anext(target, None)


def training_due(tokens: int, train_at: int, *, quiet: bool) -> bool:
    """Whether a collection that keeps vectors in fixed point gets a trained codec.

    Args:
        tokens: that it holds.
        train_at: at which it does while documents stream in.
        quiet: nothing was written lately.
    """
    return tokens >= LEAST_TOKENS and (quiet or tokens >= train_at)
