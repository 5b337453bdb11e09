"""The two cuts of late interaction: at B by centroid scores, then at K by full scores.

Each shard sends the first B of its own documents by (centroid score descending, id ascending),
all of them. The first B of all shards are then the first B of the whole, whatever the split; only
after that cut may full scores decide. A shard that cut at K by full scores could displace a
document that counts by one that does not. Source: DESIGN, section 10.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from shoal import kernels
from shoal.kernels import Hits, Merged, Part

Ints = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class LatePart:
    """What one shard refined.

    Attributes:
        number: of the shard.
        rows: [queries] int64, row of the merge to which each query belongs; -1 for
            one that nobody waits for.
        hits: they.
        centroid_scores: [hits] float64; empty where no query of the message refines.
    """

    number: int
    rows: Ints
    hits: Hits
    centroid_scores: NDArray[np.float64]


def merge(parts: Sequence[LatePart], refined: Sequence[int], top_k: Ints) -> Merged:
    """Per row the best K of the B documents that come first.

    Args:
        parts: what each shard answered, in any order.
        refined: per row B; 0 where every document was scored and all count.
        top_k: [rows] int64, K.
    """
    if not any(refined):
        return kernels.merge([Part(part.number, part.rows, part.hits) for part in parts], top_k)
    return kernels.merge(_counted(parts, refined), top_k)


def last_counted(parts: Sequence[LatePart], row: int, refined: int) -> tuple[float, bytes] | None:
    """Centroid score and id of the last document of a row that counts; None if there were
    fewer than B, so that none was left out.
    """
    everything: list[tuple[float, bytes]] = []
    for part in parts:
        ends = np.cumsum(part.hits.counts).tolist()
        for at in np.flatnonzero(part.rows == row).tolist():
            where = slice(ends[at] - int(part.hits.counts[at]), ends[at])
            scores = part.centroid_scores[where].tolist()
            everything += zip(
                (-score for score in scores),
                part.hits.split_ids(where.start, where.stop),
                strict=True,
            )
    if len(everything) < refined:
        return None
    score, key = sorted(everything)[refined - 1]
    return -score, key


def _counted(parts: Sequence[LatePart], refined: Sequence[int]) -> list[Part]:
    """The parts without hits that are not among their query's first B."""
    kept = [np.ones(len(part.hits.scores), dtype=np.bool_) for part in parts]
    of_row: dict[int, list[tuple[int, slice]]] = {}
    for number, part in enumerate(parts):
        ends = np.cumsum(part.hits.counts).tolist()
        for row, end, count in zip(
            part.rows.tolist(), ends, part.hits.counts.tolist(), strict=True
        ):
            if row >= 0 and refined[row]:
                of_row.setdefault(row, []).append((number, slice(end - count, end)))
    for row, slices in of_row.items():
        _cut(parts, kept, slices, refined[row])
    return [
        Part(part.number, part.rows, part.hits if mine.all() else _filtered(part.hits, mine))
        for part, mine in zip(parts, kept, strict=True)
    ]


def _cut(
    parts: Sequence[LatePart],
    kept: Sequence[NDArray[np.bool_]],
    slices: Sequence[tuple[int, slice]],
    refined: int,
) -> None:
    """Marks what one query keeps."""
    scores = np.concatenate([parts[number].centroid_scores[where] for number, where in slices])
    if len(scores) <= refined:
        return
    least = np.partition(scores, len(scores) - refined)[len(scores) - refined]
    room = refined - int((scores > least).sum())
    tied: list[tuple[bytes, int, int]] = []
    for number, where in slices:
        mine = parts[number].centroid_scores[where]
        kept[number][where] = mine >= least
        # Ids are read where a tie is cut alone.
        if room < int((scores == least).sum()):
            ids = parts[number].hits.split_ids(where.start, where.stop)
            tied += [
                (ids[at], number, where.start + at) for at in np.flatnonzero(mine == least).tolist()
            ]
    for _, number, at in sorted(tied)[room:]:
        kept[number][at] = False


def _filtered(hits: Hits, kept: NDArray[np.bool_]) -> Hits:
    ids = np.frombuffer(hits.ids, np.uint8)
    queries = np.repeat(np.arange(len(hits.counts)), hits.counts)
    return Hits(
        counts=np.bincount(queries[kept], minlength=len(hits.counts)).astype(np.int64),
        ids=ids[np.repeat(kept, hits.id_lengths)].tobytes(),
        id_lengths=hits.id_lengths[kept],
        scores=hits.scores[kept],
        sequences=hits.sequences[kept],
        passages=hits.passages[kept],
    )
