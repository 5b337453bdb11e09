"""A router that only answers searches, at a speed that is known: for the load tester's tests."""
# ruff: noqa: N802 - handlers bear the names of their RPCs

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager

import grpc

from shoal.loadtest.driver import event_loop
from shoal.rpc.common.v1 import common_pb2
from shoal.rpc.router.v1 import router_pb2, router_pb2_grpc

Delay = Callable[[], Awaitable[None]]
FULL = common_pb2.Coverage(
    documents_total=2, documents_covered=2, shards_total=2, shards_answered=2
)


class LoadServer(router_pb2_grpc.SearchServiceServicer):
    """Attributes say what an answer is like: set them before a call."""

    def __init__(self, delay: Delay) -> None:
        self._delay = delay
        self.coverage = FULL
        self.refusal: grpc.StatusCode | None = None

    async def Search(self, request, context):
        await self._delay()
        if self.refusal is not None:
            await context.abort(self.refusal, "as the test wants it")
        return router_pb2.SearchResponse(
            hits=[router_pb2.Hit(id="a", score=1.0)], coverage=self.coverage
        )


@contextmanager
def serving(delay: Delay) -> Iterator[tuple[str, LoadServer]]:
    """A started server on a thread of its own: its address, and itself."""
    loop, servicer = event_loop(), LoadServer(delay)
    thread = threading.Thread(target=loop.run_forever)
    thread.start()

    async def start() -> tuple[grpc.aio.Server, int]:
        server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
        router_pb2_grpc.add_SearchServiceServicer_to_server(servicer, server)
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        return server, port

    server, port = asyncio.run_coroutine_threadsafe(start(), loop).result()
    try:
        yield f"127.0.0.1:{port}", servicer
    finally:
        asyncio.run_coroutine_threadsafe(server.stop(0), loop).result()
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


def no_delay() -> Delay:
    """Answers at once."""

    async def delay() -> None:
        return None

    return delay


def stalls(every_s: float, for_s: float) -> Delay:
    """The first `for_s` seconds of each `every_s`, nothing is answered."""

    async def delay() -> None:
        phase = time.monotonic() % every_s
        if phase < for_s:
            await asyncio.sleep(for_s - phase)

    return delay


def one_slot(service_s: float) -> Delay:
    """One call at a time, each for `service_s`: the capacity is exactly 1 / service_s.

    Calls end by an appointment made on arrival: a sleep that ends late, as sleeps
    do, makes one answer late and takes nothing from the capacity.
    """
    free = 0.0

    async def delay() -> None:
        nonlocal free
        free = max(free, time.monotonic()) + service_s
        await asyncio.sleep(free - time.monotonic())

    return delay
