# ruff: noqa: N802 (methods bear the names of their RPCs)
"""Shard servers, encoders and a controller of the tests' own, over real gRPC."""

import asyncio
import json
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import grpc
import numpy as np
from numpy.typing import NDArray

from router.server import RouterServer
from router.settings import RouterSettings
from shoal.errors import ShoalError, StaleTopology
from shoal.ids import shard_of
from shoal.rpc.common.v1 import common_pb2
from shoal.rpc.controller.v1 import controller_pb2
from shoal.rpc.encoder.v1 import encoder_pb2
from shoal.rpc.router.v1 import router_pb2
from shoal.rpc.router.v1.router_pb2_grpc import AdminServiceStub, SearchServiceStub
from shoal.rpc.shard.v1 import shard_pb2
from shoal.settings import Limits
from shoal.wire.arrays import matrix_from_message, matrix_to_message, pack_column
from shoal.wire.channels import channel_options
from shoal.wire.errors import to_status
from shoal.wire.server import GrpcServer
from tests.wire.memory_catalog import MemoryCatalog

DIM = 8
FINGERPRINT = "f" * 64
MAX_BYTES = 8 << 20
UUID = uuid.UUID(int=7).bytes


async def eventually(condition: Callable[[], bool], timeout_s: float = 10.0) -> None:
    """Waits for a condition, looking again whenever the loop has turned."""
    async with asyncio.timeout(timeout_s):
        while not condition():
            await asyncio.sleep(0.002)


@dataclass
class Stored:
    """A live document version of a fake shard."""

    document: common_pb2.Document
    digest: bytes
    vectors: NDArray[np.float32]
    spans: list[tuple[int, int]]
    sequence: int


@dataclass
class Faults:
    """What a fake server does wrong; `gate` closed means it hangs."""

    gate: asyncio.Event = field(default_factory=asyncio.Event)
    errors: list[ShoalError] = field(default_factory=list)
    always: ShoalError | None = None
    refuse: dict[int, ShoalError] = field(default_factory=dict)
    messages: list[Any] = field(default_factory=list)
    active: int = 0
    cancelled: int = 0
    twist: Callable[[Any], Any] | None = None

    def __post_init__(self) -> None:
        self.gate.set()

    async def meet(self, request: Any) -> None:
        self.messages.append(request)
        self.active += 1
        try:
            await self.gate.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        finally:
            self.active -= 1
        if self.errors:
            raise self.errors.pop(0)
        if self.always is not None:
            raise self.always


