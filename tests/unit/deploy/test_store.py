"""The controller's records: recovered whole, and never written by two controllers."""

import asyncio
from collections.abc import Awaitable
from dataclasses import replace
from pathlib import Path

import pytest

from deploy.core.creation import Bounds, Wish, check_wish, settle
from deploy.core.state import Placement, Role
from deploy.core.wanted import Wanted
from deploy.records import Record, new_record
from deploy.store import Store, Superseded
from shoal.errors import CollectionExists, DiskFull
from shoal.rpc.controller.v1 import controller_pb2
from shoal.storage.directory import open_storage
from shoal.types import ShardRef
from tests.unit.deploy.test_build import Failing

BOUNDS = Bounds(max_dim=64, max_shards=8, default_shards=2)


def record(name: str, uuid: bytes = b"u" * 16) -> Record:
    wish = check_wish(Wish(name=name, encoder="none", dim=4), BOUNDS)
    return new_record(settle(wish, None), uuid)


async def opened(folder: Path) -> Store:
    store = Store(open_storage(str(folder)).catalog)
    await store.load()
    return store


async def test_a_restarted_controller_recovers_placements_and_topology(tmp_path: Path) -> None:
    store = await opened(tmp_path)
    await store.create(record("a"))
    store.collections["a"] = store.collections["a"].placed(
        1, Placement("server-1", 7, "server-2", 9)
    )
    await store.save("a")
    await store.publish(controller_pb2.Topology(version=5))
    again = await opened(tmp_path)
    assert again.collections == store.collections
    assert again.collections["a"].collection.shards == (
        Placement(),
        Placement("server-1", 7, "server-2", 9),
    )
    assert again.topology.version == 5


async def test_a_name_is_given_once(tmp_path: Path) -> None:
    store = await opened(tmp_path)
    await store.create(record("a"))
    with pytest.raises(CollectionExists):
        await store.create(record("a", b"v" * 16))
    assert (await opened(tmp_path)).collections["a"].collection.uuid == (b"u" * 16).hex()


async def test_the_older_of_two_controllers_is_superseded(tmp_path: Path) -> None:
    older, newer = await opened(tmp_path), await opened(tmp_path)
    await newer.publish(controller_pb2.Topology(version=1))
    with pytest.raises(Superseded):
        await older.publish(controller_pb2.Topology(version=1))
    await newer.create(record("a"))
    older.collections["a"] = record("a").placed(0, Placement("server-0", 1))
    with pytest.raises(Superseded):
        await older.save("a")


async def test_a_drop_outlives_a_crash_at_each_step(tmp_path: Path) -> None:
    store = await opened(tmp_path)
    await store.create(record("a"))
    dropped = await store.drop("a")
    identity = dropped.collection.identity
    assert (await opened(tmp_path)).drops == {identity: dropped}
    # A crash between writing the drop and deleting the collection's record.
    catalog = open_storage(str(tmp_path)).catalog
    catalog.put("collections/a", dropped.to_message().SerializeToString(), 0)
    again = await opened(tmp_path)
    assert again.collections == {}
    assert again.drops == {identity: dropped}
    await again.forget_drop(identity)
    assert (await opened(tmp_path)).drops == {}


async def test_starts_are_counted_until_the_address_is_forgotten(tmp_path: Path) -> None:
    for starts in (1, 2):
        store = await opened(tmp_path)
        await store.announce("127.0.0.1:1")
        assert store.starts == starts


async def test_the_processes_wanted_outlive_the_controller(tmp_path: Path) -> None:
    store = await opened(tmp_path)
    assert store.wanted is None
    wanted = Wanted.of({Role.ROUTER: 1, Role.SERVER: 3, Role.ENCODER: 0}).without("server-1")
    await store.want(wanted)
    again = await opened(tmp_path)
    assert again.wanted == wanted
    await store.want(wanted)
    with pytest.raises(Superseded):
        await again.want(wanted)


async def test_placements_of_one_record_change_beside_each_other(tmp_path: Path) -> None:
    store = await opened(tmp_path)
    made = record("a")
    await store.create(made)
    refs = made.collection.refs()

    def place(ref: ShardRef) -> Awaitable[bool]:
        return store.place(ref, lambda placement: replace(placement, target=f"s-{ref.shard}"))

    assert await asyncio.gather(*map(place, refs)) == [True, True]
    expected = tuple(Placement(target=f"s-{ref.shard}") for ref in refs)
    assert store.collections["a"].collection.shards == expected
    assert (await opened(tmp_path)).collections["a"].collection.shards == expected
    store.flipping.add("a")
    assert not await store.place(refs[0], lambda _: Placement("x", 1)), "a flip goes first"
    store.flipping.clear()
    await store.drop("a")
    assert not await store.place(refs[0], lambda _: Placement("x", 1))


@pytest.mark.parametrize("writes", [0, 1])
async def test_what_there_is_no_room_to_drop_is_not_dropped(
    tmp_path: Path, writes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = await opened(tmp_path)
    await store.create(record("a"))
    catalog = open_storage(str(tmp_path)).catalog
    with monkeypatch.context() as patched:
        patched.setattr(store, "_catalog", Failing(catalog, writes, DiskFull("no room")))
        with pytest.raises(DiskFull):
            await store.drop("a")
    again = await opened(tmp_path)
    assert (store.collections, store.drops) == (again.collections, again.drops)
    assert len(again.drops) == writes


async def test_what_was_dropped_without_room_does_not_come_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = await opened(tmp_path)
    await store.create(record("a"))
    catalog = open_storage(str(tmp_path)).catalog
    with monkeypatch.context() as patched:
        patched.setattr(store, "_catalog", Failing(catalog, 1, DiskFull("no room")))
        with pytest.raises(DiskFull):
            await store.drop("a")
    (identity,) = store.drops
    await store.forget_drop(identity)
    again = await opened(tmp_path)
    assert (again.collections, again.drops) == ({}, {})


async def test_a_write_whose_caller_leaves_happens_and_is_known(tmp_path: Path) -> None:
    store = await opened(tmp_path)
    creating = asyncio.create_task(store.create(record("a")))
    while not store._turn.locked():
        await asyncio.sleep(0)
    creating.cancel()
    with pytest.raises(asyncio.CancelledError):
        await creating
    assert store.collections == (await opened(tmp_path)).collections
    assert list(store.collections) == ["a"]
