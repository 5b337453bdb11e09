"""What `bench.single` does to a running cluster, to the echo server and to FAISS."""

import asyncio
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from itertools import cycle, islice
from typing import Any, Protocol, cast

import grpc
import numpy as np
from numpy.typing import NDArray

import shoal.aio
from bench import load, report
from bench.cluster import Cluster, cpu_s
from bench.faiss_baseline import Baseline, queries_per_s
from shoal import Client
from shoal.client.model import CollectionInfo
from shoal.errors import ShoalError
from shoal.rpc.router.v1 import router_pb2
from shoal.wire.arrays import matrix_to_message

NAME = "bench"
BATCH = 64
CLIENT_TASKS = 64
CALL_S = 30.0
STATUS_LAG_S = 30.0
POLL_S = 0.2
SEARCH = "/shoal.rpc.router.v1.SearchService/Search"
SEARCH_BATCH = "/shoal.rpc.router.v1.SearchService/SearchBatch"

Rows = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Filled:
    """How long it took to store the documents and to index them, seconds."""

    ingest_s: float
    optimize_s: float


def fill(client: Client, documents: Rows, index: str) -> Filled:
    """Creates the collection, stores every row under its number, optimises.

    Raises:
        RuntimeError: a document was refused.
    """
    client.create_collection(
        NAME, encoder="none", dim=documents.shape[1], index=index, similarity="dot"
    )
    start = time.perf_counter()
    stored = client.ingest(
        NAME, ({"id": document_id(row), "vector": vector} for row, vector in enumerate(documents))
    )
    if stored.stored != len(documents):
        raise RuntimeError(f"not every document was stored: {stored}")
    ingested = time.perf_counter()
    client.optimize(NAME)
    return Filled(ingested - start, time.perf_counter() - ingested)


def settled(client: Client, name: str) -> CollectionInfo:
    """The collection once `status`, which lags by a probe, shows it all in segments.

    Raises:
        TimeoutError: it does not.
    """
    end = time.monotonic() + STATUS_LAG_S
    while time.monotonic() < end:
        info = next(item for item in client.status().collections if item.name == name)
        if all(shard.indexes and not shard.tail_passages for shard in info.shards):
            return info
        time.sleep(POLL_S)
    raise TimeoutError(f"status does not show {name} as optimised: {info}")


def document_id(row: int) -> str:
    """Ids of one length, so that answers have nearly one length."""
    return f"{row:07d}"


def described(info: CollectionInfo) -> dict[str, Any]:
    """A collection's index as its shards state it."""
    return {
        "asked": info.index,
        "segments": [list(shard.indexes) for shard in info.shards],
        "recall_at_build": [round(shard.recall, 4) for shard in info.shards],
        "bytes": sum(shard.index_bytes for shard in info.shards),
        "documents": info.documents,
        "tail_passages": sum(shard.tail_passages for shard in info.shards),
    }


def ask_all(client: Client, queries: Rows, top_k: int) -> list[list[int]]:
    """The rows found for every question, in batches.

    Raises:
        ShoalError: a question failed.
    """
    found: list[list[int]] = []
    for start in range(0, len(queries), BATCH):
        chosen = queries[start : start + BATCH]
        for answer in client.search_batch(NAME, vectors=chosen, top_k=top_k, fields=()):
            if isinstance(answer, ShoalError):
                raise answer
            found.append([int(hit.id) for hit in answer])
    return found


@dataclass(frozen=True, slots=True)
class Echo:
    """A running echo server."""

    address: str
    pid: int

    def cpu_s(self) -> dict[str, float]:
        """Processor time used so far, seconds."""
        return {"echo": cpu_s(self.pid)}


@contextmanager
def echo(reply_bytes: int, asked: Sequence[str] = ()) -> Iterator[Echo]:
    """A no-op server while it runs; one that asks others first where `asked` names some."""
    command = [sys.executable, "-m", "bench.echo", f"--reply-bytes={reply_bytes}"]
    command += [f"--ask={address}" for address in asked]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=report.ROOT) as server:
        assert server.stdout is not None
        try:
            yield Echo(server.stdout.readline().strip(), server.pid)
        finally:
            server.terminate()


@contextmanager
def floors(reply_bytes: int, shards: int) -> Iterator[dict[str, Echo]]:
    """An echo, and a relay to as many no-op servers as there are shards."""
    with ExitStack() as running:
        leaves = [running.enter_context(echo(reply_bytes)) for _ in range(shards)]
        relay = running.enter_context(echo(reply_bytes, [leaf.address for leaf in leaves]))
        yield {"echo": running.enter_context(echo(reply_bytes)), "relay": relay}


