"""The merge of a round: any split gives the top K of the whole."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from router.core.merge import Hits, Merged, ShardHits, merge
from router.hits import BATCH_HITS, SEARCH_HITS, encode_hits
from shoal.rpc.router.v1 import router_pb2

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


def part(shard: int, queries: list[list[Hit]], rows: list[int] | None = None) -> ShardHits:
    flat = [hit for hits in queries for hit in hits]
    return ShardHits(
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


def answers(merged: Merged, queries: int) -> list[list[Hit]]:
    return [
        list(
            zip(
                merged.scores[merged.offsets[row] : merged.offsets[row + 1]].tolist(),
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


@settings(max_examples=60, deadline=None)
@given(rounds(), st.randoms(use_true_random=False))
def test_any_split_in_any_order_is_the_top_k_of_the_whole(case, dice) -> None:
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
    assert answers(merge(parts, np.array(top_k)), len(queries)) == expected


@settings(max_examples=60, deadline=None)
@given(st.lists(st.lists(st.tuples(SCORES, IDS), max_size=8), min_size=1, max_size=4))
def test_an_id_comes_once_with_its_best_score(shards: list[list[Hit]]) -> None:
    parts = [part(shard, [best(hits, 100)]) for shard, hits in enumerate(shards)]
    whole = [hit for hits in shards for hit in hits]
    assert answers(merge(parts, np.array([5])), 1) == [best(whole, 5)]


def test_queries_that_nobody_waits_for_are_left_out() -> None:
    parts = [part(0, [[(1.0, b"gone")], [(0.5, b"a")]], rows=[-1, 0]), part(1, [[(2.0, b"b")]])]
    assert answers(merge(parts, np.array([10])), 1) == [[(2.0, b"b"), (0.5, b"a")]]


def test_ties_are_broken_by_the_bytes_of_ids() -> None:
    ids = [b"b", b"a", b"a\x01", b"\xff" * 9, b"a" * 8, b"a" * 9]
    parts = [part(shard, [[(1.0, key)]]) for shard, key in enumerate(ids)]
    assert merge(parts, np.array([10])).ids(0) == sorted(ids)


def test_nothing_merges_to_nothing() -> None:
    merged = merge([], np.array([3, 4]))
    assert merged.offsets.tolist() == [0, 0, 0]
    assert encode_hits(merged, SEARCH_HITS) == [b"", b""]


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.lists(st.tuples(SCORES, st.text(min_size=1, max_size=300)), max_size=4),
        min_size=1,
        max_size=3,
    ),
    st.sampled_from([0, 1, 127, 128, 20_000]),
)
def test_hits_are_the_bytes_that_protobuf_writes(queries, shard: int) -> None:
    queries = [
        [(score, key.replace("\0", "-").encode()) for score, key in hits] for hits in queries
    ]
    merged = merge([part(shard, queries)], np.full(len(queries), 10))
    for row, data in enumerate(encode_hits(merged, SEARCH_HITS)):
        begin = merged.offsets[row]
        parsed = router_pb2.SearchResponse.FromString(data).hits
        assert [(hit.score, hit.id.encode()) for hit in parsed] == answers(merged, row + 1)[row]
        assert all(hit.shard == shard for hit in parsed)
        assert [hit.passage for hit in parsed] == merged.passages[
            begin : begin + len(parsed)
        ].tolist()
    batch = encode_hits(merged, BATCH_HITS)[0]
    assert len(router_pb2.BatchAnswer.FromString(batch).hits) == merged.offsets[1]
