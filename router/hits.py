"""Hits of a whole round as protobuf bytes, written with NumPy.

A repeated message costs a Python call per field of every hit; here the cost is
a fixed number of array operations per round. What comes out are the canonical
bytes of `repeated Hit`, to be followed by the rest of a message: protobuf
messages merge when their bytes are joined.
"""

import itertools

import numpy as np
from numpy.typing import NDArray

from router.core.merge import Ints, Merged

SEARCH_HITS = 1
"""Field number of `hits` in SearchResponse."""
BATCH_HITS = 2
"""Field number of `hits` in BatchAnswer."""
_ID, _SCORE, _SHARD, _PASSAGE = 0x0A, 0x11, 0x38, 0x40


def encode_hits(merged: Merged, field: int) -> list[bytes]:
    """Per query, its hits as bytes of the repeated message field `field`."""
    lengths = merged.id_lengths
    passages = merged.passages.astype(np.int64)
    id_sizes, shard_sizes, passage_sizes = map(_varint_sizes, (lengths, merged.shards, passages))
    bodies = 1 + id_sizes + lengths + 9 + 1 + shard_sizes + 1 + passage_sizes
    body_sizes = _varint_sizes(bodies)
    sizes = 1 + body_sizes + bodies
    ends = np.cumsum(sizes)
    out = np.empty(int(ends[-1]) if len(ends) else 0, np.uint8)
    at = ends - sizes
    out[at] = field << 3 | 2
    at = _put_varints(out, at + 1, bodies, body_sizes)
    out[at] = _ID
    at = _put_varints(out, at + 1, lengths, id_sizes)
    _put_ids(out, at, merged)
    at = at + lengths
    out[at] = _SCORE
    out[(at + 1)[:, None] + np.arange(8)] = (
        merged.scores.astype("<f8", copy=False).view(np.uint8).reshape(-1, 8)
    )
    out[at + 9] = _SHARD
    at = _put_varints(out, at + 10, merged.shards, shard_sizes)
    out[at] = _PASSAGE
    _put_varints(out, at + 1, passages, passage_sizes)
    data = out.tobytes()
    bounds = np.concatenate(([0], ends))[merged.offsets].tolist()
    return [data[begin:end] for begin, end in itertools.pairwise(bounds)]


def _varint_sizes(values: Ints) -> Ints:
    sizes = np.ones(len(values), np.int64)
    longest = int(values.max(initial=0))
    bound = 0x80
    while longest >= bound:
        sizes += values >= bound
        bound <<= 7
    return sizes


def _put_varints(
    out: NDArray[np.uint8],
    at: Ints,
    values: Ints,
    sizes: Ints,
) -> Ints:
    """Writes varints; returns the position behind each."""
    longest = int(sizes.max(initial=1))
    if longest == 1:
        out[at] = values
        return at + sizes
    for place in range(longest):
        has = sizes > place
        more = (sizes[has] > place + 1).astype(np.int64) << 7
        out[at[has] + place] = (values[has] >> (7 * place)) & 0x7F | more
    return at + sizes


def _put_ids(out: NDArray[np.uint8], at: Ints, merged: Merged) -> None:
    lengths = merged.id_lengths
    total = int(lengths.sum())
    within = np.arange(total) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    source = np.repeat(merged.id_starts, lengths) + within
    out[np.repeat(at, lengths) + within] = merged.id_bytes[source]
