"""Token vectors in fixed point: rounded once, integers from then on."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

Fixed = NDArray[np.int16]

ONE = 1 << 14
"""The number 1 in fixed point: entries lie within (-2, 2)."""


def to_fixed(vectors: NDArray[np.float16] | NDArray[np.float32] | NDArray[np.float64]) -> Fixed:
    """Rounds to fixed point, halves to even.

    Raises:
        ValueError: a number is not finite, or not within (-2, 2).
    """
    scaled = np.rint(vectors.astype(np.float64) * ONE)
    if not (np.abs(scaled) < 2 * ONE).all():
        raise ValueError("a token vector holds NaN, infinity, or a number beyond 2")
    return scaled.astype(np.int16)


def longest_square(dim: int) -> float:
    """What the squared length of a unit vector in fixed point cannot exceed.

    Rounding moves it by sqrt(dim) / 2 steps at most.
    """
    longest = ONE + math.sqrt(dim) / 2
    return longest * longest


def squares(rows: NDArray[np.integer]) -> NDArray[np.int64]:
    """[rows] int64, the squared length of each row of integers; exact."""
    found: NDArray[np.int64] = np.square(rows.astype(np.int64)).sum(axis=1)
    return found


def unit_rows(vectors: NDArray[np.float32]) -> NDArray[np.float64]:
    """Rows scaled to length 1 in float64.

    Raises:
        ValueError: a row is zero, or holds NaN or infinity.
    """
    rows = vectors.astype(np.float64)
    lengths = np.sqrt(np.square(rows).sum(axis=1, keepdims=True))
    if not (np.isfinite(lengths) & (lengths > 0)).all():
        raise ValueError("a token vector is zero, or holds NaN or infinity")
    scaled: NDArray[np.float64] = rows / lengths
    return scaled
