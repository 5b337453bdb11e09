"""What a cluster's size is changed by: the calls of both clients, and what they give back."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TypeVar

from shoal.client import defaults
from shoal.client.operations import Call, Operation
from shoal.errors import InvalidRequest
from shoal.ids import check_name
from shoal.rpc.router.v1 import router_pb2

Result = TypeVar("Result")
_COUNT_MAX = 2**31 - 1


@dataclass(frozen=True, slots=True)
class ShardMove:
    """A shard on its way.

    Attributes:
        collection: its name.
        shard: its number.
        from_server: the server that holds it.
        to_server: the server that is to hold it.
        bytes: of its segments, and about those of its tail.
    """

    collection: str
    shard: int
    from_server: str
    to_server: str
    bytes: int


@dataclass(frozen=True, slots=True)
class ScaleReport:
    """What a change of size begins.

    Attributes:
        moves: shards that move because of it.
        taken_over: what an earlier change had not finished yet; empty if nothing.
    """

    moves: tuple[ShardMove, ...]
    taken_over: tuple[str, ...]


def scale(
    encoders: int | None, routers: int | None, servers: int | None, drain: str = ""
) -> Operation[ScaleReport]:
    """See `SyncGrowth.scale`."""
    counts = {"encoders": encoders, "routers": routers, "servers": servers}
    for name, count in counts.items():
        if count is not None and not 0 <= count <= _COUNT_MAX:
            raise InvalidRequest(f"{name} is {count}: 0 or more are wanted", field=name)
    request = router_pb2.ScaleRequest(**counts, drain=drain)
    response: router_pb2.ScaleResponse = yield Call("Scale", request)
    return ScaleReport(tuple(map(_move, response.moves)), tuple(response.taken_over))


def move(name: str, shard: int, to_server: str) -> Operation[ShardMove]:
    """See `SyncGrowth.move`."""
    if not 0 <= shard <= _COUNT_MAX:
        raise InvalidRequest(f"there is no shard {shard}", field="shard")
    request = router_pb2.MoveShardRequest(
        collection=check_name(name), shard=shard, to_server=to_server
    )
    response: router_pb2.MoveShardResponse = yield Call("MoveShard", request)
    return _move(response.move)


def rebalance(dry_run: bool) -> Operation[tuple[ShardMove, ...]]:
    """See `SyncGrowth.rebalance`."""
    request = router_pb2.RebalanceRequest(dry_run=dry_run)
    response: router_pb2.RebalanceResponse = yield Call("Rebalance", request)
    return tuple(map(_move, response.moves))


def _move(message: router_pb2.ShardMove) -> ShardMove:
    return ShardMove(
        message.collection, message.shard, message.from_server, message.to_server, message.bytes
    )


class SyncGrowth(ABC):
    """Size, for `shoal.Client`. Every call begins something and returns at once;
    `status().pending` says what is left to do, and is empty when it is done.
    """

    @abstractmethod
    def _run(self, operation: Operation[Result], deadline_s: float) -> Result: ...

    def scale(
        self,
        *,
        encoders: int | None = None,
        routers: int | None = None,
        servers: int | None = None,
        deadline_s: float = defaults.SCALE_S,
    ) -> ScaleReport:
        """Has another number of processes run; the cluster serves meanwhile.

        What goes hands over first: shards move, routers and encoders end when nobody asks
        them any more. A later call takes over from one that is under way.

        Args:
            encoders: encoder workers, 0 or more; None leaves them, as with the others.
            routers: routers, 1 or more.
            servers: shard servers, 1 or more. Shards move until all are level by bytes.
            deadline_s: time for the call, not for what it begins.

        Raises:
            InvalidRequest: so many cannot be.
        """
        return self._run(scale(encoders, routers, servers), deadline_s)

    def drain(self, server: str, *, deadline_s: float = defaults.SCALE_S) -> ScaleReport:
        """Takes one shard server out of the cluster, which then has one fewer.

        Raises:
            InvalidRequest: there is none of that name, or no other.
        """
        return self._run(scale(None, None, None, server), deadline_s)

    def move(
        self, name: str, shard: int, to_server: str, *, deadline_s: float = defaults.SCALE_S
    ) -> ShardMove:
        """Moves one shard to another server while it serves and takes writes.

        Raises:
            CollectionNotFound, InvalidRequest: there is no such shard, or server.
        """
        return self._run(move(name, shard, to_server), deadline_s)

    def rebalance(
        self, *, dry_run: bool = False, deadline_s: float = defaults.SCALE_S
    ) -> tuple[ShardMove, ...]:
        """Makes the fewest moves after which the servers are level by bytes.

        Args:
            dry_run: only say which moves that would be.
            deadline_s: time for the call, not for the moves.
        """
        return self._run(rebalance(dry_run), deadline_s)


class AsyncGrowth(ABC):
    """The asyncio twin of `SyncGrowth`."""

    @abstractmethod
    async def _run(self, operation: Operation[Result], deadline_s: float) -> Result: ...

    async def scale(
        self,
        *,
        encoders: int | None = None,
        routers: int | None = None,
        servers: int | None = None,
        deadline_s: float = defaults.SCALE_S,
    ) -> ScaleReport:
        """Has another number of processes run; see `Client.scale`."""
        return await self._run(scale(encoders, routers, servers), deadline_s)

    async def drain(self, server: str, *, deadline_s: float = defaults.SCALE_S) -> ScaleReport:
        """Takes one shard server out of the cluster; see `Client.drain`."""
        return await self._run(scale(None, None, None, server), deadline_s)

    async def move(
        self, name: str, shard: int, to_server: str, *, deadline_s: float = defaults.SCALE_S
    ) -> ShardMove:
        """Moves one shard to another server; see `Client.move`."""
        return await self._run(move(name, shard, to_server), deadline_s)

    async def rebalance(
        self, *, dry_run: bool = False, deadline_s: float = defaults.SCALE_S
    ) -> tuple[ShardMove, ...]:
        """Levels the servers by bytes; see `Client.rebalance`."""
        return await self._run(rebalance(dry_run), deadline_s)
