"""What users ask of the controller about size: more or fewer processes, shards elsewhere.

Each is recorded in the catalog and begins; the loop does the rest, whoever runs it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from deploy.core.pending import pending
from deploy.core.planner import levelled, sizes
from deploy.core.state import Desired, Role
from deploy.reconciler import Reconciler
from shoal.errors import CollectionNotFound, InvalidRequest
from shoal.rpc.router.v1 import router_pb2
from shoal.types import ShardRef


class Scaling:
    """The answers.

    Args:
        reconciler: the running loop.
    """

    def __init__(self, reconciler: Reconciler) -> None:
        self._loop = reconciler

    async def scale(self, request: router_pb2.ScaleRequest) -> router_pb2.ScaleResponse:
        """Has another number of processes run; the newest wish holds.

        Raises:
            InvalidRequest: so many cannot be.
        """
        wanted = self._loop.wanted
        if request.drain:
            if request.HasField("servers"):
                raise InvalidRequest(
                    "say how many servers, or which one is to go: not both", field="drain"
                )
            wanted = wanted.without(request.drain)
        if request.HasField("encoders"):
            wanted = wanted.scaled(Role.ENCODER, request.encoders)
        if request.HasField("routers"):
            wanted = wanted.scaled(Role.ROUTER, request.routers)
        if request.HasField("servers"):
            wanted = wanted.scaled(Role.SERVER, request.servers)
        left = self.pending()
        desired = replace(self._loop.desired(), processes=wanted.specs)
        moves: Mapping[ShardRef, str] = {}
        if wanted.servers != self._loop.wanted.servers:
            moves = levelled(desired, self._loop.observed())
        await self._loop.want(wanted)
        return router_pb2.ScaleResponse(moves=await self._begin(moves), taken_over=left)

    async def move(self, request: router_pb2.MoveShardRequest) -> router_pb2.MoveShardResponse:
        """Begins to move one shard, or sends one that moves elsewhere.

        Raises:
            CollectionNotFound, InvalidRequest: there is no such shard, or server.
        """
        record = self._loop.store.collections.get(request.collection)
        if record is None:
            raise CollectionNotFound(f"there is no collection {request.collection[:80]!r}")
        if request.shard >= len(record.collection.shards):
            raise InvalidRequest(
                f"{request.collection} has shards 0 to {len(record.collection.shards) - 1}",
                field="shard",
            )
        if request.to_server not in self._loop.wanted.servers:
            raise InvalidRequest(
                f"there is no server {request.to_server[:40]!r}: there are "
                f"{', '.join(self._loop.wanted.servers)}",
                field="to_server",
            )
        ref = record.collection.ref(request.shard)
        [move] = await self._begin({ref: request.to_server})
        return router_pb2.MoveShardResponse(move=move)

    async def rebalance(self, request: router_pb2.RebalanceRequest) -> router_pb2.RebalanceResponse:
        """Begins the moves that level the servers by bytes, or only says which they are."""
        moves = levelled(self._loop.desired(), self._loop.observed())
        if request.dry_run:
            return router_pb2.RebalanceResponse(moves=self._messages(moves))
        return router_pb2.RebalanceResponse(moves=await self._begin(moves))

    def pending(self) -> list[str]:
        """What is left to do until the cluster is as desired."""
        return pending(self._loop.desired(), self._loop.observed())

    async def _begin(self, moves: Mapping[ShardRef, str]) -> list[router_pb2.ShardMove]:
        messages = self._messages(moves)
        for ref, server in moves.items():
            await self._loop.moves.aim(ref, server)
        self._loop.wake()
        return messages

    def _messages(self, moves: Mapping[ShardRef, str]) -> list[router_pb2.ShardMove]:
        desired: Desired = self._loop.desired()
        known = sizes(desired, self._loop.observed())
        found = []
        for collection in desired.collections:
            for number, placement in enumerate(collection.shards):
                ref = collection.ref(number)
                if ref in moves:
                    found.append(
                        router_pb2.ShardMove(
                            collection=collection.name,
                            shard=number,
                            from_server=placement.server,
                            to_server=moves[ref],
                            bytes=known.get(ref, 0),
                        )
                    )
        return found
