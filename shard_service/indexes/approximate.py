"""Approximate search: IVF-PQ fast-scan and HNSW, with search parameters per request."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from shard_service.core.engine import Proposals
from shard_service.core.live import Live
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


def _proposals(
    similarity: Similarity, found: tuple[NDArray[np.float32], NDArray[np.int64]]
) -> Proposals:
    scores, rows = found
    return Proposals(rows, -scores if similarity is Similarity.L2 else scores)


class IvfPqEngine:
    """Inverted lists of 4-bit product codes. Proposals are coarse: score them exactly."""

    exact = False

    def __init__(self, index: Any, similarity: Similarity, nprobe: int, expansion: int) -> None:
        """Serves a trained `IVF…,PQ…x4fs` index.

        Args:
            index: the FAISS index.
            similarity: how vectors compare.
            nprobe: lists that a search of effort 1 looks into.
            expansion: rows to ask for per document wanted.
        """
        self._index, self._similarity = index, similarity
        self.nprobe, self.expansion = nprobe, expansion

    @property
    def query_cost_us(self) -> float:
        """Rough cost of one query, microseconds."""
        share = self.nprobe / int(self._index.nlist)
        rows = int(self._index.ntotal)
        return 20.0 + 0.004 * share * rows

    def search(self, queries: Float32Matrix, count: int, live: Live, effort: int) -> Proposals:
        """Up to `count` live rows by coarse score; effort multiplies nprobe."""
        selector = _selector(live)
        parameters = faiss.SearchParametersIVF(
            sel=selector, nprobe=min(self._index.nlist, self.nprobe * effort)
        )
        found = self._index.search(padded(queries), count, params=parameters)
        return _proposals(self._similarity, found)


class HnswEngine:
    """A neighbourhood graph over float32 vectors."""

    exact = False
    expansion = 1

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
        found = self._index.search(queries, count, params=parameters)
        return _proposals(self._similarity, found)
