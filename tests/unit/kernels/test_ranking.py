"""Ranking, merging and writing hits: compiled and portable kernels against plain Python."""

from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shoal import kernels
from shoal.kernels import Hits, Merged, Part, exact, portable
from shoal.rpc.router.v1 import router_pb2
from shoal.types import Similarity

Hit = tuple[float, bytes]
IDS = st.binary(min_size=1, max_size=20).filter(lambda each: b"\0" not in each)
SCORES = st.sampled_from([-1.0, -0.0, 0.0, 0.5, 1.0, 1.0 + 2**-52])


def best(hits: list[Hit], top_k: int) -> list[Hit]:
    """Brute force: the best of each id, in order, cut."""
    ranked = sorted(hits, key=lambda hit: (-hit[0], hit[1]))
    seen: dict[bytes, Hit] = {}
    for hit in ranked:
        seen.setdefault(hit[1], hit)
    return list(seen.values())[:top_k]


def part(shard: int, queries: list[list[Hit]], rows: list[int] | None = None) -> Part:
    flat = [hit for hits in queries for hit in hits]
    return Part(
        shard,
        np.array(range(len(queries)) if rows is None else rows, np.int64),
        Hits(
            counts=np.array([len(hits) for hits in queries], np.int64),
            ids=b"".join(key for _, key in flat),
            id_lengths=np.array([len(key) for _, key in flat], np.uint32),
            scores=np.array([score for score, _ in flat], np.float64),
            sequences=np.arange(len(flat), dtype=np.uint64),
            passages=np.arange(len(flat), dtype=np.uint32) * 100,
        ),
    )


both = pytest.mark.parametrize(
    "kernel", [kernels, portable], ids=["compiled" if kernels.COMPILED else "default", "portable"]
)


def answers(merged: Merged, queries: int) -> list[list[Hit]]:
    return [
        list(
            zip(
                merged.hits.scores[merged.offsets[row] : merged.offsets[row + 1]].tolist(),
                merged.ids(row),
                strict=True,
            )
        )
        for row in range(queries)
    ]


@st.composite
def rounds(draw: st.DrawFn) -> tuple[list[dict[bytes, float]], list[int], int]:
    queries = draw(st.lists(st.dictionaries(IDS, SCORES, max_size=12), min_size=1, max_size=4))
    top_k = draw(st.lists(st.integers(1, 8), min_size=len(queries), max_size=len(queries)))
    return queries, top_k, draw(st.integers(1, 5))


@both
@settings(max_examples=60, deadline=None)
@given(rounds(), st.randoms(use_true_random=False))
def test_any_split_in_any_order_is_the_top_k_of_the_whole(kernel, case, dice) -> None:
    queries, top_k, shards = case
    split: list[list[list[Hit]]] = [[[] for _ in queries] for _ in range(shards)]
    for row, documents in enumerate(queries):
        for key, score in documents.items():
            split[dice.randrange(shards)][row].append((score, key))
    parts = [
        part(shard, [best(hits, k) for hits, k in zip(split[shard], top_k, strict=True)])
        for shard in range(shards)
    ]
    dice.shuffle(parts)
    expected = [
        best([(score, key) for key, score in documents.items()], k)
        for documents, k in zip(queries, top_k, strict=True)
    ]
    assert answers(kernel.merge(parts, np.array(top_k)), len(queries)) == expected


@both
@settings(max_examples=60, deadline=None)
@given(st.lists(st.lists(st.tuples(SCORES, IDS), max_size=8), min_size=1, max_size=4))
def test_an_id_comes_once_with_its_best_score(kernel, shards: list[list[Hit]]) -> None:
    parts = [part(shard, [best(hits, 100)]) for shard, hits in enumerate(shards)]
    whole = [hit for hits in shards for hit in hits]
    assert answers(kernel.merge(parts, np.array([5])), 1) == [best(whole, 5)]


@both
def test_queries_that_nobody_waits_for_are_left_out(kernel) -> None:
    parts = [part(0, [[(1.0, b"gone")], [(0.5, b"a")]], rows=[-1, 0]), part(1, [[(2.0, b"b")]])]
    assert answers(kernel.merge(parts, np.array([10])), 1) == [[(2.0, b"b"), (0.5, b"a")]]


