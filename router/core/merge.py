"""One vectorised merge of a whole round's hits.

Hits travel as columns, so nothing here runs per hit. Results are ordered by
(score descending, id ascending by bytes), hold an id once, and are cut at each
query's K; scores compare as exact float64 values. The union of the shards'
top-K contains the top-K of the union, whatever the split.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]
_GOLDEN = 0x9E3779B97F4A7C15


@dataclass(frozen=True, slots=True)
class Hits:
    """Hits of several queries as columns, one query after the other.

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
    id_lengths: NDArray[Any]
    scores: NDArray[np.float64]
    sequences: NDArray[Any]
    passages: NDArray[Any]


@dataclass(frozen=True, slots=True)
class ShardHits:
    """What one shard answered.

    Attributes:
        shard: its number.
        rows: [queries] int64, row of the merge to which each query of the
            answer belongs; -1 for one that nobody waits for.
        hits: its hits.
    """

    shard: int
    rows: Ints
    hits: Hits


@dataclass(frozen=True, slots=True)
class Merged:
    """The best hits of n queries.

    Attributes:
        offsets: [n + 1] int64; the hits of query i are offsets[i]:offsets[i + 1].
        id_starts: [hits] int64, where each id begins in `id_bytes`.
        id_lengths: [hits] int64, bytes of each id.
        id_bytes: uint8, ids of all shards' hits.
        scores: [hits] float64.
        sequences: [hits] uint64.
        passages: [hits] uint32.
        shards: [hits] int64, shard of each hit.
    """

    offsets: Ints
    id_starts: Ints
    id_lengths: Ints
    id_bytes: NDArray[np.uint8]
    scores: NDArray[np.float64]
    sequences: NDArray[Any]
    passages: NDArray[Any]
    shards: Ints

    def ids(self, row: int) -> list[bytes]:
        """Ids of one query's hits, best first."""
        begin, end = int(self.offsets[row]), int(self.offsets[row + 1])
        starts = self.id_starts[begin:end].tolist()
        lengths = self.id_lengths[begin:end].tolist()
        return [
            self.id_bytes[start : start + length].tobytes()
            for start, length in zip(starts, lengths, strict=True)
        ]


def merge(parts: Sequence[ShardHits], top_k: Ints) -> Merged:
    """Merges, removes duplicates, cuts.

    Args:
        parts: what each shard answered, in any order.
        top_k: [n] int64, documents wanted by each query.

    Cost: O(H log H) for H hits in all, a fixed number of NumPy calls.
    """
    rows = _concatenate([np.repeat(part.rows, part.hits.counts) for part in parts], np.int64)
    scores = _concatenate([part.hits.scores for part in parts], np.float64)
    lengths = _concatenate([part.hits.id_lengths for part in parts], np.int64)
    id_bytes = np.frombuffer(b"".join([part.hits.ids for part in parts]), np.uint8)
    words = _id_words(id_bytes, lengths)
    order = _order(rows, scores, words)
    if (rows < 0).any():
        order = order[rows[order] >= 0]
    if _may_repeat(rows, words):
        order = _drop_repeats(order, rows, words)
    begins = np.searchsorted(rows[order], np.arange(len(top_k) + 1))
    rank = np.arange(len(order)) - begins[rows[order]]
    kept = order[rank < top_k[rows[order]]]
    sizes = [len(part.hits.scores) for part in parts]
    shards = np.repeat(np.array([part.shard for part in parts], np.int64), sizes)
    starts = np.cumsum(lengths) - lengths
    return Merged(
        offsets=np.searchsorted(rows[kept], np.arange(len(top_k) + 1)).astype(np.int64),
        id_starts=starts[kept],
        id_lengths=lengths[kept],
        id_bytes=id_bytes,
        scores=scores[kept],
        sequences=_concatenate([part.hits.sequences for part in parts], np.uint64)[kept],
        passages=_concatenate([part.hits.passages for part in parts], np.uint32)[kept],
        shards=shards[kept],
    )


def _concatenate(columns: list[NDArray[Any]], dtype: Any) -> NDArray[Any]:
    if not columns:
        return np.empty(0, dtype)
    return np.concatenate(columns).astype(dtype, copy=False)


def _id_words(id_bytes: NDArray[np.uint8], lengths: Ints) -> NDArray[np.uint64]:
    """Ids as rows of big-endian words: comparing rows compares the ids' bytes.

    Ids hold no NUL, so padding with zeros puts a prefix before what it begins.
    """
    width = -(-int(lengths.max(initial=1)) // 8) * 8
    padded = np.zeros((len(lengths), width), np.uint8)
    padded[np.arange(width) < lengths[:, None]] = id_bytes
    return padded.view(">u8").astype(np.uint64)


def _order(rows: Ints, scores: NDArray[np.float64], words: NDArray[np.uint64]) -> Ints:
    negated = -scores
    order = np.lexsort((negated, rows))
    ranked, row = negated[order], rows[order]
    if ((ranked[1:] == ranked[:-1]) & (row[1:] == row[:-1])).any():
        order = np.lexsort((*words.T[::-1], negated, rows))
    return order


def _may_repeat(rows: Ints, words: NDArray[np.uint64]) -> bool:
    """False only if no query has an id twice (a hash of row and id is unique)."""
    factors = np.arange(1, 2 * words.shape[1] + 1, 2, dtype=np.uint64) * np.uint64(_GOLDEN)
    mixed = (words ^ (words >> np.uint64(29))) * factors
    hashes = np.sort(mixed.sum(axis=1, dtype=np.uint64) + rows.astype(np.uint64) * factors[0])
    return bool((hashes[1:] == hashes[:-1]).any())


def _drop_repeats(order: Ints, rows: Ints, words: NDArray[np.uint64]) -> Ints:
    """Keeps the best of hits with one row and id; `order` is best first."""
    grouped = np.lexsort((*words[order].T[::-1], rows[order]))
    row, word = rows[order][grouped], words[order][grouped]
    same = (row[1:] == row[:-1]) & (word[1:] == word[:-1]).all(axis=1)
    keep = np.ones(len(order), bool)
    keep[grouped[1:][same]] = False
    return order[keep]
