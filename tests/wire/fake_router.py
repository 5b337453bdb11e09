"""A router of one process and no index: the contract over real gRPC, with faults on demand."""
# ruff: noqa: N802 - handlers bear the names of their RPCs

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import grpc
import numpy as np

from shoal.errors import (
    CollectionExists,
    CollectionNotFound,
    EmptyText,
    InsufficientCoverage,
    LossMismatch,
    RouterDraining,
    ShoalError,
)
from shoal.rpc.common.v1 import common_pb2
from shoal.rpc.router.v1 import router_pb2, router_pb2_grpc
from shoal.settings import Limits
from shoal.wire.arrays import matrix_from_message
from shoal.wire.channels import channel_options
from shoal.wire.draining import DRAINING
from shoal.wire.errors import grpc_code, to_status, trailers

SHARDS = 2
MOVE = router_pb2.ShardMove(
    collection="papers", shard=0, from_server="server-0", to_server="server-1", bytes=7_000
)


@dataclass
class FakeCollection:
    settings: common_pb2.CollectionSettings
    documents: dict[str, router_pb2.IngestDocument] = field(default_factory=dict)


@dataclass
class Stream:
    """What one ingest stream saw."""

    start: router_pb2.IngestStart
    messages: list[router_pb2.IngestDocuments] = field(default_factory=list)
    ended_by_client: bool = False


