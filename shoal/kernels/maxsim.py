"""MaxSim in integers: late interaction whose scores are the same bits on every machine.

A document's score for a query is, over the query's tokens, the sum of the greatest
similarity that any of the document's tokens has. Tokens are vectors in fixed point, or
a centroid's number and one code per group of columns; similarities come from int16
tables with the query's tokens in 32 lanes, so that a code costs one addition.

Nothing here overflows or saturates if callers keep to the stated ranges:

- A coded similarity is S + T_1 + ... + T_M in int16. Where |S| + sum_j max_k |T_j[k]|
  <= 32,767 in every lane, so is every partial sum. The factor of `tables` is to be chosen
  for it: with C the longest centroid, R_j the longest row of group j and Q the longest
  query token admitted, |S| <= Q·C·f + 1/2 and, by Cauchy-Schwarz over the groups, the sum
  of max |T_j| <= Q·sqrt(sum R_j²)·f + M/2, where f = factor / 2^32.
- A token's factor is below 2^15, so that scaling makes a similarity smaller.
- A product of int16 vectors is summed in int32. By Cauchy-Schwarz every partial sum of
  q·x is at most |q|·|x| (a part of the columns is a shorter vector), so lengths with
  |q|·|x| < 2^31 are safe; the pairwise products of the first step are such parts too.
- A score is summed in int64, after 32 int16 of a block in int32.

Source: Khattab and Zaharia, ColBERT (2020), section 3.3 (MaxSim); Jégou, Douze and
Schmid, Product quantization for nearest neighbor search (2011), section III (tables).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from shoal.kernels import portable_maxsim as portable
from shoal.kernels.token_runs import (
    LANES,
    NORM_LEAST,
    NORM_STEP,
    WORDS,
    CodedRuns,
    Matches,
    RowRuns,
    Tables,
)

try:
    from shoal.kernels import _native
except ImportError:
    PATHS: tuple[str, ...] = (portable.NAME,)
else:
    PATHS = (*_native.maxsim_paths(), portable.NAME)

__all__ = [
    "LANES",
    "NORM_LEAST",
    "NORM_STEP",
    "PATHS",
    "WORDS",
    "CodedRuns",
    "Matches",
    "RowRuns",
    "Tables",
    "floored",
    "match_coded",
    "match_rows",
    "nearest",
    "score_coded",
    "score_rows",
    "tables",
]


def tables(
    vectors: NDArray[np.int16], rows: NDArray[np.int16], factor: int, path: str = PATHS[0]
) -> NDArray[np.int16]:
    """Products of every vector with every row of each group, scaled to int16.

    Args:
        vectors: [n, groups x part] int16, C order; group g's columns are the g-th run.
        rows: [groups, count, part] int16, C order; |vector|·|row| < 2^31 in each group.
        factor: 0 <= factor < 2^32, with |vector|·|row|·factor / 2^32 <= 32,767.
        path: one of `PATHS`.

    Returns:
        [ceil(n / 32), groups, count, 32] int16 in 32 lanes per block, on cache lines when
        compiled: floor(product · factor / 2^32 + 1/2); lanes beyond n are zero.

    Raises:
        ValueError: shapes that do not fit, or a path that the processor lacks.
    """
    if path == portable.NAME:
        return portable.tables(vectors, rows, factor)
    return _native.tables(vectors, rows, factor, path)


def floored(table: NDArray[np.int16], kept: int, path: str = PATHS[0]) -> NDArray[np.int16]:
    """A table in which every value below the `kept`-th greatest of its lane is raised to it.

    Args:
        table: [blocks, groups, count, 32] int16, C order, from `tables`.
        kept: 1 to count.
        path: one of `PATHS`.

    Returns:
        As `table`.

    Raises:
        ValueError: `kept` out of range, or a path that the processor lacks.
    """
    if path == portable.NAME:
        return portable.floored(table, kept)
    return _native.floored(table, kept, path)


def nearest(
    vectors: NDArray[np.int16], rows: NDArray[np.int16], path: str = PATHS[0]
) -> NDArray[np.uint16]:
    """The row of each group that is nearest to each vector's part; the first of equals.

    Args:
        vectors: [n, groups x part] int16, C order.
        rows: [groups, count, part] int16, C order, 1 <= count <= 65,536;
            2·|vector|·|row| + |row|² < 2^31 in each group.
        path: one of `PATHS`.

    Returns:
        [n, groups] uint16: argmin |vector - row|², as argmax 2·vector·row - |row|².

    Raises:
        ValueError: shapes that do not fit, or a path that the processor lacks.
    """
    if path == portable.NAME:
        return portable.nearest(vectors, rows)
    return _native.nearest(vectors, rows, path)


def score_coded(
    query: Tables, runs: CodedRuns, documents: NDArray[np.int64], path: str = PATHS[0]
) -> NDArray[np.int64]:
    """MaxSim of documents whose tokens are coded.

    Args:
        query: the tables of one query.
        runs: tokens by document.
        documents: [n] int64, numbers of documents, any order.
        path: one of `PATHS`.

    Returns:
        [n] int64. A document without tokens has -32,768 for each token of the query.

    Raises:
        ValueError: shapes that do not fit, a number or an offset out of range, or a path
            that the processor lacks.
    """
    if path == portable.NAME:
        return portable.score_coded(query, runs, documents)
    return _native.score_coded(*_coded(query, runs), documents, query.count, path, runs.norms)


def match_coded(
    query: Tables, runs: CodedRuns, documents: NDArray[np.int64], path: str = PATHS[0]
) -> Matches:
    """Which token each token of the query matched; see `score_coded`.

    The similarities of a document sum to its score exactly.
    """
    if path == portable.NAME:
        return portable.match_coded(query, runs, documents)
    return Matches(
        *_native.match_coded(*_coded(query, runs), documents, query.count, path, runs.norms)
    )


def score_rows(
    query: NDArray[np.int16],
    runs: RowRuns,
    documents: NDArray[np.int64],
    path: str = PATHS[0],
) -> NDArray[np.int64]:
    """MaxSim of documents whose tokens are vectors in fixed point.

    Args:
        query: [tokens, dim] int16, C order; |query token|·|row| < 2^31.
        runs: tokens by document.
        documents: [n] int64, numbers of documents, any order.
        path: one of `PATHS`.

    Returns:
        [n] int64. A document without tokens has -2^31 for each token of the query.

    Raises:
        ValueError: as `score_coded`.
    """
    if path == portable.NAME:
        return portable.score_rows(query, runs, documents)
    return _native.score_rows(query, runs.rows, runs.offsets, documents, path)


def match_rows(
    query: NDArray[np.int16],
    runs: RowRuns,
    documents: NDArray[np.int64],
    path: str = PATHS[0],
) -> Matches:
    """Which token each token of the query matched; see `score_rows`."""
    if path == portable.NAME:
        return portable.match_rows(query, runs, documents)
    return Matches(*_native.match_rows(query, runs.rows, runs.offsets, documents, path))


def _coded(
    query: Tables, runs: CodedRuns
) -> tuple[
    NDArray[np.int16],
    NDArray[np.int16],
    NDArray[np.uint16],
    NDArray[np.uint8],
    NDArray[np.int64],
]:
    return query.centroids, query.words, runs.ids, runs.codes, runs.offsets
