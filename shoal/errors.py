"""The one table of everything that can go wrong, as typed exceptions.

Each class is a row: its stable reason, its gRPC code, whether the same call may
succeed if tried again, and whether the caller caused it. The docstring says
what happened and what to do. Servers raise these, `shoal.wire.errors` carries
them as `google.rpc.ErrorInfo`, clients raise them again.
"""

from enum import Enum
from typing import ClassVar


class Code(Enum):
    """gRPC status codes by number, without importing gRPC here."""

    CANCELLED = 1
    INVALID_ARGUMENT = 3
    DEADLINE_EXCEEDED = 4
    NOT_FOUND = 5
    ALREADY_EXISTS = 6
    RESOURCE_EXHAUSTED = 8
    FAILED_PRECONDITION = 9
    ABORTED = 10
    UNIMPLEMENTED = 12
    INTERNAL = 13
    UNAVAILABLE = 14
    DATA_LOSS = 15


class ShoalError(Exception):
    """Any error of Shoal.

    Attributes:
        reason: stable name of the row, UPPER_SNAKE.
        code: gRPC status code.
        retryable: the same call may succeed later, unchanged.
        caller_fault: the caller must change something.
        metadata: facts for a program (strings by name).
        retry_after_s: least time to wait before a retry, or None.
    """

    reason: ClassVar[str] = ""
    code: ClassVar[Code] = Code.INTERNAL
    retryable: ClassVar[bool] = False
    caller_fault: ClassVar[bool] = False

    def __init__(
        self, message: str, *, retry_after_s: float | None = None, **metadata: str | int | float
    ) -> None:
        super().__init__(message)
        self.message = message
        self.metadata = {name: str(value) for name, value in metadata.items()}
        self.retry_after_s = retry_after_s

    def __init_subclass__(
        cls, *, reason: str, code: Code, retryable: bool = False, caller_fault: bool = False
    ) -> None:
        super().__init_subclass__()
        if reason in TABLE:
            raise TypeError(f"reason {reason} stands in the table twice")
        cls.reason, cls.code, cls.retryable, cls.caller_fault = (
            reason,
            code,
            retryable,
            caller_fault,
        )
        TABLE[reason] = cls


TABLE: dict[str, type[ShoalError]] = {}
"""Every error by its reason, in the order of this module."""


# --- the request is wrong ---------------------------------------------------


class InvalidRequest(
    ShoalError,
    ValueError,
    reason="INVALID_REQUEST",
    code=Code.INVALID_ARGUMENT,
    caller_fault=True,
):
    """A field has a value that cannot be; `field` names it. Correct it."""


class MalformedMessage(
    ShoalError,
    ValueError,
    reason="MALFORMED_MESSAGE",
    code=Code.INVALID_ARGUMENT,
    caller_fault=True,
):
    """The bytes are no such message: not protobuf, not UTF-8, or a matrix whose
    length is not rows x columns. Build the message from the protos.
    """


class LimitExceeded(
    ShoalError,
    ValueError,
    reason="LIMIT_EXCEEDED",
    code=Code.INVALID_ARGUMENT,
    caller_fault=True,
):
    """Something is larger than a limit; `limit` names it, `allowed` and `given`
    are its numbers. Send less at a time, or raise the setting.
    """


class InvalidTopK(
    ShoalError, ValueError, reason="INVALID_TOP_K", code=Code.INVALID_ARGUMENT, caller_fault=True
):
    """top_k is below 1 or above the limit `max_top_k`. Ask for a number between."""


class InvalidName(
    ShoalError, ValueError, reason="INVALID_NAME", code=Code.INVALID_ARGUMENT, caller_fault=True
):
    """A collection's name is not [a-z0-9][a-z0-9_-]{0,63}. Choose another."""


class InvalidId(
    ShoalError, ValueError, reason="INVALID_ID", code=Code.INVALID_ARGUMENT, caller_fault=True
):
    """A document's id is empty, over 512 bytes of UTF-8, or holds a NUL. Use a
    shorter one, such as a hash of it.
    """


class InvalidPayload(
    ShoalError, ValueError, reason="INVALID_PAYLOAD", code=Code.INVALID_ARGUMENT, caller_fault=True
):
    """A document's payload is not a JSON object. Send one, or nothing."""


