"""The small pure parts, each against its definition."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shard_service.core import guard, policy
from shard_service.core.growable import Growable
from shard_service.core.live import all_live, grown, masked, ranges
from shard_service.core.policy import Recipe, Size
from shard_service.core.records import (
    Content,
    DeleteRecord,
    Version,
    WriteRecord,
    decode_content,
    decode_record,
    encode_content,
    encode_delete,
    encode_write,
)
from shard_service.core.vectors import Dense, dense_from_bytes
from shoal.types import Document

texts = st.text(st.characters(codec="utf-8"), max_size=20)


@given(
    st.builds(
        Document,
        id=texts.filter(bool),
        title=texts,
        text=texts,
        payload=st.binary(max_size=20),
    ),
    st.binary(min_size=16, max_size=16),
    st.integers(1, 4),
    st.booleans(),
)
def test_records_come_back_as_they_were(
    document: Document, digest: bytes, passages: int, spans: bool
) -> None:
    numbers = np.arange(2 * passages * spans, dtype=np.uint32).reshape(-1, 2)
    content = Content(document, digest, passages, numbers)
    data = encode_content(content)
    read = decode_content(data)
    assert (read.document, read.digest, read.passages) == (document, digest, passages)
    assert (read.spans == numbers).all()
    version = Version(document.id.encode(), digest, passages, data)
    vectors = Dense(np.arange(3 * passages, dtype=np.float32).reshape(passages, 3))
    record = decode_record(encode_write(version, vectors.to_bytes()))
    assert isinstance(record, WriteRecord)
    assert record.version == version
    assert (dense_from_bytes(record.vectors, passages).rows == vectors.rows).all()
    assert decode_record(encode_delete(version.id)) == DeleteRecord(version.id)


@given(st.lists(st.integers(1, 5), min_size=1, max_size=20), st.data())
def test_visibility_is_a_set_of_rows(lengths: list[int], data: st.DataObject) -> None:
    starts = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    first = data.draw(st.integers(0, len(lengths)))
    live = grown(
        all_live(int(starts[first]), first), int(starts[-1] - starts[first]), len(lengths) - first
    )
    assert live.whole
    dead = sorted(data.draw(st.sets(st.integers(0, len(lengths) - 1))))
    after = masked(live, np.array(dead, dtype=np.int64), starts)
    expected = [
        row for n in range(len(lengths)) if n not in dead for row in range(starts[n], starts[n + 1])
    ]
    assert after.live().tolist() == expected
    assert (after.live_rows, after.live_documents) == (len(expected), len(lengths) - len(dead))
    assert np.flatnonzero(after.of(np.arange(after.rows))).tolist() == expected
    assert [row for row in range(after.rows) if after.one(row)] == expected
    assert live.whole, "the older version is as it was"


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 4))))
def test_ranges(pairs: list[tuple[int, int]]) -> None:
    starts = np.array([start for start, _ in pairs], dtype=np.int64)
    lengths = np.array([length for _, length in pairs], dtype=np.int64)
    expected = [n for start, length in pairs for n in range(start, start + length)]
    assert ranges(starts, starts + lengths).tolist() == expected


@pytest.mark.parametrize("exact", [True, False])
@given(st.integers(1, 20_000), st.integers(1, 1_000_000), st.integers(0, 1_000_000))
def test_the_guard_grows_until_it_scans(exact: bool, top_k: int, live_rows: int, dead: int) -> None:
    live = all_live(8, 8)
    live = type(live)(live.bits, live_rows + dead, live_rows, live_rows)
    ask, turns = guard.first_ask(top_k, live, exact=exact), 0
    while ask != guard.SCAN:
        assert ask > 0
        assert ask <= live.rows
        wider = guard.next_ask(ask, top_k, exact, live_rows)
        assert wider == guard.SCAN or wider > ask
        ask, turns = wider, turns + 1
    assert turns < 25


def test_a_proposal_as_good_as_the_kth_score_is_not_enough() -> None:
    enough = guard.enough_exact(
        np.array([1.0, 1.0, 1.0, 1.0], dtype=np.float32),
        np.array([0.5, 0.25, 0.5, np.inf]),
        np.array([1.5, 1.5, -np.inf, 9.0]),
    )
    assert enough.tolist() == [False, True, False, False]


@given(st.integers(1, 64), st.integers(1, 400))
def test_segments_stay_few_and_rows_are_rebuilt_seldom(tail: int, rounds: int) -> None:
    sizes: list[int] = []
    rebuilt = 0
    for _ in range(rounds):
        plan = policy.plan([Size(rows, rows) for rows in sizes], tail, tail_full=True)
        assert plan is not None
        assert plan.with_tail
        assert plan.segments == tuple(range(len(sizes) - len(plan.segments), len(sizes)))
        merged = tail + sum(sizes[number] for number in plan.segments)
        sizes = [*sizes[: len(sizes) - len(plan.segments)], merged]
        rebuilt += merged
        logarithm = np.log2(sum(sizes) / tail + 1)
        assert len(sizes) <= logarithm + 1
        assert rebuilt <= sum(sizes) * (3 * logarithm + 2)


def test_dead_rows_are_compacted_one_segment_at_a_time() -> None:
    sizes = [Size(100, 80), Size(100, 79), Size(10, 0)]
    assert policy.plan(sizes, 5, tail_full=False) == policy.Plan((1,), with_tail=False)
    assert policy.plan(sizes[:1], 5, tail_full=False) is None


@pytest.mark.parametrize(
    ("index", "rows", "expected"),
    [
        ("auto", 100, (Recipe.FLAT,)),
        ("auto", 5_000, (Recipe.FLAT,)),
        ("auto", 9_000, (Recipe.IVF_PQ, Recipe.FLAT)),
        ("flat", 10**6, (Recipe.FLAT,)),
        ("hnsw", 5_000, (Recipe.HNSW,)),
        ("ivf-pq", 5_000, (Recipe.IVF_PQ,)),
        ("ivf-pq", 500, (Recipe.FLAT,)),
    ],
)
def test_recipes(index: str, rows: int, expected: tuple[Recipe, ...]) -> None:
    assert policy.recipes(index, rows, flat_rows=8_192) == expected


def test_growing_leaves_older_views_alone() -> None:
    array: Growable[np.float32] = Growable(np.float32, (2,))
    views = []
    for number in range(300):
        array.extend(np.full((1, 2), number))
        views.append(array.view())
    for number, view in enumerate(views):
        assert view[:, 0].tolist() == list(range(number + 1))


@pytest.mark.parametrize("shards", [1, 2, 7])
def test_rank_weights_are_how_often_a_hit_is_among_the_best_of_all(shards: int) -> None:
    weights = policy.rank_weights(10, shards)
    owners = np.random.default_rng(0).integers(0, shards, (20_000, 10))
    mine = (owners == 0).sum(axis=1)
    counted = [(mine >= rank).mean() for rank in range(1, 11)]
    assert weights == pytest.approx(counted, abs=0.015)
    assert weights.sum() == pytest.approx(10 / shards)
