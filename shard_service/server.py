"""The shard service over gRPC: messages in, messages out; work happens on threads."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from shard_service import copy_messages, late_messages, messages, metrics
from shard_service.core.late import LateFound
from shard_service.core.search import Found
from shard_service.core.writers import Writers
from shard_service.indexes import threads
from shard_service.registry import Registry
from shard_service.settings import ShardSettings
from shard_service.writer import DeleteOperation
from shoal.errors import DeadlineExceeded, Overloaded, ShoalError
from shoal.rpc.shard.v1 import shard_pb2, shard_pb2_grpc
from shoal.settings import Limits, load
from shoal.storage.directory import open_storage
from shoal.types import Kind
from shoal.wire.arrays import check_limit
from shoal.wire.metrics import OFF, serve_metrics
from shoal.wire.server import Context, GrpcServer

logger = logging.getLogger(__name__)

_READ_THREADS = 2
"""Threads for Fetch, Probe and status: they wait for disks and locks, not for cores."""
_ADMIN_THREADS = 2
"""Threads for opening, closing and optimising shards."""

Result = TypeVar("Result")


class ShardServer:
    """A process that holds shards. Starts with none; the controller opens them."""

    def __init__(self, settings: ShardSettings) -> None:
        self._settings = settings
        self._limits = load(Limits, "SHOAL_LIMIT_")
        self.metrics_port = OFF
        self._grpc = GrpcServer(self._limits.max_message_bytes)
        self._servicer = _Servicer(settings, self._limits)
        self._grpc.add(shard_pb2.DESCRIPTOR.services_by_name["ShardService"], self._servicer)

    async def start(self) -> str:
        """Listens and returns "host:port"."""
        self.metrics_port = serve_metrics(self._settings.host, self._settings.metrics_port)
        address = await self._grpc.start(self._settings.host, self._settings.port)
        await self._grpc.set_serving(True)
        logger.info("event=started address=%s", address)
        return address

    async def stop(self, grace_s: float) -> None:
        """Lets running calls end within grace_s, then closes every shard."""
        await self._grpc.stop(grace_s)
        await self._servicer.close()
        logger.info("event=stopped")

    async def wait(self) -> None:
        """Returns when the server has stopped."""
        await self._grpc.wait()


@dataclass(frozen=True, slots=True)
class _Work:
    """The queries of one Search message that a search thread answers.

    Attributes:
        numbers: [answered] which queries of the message they are.
        deadlines: [answered] float64, by `time.monotonic`.
        abandoned: set when the caller has gone.
    """

    numbers: NDArray[np.int64]
    deadlines: NDArray[np.float64]
    abandoned: threading.Event

    def wanted(self) -> NDArray[np.bool_]:
        """Per query: its answer is still of use."""
        if self.abandoned.is_set():
            return np.zeros(len(self.numbers), dtype=np.bool_)
        wanted: NDArray[np.bool_] = self.deadlines > time.monotonic()
        return wanted


class _Servicer(shard_pb2_grpc.ShardServiceServicer):
    def __init__(self, settings: ShardSettings, limits: Limits) -> None:
        self._settings, self._limits = settings, limits
        self._registry = Registry(settings, open_storage(settings.data))
        threads.limit_reads()
        self._searchers = ThreadPoolExecutor(
            settings.search_threads, "shard-search", initializer=threads.use_one_core
        )
        self._readers = ThreadPoolExecutor(_READ_THREADS, "shard-read")
        self._admin = ThreadPoolExecutor(
            _ADMIN_THREADS, "shard-admin", initializer=threads.use_one_core
        )
        self._waiting = 0

    async def close(self) -> None:
        await self._on(self._admin, self._registry.close_all)
        for pool in (self._searchers, self._readers, self._admin):
            pool.shutdown(wait=False, cancel_futures=True)

    async def _on(self, pool: ThreadPoolExecutor, work: Callable[[], Result]) -> Result:
        return await asyncio.get_running_loop().run_in_executor(pool, work)

    # --- shards -----------------------------------------------------------------

    async def OpenShard(
        self, request: shard_pb2.OpenShardRequest, context: Context
    ) -> shard_pb2.OpenShardResponse:
        spec = messages.shard_spec(request, self._limits)
        writers = messages.writers(request.writers)
        status = await self._on(
            self._admin,
            lambda: self._registry.open(spec, request.writer_epoch, request.accept_loss, writers),
        )
        return shard_pb2.OpenShardResponse(status=status)

    async def PrepareShard(
        self, request: shard_pb2.PrepareShardRequest, context: Context
    ) -> shard_pb2.PrepareShardResponse:
        spec = messages.shard_spec(request, self._limits)
        status = await self._on(self._admin, lambda: self._registry.prepare(spec))
        return shard_pb2.PrepareShardResponse(status=status)

    async def CloseShard(
        self, request: shard_pb2.CloseShardRequest, context: Context
    ) -> shard_pb2.CloseShardResponse:
        ref = messages.shard_ref(request.key)
        await self._on(self._admin, lambda: self._registry.close(ref, drop=request.drop))
        return shard_pb2.CloseShardResponse()

    async def Optimize(
        self, request: shard_pb2.OptimizeRequest, context: Context
    ) -> shard_pb2.OptimizeResponse:
        ref = messages.shard_ref(request.key)
        shard = self._registry.serving(ref)
        await self._on(self._admin, shard.optimize)
        return shard_pb2.OptimizeResponse(status=self._registry.status(ref))

    async def GetStatus(
        self, request: shard_pb2.GetStatusRequest, context: Context
    ) -> shard_pb2.GetStatusResponse:
        return shard_pb2.GetStatusResponse(
            shards=await self._on(self._readers, self._registry.statuses),
            search_threads=self._settings.search_threads,
        )

    # --- searching --------------------------------------------------------------

    async def Search(
        self, request: shard_pb2.SearchRequest, context: Context
    ) -> shard_pb2.SearchResponse:
        arrived = time.monotonic()
        shard = self._registry.serving(messages.shard_ref(request.key))
        count = messages.check_search(request, self._limits)
        view = shard.view
        if any(after > view.position for after in request.after_sequence):
            shard.check_owner()
        errors = messages.query_errors(shard.spec, request, view.position, self._limits)
        found: Found | LateFound
        if shard.spec.kind is Kind.COLBERT:
            late = late_messages.late_queries(request, shard.spec)
            work = _work(request, errors, arrived)
            asked = [late[number] for number in work.numbers.tolist()]
            found, started, ended = await self._search(
                work, lambda: shard.search_late(view, asked, work.wanted)
            )
        else:
            queries = messages.single_queries(request)
            errors |= messages.vector_errors(shard.spec, queries)
            work = _work(request, errors, arrived)
            vectors = queries[work.numbers] if errors else queries
            top_k = np.array(request.top_k, dtype=np.int64)[work.numbers]
            found, started, ended = await self._search(
                work, lambda: shard.search(view, vectors, top_k, work.wanted)
            )
        for number in work.numbers[found.dropped].tolist():
            errors[number] = DeadlineExceeded("the query's time was over on the shard")
        response = messages.search_response(found, count, work.numbers, errors)
        response.documents, response.position = view.documents, view.position
        response.queue_us = int((started - arrived) * 1e6)
        response.search_us = int((ended - started) * 1e6)
        metrics.record_search(count, started - arrived, ended - started)
        return response

    async def _search(
        self, work: _Work, search: Callable[[], Result]
    ) -> tuple[Result, float, float]:
        if self._waiting >= self._settings.max_waiting_searches:
            metrics.OVERLOADED.inc()
            raise Overloaded("too many searches wait on this shard server", retry_after_s=0.05)

        def run() -> tuple[Result, float, float]:
            started = time.monotonic()
            return search(), started, time.monotonic()

        self._waiting += 1
        try:
            return await self._on(self._searchers, run)
        finally:
            self._waiting -= 1
            work.abandoned.set()

    # --- writing ----------------------------------------------------------------

    async def Write(
        self, request: shard_pb2.WriteRequest, context: Context
    ) -> shard_pb2.WriteResponse:
        shard = self._registry.serving(messages.shard_ref(request.key))
        operation, errors = await self._on(
            self._readers, lambda: messages.check_write(shard, request, self._limits)
        )
        if operation is None:
            return messages.write_response(
                len(request.versions), [], [], shard.view.position, errors
            )
        writer = messages.writer_of(request)
        outcome = await asyncio.wrap_future(shard.write(operation, writer))
        metrics.WRITTEN.inc(len(outcome.sequences))
        if writer is Writers.USERS:
            shard.drift.tokens += operation.tokens
            shard.drift.far += operation.far
            metrics.NEW_TOKENS.inc(operation.tokens)
            metrics.FAR_TOKENS.inc(operation.far)
        return messages.write_response(
            len(request.versions), outcome.sequences, outcome.replaced, outcome.position, errors
        )

    async def Delete(
        self, request: shard_pb2.DeleteRequest, context: Context
    ) -> shard_pb2.DeleteResponse:
        shard = self._registry.serving(messages.shard_ref(request.key))
        check_limit("max_ids", len(request.ids), self._limits.max_ids)
        operation = DeleteOperation([key.encode() for key in request.ids])
        writer = messages.writer_of(request)
        outcome = await asyncio.wrap_future(shard.delete(operation, writer))
        metrics.DELETED.inc(sum(outcome.found))
        return shard_pb2.DeleteResponse(found=outcome.found, position=outcome.position)

    # --- reading ----------------------------------------------------------------

    async def Probe(
        self, request: shard_pb2.ProbeRequest, context: Context
    ) -> shard_pb2.ProbeResponse:
        shard = self._registry.serving(messages.shard_ref(request.key))
        check_limit("max_ids", len(request.ids), self._limits.max_ids)
        digests = messages.probe_digests(request)
        ids = [key.encode() for key in request.ids]
        unchanged, position = await self._on(self._readers, lambda: shard.probe(ids, digests))
        return shard_pb2.ProbeResponse(unchanged=unchanged, position=position)

    async def Fetch(
        self, request: shard_pb2.FetchRequest, context: Context
    ) -> shard_pb2.FetchResponse:
        shard = self._registry.serving(messages.shard_ref(request.key))
        return await self._on(self._readers, lambda: messages.fetch(shard, request, self._limits))

    # --- copying ----------------------------------------------------------------

    async def ListDocuments(
        self, request: shard_pb2.ListDocumentsRequest, context: Context
    ) -> shard_pb2.ListDocumentsResponse:
        shard = self._registry.serving(messages.shard_ref(request.key))
        return await self._on(self._admin, lambda: copy_messages.list_documents(shard, request))

    async def Export(
        self, request: shard_pb2.ExportRequest, context: Context
    ) -> shard_pb2.ExportResponse:
        shard = self._registry.serving(messages.shard_ref(request.key))
        return await self._on(
            self._admin, lambda: copy_messages.export(shard, request, self._limits)
        )

    async def SetWriters(
        self, request: shard_pb2.SetWritersRequest, context: Context
    ) -> shard_pb2.SetWritersResponse:
        shard = self._registry.serving(messages.shard_ref(request.key))
        writers = messages.writers(request.writers)
        position = await self._on(
            self._admin, lambda: shard.admit(writers, request.writer_epoch, request.order)
        )
        return shard_pb2.SetWritersResponse(position=position, writer_epoch=shard.writer_epoch)

    # --- late interaction ---------------------------------------------------------

    async def Score(
        self, request: shard_pb2.ScoreRequest, context: Context
    ) -> shard_pb2.ScoreResponse:
        shard = self._registry.serving(messages.shard_ref(request.key))
        return await self._on(
            self._readers, lambda: late_messages.score(shard, request, self._limits)
        )

    async def Sample(
        self, request: shard_pb2.SampleRequest, context: Context
    ) -> shard_pb2.SampleResponse:
        shard = self._registry.serving(messages.shard_ref(request.key))
        return await self._on(
            self._readers, lambda: late_messages.sample(shard, request, self._limits)
        )


def _work(request: shard_pb2.SearchRequest, errors: dict[int, ShoalError], arrived: float) -> _Work:
    left = np.array(request.time_left_us, dtype=np.float64) / 1e6
    numbers = np.arange(len(left))
    if errors:
        numbers = np.setdiff1d(numbers, np.fromiter(errors, np.int64, len(errors)))
    return _Work(numbers, arrived + left[numbers], threading.Event())