class FakeShardServer:
    """Holds shards in memory and searches them by brute force."""

    def __init__(self, name: str, shards: Sequence[int]) -> None:
        self.name = name
        self.shards: dict[int, dict[bytes, Stored]] = {shard: {} for shard in shards}
        self.positions = dict.fromkeys(shards, 0)
        self.search, self.fetch, self.probe, self.write, self.delete = (Faults() for _ in range(5))
        self.address = ""

    async def start(self) -> None:
        self._server = GrpcServer(MAX_BYTES)
        self._server.add(shard_pb2.DESCRIPTOR.services_by_name["ShardService"], _Methods(self))
        self.address = await self._server.start("127.0.0.1", 0)

    async def stop(self) -> None:
        for faults in (self.search, self.fetch, self.probe, self.write, self.delete):
            faults.gate.set()
        await self._server.stop(0)

    def held(self, key: shard_pb2.ShardKey) -> dict[bytes, Stored]:
        if key.collection != UUID or key.shard not in self.shards:
            raise StaleTopology("not here")
        return self.shards[key.shard]

    def put(
        self, shard: int, document: common_pb2.Document, vector: Any, digest: bytes = b""
    ) -> int:
        self.positions[shard] += 1
        self.shards[shard][document.id.encode()] = Stored(
            document,
            digest,
            np.atleast_2d(np.asarray(vector, np.float32)),
            [],
            self.positions[shard],
        )
        return self.positions[shard]

    async def Search(self, request: Any, context: Any) -> shard_pb2.SearchResponse:
        await self.search.meet(request)
        held = self.held(request.key)
        queries = matrix_from_message(request.queries).astype(np.float64)
        columns: list[tuple[bytes, float, int]] = []
        counts = []
        for row, (query, top_k) in enumerate(zip(queries, request.top_k, strict=True)):
            ranked = sorted(
                ((float((each.vectors @ query).max()), key, each) for key, each in held.items()),
                key=lambda hit: (-hit[0], hit[1]),
            )
            if row in self.search.refuse:
                ranked = []
            counts.append(len(ranked[:top_k]))
            columns += [(key, score, each.sequence) for score, key, each in ranked[:top_k]]
        statuses = [
            to_status(self.search.refuse[row]) if row in self.search.refuse else common_pb2.Status()
            for row in range(len(queries))
        ]
        reply = shard_pb2.SearchResponse(
            hit_counts=counts,
            ids=b"".join(each[0] for each in columns),
            id_lengths=pack_column([len(each[0]) for each in columns], "<u4"),
            scores=pack_column(np.array([each[1] for each in columns]), "<f8"),
            sequences=pack_column([each[2] for each in columns], "<u8"),
            passages=pack_column([0] * len(columns), "<u4"),
            documents=len(held),
            position=self.positions[request.key.shard],
            statuses=statuses if self.search.refuse else [],
        )
        return self.search.twist(reply) if self.search.twist else reply

    async def Fetch(self, request: Any, context: Any) -> shard_pb2.FetchResponse:
        await self.fetch.meet(request)
        held = self.held(request.key)
        documents = []
        for place, each in enumerate(request.ids):
            stored = held.get(each.encode())
            wanted = request.sequences[place] if request.sequences else 0
            if stored is None or (wanted and stored.sequence != wanted):
                documents.append(shard_pb2.FetchedDocument(found=False))
                continue
            span = None
            if request.passages and stored.spans:
                start, end = stored.spans[request.passages[place]]
                span = common_pb2.Span(start=start, end=end)
            documents.append(
                shard_pb2.FetchedDocument(
                    found=True, document=stored.document, span=span, sequence=stored.sequence
                )
            )
        return shard_pb2.FetchResponse(documents=documents)

    async def Probe(self, request: Any, context: Any) -> shard_pb2.ProbeResponse:
        await self.probe.meet(request)
        held = self.held(request.key)
        unchanged = []
        for place, each in enumerate(request.ids):
            stored = held.get(each.encode())
            digest = request.digests[16 * place : 16 * place + 16]
            unchanged.append(stored is not None and stored.digest == digest)
        return shard_pb2.ProbeResponse(
            unchanged=unchanged, position=self.positions[request.key.shard]
        )

    async def Write(self, request: Any, context: Any) -> shard_pb2.WriteResponse:
        await self.write.meet(request)
        held = self.held(request.key)
        vectors = matrix_from_message(request.vectors)
        sequences, replaced, at = [], [], 0
        for version in request.versions:
            key = version.document.id.encode()
            old = held.get(key)
            replaced.append(old.sequence if old else 0)
            rows = vectors[at : at + version.passage_count]
            at += version.passage_count
            sequences.append(self.put(request.key.shard, version.document, rows, version.digest))
            held[key].spans = list(zip(version.span_starts, version.span_ends, strict=True))
        reply = shard_pb2.WriteResponse(
            sequences=sequences, replaced=replaced, position=self.positions[request.key.shard]
        )
        return self.write.twist(reply) if self.write.twist else reply

    async def Delete(self, request: Any, context: Any) -> shard_pb2.DeleteResponse:
        await self.delete.meet(request)
        held = self.held(request.key)
        found = [held.pop(each.encode(), None) is not None for each in request.ids]
        self.positions[request.key.shard] += len(found)
        return shard_pb2.DeleteResponse(found=found, position=self.positions[request.key.shard])

    async def Optimize(self, request: Any, context: Any) -> shard_pb2.OptimizeResponse:
        self.held(request.key)
        return shard_pb2.OptimizeResponse()


class _Methods:
    """Every RPC of a service; those that the fake lacks are unimplemented."""

    def __init__(self, fake: object) -> None:
        self._fake = fake

    def __getattr__(self, name: str) -> Any:
        return getattr(self._fake, name, _unimplemented)


async def _unimplemented(request: Any, context: Any) -> Any:
    raise NotImplementedError


def text_vector(text: str) -> NDArray[np.float32]:
    """The fake encoder's vector of a text: unit length, the same for the same text."""
    seed = int.from_bytes(text.encode()[:8].ljust(8, b"\0"), "big")
    vector = np.random.default_rng([seed, len(text)]).normal(size=DIM)
    return (vector / np.linalg.norm(vector)).astype(np.float32)


