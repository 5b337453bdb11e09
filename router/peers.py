"""Channels to the cluster's other processes, and calls that fail with typed errors."""

import asyncio
from collections.abc import Collection
from typing import Any, TypeVar

import grpc
from google.protobuf.message import Message

from shoal.errors import Cancelled, DeadlineExceeded
from shoal.rpc.controller.v1.controller_pb2_grpc import ControllerServiceStub
from shoal.rpc.encoder.v1.encoder_pb2_grpc import EncoderServiceStub
from shoal.rpc.shard.v1.shard_pb2_grpc import ShardServiceStub
from shoal.wire.channels import channel_options
from shoal.wire.errors import from_rpc_error

Response = TypeVar("Response", bound=Message)

# A restarted process is found again within a second, not after gRPC's two minutes.
_RECONNECT = [
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 1_000),
    ("grpc.max_reconnect_backoff_ms", 1_000),
]
_GRACE_S = 10.0


class Peers:
    """One channel per address, opened when first used.

    Args:
        max_message_bytes: largest message sent or received.
    """

    def __init__(self, max_message_bytes: int) -> None:
        self._options = [*channel_options(max_message_bytes), *_RECONNECT]
        self._channels: dict[str, grpc.aio.Channel] = {}
        self._stubs: dict[tuple[str, type], Any] = {}
        self._closing: set[asyncio.Task[None]] = set()

    def shard(self, address: str) -> Any:
        """Stub of the shard server at an address."""
        return self._stub(address, ShardServiceStub)

    def encoder(self, address: str) -> Any:
        """Stub of the encoder worker at an address."""
        return self._stub(address, EncoderServiceStub)

    def controller(self, address: str) -> Any:
        """Stub of the controller at an address."""
        return self._stub(address, ControllerServiceStub)

    def _stub(self, address: str, kind: type) -> Any:
        stub = self._stubs.get((address, kind))
        if stub is None:
            channel = self._channels.get(address)
            if channel is None:
                channel = grpc.aio.insecure_channel(address, options=self._options)
                self._channels[address] = channel
            stub = self._stubs[address, kind] = kind(channel)
        return stub

    def keep(self, addresses: Collection[str], grace_s: float | None = _GRACE_S) -> None:
        """Closes the channels to all other addresses; their calls get grace_s to end."""
        for address in [each for each in self._channels if each not in addresses]:
            for key in [key for key in self._stubs if key[0] == address]:
                del self._stubs[key]
            task = asyncio.ensure_future(self._channels.pop(address).close(grace_s))
            self._closing.add(task)
            task.add_done_callback(self._closing.discard)

    async def close(self) -> None:
        """Closes every channel."""
        self.keep((), grace_s=None)
        await asyncio.gather(*self._closing, return_exceptions=True)


async def invoke(method: Any, request: Message, timeout_s: float) -> Any:
    """Calls a stub's method.

    Args:
        method: of a stub.
        request: its request.
        timeout_s: the call's own deadline.

    Returns:
        The method's response.

    Raises:
        ShoalError: whatever went wrong; a peer that is not there is
            ClusterUnreachable.
        asyncio.CancelledError: this task was cancelled, and with it the call.
    """
    if timeout_s <= 0:
        raise DeadlineExceeded("the time was over before the call")
    try:
        return await method(request, timeout=timeout_s)
    except grpc.RpcError as error:
        raise from_rpc_error(error) from error
    except (grpc.aio.UsageError, asyncio.CancelledError) as error:
        task = asyncio.current_task()
        if task is not None and task.cancelling():
            raise
        # Not this task but the call was ended: its address left the topology.
        raise Cancelled("the connection was closed") from error
