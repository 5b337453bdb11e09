"""When to seal, what to merge, and which index a segment gets."""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

GROWTH = 2
"""A sealing absorbs a neighbour of up to this many times its own rows. Segment sizes then
grow at least by this factor from young to old: n rows lie in O(log n) segments, and each
row is rebuilt O(log n) times.
"""
DEAD_SHARE = 0.2
"""A segment with more dead rows than this is rebuilt. Source: DESIGN, section 7."""
APPROXIMATE_ROWS = 1_024
"""Below this an approximate index would be trained on next to nothing: such segments are
exact, whatever the collection asks for.
"""


class Recipe(Enum):
    """Kinds of index."""

    FLAT = "flat"
    HNSW = "hnsw"
    IVF_PQ = "ivf-pq"


@dataclass(frozen=True, slots=True)
class Size:
    """A segment as the policy sees it: rows, and how many of them are live."""

    rows: int
    live_rows: int


@dataclass(frozen=True, slots=True)
class Plan:
    """What one sealing holds: segments by number (a suffix, or one), and the tail or not."""

    segments: tuple[int, ...]
    with_tail: bool


def plan(sizes: Sequence[Size], tail_rows: int, *, tail_full: bool) -> Plan | None:
    """The next sealing, or None if there is nothing to do.

    Args:
        sizes: the segments, oldest first.
        tail_rows: rows of the tail.
        tail_full: the tail is to be sealed.
    """
    if tail_full:
        first, gathered = len(sizes), tail_rows
        while first and sizes[first - 1].live_rows <= GROWTH * gathered:
            first -= 1
            gathered += sizes[first].live_rows
        return Plan(tuple(range(first, len(sizes))), with_tail=True)
    for number, size in enumerate(sizes):
        if size.rows - size.live_rows > DEAD_SHARE * size.rows:
            return Plan((number,), with_tail=False)
    return None


def recipes(index: str, rows: int, flat_rows: int) -> tuple[Recipe, ...]:
    """Kinds of index to try in order until one reaches the target recall.

    Args:
        index: "auto", "flat", "hnsw" or "ivf-pq".
        rows: rows of the segment.
        flat_rows: "auto" is exact up to this many.
    """
    if index == "flat" or rows < APPROXIMATE_ROWS:
        return (Recipe.FLAT,)
    if index != "auto":
        return (Recipe(index),)
    if rows <= flat_rows:
        return (Recipe.FLAT,)
    return (Recipe.IVF_PQ, Recipe.FLAT)


def ivf_lists(rows: int) -> int:
    """Inverted lists for so many rows: the power of two next to 2·sqrt(rows), at most.

    >>> [ivf_lists(rows) for rows in (1_024, 50_000, 1_000_000)]
    [64, 256, 1024]
    """
    return 1 << ((4 * rows).bit_length() - 1) // 2
