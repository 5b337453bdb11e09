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
_ROTATION_ROUNDS = 12
_ROTATION_TOKENS = 65_536
_LEAST_TO_ROTATE = 39 * WORDS
"""With fewer tokens the words of a rotation would be trained on next to nothing."""
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
    rotation = to_fixed(_rotation((rest / ONE).astype(np.float32), code_bytes))
    turned = (rotated(rest, rotation) / ONE).astype(np.float32)
    words = [
        to_fixed(_kmeans(np.ascontiguousarray(part), WORDS))
        for part in np.split(turned, code_bytes, axis=1)
    ]
    far = int(np.quantile(squares(rest), _FAR, method="higher"))
    return codec(centroids, rotation, np.stack(words), far)


def _rotation(rest: Float32Matrix, code_bytes: int) -> Float32Matrix:
    """[dim, dim], orthonormal: after it, words of the parts fit best (OPQ)."""
    dim = rest.shape[1]
    if len(rest) < _LEAST_TO_ROTATE or code_bytes == dim:
        return np.eye(dim, dtype=np.float32)
    matrix = faiss.OPQMatrix(dim, code_bytes)
    matrix.niter = _ROTATION_ROUNDS
    matrix.train(np.ascontiguousarray(rest[:_ROTATION_TOKENS]))
    turned: Float32Matrix = faiss.vector_to_array(matrix.A)
    return turned.reshape(dim, dim)


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
