"""The controller's records in the catalog, by compare-and-swap."""

import asyncio
import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TypeVar

from deploy.core.build import GenerationPhase
from deploy.core.state import Placement
from deploy.core.wanted import Wanted
from deploy.records import Record, record_from_bytes
from shoal.errors import CollectionExists, NotReady
from shoal.rpc.controller.v1 import controller_pb2
from shoal.storage.ports import Catalog
from shoal.types import ShardRef

CONTROLLER_KEY = "controller"
TOPOLOGY_KEY = "topology"
WANTED_KEY = "processes"
_COLLECTIONS = "collections/"
_DROPS = "drops/"
T = TypeVar("T")


class Superseded(Exception):
    """Another controller wrote to the catalog: this one must end."""


class Store:
    """What the controller keeps. It remembers the version of each record that it
    read or wrote last; a write that finds another one raises Superseded.

    File operations run on a thread, one at a time. Memory follows the catalog, also where a
    write fails half way or its caller leaves: what others see in memory is durable.
    """

    def __init__(self, catalog: Catalog) -> None:
        self._catalog = catalog
        self._versions: dict[str, int] = {}
        self._turn = asyncio.Lock()
        self.collections: dict[str, Record] = {}
        """Generations by the names of their records, as last read or written."""
        self.drops: dict[str, Record] = {}
        """Dropped generations whose data is still to be deleted, by identity."""
        self.topology = controller_pb2.Topology()
        """The topology as last read or published."""
        self.wanted: Wanted | None = None
        """The processes that should run; None where that was never recorded."""
        self.starts = 0
        """Controllers that announced themselves since `shoal up`, this one included."""
        self.flipping: set[str] = set()
        """Names of records of which one is about to serve instead of the other."""
        self._orders = 0

    async def load(self) -> None:
        """Reads everything, and finishes drops that a crash cut short."""
        await self._run(self._load)

    def _load(self) -> None:
        for key in self._catalog.keys(_DROPS):
            self.drops[key.removeprefix(_DROPS)] = record_from_bytes(self._read(key))
        for key in self._catalog.keys(_COLLECTIONS):
            record = record_from_bytes(self._read(key))
            if record.collection.identity in self.drops:
                self._delete(key)
            else:
                self.collections[record.collection.name] = record
        self._finish_flips()
        wanted = self._read(WANTED_KEY)
        self.wanted = Wanted.from_json(json.loads(wanted)) if wanted else None
        self.topology = controller_pb2.Topology.FromString(self._read(TOPOLOGY_KEY))

    def _finish_flips(self) -> None:
        """Removes what a crash in the middle of a flip or a drop has left.

        The serving record decides. Another one of its generation is an earlier or a coming
        name of it; one that served and is not the previous one it names is to be dropped; so
        is any without a serving record, for its collection was dropped.
        """
        for name, record in list(self.collections.items()):
            own = record.collection
            if own.phase is GenerationPhase.SERVING:
                continue
            serving = self.collections.get(record.settings.name)
            same = serving is not None and serving.collection.identity == own.identity
            served = own.phase is GenerationPhase.PREVIOUS
            if not same and (
                serving is None or (served and own.generation != serving.collection.previous)
            ):
                self._put_drop(record)
            elif not same:
                continue
            self._delete(_COLLECTIONS + name)
            del self.collections[name]

    def _put_drop(self, record: Record) -> None:
        identity = record.collection.identity
        self._write(_DROPS + identity, record.to_message().SerializeToString())
        self.drops[identity] = record

    def _delete(self, key: str) -> None:
        self._catalog.delete(key)
        self._versions.pop(key, None)

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

    def next_order(self) -> int:
        """A number above all that this controller and those before it have given."""
        self._orders += 1
        return (self.starts << 32) + self._orders

    async def create(self, record: Record) -> None:
        """Records a new collection.

        Raises:
            CollectionExists: the name is taken.
        """
        name = record.collection.name
        key, data = _COLLECTIONS + name, record.to_message().SerializeToString()
        created = False

        def write() -> None:
            nonlocal created
            version = self._catalog.put(key, data, 0)
            if version is None:
                raise CollectionExists(f"there is a collection {name} already")
            self._versions[key], created = version, True

        try:
            await self._run(write)
        finally:
            if created:
                self.collections[name] = record

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

    async def want(self, wanted: Wanted) -> None:
        """Records the processes that should run.

        Raises:
            Superseded: another controller did.
        """
        data = json.dumps(wanted.to_json()).encode()

        def write() -> None:
            self._write(WANTED_KEY, data)
            self.wanted = wanted

        await self._run(write)

    def named(self, ref: ShardRef) -> str:
        """The name of the record of a shard's generation, which a flip changes; empty if
        there is none.
        """
        for name, record in self.collections.items():
            own = record.collection
            if own.uuid == ref.collection and own.generation == ref.generation:
                return name
        return ""

    async def place(self, ref: ShardRef, change: Callable[[Placement], Placement]) -> bool:
        """Records a shard's placement anew. Memory follows the catalog: what is published
        is durable. False if its generation was dropped, or is just being flipped.

        Raises:
            Superseded: another controller wrote the record.
        """
        name = self.named(ref)

        def changed() -> Record | None:
            record = self.collections.get(name)
            if record is None or name in self.flipping or self.named(ref) != name:
                return None
            return record.placed(ref.shard, change(record.collection.shards[ref.shard]))

        written = False

        def write() -> None:
            nonlocal written
            record = changed()
            if record is not None:
                self._write(_COLLECTIONS + name, record.to_message().SerializeToString())
                written = True

        after: Record | None = None
        try:
            await self._run(write)
        finally:
            # Meanwhile other shards of the record may have been placed.
            after = changed() if written else None
            if after is not None:
                self.collections[name] = after
        return after is not None

    async def drop(self, name: str) -> Record:
        """Turns a generation's record into one of data to delete.

        Dropping the one that serves drops the collection: what is left of it goes too.

        Raises:
            NotReady: it was dropped meanwhile.
            DiskFull: no room; what was not dropped yet is as it was.
        """
        dropped: list[Record] = []

        def write() -> None:
            for each in self._going(name):
                data = each.to_message().SerializeToString()
                self._write(_DROPS + each.collection.identity, data)
                dropped.append(each)
                self._delete(_COLLECTIONS + each.collection.name)

        try:
            await self._run(write)
        finally:
            for each in dropped:
                del self.collections[each.collection.name]
                self.drops[each.collection.identity] = each
        return dropped[0]

    def _going(self, name: str) -> list[Record]:
        """The generations that go when one does."""
        record = self.collections.get(name)
        if record is None:
            raise NotReady(f"{name} was dropped meanwhile")
        if record.collection.phase is not GenerationPhase.SERVING:
            return [record]
        others = [
            each
            for each in list(self.collections.values())
            if each is not record and each.settings.name == record.settings.name
        ]
        # The serving record goes first: without it the others are known to be leftovers.
        return [record, *others]

    async def forget_drop(self, identity: str) -> None:
        """Removes the record of a dropped generation whose data is gone.

        Raises:
            DiskFull: no room; its data has to be deleted once more.
        """
        name = self.drops[identity].collection.name

        def write() -> None:
            if name not in self.collections:
                self._delete(_COLLECTIONS + name)  # where there was no room when it was dropped
            self._delete(_DROPS + identity)

        await self._run(write)
        del self.drops[identity]

    async def flip(self, name: str, to: str, handed_over: Sequence[int] | None = None) -> None:
        """Has another generation of a collection serve, in one compare-and-swap.

        Meanwhile neither record's shards are opened (see `flipping`).

        Args:
            name: of the collection.
            to: name of the record of the generation that is to serve.
            handed_over: positions of the one that serves whose documents it holds; None
                where it is gone back to.

        Raises:
            Superseded: another controller wrote one of the records.
            NotReady: the collection was dropped meanwhile.
            DiskFull: no room; the old generation serves.
        """
        old, new = self.collections[name], self.collections[to]
        previous = old.as_phase(GenerationPhase.PREVIOUS)
        serving = _flipped(old, new, handed_over)

        flipped = False

        def write() -> None:
            nonlocal flipped
            if self.collections.get(name) is not old:
                raise NotReady(f"{name} was dropped meanwhile")
            before = _COLLECTIONS + previous.collection.name
            self._write(before, previous.to_message().SerializeToString())
            self._write(_COLLECTIONS + name, serving.to_message().SerializeToString())
            flipped = True
            self._delete(_COLLECTIONS + to)

        self.flipping |= {name, to}
        try:
            await self._run(write)
        finally:
            self.flipping -= {name, to}
            if flipped:
                del self.collections[to]
                self.collections[name] = serving
                self.collections[previous.collection.name] = previous

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
        """What has begun happens: whoever leaves meanwhile leaves after it."""
        async with self._turn:
            work = asyncio.ensure_future(asyncio.to_thread(call))
            try:
                return await asyncio.shield(work)
            except asyncio.CancelledError:
                await asyncio.gather(work, return_exceptions=True)
                raise


def _flipped(old: Record, new: Record, handed_over: Sequence[int] | None) -> Record:
    """The record of a generation as it serves in the place of another one."""
    serving = new.as_phase(GenerationPhase.SERVING)
    received = new.collection.handed_over
    if handed_over is not None:
        received = (*old.collection.handed_over, (old.collection.generation, tuple(handed_over)))
    collection = replace(
        serving.collection,
        highest=max(old.collection.highest, new.collection.highest),
        previous=old.collection.generation,
        handed_over=received,
    )
    return replace(serving, collection=collection)
