"""Users of a simulated cluster: each writes, deletes and reads documents of its own."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import numpy as np

from deploy.store import TOPOLOGY_KEY
from shoal.errors import ShardUnavailable, ShoalError
from shoal.ids import shard_of
from shoal.rpc.common.v1 import common_pb2
from shoal.rpc.controller.v1 import controller_pb2
from shoal.rpc.shard.v1 import shard_pb2
from shoal.types import Kind
from shoal.wire.arrays import matrix_to_message
from tests.simulation.build_servers import DIM, digest_of

if TYPE_CHECKING:
    from tests.simulation.build_world import World

_PATIENCE_S = 60.0


class User:
    """One user behind one router, which learns of newer topologies some time later.

    Attributes:
        acknowledged: by id, the title that was acknowledged last; None where a delete was.
        open: by id, titles of later attempts whose end is not known.
    """

    def __init__(self, world: World, number: int) -> None:
        self._world, self._number = world, number
        self._versions = 0
        self._topology = controller_pb2.Topology()
        self.acknowledged: dict[str, str | None] = {}
        self.open: dict[str, set[str | None]] = {}
        self._ending = False
        self._done = asyncio.Event()

    async def fill(self, documents: int) -> None:
        """Stores the first documents."""
        for number in range(documents):
            await self._put(f"u{self._number}-{number}")

    async def write_on(self) -> None:
        """Writes until `finish`."""
        dice = self._world.dice
        while not self._ending:
            await self._world.pause(0.4)
            key = f"u{self._number}-{dice.randrange(12)}"
            act = dice.choice([self._put, self._put, self._delete, self._read])
            await act(key)
        self._done.set()

    async def finish(self) -> None:
        """Ends after the write under way, then sees that one more is taken soon."""
        self._ending = True
        await self._done.wait()
        key = f"u{self._number}-last"
        await self._put(key)
        if self.acknowledged.get(key) is None:
            self._world.broken("no write is taken any more")

    def check(self, content: dict[str, bytes]) -> None:
        """What was acknowledged is there, as far as nobody went back."""
        if self._world.went_back:
            return
        for key, title in self.acknowledged.items():
            possible = {title} | self.open.get(key, set())
            digests = {None if each is None else digest_of(key, each) for each in possible}
            if content.get(key) not in digests:
                self._world.broken(f"{key} should be one of {possible}")

    # --- writes -----------------------------------------------------------

    async def _put(self, key: str) -> None:
        self._versions += 1
        title = f"v{self._versions}"
        version = shard_pb2.DocumentVersion(
            document=common_pb2.Document(id=key, title=title),
            digest=digest_of(key, title),
            passage_count=1,
        )
        rows = np.ones((1, DIM), np.float32)
        if self._world.rules.kind is Kind.COLBERT:
            rows = np.ones((2, DIM), np.float16)
            version.row_counts.append(2)
        request = shard_pb2.WriteRequest(versions=[version], vectors=matrix_to_message(rows))

        async def attempt() -> None:
            probe = shard_pb2.ProbeRequest(ids=[key], digests=version.digest)
            found = await self._call(key, "Probe", probe)
            if not found.unchanged[0]:
                await self._call(key, "Write", request)

        await self._patiently(key, title, attempt)

    async def _delete(self, key: str) -> None:
        async def attempt() -> None:
            await self._call(key, "Delete", shard_pb2.DeleteRequest(ids=[key]))

        await self._patiently(key, None, attempt)

    async def _patiently(self, key: str, title: str | None, attempt: Any) -> None:
        self.open.setdefault(key, set()).add(title)
        end_s = self._world.loop.time() + _PATIENCE_S
        while self._world.loop.time() < end_s:
            try:
                await attempt()
            except ShoalError:
                await self._world.pause(0.2)
                continue
            self.acknowledged[key], self.open[key] = title, set()
            return

    async def _read(self, key: str) -> None:
        """Its own writes are seen, through its own router."""
        back = self._world.went_back
        try:
            reply = await self._call(key, "Fetch", shard_pb2.FetchRequest(ids=[key]))
        except ShoalError:
            return
        document = reply.documents[0]
        seen = document.document.title if document.found else None
        possible = {self.acknowledged.get(key)} | self.open.get(key, set())
        if not back and not self._world.went_back and seen not in possible:
            self._world.broken(f"{key} reads as {seen}, should be one of {possible}")

    async def _call(self, key: str, method: str, request: Any) -> Any:
        world = self._world
        if world.chance(0.7):
            newest = controller_pb2.Topology.FromString(world.catalog.get(TOPOLOGY_KEY).value)
            self._topology = newest
        if not self._topology.collections:
            raise ShardUnavailable("the router knows no such collection")
        collection = self._topology.collections[0]
        shard = shard_of(key.encode(), len(collection.shards))
        servers = collection.shards[shard].servers
        addresses = [e.address for e in self._topology.servers if e.name in servers]
        if not addresses:
            raise ShardUnavailable("the shard has no server")
        request.key.CopyFrom(
            shard_pb2.ShardKey(
                collection=collection.settings.uuid, generation=collection.generation, shard=shard
            )
        )
        return await world.network.call(addresses[0], method, request, 5.0)
