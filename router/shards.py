"""Calls to the one shard that owns a document: fetch, probe, write, delete."""

import time
from dataclasses import dataclass
from typing import Any

from google.protobuf.message import Message

from router.core.topology import CollectionMap
from router.peers import Peers, invoke
from router.topology import TopologyFollower
from shoal.errors import (
    Cancelled,
    ClusterUnreachable,
    DeadlineExceeded,
    NotReady,
    ShardUnavailable,
    ShoalError,
    StaleTopology,
)

_ELSEWHERE = (ClusterUnreachable, Cancelled, NotReady)


@dataclass(frozen=True, slots=True)
class ShardCall:
    """One call to one shard.

    Attributes:
        collection: the map that the caller works with.
        shard: its number.
        method: name of the RPC.
        request: complete, with its key.
        any_replica: reads may go to any replica; writes go to the first.
    """

    collection: CollectionMap
    shard: int
    method: str
    request: Message
    any_replica: bool


class ShardCalls:
    """Finds a shard's server, calls it, and looks again when it has moved.

    Args:
        follower: the topology.
        peers: channels.
    """

    def __init__(self, follower: TopologyFollower, peers: Peers) -> None:
        self._follower = follower
        self._peers = peers

    async def call(self, call: ShardCall, deadline_ns: int) -> Any:
        """Calls by the deadline; another replica, or a newer topology, is tried once.

        Raises:
            ShardUnavailable: no server that holds the shard answers.
            StaleTopology: the generation no longer serves.
            ShoalError: what the server said.
        """
        tried: set[str] = set()
        refreshed = False
        error: ShoalError | None = None
        while True:
            server = self._server(call, tried)
            if server is None:
                raise error or _unavailable(call, "no server holds it")
            tried.add(server)
            try:
                return await self._invoke(call, server, deadline_ns)
            except StaleTopology as stale:
                if refreshed:
                    raise
                error, refreshed = stale, True
                await self._follower.refresh()
                tried.clear()
            except _ELSEWHERE as gone:
                error = _unavailable(call, f"{server} does not answer: {gone}")
            except DeadlineExceeded as late:
                message = f"shard {call.shard} did not answer in time"
                raise DeadlineExceeded(message, shard=call.shard) from late

    def _server(self, call: ShardCall, tried: set[str]) -> str | None:
        held = self._follower.current.collections.get(call.collection.name)
        if held is None or held.lane != call.collection.lane:
            if not call.any_replica:
                raise StaleTopology(f"collection {call.collection.name!r} has changed meanwhile")
            # A generation that was replaced can be read where it was until it is dropped.
            held = call.collection
        servers = held.servers[call.shard]
        candidates = servers if call.any_replica else servers[:1]
        return next((server for server in candidates if server not in tried), None)

    async def _invoke(self, call: ShardCall, server: str, deadline_ns: int) -> Any:
        address = self._follower.current.addresses.get(server)
        if address is None:
            raise NotReady(f"{server} has no address")
        method = getattr(self._peers.shard(address), call.method)
        return await invoke(method, call.request, (deadline_ns - time.monotonic_ns()) / 1e9)


def _unavailable(call: ShardCall, why: str) -> ShardUnavailable:
    return ShardUnavailable(
        f"shard {call.shard} of {call.collection.name!r} is needed: {why}",
        shard=call.shard,
        retry_after_s=0.5,
    )
