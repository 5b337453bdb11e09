"""The fan-out core, event by event."""

from typing import Any

import pytest

from router.core.fanout import (
    NEVER,
    CancelCall,
    FanOut,
    Finish,
    Query,
    RefreshTopology,
    Send,
)
from router.core.options import FanOutOptions
from router.core.pacing import Load, Pacing, hold_until
from shoal.errors import EmptyText, Overloaded, ShardUnavailable, StaleTopology

MS = 1_000_000
ONE_EACH = [["a"], ["b"]]


def core(placement: Any = None, **options: Any) -> FanOut[str]:
    options.setdefault("pacing", Pacing(hold_ns=0))
    return FanOut(placement or ONE_EACH, FanOutOptions(**options))


def query(name: str = "q", deadline_ms: int = 100) -> Query[str]:
    return Query(payload=name, deadline_ns=deadline_ms * MS)


def of(actions: list[Any], kind: type) -> list[Any]:
    return [action for action in actions if isinstance(action, kind)]


def submit(fan_out: FanOut[str], *queries: Query[str], now: int = 0) -> list[Send[str]]:
    return of(fan_out.submit(queries, now), Send)


def names(finish: Finish[str]) -> list[str]:
    return [each.payload for each in finish.queries]


def test_a_lone_query_leaves_at_once_to_every_shard() -> None:
    sends = submit(core(), query())
    assert [(send.shard, send.server) for send in sends] == [(0, "a"), (1, "b")]


def test_it_ends_when_every_shard_has_answered() -> None:
    fan_out = core()
    first, second = submit(fan_out, query())
    assert not of(fan_out.replied(first.attempt, "x", {}, 1), Finish)
    (finish,) = of(fan_out.replied(second.attempt, "y", {}, 2), Finish)
    assert [(part.shard, part.reply) for part in finish.parts] == [(0, "x"), (1, "y")]
    assert finish.missing == [{}]
    assert fan_out.wake_ns == NEVER


def test_queries_that_come_while_a_round_is_under_way_leave_together() -> None:
    fan_out = core(busy_messages=1)
    sends = submit(fan_out, query("first"))
    assert not submit(fan_out, query("second"))
    assert not submit(fan_out, query("third"))
    fan_out.replied(sends[0].attempt, "x", {}, MS)
    after = of(fan_out.replied(sends[1].attempt, "x", {}, MS), Send)
    assert [[each.payload for each in send.queries] for send in after] == [["second", "third"]] * 2


def test_a_straggler_holds_the_next_round_only_so_long() -> None:
    fan_out = core(busy_messages=1, straggler_wait_ns=10 * MS)
    sends = submit(fan_out, query("first"))
    fan_out.replied(sends[0].attempt, "x", {}, 0)
    assert not submit(fan_out, query("second"), now=MS)
    assert fan_out.wake_ns == 11 * MS
    assert len(of(fan_out.tick(11 * MS), Send)) == 2


def usual(fan_out: FanOut[str], took_ms: int, from_ms: int = 0) -> None:
    """One question after the other, which every shard answers in so long."""
    for number in range(10):
        begin = (from_ms + number * took_ms) * MS
        for send in submit(fan_out, query(deadline_ms=10_000), now=begin):
            fan_out.replied(send.attempt, "x", {}, begin + took_ms * MS)


def test_a_shard_that_takes_as_long_as_always_is_no_straggler() -> None:
    fan_out = core(busy_messages=1, straggler_wait_ns=10 * MS)
    usual(fan_out, took_ms=50)
    submit(fan_out, query("first", 10_000), now=1_000 * MS)
    submit(fan_out, query("second", 10_000), now=1_001 * MS)
    assert fan_out.wake_ns == 1_201 * MS, "four times 50 ms"


def test_a_lane_that_is_not_patient_waits_as_it_is_told() -> None:
    fan_out = core(busy_messages=1, straggler_wait_ns=10 * MS, patient=False)
    usual(fan_out, took_ms=50)
    submit(fan_out, query("first", 10_000), now=1_000 * MS)
    submit(fan_out, query("second", 10_000), now=1_001 * MS)
    assert fan_out.wake_ns == 1_011 * MS


