"""Builds of generations in seeded worlds; replay one with SHOAL_SIMULATION_SEED."""

import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any
from unittest import mock

import pytest

from deploy import generations
from deploy.core.build import GenerationPhase
from deploy.generations import Generations
from deploy.records import Record
from deploy.shards import GenerationShards
from deploy.store import Store
from shoal.rpc.shard.v1 import shard_pb2
from shoal.types import Kind
from tests.simulation.build_world import Crash, Dials, Violation, World

VICTIMS = ("controller", "server-0", "server-1")


def seeds(count: int) -> range:
    given = os.environ.get("SHOAL_SIMULATION_SEED")
    return range(int(given), int(given) + 1) if given else range(count)


def test_a_few_worlds_keep_every_promise() -> None:
    worlds = [World(seed).run() for seed in seeds(4)]
    assert any(world.flips for world in worlds)


@pytest.mark.slow
def test_many_worlds_keep_every_promise() -> None:
    worlds = [World(seed).run() for seed in seeds(15)]
    if len(worlds) == 15:
        # The worlds are neither all calm nor all broken.
        assert sum(world.flips for world in worlds) > 30
        assert sum(sum(world.faults.values()) for world in worlds) > 200
        assert any(world.went_back for world in worlds)


def test_a_seed_replays_the_same_run() -> None:
    for seed in (2, 4):
        first, second = World(seed).run(), World(seed).run()
        assert (first.digest, first.effects) == (second.digest, second.effects)


def test_a_failure_tells_the_seed_and_what_happened() -> None:
    world = World(0, Dials(), Crash("controller", 5))
    world.broken("planted")
    with pytest.raises(Violation) as failure:
        world.run()
    assert "SHOAL_SIMULATION_SEED=0" in failure.value.__notes__[0]
    assert "controller starts" in failure.value.__notes__[0]


def effects(kind: Kind) -> int:
    return World(1, Dials(kind=kind)).run().effects


@pytest.mark.slow
@pytest.mark.parametrize("victim", VICTIMS)
def test_a_build_outlives_a_kill_at_any_of_its_steps(victim: str) -> None:
    """After each catalog write and each call that changes a shard, by number. Between two of
    them the world outside of the controller is the same, and nothing else outlives it.
    """
    for effect in range(1, effects(Kind.SINGLE) + 1):
        assert World(1, Dials(), Crash(victim, effect)).run().flips >= 1


@pytest.mark.slow
@pytest.mark.parametrize("victim", VICTIMS[:2])
def test_a_trained_build_outlives_a_kill_at_any_of_its_steps(victim: str) -> None:
    """A rebuild, then a codec trained on what it built."""
    for effect in range(1, effects(Kind.COLBERT) + 1):
        assert World(1, Dials(kind=Kind.COLBERT), Crash(victim, effect)).run().flips >= 1


# --- planted bugs -----------------------------------------------------------

set_writers = generations._set_writers
look = Generations._look


async def leaves_the_source_open(shards: GenerationShards, writers: Any) -> Any:
    """Users write on while the last changes are copied."""
    serves = shards.record.collection.phase is GenerationPhase.SERVING
    return await set_writers(shards, shard_pb2.WRITERS_UNSPECIFIED if serves else writers)


async def looks_between_builds_alone(self: Generations, record: Record) -> None:
    """Whoever is closed stays so while a build cannot go on."""
    if self.building(record.settings.name) is None or not self._tasks:
        await look(self, record)


def builds_what_has_served(self: Generations, following: str) -> bool:
    """A generation that was gone back from has its old name again."""
    return following in self._loop.store.collections


def gives_numbers_twice(self: Record, generation: int) -> Record:
    """The next build has the number of one that was given up."""
    return self


def drops_in_memory_first(self: Store, name: str) -> list[Record]:
    """Data goes although the catalog found no room to say so."""
    record = self.collections[name]
    self.drops[record.collection.identity] = record
    return [record]


WISHES = Dials(faulty_s=40.0, wish_s=3.0, documents=18, start_s=0.3)
MUTANTS: Sequence[tuple[str, Callable[..., Any], Dials]] = [
    ("deploy.generations._set_writers", leaves_the_source_open, WISHES),
    (
        "deploy.generations.Generations._look",
        looks_between_builds_alone,
        replace(WISHES, server_kill_s=4.0),
    ),
    (
        "deploy.generations.Generations._is_building",
        builds_what_has_served,
        replace(WISHES, disk_full=0.1, rollbacks=True),
    ),
    (
        "deploy.records.Record.numbered",
        gives_numbers_twice,
        replace(WISHES, kind=Kind.COLBERT, wish_s=1.0, server_kill_s=6.0),
    ),
    ("deploy.store.Store._going", drops_in_memory_first, replace(WISHES, disk_full=0.1)),
]


@pytest.mark.slow
@pytest.mark.parametrize(("target", "mutant", "dials"), MUTANTS)
def test_a_planted_bug_is_found(target: str, mutant: Callable[..., Any], dials: Dials) -> None:
    def worlds() -> None:
        for seed in range(60):
            World(seed, replace(dials)).run()

    with mock.patch(target, mutant), pytest.raises(Violation):
        worlds()
