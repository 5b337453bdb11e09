"""Channels to the routers, for `grpc.aio`; `Spreading` decides."""

import asyncio
import secrets
import time
from collections.abc import Callable, Coroutine
from typing import Any

import grpc

from shoal.client.spreading import Spreading
from shoal.client.transport import (
    ASK_S,
    NO_ANSWER,
    WHO_IS_THERE,
    Rpcs,
    check_open,
    client_options,
    target_addresses,
    typed_error,
)
from shoal.errors import Cancelled, ShoalError
from shoal.wire.draining import drains


def being_cancelled() -> bool:
    """Whether the running task was cancelled: grpc.aio may raise its own error then."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


class AsyncRouters:
    """The asyncio twin of `SyncRouters`, for the event loop that it is first used in.

    Args:
        target: "host:port" of a router, or several with commas between.
        rpcs: makes a router's calls by name from its channel; GetStatus must be among them.
    """

    def __init__(self, target: str, rpcs: Callable[[grpc.aio.Channel], Any] = Rpcs) -> None:
        self._spreading = Spreading(target_addresses(target), secrets.randbelow(1 << 16))
        self._make_rpcs = rpcs
        self._channels: dict[str, tuple[grpc.aio.Channel, Any]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._closed = False

    async def close(self) -> None:
        """Closes every channel; calls under way end with CANCELLED."""
        self._closed = True
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for channel, _ in self._channels.values():
            await channel.close()

    def check_open(self) -> None:
        """Raises InvalidRequest if the client was closed."""
        check_open(self._closed)

    async def call(self, rpc: str, request: Any, timeout_s: float) -> Any:
        """Makes a call at the router that is best now.

        Raises:
            ShoalError: it failed.
        """
        address, rpcs = self.begin()
        error: ShoalError | None = Cancelled("the caller left")
        draining = False
        try:
            call = rpcs[rpc](request, timeout=timeout_s)
            reply = await call
            error, draining = None, drains(await call.trailing_metadata())
        except grpc.aio.AioRpcError as failure:
            ours = self._closed or being_cancelled()
            error = typed_error(failure, address, cancelled_here=ours)
            draining = drains(failure.trailing_metadata())
            raise error from failure
        finally:
            self.end(address, error, draining)
        return reply

    def begin(self) -> tuple[str, Any]:
        """The router for a call or stream, and its calls; `end` must follow.

        Raises:
            InvalidRequest: the client was closed.
        """
        self.check_open()
        address = self._spreading.begin(time.monotonic())
        return address, self._rpcs(address)

    def end(self, address: str, error: ShoalError | None, draining: bool = False) -> None:
        """A call or stream has ended; see `Spreading.end`."""
        self._spreading.end(address, time.monotonic(), error, draining)
        self._look()

    def retry_pause_s(self, error: ShoalError, left_s: float) -> float | None:
        """See `Spreading.retry_pause_s`."""
        return self._spreading.retry_pause_s(error, time.monotonic(), left_s)

    def _rpcs(self, address: str) -> Any:
        # A channel belongs to the running loop, so it is not made before there is one.
        if address not in self._channels:
            channel = grpc.aio.insecure_channel(address, options=client_options())
            self._channels[address] = (channel, self._make_rpcs(channel))
        return self._channels[address][1]

    def _look(self) -> None:
        """Asks routers who is there, without waiting for their answers."""
        if self._closed:
            return
        for address in self._spreading.gone():
            if address in self._channels:
                self._begin(self._channels.pop(address)[0].close())
        for address in self._spreading.asks(time.monotonic()):
            self._begin(self._ask(address))

    async def _ask(self, address: str) -> None:
        try:
            reply = await self._rpcs(address)["GetStatus"](WHO_IS_THERE, timeout=ASK_S)
        except grpc.aio.AioRpcError as failure:
            if failure.code() in NO_ANSWER:
                self._spreading.silent(address, time.monotonic())
            else:
                self._spreading.told(address, time.monotonic(), (), draining=False)
        else:
            self._spreading.told(address, time.monotonic(), reply.routers, reply.draining)
        self._look()

    def _begin(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
