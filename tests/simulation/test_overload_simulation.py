"""Overload on virtual time: what is accepted is answered in time, whatever is offered."""

from collections.abc import Sequence
from typing import Any

import pytest

from router.core.fanout import FanOut
from shoal.errors import Overloaded
from tests.simulation.overload_world import MS, S, Server, World

WARM_UP_S, SECONDS = 5, 25
SEQUENTIAL = (Server(0, 20 * MS),) * 2
"""Capacity 50/s: 20 ms a query, whatever its company."""
SHARED = (Server(10 * MS, 1 * MS),) * 2
"""A message costs ten times a query of it."""
UNEVEN = (Server(5 * MS, 5 * MS, jitter=0.3), Server(0, 20 * MS, jitter=0.3))
CAPACITY = {SEQUENTIAL: 50.0, SHARED: 800.0, UNEVEN: 42.0}
KINDS = pytest.mark.parametrize(
    "servers", [SEQUENTIAL, SHARED, UNEVEN], ids=["sequential", "shared", "uneven"]
)


class Loaded(World):
    """Under `times` the capacity, from the fifth second on."""

    def __init__(self, servers: Sequence[Server], times: float, **given: Any) -> None:
        rate = CAPACITY[tuple(servers)]
        super().__init__(
            servers,
            lambda now: rate * (0.5 if now < WARM_UP_S * S else times),
            seconds=SECONDS,
            from_ns=2 * WARM_UP_S * S,
            **given,
        )
        self.run()
        self.p99_ms = self.counts.percentile(0.99)
        self.goodput = self.counts.answered_within(2 * WARM_UP_S * S, SECONDS * S)


@pytest.mark.slow
@KINDS
def test_more_than_capacity_changes_neither_goodput_nor_latency(
    servers: Sequence[Server],
) -> None:
    usual = Loaded(servers, 0.8)
    over = [Loaded(servers, times) for times in (2, 5, 10)]
    peak = max(world.goodput for world in (usual, *over))
    for world in over:
        assert world.goodput >= 0.9 * peak
        assert world.p99_ms <= 2 * usual.p99_ms
        assert world.counts.late == 0
    assert usual.counts.refused <= 0.02 * usual.counts.offered


def test_several_routers_share_the_shards_without_talking() -> None:
    usual, over = (Loaded(SEQUENTIAL, times, routers=3) for times in (0.8, 10))
    assert over.goodput >= 0.9 * CAPACITY[SEQUENTIAL]
    assert over.p99_ms <= 4 * usual.p99_ms, "each keeps four queries at least"


@pytest.mark.parametrize("deadline_ms", [100, 300])
def test_what_cannot_be_in_time_is_not_computed(deadline_ms: int) -> None:
    world = Loaded(SEQUENTIAL, 5, deadline_ns=deadline_ms * MS)
    assert world.goodput >= 0.8 * CAPACITY[SEQUENTIAL]
    assert world.counts.late <= 0.05 * world.counts.offered


def test_after_a_burst_it_is_as_before() -> None:
    world = World(
        SEQUENTIAL,
        lambda now: 500.0 if 5 * S <= now < 8 * S else 25.0,
        seconds=30,
        from_ns=13 * S,
    ).run()
    assert world.counts.refused == 0
    assert world.counts.percentile(0.99) <= 150


def test_a_shard_that_hangs_does_not_close_the_door_for_those_who_do_without() -> None:
    hangs = Server(0, 20 * MS, hangs_from_ns=5 * S)
    world = World(
        [Server(0, 20 * MS), hangs], lambda _: 25.0, seconds=25, from_ns=10 * S, deadline_ns=2 * S
    ).run()
    assert world.counts.refused <= 0.05 * world.counts.offered


class Unlimited(FanOut[int]):
    """Takes whatever comes."""

    def refusal(self, left_ns: int, now_ns: int) -> Overloaded | None:
        return None


class Counting(FanOut[int]):
    """A fixed number, as good as any for some shard and wrong for this one."""

    def refusal(self, left_ns: int, now_ns: int) -> Overloaded | None:
        return Overloaded("full", retry_after_s=1.0) if self.open_queries >= 64 else None


@pytest.mark.parametrize("mutant", [Unlimited, Counting])
def test_without_the_limit_it_fails(mutant: type[FanOut[int]]) -> None:
    usual = Loaded(SEQUENTIAL, 0.8)
    assert Loaded(SEQUENTIAL, 2, make=mutant).p99_ms > 2 * usual.p99_ms