class EmptyText(
    ShoalError, ValueError, reason="EMPTY_TEXT", code=Code.INVALID_ARGUMENT, caller_fault=True
):
    """There are no words to encode. Send some, or a vector."""


class TextTooLong(
    ShoalError, ValueError, reason="TEXT_TOO_LONG", code=Code.INVALID_ARGUMENT, caller_fault=True
):
    """A question has more tokens than the encoder takes. Shorten it, or set
    allow_truncation.
    """


class DimensionMismatch(
    ShoalError,
    ValueError,
    reason="DIMENSION_MISMATCH",
    code=Code.INVALID_ARGUMENT,
    caller_fault=True,
):
    """A vector has another number of columns than its collection. Check which
    encoder made it.
    """


class NonFiniteVector(
    ShoalError,
    ValueError,
    reason="NON_FINITE_VECTOR",
    code=Code.INVALID_ARGUMENT,
    caller_fault=True,
):
    """A vector holds NaN or infinity. Mend what made it."""


class ZeroVector(
    ShoalError, ValueError, reason="ZERO_VECTOR", code=Code.INVALID_ARGUMENT, caller_fault=True
):
    """A vector of length zero has no direction, so cosine cannot compare it."""


# --- it is not there, or there already --------------------------------------


class CollectionNotFound(
    ShoalError, LookupError, reason="COLLECTION_NOT_FOUND", code=Code.NOT_FOUND, caller_fault=True
):
    """No collection has this name. `shoal ls` lists them."""


class EncoderNotFound(
    ShoalError, LookupError, reason="ENCODER_NOT_FOUND", code=Code.NOT_FOUND, caller_fault=True
):
    """No built-in card, folder or pinned hub model has this name. Check the
    path on the encoder's machine; a hub id needs @ and a 40-digit revision.
    """


class CollectionExists(
    ShoalError, reason="COLLECTION_EXISTS", code=Code.ALREADY_EXISTS, caller_fault=True
):
    """A collection has this name already. Use it, or drop it first."""


# --- the system is not in a state for it -------------------------------------


class FingerprintMismatch(
    ShoalError, reason="FINGERPRINT_MISMATCH", code=Code.FAILED_PRECONDITION, caller_fault=True
):
    """A vector comes from another encoder than the collection's. Encode with the
    collection's encoder, or build a generation with the new one.
    """


class TextNotSupported(
    ShoalError, reason="TEXT_NOT_SUPPORTED", code=Code.FAILED_PRECONDITION, caller_fault=True
):
    """The collection has no encoder (`--encoder none`), so it takes vectors only."""


class UnsupportedModel(
    ShoalError, reason="UNSUPPORTED_MODEL", code=Code.FAILED_PRECONDITION, caller_fault=True
):
    """The folder is a model, but of a layout or module that Shoal does not load."""


class EncoderDrift(ShoalError, reason="ENCODER_DRIFT", code=Code.FAILED_PRECONDITION):
    """The model does not give the vectors that its card's golden texts promise,
    so it does not serve. Compare weights, library versions and precision.
    """


class LossMismatch(
    ShoalError, reason="LOSS_MISMATCH", code=Code.FAILED_PRECONDITION, caller_fault=True
):
    """The accepted loss is not the one that the shard names. Read `shoal status`
    again, then accept that one.
    """


class NotSupported(ShoalError, reason="NOT_SUPPORTED", code=Code.UNIMPLEMENTED, caller_fault=True):
    """The contract has room for it, this version does not do it."""


class StaleTopology(ShoalError, reason="STALE_TOPOLOGY", code=Code.ABORTED, retryable=True):
    """The server does not hold that shard (any more). Routers refresh and ask
    again by themselves.
    """


class BuildUnderWay(ShoalError, reason="BUILD_UNDER_WAY", code=Code.FAILED_PRECONDITION):
    """The collection's next generation is being built already. Wait until it serves;
    `status` says how far it is.
    """


class NoPreviousGeneration(
    ShoalError,
    reason="NO_PREVIOUS_GENERATION",
    code=Code.FAILED_PRECONDITION,
    caller_fault=True,
):
    """There is no generation to go back to: the collection was never rebuilt, or the one
    before was dropped.
    """


