"""Late interaction: the same answer for every split of the documents over shards."""

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from router.core.superset import LatePart, merge
from shard_service.core.codec import Codec, codec
from shard_service.core.late import LateQuery, search
from shard_service.core.live import all_live, masked
from shard_service.core.records import Version
from shard_service.core.source import View
from shard_service.core.token_codec import (
    ExactCodec,
    QuantisedCodec,
    Runs,
    TokenCodec,
    probed,
)
from shard_service.core.token_tail import TokenTail
from shard_service.core.vectors import TokenVectors, starts_of
from shoal.kernels.fixed import to_fixed, unit_rows
from shoal.kernels.maxsim import Tables
from tests.unit.late.support import cut

DIM, CENTROIDS = 8, 12


class Doc:
    """A document: passages of token vectors out of a few, so that ties abound."""

    def __init__(self, key: bytes, rng: np.random.Generator, vocabulary: np.ndarray) -> None:
        self.id = key
        lengths = rng.integers(0, 5, rng.integers(1, 4))
        self.passages = [vocabulary[rng.integers(0, len(vocabulary), n)] for n in lengths]


def vocabulary_of(rng: np.random.Generator, size: int) -> np.ndarray:
    return unit_rows(rng.standard_normal((size, DIM)).astype(np.float32)).astype(np.float16)


def question_of(rng: np.random.Generator, tokens: int) -> np.ndarray:
    return to_fixed(unit_rows(rng.standard_normal((tokens, DIM)).astype(np.float32)))


