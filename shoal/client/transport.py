"""What the sync and the asyncio client share about channels: options, targets, errors."""

import os
from typing import Any

import grpc

from shoal.errors import ClusterUnreachable, InvalidRequest, ShoalError
from shoal.rpc.router.v1 import router_pb2_grpc
from shoal.wire.channels import channel_options
from shoal.wire.errors import from_rpc_error

DEFAULT_TARGET = "127.0.0.1:50051"
TARGET_VARIABLE = "SHOAL_TARGET"
UNBOUNDED = -1


def resolve_target(target: str | None) -> str:
    """The target given, else the one in SHOAL_TARGET, else the default."""
    return target or os.environ.get(TARGET_VARIABLE) or DEFAULT_TARGET


def client_options() -> list[tuple[str, int]]:
    """Channel options: no size bound here (the cluster has one), quick reconnects."""
    return [
        *channel_options(UNBOUNDED),
        ("grpc.initial_reconnect_backoff_ms", 100),
        ("grpc.max_reconnect_backoff_ms", 1000),
    ]


def check_open(closed: bool) -> None:
    """Raises InvalidRequest for a client that was closed."""
    if closed:
        raise InvalidRequest("this client is closed; connect again", field="client")


class Rpcs:
    """The cluster's calls by name, on a sync or an asyncio channel."""

    def __init__(self, channel: Any) -> None:
        self._stubs = (
            router_pb2_grpc.SearchServiceStub(channel),
            router_pb2_grpc.AdminServiceStub(channel),
        )

    def __getitem__(self, rpc: str) -> Any:
        search, admin = self._stubs
        return getattr(search, rpc, None) or getattr(admin, rpc)


def typed_error(error: grpc.RpcError, target: str) -> ShoalError:
    """The failure of a call as one of Shoal's errors; names the target nobody answers at."""
    typed = from_rpc_error(error)
    if isinstance(typed, ClusterUnreachable):
        return ClusterUnreachable(f"nothing answers at {target} ({typed.message})", target=target)
    return typed
