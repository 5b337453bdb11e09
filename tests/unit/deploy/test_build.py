"""Generations beside the serving one: differences, efforts, flips that a crash cut short."""

import asyncio
from collections.abc import AsyncIterator, Iterable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deploy.core.build import (
    LEAST_TOKENS,
    GenerationPhase,
    Listed,
    differences,
    training_due,
)
from deploy.core.creation import Bounds, Wish, check_wish, settle
from deploy.core.effort import levels
from deploy.records import Record, new_record, next_record
from deploy.store import Store
from shoal.errors import DiskFull
from shoal.storage.directory import open_storage
from shoal.storage.ports import Catalog

documents = st.dictionaries(
    st.text("abc", min_size=1, max_size=3), st.sampled_from([b"1", b"2"]), max_size=20
)


async def stream(held: dict[str, bytes]) -> AsyncIterator[Listed]:
    for each in sorted((Listed(*item) for item in held.items()), key=lambda each: each.place):
        yield each


@given(documents, documents)
async def test_applying_the_differences_makes_generations_equal(
    source: dict[str, bytes], target: dict[str, bytes]
) -> None:
    async for change in differences(stream(source), stream(dict(target))):
        if change.gone:
            del target[change.id]
        else:
            assert target.get(change.id) != source[change.id]
            target[change.id] = source[change.id]
    assert target == source


def test_training_waits_for_enough_tokens_and_for_quiet() -> None:
    assert not training_due(LEAST_TOKENS - 1, 1, quiet=True)
    assert training_due(LEAST_TOKENS, 10**9, quiet=True)
    assert not training_due(LEAST_TOKENS, 10**9, quiet=False)
    assert training_due(2_000_000, 2_000_000, quiet=False)


def ranks_of(rank: int) -> dict[int, list[list[int]]]:
    return {16: [[rank] * 10] * 20}


def test_a_small_collection_scores_every_document_and_a_large_one_prunes() -> None:
    for level in levels(ranks_of(50), 1_000, 100_000, 32):
        assert level.recall == 1.0
    small = levels(ranks_of(999), 1_000, 100_000, 8)
    assert [(each.probes, each.refined) for each in small] == [(0, 0)] * 3
    large = levels(ranks_of(50), 60_000, 6_000_000, 8)
    for level in large:
        assert (level.probes, level.recall) == (16, 1.0)
        assert 51 <= level.refined <= 60_000 // 20
    assert [each.refined for each in levels({}, 10, 100, 8)] == [0, 0, 0]


BOUNDS = Bounds(max_dim=64, max_shards=8, default_shards=2)


def record() -> Record:
    wish = check_wish(Wish(name="a", encoder="none", dim=4), BOUNDS)
    return new_record(settle(wish, None), b"u" * 16)


async def opened(folder: Path) -> Store:
    store = Store(open_storage(str(folder)).catalog)
    await store.load()
    return store


def phases(store: Store) -> dict[str, tuple[int, GenerationPhase]]:
    return {
        name: (each.collection.generation, each.collection.phase)
        for name, each in store.collections.items()
    }


async def test_a_flip_and_back_are_recovered_as_they_are(tmp_path: Path) -> None:
    store = await opened(tmp_path)
    await store.create(record())
    following = next_record(store.collections["a"], record().settings, 3, trains=False)
    await store.create(following)
    await store.flip("a", "a.2", [4, 2])
    flipped = {
        "a": (2, GenerationPhase.SERVING),
        "a.1": (1, GenerationPhase.PREVIOUS),
    }
    assert phases(store) == flipped
    assert phases(await opened(tmp_path)) == flipped
    await store.flip("a", "a.1")
    again = await opened(tmp_path)
    assert phases(again) == {
        "a": (1, GenerationPhase.SERVING),
        "a.2": (2, GenerationPhase.PREVIOUS),
    }
    assert again.collections["a"].collection.highest == 2
    later = next_record(again.collections["a"], record().settings, 1, trains=True)
    assert (later.collection.generation, later.collection.name) == (3, "a.3")


class Crash(Exception):
    """The controller ends here."""


class Failing:
    """A catalog whose writes fail after some."""

    def __init__(self, catalog: Catalog, writes: int, error: Exception) -> None:
        self._catalog, self._left, self._error = catalog, writes, error

    def _count(self) -> None:
        if not self._left:
            raise self._error
        self._left -= 1

    def put(self, key: str, value: bytes, expected: int) -> int | None:
        self._count()
        return self._catalog.put(key, value, expected)

    def delete(self, key: str) -> None:
        self._count()
        self._catalog.delete(key)


@pytest.mark.parametrize("error", [Crash(), DiskFull("no room")])
@pytest.mark.parametrize("writes", [0, 1, 2, 3])
async def test_a_flip_that_is_cut_short_leaves_one_whole_generation(
    tmp_path: Path, writes: int, error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = await opened(tmp_path)
    await store.create(record())
    await store.create(next_record(store.collections["a"], record().settings, 3, trains=False))
    catalog = open_storage(str(tmp_path)).catalog
    monkeypatch.setattr(store, "_catalog", Failing(catalog, writes, error))
    if writes < 3:
        with pytest.raises(type(error)):
            await store.flip("a", "a.2", [5, 6])
    else:
        await store.flip("a", "a.2", [5, 6])
    before = {"a": (1, GenerationPhase.SERVING), "a.2": (2, GenerationPhase.COPYING)}
    after = {"a": (2, GenerationPhase.SERVING), "a.1": (1, GenerationPhase.PREVIOUS)}
    expected = before if writes < 2 else after
    # What a controller publishes is what the next one reads.
    assert phases(store) == expected
    assert phases(await opened(tmp_path)) == expected
    assert not store.flipping


async def test_a_generation_that_a_crash_kept_too_long_is_dropped(tmp_path: Path) -> None:
    """Killed between the second flip and dropping the generation before the previous one."""
    store = await opened(tmp_path)
    await store.create(record())
    for generation in (2, 3):
        following = next_record(store.collections["a"], record().settings, 1, trains=False)
        await store.create(following)
        await store.flip("a", f"a.{generation}", [generation])
    again = await opened(tmp_path)
    assert phases(again) == {
        "a": (3, GenerationPhase.SERVING),
        "a.2": (2, GenerationPhase.PREVIOUS),
    }
    assert names(again.drops) == ["1"]
    assert again.collections["a"].collection.handed_over == ((1, (2,)), (2, (3,)))


async def test_a_collection_dropped_during_a_flip_stays_dropped(tmp_path: Path) -> None:
    store = await opened(tmp_path)
    await store.create(record())
    await store.create(next_record(store.collections["a"], record().settings, 3, trains=False))
    flip, drop = asyncio.create_task(store.flip("a", "a.2", [1])), store.drop("a")
    await asyncio.gather(flip, drop, return_exceptions=True)
    assert store.collections == {}
    again = await opened(tmp_path)
    assert again.collections == {}
    assert names(again.drops) == ["1", "2"]


async def test_dropping_a_collection_drops_all_its_generations(tmp_path: Path) -> None:
    store = await opened(tmp_path)
    await store.create(record())
    await store.create(next_record(store.collections["a"], record().settings, 3, trains=False))
    await store.flip("a", "a.2", [1, 1])
    await store.drop("a")
    again = await opened(tmp_path)
    assert again.collections == {}
    assert names(again.drops) == ["1", "2"]


def names(drops: Iterable[str]) -> list[str]:
    return sorted(each.rpartition("-")[2] for each in drops)
