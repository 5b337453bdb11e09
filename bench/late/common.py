"""How every peer of late interaction is measured: its settings from cheap to dear, one question
at a time, then some at a time from several threads.
"""

import argparse
import json
import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

TOP_K = 10
IN_FLIGHT = 16
WARM_UP = 20
BUILT = "built.json"

Rows = NDArray[np.float32]
Settings = dict[str, Any]


class Peer(Protocol):
    """An engine with the documents in it."""

    def candidates(self) -> Sequence[Settings]:
        """Search settings from cheap to dear."""

    def search(self, query: Rows, settings: Settings) -> list[int]:
        """Numbers of the TOP_K best documents."""


@dataclass(frozen=True, slots=True)
class Task:
    """What a peer is measured on.

    Attributes:
        ids: of the documents.
        documents: token vectors of each, float32[tokens, dim].
        queries: token vectors of each.
        folder: of its index, kept between runs.
        threads: that it may use.
        code_bytes: of Shoal's codec.
    """

    ids: list[str]
    documents: Sequence[Rows]
    queries: Sequence[Rows]
    folder: Path
    threads: int
    code_bytes: int


def measure(build: Callable[[Task], None], load: Callable[[Task], Peer], version: str) -> None:
    """Builds the index unless it is there, and prints one JSON object."""
    task = _task()
    built = task.folder / BUILT
    if not built.exists():
        started = time.perf_counter()
        build(task)
        seconds = round(time.perf_counter() - started, 1)
        size = sum(path.stat().st_size for path in task.folder.rglob("*") if path.is_file())
        built.write_text(json.dumps({"build_s": seconds, "disk_bytes": size}))
    peer = load(task)
    result = {"version": version, **json.loads(built.read_text()), "threads": task.threads}
    result["curve"] = [curve_point(peer, task.queries, each) for each in peer.candidates()]
    result["resident_mib"] = resident_mib()
    print(json.dumps(result))


def curve_point(peer: Peer, queries: Sequence[Rows], settings: Settings) -> dict[str, Any]:
    """One setting: what was found, and how fast."""
    for query in queries[:WARM_UP]:
        peer.search(query, settings)
    times, found = [], []
    for query in queries:
        started = time.perf_counter()
        found.append(peer.search(query, settings))
        times.append((time.perf_counter() - started) * 1e3)
    with ThreadPoolExecutor(IN_FLIGHT) as pool:
        started = time.perf_counter()
        list(pool.map(lambda query: peer.search(query, settings), queries))
        rate = len(queries) / (time.perf_counter() - started)
    return {
        "settings": settings,
        "p50_ms": round(float(np.percentile(times, 50)), 2),
        "p99_ms": round(float(np.percentile(times, 99)), 2),
        "per_s_alone": round(1e3 / float(np.mean(times)), 1),
        f"per_s_with_{IN_FLIGHT}_in_flight": round(rate, 1),
        "found": found,
    }


def resident_mib() -> float:
    """Resident memory of this process."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return round(int(line.split()[1]) / 1024, 1)
    return 0.0


def _task() -> Task:
    parser = argparse.ArgumentParser()
    parser.add_argument("--vectors", type=Path, required=True)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--code-bytes", type=int, default=8)
    arguments = parser.parse_args()
    if arguments.threads == 1:
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:1])
    arguments.folder.mkdir(parents=True, exist_ok=True)
    with np.load(arguments.vectors) as held:
        return Task(
            ids=held["ids"].tolist(),
            documents=np.split(held["rows"].astype(np.float32), held["starts"][1:-1]),
            queries=np.split(
                held["query_rows"].astype(np.float32), np.cumsum(held["query_counts"])[:-1]
            ),
            folder=arguments.folder,
            threads=arguments.threads,
            code_bytes=arguments.code_bytes,
        )
