"""Follows the controller's map of the cluster.

The last map is read from the catalog, so that queries do not need the
controller; newer ones are pushed over a stream.
"""

import asyncio
import contextlib
import json
import logging
from collections.abc import Callable

import grpc

from router.core.topology import CollectionMap, Effort, TopologyMap, newer
from router.peers import Peers
from shoal.rpc.common.v1 import common_pb2
from shoal.rpc.controller.v1 import controller_pb2
from shoal.storage.ports import Catalog
from shoal.types import Kind, Similarity

logger = logging.getLogger(__name__)

_KINDS = {
    common_pb2.COLLECTION_KIND_SINGLE: Kind.SINGLE,
    common_pb2.COLLECTION_KIND_COLBERT: Kind.COLBERT,
}
_SIMILARITIES = {
    common_pb2.SIMILARITY_COSINE: Similarity.COSINE,
    common_pb2.SIMILARITY_DOT: Similarity.DOT,
    common_pb2.SIMILARITY_L2: Similarity.L2,
}


def collection_from_message(message: controller_pb2.CollectionPlacement) -> CollectionMap:
    """One collection of the controller's map."""
    settings = message.settings
    full_dim = json.loads(settings.card_json).get("dim", 0) if settings.card_json else settings.dim
    return CollectionMap(
        name=settings.name,
        uuid=settings.uuid,
        generation=message.generation,
        kind=_KINDS[settings.kind],
        similarity=_SIMILARITIES[settings.similarity],
        dim=settings.dim,
        encoder_dim=0 if settings.dim == full_dim else settings.dim,
        fingerprint=settings.fingerprint,
        chunk_tokens=settings.chunk_tokens,
        chunk_overlap=settings.chunk_overlap,
        pool_factor=settings.late.pool_factor or 1,
        servers=tuple(tuple(shard.servers) for shard in message.shards),
        documents=tuple(shard.documents for shard in message.shards),
        efforts={
            each.name: Effort(
                each.probes,
                each.refined,
                settings.late.question_tokens,
                settings.late.scan_from,
            )
            for each in settings.late.efforts
        },
        handed_over={each.generation: tuple(each.sequences) for each in message.handed_over},
    )


def topology_from_message(message: controller_pb2.Topology) -> TopologyMap:
    """The controller's map as routers use it."""
    encoders: dict[str, tuple[str, ...]] = {}
    for encoder in message.encoders:
        for fingerprint in encoder.fingerprints:
            encoders[fingerprint] = (*encoders.get(fingerprint, ()), encoder.name)
    return TopologyMap(
        version=message.version,
        addresses={each.name: each.address for each in (*message.servers, *message.encoders)},
        encoders=encoders,
        collections={
            each.settings.name: collection_from_message(each) for each in message.collections
        },
    )


class TopologyFollower:
    """The newest map that this router knows.

    Args:
        catalog: where the last map and the controller's address are.
        peers: channels.
        watcher: this router's name.
        retry_s: pause before the controller is looked for again.
        changed: called in the event loop with every newer map.
    """

    def __init__(
        self,
        catalog: Catalog,
        peers: Peers,
        *,
        watcher: str,
        retry_s: float,
        changed: Callable[[TopologyMap], None],
    ) -> None:
        self._catalog = catalog
        self._peers = peers
        self._watcher = watcher
        self._retry_s = retry_s
        self._changed = changed
        self._controller = ""
        self._followed = False
        self._news = asyncio.Condition()
        self._refreshing: asyncio.Task[None] | None = None
        self._watching: asyncio.Task[None] | None = None
        self.current = TopologyMap()
        self.message = controller_pb2.Topology()

    async def start(self) -> None:
        """Reads the catalog, then follows the controller in the background."""
        await self._read_catalog()
        self._watching = asyncio.create_task(self._watch_for_ever())

    async def stop(self) -> None:
        """Stops following."""
        for task in (self._watching, self._refreshing):
            if task is not None:
                task.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await task

    @property
    def known_addresses(self) -> set[str]:
        """Every process that may be called, the controller included."""
        return {*self.current.addresses.values(), self._controller}

    @property
    def known_controller(self) -> str:
        """Where the controller was last; empty if the catalog names none."""
        return self._controller

    async def refresh(self) -> None:
        """Reads the map again; callers that come together share one reading."""
        if self._refreshing is None or self._refreshing.done():
            self._refreshing = asyncio.create_task(self._read_catalog())
        await asyncio.shield(self._refreshing)

    async def at_least(self, version: int, timeout_s: float) -> bool:
        """Waits until a map of this version or newer is followed; False if it is not in time."""
        if self.current.version < version:
            await self.refresh()
        try:
            async with asyncio.timeout(timeout_s), self._news:
                await self._news.wait_for(lambda: self.current.version >= version)
        except TimeoutError:
            return False
        return True

    async def unlisted(self, timeout_s: float) -> None:
        """Waits until the map names this router no more, so that nobody is sent to it.

        Returns at once where no controller is followed that would take it out, and in the
        end after timeout_s.
        """

        def out() -> bool:
            return not self._followed or all(
                each.name != self._watcher for each in self.message.routers
            )

        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s), self._news:
                await self._news.wait_for(out)

    async def _read_catalog(self) -> None:
        topology, controller = await asyncio.gather(
            asyncio.to_thread(self._catalog.get, "topology"),
            asyncio.to_thread(self._catalog.get, "controller"),
        )
        if controller.version:
            self._controller = str(json.loads(controller.value)["address"])
        if topology.version:
            await self._offer(controller_pb2.Topology.FromString(topology.value))

    async def _offer(self, message: controller_pb2.Topology) -> None:
        candidate = topology_from_message(message)
        if not newer(self.current, candidate):
            return
        async with self._news:
            self.current, self.message = candidate, message
            self._changed(candidate)
            self._news.notify_all()

    async def _watch_for_ever(self) -> None:
        while True:
            try:
                await self._watch()
            except grpc.RpcError as error:
                logger.info("event=controller_lost cause=%s", type(error).__name__)
            except Exception:
                # Nobody follows the topology if this loop ends.
                logger.exception("event=topology_watch_failed")
            await asyncio.sleep(self._retry_s)

    async def _watch(self) -> None:
        await self._read_catalog()
        if not self._controller:
            return
        request = controller_pb2.WatchTopologyRequest(watcher=self._watcher)
        try:
            async for response in self._peers.controller(self._controller).WatchTopology(request):
                self._followed = True
                await self._offer(response.topology)
        finally:
            self._followed = False
            async with self._news:
                self._news.notify_all()
