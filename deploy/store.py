"""The controller's records in the catalog, by compare-and-swap."""

import asyncio
import json
from collections.abc import Callable
from typing import TypeVar

from deploy.records import Record, record_from_bytes
from shoal.errors import CollectionExists
from shoal.rpc.controller.v1 import controller_pb2
from shoal.storage.ports import Catalog

CONTROLLER_KEY = "controller"
TOPOLOGY_KEY = "topology"
_COLLECTIONS = "collections/"
_DROPS = "drops/"
T = TypeVar("T")


class Superseded(Exception):
    """Another controller wrote to the catalog: this one must end."""


class Store:
    """What the controller keeps. It remembers the version of each record that it
    read or wrote last; a write that finds another one raises Superseded.

    File operations run on a thread, one at a time.
    """

    def __init__(self, catalog: Catalog) -> None:
        self._catalog = catalog
        self._versions: dict[str, int] = {}
        self._turn = asyncio.Lock()
        self.collections: dict[str, Record] = {}
        """Collections by name, as last read or written."""
        self.drops: dict[str, Record] = {}
        """Dropped collections whose data is still to be deleted, by uuid."""
        self.topology = controller_pb2.Topology()
        """The topology as last read or published."""
        self.starts = 0
        """Controllers that announced themselves since `shoal up`, this one included."""

    async def load(self) -> None:
        """Reads everything, and finishes drops that a crash cut short."""
        await self._run(self._load)

    def _load(self) -> None:
        for key in self._catalog.keys(_DROPS):
            self.drops[key.removeprefix(_DROPS)] = record_from_bytes(self._read(key))
        for key in self._catalog.keys(_COLLECTIONS):
            record = record_from_bytes(self._read(key))
            if record.collection.uuid in self.drops:
                self._catalog.delete(key)
            else:
                self.collections[record.collection.name] = record
        self.topology = controller_pb2.Topology.FromString(self._read(TOPOLOGY_KEY))

    def _read(self, key: str) -> bytes:
        value = self._catalog.get(key)
        self._versions[key] = value.version
        return value.value

    async def announce(self, address: str) -> None:
        """Publishes the controller's address.

        Raises:
            Superseded: another controller announces itself at the same time.
        """

        def write() -> int:
            earlier = self._read(CONTROLLER_KEY)
            starts = 1 + (json.loads(earlier)["starts"] if earlier else 0)
            record = {"address": address, "starts": starts}
            self._write(CONTROLLER_KEY, json.dumps(record).encode())
            return starts

        self.starts = await self._run(write)

    async def create(self, record: Record) -> None:
        """Records a new collection.

        Raises:
            CollectionExists: the name is taken.
        """
        key = _COLLECTIONS + record.collection.name
        data = record.to_message().SerializeToString()
        version = await self._run(lambda: self._catalog.put(key, data, 0))
        if version is None:
            raise CollectionExists(f"there is a collection {record.collection.name} already")
        self._versions[key] = version
        self.collections[record.collection.name] = record

    async def save(self, name: str) -> None:
        """Records a collection's placements as they are now in `collections`; one
        that was dropped meanwhile stays dropped.

        Raises:
            Superseded: another controller wrote it.
        """

        def write() -> None:
            record = self.collections.get(name)
            if record is not None:
                self._write(_COLLECTIONS + name, record.to_message().SerializeToString())

        await self._run(write)

    async def drop(self, name: str) -> Record:
        """Turns a collection's record into one of data to delete."""
        record = self.collections[name]
        data = record.to_message().SerializeToString()
        uuid = record.collection.uuid

        def write() -> None:
            self._write(_DROPS + uuid, data)
            self._catalog.delete(_COLLECTIONS + name)
            self._versions.pop(_COLLECTIONS + name, None)

        del self.collections[name]
        self.drops[uuid] = record
        await self._run(write)
        return record

    async def forget_drop(self, uuid: str) -> None:
        """Removes the record of a dropped collection whose data is gone."""
        await self._run(lambda: self._catalog.delete(_DROPS + uuid))

    async def publish(self, topology: controller_pb2.Topology) -> None:
        """Records a topology, so that routers start without a controller.

        Raises:
            Superseded: another controller published.
        """
        data = topology.SerializeToString()
        await self._run(lambda: self._write(TOPOLOGY_KEY, data))
        self.topology = topology

    def _write(self, key: str, data: bytes) -> None:
        version = self._catalog.put(key, data, self._versions.get(key, 0))
        if version is None:
            raise Superseded(f"another controller wrote {key}")
        self._versions[key] = version

    async def _run(self, call: Callable[[], T]) -> T:
        async with self._turn:
            return await asyncio.to_thread(call)
