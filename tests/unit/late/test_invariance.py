"""Late interaction: the same answer for every split of the documents over shards."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from router.core.superset import LateHit, cut
from shard_service.core.late import Effort, first, probed, search
from shoal.kernels import maxsim
from shoal.kernels.maxsim import CodedRuns, Tables

CENTROIDS, SUBSPACES = 12, 2


def corpus_of(rng: np.random.Generator, documents: int) -> tuple[list[bytes], list[np.ndarray]]:
    """Ids and token codes [tokens, 1 + M]; few different codes, so that ties abound."""
    ids = [b"%d" % number for number in rng.permutation(documents)]
    tokens = [
        np.stack(
            [
                rng.integers(0, CENTROIDS, length),
                *(rng.integers(0, 3, length) for _ in range(SUBSPACES)),
            ],
            axis=1,
        )
        for length in rng.integers(0, 6, documents)
    ]
    return ids, tokens


def in_lanes(table: np.ndarray) -> np.ndarray:
    """[tokens, ...] to [blocks, ..., 32]."""
    blocks = -(-len(table) // maxsim.LANES)
    padded = np.zeros((blocks * maxsim.LANES, *table.shape[1:]), np.int16)
    padded[: len(table)] = table
    return np.ascontiguousarray(
        np.moveaxis(padded.reshape(blocks, maxsim.LANES, *table.shape[1:]), 1, -1)
    )


def tables_of(rng: np.random.Generator, tokens: int) -> Tables:
    centroids = rng.integers(-6, 7, (tokens, 1, CENTROIDS))
    words = rng.integers(-3, 4, (tokens, SUBSPACES, 256))
    return Tables(tokens, in_lanes(centroids), in_lanes(words))


def codes_of(tokens: list[np.ndarray]) -> CodedRuns:
    rows = np.concatenate([np.empty((0, 1 + SUBSPACES), int), *tokens])
    return CodedRuns(
        rows[:, 0].astype(np.uint16),
        np.ascontiguousarray(rows[:, 1:].astype(np.uint8)),
        np.cumsum([0, *map(len, tokens)]).astype(np.int64),
    )


def answer(
    query: Tables,
    corpus: tuple[list[bytes], list[np.ndarray]],
    owners: np.ndarray,
    effort: Effort,
    top_k: int,
) -> list[tuple[int, bytes]]:
    parts = []
    for shard in range(int(owners.max(initial=0)) + 1):
        mine = np.flatnonzero(owners == shard).tolist()
        ids = [corpus[0][number] for number in mine]
        found = search(
            query,
            codes_of([corpus[1][number] for number in mine]),
            ids,
            np.arange(len(ids)),
            effort,
        )
        parts.append(
            [
                LateHit(ids[document], centroid, score, shard)
                for document, centroid, score in zip(
                    found.documents.tolist(),
                    found.centroid_scores.tolist(),
                    found.scores.tolist(),
                    strict=True,
                )
            ]
        )
    return [(hit.score, hit.id) for hit in cut(parts, effort.refined, top_k)]


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 40),
    st.integers(1, 40),
    st.integers(1, CENTROIDS + 1),
    st.integers(1, 50),
    st.integers(1, 12),
    st.integers(0, 2**32),
)
def test_any_split_gives_the_same_answer(
    documents: int, tokens: int, probes: int, refined: int, top_k: int, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    corpus, query = corpus_of(rng, documents), tables_of(rng, tokens)
    effort = Effort(probes, refined)
    whole = answer(query, corpus, np.zeros(documents, int), effort, top_k)
    for shards in (2, 4, 8):
        # Shard 0 holds one document at most, and the last none.
        owners = rng.integers(1, shards, documents) if documents else np.zeros(0, int)
        owners[: min(1, documents)] = 0
        assert answer(query, corpus, owners, effort, top_k) == whole


def test_every_document_refined_is_exhaustive_search() -> None:
    rng = np.random.default_rng(5)
    corpus, query = corpus_of(rng, 30), tables_of(rng, 5)
    codes = codes_of(corpus[1])
    scores = maxsim.score_coded(query, codes, np.arange(30))
    expected = sorted(
        (-int(score), key)
        for score, key, tokens in zip(scores, *corpus, strict=True)
        if len(tokens)
    )[:7]
    for probes in (1, CENTROIDS):
        found = answer(query, corpus, np.arange(30) % 3, Effort(probes, 30), 7)
        assert found == [(-score, key) for score, key in expected]


def test_a_shard_must_not_cut_by_full_scores() -> None:
    """DESIGN's counterexample: with B = 2 and K = 1 the answer is a, not c and not b."""
    first_shard = [LateHit(b"a", 10, 5, 1), LateHit(b"b", 1, 100, 1)]
    second_shard = [LateHit(b"c", 9, 4, 2), LateHit(b"d", 8, 3, 2)]
    assert [hit.id for hit in cut([first_shard, second_shard], 2, 1)] == [b"a"]
    displaced = [first_shard[1]]  # what a cut at K by full scores would have sent
    assert [hit.id for hit in cut([displaced, second_shard], 2, 1)] != [b"a"]


@pytest.mark.parametrize("probes", [1, 3, CENTROIDS - 1, CENTROIDS, CENTROIDS + 5])
def test_what_is_not_probed_counts_as_the_first_that_is_not(probes: int) -> None:
    rng = np.random.default_rng(probes)
    query = tables_of(rng, 3)
    given_to = query.centroids[0, 0].T[:3].astype(int)
    seen = probed(query, probes).centroids[0, 0].T[:3].astype(int)
    for before, after in zip(given_to, seen, strict=True):
        ranked = sorted(before, reverse=True)
        imputed = ranked[probes] if probes < CENTROIDS else min(ranked)
        assert after.tolist() == [max(value, imputed) for value in before]


def test_the_first_are_by_score_then_id() -> None:
    scores = np.array([3, 5, 5, 1, 3, 3])
    ids = [b"f", b"b", b"a", b"c", b"d", b"e"]
    assert first(scores, ids, 4).tolist() == [2, 1, 4, 5]
    assert first(scores, ids, 99).tolist() == [2, 1, 4, 5, 0, 3]
