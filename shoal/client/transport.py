"""What the sync and the asyncio client share about channels: options, targets, errors."""

import os
from typing import Any

import grpc

from shoal.errors import Cancelled, ClusterUnreachable, InvalidRequest, ShoalError
from shoal.rpc.router.v1 import router_pb2, router_pb2_grpc
from shoal.wire.channels import channel_options
from shoal.wire.errors import from_rpc_error

DEFAULT_TARGET = "127.0.0.1:50051"
TARGET_VARIABLE = "SHOAL_TARGET"
UNBOUNDED = -1

WHO_IS_THERE = router_pb2.GetStatusRequest(router_only=True)
"""Asks a router which routers there are, and whether it is about to end."""
# Time for the answer, in seconds.
ASK_S = 2.0
NO_ANSWER = (
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.DEADLINE_EXCEEDED,
    grpc.StatusCode.CANCELLED,
)
"""Of the question: any other failure is an answer, of a router that does not know."""

# How gRPC's messages begin where no connection was there to send on (1.85, tests/wire).
_NOT_CONNECTED = ("failed to connect to all addresses", "errors resolving", "DNS resolution failed")


def resolve_target(target: str | None) -> str:
    """The target given, else the one in SHOAL_TARGET, else the default."""
    return target or os.environ.get(TARGET_VARIABLE) or DEFAULT_TARGET


def target_addresses(target: str) -> list[str]:
    """The addresses of a target: "a:1,b:2" names two.

    Raises:
        InvalidRequest: it names none.
    """
    addresses = [address.strip() for address in target.split(",") if address.strip()]
    if not addresses:
        raise InvalidRequest(
            f"{target!r} names no router; give host:port, or several with commas between",
            field="target",
        )
    return addresses


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


def typed_error(error: grpc.RpcError, address: str, *, cancelled_here: bool = False) -> ShoalError:
    """The failure of a call as one of Shoal's errors.

    Where nothing answers, the error names the address, and says as `connected` whether the
    request may have got there: "no" or "maybe".

    Args:
        error: gRPC's.
        address: of the router that was called.
        cancelled_here: it was this side that cancelled the call, if anybody did.
    """
    typed = from_rpc_error(error)
    if isinstance(typed, ClusterUnreachable):
        never_sent = typed.message.startswith(_NOT_CONNECTED)
        return ClusterUnreachable(
            f"nothing answers at {address} ({typed.message})",
            target=address,
            connected="no" if never_sent else "maybe",
        )
    if isinstance(typed, Cancelled) and not cancelled_here:
        # grpc.aio drops so what arrives at the moment in which a server stops (1.85).
        return ClusterUnreachable(
            f"the router at {address} dropped the call", target=address, connected="maybe"
        )
    return typed
