"""The AdminService: what changes the cluster goes to the controller."""

import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from importlib.metadata import version
from typing import Any

from google.protobuf.message import Message

from router import metrics
from router.lanes import shard_key
from router.peers import Peers, invoke
from router.requests import Clock, RequestChecker, find_collection
from router.settings import RouterSettings
from router.shards import ShardCall, ShardCalls
from router.tasks import all_of
from router.topology import TopologyFollower
from shoal.errors import (
    Cancelled,
    ClusterUnreachable,
    ControllerUnavailable,
    DeadlineExceeded,
    NotReady,
)
from shoal.ids import check_name
from shoal.rpc.controller.v1 import controller_pb2
from shoal.rpc.router.v1 import router_pb2
from shoal.rpc.shard.v1 import shard_pb2
from shoal.wire.server import Context

_STATUS_TIMEOUT_S = 5.0


@dataclass(slots=True)
class Presence:
    """What a router says of itself, as it is now.

    Attributes:
        open_ingests: streams open at it by collection.
        address: host:port at which clients are to call it; empty where that is not known.
        draining: it is about to end.
    """

    open_ingests: Mapping[str, int]
    address: str = ""
    draining: bool = False


class AdminService:
    """Collections and status; methods bear the names of their RPCs.

    Args:
        follower: the topology.
        peers: channels.
        shards: calls to owners.
        checker: of requests.
        settings: time-outs.
        presence: of this router.
    """

    def __init__(
        self,
        follower: TopologyFollower,
        peers: Peers,
        shards: ShardCalls,
        checker: RequestChecker,
        settings: RouterSettings,
        presence: Presence,
    ) -> None:
        self._follower = follower
        self._presence = presence
        self._peers = peers
        self._shards = shards
        self._checker = checker
        self._timeout_ms = settings.admin_timeout_ms
        handlers: dict[str, Callable[[Any, Clock], Any]] = {
            "CreateCollection": self._create,
            "DropCollection": self._drop,
            "ListCollections": self._list,
            "OptimizeCollection": self._optimize,
            "RebuildCollection": self._rebuild,
            "RollbackCollection": self._rollback,
            "Scale": self._scale,
            "MoveShard": self._move_shard,
            "Rebalance": self._rebalance,
            "GetStatus": self._status,
            "AcceptLoss": self._accept_loss,
        }
        for name, handler in handlers.items():
            setattr(self, name, self._counted(name, handler))

    def _counted(self, name: str, handler: Callable[[Any, Clock], Any]) -> Callable[..., Any]:
        async def handle(request: Message, context: Context) -> Message:
            with metrics.counted(name):
                clock = self._checker.clock(context, self._timeout_ms)
                reply: Message = await handler(request, clock)
            return reply

        return handle

    async def _create(
        self, request: router_pb2.CreateCollectionRequest, clock: Clock
    ) -> router_pb2.CreateCollectionResponse:
        check_name(request.name)
        response = await self._controller(
            "CreateCollection", controller_pb2.CreateCollectionRequest(request=request), clock
        )
        await self._follow(response.topology_version, clock)
        return router_pb2.CreateCollectionResponse(collection=_info(response.collection))

    async def _drop(
        self, request: router_pb2.DropCollectionRequest, clock: Clock
    ) -> router_pb2.DropCollectionResponse:
        check_name(request.name)
        response = await self._controller(
            "DropCollection", controller_pb2.DropCollectionRequest(name=request.name), clock
        )
        await self._follow(response.topology_version, clock)
        return router_pb2.DropCollectionResponse()

    async def _accept_loss(
        self, request: router_pb2.AcceptLossRequest, clock: Clock
    ) -> router_pb2.AcceptLossResponse:
        check_name(request.collection)
        response = await self._controller(
            "AcceptLoss",
            controller_pb2.AcceptLossRequest(
                collection=request.collection, shard=request.shard, loss=request.loss
            ),
            clock,
        )
        await self._follow(response.topology_version, clock)
        return router_pb2.AcceptLossResponse()

    async def _list(
        self, request: router_pb2.ListCollectionsRequest, clock: Clock
    ) -> router_pb2.ListCollectionsResponse:
        if not self._follower.current.version:
            raise NotReady("this router knows no topology yet", retry_after_s=1.0)
        return router_pb2.ListCollectionsResponse(
            collections=[_info(each) for each in self._follower.message.collections]
        )

    async def _optimize(
        self, request: router_pb2.OptimizeCollectionRequest, clock: Clock
    ) -> router_pb2.OptimizeCollectionResponse:
        collection = find_collection(self._follower.current, request.name)
        calls = [
            ShardCall(
                collection,
                shard,
                "Optimize",
                shard_pb2.OptimizeRequest(key=shard_key(collection, shard)),
                any_replica=False,
            )
            for shard in range(collection.shard_count)
        ]
        await all_of(self._shards.call(call, clock.deadline_ns) for call in calls)
        return router_pb2.OptimizeCollectionResponse()

    async def _rebuild(
        self, request: router_pb2.RebuildCollectionRequest, clock: Clock
    ) -> router_pb2.RebuildCollectionResponse:
        check_name(request.name)
        response = await self._controller(
            "RebuildCollection", controller_pb2.RebuildCollectionRequest(request=request), clock
        )
        return router_pb2.RebuildCollectionResponse(generation=response.generation)

    async def _rollback(
        self, request: router_pb2.RollbackCollectionRequest, clock: Clock
    ) -> router_pb2.RollbackCollectionResponse:
        check_name(request.name)
        response = await self._controller(
            "RollbackCollection", controller_pb2.RollbackCollectionRequest(name=request.name), clock
        )
        await self._follow(response.topology_version, clock)
        return router_pb2.RollbackCollectionResponse(generation=response.generation)

    async def _scale(
        self, request: router_pb2.ScaleRequest, clock: Clock
    ) -> router_pb2.ScaleResponse:
        wrapped = controller_pb2.ScaleRequest(request=request)
        response: controller_pb2.ScaleResponse = await self._controller("Scale", wrapped, clock)
        return response.response

    async def _move_shard(
        self, request: router_pb2.MoveShardRequest, clock: Clock
    ) -> router_pb2.MoveShardResponse:
        check_name(request.collection)
        wrapped = controller_pb2.MoveShardRequest(request=request)
        response: controller_pb2.MoveShardResponse = await self._controller(
            "MoveShard", wrapped, clock
        )
        return response.response

    async def _rebalance(
        self, request: router_pb2.RebalanceRequest, clock: Clock
    ) -> router_pb2.RebalanceResponse:
        wrapped = controller_pb2.RebalanceRequest(request=request)
        response: controller_pb2.RebalanceResponse = await self._controller(
            "Rebalance", wrapped, clock
        )
        return response.response

    async def _status(
        self, request: router_pb2.GetStatusRequest, clock: Clock
    ) -> router_pb2.GetStatusResponse:
        message, presence = self._follower.message, self._presence
        reply = router_pb2.GetStatusResponse(
            topology_version=message.version,
            limits=asdict(self._checker.limits),
            version=version("shoal"),
            open_ingests={name: count for name, count in presence.open_ingests.items() if count},
            routers=[each.address for each in message.routers],
            address=presence.address,
            draining=presence.draining,
        )
        if request.router_only:
            return reply
        soon_ns = time.monotonic_ns() + int(_STATUS_TIMEOUT_S * 1e9)
        hasty = Clock(clock.arrived_ns, min(clock.deadline_ns, soon_ns))
        try:
            status = await self._controller(
                "GetClusterStatus", controller_pb2.GetClusterStatusRequest(), hasty
            )
        except (ControllerUnavailable, DeadlineExceeded):
            reply.processes.extend(_processes(message))
            reply.collections.extend(_info(each) for each in message.collections)
            return reply
        reply.controller_reachable = True
        reply.processes.extend(status.processes)
        reply.collections.extend(status.collections)
        reply.desired.update(status.desired)
        reply.pending.extend(status.pending)
        return reply

    async def _controller(self, method: str, request: Message, clock: Clock) -> Any:
        """Calls the controller, and once more where the catalog says that it is now."""
        try:
            return await self._invoke(method, request, clock)
        except ControllerUnavailable:
            before = self._follower.known_controller
            await self._follower.refresh()
            if self._follower.known_controller == before:
                raise
        return await self._invoke(method, request, clock)

    async def _invoke(self, method: str, request: Message, clock: Clock) -> Any:
        address = self._follower.known_controller
        if not address:
            raise ControllerUnavailable("the catalog names no controller yet")
        stub = self._peers.controller(address)
        try:
            return await invoke(getattr(stub, method), request, clock.left_s())
        except (ClusterUnreachable, Cancelled) as error:
            raise ControllerUnavailable(
                f"the controller does not answer: {error}", retry_after_s=1.0
            ) from error

    async def _follow(self, topology_version: int, clock: Clock) -> None:
        """A caller must find here what it has just changed."""
        if not await self._follower.at_least(topology_version, clock.left_s()):
            raise DeadlineExceeded(
                f"it is done, but topology {topology_version} has not reached this router yet"
            )


def _info(placement: controller_pb2.CollectionPlacement) -> router_pb2.CollectionInfo:
    """What the topology alone says of a collection."""
    return router_pb2.CollectionInfo(
        settings=placement.settings,
        generation=placement.generation,
        shards=[
            router_pb2.ShardInfo(
                shard=number,
                server=shard.servers[0] if shard.servers else "",
                state="serving" if shard.servers else "unreachable",
                documents=shard.documents,
            )
            for number, shard in enumerate(placement.shards)
        ],
        documents=sum(shard.documents for shard in placement.shards),
    )


def _processes(topology: controller_pb2.Topology) -> list[router_pb2.ProcessInfo]:
    roles = (
        ("router", topology.routers),
        ("encoder", topology.encoders),
        ("server", topology.servers),
    )
    return [
        router_pb2.ProcessInfo(name=each.name, role=role, address=each.address, state="serving")
        for role, endpoints in roles
        for each in endpoints
    ]
