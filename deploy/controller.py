"""The controller's gRPC server: messages in, messages out; the work is elsewhere."""

import asyncio
import logging
from collections.abc import AsyncIterator, Coroutine
from typing import Any

from deploy.administration import Administration
from deploy.calls import Calls
from deploy.generations import Generations
from deploy.launchers.port import Launcher
from deploy.launchers.processes import ProcessLauncher
from deploy.reconciler import Reconciler
from deploy.scaling import Scaling
from deploy.settings import ControllerSettings
from deploy.store import Store
from shoal.errors import InternalError
from shoal.rpc.controller.v1 import controller_pb2, controller_pb2_grpc
from shoal.settings import Limits, load
from shoal.storage.directory import open_storage
from shoal.wire.metrics import OFF
from shoal.wire.server import Context, GrpcServer

logger = logging.getLogger(__name__)

_RPC_MARGIN_S = 0.2


class ControllerServer:
    """Owns the desired state of one cluster. It holds nothing that the catalog does not.

    Args:
        settings: of this cluster.
        launcher: starts processes; plain ones on this machine by default.
    """

    metrics_port = OFF

    def __init__(self, settings: ControllerSettings, launcher: Launcher | None = None) -> None:
        self._settings = settings
        self._limits = load(Limits, "SHOAL_LIMIT_")
        self._launcher = launcher or ProcessLauncher(settings.data)
        self._server = GrpcServer(self._limits.max_message_bytes)
        self._calls = Calls(self._limits.max_message_bytes)
        self._reconciler: Reconciler | None = None
        self._work: asyncio.Task[None] | None = None

    async def start(self) -> str:
        """Recovers from the catalog, adopts what runs, listens; returns host:port."""
        storage = open_storage(self._settings.data)
        store = Store(storage.catalog)
        reconciler = Reconciler(self._settings, store, self._launcher, self._calls)
        self._reconciler = reconciler
        await reconciler.recover()
        generations = Generations(reconciler, storage)
        servicer = ControllerServicer(
            self._settings,
            reconciler,
            Administration(reconciler, generations, self._limits),
            Scaling(reconciler),
        )
        service = controller_pb2.DESCRIPTOR.services_by_name["ControllerService"]
        self._server.add(service, servicer)
        servicer.address = await self._server.start(self._settings.host, self._settings.port)
        await store.announce(servicer.address)
        self._work = asyncio.create_task(together(reconciler.run(), generations.run()))
        await self._server.set_serving(True)
        logger.info("event=controller_serves address=%s", servicer.address)
        return servicer.address

    async def stop(self, grace_s: float) -> None:
        """Ends the controller; the processes that it started run on."""
        if self._work is not None:
            self._work.cancel()
        if self._reconciler is not None:
            await self._reconciler.release()
        await self._server.stop(grace_s)
        await self._calls.close()

    async def wait(self) -> None:
        """Returns when it was stopped.

        Raises:
            Superseded: another controller works on this catalog.
        """
        assert self._work is not None
        try:
            await self._work
        except asyncio.CancelledError:
            await self._server.wait()


async def together(*works: Coroutine[Any, Any, None]) -> None:
    """Works until one ends, which is when the controller must; then ends the others."""
    tasks = [asyncio.ensure_future(work) for work in works]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


class ControllerServicer(controller_pb2_grpc.ControllerServiceServicer):
    """Handlers of ControllerService."""

    def __init__(
        self,
        settings: ControllerSettings,
        reconciler: Reconciler,
        administration: Administration,
        scaling: Scaling,
    ) -> None:
        self._settings = settings
        self._reconciler = reconciler
        self._administration = administration
        self._scaling = scaling
        self.address = ""

    async def WatchTopology(
        self, request: controller_pb2.WatchTopologyRequest, context: Context
    ) -> AsyncIterator[controller_pb2.WatchTopologyResponse]:
        """The newest topology, then each newer one."""
        logger.info("event=watch watcher=%s", request.watcher[:64])
        async for topology in self._reconciler.topologies():
            yield controller_pb2.WatchTopologyResponse(topology=topology)

    async def CreateCollection(
        self, request: controller_pb2.CreateCollectionRequest, context: Context
    ) -> controller_pb2.CreateCollectionResponse:
        """Creates a collection."""
        left = context.time_remaining()
        timeout_s = self._settings.create_timeout_s if left is None else left - _RPC_MARGIN_S
        record = await self._administration.create(request.request, timeout_s)
        topology = self._reconciler.store.topology
        name = record.collection.name
        placement = next((c for c in topology.collections if c.settings.name == name), None)
        if placement is None:
            raise InternalError(f"collection {name} was dropped while it was created")
        return controller_pb2.CreateCollectionResponse(
            collection=placement, topology_version=topology.version
        )

    async def DropCollection(
        self, request: controller_pb2.DropCollectionRequest, context: Context
    ) -> controller_pb2.DropCollectionResponse:
        """Drops a collection."""
        await self._administration.drop(request.name)
        return controller_pb2.DropCollectionResponse(
            topology_version=self._reconciler.published.version
        )

    async def RebuildCollection(
        self, request: controller_pb2.RebuildCollectionRequest, context: Context
    ) -> controller_pb2.RebuildCollectionResponse:
        """Begins to build a collection's next generation."""
        record = await self._administration.rebuild(request.request)
        return controller_pb2.RebuildCollectionResponse(generation=record.collection.generation)

    async def RollbackCollection(
        self, request: controller_pb2.RollbackCollectionRequest, context: Context
    ) -> controller_pb2.RollbackCollectionResponse:
        """Serves the generation before again."""
        record = await self._administration.rollback(request.name)
        return controller_pb2.RollbackCollectionResponse(
            generation=record.collection.generation,
            topology_version=self._reconciler.published.version,
        )

    async def AcceptLoss(
        self, request: controller_pb2.AcceptLossRequest, context: Context
    ) -> controller_pb2.AcceptLossResponse:
        """Opens a corrupt shard without what it lost."""
        await self._administration.accept_loss(request.collection, request.shard, request.loss)
        return controller_pb2.AcceptLossResponse(
            topology_version=self._reconciler.published.version
        )

    async def Scale(
        self, request: controller_pb2.ScaleRequest, context: Context
    ) -> controller_pb2.ScaleResponse:
        """Has another number of processes run."""
        return controller_pb2.ScaleResponse(response=await self._scaling.scale(request.request))

    async def MoveShard(
        self, request: controller_pb2.MoveShardRequest, context: Context
    ) -> controller_pb2.MoveShardResponse:
        """Begins to move a shard."""
        return controller_pb2.MoveShardResponse(response=await self._scaling.move(request.request))

    async def Rebalance(
        self, request: controller_pb2.RebalanceRequest, context: Context
    ) -> controller_pb2.RebalanceResponse:
        """Begins to level the servers."""
        return controller_pb2.RebalanceResponse(
            response=await self._scaling.rebalance(request.request)
        )

    async def GetClusterStatus(
        self, request: controller_pb2.GetClusterStatusRequest, context: Context
    ) -> controller_pb2.GetClusterStatusResponse:
        """Processes and shards."""
        return self._administration.status(self.address, self._scaling.pending())