class FakeEncoder:
    """Encodes by hashing; texts of more than 20 words are too long."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.queries, self.documents = Faults(), Faults()
        self.precision = "fp32"

    async def start(self) -> None:
        self._server = GrpcServer(MAX_BYTES)
        service = encoder_pb2.DESCRIPTOR.services_by_name["EncoderService"]
        self._server.add(service, _Methods(self))
        self.address = await self._server.start("127.0.0.1", 0)

    async def stop(self) -> None:
        self.queries.gate.set()
        self.documents.gate.set()
        await self._server.stop(0)

    async def EncodeQueries(self, request: Any, context: Any) -> encoder_pb2.EncodeQueriesResponse:
        await self.queries.meet(request)
        statuses, truncated = [], []
        for text, allowed in zip(request.texts, request.allow_truncation, strict=True):
            long = len(text.split()) > 20
            truncated.append(long and allowed)
            bad = long and not allowed
            statuses.append(common_pb2.Status(reason="TEXT_TOO_LONG" if bad else ""))
        return encoder_pb2.EncodeQueriesResponse(
            fingerprint=request.fingerprint,
            precision=self.precision,
            vectors=matrix_to_message(np.array([text_vector(text) for text in request.texts])),
            statuses=statuses if any(status.reason for status in statuses) else [],
            truncated=truncated,
            token_counts=[len(text.split()) for text in request.texts],
        )

    async def EncodeDocuments(
        self, request: Any, context: Any
    ) -> encoder_pb2.EncodeDocumentsResponse:
        await self.documents.meet(request)
        texts = [each.text for each in request.documents]
        return encoder_pb2.EncodeDocumentsResponse(
            fingerprint=request.fingerprint,
            precision=self.precision,
            passage_counts=[1] * len(texts),
            span_starts=[0] * len(texts),
            span_ends=[len(text) for text in texts],
            vectors=matrix_to_message(np.array([text_vector(text) for text in texts])),
            truncated=[False] * len(texts),
        )


class FakeController:
    """Publishes topologies and records what it is asked."""

    def __init__(self) -> None:
        self.topology = controller_pb2.Topology()
        self._news = asyncio.Condition()
        self.watchers = 0
        self.created: Callable[[Any], Awaitable[Any]] | None = None
        self.asked: list[Any] = []
        self.error: ShoalError | None = None

    async def start(self) -> None:
        self._server = GrpcServer(MAX_BYTES)
        service = controller_pb2.DESCRIPTOR.services_by_name["ControllerService"]
        self._server.add(service, _Methods(self))
        self.address = await self._server.start("127.0.0.1", 0)

    async def stop(self) -> None:
        await self._server.stop(0)

    async def publish(self, topology: controller_pb2.Topology) -> None:
        async with self._news:
            self.topology = topology
            self._news.notify_all()

    async def WatchTopology(
        self, request: Any, context: Any
    ) -> AsyncIterator[controller_pb2.WatchTopologyResponse]:
        self.watchers += 1
        seen = 0
        while True:
            async with self._news:
                while self.topology.version <= seen:
                    await self._news.wait()
                topology = self.topology
            seen = topology.version
            yield controller_pb2.WatchTopologyResponse(topology=topology)

    def note(self, request: Any) -> None:
        self.asked.append(request)
        if self.error is not None:
            raise self.error

    async def CreateCollection(self, request: Any, context: Any) -> Any:
        self.note(request)
        assert self.created is not None
        return await self.created(request)

    async def DropCollection(self, request: Any, context: Any) -> Any:
        self.note(request)
        topology = controller_pb2.Topology()
        topology.CopyFrom(self.topology)
        topology.version += 1
        del topology.collections[:]
        await self.publish(topology)
        return controller_pb2.DropCollectionResponse(topology_version=topology.version)

    async def AcceptLoss(self, request: Any, context: Any) -> Any:
        self.note(request)
        return controller_pb2.AcceptLossResponse(topology_version=self.topology.version)

    async def Scale(self, request: Any, context: Any) -> Any:
        self.note(request)
        taken_over = [f"{request.request.servers} servers"]
        response = router_pb2.ScaleResponse(taken_over=taken_over)
        return controller_pb2.ScaleResponse(response=response)

    async def MoveShard(self, request: Any, context: Any) -> Any:
        self.note(request)
        move = router_pb2.ShardMove(to_server=request.request.to_server)
        response = router_pb2.MoveShardResponse(move=move)
        return controller_pb2.MoveShardResponse(response=response)

    async def Rebalance(self, request: Any, context: Any) -> Any:
        self.note(request)
        return controller_pb2.RebalanceResponse()

    async def GetClusterStatus(self, request: Any, context: Any) -> Any:
        self.note(request)
        return controller_pb2.GetClusterStatusResponse(
            processes=[router_pb2.ProcessInfo(name="controller", role="controller")],
            topology_version=self.topology.version,
            desired={"server": 3},
            pending=["server-2 starts"],
        )


class Cluster:
    """A router, shard servers (one per shard), encoders, and their topology."""

    def __init__(
        self,
        shards: int = 2,
        *,
        encoders: int = 1,
        similarity: Any = common_pb2.SIMILARITY_DOT,
        settings: RouterSettings | None = None,
        limits: Limits | None = None,
    ) -> None:
        self.catalog = MemoryCatalog()
        self.servers = [FakeShardServer(f"server-{number}", [number]) for number in range(shards)]
        self.encoders = [FakeEncoder(f"encoder-{number}") for number in range(encoders)]
        self.topology = controller_pb2.Topology()
        self.similarity = similarity
        self.shard_count = shards
        self.router = RouterServer(
            settings or RouterSettings(watch_retry_ms=20),
            catalog=self.catalog,
            limits=limits or Limits(max_message_bytes=MAX_BYTES),
        )

    async def __aenter__(self) -> "Cluster":
        for each in (*self.servers, *self.encoders):
            await each.start()
        self.publish()
        self.address = await self.router.start()
        self.channel = grpc.aio.insecure_channel(self.address, options=channel_options(-1))
        self.search: Any = SearchServiceStub(self.channel)
        self.admin: Any = AdminServiceStub(self.channel)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.channel.close()
        await self.router.stop(0)
        for each in (*self.servers, *self.encoders):
            await each.stop()

    def placement(self, name: str = "papers", **changes: Any) -> controller_pb2.CollectionPlacement:
        settings = common_pb2.CollectionSettings(
            name=name,
            uuid=UUID,
            kind=common_pb2.COLLECTION_KIND_SINGLE,
            similarity=self.similarity,
            dim=DIM,
            encoder="fake" if self.encoders else "none",
            fingerprint=FINGERPRINT if self.encoders else "",
            index="flat",
            chunk_tokens=256,
            chunk_overlap=32,
            card_json=json.dumps({"dim": DIM}) if self.encoders else "",
        )
        placement = controller_pb2.CollectionPlacement(settings=settings, generation=1)
        for shard in range(self.shard_count):
            holders = [each for each in self.servers if shard in each.shards]
            placement.shards.add(
                servers=[each.name for each in holders],
                documents=len(holders[0].shards[shard]) if holders else 0,
                writer_epoch=1,
            )
        return placement

    def map(self) -> controller_pb2.Topology:
        return controller_pb2.Topology(
            version=self.topology.version + 1,
            servers=[
                controller_pb2.Endpoint(name=each.name, address=each.address)
                for each in self.servers
            ],
            encoders=[
                controller_pb2.Endpoint(
                    name=each.name, address=each.address, fingerprints=[FINGERPRINT]
                )
                for each in self.encoders
            ],
            collections=[self.placement()],
        )

    def publish(self) -> None:
        """Writes a newer topology to the catalog (where a router looks when it is stale)."""
        self.topology = self.map()
        self.catalog.set("topology", self.topology.SerializeToString())

    def put(self, document_id: str, vector: Any, **parts: Any) -> None:
        shard = shard_of(document_id.encode(), self.shard_count)
        document = common_pb2.Document(id=document_id, **parts)
        for server in self.servers:
            if shard in server.shards:
                server.put(shard, document, vector)

    def fill(self, count: int, seed: int = 0) -> dict[str, NDArray[np.float32]]:
        vectors = np.random.default_rng(seed).normal(size=(count, DIM)).astype(np.float32)
        filled = {f"doc-{number}": vector for number, vector in enumerate(vectors)}
        for each, vector in filled.items():
            self.put(each, vector, title=f"title of {each}", text=f"text of {each}")
        return filled


def vector_request(vector: Any, *, collection: str = "papers", **options: Any) -> Any:
    return router_pb2.SearchRequest(
        collection=collection,
        query=router_pb2.Query(vector=matrix_to_message(np.atleast_2d(vector).astype(np.float32))),
        options=router_pb2.SearchOptions(**options),
    )


def text_request(text: str, **options: Any) -> Any:
    return router_pb2.SearchRequest(
        collection="papers",
        query=router_pb2.Query(text=text),
        options=router_pb2.SearchOptions(**options),
    )


def brute_force(
    filled: dict[str, NDArray[np.float32]], vector: NDArray[np.float32], top_k: int
) -> list[str]:
    scored = [
        (-float(each.astype(np.float64) @ vector), key.encode()) for key, each in filled.items()
    ]
    return [key.decode() for _, key in sorted(scored)[:top_k]]
