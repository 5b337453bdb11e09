"""The adaptive limit, sample by sample."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.core.limit import AdaptiveLimit

MS = 1_000_000
S = 1_000 * MS
FAR = 100 * S

samples = st.lists(
    st.tuples(st.integers(0, 2), st.integers(1, 500), st.integers(1, 10 * S)), max_size=60
)


def observed(*pairs: tuple[int, int], shards: int = 1, times: int = 1) -> AdaptiveLimit:
    """A limit that has seen (open queries, ms) so many times on every shard."""
    limit = AdaptiveLimit(shards)
    for _ in range(times):
        for open_queries, took_ms in pairs:
            for shard in range(shards):
                limit.observe(shard, open_queries, took_ms * MS, 0)
    return limit


def test_without_anything_to_go_by_nothing_is_refused() -> None:
    assert AdaptiveLimit(2).refusal(1_000, FAR, 0) is None
    assert AdaptiveLimit(2).queries() == math.inf


def test_it_is_what_a_shard_answers_in_eight_times_a_lone_querys_time() -> None:
    """20 ms a query, one after the other: 8 take the target, and one more may come."""
    assert observed((1, 20), (8, 160), times=50).queries() == pytest.approx(9)


def test_it_grows_where_messages_share_the_work() -> None:
    alone = observed((1, 100), (8, 800), times=50).queries()
    shared = observed((1, 100), (8, 150), times=50).queries()
    assert shared > 4 * alone


def test_the_slowest_shard_decides() -> None:
    limit = observed((1, 20), (20, 20), shards=2, times=50)
    wide = limit.queries()
    for _ in range(50):
        limit.observe(1, 20, 400 * MS, 0)
    assert limit.queries() < wide / 5


def test_a_silent_shard_does_not_count_while_others_reply() -> None:
    limit = observed((1, 20), (20, 400), shards=2, times=50)
    for _ in range(50):
        limit.observe(0, 200, 20 * MS, 10 * S)
    assert limit.queries() > 100


def test_a_burst_may_pass_where_nothing_queues() -> None:
    calm = observed((1, 20), (4, 40), times=50)
    assert calm.refusal(60, FAR, 0) is None
    busy = observed((1, 20), (8, 160), times=50)
    assert busy.refusal(8, FAR, 0) is None
    assert busy.refusal(9, FAR, 0) is not None


def test_what_would_be_late_is_refused_at_once() -> None:
    limit = observed((1, 20), (10, 200), times=50)
    assert limit.refusal(4, 200 * MS, 0) is None
    refusal = limit.refusal(4, 100 * MS, 0)
    assert refusal is not None
    assert refusal.retry_after_s == pytest.approx(0.09, abs=0.02)


def test_calls_that_nobody_waited_for_say_that_a_shard_is_slow() -> None:
    limit = observed((1, 20), (10, 20), times=50)
    before = limit.queries()
    for _ in range(50):
        limit.outlasted(0, 10, 5 * MS)
    assert limit.queries() == before, "callers that left early say nothing"
    for _ in range(50):
        limit.outlasted(0, 10, 400 * MS)
    assert limit.queries() < before / 5


def test_one_hiccup_is_not_overload() -> None:
    limit = observed((1, 3), (16, 12), times=100)
    before = limit.queries()
    for _ in range(3):
        limit.observe(0, 16, 100 * MS, 0)
    assert 16 < limit.queries() < before


@given(samples, st.integers(1, FAR), st.integers(0, FAR))
def test_a_query_that_finds_nothing_open_is_never_refused(
    seen: list[tuple[int, int, int]], left_ns: int, now_ns: int
) -> None:
    limit = AdaptiveLimit(3)
    for shard, open_queries, took_ns in seen:
        limit.observe(shard, open_queries, took_ns, now_ns)
    assert limit.refusal(0, left_ns, now_ns) is None
    assert limit.queries() >= 4


@given(samples, st.integers(0, 10_000), st.integers(1, FAR))
def test_a_refusal_says_when_to_come_again(
    seen: list[tuple[int, int, int]], open_queries: int, left_ns: int
) -> None:
    limit = AdaptiveLimit(3)
    for shard, company, took_ns in seen:
        limit.observe(shard, company, took_ns, 0)
    refusal = limit.refusal(open_queries, left_ns, 0)
    if refusal is not None:
        assert refusal.retry_after_s is not None
        assert 0.02 <= refusal.retry_after_s <= 5.0


@given(samples.filter(bool), st.integers(2, 50))
def test_it_does_not_depend_on_the_unit_of_time(
    seen: list[tuple[int, int, int]], factor: int
) -> None:
    """Above the shortest target, shards that are `factor` times slower have the same limit."""
    slow, slower = AdaptiveLimit(3), AdaptiveLimit(3)
    for limit, times in ((slow, 1), (slower, factor)):
        for shard in range(3):
            limit.observe(shard, 1, 20 * MS * times, 0)
        for shard, open_queries, took_ns in seen:
            limit.observe(shard, open_queries, (20 * MS + took_ns) * times, 0)
    assert slow.queries() == pytest.approx(slower.queries())
