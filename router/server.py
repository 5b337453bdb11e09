"""The router's gRPC server: composition and life cycle."""

import asyncio
import logging
import time

from router import metrics
from router.admin import AdminService, Presence
from router.core.admission import Admission
from router.core.cache import QueryCache
from router.core.topology import CollectionMap, TopologyMap
from router.document_encoder import DocumentEncoder
from router.documents import DocumentHandlers
from router.encoding import QueryEncoder
from router.explaining import LateHandlers
from router.fetching import Fetcher
from router.ingest import IngestHandler
from router.lanes import Lane
from router.peers import Peers
from router.requests import RequestChecker
from router.search import SearchHandlers
from router.settings import RouterSettings
from router.shards import ShardCalls
from router.topology import TopologyFollower
from shoal.rpc.router.v1 import router_pb2
from shoal.settings import Limits, load
from shoal.storage.directory import open_storage
from shoal.storage.ports import Catalog
from shoal.wire.metrics import OFF, serve_metrics
from shoal.wire.server import GrpcServer

logger = logging.getLogger(__name__)


class RouterServer:
    """Answers users.

    Args:
        settings: of this process.
        catalog: the cluster's; by default the one in `settings.data`.
        limits: of one request; by default from the environment.
    """

    def __init__(
        self,
        settings: RouterSettings,
        *,
        catalog: Catalog | None = None,
        limits: Limits | None = None,
    ) -> None:
        self._settings = settings
        self._catalog = catalog
        self._limits = limits or load(Limits, "SHOAL_LIMIT_")
        self._lanes: dict[tuple[bytes, int], Lane] = {}
        self._serving = False
        self.metrics_port = OFF

    async def start(self) -> str:
        """Listens; serves once a topology is known. Returns "host:port"."""
        settings, limits = self._settings, self._limits
        self._grpc = GrpcServer(limits.max_message_bytes)
        self._peers = Peers(limits.max_message_bytes)
        self._follower = TopologyFollower(
            self._catalog or open_storage(settings.data).catalog,
            self._peers,
            watcher=settings.name,
            retry_s=settings.watch_retry_ms / 1e3,
            changed=self._changed,
        )
        self._encoder = QueryEncoder(
            self._follower,
            self._peers,
            settings.encode_options(),
            QueryCache(settings.cache_entries),
        )
        self._add_services()
        metrics.query_limit.labels("search").set_function(
            lambda: min((lane.limit for lane in self._lanes.values()), default=float("inf"))
        )
        metrics.query_limit.labels("encode").set_function(lambda: self._encoder.limit)
        self.metrics_port = serve_metrics(settings.host, settings.metrics_port)
        address = await self._grpc.start(settings.host, settings.port)
        self._presence.address = settings.advertised(address)
        await self._follower.start()
        logger.info("event=started address=%s name=%s", address, settings.name)
        return address

    def _add_services(self) -> None:
        checker = RequestChecker(self._settings, self._limits)
        calls = ShardCalls(self._follower, self._peers)
        search = SearchHandlers(
            follower=self._follower,
            checker=checker,
            encoder=self._encoder,
            fetcher=Fetcher(calls),
            lane=self._lane,
            settings=self._settings,
        )
        admission = Admission("open_calls", self._settings.open_calls, retry_after_s=0.1)
        encoder = DocumentEncoder(self._follower, self._peers)
        late = LateHandlers(
            follower=self._follower,
            checker=checker,
            search=search,
            queries=self._encoder,
            documents=encoder,
            shards=calls,
        )
        documents = DocumentHandlers(self._follower, checker, calls, admission)
        ingest = IngestHandler(self._follower, checker, calls, encoder, self._settings)
        self._ingest = ingest
        self._presence = Presence(ingest.open_streams)
        admin = AdminService(
            self._follower, self._peers, calls, checker, self._settings, self._presence
        )
        services = router_pb2.DESCRIPTOR.services_by_name
        self._grpc.add(
            services["SearchService"],
            SearchService(documents, ingest, late),
            raw={"Search": search.search, "SearchBatch": search.search_batch},
        )
        self._grpc.add(services["AdminService"], admin)

    async def stop(self, grace_s: float) -> None:
        """Drains, then refuses new calls, lets running ones end within grace_s, lets go of
        everything. Without any grace it does not drain.
        """
        if grace_s > 0:
            await self._drain()
        await self._grpc.stop(grace_s)
        await self._follower.stop()
        for lane in self._lanes.values():
            lane.close()
        self._encoder.close()
        await self._peers.close()

    async def _drain(self) -> None:
        """Says that it is about to end, and answers on until others know and nobody calls."""
        logger.info("event=drains name=%s", self._settings.name)
        end_s = time.monotonic() + self._settings.drain_ms / 1e3
        self._presence.draining = True
        self._ingest.drain()
        await self._grpc.drain()
        await self._follower.unlisted(end_s - time.monotonic())
        await self._grpc.until_quiet(end_s - time.monotonic())

    async def wait(self) -> None:
        """Returns when the server has stopped."""
        await self._grpc.wait()

    def _lane(self, collection: CollectionMap) -> Lane:
        lane = self._lanes.get(collection.lane)
        if lane is None:
            lane = self._lanes[collection.lane] = Lane(
                collection, self._follower, self._peers, self._settings.search_options()
            )
        return lane

    def _changed(self, topology: TopologyMap) -> None:
        metrics.topology_version.set(topology.version)
        serving = {each.lane: each for each in topology.collections.values()}
        for key, lane in list(self._lanes.items()):
            if key in serving:
                lane.place(serving[key])
            elif lane.idle:
                del self._lanes[key]
        self._encoder.place(topology)
        self._peers.keep(self._follower.known_addresses)
        if not self._serving:
            self._serving = True
            self._health = asyncio.ensure_future(self._grpc.set_serving(True))


class SearchService:
    """The SearchService's calls that take and give messages, by their RPCs' names."""

    def __init__(
        self, documents: DocumentHandlers, ingest: IngestHandler, late: LateHandlers
    ) -> None:
        self.Explain = late.explain
        self.Rerank = late.rerank
        self.Get = documents.get
        self.Delete = documents.delete
        self.Ingest = ingest.ingest
