"""Raw FAISS in this process, on the index type that Shoal chose: what a batch could cost.

It gets the best it can have: the coarse quantiser as Shoal made it and twice as
large, the cheapest search parameters that reach the recall, and whichever of
two ways to use the threads is faster (OpenMP inside one call, or one call per
thread).
"""

import re
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import faiss
import numpy as np
from numpy.typing import NDArray

from bench.vectors import Vectors, recall

N_PROBES = (2, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256)
REFINE_FACTORS = (1, 2, 4, 8, 16, 32, 64)
EF_SEARCHES = (16, 24, 32, 48, 64, 96, 128, 192, 256)


@dataclass(slots=True)
class Baseline:
    """A built and tuned index.

    Attributes:
        factory: FAISS factory string.
        index: the FAISS index.
        settings: the search parameters chosen.
        recall: share of the exact top-k that they find.
    """

    factory: str
    index: Any
    settings: dict[str, int] = field(default_factory=dict)
    recall: float = 0.0


def build(vectors: Vectors, exact: NDArray[np.int64], factory: str, least: float) -> Baseline:
    """The fastest of the candidates that reach the recall.

    Raises:
        ValueError: none does.
    """
    candidates = []
    # Two threads that wait for each other cost nine times the processor time on a busy machine.
    faiss.omp_set_num_threads(1)
    for candidate in _factories(factory):
        index = faiss.index_factory(
            vectors.documents.shape[1], candidate, faiss.METRIC_INNER_PRODUCT
        )
        index.train(vectors.documents)
        index.add(vectors.documents)
        baseline = Baseline(candidate, index)
        seconds = _tune(baseline, vectors, exact, least)
        candidates.append((seconds, baseline))
    seconds, best = min(candidates, key=lambda pair: pair[0])
    if np.isinf(seconds):
        raise ValueError(f"no setting of {factory} reaches recall {least}")
    _apply(best.index, best.settings)
    return best


def queries_per_s(
    baseline: Baseline,
    queries: NDArray[np.float32],
    *,
    top_k: int,
    batch: int,
    threads: int,
    seconds: float,
) -> dict[str, float]:
    """Rates of both ways to use the threads, by name."""
    batches = [
        queries[start : start + batch] for start in range(0, len(queries) - batch + 1, batch)
    ]
    half = seconds / 2
    return {
        "openmp": _rate_openmp(baseline.index, batches, top_k, threads, half),
        "call_per_thread": _rate_calls(baseline.index, batches, top_k, threads, half),
    }


def _rate_openmp(
    index: Any, batches: list[NDArray[np.float32]], top_k: int, threads: int, seconds: float
) -> float:
    faiss.omp_set_num_threads(threads)
    return _rate(index, batches, top_k, seconds)


def _rate_calls(
    index: Any, batches: list[NDArray[np.float32]], top_k: int, threads: int, seconds: float
) -> float:
    def one_thread(_: int) -> float:
        faiss.omp_set_num_threads(1)  # per calling thread
        return _rate(index, batches, top_k, seconds)

    with ThreadPoolExecutor(threads) as pool:
        return sum(pool.map(one_thread, range(threads)))


def _rate(index: Any, batches: list[NDArray[np.float32]], top_k: int, seconds: float) -> float:
    done, start = 0, time.perf_counter()
    while True:
        for chunk in batches:
            index.search(chunk, top_k)
            done += len(chunk)
            elapsed = time.perf_counter() - start
            if elapsed >= seconds:
                return done / elapsed


def _factories(factory: str) -> list[str]:
    # Shoal scores candidates again itself; FAISS needs RFlat for that.
    refined = f"{factory},RFlat" if "PQ" in factory and "RFlat" not in factory else factory
    lists = re.match(r"IVF(\d+)(.*)", refined)
    if lists is None:
        return [refined]
    return [f"IVF{int(lists[1]) * times}{lists[2]}" for times in (1, 2)]


def _tune(baseline: Baseline, vectors: Vectors, exact: NDArray[np.int64], least: float) -> float:
    """Sets the cheapest settings that reach the recall; seconds for all queries, or inf."""
    fastest = np.inf
    for settings in _grid(baseline.index):
        _apply(baseline.index, settings)
        start = time.perf_counter()
        _, found = baseline.index.search(vectors.queries, exact.shape[1])
        seconds = time.perf_counter() - start
        reached = recall(found.tolist(), exact)
        if reached >= least and seconds < fastest:
            fastest = seconds
            baseline.settings, baseline.recall = settings, reached
    return float(fastest)


def _grid(index: Any) -> list[dict[str, int]]:
    inner = _coarse(index)
    if hasattr(inner, "nprobe"):
        probes = [count for count in N_PROBES if count <= inner.nlist]
        factors = REFINE_FACTORS if inner is not index else (1,)
        return [{"nprobe": probe, "k_factor": factor} for probe in probes for factor in factors]
    if hasattr(inner, "hnsw"):
        return [{"efSearch": width} for width in EF_SEARCHES]
    return [{}]


def _apply(index: Any, settings: dict[str, int]) -> None:
    inner = _coarse(index)
    if "nprobe" in settings:
        inner.nprobe = settings["nprobe"]
        if inner is not index:
            index.k_factor = settings["k_factor"]
    if "efSearch" in settings:
        inner.hnsw.efSearch = settings["efSearch"]


def _coarse(index: Any) -> Any:
    """The index that proposes, below a refining one."""
    refined = isinstance(index, faiss.IndexRefine)
    return faiss.downcast_index(index.base_index) if refined else index
