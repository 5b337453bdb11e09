"""Fewer token vectors for a passage: near ones become their mean.

Source: Clavié, Chaffin and Adams, Reducing the footprint of multi-vector retrieval with minimal
performance impact via token pooling (2024): hierarchical clustering by Ward's criterion.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.cluster.hierarchy import fcluster, ward

_KEPT = 1
"""The first token stands for the whole passage in most encoders, and stays by itself."""

Clusters = NDArray[np.int64]


def clusters(rows: NDArray[np.float32], factor: int) -> Clusters:
    """The pooled vector to which each token of a passage goes, numbered by their first tokens.

    Args:
        rows: [tokens, dim] unit vectors.
        factor: tokens of a pooled vector, on average; 1 keeps them all.

    Returns:
        [tokens] int64, from 0; after the first token, 1 in `factor` of the others.
    """
    others = len(rows) - _KEPT
    if factor == 1 or others < 2:
        return np.arange(len(rows))
    found = fcluster(ward(rows[_KEPT:]), max(1, others // factor), "maxclust")
    _, first, inverse = np.unique(found, return_index=True, return_inverse=True)
    order = np.empty(len(first), np.int64)
    order[np.argsort(first)] = np.arange(len(first))
    return np.concatenate([np.arange(_KEPT), order[inverse] + _KEPT])


def pooled(rows: NDArray[np.float32], members: Clusters) -> NDArray[np.float32]:
    """The means of the tokens of each cluster, at length 1.

    Args:
        rows: [tokens, dim] unit vectors.
        members: [tokens], from `clusters`.

    Returns:
        [clusters, dim] float32; a token that is alone stays as it is.
    """
    if not len(rows):
        return rows
    sums = np.zeros((int(members.max()) + 1, rows.shape[1]))
    np.add.at(sums, members, rows)
    lengths = np.sqrt(np.square(sums).sum(axis=1, keepdims=True))
    means: NDArray[np.float32] = (sums / np.where(lengths > 0.0, lengths, 1.0)).astype(np.float32)
    alone = np.bincount(members)[members] == 1
    means[members[alone]] = rows[alone]
    return means


def pool(
    rows: NDArray[np.float32], counts: Sequence[int], factor: int
) -> tuple[NDArray[np.float32], list[int]]:
    """The token vectors of passages, pooled within each.

    Args:
        rows: [tokens of all, dim] unit vectors.
        counts: tokens of each passage.
        factor: see `clusters`.

    Returns:
        The pooled vectors, and how many each passage has.
    """
    passages = np.split(rows, np.cumsum(counts)[:-1]) if counts else []
    parts = [pooled(passage, clusters(passage, factor)) for passage in passages]
    return np.concatenate([rows[:0], *parts]), [len(part) for part in parts]
