"""Generations beside the serving one: differences, efforts, flips that a crash cut short."""

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
from shoal.storage.directory import open_storage

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
    await store.flip("a", "a.2")
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


@pytest.mark.parametrize("writes", [0, 1, 2, 3])
async def test_a_flip_that_is_cut_short_leaves_one_whole_generation(
    tmp_path: Path, writes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = await opened(tmp_path)
    await store.create(record())
    await store.create(next_record(store.collections["a"], record().settings, 3, trains=False))
    left = iter([True] * writes)

    def counted(name: str) -> None:
        original = getattr(store, name)

        def call(*arguments: object) -> None:
            if not next(left, False):
                raise Crash
            original(*arguments)

        monkeypatch.setattr(store, name, call)

    for name in ("_write", "_delete"):
        counted(name)
    if writes < 3:
        with pytest.raises(Crash):
            await store.flip("a", "a.2")
    else:
        await store.flip("a", "a.2")
    found = phases(await opened(tmp_path))
    before = {"a": (1, GenerationPhase.SERVING), "a.2": (2, GenerationPhase.COPYING)}
    after = {"a": (2, GenerationPhase.SERVING), "a.1": (1, GenerationPhase.PREVIOUS)}
    assert found == (before if writes < 2 else after)


async def test_dropping_a_collection_drops_all_its_generations(tmp_path: Path) -> None:
    store = await opened(tmp_path)
    await store.create(record())
    await store.create(next_record(store.collections["a"], record().settings, 3, trains=False))
    await store.flip("a", "a.2")
    await store.drop("a")
    again = await opened(tmp_path)
    assert again.collections == {}
    assert names(again.drops) == ["1", "2"]


def names(drops: Iterable[str]) -> list[str]:
    return sorted(each.rpartition("-")[2] for each in drops)
