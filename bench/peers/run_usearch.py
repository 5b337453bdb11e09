"""USearch, in process: HNSW, connectivity 16, float32."""

from collections.abc import Sequence

import numpy as np
from usearch.index import Index

from bench.peers import common


class Usearch:
    """One index in this process; each caller searches with a thread of its own."""

    def __init__(self, task: common.Task) -> None:
        self.index: common.Settings = {"type": "HNSW", "M": 16, "ef_construction": 200}
        self._index = Index(
            ndim=task.documents.shape[1],
            metric="ip",
            dtype="f32",
            connectivity=16,
            expansion_add=200,
        )
        self._index.add(np.arange(len(task.documents)), task.documents, threads=2)

    def candidates(self) -> Sequence[common.Settings]:
        """By width of the search."""
        return [{"expansion": width} for width in (16, 24, 32, 48, 64, 96, 128, 192, 256, 384)]

    def use(self, settings: common.Settings) -> None:
        """Sets the expansion."""
        self._index.expansion_search = settings["expansion"]

    def search(self, queries: common.Rows) -> list[list[int]]:
        """Row numbers, one thread per call."""
        found = self._index.search(queries, common.TOP_K, threads=1)
        return np.atleast_2d(found.keys).tolist()  # type: ignore[no-any-return]

    def resident_mib(self) -> float:
        """Of this process, vectors given included."""
        return common.own_resident_mib()


if __name__ == "__main__":
    common.measure("usearch", Usearch)
