"""An ingest on `grpc.aio`: the caller's task, and one each for reading and writing."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterable
from typing import Any

import grpc

from shoal.client.async_routers import AsyncRouters, being_cancelled
from shoal.client.documents import GivenDocument
from shoal.client.ingest import IngestSession, IngestWatch, OnRejected, Progress
from shoal.client.model import IngestReport
from shoal.client.sync_ingest import GRACE_S, LOOK_S
from shoal.client.transport import typed_error
from shoal.errors import NotReady, ShoalError


class AsyncIngest:
    """Runs one session in the running event loop."""

    def __init__(self, session: IngestSession, routers: AsyncRouters) -> None:
        self._session = session
        self._routers = routers
        self._changed = asyncio.Event()

    async def run(
        self,
        documents: Iterable[GivenDocument] | AsyncIterable[GivenDocument],
        progress: Progress | None,
        on_rejected: OnRejected,
    ) -> IngestReport:
        """Stores the documents and reports on each."""
        watch = IngestWatch(self._session, progress, on_rejected)

        def look() -> None:
            report = watch.due(time.monotonic())
            if progress is not None and report is not None:
                progress(report)

        pump = asyncio.create_task(self._pump())
        try:
            number = 0
            async for given in _in_loop(documents):
                await self._wait_until(lambda: self._session.has_room, look, pump)
                self._session.offer(number, given, time.monotonic())
                self._tell()
                number += 1
            self._session.close()
            self._tell()
            await self._wait_until(lambda: self._session.done, look, pump)
            await asyncio.wait([pump], timeout=GRACE_S)
        finally:
            pump.cancel()
            await asyncio.wait([pump])
        if progress is not None:
            progress(self._session.report)
        return self._session.report

    def _tell(self) -> None:
        """Wakes all that wait for a change."""
        self._changed.set()
        self._changed = asyncio.Event()

    async def _wait(self, timeout_s: float | None) -> None:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._changed.wait(), timeout_s)

    async def _wait_until(
        self, ready: Callable[[], bool], look: Callable[[], None], pump: "asyncio.Task[None]"
    ) -> None:
        while True:
            look()
            if pump.done():
                pump.result()
            if ready():
                return
            self._session.check_stall(time.monotonic())
            await self._wait(LOOK_S)

    async def _pump(self) -> None:
        try:
            while not self._session.done:
                await self._one_stream()
        finally:
            self._tell()

    async def _one_stream(self) -> None:
        address, rpcs = self._routers.begin()
        error: ShoalError | None = None
        stream = rpcs["Ingest"]()
        writer = asyncio.create_task(self._write(stream))
        try:
            while (response := await stream.read()) is not grpc.aio.EOF:
                self._session.receive(response, time.monotonic())
                self._tell()
            # Raises the error that the stream ended with, if it did.
            if await stream.code() is not grpc.StatusCode.OK:
                await stream.read()
        except grpc.RpcError as failure:
            error = typed_error(failure, address, cancelled_here=being_cancelled())
        finally:
            self._routers.end(address, error)
            stream.cancel()
            writer.cancel()
            await asyncio.wait([writer])
        if self._session.done:
            return
        early = NotReady("the cluster ended the ingest stream early")
        self._session.broken(error or early, time.monotonic())
        await asyncio.sleep(self._session.hold_s(time.monotonic()))

    async def _write(self, stream: Any) -> None:
        # A failed write ends the stream, and the reader learns why.
        with contextlib.suppress(grpc.RpcError, asyncio.InvalidStateError):
            await stream.write(self._session.open())
            while not self._session.done:
                now = time.monotonic()
                message = self._session.next_message(now)
                if message is None:
                    await self._wait(self._session.hold_s(now) or None)
                    continue
                await stream.write(message)
            await stream.done_writing()


async def _in_loop(
    documents: Iterable[GivenDocument] | AsyncIterable[GivenDocument],
) -> AsyncIterator[GivenDocument]:
    if isinstance(documents, AsyncIterable):
        async for given in documents:
            yield given
        return
    for given in documents:
        yield given
