"""Exact search in float32, by FAISS's brute-force kernels."""

from __future__ import annotations

from typing import Any

import numpy as np

from shard_service.core.engine import Proposals
from shard_service.core.live import Live
from shard_service.indexes.library import faiss
from shoal.types import Float32Matrix, Similarity

_US_PER_ELEMENT = 0.0004
"""One float32 multiply-add of a lone query, measured on 2 cores of an AVX2 EPYC."""
_FIXED_US = 20.0


class FlatEngine:
    """Ranks all rows of a matrix; dead ones too, so that FAISS may use its fast paths.

    Its scores differ from exact ones by less than `shoal.kernels.exact.engine_error`,
    whichever path FAISS takes.
    """

    exact = True

    def __init__(
        self, similarity: Similarity, vectors: Float32Matrix, owner: object = None
    ) -> None:
        """Serves [rows, dim] float32 in C order, prepared; `owner` is kept alive with it."""
        self._similarity = similarity
        self._vectors = vectors
        self._owner = owner

    @property
    def query_cost_us(self) -> float:
        """Rough cost of one query, microseconds."""
        return _FIXED_US + _US_PER_ELEMENT * self._vectors.size

    def search(self, queries: Float32Matrix, count: int, live: Live, effort: int) -> Proposals:
        """The best `count` rows by float32 score, dead ones among them."""
        rows = np.empty((len(queries), count), dtype=np.int64)
        scores = np.empty((len(queries), count), dtype=np.float32)
        shape = (self._vectors.shape[1], len(queries), len(self._vectors), count)
        pointers: tuple[Any, ...] = (faiss.swig_ptr(queries), faiss.swig_ptr(self._vectors))
        found = (faiss.swig_ptr(scores), faiss.swig_ptr(rows))
        if self._similarity is Similarity.L2:
            faiss.knn_L2sqr(*pointers, *shape, *found)
            np.negative(scores, out=scores)
        else:
            faiss.knn_inner_product(*pointers, *shape, *found)
        return Proposals(rows, scores[:, -1])
