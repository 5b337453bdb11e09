"""From what a model gives to the vector that is stored: cut, normalise, round once."""

import numpy as np

from shoal.types import Float32Matrix


def finish(pooled: Float32Matrix, columns: int, normalize: bool) -> Float32Matrix:
    """Cuts to `columns`, scales to length 1 in float64, rounds to float32 once.

    Cutting comes first: a Matryoshka vector is normalised as it is used.
    Source: Kusupati et al., Matryoshka Representation Learning (2022), section 3.

    Args:
        pooled: float32[n, dim].
        columns: 1 to dim.
        normalize: whether to scale; a zero row stays zero.

    Returns:
        float32[n, columns]; a row's bits depend on that row alone.
    """
    rows = pooled[:, :columns].astype(np.float64)
    if normalize:
        lengths = np.sqrt(np.square(rows).sum(axis=1, keepdims=True))
        rows /= np.where(lengths > 0.0, lengths, 1.0)
    return rows.astype(np.float32)


def cosine_distance(left: Float32Matrix, right: Float32Matrix) -> float:
    """The largest 1 - cos over pairs of rows; rows of float32[n, dim], not zero."""
    a, b = left.astype(np.float64), right.astype(np.float64)
    a /= np.linalg.norm(a, axis=1, keepdims=True)
    b /= np.linalg.norm(b, axis=1, keepdims=True)
    # Half the squared difference keeps its digits where 1 - a.b has none left.
    return float(np.square(a - b).sum(axis=1).max() / 2)
