"""Coverage, positions, the query cache, admission, the ingest planner."""

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from router.core.admission import Admission
from router.core.cache import CacheEntry, CacheKey, QueryCache
from router.core.coverage import coverage_of, shortfall
from router.core.ingest import Batch, IngestOptions, IngestPlanner, Item, stored_already
from router.core.position import decode_position, encode_position
from router.core.topology import CollectionMap, Effort, TopologyMap, newer
from router.requests import Clock, Plan
from shoal.errors import (
    DeadlineExceeded,
    InsufficientCoverage,
    InvalidRequest,
    NonFiniteVector,
    Overloaded,
    PositionNotReached,
    ShardUnavailable,
)
from shoal.types import Kind, Similarity

UUID = b"u" * 16

# --- coverage ---------------------------------------------------------------


def test_coverage_counts_a_missing_shard_with_its_documents() -> None:
    coverage = coverage_of([10, 20, 30], {1: ShardUnavailable("gone")})
    assert (coverage.documents_covered, coverage.documents_total) == (40, 60)
    assert (coverage.shards_answered, coverage.shards_total) == (2, 3)
    assert [(each.shard, each.reason) for each in coverage.missing] == [(1, "SHARD_UNAVAILABLE")]


def test_an_empty_missing_shard_is_no_full_coverage() -> None:
    missing = {1: ShardUnavailable("gone")}
    coverage = coverage_of([10, 0], missing)
    assert coverage.ratio < 1.0
    assert shortfall(coverage, 1.0, missing) is not None
    assert shortfall(coverage, 0.99, missing) is None


def test_when_every_missing_shard_refuses_work_so_does_the_answer() -> None:
    missing = {
        0: Overloaded("full", retry_after_s=0.1),
        2: Overloaded("full", retry_after_s=0.4),
    }
    error = shortfall(coverage_of([1, 1, 1], missing), 1.0, missing)
    assert isinstance(error, Overloaded)
    assert error.retry_after_s == 0.4
    assert shortfall(coverage_of([1, 1, 1], missing), 0.3, missing) is None


def test_a_shortfall_names_the_shards_and_why() -> None:
    missing = {5: ShardUnavailable("gone"), 2: DeadlineExceeded("late")}
    error = shortfall(coverage_of([1] * 6, missing), 0.9, missing)
    assert isinstance(error, InsufficientCoverage)
    assert error.metadata["missing"] == "2:DEADLINE_EXCEEDED,5:SHARD_UNAVAILABLE"
    assert "2:DEADLINE_EXCEEDED,5:SHARD_UNAVAILABLE" in error.message


def test_the_callers_fault_is_no_matter_of_coverage() -> None:
    missing = {0: NonFiniteVector("NaN")}
    assert shortfall(coverage_of([1, 1], missing), 0.0, missing) is missing[0]


def test_a_position_that_is_not_reached_says_so() -> None:
    missing: dict[int, Any] = {0: PositionNotReached("behind")}
    assert shortfall(coverage_of([1, 1], missing), 1.0, missing) is missing[0]
    missing[1] = ShardUnavailable("gone")
    error = shortfall(coverage_of([1, 1], missing), 1.0, missing)
    assert isinstance(error, InsufficientCoverage)


# --- positions --------------------------------------------------------------


def serving(
    generation: int, shards: int = 3, handed_over: dict[int, tuple[int, ...]] | None = None
) -> CollectionMap:
    return CollectionMap(
        name="papers",
        uuid=UUID,
        generation=generation,
        kind=Kind.SINGLE,
        similarity=Similarity.COSINE,
        dim=3,
        encoder_dim=0,
        fingerprint="",
        chunk_tokens=0,
        chunk_overlap=0,
        servers=(("server-0",),) * shards,
        documents=(0,) * shards,
        handed_over=handed_over or {},
    )


def test_a_position_comes_back() -> None:
    token = encode_position(UUID, 3, [7, 0, 2**63])
    assert decode_position(token, serving(3)) == (7, 0, 2**63)
    assert decode_position(b"", serving(3)) is None


