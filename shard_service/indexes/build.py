"""Building, tuning, writing and reading the index of one segment."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shard_service.core.engine import Engine
from shard_service.core.policy import Recipe, ivf_lists
from shard_service.indexes.approximate import HnswEngine, IvfPqEngine, metric, padded
from shard_service.indexes.flat import FlatEngine
from shard_service.indexes.library import faiss
from shoal.types import Float32Matrix, Similarity

Measure = Callable[[Engine], float]
"""recall@10 of an engine on the segment's sample, on documents."""

_HNSW_LINKS = 32
_HNSW_BUILD_WIDTH = 80
_TRAINING_ROWS_PER_LIST = 128
_TRAINING_ROUNDS = 10
_SEED = 1234
_EF_SEARCH = (16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 1024)
_K_FACTORS = (2, 3, 4, 6, 8, 12, 16, 32)


@dataclass(frozen=True, slots=True)
class Built:
    """An index with the parameters chosen for it.

    Attributes:
        engine: serves it.
        index: the FAISS index, to be written.
        factory: FAISS factory string.
        parameters: search parameters by name.
        recall: recall@10 measured with them.
    """

    engine: Engine
    index: Any
    factory: str
    parameters: dict[str, int]
    recall: float


Attempt = Callable[[dict[str, int]], Built]
"""Measures an index with parameters."""


def build(
    recipe: Recipe,
    similarity: Similarity,
    vectors: Float32Matrix,
    measure: Measure,
    target_recall: float,
) -> Built:
    """Builds the index, with the cheapest parameters that reach the target.

    Args:
        recipe: kind of index.
        similarity: how vectors compare.
        vectors: [rows, dim] float32, C order, its vectors prepared; rows in random order, so that
            the first of them are a sample.
        measure: recall of an engine.
        target_recall: recall@10 to reach; the best that was found where none does.
    """
    if recipe is Recipe.FLAT:
        return _flat(similarity, vectors)
    make = _build_ivf_pq if recipe is Recipe.IVF_PQ else _build_hnsw
    index, factory = make(similarity, vectors)
    tried: dict[tuple[int, ...], Built] = {}

    def attempt(parameters: dict[str, int]) -> Built:
        key = tuple(parameters.values())
        if key not in tried:
            engine = _approximate(recipe, index, parameters)
            tried[key] = Built(engine, index, factory, parameters, measure(engine))
        return tried[key]

    tune = _tune_ivf_pq if recipe is Recipe.IVF_PQ else _tune_hnsw
    chosen = tune(index, attempt, target_recall)
    return chosen or max(tried.values(), key=lambda built: built.recall)


def load(
    factory: str,
    path: str,
    similarity: Similarity,
    parameters: dict[str, int],
) -> Engine:
    """Reads an index whose file has been verified."""
    index = faiss.read_index(path)
    if factory == "Flat":
        return _flat_engine(similarity, index)
    recipe = Recipe.HNSW if factory.startswith("HNSW") else Recipe.IVF_PQ
    return _approximate(recipe, index, parameters)


def write(built: Built, path: str) -> None:
    """Writes the index to a file."""
    faiss.write_index(built.index, path)


def _flat(similarity: Similarity, vectors: Float32Matrix) -> Built:
    index = faiss.IndexFlat(vectors.shape[1], metric(similarity))
    index.add(vectors)
    return Built(_flat_engine(similarity, index), index, "Flat", {}, 1.0)


def _flat_engine(similarity: Similarity, index: Any) -> FlatEngine:
    data = faiss.rev_swig_ptr(index.get_xb(), index.ntotal * index.d)
    return FlatEngine(similarity, data.reshape(index.ntotal, index.d), index)


