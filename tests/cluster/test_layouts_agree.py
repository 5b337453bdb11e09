"""Promise 1 through a real cluster: the same ids and the same bits for any number of shards."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

import shoal
from tests.cluster.clusters import Cluster, cluster

pytestmark = pytest.mark.slow

DIM = 37
TOP_K = 12
LAYOUTS = (1, 2, 4, 7)
SIMILARITIES = ("cosine", "dot", "l2")
GENERATOR = np.random.default_rng(20)
DISTINCT = GENERATOR.normal(size=(400, DIM)).astype(np.float32)
# Half of the documents share their vector with another: ties at every rank.
ROWS = np.concatenate([DISTINCT, DISTINCT[:200], DISTINCT[:50] * np.float32(1 + 2**-20)])
IDS = [f"{number * 7919 % 1009:04d}-é" for number in range(len(ROWS))]
QUERIES = np.concatenate([DISTINCT[:10], GENERATOR.normal(size=(30, DIM)).astype(np.float32)])
Ranked = list[tuple[str, float]]


def fold(products: NDArray[np.float64]) -> NDArray[np.float64]:
    """The sum that defines a score: zero-padded to a power of two, upper half onto lower."""
    padded = np.zeros((len(products), 1 << (products.shape[1] - 1).bit_length()))
    padded[:, : products.shape[1]] = products
    while padded.shape[1] > 1:
        half = padded.shape[1] // 2
        padded = padded[:, :half] + padded[:, half:]
    return padded[:, 0]


def brute_force(query: NDArray[np.float32], similarity: str) -> Ranked:
    rows, wide = ROWS.astype(np.float64), query.astype(np.float64)
    scores = -fold((wide - rows) ** 2) if similarity == "l2" else fold(wide * rows)
    if similarity == "cosine":
        scores = scores / np.sqrt(fold(wide[None] * wide) * fold(rows * rows))
    ranked = sorted(zip(IDS, scores.tolist(), strict=True), key=lambda hit: (-hit[1], hit[0]))
    return ranked[:TOP_K]


def hits(answer: object) -> Ranked:
    assert isinstance(answer, shoal.Answer)
    assert answer.coverage.ratio == 1.0
    return [(hit.id, hit.score) for hit in answer]


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    folder: Path = tmp_path_factory.mktemp("layouts")
    with cluster(folder, "--no-ray", "--encoders", "0", SHOAL_SHARD_SEAL_PASSAGES="64") as made:
        yield made


@pytest.mark.parametrize("similarity", SIMILARITIES)
def test_every_layout_gives_the_bits_of_brute_force(running: Cluster, similarity: str) -> None:
    expected = [brute_force(query, similarity) for query in QUERIES]
    with running.connect() as client, ThreadPoolExecutor(16) as pool:
        for shards in LAYOUTS:
            name = f"{similarity}-{shards}"
            client.create_collection(
                name, encoder="none", dim=DIM, index="flat", similarity=similarity, shards=shards
            )
            documents = zip(IDS, ROWS, strict=True)
            client.ingest(name, ({"id": key, "vector": row} for key, row in documents))

            def alone(query: NDArray[np.float32], name: str = name) -> Ranked:
                return hits(client.search(name, vector=query, top_k=TOP_K, fields=()))

            assert [alone(query) for query in QUERIES] == expected
            assert list(pool.map(alone, QUERIES)) == expected
            batch = client.search_batch(name, vectors=QUERIES, top_k=TOP_K, fields=())
            assert [hits(answer) for answer in batch] == expected
            client.optimize(name)
            assert [alone(query) for query in QUERIES] == expected