def test_what_another_generation_handed_over_is_reached_and_nothing_else() -> None:
    received = serving(3, 4, {1: (9, 9), 2: (7,)})
    assert decode_position(encode_position(UUID, 2, [7]), received) is None
    assert decode_position(encode_position(UUID, 1, [9, 0]), received) is None
    # Written to a generation after it was gone back to, or never handed over at all.
    for generation, sequences in ((2, [8]), (1, [9, 10]), (1, [9]), (4, [1]), (5, [0])):
        with pytest.raises(PositionNotReached):
            decode_position(encode_position(UUID, generation, sequences), received)


@given(st.binary(min_size=1, max_size=60))
def test_other_bytes_are_no_position(token: bytes) -> None:
    with pytest.raises(InvalidRequest):
        decode_position(token, serving(1))


def test_a_position_of_another_collection_is_refused() -> None:
    for wrong in (encode_position(b"v" * 16, 1, [7]), encode_position(UUID, 1, [7])):
        with pytest.raises(InvalidRequest):
            decode_position(wrong, serving(1))


# --- topology ---------------------------------------------------------------


def test_the_higher_version_wins() -> None:
    assert newer(TopologyMap(version=3), TopologyMap(version=4))
    assert not newer(TopologyMap(version=3), TopologyMap(version=3))
    assert not newer(TopologyMap(version=3), TopologyMap(version=2))


# --- cache ------------------------------------------------------------------


def key(text: str, **changes: Any) -> CacheKey:
    parts = {"fingerprint": "f", "precision": "fp32", "side": "query", "dim": 0, **changes}
    return CacheKey(text=text.encode(), **parts)


def test_everything_that_decides_a_vector_is_in_the_key() -> None:
    cache = QueryCache(100)
    cache.put(key("salt"), CacheEntry(b"1", truncated=False))
    assert cache.get(key("salt")) is not None
    for other in (
        key("Salt"),
        key("salt", fingerprint="g"),
        key("salt", precision="bf16"),
        key("salt", side="document"),
        key("salt", dim=64),
    ):
        assert cache.get(other) is None


def test_the_least_recently_used_goes_first() -> None:
    cache = QueryCache(2)
    for text in ("a", "b"):
        cache.put(key(text), CacheEntry(text.encode(), truncated=False))
    cache.get(key("a"))
    cache.put(key("c"), CacheEntry(b"c", truncated=False))
    assert [cache.get(key(text)) is not None for text in "abc"] == [True, False, True]
    assert len(cache) == 2


def test_a_cache_of_nothing_and_long_texts_hold_nothing() -> None:
    cache = QueryCache(0)
    cache.put(key("a"), CacheEntry(b"a", truncated=False))
    assert len(cache) == 0
    cache = QueryCache(9, text_bytes=3)
    cache.put(key("long"), CacheEntry(b"a", truncated=False))
    assert len(cache) == 0


# --- admission --------------------------------------------------------------


def test_what_is_beyond_the_bound_is_refused_with_a_hint() -> None:
    admission = Admission("open_queries", 2, retry_after_s=0.1)
    with admission.enter(2), pytest.raises(Overloaded) as refused, admission.enter():
        raise AssertionError("it was let in")
    assert refused.value.retry_after_s == 0.1
    assert admission.under_way == 0


def test_a_large_request_is_let_in_when_nothing_else_is() -> None:
    admission = Admission("open_queries", 2, retry_after_s=0.1)
    with admission.enter(9):
        assert admission.under_way == 9


# --- ingest -----------------------------------------------------------------


def item(name: str, shard: int = 0, size: int = 1) -> Item[str]:
    return Item(payload=name, id=name.encode(), shard=shard, size=size)


def planner(**options: Any) -> IngestPlanner[str]:
    return IngestPlanner(IngestOptions(**options))


def test_full_batches_start_and_half_full_ones_wait_for_a_flush() -> None:
    plan = planner(batch_documents=2)
    for name in ("a", "b", "c"):
        plan.add(item(name))
    (batch,) = plan.start(flush=False)
    assert [each.payload for each in batch.items] == ["a", "b"]
    assert not plan.start(flush=False)
    (rest,) = plan.start(flush=True)
    assert [each.payload for each in rest.items] == ["c"]
    assert (batch.number, rest.number) == (0, 1)


