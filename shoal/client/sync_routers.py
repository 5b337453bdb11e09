"""Channels to the routers, for gRPC's synchronous API; `Spreading` decides."""

import secrets
import threading
import time
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


class SyncRouters:
    """A channel to each router, made when first needed; safe to use from many threads.

    Args:
        target: "host:port" of a router, or several with commas between.
    """

    def __init__(self, target: str) -> None:
        self._spreading = Spreading(target_addresses(target), secrets.randbelow(1 << 16))
        self._channels: dict[str, tuple[grpc.Channel, Rpcs]] = {}
        # A question that is answered at once calls back in the thread that asks.
        self._lock = threading.RLock()
        self._closed = False

    def close(self) -> None:
        """Closes every channel; calls under way end with CANCELLED."""
        with self._lock:
            self._closed = True
        for channel, _ in self._channels.values():
            channel.close()

    def check_open(self) -> None:
        """Raises InvalidRequest if the client was closed."""
        check_open(self._closed)

    def call(self, rpc: str, request: Any, timeout_s: float) -> Any:
        """Makes a call at the router that is best now.

        Raises:
            ShoalError: it failed.
        """
        address, rpcs = self.begin()
        error: ShoalError | None = Cancelled("the caller left")
        draining = False
        try:
            reply, ended = rpcs[rpc].with_call(request, timeout=timeout_s)
            error, draining = None, drains(ended.trailing_metadata())
        except grpc.RpcError as failure:
            error = typed_error(failure, address, cancelled_here=self._closed)
            draining = drains(failure.trailing_metadata())
            raise error from failure
        finally:
            self.end(address, error, draining)
        return reply

    def begin(self) -> tuple[str, Rpcs]:
        """The router for a call or stream, and its calls; `end` must follow.

        Raises:
            InvalidRequest: the client was closed.
        """
        with self._lock:
            self.check_open()
            address = self._spreading.begin(time.monotonic())
            return address, self._rpcs(address)

    def end(self, address: str, error: ShoalError | None, draining: bool = False) -> None:
        """A call or stream has ended; see `Spreading.end`."""
        with self._lock:
            self._spreading.end(address, time.monotonic(), error, draining)
            self._look()

    def retry_pause_s(self, error: ShoalError, left_s: float) -> float | None:
        """See `Spreading.retry_pause_s`."""
        with self._lock:
            return self._spreading.retry_pause_s(error, time.monotonic(), left_s)

    def _rpcs(self, address: str) -> Rpcs:
        if address not in self._channels:
            channel = grpc.insecure_channel(address, options=client_options())
            self._channels[address] = (channel, Rpcs(channel))
        return self._channels[address][1]

    def _look(self) -> None:
        """Asks routers who is there, without waiting for their answers."""
        if self._closed:
            return
        for address in self._spreading.gone():
            if address in self._channels:
                self._channels.pop(address)[0].close()
        for address in self._spreading.asks(time.monotonic()):
            question = self._rpcs(address)["GetStatus"].future(WHO_IS_THERE, timeout=ASK_S)
            question.add_done_callback(lambda ended, at=address: self._answered(at, ended))

    def _answered(self, address: str, ended: Any) -> None:
        with self._lock:
            now = time.monotonic()
            if (code := ended.code()) is grpc.StatusCode.OK:
                reply = ended.result()
                self._spreading.told(address, now, reply.routers, reply.draining)
            elif code in NO_ANSWER:
                self._spreading.silent(address, now)
            else:
                self._spreading.told(address, now, (), draining=False)
            self._look()
