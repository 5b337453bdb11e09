"""Chroma's server in a process of its own, through its HTTP client."""

import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import chromadb

from bench.peers import common

START_TIMEOUT_S = 60
INSERT = 2_000
WAIT_S = 0.2


class Chroma:
    """A server with one HNSW collection, M 16, construction width 200."""

    def __init__(self, task: common.Task) -> None:
        self.index: common.Settings = {"type": "HNSW", "M": 16, "ef_construction": 200}
        self._folder = task.folder / "chroma"
        client = self._start()
        hnsw = {"space": "ip", "max_neighbors": 16, "ef_construction": 200}
        self._collection = client.create_collection("documents", configuration={"hnsw": hnsw})
        for start in range(0, len(task.documents), INSERT):
            rows = task.documents[start : start + INSERT]
            ids = [str(start + at) for at in range(len(rows))]
            self._collection.add(ids=ids, embeddings=rows)

    def _start(self) -> chromadb.api.ClientAPI:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        tool = shutil.which("chroma", path=str(Path(sys.executable).parent))
        self._server = subprocess.Popen(
            [str(tool), "run", "--path", str(self._folder), "--port", str(port)],
            stdout=subprocess.DEVNULL,
        )
        return self._connected(port)

    def _connected(self, port: int) -> chromadb.api.ClientAPI:
        end = time.monotonic() + START_TIMEOUT_S
        while True:
            try:
                return chromadb.HttpClient(host="127.0.0.1", port=port)
            except ValueError:
                if time.monotonic() > end:
                    raise
                time.sleep(WAIT_S)

    def candidates(self) -> Sequence[common.Settings]:
        """By width of the search."""
        return [{"ef_search": width} for width in (16, 32, 64, 96, 128, 192, 256)]

    def use(self, settings: common.Settings) -> None:
        """Changes the collection; a server that runs keeps the old width."""
        self._collection.modify(configuration={"hnsw": settings})
        self.stop()
        self._collection = self._start().get_collection("documents")

    def search(self, queries: common.Rows) -> list[list[int]]:
        """Row numbers, all questions in one request, ids alone."""
        found = self._collection.query(query_embeddings=queries, n_results=common.TOP_K, include=[])
        return [[int(number) for number in ids] for ids in found["ids"]]

    def resident_mib(self) -> float:
        """Of the server."""
        return common.own_resident_mib(self._server.pid)

    def stop(self) -> None:
        """Ends the server."""
        self._server.terminate()
        self._server.wait()


def main() -> None:
    """Measures, and ends the server whatever happens."""
    built: list[Chroma] = []

    def build(task: common.Task) -> Chroma:
        built.append(Chroma(task))
        return built[0]

    try:
        common.measure("chromadb", build)
    finally:
        for peer in built:
            peer.stop()


if __name__ == "__main__":
    main()
