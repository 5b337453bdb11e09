"""Hits as columns: what kernels rank, merge and write."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Hits:
    """Hits of several queries, one query after the other.

    Attributes:
        counts: [queries] int64, hits of each query.
        ids: bytes of all ids, one after the other; an id holds no NUL.
        id_lengths: [hits] uint32, bytes of each id.
        scores: [hits] float64, larger is better, never NaN.
        sequences: [hits] uint64, sequence number of the document version.
        passages: [hits] uint32, best passage of the document.
    """

    counts: Ints
    ids: bytes
    id_lengths: NDArray[np.uint32]
    scores: NDArray[np.float64]
    sequences: NDArray[np.uint64]
    passages: NDArray[np.uint32]

    def split_ids(self, begin: int, end: int) -> list[bytes]:
        """Ids of the hits `begin` to `end`."""
        at = int(self.id_lengths[:begin].sum())
        ends = (at + np.cumsum(self.id_lengths[begin:end], dtype=np.int64)).tolist()
        return [self.ids[a:b] for a, b in itertools.pairwise([at, *ends])]


@dataclass(frozen=True, slots=True)
class Part:
    """Hits from one place: a shard, or a part of one.

    Attributes:
        number: of the place, 0 or more.
        rows: [queries] int64, row of the merge to which each query belongs; -1 for
            one that nobody waits for.
        hits: they, in any order within a query.
    """

    number: int
    rows: Ints
    hits: Hits


@dataclass(frozen=True, slots=True)
class Merged:
    """The best hits of n queries.

    Attributes:
        hits: n counts, best hits first.
        numbers: [hits] int64, the place that each came from.
        offsets: [n + 1] int64; the hits of query i are offsets[i]:offsets[i + 1].
    """

    hits: Hits
    numbers: Ints
    offsets: Ints

    def ids(self, row: int) -> list[bytes]:
        """Ids of one query's hits, best first."""
        return self.hits.split_ids(int(self.offsets[row]), int(self.offsets[row + 1]))
