"""Promise 1: the same bits whatever the layout, equal to a float64 brute force."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from shard_service.core.engine import Proposals
from shard_service.indexes import flat
from shard_service.settings import ShardSettings
from shoal.types import Similarity
from tests.unit.shard_service.support import Cluster, Doc, opened

DIM = 12
SEALING = ShardSettings(seal_passages=60)


def corpus(rng: np.random.Generator, count: int) -> list[Doc]:
    """Documents of 1 to 4 passages; a third of the vectors are copies of others."""
    base = rng.standard_normal((count, DIM)).astype(np.float32)
    base[rng.random(count) < 0.3] = base[0]
    base[rng.random(count) < 0.2] *= np.float32(1.0000001)
    return [
        Doc(
            f"d{number % 7}-{number}",
            base[rng.integers(0, count, size=rng.integers(1, 5))],
        )
        for number in range(count)
    ]


def check(cluster: Cluster, rng: np.random.Generator) -> None:
    queries = rng.standard_normal((6, DIM)).astype(np.float32)
    queries[0] = next(iter(cluster.model.values())).vectors[0]
    queries[1] = queries[0]
    for top_k in (1, 10, 75):
        expected = cluster.truth(queries, top_k)
        assert cluster.search(queries, top_k) == expected
        alone = [cluster.search(query[np.newaxis], top_k)[0] for query in queries]
        assert alone == expected


@pytest.mark.parametrize("similarity", Similarity)
@pytest.mark.parametrize(
    "shards", [1, *(pytest.param(many, marks=pytest.mark.slow) for many in (2, 4, 7))]
)
def test_any_split_equals_brute_force(tmp_path: Path, similarity: Similarity, shards: int) -> None:
    rng = np.random.default_rng(shards)
    cluster = Cluster(tmp_path, similarity, DIM, shards, settings=SEALING)
    with opened(cluster):
        documents = corpus(rng, 120)
        cluster.write(documents)
        check(cluster, rng)
        cluster.delete([document.id for document in documents[::9]])
        cluster.write([Doc(d.id, corpus(rng, 3)[1].vectors) for d in documents[::4]])
        check(cluster, rng)
        cluster.optimize()
        check(cluster, rng)
        cluster.write(corpus(rng, 20))
        cluster.delete([document.id for document in documents[1::9]])
        check(cluster, rng)
        cluster.close()
        cluster.open()
        check(cluster, rng)


@pytest.mark.parametrize("similarity", Similarity)
@pytest.mark.parametrize("rows", [1, 3, 50])
def test_a_matrix_searched_in_blocks_equals_brute_force(
    tmp_path: Path, similarity: Similarity, rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(flat, "_BLOCK_ELEMENTS", rows * DIM)
    rng = np.random.default_rng(rows)
    cluster = Cluster(tmp_path, similarity, DIM, 1)
    with opened(cluster):
        documents = corpus(rng, 60)
        cluster.write(documents)
        cluster.delete([document.id for document in documents[::9]])
        check(cluster, rng)
        cluster.optimize()
        cluster.delete([document.id for document in documents[1::9]])
        check(cluster, rng)


def test_a_lone_search_looks_at_its_deadline_between_blocks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(flat, "_BLOCK_ELEMENTS", 10 * DIM)
    searched = []
    search = flat.FlatEngine.search

    def counted(engine: flat.FlatEngine, *rest: Any) -> Proposals:
        searched.append(engine.rows)
        return search(engine, *rest)

    monkeypatch.setattr(flat.FlatEngine, "search", counted)
    cluster = Cluster(tmp_path, Similarity.DOT, DIM)
    vectors = np.random.default_rng(5).standard_normal((100, DIM)).astype(np.float32)
    with opened(cluster):
        cluster.write([Doc(f"{row}", vectors[row : row + 1]) for row in range(100)])
        shard = cluster.open_shards[0]
        found = shard.search(
            shard.view, vectors[:1], np.array([5]), lambda: np.array([len(searched) < 3])
        )
    assert found.dropped.tolist() == [True]
    assert found.hits.counts.tolist() == [0]
    assert searched == [range(0, 10), range(10, 20), range(20, 30)]


@pytest.mark.parametrize("similarity", Similarity)
def test_more_ties_than_the_guard_may_grow_to(tmp_path: Path, similarity: Similarity) -> None:
    cluster = Cluster(tmp_path, similarity, DIM, 2)
    same = np.ones((1, DIM), dtype=np.float32)
    with opened(cluster):
        cluster.write([Doc(f"{number:05d}", same) for number in range(3000)])
        queries = np.stack([same[0], np.arange(DIM, dtype=np.float32)])
        assert cluster.search(queries, 5) == cluster.truth(queries, 5)
        cluster.optimize()
        assert cluster.search(queries, 5) == cluster.truth(queries, 5)


@pytest.mark.parametrize("similarity", Similarity)
def test_long_documents_do_not_crowd_out_others(tmp_path: Path, similarity: Similarity) -> None:
    rng = np.random.default_rng(3)
    near = rng.standard_normal(DIM).astype(np.float32)
    long = [
        Doc(f"long{n}", (near + 1e-3 * rng.standard_normal((900, DIM))).astype(np.float32))
        for n in range(2)
    ]
    short = [Doc(f"s{n}", rng.standard_normal((1, DIM)).astype(np.float32)) for n in range(50)]
    cluster = Cluster(tmp_path, similarity, DIM, 1)
    with opened(cluster):
        cluster.write(long + short)
        for _ in range(2):
            assert cluster.search(near[np.newaxis], 10) == cluster.truth(near[np.newaxis], 10)
            cluster.optimize()


@pytest.mark.parametrize("scale", [1e-41, 1e-20, 1e18, 3e37])
@pytest.mark.parametrize("similarity", Similarity)
def test_sizes_at_the_ends_of_float32(tmp_path: Path, similarity: Similarity, scale: float) -> None:
    rng = np.random.default_rng(5)
    cluster = Cluster(tmp_path, similarity, DIM, 2)
    vectors = (scale * rng.standard_normal((200, DIM))).astype(np.float32)
    queries = (scale * rng.standard_normal((3, DIM))).astype(np.float32)
    with opened(cluster):
        cluster.write([Doc(f"d{n}", vector[np.newaxis]) for n, vector in enumerate(vectors)])
        for _ in range(2):
            assert cluster.search(queries, 10) == cluster.truth(queries, 10)
            cluster.optimize()


def test_a_batch_of_mixed_top_k_answers_each_query_as_alone(tmp_path: Path) -> None:
    rng = np.random.default_rng(9)
    cluster = Cluster(tmp_path, Similarity.COSINE, DIM)
    with opened(cluster):
        cluster.write(corpus(rng, 300))
        queries = rng.standard_normal((4, DIM)).astype(np.float32)
        top_k = np.array([1, 10, 200, 10_000])
        shard = cluster.open_shards[0]
        hits = shard.search(shard.view, queries, top_k, lambda: np.ones(4, dtype=np.bool_)).hits
        assert hits.counts.tolist() == [1, 10, 200, 300]
        expected = [cluster.truth(q[np.newaxis], int(k))[0] for q, k in zip(queries, top_k)]  # noqa: B905
        assert hits.scores.tolist() == [hit[0] for answer in expected for hit in answer]


def test_dropped_queries_leave_the_others_alone(tmp_path: Path) -> None:
    rng = np.random.default_rng(11)
    cluster = Cluster(tmp_path, Similarity.COSINE, DIM)
    with opened(cluster):
        cluster.write(corpus(rng, 100))
        queries = rng.standard_normal((3, DIM)).astype(np.float32)
        shard = cluster.open_shards[0]
        wanted = np.array([True, False, True])
        found = shard.search(shard.view, queries, np.full(3, 4), lambda: wanted)
        assert found.dropped.tolist() == [False, True, False]
        hits = found.hits
        assert hits.counts.tolist() == [4, 0, 4]
        expected = cluster.truth(queries[wanted], 4)
        assert hits.scores.tolist() == [hit[0] for answer in expected for hit in answer]