def test_the_door_closes_when_a_shard_answers_too_slowly() -> None:
    fan_out = core([["a"]], busy_messages=99)
    usual(fan_out, took_ms=20)
    sends = [
        send
        for _ in range(30)
        for send in submit(fan_out, query(deadline_ms=10_000), now=1_000 * MS)
    ]
    assert fan_out.refusal(10_000 * MS, 1_000 * MS) is None, "nothing is known of many"
    for number, send in enumerate(sends[:10], 1):
        fan_out.replied(send.attempt, "x", {}, (1_000 + 20 * number) * MS)
    refusal = fan_out.refusal(10_000 * MS, 1_200 * MS)
    assert refusal is not None
    assert refusal.retry_after_s == pytest.approx(0.4, abs=0.1)


def test_a_round_that_nobody_waits_for_any_more_is_a_lesson() -> None:
    fan_out = core([["a"]], busy_messages=9)
    usual(fan_out, took_ms=20)
    for _ in range(30):
        submit(fan_out, query(deadline_ms=1_300), now=1_000 * MS)
    fan_out.tick(1_300 * MS)
    assert fan_out.open_queries == 0
    assert fan_out.limit < 30


def test_a_shard_at_its_bound_is_missing_for_new_queries_and_no_more() -> None:
    fan_out = core(busy_messages=9, shard_messages=2)
    for _ in range(2):
        sends = submit(fan_out, query())
        fan_out.replied(sends[0].attempt, "x", {}, 0)
    (send,) = submit(fan_out, query("late"))
    assert send.shard == 0
    (finish,) = of(fan_out.replied(send.attempt, "x", {}, 0), Finish)
    assert isinstance(finish.missing[0][1], Overloaded)
    assert finish.missing[0][1].retry_after_s == pytest.approx(0.08)


def test_a_deadline_ends_a_query_with_what_is_there() -> None:
    fan_out = core()
    sends = submit(fan_out, query("short", 5), query("long", 50))
    fan_out.replied(sends[0].attempt, "x", {}, MS)
    assert fan_out.wake_ns == 5 * MS
    actions = fan_out.tick(5 * MS)
    (finish,) = of(actions, Finish)
    assert names(finish) == ["short"]
    assert {shard: error.reason for shard, error in finish.missing[0].items()} == {
        1: "DEADLINE_EXCEEDED"
    }
    assert not of(actions, CancelCall), "another query still wants the call"
    (finish,) = of(fan_out.replied(sends[1].attempt, "y", {}, 6 * MS), Finish)
    assert names(finish) == ["long"]


def test_a_call_is_cancelled_when_nobody_wants_it() -> None:
    fan_out = core()
    one, two = query("one"), query("two")
    sends = submit(fan_out, one, two)
    assert not of(fan_out.cancel(one, 0), CancelCall)
    cancelled = of(fan_out.cancel(two, 0), CancelCall)
    assert {action.attempt for action in cancelled} == {send.attempt for send in sends}
    assert fan_out.outstanding(0) == (0, 0)
    assert fan_out.open_queries == 0


def test_late_and_duplicate_replies_change_nothing() -> None:
    fan_out = core([["a"]])
    (send,) = submit(fan_out, query())
    assert of(fan_out.replied(send.attempt, "x", {}, 0), Finish)
    assert fan_out.replied(send.attempt, "again", {}, 0) == []
    assert fan_out.failed(send.attempt, ShardUnavailable("late"), 0) == []
    assert fan_out.outstanding(0) == (0, 0)


def test_an_error_goes_to_another_replica_once() -> None:
    fan_out = core([["a", "b"]])
    (send,) = submit(fan_out, query())
    (other,) = of(fan_out.failed(send.attempt, ShardUnavailable("gone"), MS), Send)
    assert {send.server, other.server} == {"a", "b"}
    (finish,) = of(fan_out.failed(other.attempt, ShardUnavailable("gone too"), MS), Finish)
    assert finish.missing[0][0].message == "gone too"


def test_an_error_of_the_callers_is_not_tried_elsewhere() -> None:
    fan_out = core([["a", "b"]])
    (send,) = submit(fan_out, query())
    assert of(fan_out.failed(send.attempt, EmptyText("no words"), MS), Finish)


