"""When to seal, what to merge, and which index a segment gets."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

import numpy as np

from shoal.types import Float64Vector

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


def rank_weights(top_k: int, shards: int) -> Float64Vector:
    """How likely the best, second best, ... hit of a shard is among the best K of all shards.

    Documents fall into shards by a hash, so of the best K documents Binomial(K, 1 / shards)
    lie in one shard, and its r-th hit is one of them if that number is r or more. Recall that
    is weighted so, shard by shard, is recall@K of the collection.

    Args:
        top_k: K.
        shards: of the collection.

    Returns:
        [top_k] float64, 0 to 1, descending.
    """
    share = 1 / shards
    counts = [math.comb(top_k, n) * share**n * (1 - share) ** (top_k - n) for n in range(top_k + 1)]
    return np.cumsum(counts[::-1])[::-1][1:].clip(0.0, 1.0)