def test_a_document_larger_than_a_batch_travels_alone() -> None:
    plan = planner(batch_bytes=10)
    for name, size in (("a", 4), ("big", 50), ("b", 4)):
        plan.add(item(name, size=size))
    sizes = [[each.payload for each in batch.items] for batch in plan.start(flush=True)]
    assert sizes == [["a"], ["big"], ["b"]]


def test_the_window_closes_and_opens() -> None:
    plan = planner(window_documents=2, window_bytes=100)
    plan.add(item("a"))
    assert plan.may_read
    plan.add(item("b"))
    assert not plan.may_read
    for batch in plan.start(flush=True):
        plan.done(batch)
    assert plan.may_read
    plan.add(item("c", size=100))
    assert not plan.may_read
    assert plan.unanswered == (1, 100)


def test_a_later_version_knows_that_an_earlier_one_is_on_its_way() -> None:
    plan = planner()
    first, second, third = item("a"), item("a"), item("a")
    plan.add(first)
    plan.add(second)
    assert (first.again, second.again) == (False, True)
    for batch in plan.start(flush=True):
        plan.done(batch)
    plan.add(third)
    assert not third.again


@settings(max_examples=50, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 9), st.integers(1, 30)), max_size=60),
    st.integers(1, 4),
    st.randoms(use_true_random=False),
)
def test_every_document_is_batched_once_in_its_shards_order(
    documents: list[tuple[int, int]], batches: int, dice: Any
) -> None:
    plan = planner(batch_documents=4, batch_bytes=60, batches=batches)
    running: list[Batch[str]] = []
    seen: dict[int, list[str]] = {}

    def start(flush: bool) -> None:
        for batch in plan.start(flush):
            running.append(batch)
            seen.setdefault(batch.shard, []).extend(each.payload for each in batch.items)
        assert len(running) <= batches

    for number, (name, size) in enumerate(documents):
        plan.add(Item(payload=str(number), id=b"%d" % name, shard=name % 3, size=size))
        start(flush=dice.random() < 0.3)
        if running and dice.random() < 0.5:
            plan.done(running.pop(dice.randrange(len(running))))
    while not plan.idle:
        start(flush=True)
        plan.done(running.pop())
    for shard, payloads in seen.items():
        assert payloads == [str(n) for n, (name, _) in enumerate(documents) if name % 3 == shard]
    assert sum(map(len, seen.values())) == len(documents)
    assert plan.unanswered == (0, 0)


def test_after_an_unknown_write_the_last_version_decides() -> None:
    items = [item("a"), item("b"), item("a")]
    assert stored_already(items, [False, False, True]) == {b"a"}
    assert stored_already(items, [True, True, False]) == {b"b"}


# --- efforts ----------------------------------------------------------------

CALIBRATED = Effort(16, 100, 16, 3_200)


def test_an_effort_is_the_serving_generations_and_grows_with_what_is_wanted() -> None:
    coded = replace(serving(2), kind=Kind.COLBERT, efforts={"normal": CALIBRATED})
    plan = Plan(
        collection=coded,
        request_id="r",
        top_k=10,
        min_coverage=1.0,
        fields=(),
        allow_truncation=False,
        after=None,
        clock=Clock(0, 1),
        how="normal",
    )
    long, dim = bytes(2 * coded.dim * 20), coded.dim
    assert plan.effort(long) == CALIBRATED
    assert replace(plan, top_k=3).effort(long) == CALIBRATED
    assert replace(plan, top_k=95).effort(long).refined == 1_000
    assert plan.effort(bytes(2 * dim * 3)).refined == 534
    assert plan.effort(bytes(2 * dim)).refined == 1_600
    # From here on scoring every document is cheaper.
    assert replace(plan, top_k=20).effort(bytes(2 * dim)) == Effort()
    assert replace(plan, how="exhaustive").effort(long) == Effort()
    # Gone back to a generation without centroids while the question was under way.
    assert replace(plan, collection=replace(coded, efforts={})).effort(long) == Effort()
