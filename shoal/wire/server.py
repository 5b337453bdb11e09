"""One way to run a gRPC server: typed errors, checked parsing, health, reflection.

Handlers are the generated servicers' methods. Requests are parsed inside the
handler, because gRPC answers an unparseable message with a bare INTERNAL.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, TypeAlias

import grpc
from google.protobuf.descriptor import MethodDescriptor, ServiceDescriptor
from google.protobuf.message import DecodeError, Message
from google.protobuf.message_factory import GetMessageClass
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from shoal.errors import InternalError, MalformedMessage, NotSupported, ShoalError
from shoal.wire.channels import channel_options
from shoal.wire.draining import DRAINING
from shoal.wire.errors import grpc_code, trailers

__all__ = ["Context", "GrpcServer", "RawHandler", "channel_options"]

logger = logging.getLogger(__name__)

Servicer = object
Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"
RawHandler: TypeAlias = "Callable[[bytes, Context], Awaitable[bytes]]"

# A draining server that nobody has called for so long may stop: its clients have gone.
QUIET_S = 0.3


class _Leave:
    """Whether a server is ending, and when it was last called.

    Attributes:
        begun: every answer now says so.
        called_s: of the newest call, on the monotonic clock.
    """

    def __init__(self) -> None:
        self.begun = False
        self.called_s = 0.0

    @property
    def metadata(self) -> tuple[tuple[str, str], ...]:
        """What an answer that leaves now says in its trailing metadata."""
        return (DRAINING,) if self.begun else ()

    def mark(self, context: Context) -> None:
        """To be called as a reply leaves."""
        if self.begun:
            context.set_trailing_metadata(self.metadata)


class GrpcServer:
    """A `grpc.aio` server with health and reflection.

    Health says NOT_SERVING until `set_serving(True)`.
    """

    def __init__(self, max_message_bytes: int) -> None:
        self._server = grpc.aio.server(options=channel_options(max_message_bytes))
        self._health = health.aio.HealthServicer()
        self._leave = _Leave()
        self._names: list[str] = [health.SERVICE_NAME, reflection.SERVICE_NAME]
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)

    def add(
        self,
        service: ServiceDescriptor,
        servicer: Servicer,
        raw: dict[str, RawHandler] | None = None,
    ) -> None:
        """Serves `servicer`, whose methods have the names of the service's RPCs.

        Args:
            service: descriptor from the generated module.
            servicer: an instance of the generated servicer class.
            raw: RPCs whose handler takes and gives bytes, by name (hot paths).
        """
        raw = raw or {}
        handlers = {
            method.name: _handler(
                method,
                raw.get(method.name) or getattr(servicer, method.name),
                method.name in raw,
                self._leave,
            )
            for method in service.methods
        }
        self._server.add_registered_method_handlers(service.full_name, handlers)
        self._server.add_generic_rpc_handlers(
            (grpc.method_handlers_generic_handler(service.full_name, handlers),)
        )
        self._names.append(service.full_name)

    async def start(self, host: str, port: int) -> str:
        """Listens and returns "host:port"; port 0 takes a free one.

        Raises:
            OSError: the port is taken (EADDRINUSE).
        """
        reflection.enable_server_reflection(self._names, self._server)
        await self.set_serving(False)
        try:
            bound = self._server.add_insecure_port(f"{host}:{port}")
        except RuntimeError as error:
            bound = 0
            cause: BaseException | None = error
        else:
            cause = None
        if bound == 0:
            raise OSError(
                errno.EADDRINUSE, f"port {port} on {host} is taken; choose another"
            ) from cause
        await self._server.start()
        return f"{host}:{bound}"

    async def set_serving(self, serving: bool) -> None:
        """Publishes readiness on every service, and on "" for the process."""
        status = (
            health_pb2.HealthCheckResponse.SERVING
            if serving
            else health_pb2.HealthCheckResponse.NOT_SERVING
        )
        for name in ["", *self._names]:
            await self._health.set(name, status)

    async def drain(self) -> None:
        """Says NOT_SERVING, and in every answer from now on that it is about to end."""
        await self._health.enter_graceful_shutdown()
        self._leave.begun, self._leave.called_s = True, time.monotonic()

    async def until_quiet(self, most_s: float) -> None:
        """Returns once nobody has called for QUIET_S, or after most_s."""
        leave, end_s = self._leave, time.monotonic() + most_s
        # Every call puts the end off.
        while (left_s := min(end_s, leave.called_s + QUIET_S) - time.monotonic()) > 0:  # noqa: ASYNC110
            await asyncio.sleep(left_s)

    async def stop(self, grace_s: float) -> None:
        """Says NOT_SERVING, refuses new calls, lets running ones end within grace_s."""
        await self._health.enter_graceful_shutdown()
        await self._server.stop(grace_s)

    async def wait(self) -> None:
        """Returns when the server has stopped."""
        await self._server.wait_for_termination()


def _handler(
    method: MethodDescriptor, call: Any, raw: bool, leave: _Leave
) -> grpc.RpcMethodHandler[Any, Any]:
    request_type = GetMessageClass(method.input_type)
    if method.client_streaming and method.server_streaming:
        return grpc.stream_stream_rpc_method_handler(_stream_stream(request_type, call, leave))
    if method.server_streaming:
        return grpc.unary_stream_rpc_method_handler(_unary_stream(request_type, call, leave))
    if raw:
        return grpc.unary_unary_rpc_method_handler(_raw(call, leave))
    return grpc.unary_unary_rpc_method_handler(_unary_unary(request_type, call, leave))


def _parse(request_type: type[Message], data: bytes) -> Message:
    try:
        return request_type.FromString(data)
    except DecodeError as error:
        raise MalformedMessage(
            f"the bytes are no {request_type.DESCRIPTOR.full_name} (protobuf, text in UTF-8)"
        ) from error


def _raw(call: RawHandler, leave: _Leave) -> RawHandler:
    async def handle(data: bytes, context: Context) -> bytes:
        leave.called_s = time.monotonic()
        try:
            reply = await call(data, context)
        except Exception as error:
            return await _fail(context, error, leave)
        leave.mark(context)
        return reply

    return handle


def _unary_unary(request_type: type[Message], call: Any, leave: _Leave) -> RawHandler:
    async def handle(data: bytes, context: Context) -> bytes:
        response: Message = await call(_parse(request_type, data), context)
        return response.SerializeToString()

    return _raw(handle, leave)


def _unary_stream(request_type: type[Message], call: Any, leave: _Leave) -> Any:
    async def handle(data: bytes, context: Context) -> AsyncIterator[bytes]:
        try:
            async for response in call(_parse(request_type, data), context):
                yield response.SerializeToString()
        except Exception as error:
            await _fail(context, error, leave)
        leave.mark(context)

    return handle


def _stream_stream(request_type: type[Message], call: Any, leave: _Leave) -> Any:
    async def handle(requests: AsyncIterator[bytes], context: Context) -> AsyncIterator[bytes]:
        async def parsed() -> AsyncIterator[Message]:
            async for data in requests:
                yield _parse(request_type, data)

        try:
            async for response in call(parsed(), context):
                yield response.SerializeToString()
        except Exception as error:
            await _fail(context, error, leave)
        leave.mark(context)

    return handle


async def _fail(context: Context, error: Exception, leave: _Leave) -> bytes:
    """Ends the call with the error's code and details; never returns."""
    if isinstance(error, grpc.aio.AbortError | asyncio.CancelledError):
        raise error
    if isinstance(error, NotImplementedError):
        error = NotSupported("this server does not do that yet")
    if not isinstance(error, ShoalError):
        error_id = secrets.token_hex(8)
        logger.exception("event=internal_error error_id=%s", error_id)
        error = InternalError(
            f"internal error {error_id}; the server's log has more", error_id=error_id
        )
    metadata: tuple[tuple[str, str | bytes], ...] = (*trailers(error), *leave.metadata)
    await context.abort(grpc_code(error.code), error.message, metadata)
    raise AssertionError("abort returned")
