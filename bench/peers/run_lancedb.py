"""LanceDB, in process, on local disk: IVF-PQ with refine."""

import math
from collections.abc import Sequence

import lancedb
import pyarrow as pa

from bench.peers import common


class LanceDb:
    """One table with an IVF-PQ index, 96 sub-vectors of 8 bits, questions refined."""

    def __init__(self, task: common.Task) -> None:
        rows, dim = task.documents.shape
        partitions = 2 ** round(math.log2(math.sqrt(rows)))
        self.index: common.Settings = {
            "type": "IVF_PQ",
            "partitions": partitions,
            "sub_vectors": 96,
        }
        flat = pa.array(task.documents.reshape(-1), pa.float32())
        table = pa.table(
            {
                "number": pa.array(range(rows), pa.int64()),
                "vector": pa.FixedSizeListArray.from_arrays(flat, dim),
            }
        )
        self._table = lancedb.connect(task.folder / "lance").create_table("documents", table)
        self._table.create_index(
            metric="dot", index_type="IVF_PQ", num_partitions=partitions, num_sub_vectors=96
        )
        self._settings: common.Settings = {}

    def candidates(self) -> Sequence[common.Settings]:
        """By probed lists, then by refined rows."""
        return [
            {"nprobes": probes, "refine_factor": factor}
            for probes in (8, 16, 24, 32, 48, 64, 96)
            for factor in (2, 5)
        ]

    def use(self, settings: common.Settings) -> None:
        """Keeps the settings for the next questions."""
        self._settings = settings

    def search(self, queries: common.Rows) -> list[list[int]]:
        """Row numbers, one question at a time."""
        return [self._one(query) for query in queries]

    def _one(self, query: common.Rows) -> list[int]:
        question = (
            self._table.search(query)
            .metric("dot")
            .nprobes(self._settings["nprobes"])
            .refine_factor(self._settings["refine_factor"])
            .select(["number", "_distance"])
            .limit(common.TOP_K)
        )
        return question.to_arrow()["number"].to_pylist()  # type: ignore[no-any-return]

    def resident_mib(self) -> float:
        """Of this process, vectors given included."""
        return common.own_resident_mib()


if __name__ == "__main__":
    common.measure("lancedb", LanceDb, takes_batches=False)
