"""The kernels in NumPy: what defines their bits, and serves where none are compiled."""

from __future__ import annotations

import itertools
import struct
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shoal.kernels import exact
from shoal.kernels.hits import Hits, Ints, Merged, Part
from shoal.kernels.sources import Documents
from shoal.types import Float32Matrix, Float64Vector, Similarity

_ID, _SCORE, _SHARD, _PASSAGE = 0x0A, 0x11, 0x38, 0x40

squares = exact.squares


def rank(
    similarity: Similarity,
    queries: Float32Matrix,
    query_squares: Float64Vector,
    proposals: Ints,
    top_k: Ints,
    documents: Documents,
    live: NDArray[np.uint8] | None,
) -> Hits:
    """See `shoal.kernels.rank`."""
    held = np.nonzero(proposals >= 0)
    query, rows = held[0].astype(np.int64), proposals[held]
    if live is not None:
        alive = (live[rows >> 3] >> (rows & 7).astype(np.uint8)) & 1 != 0
        query, rows = query[alive], rows[alive]
    score = exact.scores(
        similarity,
        queries[query],
        documents.vectors[rows],
        query_squares[query],
        documents.squares[rows],
    )
    document = documents.row_documents[rows].astype(np.int64)
    order = np.lexsort((rows, -score, document, query))
    first = np.ones(len(order), dtype=np.bool_)
    first[1:] = (document[order[1:]] != document[order[:-1]]) | (
        query[order[1:]] != query[order[:-1]]
    )
    starts, ends = documents.id_starts[document], documents.id_starts[document + 1]
    ids = [
        documents.ids[start:end].tobytes()
        for start, end in zip(starts.tolist(), ends.tolist(), strict=True)
    ]
    best = sorted(order[first].tolist(), key=lambda at: (query[at], -score[at], ids[at]))
    kept = np.array(
        [
            at
            for number, group in itertools.groupby(best, key=lambda at: int(query[at]))
            for at in itertools.islice(group, int(top_k[number]))
        ],
        dtype=np.int64,
    )
    return Hits(
        counts=np.bincount(query[kept], minlength=len(queries)).astype(np.int64),
        ids=b"".join([ids[at] for at in kept.tolist()]),
        id_lengths=(ends - starts)[kept].astype(np.uint32),
        scores=score[kept],
        sequences=documents.sequences[document[kept]],
        passages=(rows - documents.row_starts[document])[kept].astype(np.uint32),
    )


def merge(parts: Sequence[Part], top_k: Ints) -> Merged:
    """See `shoal.kernels.merge`."""
    rows = _joined([np.repeat(part.rows, part.hits.counts) for part in parts], np.int64)
    scores = _joined([part.hits.scores for part in parts], np.float64)
    lengths = _joined([part.hits.id_lengths for part in parts], np.uint32)
    ids = _split(b"".join([part.hits.ids for part in parts]), lengths)
    sizes = [len(part.hits.scores) for part in parts]
    ranked = sorted(
        [at for at, row in enumerate(rows.tolist()) if row >= 0],
        key=lambda at: (rows[at], -scores[at], ids[at]),
    )
    kept: list[int] = []
    counts = np.zeros(len(top_k), dtype=np.int64)
    seen: set[tuple[int, bytes]] = set()
    for at in ranked:
        row = int(rows[at])
        if counts[row] < top_k[row] and (row, ids[at]) not in seen:
            seen.add((row, ids[at]))
            counts[row] += 1
            kept.append(at)
    chosen = np.array(kept, dtype=np.int64)
    hits = Hits(
        counts=counts,
        ids=b"".join([ids[at] for at in kept]),
        id_lengths=lengths[chosen],
        scores=scores[chosen],
        sequences=_joined([part.hits.sequences for part in parts], np.uint64)[chosen],
        passages=_joined([part.hits.passages for part in parts], np.uint32)[chosen],
    )
    numbers = np.repeat(np.array([part.number for part in parts], dtype=np.int64), sizes)
    return Merged(hits, numbers[chosen], np.concatenate([[0], np.cumsum(counts)]).astype(np.int64))


def encode_hits(merged: Merged, field: int) -> list[bytes]:
    """See `shoal.kernels.encode_hits`."""
    hits = merged.hits
    encoded = [
        b"".join(
            (
                bytes([_ID]) + _varint(len(key)) + key,
                bytes([_SCORE]) + struct.pack("<d", score),
                bytes([_SHARD]) + _varint(number),
                bytes([_PASSAGE]) + _varint(passage),
            )
        )
        for key, score, number, passage in zip(
            _split(hits.ids, hits.id_lengths),
            hits.scores.tolist(),
            merged.numbers.tolist(),
            hits.passages.tolist(),
            strict=True,
        )
    ]
    framed = [_varint(field << 3 | 2) + _varint(len(one)) + one for one in encoded]
    return [b"".join(framed[a:b]) for a, b in itertools.pairwise(merged.offsets.tolist())]


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _split(ids: bytes, lengths: NDArray[np.uint32]) -> list[bytes]:
    ends = np.cumsum(lengths, dtype=np.int64).tolist()
    return [ids[a:b] for a, b in itertools.pairwise([0, *ends])]


def _joined(columns: list[NDArray[Any]], dtype: Any) -> NDArray[Any]:
    if not columns:
        return np.empty(0, dtype)
    return np.concatenate(columns).astype(dtype, copy=False)
