"""Training a codec with FAISS: one thread, one seed, so the same sample gives the same bytes."""

from __future__ import annotations

from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from shard_service.core.codec import Codec, check_subspaces, codec, rotated
from shard_service.indexes.library import faiss
from shoal.kernels import maxsim
from shoal.kernels.fixed import ONE, squares, to_fixed
from shoal.kernels.maxsim import WORDS
from shoal.types import Float32Matrix

Row = TypeVar("Row", np.float16, np.int16)

_SEED = 1234
_ROUNDS = 8
_LEAST_PER_CENTROID = 39
"""Sample tokens that a centroid wants, FAISS's own advice; fewer tokens, fewer centroids."""
MOST_CENTROIDS = 4_096
SAMPLE_TOKENS = 64 * MOST_CENTROIDS
"""Tokens that a codec is trained on, where there are so many."""
_WIDEST = 4
"""Tokens read for one that is kept, at most: what a large collection's training reads."""
_FAR = 0.75
"""Share of the sample that is nearer to its centroid than what counts as far."""


def centroid_count(tokens: int) -> int:
    """Centroids for a sample of so many tokens: a power of two, 1 to MOST_CENTROIDS.

    >>> [centroid_count(tokens) for tokens in (1, 100, 10_000, 10_000_000)]
    [1, 2, 256, 4096]
    """
    wanted = max(1, tokens // _LEAST_PER_CENTROID)
    return min(MOST_CENTROIDS, 1 << (wanted.bit_length() - 1))


def spacing(tokens: int) -> int:
    """Every which token of a collection's first documents the sample has.

    Tokens of one document lie close together: as many from more documents stand for the
    others better.

    >>> [spacing(tokens) for tokens in (0, 600_000, 10_000_000)]
    [1, 2, 4]
    """
    return min(_WIDEST, max(1, tokens // SAMPLE_TOKENS))


def spaced(rows: NDArray[Row], seen: int, every: int) -> NDArray[Row]:
    """Those of a document's tokens that the sample has, the number of earlier tokens given."""
    return rows[-seen % every :: every]


def train(sample: Float32Matrix, code_bytes: int) -> Codec:
    """Centroids by k-means, a rotation of what is left, then words of its parts.

    Args:
        sample: float32[tokens, dim] unit vectors, 1 token or more, in an order that depends
            on the tokens alone.
        code_bytes: residual bytes of a token, M.

    Raises:
        ValueError: M does not divide dim, or a number is not finite.
    """
    tokens, dim = sample.shape
    check_subspaces(dim, code_bytes)
    fixed = to_fixed(sample)
    faiss.omp_set_num_threads(1)
    centroids = to_fixed(_kmeans(np.ascontiguousarray(sample), centroid_count(tokens)))
    nearest = maxsim.nearest(fixed, centroids[np.newaxis])[:, 0]
    rest = fixed.astype(np.int32) - centroids[nearest]
    turn = to_fixed(rotation(rest, code_bytes))
    turned = (rotated(rest, turn) / ONE).astype(np.float32)
    words = [
        to_fixed(_kmeans(np.ascontiguousarray(part), WORDS))
        for part in np.split(turned, code_bytes, axis=1)
    ]
    far = int(np.quantile(squares(rest), _FAR, method="higher"))
    return codec(centroids, turn, np.stack(words), far)


def rotation(rest: NDArray[np.int32], code_bytes: int) -> NDArray[np.float64]:
    """[dim, dim], orthonormal: after it, all parts of a rest carry about as much.

    Principal directions of the rests, from the largest down, each given to the part with the
    least product of variances that has room: what is best for Gaussian rests.

    Source: Ge, He, Ke and Sun, Optimized product quantization (2013), section 3.3.

    Args:
        rest: int32[tokens, dim] in fixed point, of 1 to 2^22 tokens.
        code_bytes: parts, M, a divisor of dim.
    """
    wide = rest.astype(np.float64)
    # Sums below 2^53: the same on any number of threads.
    variances, directions = np.linalg.eigh(wide.T @ wide)
    # What is less than one step of fixed point is no variance.
    weights = np.log(np.maximum(variances / len(rest), 1.0))
    parts: list[list[int]] = [[] for _ in range(code_bytes)]
    for column in np.argsort(-weights, kind="stable").tolist():
        open_parts = [part for part in parts if len(part) < len(weights) // code_bytes]
        min(open_parts, key=lambda part: weights[part].sum()).append(column)
    order = [column for part in parts for column in part]
    turned: NDArray[np.float64] = directions[:, order].T
    return turned


def _kmeans(rows: Float32Matrix, count: int) -> Float32Matrix:
    """[count, dim] centres; where there are fewer rows than that, they repeat."""
    if len(rows) <= count:
        return np.resize(rows, (count, rows.shape[1]))
    clustering = faiss.Clustering(rows.shape[1], count)
    clustering.niter, clustering.seed, clustering.verbose = _ROUNDS, _SEED, False
    clustering.min_points_per_centroid = 1
    clustering.train(rows, faiss.IndexFlatL2(rows.shape[1]))
    centres: Float32Matrix = faiss.vector_to_array(clustering.centroids)
    return centres.reshape(count, rows.shape[1])