class SupersededWriter(ShoalError, reason="SUPERSEDED_WRITER", code=Code.ABORTED, retryable=True):
    """A newer writer owns the shard's log. Nothing was acknowledged; write again."""


# --- not now ------------------------------------------------------------------


class Overloaded(ShoalError, reason="OVERLOADED", code=Code.RESOURCE_EXHAUSTED, retryable=True):
    """A queue is full. Wait retry_after_s, then try again, or add processes."""


class DiskFull(ShoalError, reason="DISK_FULL", code=Code.RESOURCE_EXHAUSTED):
    """There is no room for the log, so the write was refused; reads go on. Free
    or add space.
    """


class NotReady(ShoalError, reason="NOT_READY", code=Code.UNAVAILABLE, retryable=True):
    """The process has started but cannot answer yet."""


class RouterDraining(ShoalError, reason="ROUTER_DRAINING", code=Code.UNAVAILABLE, retryable=True):
    """This router is ending: it opens no ingest stream, and has ended those that it had
    after storing what they had read. Use another one; clients of Shoal do by themselves.
    """


class InsufficientCoverage(
    ShoalError, reason="INSUFFICIENT_COVERAGE", code=Code.UNAVAILABLE, retryable=True
):
    """Fewer documents than min_coverage were behind the answer; `missing` names
    the shards and why. Retry, or accept less.
    """


class ShardUnavailable(
    ShoalError, reason="SHARD_UNAVAILABLE", code=Code.UNAVAILABLE, retryable=True
):
    """A shard that is needed does not answer; `shard` names it."""


class EncoderUnavailable(
    ShoalError, reason="ENCODER_UNAVAILABLE", code=Code.UNAVAILABLE, retryable=True
):
    """No encoder worker with the collection's model answers."""


class ControllerUnavailable(
    ShoalError, reason="CONTROLLER_UNAVAILABLE", code=Code.UNAVAILABLE, retryable=True
):
    """The controller does not answer. Searches and writes go on; creating and
    dropping collections wait for it.
    """


class ClusterUnreachable(
    ShoalError, ConnectionError, reason="CLUSTER_UNREACHABLE", code=Code.UNAVAILABLE, retryable=True
):
    """Nothing answers at the target. Check the address, or start a cluster with
    `shoal up`.
    """


class PositionNotReached(
    ShoalError, reason="POSITION_NOT_REACHED", code=Code.UNAVAILABLE, retryable=True
):
    """The shard has not applied the write that `after` names. Try again."""


class DeadlineExceeded(
    ShoalError, TimeoutError, reason="DEADLINE_EXCEEDED", code=Code.DEADLINE_EXCEEDED
):
    """The time that the caller gave is over. Give more, or find the slow stage
    in the timings of a search that succeeds.
    """


class Cancelled(ShoalError, reason="CANCELLED", code=Code.CANCELLED):
    """The caller left before the answer."""


# --- something is broken ------------------------------------------------------


class CorruptLog(ShoalError, reason="CORRUPT_LOG", code=Code.DATA_LOSS):
    """Acknowledged writes of a shard are damaged on disk, so it refuses to serve.
    Restore the log's files, or accept the loss that the error names.
    """


class CorruptSegment(ShoalError, reason="CORRUPT_SEGMENT", code=Code.DATA_LOSS):
    """A segment's file fails its checksum, so the shard refuses to serve. Restore
    the file.
    """


class CorruptCatalog(ShoalError, reason="CORRUPT_CATALOG", code=Code.DATA_LOSS):
    """A value of the catalog fails its checksum. Restore the file that the error
    names; its older versions beside it are sound.
    """


class InternalError(ShoalError, reason="INTERNAL", code=Code.INTERNAL):
    """A bug. `error_id` finds the server's log line; please report it."""


def from_reason(
    reason: str,
    message: str,
    metadata: dict[str, str] | None = None,
    retry_after_s: float | None = None,
) -> ShoalError:
    """The exception of a row; a reason that this version does not know is INTERNAL."""
    error = TABLE.get(reason, InternalError)(message, retry_after_s=retry_after_s)
    error.metadata.update(metadata or {})
    return error
