"""Ingest streams: documents in, acknowledgements out, back-pressure between."""

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from typing import Any, TypeAlias

from router import metrics
from router.core.admission import Admission
from router.core.ingest import Batch, IngestOptions, IngestPlanner
from router.core.position import encode_position
from router.core.topology import CollectionMap
from router.document_encoder import DocumentEncoder
from router.ingest_batch import REJECTED, BatchWriter
from router.ingest_checks import Incoming, check_document
from router.requests import RequestChecker, find_collection, fingerprint_mismatch
from router.settings import RouterSettings
from router.shards import ShardCalls
from router.topology import TopologyFollower
from shoal.errors import (
    InternalError,
    InvalidRequest,
    RouterDraining,
    ShardUnavailable,
    ShoalError,
    StaleTopology,
)
from shoal.rpc.router.v1 import router_pb2
from shoal.settings import Limits
from shoal.wire.errors import to_status
from shoal.wire.server import Context

Requests: TypeAlias = AsyncIterator[router_pb2.IngestRequest]


class IngestHandler:
    """Opens streams.

    Args:
        follower: the topology.
        checker: of requests.
        shards: calls to owners.
        encoder: of documents.
        settings: bounds.
    """

    def __init__(
        self,
        follower: TopologyFollower,
        checker: RequestChecker,
        shards: ShardCalls,
        encoder: DocumentEncoder,
        settings: RouterSettings,
    ) -> None:
        self._follower = follower
        self._checker = checker
        self._shards = shards
        self._encoder = encoder
        self._settings = settings
        self._admission = Admission("ingest_streams", settings.ingest_streams, retry_after_s=1.0)
        self._leaving: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.open_streams: Counter[str] = Counter()
        """By collection; those that had some may have 0."""

    def drain(self) -> None:
        """Opens no more streams, and ends those that are open once what they read is stored."""
        if not self._leaving.done():
            self._leaving.set_result(None)

    async def ingest(
        self, requests: Requests, context: Context
    ) -> AsyncGenerator[router_pb2.IngestResponse, None]:
        """Handles `SearchService.Ingest`."""
        with metrics.counted("ingest"), self._admission.enter():
            if self._leaving.done():
                raise RouterDraining("this router is ending; ingest at another one")
            stream = await self._open(requests)
            with self._counted(stream.collection.name):
                yield router_pb2.IngestResponse(
                    started=router_pb2.IngestStarted(
                        window_documents=self._settings.ingest_window_documents,
                        window_bytes=self._settings.ingest_window_bytes,
                    )
                )
                async with contextlib.aclosing(stream.answers(requests)) as answers:
                    async for response in answers:
                        yield response

    @contextlib.contextmanager
    def _counted(self, name: str) -> Iterator[None]:
        self.open_streams[name] += 1
        try:
            yield
        finally:
            self.open_streams[name] -= 1

    async def _open(self, requests: Requests) -> "IngestStream":
        first = await anext(aiter(requests), None)
        if first is None or first.WhichOneof("message") != "start":
            raise InvalidRequest("the first message of an ingest is `start`", field="start")
        start = first.start
        collection = find_collection(self._follower.current, start.collection)
        if start.fingerprint and start.fingerprint != collection.fingerprint:
            raise fingerprint_mismatch(start.fingerprint, collection)
        writer = BatchWriter(
            collection=collection,
            request_id=self._checker.request_id(start.request_id),
            follower=self._follower,
            shards=self._shards,
            encoder=self._encoder,
            settings=self._settings,
            max_message_bytes=self._checker.limits.max_message_bytes,
        )
        return IngestStream(collection, writer, self._settings, self._checker.limits, self._leaving)