@dataclass(slots=True)
class Runs:
    """Repeats of every measurement, and their medians."""

    cluster: Cluster
    client: Client
    queries: Rows
    baseline: Baseline
    failures: int = 0
    reply_bytes_least: dict[str, float] = field(default_factory=dict)
    _seen: dict[str, dict[str, list[dict[str, float]]]] = field(
        default_factory=lambda: defaultdict(lambda: defaultdict(list))
    )

    def reply_bytes(self) -> dict[str, int]:
        """Length of one answer's message, by group."""
        first = {"unary": (SEARCH, self._unary()[0]), "batch": (SEARCH_BATCH, self._batches()[0])}
        with grpc.insecure_channel(self.cluster.target) as channel:
            return {
                group: len(cast("Any", channel.unary_unary(method))(message, timeout=CALL_S))
                for group, (method, message) in first.items()
            }

    def repeat(
        self,
        floors: Mapping[str, Echo],
        levels: tuple[int, ...],
        batches_in_flight: tuple[int, ...],
        seconds: int,
    ) -> None:
        """Everything once, each level's floors next to its search."""
        unary, batches = self._unary(), self._batches()
        for level in levels:
            for name, floor in floors.items():
                self._seen[name][str(level)].append(
                    _loaded(floor, floor.address, (SEARCH, unary), level, seconds)
                )
            self._ask("unary", SEARCH, unary, level, seconds)
        for level in batches_in_flight:
            rates = queries_per_s(
                self.baseline, self.queries, top_k=10, batch=BATCH, threads=2, seconds=seconds
            )
            self._seen["faiss"]["queries_per_s"].append(rates)
            self._ask("batch", SEARCH_BATCH, batches, level, seconds)
        self._seen["python_client"]["search"].append(self._client_alone(seconds))
        self._seen["python_client"]["search_batch"].append(self._client_batch(seconds))
        rate = asyncio.run(_client_crowd(self.cluster.target, self.queries, seconds))
        self._seen["python_client"][f"aio_search_{CLIENT_TASKS}_tasks"].append(rate)

    def medians(self) -> dict[str, Any]:
        """One figure for each, and how far its repeats lay apart."""
        result: dict[str, Any] = {
            group: {name: _median(repeats) for name, repeats in by_name.items()}
            for group, by_name in self._seen.items()
        }
        for level in result["batch"].values():
            level["queries_per_s"] = round(level["rate_per_s"] * BATCH, 1)
        rates = [level["queries_per_s"] for level in result["batch"].values()]
        result["batch"]["best_queries_per_s"] = max(rates)
        result["faiss_queries_per_s"] = result.pop("faiss")["queries_per_s"]
        return result

    def _ask(
        self, group: str, method: str, messages: list[bytes], level: int, seconds: int
    ) -> None:
        run = _loaded(self.cluster, self.cluster.target, (method, messages), level, seconds)
        self.failures += int(run["failed"])
        least = self.reply_bytes_least.get(group, run["reply_bytes"])
        self.reply_bytes_least[group] = min(least, run["reply_bytes"])
        self._seen[group][str(level)].append(run)

    def _unary(self) -> list[bytes]:
        options = router_pb2.SearchOptions(top_k=10)
        return [
            router_pb2.SearchRequest(
                collection=NAME,
                query=router_pb2.Query(vector=matrix_to_message(query[np.newaxis])),
                options=options,
            ).SerializeToString()
            for query in self.queries
        ]

    def _batches(self) -> list[bytes]:
        options = router_pb2.SearchOptions(top_k=10)
        return [
            router_pb2.SearchBatchRequest(
                collection=NAME,
                vectors=matrix_to_message(self.queries[start : start + BATCH]),
                options=options,
            ).SerializeToString()
            for start in range(0, len(self.queries) - BATCH + 1, BATCH)
        ]

    def _client_alone(self, seconds: float) -> dict[str, float]:
        times, end = [], time.perf_counter() + seconds
        for query in cycle(self.queries):
            start = time.perf_counter()
            self.client.search(NAME, vector=query, fields=())
            times.append((time.perf_counter() - start) * 1_000)
            if start > end:
                break
        return {
            "p50_ms": float(np.percentile(times, 50)),
            "p99_ms": float(np.percentile(times, 99)),
            "rate_per_s": 1_000 / float(np.mean(times)),
        }

    def _client_batch(self, seconds: float) -> dict[str, float]:
        starts = range(0, len(self.queries) - BATCH + 1, BATCH)
        begin, done = time.perf_counter(), 0
        for start in cycle(starts):
            self.client.search_batch(NAME, vectors=self.queries[start : start + BATCH], fields=())
            done += BATCH
            if time.perf_counter() > begin + seconds:
                break
        return {"queries_per_s": done / (time.perf_counter() - begin)}


class _Spends(Protocol):
    """Processes whose processor time is read."""

    def cpu_s(self) -> dict[str, float]:
        """Processor time used so far by name, seconds."""


def _loaded(
    spender: _Spends, address: str, calls: tuple[str, list[bytes]], level: int, seconds: int
) -> dict[str, float]:
    """One h2load run, and the processor time behind each of its calls."""
    before = spender.cpu_s()
    run = load.run(address, *calls, level, seconds)
    after = spender.cpu_s()
    # The warm-up's work is in the difference too, so its share of the calls is added.
    done = run.requests * (seconds + load.WARM_UP_S) / seconds
    spent = {
        f"{name}_us_per_call": round((after[name] - before[name]) / done * 1e6, 1)
        for name in before
        if name != "controller"
    }
    return {**run.as_json(), **spent}


async def _client_crowd(target: str, queries: Rows, seconds: float) -> dict[str, float]:
    """Rate of the asyncio client with CLIENT_TASKS searches under way."""
    begin = time.perf_counter()

    async def one_task(client: shoal.aio.AsyncClient, first: int) -> int:
        done = 0
        for query in islice(cycle(queries), first, None):
            await client.search(NAME, vector=query, fields=())
            done += 1
            if time.perf_counter() > begin + seconds:
                break
        return done

    async with shoal.aio.connect(target) as client:
        counts = await asyncio.gather(
            *(one_task(client, 13 * task % len(queries)) for task in range(CLIENT_TASKS))
        )
    return {"rate_per_s": sum(counts) / (time.perf_counter() - begin)}


def _median(repeats: list[dict[str, float]]) -> dict[str, float]:
    return {name: report.middle([run[name] for run in repeats]) for name in repeats[0]}
