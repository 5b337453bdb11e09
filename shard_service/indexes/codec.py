"""Training a codec with FAISS: one thread, one seed, so the same sample gives the same bytes."""

from __future__ import annotations

import numpy as np

from shard_service.core.codec import ONE, Codec, check_subspaces, codec, to_fixed
from shard_service.indexes.library import faiss
from shoal.kernels.maxsim import WORDS
from shoal.types import Float32Matrix

_SEED = 1234
_ROUNDS = 8
_LEAST_PER_CENTROID = 39
"""Sample tokens that a centroid wants, FAISS's own advice; fewer tokens, fewer centroids."""
MOST_CENTROIDS = 4_096


def centroid_count(tokens: int) -> int:
    """Centroids for a sample of so many tokens: a power of two, 1 to MOST_CENTROIDS.

    >>> [centroid_count(tokens) for tokens in (1, 100, 10_000, 10_000_000)]
    [1, 2, 256, 4096]
    """
    wanted = max(1, tokens // _LEAST_PER_CENTROID)
    return min(MOST_CENTROIDS, 1 << (wanted.bit_length() - 1))


def train(sample: Float32Matrix, code_bytes: int) -> Codec:
    """Centroids by k-means, then residual words by product quantisation.

    Args:
        sample: float32[tokens, dim] unit vectors, 1 token or more, in an order that depends
            on the tokens alone.
        code_bytes: residual bytes of a token, M; 0 keeps centroids alone.

    Raises:
        ValueError: M does not divide dim, or a number is not finite.
    """
    tokens, dim = sample.shape
    check_subspaces(dim, code_bytes)
    to_fixed(sample)
    faiss.omp_set_num_threads(1)
    count = centroid_count(tokens)
    centroids = to_fixed(_kmeans(np.ascontiguousarray(sample), count))
    ids = Codec(centroids, np.empty((0, WORDS, 0), np.int16)).encode(sample).centroids
    rest = sample - centroids[ids].astype(np.float32) / ONE
    words = [
        to_fixed(_kmeans(np.ascontiguousarray(part), WORDS))
        for part in (np.split(rest, code_bytes, axis=1) if code_bytes else ())
    ]
    empty = np.empty((0, WORDS, 0), np.int16)
    return codec(centroids, np.stack(words) if words else empty)


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
