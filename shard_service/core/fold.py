"""Passages to documents, and documents in their final order."""

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from shoal.types import Float64Vector

Indices = NDArray[np.int64]


def best_passages(query: Indices, document: Indices, row: Indices, score: Float64Vector) -> Indices:
    """The best-scoring row of every (query, document), in (query, score descending) order.

    Rows of one document with equal scores: the first row wins. Documents of one query
    with equal scores stand in no particular order.

    Args:
        query: [candidates] query number of each candidate.
        document: [candidates] document number, unique over all sources.
        row: [candidates] row number within the document's source.
        score: [candidates] exact score.

    Returns:
        Indices into the candidates.
    """
    order = np.lexsort((row, -score, document, query))
    changed = np.empty(len(order), dtype=np.bool_)
    changed[:1] = True
    np.not_equal(document[order[1:]], document[order[:-1]], out=changed[1:])
    changed[1:] |= query[order[1:]] != query[order[:-1]]
    firsts = order[changed]
    by_score: Indices = firsts[np.lexsort((-score[firsts], query[firsts]))]
    return by_score


def ranks_within(query: Indices) -> Indices:
    """Position of each element within its run of equal query numbers, from 0."""
    starts = np.flatnonzero(np.diff(query, prepend=-1))
    return np.arange(len(query)) - np.repeat(starts, np.diff(starts, append=len(query)))


def kth_scores(
    query: Indices, score: Float64Vector, top_k: Indices
) -> tuple[Float64Vector, Indices]:
    """The K-th best document's score of each query, and how many documents it has.

    Args:
        query: [documents], ascending.
        score: [documents], descending within a query.
        top_k: [queries], documents wanted.

    Returns:
        [queries] float64, -inf where there are fewer than K; [queries] int64 counts.
    """
    counts = np.bincount(query, minlength=len(top_k)).astype(np.int64)
    ends = np.cumsum(counts)
    kth = np.full(len(top_k), -np.inf)
    enough = np.flatnonzero(counts >= top_k)
    kth[enough] = score[(ends - counts)[enough] + top_k[enough] - 1]
    return kth, counts


def break_ties(
    chosen: Indices,
    query: Indices,
    score: Float64Vector,
    ids_of: Callable[[Indices], Sequence[bytes]],
) -> Indices:
    """Orders documents with equal scores by id, ascending by bytes.

    Args:
        chosen: indices into the candidates in (query, score descending) order.
        query: [candidates].
        score: [candidates].
        ids_of: the ids behind indices into the candidates.

    Returns:
        `chosen` in (query, score descending, id ascending) order.
    """
    same = (query[chosen[1:]] == query[chosen[:-1]]) & (score[chosen[1:]] == score[chosen[:-1]])
    if not same.any():
        return chosen
    ordered = chosen.copy()
    edges = np.flatnonzero(np.diff(same, prepend=False, append=False))
    for start, end in zip(edges[::2].tolist(), (edges[1::2] + 1).tolist(), strict=True):
        group = chosen[start:end]
        ids = ids_of(group)
        ordered[start:end] = group[sorted(range(len(ids)), key=ids.__getitem__)]
    return ordered
