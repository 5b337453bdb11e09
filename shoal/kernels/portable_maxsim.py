"""The MaxSim kernels in NumPy: what defines their integers, and serves where none are compiled.

See `shoal.kernels.maxsim` for arguments, ranges and errors.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from shoal.kernels.token_runs import (
    LANES,
    NORM_LEAST,
    NORM_STEP,
    CodedRuns,
    Matches,
    RowRuns,
    Tables,
)

NAME = "numpy"
_NEAREST_ROWS = 256
"""Vectors compared at a time: with 4,096 rows their products take 8 MiB."""

Similarities = Callable[[slice], NDArray[np.int64]]
"""Of a run of tokens with every token of the query: [tokens, query tokens] int64."""


def tables(vectors: NDArray[np.int16], rows: NDArray[np.int16], factor: int) -> NDArray[np.int16]:
    """See `shoal.kernels.maxsim.tables`."""
    parts = _parts(vectors, rows)
    scaled = (_products(rows, parts) * factor + (1 << 31)) >> 32
    groups, count, tokens = scaled.shape
    blocks = -(-tokens // LANES)
    lanes = np.zeros((groups, count, blocks * LANES), dtype=np.int16)
    lanes[:, :, :tokens] = scaled
    split = lanes.reshape(groups, count, blocks, LANES)
    return np.ascontiguousarray(split.transpose(2, 0, 1, 3))


def floored(table: NDArray[np.int16], kept: int) -> NDArray[np.int16]:
    """See `shoal.kernels.maxsim.floored`."""
    count = table.shape[2]
    if not 0 < kept <= count:
        raise ValueError("between 1 and all rows are kept")
    least = np.partition(table, count - kept, axis=2)[:, :, count - kept]
    raised: NDArray[np.int16] = np.maximum(table, least[:, :, np.newaxis])
    return raised


def nearest(vectors: NDArray[np.int16], rows: NDArray[np.int16]) -> NDArray[np.uint16]:
    """See `shoal.kernels.maxsim.nearest`."""
    parts = _parts(vectors, rows)
    if not 0 < rows.shape[1] <= 1 << 16:
        raise ValueError("between 1 and 65,536 rows")
    lengths = np.square(rows, dtype=np.int64).sum(axis=2)[:, :, np.newaxis]
    found = np.empty((len(vectors), len(rows)), dtype=np.uint16)
    for start in range(0, len(vectors), _NEAREST_ROWS):
        block = parts[:, start : start + _NEAREST_ROWS]
        closeness = 2 * _products(rows, block) - lengths
        found[start : start + _NEAREST_ROWS] = closeness.argmax(axis=1).T
    return found


def score_coded(query: Tables, runs: CodedRuns, documents: NDArray[np.int64]) -> NDArray[np.int64]:
    """See `shoal.kernels.maxsim.score_coded`."""
    return _scores(match_coded(query, runs, documents))


def match_coded(query: Tables, runs: CodedRuns, documents: NDArray[np.int64]) -> Matches:
    """See `shoal.kernels.maxsim.match_coded`."""
    blocks, groups = -(-query.count // LANES), runs.codes.shape[1]
    if (
        query.centroids.shape != (blocks, 1, query.centroids.shape[2], LANES)
        or query.words.shape != (blocks, groups, 256, LANES)
        or len(runs.codes) != len(runs.ids)
        or (runs.norms is not None and len(runs.norms) != len(runs.ids))
    ):
        raise ValueError("tables, codes and ids of different shapes")
    centroids, words = (
        _by_token(query.centroids, query.count)[0],
        _by_token(query.words, query.count),
    )

    def similarities(tokens: slice) -> NDArray[np.int64]:
        sums: NDArray[np.int64] = centroids[runs.ids[tokens]]
        for group, codes in enumerate(runs.codes[tokens].T):
            sums = sums + words[group, codes]
        if runs.norms is not None:
            factors = NORM_LEAST + NORM_STEP * runs.norms[tokens].astype(np.int64)
            sums = (sums * factors[:, np.newaxis] + (1 << 14)) >> 15
        return sums

    return _matches(similarities, runs.offsets, documents, len(runs.ids), query.count, -(1 << 15))


def score_rows(
    query: NDArray[np.int16], runs: RowRuns, documents: NDArray[np.int64]
) -> NDArray[np.int64]:
    """See `shoal.kernels.maxsim.score_rows`."""
    return _scores(match_rows(query, runs, documents))


def match_rows(query: NDArray[np.int16], runs: RowRuns, documents: NDArray[np.int64]) -> Matches:
    """See `shoal.kernels.maxsim.match_rows`."""
    if query.shape[1] != runs.rows.shape[1]:
        raise ValueError("queries and rows of different widths")

    def similarities(tokens: slice) -> NDArray[np.int64]:
        products: NDArray[np.int64] = _products(runs.rows[np.newaxis, tokens], query[np.newaxis])[0]
        return products

    return _matches(similarities, runs.offsets, documents, len(runs.rows), len(query), -(1 << 31))


def _matches(
    similarities: Similarities,
    offsets: NDArray[np.int64],
    documents: NDArray[np.int64],
    token_count: int,
    query_count: int,
    lowest: int,
) -> Matches:
    if ((documents < 0) | (documents >= len(offsets) - 1)).any():
        raise ValueError("there is no document of this number")
    begins, ends = offsets[documents], offsets[documents + 1]
    if ((begins < 0) | (begins > ends) | (ends > token_count)).any():
        raise ValueError("a document lies outside the tokens")
    tokens = np.full((len(documents), query_count), -1, dtype=np.int32)
    best = np.full((len(documents), query_count), lowest, dtype=np.int32)
    for at, (begin, end) in enumerate(zip(begins.tolist(), ends.tolist(), strict=True)):
        if begin < end:
            found = similarities(slice(begin, end))
            tokens[at], best[at] = found.argmax(axis=0), found.max(axis=0)
    return Matches(tokens, best)


def _scores(matches: Matches) -> NDArray[np.int64]:
    scores: NDArray[np.int64] = matches.similarities.sum(axis=1, dtype=np.int64)
    return scores


def _parts(vectors: NDArray[np.int16], rows: NDArray[np.int16]) -> NDArray[np.int16]:
    """[groups, n, part] of vectors [n, groups x part]."""
    if rows.ndim != 3 or vectors.ndim != 2 or vectors.shape[1] != rows.shape[0] * rows.shape[2]:
        raise ValueError("vectors and rows of different widths")
    split = vectors.reshape(len(vectors), rows.shape[0], rows.shape[2])
    return np.ascontiguousarray(split.swapaxes(0, 1))


def _products(left: NDArray[np.int16], right: NDArray[np.int16]) -> NDArray[np.int64]:
    """[groups, rows, vectors] of [groups, rows, part] and [groups, vectors, part]."""
    # Float64 holds integers below 2^53 exactly, in any order of summation, and has fast products.
    products = np.matmul(left.astype(np.float64), right.astype(np.float64).swapaxes(1, 2))
    exact: NDArray[np.int64] = products.astype(np.int64)
    return exact


def _by_token(table: NDArray[np.int16], count: int) -> NDArray[np.int64]:
    """[groups, rows, query tokens] of a table in lanes."""
    groups, rows = table.shape[1:3]
    whole = table.transpose(1, 2, 0, 3).reshape(groups, rows, len(table) * LANES)
    return whole[:, :, :count].astype(np.int64)
