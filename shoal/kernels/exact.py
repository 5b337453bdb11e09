"""The scores that Shoal publishes, to the bit.

A score is a fold of float64 terms, one per column: terms are padded with zeros to
a power of two, then the upper half is added to the lower, elementwise, until one
number is left. Products of float32 numbers are exact in float64, so nothing
depends on fused multiply-add, and every step is elementwise, so nothing depends on
how many pairs are scored together, in what order, or in what memory layout.

Source: DESIGN, section 6.
"""

import math

import numpy as np
from numpy.typing import NDArray

from shoal.types import Float32Matrix, Float64Vector, Similarity

_BLOCK_ELEMENTS = 1 << 17
"""Terms folded at a time: 1 MiB of float64 (measured: from 2**15 to 2**19 this is the fastest)."""
_NARROW = 32
"""From this width on columns lie contiguous in memory, so that numpy's inner loop is long."""
_UNIT_ROUNDOFF = 2.0**-24
"""Half the distance between 1 and the next float32."""
_UNDERFLOW = 2.0**-126
"""What one float32 operation may lose absolutely where results are subnormal."""
_OVERFLOW = 2.0**126
"""Sums of float32 products above this may overflow."""


def scores(
    similarity: Similarity,
    queries: Float32Matrix,
    rows: Float32Matrix,
    query_squares: Float64Vector,
    row_squares: Float64Vector,
) -> Float64Vector:
    """Scores pairs: query i with row i. Larger is better.

    Args:
        similarity: dot is fold(q·x), l2 is -fold((q-x)²), cosine is
            fold(q·x) / sqrt(fold(q²)·fold(x²)).
        queries: [pairs, dim] float32, any strides.
        rows: [pairs, dim] float32, any strides.
        query_squares: [pairs] float64, `squares(queries)`; read by cosine only.
        row_squares: [pairs] float64, `squares(rows)`; read by cosine only.

    Returns:
        [pairs] float64; 0 is always +0.
    """
    folded = np.empty(len(rows), dtype=np.float64)
    step = max(1, _BLOCK_ELEMENTS // max(1, rows.shape[1]))
    for start in range(0, len(rows), step):
        part = slice(start, start + step)
        folded[part] = _fold(_terms(similarity, queries[part], rows[part]))
    if similarity is Similarity.COSINE:
        folded /= np.sqrt(query_squares * row_squares)
    if similarity is Similarity.L2:
        np.negative(folded, out=folded)
    folded += 0.0  # -0 would compare equal and yet be another bit pattern
    return folded


def squares(vectors: Float32Matrix) -> Float64Vector:
    """fold(x²) of each row: [rows] float64. Zero exactly where the row is zero."""
    return scores(Similarity.DOT, vectors, vectors, _NOTHING, _NOTHING)


def reference(similarity: Similarity, query: Float32Matrix, row: Float32Matrix) -> float:
    """The oracle: one pair, one number at a time, in Python floats.

    Args:
        similarity: how to compare.
        query: [dim] float32.
        row: [dim] float32.
    """
    left, right = [float(x) for x in query], [float(x) for x in row]
    if similarity is Similarity.L2:
        differences = [q - x for q, x in zip(left, right, strict=True)]
        return -_fold_list([t * t for t in differences]) + 0.0
    dot = _fold_list([q * x for q, x in zip(left, right, strict=True)])
    if similarity is Similarity.DOT:
        return dot + 0.0
    norms = _fold_list([q * q for q in left]) * _fold_list([x * x for x in right])
    return dot / math.sqrt(norms) + 0.0


def engine_error(
    similarity: Similarity, dim: int, query_norm: Float64Vector, row_norm: float
) -> Float64Vector:
    """How far a float32 engine's score may lie from the exact one.

    Holds for any order of summation, with or without fused multiply-add, and for
    l2 also where the engine expands it to norms and a product.

    Args:
        similarity: dot and l2 of the vectors as they are; cosine as the dot product
            of vectors normalised in float64 and rounded to float32.
        dim: columns.
        query_norm: [queries] float64, length of each query.
        row_norm: the largest length of a row.

    Returns:
        [queries] float64; infinite where float32 may overflow.

    Source: Higham, Accuracy and Stability of Numerical Algorithms (2nd ed., 2002),
    section 3.1: |error| <= gamma_n · sum |q_i x_i|, gamma_n = n·u / (1 - n·u).
    """
    if similarity is Similarity.COSINE:
        # Three more roundings: of both normalised vectors, and slack for their lengths.
        size = np.ones_like(query_norm)
        gamma = _gamma(dim + 4)
    elif similarity is Similarity.DOT:
        size = query_norm * row_norm
        gamma = _gamma(dim + 1)
    else:
        size = np.square(query_norm + row_norm)
        gamma = _gamma(dim + 4)
    return np.where(size < _OVERFLOW, gamma * size + 2 * dim * _UNDERFLOW, np.inf)


_NOTHING: Float64Vector = np.empty(0, dtype=np.float64)


def _gamma(count: int) -> float:
    return count * _UNIT_ROUNDOFF / (1 - count * _UNIT_ROUNDOFF)


def _terms(
    similarity: Similarity, queries: Float32Matrix, rows: Float32Matrix
) -> NDArray[np.float64]:
    if similarity is Similarity.L2:
        differences = np.subtract(queries, rows, dtype=np.float64)
        return np.square(differences, out=differences)
    return np.multiply(queries, rows, dtype=np.float64)


def _fold(terms: NDArray[np.float64]) -> Float64Vector:
    """Folds each row of a C-ordered [pairs, dim] matrix, in place."""
    width = terms.shape[1]
    half = 1 << max(0, (width - 1).bit_length() - 1)
    while width > _NARROW:
        # The padding is zeros, and x + 0 = x: only columns that exist are added.
        terms[:, : width - half] += terms[:, half:width]
        width, half = half, half // 2
    columns = np.ascontiguousarray(terms[:, :width].T)
    while width > 1:
        columns[: width - half] += columns[half:width]
        width, half = half, half // 2
    folded: Float64Vector = columns[0]
    return folded


def _fold_list(terms: list[float]) -> float:
    width = 1 << max(0, (len(terms) - 1).bit_length())
    padded = terms + [0.0] * (width - len(terms))
    while len(padded) > 1:
        half = len(padded) // 2
        padded = [padded[i] + padded[i + half] for i in range(half)]
    return padded[0]