class IngestStream:
    """One stream: a reader that stops at the window, batches under way, answers.

    Args:
        collection: that takes the documents.
        writer: of batches.
        settings: window and batch sizes.
        limits: of one document.
        leaving: is done once the router drains: what was read is stored and acknowledged,
            then the stream ends with RouterDraining.
    """

    def __init__(
        self,
        collection: CollectionMap,
        writer: BatchWriter,
        settings: RouterSettings,
        limits: Limits,
        leaving: asyncio.Future[None],
    ) -> None:
        self.collection = collection
        self._writer = writer
        self._limits = limits
        self._leaving = leaving
        self._linger_s = settings.ingest_linger_ms / 1e3
        self._planner: IngestPlanner[Incoming] = IngestPlanner(
            IngestOptions(
                window_documents=settings.ingest_window_documents,
                window_bytes=settings.ingest_window_bytes,
                batch_documents=settings.ingest_batch_documents,
                batch_bytes=settings.ingest_batch_bytes,
                batches=settings.ingest_batches,
            )
        )
        self._positions = [0] * collection.shard_count
        self._last: dict[int, asyncio.Task[None]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._outbox: asyncio.Queue[router_pb2.IngestResponse | None] = asyncio.Queue()
        self._flush = False
        self._failure: ShoalError | None = None

    async def answers(self, requests: Requests) -> AsyncGenerator[router_pb2.IngestResponse, None]:
        """Acknowledgements as documents become durable, until all are answered.

        Raises:
            ShoalError: the stream failed; what is durable was acknowledged before.
        """
        reader = asyncio.create_task(self._run(requests))
        try:
            while (response := await self._outbox.get()) is not None:
                yield response
            await reader
        finally:
            for task in (reader, *self._tasks):
                task.cancel()
            await asyncio.gather(reader, *self._tasks, return_exceptions=True)
        if self._failure is not None:
            raise self._failure

    async def _run(self, requests: Requests) -> None:
        try:
            finished = await self._read(requests)
            self._flush = True
            while not self._planner.idle and self._failure is None:
                self._start_batches()
                await self._next_answer()
            if self._tasks:
                await asyncio.wait(self._tasks)
            if not finished:
                self._fail(RouterDraining("this router is ending; go on at another one"))
        finally:
            self._outbox.put_nowait(None)

    async def _read(self, requests: Requests) -> bool:
        """Reads until the stream ends or fails or the router drains, never beyond the window.

        Returns:
            Whether the client has sent all that it will.
        """
        iterator = aiter(requests)
        upcoming: asyncio.Future[router_pb2.IngestRequest | None] | None = None
        try:
            while self._failure is None and not self._leaving.done():
                if not self._planner.may_read:
                    self._flush = True
                    self._start_batches()
                    await self._next_answer()
                    continue
                upcoming = upcoming or asyncio.ensure_future(_next(iterator))
                # A message that is there already costs no wait; else nothing more
                # comes for now, and half-full batches may leave.
                self._flush = upcoming.done() is False and await self._lingers(upcoming)
                self._start_batches()
                if not upcoming.done():
                    await self._news(upcoming)
                    continue
                message, upcoming = upcoming.result(), None
                if message is None:
                    return True
                self._take(message)
        finally:
            if upcoming is not None:
                upcoming.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await upcoming
        return False

    async def _lingers(self, upcoming: "asyncio.Future[router_pb2.IngestRequest | None]") -> bool:
        await asyncio.wait({upcoming}, timeout=self._linger_s)
        return not upcoming.done()

    async def _news(self, upcoming: "asyncio.Future[router_pb2.IngestRequest | None]") -> None:
        """Returns when a message has come, a batch has ended, or the router drains.

        A batch that failed before this was called is not waited for any more, but shows in
        `_failure`.
        """
        if self._failure is None:
            either: set[asyncio.Future[Any]] = {upcoming, self._leaving, *self._tasks}
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)

    async def _next_answer(self) -> None:
        if self._tasks:
            await asyncio.wait(self._tasks, return_when=asyncio.FIRST_COMPLETED)

    def _take(self, message: router_pb2.IngestRequest) -> None:
        if message.WhichOneof("message") != "documents":
            raise InvalidRequest("`start` is the first message only", field="start")
        rejected = []
        for each in message.documents.documents:
            try:
                self._planner.add(check_document(each, self.collection, self._limits))
            except ShoalError as error:
                rejected.append(
                    router_pb2.IngestAcknowledgement(
                        number=each.number, outcome=REJECTED, status=to_status(error)
                    )
                )
        if rejected:
            self._acknowledge(rejected)

    def _start_batches(self) -> None:
        for batch in self._planner.start(self._flush):
            task = asyncio.create_task(self._store(batch, self._last.get(batch.shard)))
            self._last[batch.shard] = task
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _store(self, batch: Batch[Incoming], before: asyncio.Task[None] | None) -> None:
        try:
            written = await self._writer.store(batch, before)
            position = max(self._positions[batch.shard], written.position)
            self._positions[batch.shard] = position
            self._acknowledge(written.acknowledgements)
            self._planner.done(batch)
        except ShoalError as error:
            self._fail(_as_stream_error(error, batch.shard))
        except Exception as error:
            self._fail(InternalError(f"ingest failed: {error!r}"))
            raise

    def _fail(self, error: ShoalError) -> None:
        """The first failure ends the stream; the others' batches still end as they can."""
        self._writer.hurry = True
        self._failure = self._failure or error

    def _acknowledge(self, acknowledgements: list[router_pb2.IngestAcknowledgement]) -> None:
        for each in acknowledgements:
            metrics.documents.labels(router_pb2.IngestOutcome.Name(each.outcome)).inc()
        self._outbox.put_nowait(
            router_pb2.IngestResponse(
                acknowledgements=router_pb2.IngestAcknowledgements(
                    acknowledgements=acknowledgements,
                    position=encode_position(*self.collection.lane, self._positions),
                )
            )
        )


async def _next(requests: Requests) -> router_pb2.IngestRequest | None:
    return await anext(requests, None)


def _as_stream_error(error: ShoalError, shard: int) -> ShoalError:
    """A shard that never came back is unavailable, whichever way it failed; the error names it."""
    if isinstance(error, StaleTopology) or error.reason in ("DEADLINE_EXCEEDED", "CANCELLED"):
        return ShardUnavailable(f"shard {shard} does not take writes: {error}", shard=shard)
    error.metadata.setdefault("shard", str(shard))
    return error
