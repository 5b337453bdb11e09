"""hnswlib, in process: HNSW, M 16, ef_construction 200."""

from collections.abc import Sequence

import hnswlib
import numpy as np

from bench.peers import common


class Hnswlib:
    """One index in this process; each caller searches with a thread of its own."""

    def __init__(self, task: common.Task) -> None:
        self.index: common.Settings = {"type": "HNSW", "M": 16, "ef_construction": 200}
        self._index = hnswlib.Index(space="ip", dim=task.documents.shape[1])
        self._index.init_index(max_elements=len(task.documents), M=16, ef_construction=200)
        self._index.add_items(task.documents, np.arange(len(task.documents)), num_threads=2)

    def candidates(self) -> Sequence[common.Settings]:
        """By width of the search."""
        return [{"ef": width} for width in (16, 24, 32, 48, 64, 96, 128, 192, 256, 384)]

    def use(self, settings: common.Settings) -> None:
        """Sets ef."""
        self._index.set_ef(settings["ef"])

    def search(self, queries: common.Rows) -> list[list[int]]:
        """Row numbers, one thread per call."""
        found, _ = self._index.knn_query(queries, k=common.TOP_K, num_threads=1)
        return found.tolist()  # type: ignore[no-any-return]

    def resident_mib(self) -> float:
        """Of this process, vectors given included."""
        return common.own_resident_mib()


if __name__ == "__main__":
    common.measure("hnswlib", Hnswlib)
