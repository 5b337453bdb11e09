"""Exact search in float32, by FAISS's brute-force kernels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from shard_service.core.engine import Proposals
from shard_service.core.live import Live
from shard_service.indexes.library import faiss
from shard_service.indexes.threads import BLAS_THRESHOLD
from shoal.types import Float32Matrix, Similarity

_US_PER_ELEMENT = 0.0004
"""One float32 multiply-add of a lone query, measured on 2 cores of an AVX2 EPYC ..."""
_US_PER_ELEMENT_BATCHED = 0.00005
"""... and of queries that are multiplied as a matrix."""
_FIXED_US = 20.0
_BLOCK_ELEMENTS = 1 << 22
"""A lone query takes 2 ms for so many, a batch of 20 as long for all."""


class FlatEngine:
    """Ranks all rows of a matrix; dead ones too, so that FAISS may use its fast paths.

    Its scores differ from exact ones by less than `shoal.kernels.exact.engine_error`,
    whichever path FAISS takes.
    """

    exact = True

    def __init__(
        self,
        similarity: Similarity,
        vectors: Float32Matrix,
        owner: object = None,
        first_row: int = 0,
    ) -> None:
        """Serves vectors.

        Args:
            similarity: how they compare.
            vectors: [rows, dim] float32, C order, prepared.
            owner: kept alive with them.
            first_row: number of their first row.
        """
        self._similarity = similarity
        self._vectors = vectors
        self._owner = owner
        self.rows = range(first_row, first_row + len(vectors))

    @property
    def blocks(self) -> Sequence[FlatEngine]:
        """It in parts of some thousand rows."""
        step = max(1, _BLOCK_ELEMENTS // self._vectors.shape[1])
        if len(self._vectors) <= step:
            return (self,)
        return [
            FlatEngine(self._similarity, self._vectors[at : at + step], self._owner, at)
            for at in range(0, len(self._vectors), step)
        ]

    def batch(self, budget_us: int) -> int:
        """Queries that one search answers in about so many microseconds, 1 or more."""
        budget = budget_us - _FIXED_US
        together = int(budget / (_US_PER_ELEMENT_BATCHED * self._vectors.size))
        if together * self._vectors.shape[1] >= BLAS_THRESHOLD:
            return together
        return max(1, int(budget / (_US_PER_ELEMENT * self._vectors.size)))

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
        rows += self.rows.start
        return Proposals(rows, scores[:, -1])