class FakeRouter(router_pb2_grpc.SearchServiceServicer, router_pb2_grpc.AdminServiceServicer):
    """Attributes are the faults: set them before a call."""

    def __init__(self, limits: Limits, window_documents: int, window_bytes: int) -> None:
        self.limits = limits
        self.window = router_pb2.IngestStarted(
            window_documents=window_documents, window_bytes=window_bytes
        )
        self.collections: dict[str, FakeCollection] = {}
        self.requests: list[object] = []
        self.streams: list[Stream] = []
        self.errors: dict[str, list[ShoalError]] = {}
        self.missing: list[common_pb2.MissingShard] = []
        self.break_after: list[int] = []
        self.end_after: list[int] = []
        self.server_count = 1
        self.pending: list[list[str]] = []
        self.silent = False
        self.refuse: Callable[[router_pb2.IngestDocument], ShoalError | None] = lambda _: None
        self.loss = "records 7 to 9"
        self.hang: threading.Event | None = None
        self.time_left_s: dict[str, float] = {}
        self.routers: list[str] = []
        self.draining = False
        self.drain_after: int | None = None

    # --- lifecycle -----------------------------------------------------------

    def start(self, port: int = 0) -> str:
        self._pool = ThreadPoolExecutor(16)
        self._server = grpc.server(
            self._pool, options=channel_options(self.limits.max_message_bytes)
        )
        router_pb2_grpc.add_SearchServiceServicer_to_server(self, self._server)
        router_pb2_grpc.add_AdminServiceServicer_to_server(self, self._server)
        self.port = self._server.add_insecure_port(f"127.0.0.1:{port}")
        assert self.port
        self._server.start()
        return f"127.0.0.1:{self.port}"

    def stop(self) -> None:
        self._server.stop(0).wait()
        self._pool.shutdown()

    # --- admin -----------------------------------------------------------------

    def GetStatus(self, request, context):
        # A client asks who is there whenever it thinks fit: that is no part of what a test did.
        if not request.router_only:
            self._begin("GetStatus", request, context)
        return router_pb2.GetStatusResponse(
            processes=[
                router_pb2.ProcessInfo(
                    name="router-0", role="router", address="x:1", state="serving", pid=7
                )
            ],
            collections=[self._info(self.collections[name]) for name in sorted(self.collections)],
            topology_version=3,
            limits={name: getattr(self.limits, name) for name in Limits.__dataclass_fields__},
            version="0.1.0",
            controller_reachable=True,
            desired={"router": 1, "server": self.server_count},
            pending=self.pending.pop(0) if self.pending and not request.router_only else (),
            routers=self.routers,
            draining=self.draining,
        )

    def CreateCollection(self, request, context):
        self._begin("CreateCollection", request, context)
        if request.name in self.collections:
            self._fail(context, CollectionExists(f"{request.name} exists"))
        settings = common_pb2.CollectionSettings(
            name=request.name,
            uuid=bytes(16),
            kind=request.kind,
            similarity=request.similarity or common_pb2.SIMILARITY_COSINE,
            dim=request.dim or 384,
            encoder=request.encoder or "all-minilm-l6-v2",
            fingerprint="" if request.encoder == "none" else "f" * 64,
            index=request.index or "auto",
            chunk_tokens=request.chunk_tokens if request.HasField("chunk_tokens") else 200,
        )
        self.collections[request.name] = FakeCollection(settings)
        return router_pb2.CreateCollectionResponse(
            collection=self._info(self.collections[request.name])
        )

    def DropCollection(self, request, context):
        self._begin("DropCollection", request, context)
        self._collection(request.name, context)
        del self.collections[request.name]
        return router_pb2.DropCollectionResponse()

    def ListCollections(self, request, context):
        self._begin("ListCollections", request, context)
        return router_pb2.ListCollectionsResponse(
            collections=[self._info(self.collections[name]) for name in sorted(self.collections)]
        )

    def OptimizeCollection(self, request, context):
        self._begin("OptimizeCollection", request, context)
        self._collection(request.name, context)
        return router_pb2.OptimizeCollectionResponse()

    def AcceptLoss(self, request, context):
        self._begin("AcceptLoss", request, context)
        if request.loss != self.loss:
            self._fail(context, LossMismatch(f"the shard lost {self.loss}"))
        return router_pb2.AcceptLossResponse()

    # --- size ---------------------------------------------------------------------

    def Scale(self, request, context):
        self._begin("Scale", request, context)
        if request.drain:
            self.server_count -= 1
        if request.HasField("servers"):
            self.server_count = request.servers
        self.pending = [["server-1 starts", "papers/0 moves from server-0 to server-1"], []]
        return router_pb2.ScaleResponse(moves=[MOVE], taken_over=["server-9 starts"])

    def MoveShard(self, request, context):
        self._begin("MoveShard", request, context)
        return router_pb2.MoveShardResponse(move=MOVE)

    def Rebalance(self, request, context):
        self._begin("Rebalance", request, context)
        return router_pb2.RebalanceResponse(moves=[MOVE])

    # --- documents ---------------------------------------------------------------

    def Search(self, request, context):
        self._begin("Search", request, context)
        collection = self._collection(request.collection, context)
        try:
            hits = self._hits(collection, request.query, request.options)
        except ShoalError as error:
            self._fail(context, error)
        return router_pb2.SearchResponse(
            hits=hits,
            coverage=self._coverage(collection),
            fingerprint=collection.settings.fingerprint,
            generation=1,
            position=b"position",
            timings=common_pb2.StageTimings(encode_us=1500, total_us=2500),
            request_id=request.request_id,
        )

    def SearchBatch(self, request, context):
        self._begin("SearchBatch", request, context)
        collection = self._collection(request.collection, context)
        queries = [router_pb2.Query(text=text) for text in request.texts]
        if request.HasField("vectors"):
            rows, columns = request.vectors.rows, request.vectors.columns
            size = len(request.vectors.data) // rows
            queries = [
                router_pb2.Query(
                    vector=common_pb2.Matrix(
                        element_type=request.vectors.element_type,
                        rows=1,
                        columns=columns,
                        data=request.vectors.data[row * size : (row + 1) * size],
                    )
                )
                for row in range(rows)
            ]
        answers = []
        for query in queries:
            try:
                hits = self._hits(collection, query, request.options)
            except ShoalError as error:
                answers.append(router_pb2.BatchAnswer(status=to_status(error)))
            else:
                coverage = self._coverage(collection)
                answers.append(router_pb2.BatchAnswer(hits=hits, coverage=coverage))
        return router_pb2.SearchBatchResponse(
            answers=answers, fingerprint=collection.settings.fingerprint
        )

    def Get(self, request, context):
        self._begin("Get", request, context)
        collection = self._collection(request.collection, context)
        results = []
        for document_id in request.ids:
            stored = collection.documents.get(document_id)
            results.append(
                router_pb2.GetResult(found=False)
                if stored is None
                else router_pb2.GetResult(found=True, document=stored.document)
            )
        return router_pb2.GetResponse(results=results)

    def Delete(self, request, context):
        self._begin("Delete", request, context)
        collection = self._collection(request.collection, context)
        return router_pb2.DeleteResponse(
            found=[collection.documents.pop(item, None) is not None for item in request.ids],
            position=b"deleted",
        )

    def Ingest(self, requests, context):
        first = next(requests)
        assert first.WhichOneof("message") == "start"
        self._begin("Ingest", first.start, context)
        collection = self._collection(first.start.collection, context)
        stream = Stream(first.start)
        self.streams.append(stream)
        yield router_pb2.IngestResponse(started=self.window)
        seen: set[str] = set()
        if self.draining:
            self._fail(context, RouterDraining("this router is ending"))
        limit = self.break_after.pop(0) if self.break_after else None
        last = self.end_after.pop(0) if self.end_after else None
        for request in requests:
            assert request.WhichOneof("message") == "documents"
            stream.messages.append(request.documents)
            if self.silent:
                continue
            acknowledgements = [
                self._store(collection, document, seen) for document in request.documents.documents
            ]
            if limit is not None and len(seen) >= limit:
                context.abort(grpc.StatusCode.UNAVAILABLE, "socket closed")
            yield router_pb2.IngestResponse(
                acknowledgements=router_pb2.IngestAcknowledgements(
                    acknowledgements=reversed(acknowledgements), position=b"ingested"
                )
            )
            if last is not None and len(seen) >= last:
                return
            if self.drain_after is not None and len(seen) >= self.drain_after:
                self.draining = True
                self._fail(context, RouterDraining("this router is ending"))
        stream.ended_by_client = True

    # --- within --------------------------------------------------------------------

    def _store(self, collection, given, seen) -> router_pb2.IngestAcknowledgement:
        document_id = given.document.id
        error = self.refuse(given)
        if error is not None:
            return router_pb2.IngestAcknowledgement(
                number=given.number,
                outcome=router_pb2.INGEST_OUTCOME_REJECTED,
                status=to_status(error),
            )
        kept = router_pb2.IngestDocument(document=given.document)
        if given.HasField("vector"):
            kept.vector.CopyFrom(given.vector)
        unchanged = collection.documents.get(document_id) == kept
        collection.documents[document_id] = kept
        duplicate = document_id in seen and not unchanged
        seen.add(document_id)
        return router_pb2.IngestAcknowledgement(
            number=given.number,
            outcome=router_pb2.INGEST_OUTCOME_UNCHANGED
            if unchanged
            else router_pb2.INGEST_OUTCOME_STORED,
            duplicate=duplicate,
            truncated=len(given.document.text.split()) > 200,
        )

    def _hits(self, collection, query, options) -> list[router_pb2.Hit]:
        if query.WhichOneof("input") == "text" and not query.text.strip():
            raise EmptyText("there are no words")
        coverage = self._coverage(collection)
        if self.missing and options.min_coverage > (
            coverage.documents_covered / max(1, coverage.documents_total)
        ):
            raise InsufficientCoverage(
                "shard 1 is missing", missing="1:SHARD_UNAVAILABLE", covered=0.5
            )
        scored = sorted(
            (-self._score(query, item), item.document.id)
            # A copy: other threads store meanwhile.
            for item in list(collection.documents.values())
        )
        return [
            self._hit(collection.documents[document_id], -score, options)
            for score, document_id in scored[: options.top_k]
        ]

    @staticmethod
    def _score(query, item) -> float:
        if query.WhichOneof("input") == "text":
            words = set(query.text.lower().split())
            return float(len(words & set(item.document.text.lower().split())))
        return float(
            np.dot(matrix_from_message(query.vector)[0], matrix_from_message(item.vector)[0])
        )

    @staticmethod
    def _hit(item, score, options) -> router_pb2.Hit:
        document, fields = item.document, set(options.fields)
        hit = router_pb2.Hit(id=document.id, score=score, shard=len(document.id) % SHARDS)
        if router_pb2.FIELD_TITLE in fields:
            hit.title = document.title
        if router_pb2.FIELD_TEXT in fields:
            hit.text = document.text
        if router_pb2.FIELD_PAYLOAD in fields:
            hit.payload = document.payload
        if fields and not item.HasField("vector"):
            hit.chunk.end = len(document.text) // 2
        return hit

    def _coverage(self, collection) -> common_pb2.Coverage:
        total = len(collection.documents)
        missing = len(self.missing)
        return common_pb2.Coverage(
            documents_total=total,
            documents_covered=total * (SHARDS - missing) // SHARDS,
            shards_total=SHARDS,
            shards_answered=SHARDS - missing,
            missing=self.missing,
        )

    def _info(self, collection) -> router_pb2.CollectionInfo:
        return router_pb2.CollectionInfo(
            settings=collection.settings,
            generation=1,
            documents=len(collection.documents),
            shards=[
                router_pb2.ShardInfo(
                    shard=shard, server=f"server-{shard}", state="serving", recall=1.0
                )
                for shard in range(SHARDS)
            ],
        )

    def last(self, kind):
        """The newest request of a kind: clients also ask which routers there are."""
        return next(each for each in reversed(self.requests) if isinstance(each, kind))

    def _begin(self, rpc, request, context) -> None:
        self.requests.append(request)
        left_s = context.time_remaining()
        self.time_left_s[rpc] = float("inf") if left_s is None else left_s
        if self.draining:
            context.set_trailing_metadata((DRAINING,))
        if self.hang is not None:
            self.hang.wait(10)
        if self.errors.get(rpc):
            self._fail(context, self.errors[rpc].pop(0))

    def _collection(self, name, context) -> FakeCollection:
        if name not in self.collections:
            self._fail(context, CollectionNotFound(f"no collection is named {name!r}"))
        return self.collections[name]

    def _fail(self, context, error: ShoalError) -> None:
        context.set_trailing_metadata(trailers(error) + (DRAINING,) * self.draining)
        context.abort(grpc_code(error.code), error.message)


def running(
    limits: Limits | None = None, window_documents: int = 64, window_bytes: int = 1 << 20
) -> Iterator[FakeRouter]:
    """Body of a fixture: a started router, stopped afterwards."""
    router = FakeRouter(limits or Limits(), window_documents, window_bytes)
    router.target = router.start()
    yield router
    router.stop()