def quantiser_of(rng: np.random.Generator) -> Codec:
    centroids = question_of(rng, CENTROIDS)
    turn = np.linalg.qr(rng.standard_normal((DIM, DIM)))[0]
    words = rng.integers(-3_000, 3_000, (4, 256, DIM // 4)).astype(np.int16)
    return codec(centroids, to_fixed(turn), words)


def view_of(documents: Sequence[Doc], keeper: TokenCodec, dead: Sequence[int] = ()) -> View:
    """One tail with these documents."""
    tail = TokenTail(keeper.none)
    for number, document in enumerate(documents):
        counts = np.array([len(passage) for passage in document.passages])
        rows = np.concatenate([np.empty((0, DIM), np.float16), *document.passages])
        vectors = TokenVectors(rows, starts_of(counts), keeper.encode(rows))
        version = Version(document.id, bytes(16), len(counts), b"")
        tail.extend([version], np.array([number + 1], dtype=np.uint64), vectors)
    live = all_live(tail.rows, tail.documents)
    tail.live = masked(live, np.array(dead, dtype=np.int64), tail.table().row_starts)
    sources = (tail.source(),) if documents else ()
    return View(sources, (), len(documents), tail.live.live_documents, tail.live.live_rows)


def answer(
    documents: Sequence[Doc], owners: np.ndarray, keeper: TokenCodec, queries: Sequence[LateQuery]
) -> list[list[tuple[bytes, float, int]]]:
    """Per query (id, score, passage), merged from shards as the router does."""
    parts = []
    for shard in range(int(owners.max(initial=0)) + 1):
        mine = [
            document for document, owner in zip(documents, owners, strict=True) if owner == shard
        ]
        found = search(
            view_of(mine, keeper), keeper, queries, lambda: np.ones(len(queries), np.bool_)
        )
        coarse = np.empty(0) if found.centroid_scores is None else found.centroid_scores
        parts.append(LatePart(shard, np.arange(len(queries)), found.hits, coarse))
    top_k = np.array([query.top_k for query in queries])
    merged = merge(parts, [query.refined for query in queries], top_k)
    return [
        list(
            zip(
                merged.ids(row),
                merged.hits.scores[a:b].tolist(),
                merged.hits.passages[a:b].tolist(),
                strict=True,
            )
        )
        for row, (a, b) in enumerate(zip(merged.offsets, merged.offsets[1:], strict=False))
    ]


def oracle(
    documents: Sequence[Doc], keeper: TokenCodec, query: LateQuery
) -> list[tuple[bytes, float, int]]:
    """From the definition, document by document, in plain Python."""
    question = keeper.question(query.tokens, query.probes if query.refined else 0)
    scored = []
    for document in documents:
        full, coarse = [], []
        for number, rows in enumerate(document.passages):
            if len(rows):
                runs = Runs(keeper.encode(rows), np.array([0, len(rows)]))
                first = np.zeros(1, np.int64)
                full.append((int(question.score(runs, first)[0]), -number))
                if query.refined:
                    coarse.append(int(question.score_centroids(runs, first)[0]))
        if full:
            score, passage = max(full)
            scored.append((document.id, max(coarse, default=0), score, -passage))
    found = cut(scored, query.refined or len(scored), query.top_k)
    return [(key, score * keeper.unit, passage) for key, score, passage in found]


@settings(max_examples=40, deadline=None)
@given(
    st.integers(0, 30),
    st.lists(st.integers(1, 40), min_size=1, max_size=3),
    st.integers(1, CENTROIDS + 1),
    st.sampled_from([0, 1, 3, 10, 40]),
    st.integers(1, 12),
    st.booleans(),
    st.integers(0, 2**32),
)
def test_any_split_gives_the_answer_of_the_definition(
    count: int,
    lengths: list[int],
    probes: int,
    refined: int,
    top_k: int,
    quantised: bool,
    seed: int,
) -> None:
    rng = np.random.default_rng(seed)
    vocabulary = vocabulary_of(rng, 6)
    documents = [Doc(b"%d" % key, rng, vocabulary) for key in rng.permutation(count)]
    keeper: TokenCodec = QuantisedCodec(quantiser_of(rng)) if quantised else ExactCodec(DIM)
    refined = refined if quantised else 0
    queries = [
        LateQuery(question_of(rng, n), top_k, *e)
        for n, e in zip(lengths, ((probes, refined), (0, 0), (probes, refined)), strict=False)
    ]
    expected = [oracle(documents, keeper, query) for query in queries]
    for shards in (1, 2, 4, 8):
        # With several, shard 0 holds one document at most.
        owners = rng.integers(1, shards, count) if shards > 1 else np.zeros(count, int)
        owners[: min(1, count)] = 0
        assert answer(documents, owners, keeper, queries) == expected


@pytest.mark.parametrize("quantised", [False, True])
def test_dead_documents_never_count(quantised: bool) -> None:
    rng = np.random.default_rng(3)
    vocabulary = vocabulary_of(rng, 5)
    documents = [Doc(b"%d" % key, rng, vocabulary) for key in range(30)]
    keeper: TokenCodec = QuantisedCodec(quantiser_of(rng)) if quantised else ExactCodec(DIM)
    query = LateQuery(question_of(rng, 3), 7, 2 * quantised, 9 * quantised)
    everyone = np.ones(1, np.bool_)
    with_dead = search(
        view_of(documents, keeper, range(0, 30, 2)), keeper, [query], lambda: everyone
    )
    without = search(view_of(documents[1::2], keeper), keeper, [query], lambda: everyone)
    assert with_dead.hits.ids == without.hits.ids
    assert with_dead.hits.scores.tobytes() == without.hits.scores.tobytes()


def test_a_query_that_nobody_wants_is_dropped_between_slices() -> None:
    rng = np.random.default_rng(4)
    documents = [Doc(b"%d" % key, rng, vocabulary_of(rng, 5)) for key in range(20)]
    keeper = ExactCodec(DIM, slice_tokens=4)
    query = LateQuery(question_of(rng, 2), 3)
    looks = iter([True] * 3 + [False] * 100)
    found = search(
        view_of(documents, keeper), keeper, [query, query], lambda: np.array([next(looks), True])
    )
    assert found.dropped.tolist() == [True, False]
    assert found.hits.counts.tolist() == [0, 3]


def test_a_shard_must_not_cut_by_full_scores() -> None:
    """DESIGN's counterexample: with B = 2 and K = 1 the answer is a, not c and not b."""
    first_shard = [(b"a", 10, 5, 0), (b"b", 1, 100, 0)]
    second_shard = [(b"c", 9, 4, 0), (b"d", 8, 3, 0)]
    assert [key for key, *_ in cut([*first_shard, *second_shard], 2, 1)] == [b"a"]
    displaced = [first_shard[1]]  # what a cut at K by full scores would have sent
    assert [key for key, *_ in cut([*displaced, *second_shard], 2, 1)] != [b"a"]


@pytest.mark.parametrize("probes", [1, 3, CENTROIDS - 1, CENTROIDS, CENTROIDS + 5])
def test_what_is_not_probed_counts_as_the_first_that_is_not(probes: int) -> None:
    rng = np.random.default_rng(probes)
    centroids = np.zeros((1, 1, CENTROIDS, 32), np.int16)
    centroids[..., :3] = rng.integers(-6, 7, (CENTROIDS, 3))
    query = Tables(3, centroids, np.empty((1, 0, 256, 32), np.int16))
    seen = probed(query, probes).centroids[0, 0].T[:3].astype(int)
    for before, after in zip(centroids[0, 0].T[:3].astype(int), seen, strict=True):
        ranked = sorted(before, reverse=True)
        imputed = ranked[probes] if probes < CENTROIDS else min(ranked)
        assert after.tolist() == [max(value, imputed) for value in before]
