"""Seeded worlds around the fan-out core; replay one with SHOAL_SIMULATION_SEED."""

import os
from collections.abc import Callable
from typing import Any

import pytest

from router.core.fanout import FanOut, Part, Query
from tests.simulation.router_world import World

SEEDS = 300


def run(seed: int, make: Callable[..., Any] = FanOut) -> World:
    try:
        return World(seed, make).run()
    except Exception as error:
        error.add_note(f"replay with SHOAL_SIMULATION_SEED={seed}")
        raise


def seeds(count: int) -> range:
    given = os.environ.get("SHOAL_SIMULATION_SEED")
    return range(int(given), int(given) + 1) if given else range(count)


def test_a_few_worlds_get_right_answers_in_time() -> None:
    worlds = [run(seed) for seed in seeds(25)]
    assert all(world.answered for world in worlds)


@pytest.mark.slow
def test_many_worlds_get_right_answers_in_time() -> None:
    worlds = [run(seed) for seed in seeds(SEEDS)]
    if len(worlds) == SEEDS:
        # The worlds are neither all calm nor all broken.
        answered = sum(world.answered for world in worlds)
        full = sum(world.full for world in worlds)
        assert answered > 10_000
        assert 0.2 < full / answered < 0.98
        assert any(world.refreshes for world in worlds)


def test_a_seed_replays_the_same_run() -> None:
    for seed in range(0, 40, 4):
        assert run(seed).trace == run(seed).trace


class CountsALateReply(FanOut[Any]):
    """Takes a second reply of an attempt that is over."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._over: dict[int, Any] = {}

    def replied(self, attempt: int, reply: object, refused: Any, now_ns: int) -> Any:
        if attempt in self._over:
            round_, ask = self._over[attempt]
            round_.parts.append(Part(ask.shard, ask.rows, reply))
        elif attempt in self._attempts:
            self._over[attempt] = self._attempts[attempt]
        return super().replied(attempt, reply, refused, now_ns)


class IgnoresDeadlines(FanOut[Any]):
    """Waits for the slowest shard, whatever the time."""

    def _expire(self, round_: Any, now_ns: int, actions: Any) -> None:
        round_.next_deadline_ns = now_ns + 10**12


class LeaksPermits(FanOut[Any]):
    """Does not give back what a cancelled call held."""

    def _drop_if_unwanted(self, round_: Any, actions: Any) -> None:
        if not round_.open:
            self._rounds.pop(round_, None)
            for ask in round_.asks.values():
                self._attempts.pop(ask.attempt, None)


class ForgetsBounds(FanOut[Any]):
    """Lets a hung shard pile up messages."""

    def _full(self, shard: Any, more: int) -> bool:
        return False


class HidesRefusals(FanOut[Any]):
    """Counts a shard that refused a query as one that answered it."""

    def replied(self, attempt: int, reply: object, refused: Any, now_ns: int) -> Any:
        return super().replied(attempt, reply, {}, now_ns)


class AnswersTheGone(FanOut[Any]):
    """Does not notice that a caller has left."""

    def cancel(self, query: Query[Any], now_ns: int) -> Any:
        return []


MUTANTS = [
    CountsALateReply,
    IgnoresDeadlines,
    LeaksPermits,
    ForgetsBounds,
    HidesRefusals,
    AnswersTheGone,
]


@pytest.mark.parametrize("mutant", MUTANTS)
def test_a_planted_bug_is_found(mutant: Callable[..., Any]) -> None:
    def worlds() -> None:
        for seed in range(100):
            World(seed, mutant).run()

    with pytest.raises(AssertionError):
        worlds()