def _build_ivf_pq(similarity: Similarity, vectors: Float32Matrix) -> tuple[Any, str]:
    wide = padded(vectors)
    lists = ivf_lists(len(wide))
    factory = f"IVF{lists},PQ{wide.shape[1] // 4}x4fs"
    index = faiss.index_factory(wide.shape[1], factory, metric(similarity))
    for clustering in (index.cp, index.pq.cp):
        clustering.niter, clustering.seed = _TRAINING_ROUNDS, _SEED
        clustering.min_points_per_centroid = 1
    index.train(np.ascontiguousarray(wide[: lists * _TRAINING_ROWS_PER_LIST]))
    index.add(wide)
    return index, factory


def _build_hnsw(similarity: Similarity, vectors: Float32Matrix) -> tuple[Any, str]:
    factory = f"HNSW{_HNSW_LINKS},Flat"
    index = faiss.index_factory(vectors.shape[1], factory, metric(similarity))
    index.hnsw.efConstruction = _HNSW_BUILD_WIDTH
    index.add(vectors)
    return index, factory


def _tune_hnsw(index: Any, attempt: Attempt, target: float) -> Built | None:
    for ef_search in _EF_SEARCH:
        built = attempt({"efSearch": ef_search})
        if built.recall >= target:
            return built
    return None


def _tune_ivf_pq(index: Any, attempt: Attempt, target: float) -> Built | None:
    """The cheapest parameters that reach the target; recall grows with each of them."""
    nprobes = sorted(
        size
        for power in range(1, index.nlist.bit_length())
        for size in (1 << power, 3 << power - 1)
        if size <= index.nlist
    )

    def can_reach(nprobe: int) -> bool:
        return attempt(_ivf_pq(nprobe, _K_FACTORS[-1])).recall >= target

    least = bisect_left(nprobes, True, key=can_reach)
    # Measured: a row's codes of 384 columns cost 2 ns, a list 200 ns, a proposal, its exact
    # score included, 350 ns.
    row_ns = 2 * index.d / 384 * index.ntotal / index.nlist
    score_ns = 12 * 350 * index.d / 384
    costs: list[tuple[float, Built]] = []
    for nprobe in nprobes[least : least + 3]:

        def reaches(k_factor: int, nprobe: int = nprobe) -> bool:
            return attempt(_ivf_pq(nprobe, k_factor)).recall >= target

        at = bisect_left(_K_FACTORS[:-1], True, key=reaches)
        built = attempt(_ivf_pq(nprobe, _K_FACTORS[at]))
        costs.append((nprobe * (row_ns + 200) + _K_FACTORS[at] * score_ns, built))
    return min(costs, key=lambda pair: pair[0])[1] if costs else None


def _ivf_pq(nprobe: int, k_factor: int) -> dict[str, int]:
    return {"nprobe": nprobe, "k_factor": k_factor}


def _approximate(recipe: Recipe, index: Any, parameters: dict[str, int]) -> Engine:
    if recipe is Recipe.HNSW:
        return HnswEngine(index, parameters["efSearch"])
    return IvfPqEngine(index, parameters["nprobe"], parameters["k_factor"])


def sample_queries(vectors: Float32Matrix, rows: NDArray[np.int64]) -> Float32Matrix:
    """Queries that resemble stored vectors without being any of them.

    Each is a stored vector moved by its length towards another one, every second one in a
    random direction instead: about as far from the nearest stored vector (cosine 0.72) as
    sentences (0.71) and questions (0.65) were from the abstracts that answer them.

    Args:
        vectors: [rows, dim] float32, as stored.
        rows: [queries] rows to begin with.
    """
    chosen = vectors[rows].astype(np.float64)
    lengths = np.linalg.norm(chosen, axis=1, keepdims=True)
    moves = np.roll(chosen, 1, axis=0)
    noise = np.random.default_rng(_SEED).standard_normal(chosen.shape)
    moves[::2] = noise[::2]
    sizes = np.linalg.norm(moves, axis=1, keepdims=True)
    scaled = moves / np.where(sizes > 0, sizes, 1.0) * lengths
    moved: Float32Matrix = (chosen + scaled).astype(np.float32)
    return moved[np.isfinite(moved).all(axis=1) & moved.any(axis=1)]