@both
def test_ties_are_broken_by_the_bytes_of_ids(kernel) -> None:
    ids = [b"b", b"a", b"a\x01", b"\xff" * 9, b"a" * 8, b"a" * 9]
    parts = [part(shard, [[(1.0, key)]]) for shard, key in enumerate(ids)]
    assert kernel.merge(parts, np.array([10])).ids(0) == sorted(ids)


@both
def test_nothing_merges_to_nothing(kernel) -> None:
    merged = kernel.merge([], np.array([3, 4]))
    assert merged.offsets.tolist() == [0, 0, 0]
    assert kernel.encode_hits(merged, router_pb2.SearchResponse.HITS_FIELD_NUMBER) == [b"", b""]


@both
@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.lists(st.tuples(SCORES, st.text(min_size=1, max_size=300)), max_size=4),
        min_size=1,
        max_size=3,
    ),
    st.sampled_from([0, 1, 127, 128, 20_000]),
)
def test_hits_are_the_bytes_that_protobuf_writes(kernel, queries, shard: int) -> None:
    queries = [
        [(score, key.replace("\0", "-").encode()) for score, key in hits] for hits in queries
    ]
    merged = kernel.merge([part(shard, queries)], np.full(len(queries), 10))
    for row, data in enumerate(
        kernel.encode_hits(merged, router_pb2.SearchResponse.HITS_FIELD_NUMBER)
    ):
        begin = merged.offsets[row]
        parsed = router_pb2.SearchResponse.FromString(data).hits
        assert [(hit.score, hit.id.encode()) for hit in parsed] == answers(merged, row + 1)[row]
        assert all(hit.shard == shard for hit in parsed)
        assert [hit.passage for hit in parsed] == merged.hits.passages[
            begin : begin + len(parsed)
        ].tolist()
    batch = kernel.encode_hits(merged, router_pb2.BatchAnswer.HITS_FIELD_NUMBER)[0]
    assert len(router_pb2.BatchAnswer.FromString(batch).hits) == merged.offsets[1]


@dataclass
class Columns:
    """Documents of one or more rows each."""

    vectors: np.ndarray
    squares: np.ndarray
    row_documents: np.ndarray
    row_starts: np.ndarray
    ids: np.ndarray
    id_starts: np.ndarray
    sequences: np.ndarray


def columns(ids: list[bytes], passages: list[int], vectors: np.ndarray) -> Columns:
    lengths = [len(key) for key in ids]
    return Columns(
        vectors=vectors,
        squares=exact.squares(vectors),
        row_documents=np.repeat(np.arange(len(ids), dtype=np.int32), passages),
        row_starts=np.cumsum([0, *passages]).astype(np.int64),
        ids=np.frombuffer(b"".join(ids), np.uint8),
        id_starts=np.cumsum([0, *lengths]).astype(np.int64),
        sequences=np.arange(100, 100 + len(ids), dtype=np.uint64),
    )


@st.composite
def sources(draw: st.DrawFn) -> tuple[Columns, list[bytes], np.ndarray, np.ndarray, np.ndarray]:
    """Columns with ids, queries, proposals, live rows; many vectors are equal."""
    ids = draw(st.lists(IDS, min_size=1, max_size=8, unique=True))
    passages = draw(st.lists(st.integers(1, 3), min_size=len(ids), max_size=len(ids)))
    rows, queries = sum(passages), draw(st.integers(1, 3))
    dim = draw(st.sampled_from([1, 2, 3, 5, 8, 17, 33, 96]))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    pool = np.concatenate([np.ones((1, dim)), rng.standard_normal((3, dim))]).astype(np.float32)
    vectors = np.ascontiguousarray(pool[rng.integers(0, 4, rows)])
    asked = np.ascontiguousarray(pool[rng.integers(0, 4, queries)] * np.float32(0.7))
    proposals = np.stack([rng.permutation(rows) for _ in range(queries)]).astype(np.int64)
    proposals[rng.random(proposals.shape) < draw(st.sampled_from([0.0, 0.4, 1.0]))] = -1
    live = rng.random(rows) < draw(st.sampled_from([0.0, 0.6, 1.0]))
    return columns(ids, passages, vectors), ids, asked, proposals, live


