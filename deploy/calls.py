"""Calls that the controller makes to services: one channel per address, a deadline each."""

import asyncio
from collections.abc import Awaitable
from typing import Any, TypeVar

import grpc
from google.protobuf.message import Message
from grpc_health.v1 import health_pb2, health_pb2_grpc

from deploy.core.build import GenerationPhase
from deploy.records import Record, key_to_message
from shoal.errors import ClusterUnreachable, ShoalError
from shoal.rpc.encoder.v1 import encoder_pb2, encoder_pb2_grpc
from shoal.rpc.router.v1 import router_pb2, router_pb2_grpc
from shoal.rpc.shard.v1 import shard_pb2, shard_pb2_grpc
from shoal.types import ShardRef
from shoal.wire.channels import channel_options
from shoal.wire.errors import from_rpc_error

T = TypeVar("T")
WRITERS = {
    GenerationPhase.SERVING: shard_pb2.WRITERS_UNSPECIFIED,
    GenerationPhase.TRAINING: shard_pb2.WRITERS_NOBODY,
    GenerationPhase.COPYING: shard_pb2.WRITERS_BUILDER,
    GenerationPhase.PREVIOUS: shard_pb2.WRITERS_NOBODY,
}
"""Whose writes the shards of a generation take."""


class Calls:
    """Typed calls by address. Every call may raise a ShoalError."""

    def __init__(self, max_message_bytes: int) -> None:
        self._options = channel_options(max_message_bytes)
        self._channels: dict[str, grpc.aio.Channel] = {}

    def _channel(self, address: str) -> grpc.aio.Channel:
        channel = self._channels.get(address)
        if channel is None:
            channel = grpc.aio.insecure_channel(address, options=self._options)
            self._channels[address] = channel
        return channel

    async def forget(self, address: str) -> None:
        """Closes the channel to a process that is gone."""
        channel = self._channels.pop(address, None)
        if channel is not None:
            await channel.close()

    async def close(self) -> None:
        """Closes every channel."""
        for address in list(self._channels):
            await self.forget(address)

    async def serving(self, address: str, timeout_s: float) -> bool:
        """The process's health service says SERVING."""
        stub = health_pb2_grpc.HealthStub(self._channel(address))
        answer = await _ask(stub.Check(health_pb2.HealthCheckRequest(), timeout=timeout_s))
        return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)

    async def encoder_models(self, address: str, timeout_s: float) -> frozenset[str]:
        """Fingerprints that an encoder serves."""
        stub = encoder_pb2_grpc.EncoderServiceStub(self._channel(address))
        info = await _ask(stub.GetInfo(encoder_pb2.GetInfoRequest(), timeout=timeout_s))
        return frozenset(model.fingerprint for model in info.models)

    async def load_model(
        self, address: str, reference: str, fingerprint: str, timeout_s: float
    ) -> encoder_pb2.ModelInfo:
        """Has an encoder load a model; an empty fingerprint accepts any."""
        stub = encoder_pb2_grpc.EncoderServiceStub(self._channel(address))
        request = encoder_pb2.LoadModelRequest(encoder=reference, fingerprint=fingerprint)
        return (await _ask(stub.LoadModel(request, timeout=timeout_s))).model

    async def encoder(self, address: str, method: str, request: Message, timeout_s: float) -> Any:
        """Calls a method of an encoder by its name."""
        stub = encoder_pb2_grpc.EncoderServiceStub(self._channel(address))
        return await _ask(getattr(stub, method)(request, timeout=timeout_s))

    async def shard(self, address: str, method: str, request: Message, timeout_s: float) -> Any:
        """Calls a method of a shard server by its name."""
        stub = shard_pb2_grpc.ShardServiceStub(self._channel(address))
        return await _ask(getattr(stub, method)(request, timeout=timeout_s))

    async def router(self, address: str, timeout_s: float) -> router_pb2.GetStatusResponse:
        """What a router says of itself."""
        stub = router_pb2_grpc.AdminServiceStub(self._channel(address))
        request = router_pb2.GetStatusRequest(router_only=True)
        return await _ask(stub.GetStatus(request, timeout=timeout_s))

    async def open_ingests(self, address: str, timeout_s: float) -> dict[str, int]:
        """Ingest streams that are open at a router, by collection."""
        return dict((await self.router(address, timeout_s)).open_ingests)

    async def shard_statuses(
        self, address: str, timeout_s: float
    ) -> tuple[shard_pb2.ShardStatus, ...]:
        """Every shard that a server holds."""
        stub = shard_pb2_grpc.ShardServiceStub(self._channel(address))
        answer = await _ask(stub.GetStatus(shard_pb2.GetStatusRequest(), timeout=timeout_s))
        return tuple(answer.shards)

    async def open_shard(
        self, address: str, record: Record, shard: int, accept_loss: str, timeout_s: float
    ) -> shard_pb2.ShardStatus:
        """Has a server open a shard under the highest epoch that its record names."""
        collection = record.collection
        request = shard_pb2.OpenShardRequest(
            key=key_to_message(collection.ref(shard)),
            shard_count=len(collection.shards),
            settings=record.settings,
            writer_epoch=collection.shards[shard].next_epoch - 1,
            accept_loss=accept_loss,
            writers=WRITERS[collection.phase],
        )
        stub = shard_pb2_grpc.ShardServiceStub(self._channel(address))
        return (await _ask(stub.OpenShard(request, timeout=timeout_s))).status

    async def prepare_shard(
        self, address: str, record: Record, shard: int, timeout_s: float
    ) -> shard_pb2.ShardStatus:
        """Has a server read a shard that another one serves."""
        collection = record.collection
        request = shard_pb2.PrepareShardRequest(
            key=key_to_message(collection.ref(shard)),
            shard_count=len(collection.shards),
            settings=record.settings,
        )
        stub = shard_pb2_grpc.ShardServiceStub(self._channel(address))
        return (await _ask(stub.PrepareShard(request, timeout=timeout_s))).status

    async def close_shard(self, address: str, ref: ShardRef, drop: bool, timeout_s: float) -> None:
        """Has a server let a shard go, and delete its data if drop is set."""
        stub = shard_pb2_grpc.ShardServiceStub(self._channel(address))
        request = shard_pb2.CloseShardRequest(key=key_to_message(ref), drop=drop)
        await _ask(stub.CloseShard(request, timeout=timeout_s))


async def _ask(call: Awaitable[T]) -> T:
    try:
        return await call
    except grpc.aio.AioRpcError as error:
        raise from_rpc_error(error) from error
    except asyncio.CancelledError as error:
        task = asyncio.current_task()
        if task is None or task.cancelling():
            raise
        # Closing a dead process's channel cancels the calls on it.
        raise ClusterUnreachable("the process has gone") from error


def short(error: ShoalError) -> str:
    """An error in one line, for status and logs."""
    return f"{error.reason}: {error.message}"