def test_no_replica_is_tried_after_the_deadline() -> None:
    fan_out = core([["a", "b"]])
    (send,) = submit(fan_out, query(deadline_ms=5))
    assert not of(fan_out.failed(send.attempt, ShardUnavailable("gone"), 5 * MS), Send)


def test_the_least_loaded_replica_is_asked() -> None:
    fan_out = core([["a", "b"]], busy_messages=9)
    assert [submit(fan_out, query())[0].server for _ in range(4)] == ["a", "b", "a", "b"]


def test_a_stale_topology_is_read_once_for_all_and_asked_again() -> None:
    fan_out = core()
    sends = submit(fan_out, query())
    assert of(fan_out.failed(sends[0].attempt, StaleTopology("moved"), 0), RefreshTopology)
    assert not of(fan_out.failed(sends[1].attempt, StaleTopology("moved"), 0), RefreshTopology)
    fan_out.place([["c"], ["d"]])
    again = of(fan_out.refreshed(True, MS), Send)
    assert [send.server for send in again] == ["c", "d"]
    fan_out.replied(again[0].attempt, "x", {}, MS)
    (finish,) = of(fan_out.failed(again[1].attempt, StaleTopology("still"), MS), Finish)
    assert isinstance(finish.missing[0][1], StaleTopology)


def test_a_generation_that_is_gone_is_not_asked_again() -> None:
    fan_out = core()
    sends = submit(fan_out, query())
    fan_out.replied(sends[0].attempt, "x", {}, 0)
    fan_out.failed(sends[1].attempt, StaleTopology("moved"), 0)
    actions = fan_out.refreshed(False, MS)
    assert not of(actions, Send)
    assert of(actions, Finish)


def test_a_shard_without_a_server_is_missing_at_once() -> None:
    fan_out = core([["a"], []])
    (send,) = submit(fan_out, query())
    (finish,) = of(fan_out.replied(send.attempt, "x", {}, 0), Finish)
    assert finish.missing[0][1].reason == "SHARD_UNAVAILABLE"


def test_a_refused_query_does_not_fail_its_mates() -> None:
    fan_out = core([["a"]])
    (send,) = submit(fan_out, query("bad"), query("good"))
    (finish,) = of(fan_out.replied(send.attempt, "x", {0: Overloaded("no")}, 0), Finish)
    assert [len(missing) for missing in finish.missing] == [1, 0]


@pytest.mark.parametrize(
    ("bound", "expected"), [({"round_queries": 3}, [3, 3, 1]), ({"round_cost": 25}, [2, 2, 2, 1])]
)
def test_rounds_are_bounded_by_count_and_cost(bound: dict[str, int], expected: list[int]) -> None:
    many = [Query(payload=str(number), deadline_ns=MS, cost=10) for number in range(7)]
    sends = submit(core([["a"]], busy_messages=9, **bound), *many)
    assert [len(send.queries) for send in sends] == expected


def test_a_query_whose_time_is_over_before_it_leaves_is_told_so() -> None:
    fan_out = core([["a"]], busy_messages=1, straggler_wait_ns=100 * MS)
    submit(fan_out, query("first"))
    submit(fan_out, query("second", 5), now=MS)
    (finish,) = of(fan_out.tick(5 * MS), Finish)
    assert names(finish) == ["second"]
    assert finish.round_size == 0


@pytest.mark.parametrize(
    ("peak", "waiting", "until"),
    [(1, 1, 0), (7, 1, 0), (8, 3, 13), (8, 4, 0), (64, 31, 13), (64, 32, 0)],
)
def test_rounds_are_held_only_when_loaded(peak: int, waiting: int, until: int) -> None:
    pacing = Pacing(hold_ns=3, hold_from=8, hold_share=0.5)
    assert hold_until(pacing, peak, waiting, oldest_ns=10) == until


def test_a_peak_is_forgotten_after_two_windows() -> None:
    load = Load(100)
    assert load.observe(0, 9) == 9
    assert load.observe(150, 2) == 9
    assert load.observe(250, 1) == 2
    assert load.observe(950, 1) == 1
