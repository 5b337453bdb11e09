"""Calls to the shards of one generation, wherever they are now."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

from google.protobuf.message import Message

from deploy.calls import Calls
from deploy.core.build import Listed
from deploy.core.state import ShardPhase
from deploy.fleet import Fleet
from deploy.reconciler import Reconciler
from deploy.records import Record, key_from_message, key_to_message
from shoal.errors import NotReady
from shoal.ids import DIGEST_BYTES
from shoal.rpc.shard.v1 import shard_pb2

_PAGE = 10_000
_TIMEOUT_S = 120.0


@dataclass(frozen=True, slots=True)
class GenerationShards:
    """The shards of one generation.

    Attributes:
        loop: the running controller.
        name: of the generation's record.
    """

    loop: Reconciler
    name: str

    @property
    def record(self) -> Record:
        """As it is recorded now.

        Raises:
            NotReady: it was dropped.
        """
        record = self.loop.store.collections.get(self.name)
        if record is None:
            raise NotReady(f"generation {self.name} is gone")
        return record

    @property
    def count(self) -> int:
        """How many shards there are."""
        return len(self.record.collection.shards)

    def open(self) -> bool:
        """Every shard is open, and none is being taken over."""
        collection = self.record.collection
        if any(placement.fenced for placement in collection.shards):
            return False
        observed = self.loop.observed()
        views = (
            observed.holder(collection.ref(number), placement)
            for number, placement in enumerate(collection.shards)
        )
        return all(view is not None and view.phase is ShardPhase.OPEN for view in views)

    def epochs(self) -> list[int]:
        """Under which each shard was opened last."""
        return [placement.epoch for placement in self.record.collection.shards]

    async def call(
        self, shard: int, method: str, request: Any, timeout_s: float = _TIMEOUT_S
    ) -> Any:
        """Calls one shard; the request's key is filled in.

        Raises:
            NotReady: its server does not run.
            ShoalError: what the server said.
        """
        collection = self.record.collection
        request.key.CopyFrom(key_to_message(collection.ref(shard)))
        tracked = self.loop.fleet.tracked.get(collection.shards[shard].server)
        if tracked is None or not tracked.view.address:
            raise NotReady(f"the server of shard {shard} of {self.name} does not run")
        calls: Calls = self.loop.calls
        message: Message = request
        return await calls.shard(tracked.view.address, method, message, timeout_s)

    async def statuses(self) -> list[shard_pb2.ShardStatus]:
        """Every shard as it is now.

        Raises:
            ShoalError: a server does not answer.
        """
        wanted = set(self.record.collection.refs())
        servers = {placement.server for placement in self.record.collection.shards}
        found: list[shard_pb2.ShardStatus] = []
        for server in sorted(servers):
            address = self.loop.fleet.tracked[server].view.address
            answer = await self.loop.calls.shard_statuses(address, _TIMEOUT_S)
            found += [status for status in answer if key_from_message(status.key) in wanted]
        return found

    async def listed(self) -> AsyncIterator[Listed]:
        """Every live document by (id hash, id): shards own ascending ranges of hashes."""
        for shard in range(self.count):
            after, last = "", False
            while not last:
                request = shard_pb2.ListDocumentsRequest(after_id=after, max_documents=_PAGE)
                page = await self.call(shard, "ListDocuments", request)
                for at, key in enumerate(page.ids):
                    begin = at * DIGEST_BYTES
                    yield Listed(key, page.digests[begin : begin + DIGEST_BYTES])
                last = page.last
                after = page.ids[-1] if page.ids else ""


def encoder_address(fleet: Fleet, fingerprint: str) -> str:
    """Where a model is served.

    Raises:
        NotReady: nowhere yet.
    """
    for process in fleet.views().values():
        if process.serving and fingerprint in process.fingerprints:
            return process.address
    raise NotReady("no encoder serves the generation's model yet", retry_after_s=0.5)
