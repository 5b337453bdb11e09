"""Errors on the wire: gRPC code + google.rpc.ErrorInfo + RetryInfo, and back."""

import grpc
from google.protobuf import any_pb2, duration_pb2
from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2, status_pb2

from shoal.errors import (
    Cancelled,
    ClusterUnreachable,
    Code,
    DeadlineExceeded,
    InternalError,
    LimitExceeded,
    NotSupported,
    ShoalError,
    from_reason,
)
from shoal.rpc.common.v1 import common_pb2

DOMAIN = "shoal"
_DETAILS_KEY = "grpc-status-details-bin"
_GRPC_CODES: dict[int, grpc.StatusCode] = {code.value[0]: code for code in grpc.StatusCode}


def grpc_code(code: Code) -> grpc.StatusCode:
    """The gRPC library's name of a code."""
    return _GRPC_CODES[code.value]


def trailers(error: ShoalError) -> tuple[tuple[str, bytes], ...]:
    """Trailing metadata that carries the error's reason, metadata and retry hint."""
    details = [
        _any(
            error_details_pb2.ErrorInfo(reason=error.reason, domain=DOMAIN, metadata=error.metadata)
        )
    ]
    if error.retry_after_s is not None:
        delay = duration_pb2.Duration()
        delay.FromNanoseconds(int(error.retry_after_s * 1e9))
        details.append(_any(error_details_pb2.RetryInfo(retry_delay=delay)))
    if field := error.metadata.get("field"):
        violation = error_details_pb2.BadRequest.FieldViolation(
            field=field, description=error.message
        )
        details.append(_any(error_details_pb2.BadRequest(field_violations=[violation])))
    status = status_pb2.Status(code=error.code.value, message=error.message, details=details)
    return ((_DETAILS_KEY, status.SerializeToString()),)


def _any(
    message: error_details_pb2.ErrorInfo
    | error_details_pb2.RetryInfo
    | error_details_pb2.BadRequest,
) -> any_pb2.Any:
    packed = any_pb2.Any()
    packed.Pack(message)
    return packed


def from_rpc_error(error: grpc.RpcError) -> ShoalError:
    """The typed exception behind a failed call; errors without ErrorInfo map by code."""
    if not isinstance(error, grpc.aio.AioRpcError | grpc.Call):
        return InternalError(str(error))
    for key, value in error.trailing_metadata() or ():
        if key == _DETAILS_KEY and isinstance(value, bytes):
            typed = _from_details(value)
            if typed is not None:
                return typed
    return _from_code(error.code(), error.details() or "")


def _from_details(data: bytes) -> ShoalError | None:
    try:
        status = status_pb2.Status.FromString(data)
    except DecodeError:
        return None
    info, retry = error_details_pb2.ErrorInfo(), error_details_pb2.RetryInfo()
    found, retry_after_s = False, None
    for detail in status.details:
        if detail.Unpack(retry):
            retry_after_s = retry.retry_delay.ToNanoseconds() / 1e9
        found = detail.Unpack(info) or found
    if not found or info.domain != DOMAIN:
        return None
    return from_reason(info.reason, status.message, dict(info.metadata), retry_after_s)


def _from_code(code: grpc.StatusCode, details: str) -> ShoalError:
    if code is grpc.StatusCode.UNAVAILABLE:
        return ClusterUnreachable(details)
    if code is grpc.StatusCode.DEADLINE_EXCEEDED:
        return DeadlineExceeded(details)
    if code is grpc.StatusCode.CANCELLED:
        return Cancelled(details)
    if code is grpc.StatusCode.RESOURCE_EXHAUSTED:
        # The one such refusal that gRPC makes by itself is of a message's size.
        return LimitExceeded(details, limit="max_message_bytes")
    if code is grpc.StatusCode.UNIMPLEMENTED:
        return NotSupported(details)
    return InternalError(f"{code.name}: {details}")


def to_status(error: ShoalError) -> common_pb2.Status:
    """One query's or document's failure inside a message."""
    return common_pb2.Status(reason=error.reason, message=error.message, metadata=error.metadata)


def from_status(status: common_pb2.Status) -> ShoalError | None:
    """The failure that a status holds; None if it is OK."""
    if not status.reason:
        return None
    return from_reason(status.reason, status.message, dict(status.metadata))
