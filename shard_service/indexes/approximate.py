"""Approximate search: IVF-PQ fast-scan and HNSW, with search parameters per request."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from shard_service.core.engine import Proposals
from shard_service.core.live import Live
from shard_service.indexes.library import faiss
from shoal.types import Float32Matrix, Similarity

_SUBVECTOR = 4
"""Columns that one 4-bit code stands for."""
_NO_SCORES = np.empty(0, dtype=np.float32)


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
    """Inverted lists of 4-bit product codes, which propose more rows than are wanted."""

    exact = False

    def __init__(self, index: Any, nprobe: int, k_factor: int) -> None:
        """Serves a trained `IVF…,PQ…x4fs` index.

        Args:
            index: the FAISS index.
            nprobe: lists that a search of effort 1 looks into.
            k_factor: rows that codes must find per row wanted.
        """
        self._index = index
        self.rows = range(int(index.ntotal))
        self.nprobe, self.k_factor = nprobe, k_factor

    @property
    def blocks(self) -> Sequence[IvfPqEngine]:
        """Itself."""
        return (self,)

    def batch(self, budget_us: int) -> int:
        """Queries that one search answers in about so many microseconds, 1 or more."""
        scanned = len(self.rows) * self.nprobe / int(self._index.nlist)
        return max(1, int(budget_us / (20.0 + 0.004 * scanned)))

    def search(self, queries: Float32Matrix, count: int, live: Live, effort: int) -> Proposals:
        """`count` x k_factor live rows, the best by their codes; effort multiplies nprobe."""
        parameters = faiss.SearchParametersIVF(
            sel=_selector(live), nprobe=min(self._index.nlist, self.nprobe * effort)
        )
        wide = min(count * self.k_factor, live.rows)
        _, rows = self._index.search(padded(queries), wide, params=parameters)
        return Proposals(rows, _NO_SCORES)


class HnswEngine:
    """A neighbourhood graph over float32 vectors."""

    exact = False

    def __init__(self, index: Any, ef_search: int) -> None:
        """Serves a built `HNSW…,Flat` index; ef_search is the width of a search of effort 1."""
        self._index = index
        self.rows = range(int(index.ntotal))
        self.ef_search = ef_search

    @property
    def blocks(self) -> Sequence[HnswEngine]:
        """Itself."""
        return (self,)

    def batch(self, budget_us: int) -> int:
        """Queries that one search answers in about so many microseconds, 1 or more."""
        return max(1, int(budget_us / (20.0 + 0.01 * self.ef_search * int(self._index.d))))

    def search(self, queries: Float32Matrix, count: int, live: Live, effort: int) -> Proposals:
        """`count` live rows; a search grows wider with effort and with dead rows."""
        selector = _selector(live)
        width = self.ef_search * effort * live.rows // max(1, live.live_rows)
        parameters = faiss.SearchParametersHNSW(sel=selector, efSearch=max(count, width))
        _, rows = self._index.search(queries, count, params=parameters)
        return Proposals(rows, _NO_SCORES)
