"""The controller's records: recovered whole, and never written by two controllers."""

from pathlib import Path

import pytest

from deploy.core.creation import Bounds, Wish, check_wish, settle
from deploy.core.state import Placement
from deploy.records import Record, new_record
from deploy.store import Store, Superseded
from shoal.errors import CollectionExists
from shoal.rpc.controller.v1 import controller_pb2
from shoal.storage.directory import open_storage

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
    store.collections["a"] = store.collections["a"].placed(1, "server-1", 7)
    await store.save("a")
    await store.publish(controller_pb2.Topology(version=5))
    again = await opened(tmp_path)
    assert again.collections == store.collections
    assert again.collections["a"].collection.shards == (Placement(), Placement("server-1", 7))
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
    older.collections["a"] = record("a").placed(0, "server-0", 1)
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
