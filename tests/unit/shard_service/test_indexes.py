"""Recall of approximate indexes on a few thousand vectors, through a shard."""

import math
from pathlib import Path

import numpy as np
import pytest

from shard_service.settings import ShardSettings
from shoal.types import Similarity
from tests.unit.shard_service.support import Cluster, Doc, opened

ROWS = 2400


def corpus(dim: int, passages: int = 1) -> tuple[list[Doc], np.ndarray]:
    """Documents around 60 centres, and queries that are none of them."""
    rng = np.random.default_rng(dim)
    centres = rng.standard_normal((60, dim))
    spread = 0.5 if dim > 4 else 0.2
    rows = centres[rng.integers(0, 60, ROWS + 64)]
    rows = (rows + spread * rng.standard_normal(rows.shape)).astype(np.float32)
    documents = [
        Doc(f"d{start}", rows[start : start + passages]) for start in range(0, ROWS, passages)
    ]
    return documents, rows[ROWS:]


def recall(cluster: Cluster, queries: np.ndarray) -> float:
    found, truth = cluster.search(queries, 10), cluster.truth(queries, 10)
    hits = sum(
        len({hit[1] for hit in mine} & {hit[1] for hit in best})
        for mine, best in zip(found, truth, strict=True)
    )
    return hits / sum(map(len, truth))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("index", "dim", "similarity"),
    [
        ("ivf-pq", 48, Similarity.COSINE),
        ("ivf-pq", 21, Similarity.DOT),
        ("ivf-pq", 21, Similarity.L2),
        ("hnsw", 21, Similarity.COSINE),
        ("hnsw", 21, Similarity.L2),
    ],
)
def test_recall_is_measured_and_reached(
    tmp_path: Path, index: str, dim: int, similarity: Similarity
) -> None:
    documents, queries = corpus(dim)
    cluster = Cluster(tmp_path, similarity, dim, index=index)
    with opened(cluster):
        cluster.write(documents)
        cluster.optimize()
        (segment,) = cluster.open_shards[0].view.segments
        assert segment.index.startswith("HNSW" if index == "hnsw" else "IVF")
        assert segment.parameters
        assert segment.recall >= 0.99
        assert recall(cluster, queries) >= 0.97
        # What is found has the exact score: approximation loses documents, never bits.
        for mine, best in zip(cluster.search(queries, 10), cluster.truth(queries, 20), strict=True):
            exact = {hit[1]: hit for hit in best}
            assert all(exact.get(hit[1], hit) == hit for hit in mine)
        alone = [cluster.search(query[np.newaxis], 10)[0] for query in queries[:8]]
        assert alone == cluster.search(queries[:8], 10)
        cluster.delete([document.id for document in documents[: ROWS // 6]])
        assert recall(cluster, queries) >= 0.97
        cluster.close()
        cluster.open()
        assert recall(cluster, queries) >= 0.97


@pytest.mark.parametrize("index", ["ivf-pq", "hnsw"])
def test_an_approximate_search_goes_on_until_it_has_k_documents(tmp_path: Path, index: str) -> None:
    documents, queries = corpus(8, passages=6)
    cluster = Cluster(tmp_path, Similarity.COSINE, 8, index=index)
    with opened(cluster):
        cluster.write(documents)
        cluster.optimize()
        for top_k in (40, len(documents), 10_000):
            counts = [len(answer) for answer in cluster.search(queries[:3], top_k)]
            assert counts == [min(top_k, len(documents))] * 3


@pytest.mark.parametrize("dim", [1, 2, 3, 5])
@pytest.mark.parametrize("index", ["flat", "ivf-pq", "hnsw", "auto"])
def test_narrow_vectors(tmp_path: Path, index: str, dim: int) -> None:
    rng = np.random.default_rng(dim)
    rows = rng.standard_normal((1100, dim)).astype(np.float32)
    cluster = Cluster(tmp_path, Similarity.L2, dim, index=index)
    with opened(cluster):
        cluster.write([Doc(f"d{n}", row[np.newaxis]) for n, row in enumerate(rows)])
        cluster.optimize()
        assert recall(cluster, rows[:5]) >= 0.9


@pytest.mark.slow
def test_auto_goes_by_size_and_falls_back_to_exact(tmp_path: Path) -> None:
    documents, queries = corpus(16)
    sizes = ShardSettings(seal_passages=1 << 30, flat_passages=2000)
    cluster = Cluster(tmp_path, Similarity.COSINE, 16, index="auto", settings=sizes)
    with opened(cluster):
        shard = cluster.open_shards[0]
        cluster.write(documents[:1500])
        cluster.optimize()
        assert shard.view.segments[0].index == "Flat"
        cluster.write(documents[1500:])
        cluster.optimize()
        assert shard.view.segments[0].index.startswith("IVF")
        assert recall(cluster, queries) >= 0.97
    unreachable = ShardSettings(seal_passages=1 << 30, flat_passages=2000, target_recall=1.01)
    cluster.settings = unreachable
    with opened(cluster):
        cluster.delete([documents[0].id])
        cluster.optimize()
        assert cluster.open_shards[0].view.segments[0].index == "Flat"
        assert math.isclose(recall(cluster, queries), 1.0)
