"""Approximate search: IVF-PQ fast-scan and HNSW, with search parameters per request."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from shard_service.core.engine import Proposals
from shard_service.core.live import Live
from shard_service.core.table import Table
from shard_service.indexes.library import faiss
from shoal.types import Float32Matrix, Similarity

_SUBVECTOR = 4
"""Columns that one 4-bit code stands for."""


def padded(vectors: Float32Matrix) -> Float32Matrix:
    """Vectors with zero columns added to a multiple of 4; no product or distance changes."""
    missing = -vectors.shape[1] % _SUBVECTOR
    if not missing:
        return vectors
    return np.pad(vectors, ((0, 0), (0, missing)))


def metric(similarity: Similarity) -> int:
    """FAISS's metric for prepared vectors."""
    chosen: int = faiss.METRIC_L2 if similarity is Similarity.L2 else faiss.METRIC_INNER_PRODUCT
    return chosen


def _selector(live: Live) -> Any:
    return None if live.whole else faiss.IDSelectorBitmap(live.bits)


class IvfPqEngine:
    """Inverted lists of 4-bit product codes; what they find is scored again in float32."""

    exact = False

    def __init__(
        self, index: Any, similarity: Similarity, table: Table, nprobe: int, k_factor: int
    ) -> None:
        """Serves a trained `IVF…,PQ…x4fs` index.

        Args:
            index: the FAISS index.
            similarity: how vectors compare.
            table: the rows that it indexes; their vectors are read as stored.
            nprobe: lists that a search of effort 1 looks into.
            k_factor: rows that codes must find per row proposed.
        """
        self._index, self._similarity, self._table = index, similarity, table
        self.nprobe, self.k_factor = nprobe, k_factor
        self._lengths = np.sqrt(table.squares).astype(np.float32)

    @property
    def query_cost_us(self) -> float:
        """Rough cost of one query, microseconds."""
        share = self.nprobe / int(self._index.nlist)
        rows = int(self._index.ntotal)
        return 20.0 + 0.004 * share * rows

    def search(self, queries: Float32Matrix, count: int, live: Live, effort: int) -> Proposals:
        """Up to `count` live rows by float32 score; effort multiplies nprobe."""
        selector = _selector(live)
        parameters = faiss.SearchParametersIVF(
            sel=selector, nprobe=min(self._index.nlist, self.nprobe * effort)
        )
        wide = min(count * self.k_factor, live.rows)
        _, rows = self._index.search(padded(queries), wide, params=parameters)
        scores = self._rescored(queries, rows)
        # Ties may come in any order here: whoever asked scores and orders exactly.
        best = np.argsort(-scores, axis=1)[:, :count]
        return Proposals(
            np.take_along_axis(rows, best, axis=1), np.take_along_axis(scores, best, axis=1)
        )

    def _rescored(self, queries: Float32Matrix, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        scores = np.empty(rows.shape, dtype=np.float32)
        vectors = self._table.vectors
        pointers = [faiss.swig_ptr(array) for array in (scores, queries, vectors, rows)]
        shape = (vectors.shape[1], *rows.shape)
        if self._similarity is Similarity.L2:
            faiss.fvec_L2sqr_by_idx(*pointers, *shape)
            np.negative(scores, out=scores)
        else:
            faiss.fvec_inner_products_by_idx(*pointers, *shape)
        if self._similarity is Similarity.COSINE:
            scores /= self._lengths[rows]
        scores[rows < 0] = -np.inf
        return scores


class HnswEngine:
    """A neighbourhood graph over float32 vectors."""

    exact = False

    def __init__(self, index: Any, similarity: Similarity, ef_search: int) -> None:
        """Serves a built `HNSW…,Flat` index; ef_search is the width of a search of effort 1."""
        self._index, self._similarity = index, similarity
        self.ef_search = ef_search

    @property
    def query_cost_us(self) -> float:
        """Rough cost of one query, microseconds."""
        return 20.0 + 0.01 * self.ef_search * int(self._index.d)

    def search(self, queries: Float32Matrix, count: int, live: Live, effort: int) -> Proposals:
        """Up to `count` live rows; a search grows wider with effort and with dead rows."""
        selector = _selector(live)
        width = self.ef_search * effort * live.rows // max(1, live.live_rows)
        parameters = faiss.SearchParametersHNSW(sel=selector, efSearch=max(count, width))
        scores, rows = self._index.search(queries, count, params=parameters)
        return Proposals(rows, -scores if self._similarity is Similarity.L2 else scores)