@both
@settings(max_examples=100, deadline=None)
@given(sources(), st.sampled_from(Similarity), st.integers(1, 5))
def test_ranking_is_that_of_plain_python(kernel, case, similarity: Similarity, top_k: int) -> None:
    documents, ids, queries, proposals, live = case
    wanted = np.arange(top_k, top_k + len(queries), dtype=np.int64)
    hits = kernel.rank(
        similarity,
        queries,
        kernel.squares(queries),
        proposals,
        wanted,
        documents,
        None if live.all() else np.packbits(live, bitorder="little"),
    )
    expected = []
    for number, query in enumerate(queries):
        best: dict[int, tuple[float, int]] = {}
        for row in sorted(row for row in proposals[number].tolist() if row >= 0 and live[row]):
            score = exact.reference(similarity, query, documents.vectors[row])
            document = int(documents.row_documents[row])
            if document not in best or score > best[document][0]:
                best[document] = (score, row)
        ranked = sorted(best, key=lambda document: (-best[document][0], ids[document]))
        expected.append([(*best[document], document) for document in ranked[: wanted[number]]])
    flat = [hit for hits in expected for hit in hits]
    assert hits.counts.tolist() == [len(hits) for hits in expected]
    scores = np.array([score for score, _, _ in flat], np.float64)
    assert hits.scores.tobytes() == scores.tobytes()
    assert hits.ids == b"".join(ids[document] for _, _, document in flat)
    assert hits.id_lengths.tolist() == [len(ids[document]) for _, _, document in flat]
    assert hits.sequences.tolist() == [100 + document for _, _, document in flat]
    assert hits.passages.tolist() == [
        row - int(documents.row_starts[document]) for _, row, document in flat
    ]


@pytest.mark.parametrize("dim", [1, 2, 3, 96, 384, 1000, 1024])
def test_the_compiled_bits_are_the_oracles(dim: int) -> None:
    rng = np.random.default_rng(dim)
    vectors = (rng.standard_normal((50, dim)) * 10.0 ** rng.integers(-9, 9, (50, 1))).astype("<f4")
    assert kernels.squares(vectors).tobytes() == exact.squares(vectors).tobytes()
    documents = columns([b"%02d" % n for n in range(50)], [1] * 50, vectors)
    queries = rng.standard_normal((4, dim)).astype(np.float32)
    proposals = np.tile(np.arange(50), (4, 1))
    top_k = np.full(4, 50)
    for similarity in Similarity:
        given_to = (similarity, queries, exact.squares(queries), proposals, top_k, documents, None)
        compiled, oracle = kernels.rank(*given_to), portable.rank(*given_to)
        assert compiled.scores.tobytes() == oracle.scores.tobytes()
        assert compiled.ids == oracle.ids


@pytest.mark.skipif(not kernels.COMPILED, reason="there is nothing compiled here")
def test_columns_that_do_not_fit_are_refused() -> None:
    vectors = np.ones((2, 4), dtype=np.float32)
    documents = columns([b"a", b"b"], [1, 1], vectors)
    one = np.array([1], dtype=np.int64)

    def rank(queries: np.ndarray, proposals: list[list[int]], top_k: np.ndarray = one) -> Hits:
        squares = kernels.squares(queries)
        rows = np.array(proposals, dtype=np.int64)
        return kernels.rank(Similarity.DOT, queries, squares, rows, top_k, documents, None)

    assert rank(vectors[:1], [[0, 1]]).counts.tolist() == [1]
    with pytest.raises(ValueError, match="beyond"):
        rank(vectors[:1], [[2]])
    with pytest.raises(ValueError, match="different lengths"):
        rank(np.ones((1, 3), dtype=np.float32), [[0]])
    with pytest.raises(TypeError):
        rank(vectors[:1], [[0]], np.array([1], dtype=np.int32))
    lying = part(0, [[(1.0, b"a")]])
    lying.hits.counts[0] = 2
    with pytest.raises(ValueError, match="different lengths"):
        kernels.merge([lying], one)
