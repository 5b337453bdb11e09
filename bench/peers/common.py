"""How every peer is measured: same vectors, same questions, same cores, same recall.

A peer gives a way to build itself, the settings that it may be searched with,
from cheap to dear, and a search. The first settings that reach the recall are
measured: one question at a time, then from several threads, then in batches
where the peer takes batches.
"""

import argparse
import importlib.metadata
import json
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import cycle, islice
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

TOP_K = 10
BATCH = 64
THREADS = (4, 16)

Rows = NDArray[np.float32]
Settings = dict[str, Any]


class Peer(Protocol):
    """A vector database or library with the documents in it."""

    index: Settings
    """How the index was built."""

    def candidates(self) -> Sequence[Settings]:
        """Search settings from cheap to dear."""

    def use(self, settings: Settings) -> None:
        """Searches with these settings from now on."""

    def search(self, queries: Rows) -> list[list[int]]:
        """The TOP_K rows for each of the queries, by number."""

    def resident_mib(self) -> float:
        """Memory of the process that holds the index."""


@dataclass(frozen=True, slots=True)
class Task:
    """What a peer is measured on.

    Attributes:
        documents: [n, d] float32, unit length.
        queries: [m, d] float32.
        exact: [m, TOP_K] rows by inner product.
        recall: to be reached.
        seconds: of each measurement.
        folder: for the peer's files.
    """

    documents: Rows
    queries: Rows
    exact: NDArray[np.int64]
    recall: float
    seconds: float
    folder: Path = field(default_factory=Path)


def measure(package: str, build: Callable[[Task], Peer], takes_batches: bool = True) -> None:
    """Builds, tunes and measures a peer; prints one JSON object."""
    task = _task()
    start = time.perf_counter()
    peer = build(task)
    build_s = time.perf_counter() - start
    settings, reached = _tune(peer, task)
    result: dict[str, Any] = {
        "version": importlib.metadata.version(package),
        "index": peer.index,
        "settings": settings,
        "recall@10": round(reached, 4),
        "build_s": round(build_s, 1),
        "resident_mib": round(peer.resident_mib(), 1),
        **_alone(peer, task),
    }
    for threads in THREADS:
        result[f"queries_per_s_{threads}_threads"] = _rate(peer, task, threads, 1)
    if takes_batches:
        result[f"queries_per_s_batches_of_{BATCH}"] = _rate(peer, task, 2, BATCH)
    print(json.dumps(result))


def own_resident_mib(pid: int | str = "self") -> float:
    """Resident memory of a process, MiB."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1024
    return 0.0


def _task() -> Task:
    parser = argparse.ArgumentParser()
    parser.add_argument(
        "--vectors", type=Path, required=True, help="npz: documents, queries, exact"
    )
    parser.add_argument("--recall", type=float, default=0.99)
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--folder", type=Path, required=True)
    arguments = parser.parse_args()
    with np.load(arguments.vectors) as arrays:
        return Task(
            documents=arrays["documents"],
            queries=arrays["queries"],
            exact=arrays["exact"],
            recall=arguments.recall,
            seconds=arguments.seconds,
            folder=arguments.folder,
        )


def _tune(peer: Peer, task: Task) -> tuple[Settings, float]:
    for settings in peer.candidates():
        peer.use(settings)
        reached = _recall(peer, task, 100)
        # A look at 100 questions is cheap; only what looks good is asked all of them.
        if reached >= task.recall - 0.01:
            reached = _recall(peer, task, len(task.queries))
        if reached >= task.recall:
            return settings, reached
    raise SystemExit(f"no settings reach recall {task.recall}; the last reach {reached:.4f}")


def _recall(peer: Peer, task: Task, count: int) -> float:
    found: list[list[int]] = []
    for start in range(0, count, BATCH):
        found += peer.search(task.queries[start : min(start + BATCH, count)])
    exact = task.exact[:count]
    hits = sum(
        len(set(row) & set(wanted)) for row, wanted in zip(found, exact.tolist(), strict=True)
    )
    return hits / exact.size


def _alone(peer: Peer, task: Task) -> dict[str, float]:
    times: list[float] = []
    end = time.perf_counter() + task.seconds
    for row in cycle(range(len(task.queries))):
        start = time.perf_counter()
        peer.search(task.queries[row : row + 1])
        times.append((time.perf_counter() - start) * 1_000)
        if start > end:
            break
    return {
        "p50_alone_ms": round(float(np.percentile(times, 50)), 3),
        "p99_alone_ms": round(float(np.percentile(times, 99)), 3),
        "queries_per_s_alone": round(1_000 / float(np.mean(times)), 1),
    }


def _rate(peer: Peer, task: Task, threads: int, batch: int) -> float:
    starts = range(0, len(task.queries) - batch + 1, batch)
    end = time.perf_counter() + task.seconds

    def one_thread(thread: int) -> int:
        done = 0
        for row in islice(cycle(starts), thread * 7, None):
            peer.search(task.queries[row : row + batch])
            done += batch
            if time.perf_counter() > end:
                break
        return done

    start = time.perf_counter()
    with ThreadPoolExecutor(threads) as pool:
        done = sum(pool.map(one_thread, range(threads)))
    return round(done / (time.perf_counter() - start), 1)
