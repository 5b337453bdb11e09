"""Milvus Lite, in process, on local disk."""

from collections.abc import Sequence

from pymilvus import DataType, MilvusClient

from bench.peers import common

INSERT = 2_000


class MilvusLite:
    """One collection with an HNSW index, through pymilvus."""

    def __init__(self, task: common.Task) -> None:
        self.index: common.Settings = {"type": "HNSW", "M": 16, "efConstruction": 200}
        self._client = MilvusClient(str(task.folder / "milvus.db"))
        schema = self._client.create_schema(auto_id=False)
        schema.add_field("number", DataType.INT64, is_primary=True)
        schema.add_field("vector", DataType.FLOAT_VECTOR, dim=task.documents.shape[1])
        self._client.create_collection("documents", schema=schema)
        for start in range(0, len(task.documents), INSERT):
            rows = task.documents[start : start + INSERT]
            self._client.insert(
                "documents",
                [{"number": start + at, "vector": row.tolist()} for at, row in enumerate(rows)],
            )
        index = self._client.prepare_index_params()
        index.add_index(
            "vector",
            index_type="HNSW",
            metric_type="IP",
            params={"M": 16, "efConstruction": 200},
        )
        self._client.create_index("documents", index)
        self._client.load_collection("documents")
        self._settings: common.Settings = {}

    def candidates(self) -> Sequence[common.Settings]:
        """By width of the search."""
        return [{"ef": width} for width in (16, 32, 64, 128, 256)]

    def use(self, settings: common.Settings) -> None:
        """Keeps the settings for the next questions."""
        self._settings = settings

    def search(self, queries: common.Rows) -> list[list[int]]:
        """Row numbers, all questions in one call."""
        answers = self._client.search(
            "documents",
            data=queries.tolist(),
            limit=common.TOP_K,
            search_params={"metric_type": "IP", "params": self._settings},
        )
        return [[hit["number"] for hit in hits] for hits in answers]

    def resident_mib(self) -> float:
        """Of this process, vectors given included."""
        return common.own_resident_mib()


if __name__ == "__main__":
    common.measure("milvus-lite", MilvusLite)
