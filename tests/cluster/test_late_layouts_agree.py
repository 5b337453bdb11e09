"""Late interaction through a real cluster: the same ids and bits for any number of shards."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

import shoal
from tests.cluster.clusters import Cluster, cluster

pytestmark = pytest.mark.slow

DIM = 24
TOP_K = 12
LAYOUTS = (1, 2, 4, 8)
GENERATOR = np.random.default_rng(21)


def matrix(tokens: int) -> NDArray[np.float32]:
    return GENERATOR.normal(size=(tokens, DIM)).astype(np.float32)


DISTINCT = [matrix(int(tokens)) for tokens in GENERATOR.integers(1, 30, 300)]
# Every third document has a twin: ties at every rank; one is long.
MATRICES = [*DISTINCT, *DISTINCT[::3], matrix(3_000)]
IDS = [f"{number * 7919 % 1009:04d}-é" for number in range(len(MATRICES))]
QUERIES = [matrix(tokens) for tokens in (1, 2, 31, 32, 33, 100, 2_000)]
Ranked = list[tuple[str, float]]


def fixed(rows: NDArray[np.float64]) -> NDArray[np.int64]:
    return np.rint(rows * 16_384).astype(np.int64)


def unit(rows: NDArray[np.float32]) -> NDArray[np.float64]:
    wide = rows.astype(np.float64)
    return wide / np.sqrt((wide * wide).sum(axis=1, keepdims=True))


def brute_force(query: NDArray[np.float32]) -> Ranked:
    """MaxSim in plain integers, from its definition."""
    asked = fixed(unit(query))
    scored = []
    for key, rows in zip(IDS, MATRICES, strict=True):
        stored = fixed(unit(rows).astype(np.float16).astype(np.float64))
        best = (asked @ stored.T).max(axis=1)
        scored.append((key, int(best.sum()) / 16_384**2))
    return sorted(scored, key=lambda hit: (-hit[1], hit[0]))[:TOP_K]


def hits(answer: object) -> Ranked:
    assert isinstance(answer, shoal.Answer)
    assert answer.coverage.ratio == 1.0
    assert answer.timings.exhaustive
    return [(hit.id, hit.score) for hit in answer]


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    folder: Path = tmp_path_factory.mktemp("late")
    with cluster(folder, "--no-ray", "--encoders", "0", SHOAL_SHARD_SEAL_PASSAGES="64") as made:
        yield made


def test_every_layout_gives_the_bits_of_brute_force(running: Cluster) -> None:
    expected = [brute_force(query) for query in QUERIES]
    with running.connect() as client, ThreadPoolExecutor(8) as pool:
        for shards in LAYOUTS:
            name = f"late-{shards}"
            client.create_collection(name, "colbert", encoder="none", dim=DIM, shards=shards)
            documents = zip(IDS, MATRICES, strict=True)
            client.ingest(name, ({"id": key, "vector": rows} for key, rows in documents))

            def alone(query: NDArray[np.float32], name: str = name) -> Ranked:
                return hits(client.search(name, vector=query, top_k=TOP_K, fields=()))

            assert [alone(query) for query in QUERIES] == expected
            assert list(pool.map(alone, QUERIES)) == expected
            batch = client.search_batch(name, vectors=QUERIES, top_k=TOP_K, fields=())
            assert [hits(answer) for answer in batch] == expected
            client.optimize(name)
            assert [alone(query) for query in QUERIES] == expected
