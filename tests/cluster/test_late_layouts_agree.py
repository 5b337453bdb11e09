"""Late interaction through a real cluster: the same ids and bits for any number of shards."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

import shoal
from shoal.client.model import CollectionInfo
from tests.cluster.clusters import Cluster, cluster, wait_for

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


def clustered(documents: int) -> list[NDArray[np.float32]]:
    """Matrices whose tokens fall into groups, as words do."""
    words = GENERATOR.normal(size=(400, DIM))
    return [
        (words[GENERATOR.integers(0, 400, 35)] + GENERATOR.normal(size=(35, DIM)) / 4).astype(
            np.float32
        )
        for _ in range(documents)
    ]


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


def test_a_trained_codec_and_its_answers_are_the_same_whatever_the_layout(
    running: Cluster,
) -> None:
    """50,000 tokens in any order, on 1 to 8 shards: one codec, the same refined bits."""
    matrices = clustered(1_600)
    asked = [matrices[number][:tokens] for number, tokens in enumerate((1, 5, 31, 33, 35))]
    names, found = set(), []
    with running.connect() as client:
        for shards in LAYOUTS:
            name = f"coded-{shards}"
            client.create_collection(
                name, "colbert", encoder="none", dim=DIM, shards=shards, code_bytes=4
            )
            order = np.random.default_rng(shards).permutation(len(matrices)).tolist()
            client.ingest(name, ({"id": f"d{n}", "vector": matrices[n]} for n in order))
            seen = wait_for(lambda name=name: trained(client, name), timeout_s=120)
            names.add((seen.codec, seen.efforts))
            found.append(
                [
                    [(hit.id, hit.score, hit.passage) for hit in answer]
                    for effort in ("low", "normal", "exhaustive")
                    for answer in client.search_batch(name, vectors=asked, effort=effort)
                    if isinstance(answer, shoal.Answer)
                ]
            )
            client.optimize(name)
            again = client.search_batch(name, vectors=asked, effort="exhaustive")
            assert [[hit.score for hit in answer] for answer in again] == [
                [score for _, score, _ in answer] for answer in found[-1][-len(asked) :]
            ]
        assert drift(client, "coded-2") == (0, 0)
        strange = [-matrices[number] for number in range(100)]
        client.ingest("coded-2", ({"id": f"s{n}", "vector": r} for n, r in enumerate(strange)))
        assert wait_for(lambda: drift(client, "coded-2")[0] == 3_500)
        assert drift(client, "coded-2")[1] > 3_000
    assert len(names) == 1
    assert found[1:] == found[:-1]


def drift(client: shoal.Client, name: str) -> tuple[int, int]:
    seen = next(each for each in client.status().collections if each.name == name)
    return sum(s.new_tokens for s in seen.shards), sum(s.far_tokens for s in seen.shards)


def trained(client: shoal.Client, name: str) -> CollectionInfo | None:
    # The router flips when it has read the newest topology, moments after the controller.
    if client.search(name, vector=np.ones((1, DIM)), fields=()).generation == 1:
        return None
    return next(each for each in client.status().collections if each.name == name)
