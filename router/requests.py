"""Questions checked at the edge: every field, before any work is done for them."""

from __future__ import annotations

import itertools
import math
import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

from router.core.position import decode_position
from router.core.topology import EXHAUSTIVE, CollectionMap, Effort, TopologyMap
from router.settings import RouterSettings
from shoal.errors import (
    CollectionNotFound,
    DeadlineExceeded,
    EmptyText,
    FingerprintMismatch,
    InvalidRequest,
    InvalidTopK,
    MalformedMessage,
    NonFiniteVector,
    NotReady,
    ShoalError,
    TextNotSupported,
    ZeroVector,
)
from shoal.ids import check_name
from shoal.rpc.common.v1 import common_pb2
from shoal.rpc.router.v1 import router_pb2
from shoal.rpc.shard.v1 import shard_pb2
from shoal.settings import Limits
from shoal.types import Kind, Similarity
from shoal.wire.arrays import check_limit, matrix_from_message, vectors_from_message
from shoal.wire.server import Context

Asking: TypeAlias = (
    router_pb2.SearchRequest
    | router_pb2.SearchBatchRequest
    | router_pb2.ExplainRequest
    | router_pb2.RerankRequest
)
REQUEST_ID_BYTES_MAX = 64
DEFAULT_TOP_K = 10
_EFFORTS = frozenset({"", "low", "normal", "high", EXHAUSTIVE})
_FIELDS: dict[int, shard_pb2.Field.ValueType] = {
    router_pb2.FIELD_TITLE: shard_pb2.FIELD_TITLE,
    router_pb2.FIELD_TEXT: shard_pb2.FIELD_TEXT,
    router_pb2.FIELD_PAYLOAD: shard_pb2.FIELD_PAYLOAD,
}


@dataclass(frozen=True, slots=True)
class Clock:
    """A request's time; all in ns of the monotonic clock.

    Attributes:
        arrived_ns: receipt.
        deadline_ns: the reply leaves by then.
    """

    arrived_ns: int
    deadline_ns: int

    def left_s(self) -> float:
        """Seconds left; 0.0 when it is over."""
        return max(0.0, (self.deadline_ns - time.monotonic_ns()) / 1e9)


@dataclass(frozen=True, slots=True)
class Plan:
    """How to answer questions.

    Attributes:
        collection: asked.
        request_id: the caller's, or a new one.
        top_k: documents wanted.
        min_coverage: least share of documents behind the answer.
        fields: parts of each document wanted, ascending.
        allow_truncation: an over-long question may be cut.
        after: per shard, the sequence number to have applied; None asks for none.
        clock: time.
        how: kind colbert: the name of an effort.
    """

    collection: CollectionMap
    request_id: str
    top_k: int
    min_coverage: float
    fields: tuple[shard_pb2.Field.ValueType, ...]
    allow_truncation: bool
    after: tuple[int, ...] | None
    clock: Clock
    how: str

    def effort(self, question: bytes) -> Effort:
        """How hard to look in the generation that is asked.

        Args:
            question: of kind colbert, its tokens as little-endian int16.
        """
        effort = self.collection.efforts.get(self.how, Effort())
        return effort.fitted(self.top_k, max(1, len(question) // (2 * self.collection.dim)))


class RequestChecker:
    """Checks what callers send.

    Args:
        settings: default deadline and margin.
        limits: of one request.
    """

    def __init__(self, settings: RouterSettings, limits: Limits) -> None:
        self.limits = limits
        self._default_ns = settings.default_deadline_ms * 1_000_000
        self._longest_ns = limits.max_deadline_ms * 1_000_000
        self._margin_ns = settings.margin_ms * 1_000_000
        self._prefix = secrets.token_hex(4)
        self._numbers = itertools.count(1)

    def clock(self, context: Context, default_ms: int = 0) -> Clock:
        """A request's deadline, less the margin in which the reply travels.

        Raises:
            DeadlineExceeded: it is over already.
        """
        now_ns = time.monotonic_ns()
        left_s = context.time_remaining()
        left_ns = (default_ms * 1_000_000 or self._default_ns) if left_s is None else left_s * 1e9
        left_ns = int(min(left_ns, self._longest_ns))
        left_ns -= min(self._margin_ns, left_ns // 5)
        if left_ns <= 0:
            raise DeadlineExceeded("the deadline was over on arrival")
        return Clock(now_ns, now_ns + left_ns)

    def request_id(self, given: str) -> str:
        """The caller's id, or a new one.

        Raises:
            InvalidRequest: it is too long.
        """
        if not given:
            return f"{self._prefix}-{next(self._numbers)}"
        if len(given.encode()) > REQUEST_ID_BYTES_MAX:
            raise InvalidRequest(
                f"request_id has more than {REQUEST_ID_BYTES_MAX} bytes", field="request_id"
            )
        return given

    def plan(
        self,
        request: Asking,
        collection: CollectionMap,
        clock: Clock,
    ) -> Plan:
        """Checks a search's options.

        Raises:
            ShoalError: what is wrong with them.
        """
        options = request.options
        if not set(options.fields) <= _FIELDS.keys():
            raise InvalidRequest("fields holds an unknown part", field="options.fields")
        if options.fingerprint and options.fingerprint != collection.fingerprint:
            raise fingerprint_mismatch(options.fingerprint, collection)
        top_k = self._top_k(options.top_k)
        return Plan(
            collection=collection,
            request_id=self.request_id(request.request_id),
            top_k=top_k,
            min_coverage=_min_coverage(options),
            fields=tuple(_FIELDS[field] for field in sorted(set(options.fields))),
            allow_truncation=options.allow_truncation,
            after=decode_position(options.after, collection),
            clock=clock,
            how=_how(options.effort, collection),
        )

    def _top_k(self, given: int) -> int:
        if given > self.limits.max_top_k:
            raise InvalidTopK(
                f"top_k is {given}; max_top_k = {self.limits.max_top_k} is allowed",
                limit="max_top_k",
                allowed=self.limits.max_top_k,
                given=given,
                field="options.top_k",
            )
        return given or DEFAULT_TOP_K

    def texts(self, texts: Sequence[str], collection: CollectionMap) -> None:
        """Checks questions in words, all but their emptiness.

        Raises:
            TextNotSupported: the collection has no encoder.
            LimitExceeded: one is too large.
        """
        if not collection.fingerprint:
            raise TextNotSupported(
                f"collection {collection.name!r} has no encoder: ask with a vector"
            )
        for text in texts:
            if len(text) * 4 > self.limits.max_query_bytes:
                check_limit("max_query_bytes", len(text.encode()), self.limits.max_query_bytes)


def find_collection(topology: TopologyMap, name: str) -> CollectionMap:
    """The collection of a name.

    Raises:
        NotReady: no topology is known yet.
        InvalidName: it can be no name.
        CollectionNotFound: no collection has it.
    """
    collection = topology.collections.get(name)
    if collection is not None:
        return collection
    check_name(name)
    if not topology.version:
        raise NotReady("this router knows no topology yet", retry_after_s=1.0)
    raise CollectionNotFound(f"no collection is named {name!r}", collection=name)


def fingerprint_mismatch(given: str, collection: CollectionMap) -> FingerprintMismatch:
    """The error of vectors from another encoder."""
    return FingerprintMismatch(
        f"the vectors come from encoder {given[:64]!r}, collection {collection.name!r} is of "
        f"{collection.fingerprint or 'no encoder'!r}",
        expected=collection.fingerprint,
        given=given[:64],
    )


def check_text(text: str) -> None:
    """Raises EmptyText if there are no words."""
    if not text or text.isspace():
        raise EmptyText("the question is empty")


def check_vectors(
    message: common_pb2.Matrix, collection: CollectionMap, row_counts: Sequence[int]
) -> list[bytes | ShoalError]:
    """Vectors that a user brings, as rows of little-endian float32, or what is wrong with each.

    Args:
        message: the rows of all.
        collection: they are for.
        row_counts: rows of each, 1 or more.

    Raises:
        DimensionMismatch: of all rows.
        MalformedMessage: the matrix is none, or the counts are not its rows.
    """
    if message.rows == 1 and _is_plain(message, collection.dim):
        return [message.data]
    if sum(row_counts) != message.rows or min(row_counts, default=1) < 1:
        raise MalformedMessage(
            f"{message.rows} rows were sent; their counts must add up to that, 1 or more each"
        )
    try:
        vectors = vectors_from_message(message, collection.dim)
    except NonFiniteVector:
        with np.errstate(over="ignore"):
            vectors = matrix_from_message(message).astype(np.float32)
    data = vectors.astype("<f4", copy=False).tobytes()
    ends = np.cumsum(row_counts, dtype=np.int64)
    sizes = (4 * collection.dim * ends).tolist()
    results: list[bytes | ShoalError] = [data[a:b] for a, b in itertools.pairwise([0, *sizes])]
    for row in np.flatnonzero(~np.isfinite(vectors).all(axis=1)).tolist():
        place = int(np.searchsorted(ends, row, side="right"))
        results[place] = NonFiniteVector(f"vector {row} holds NaN or infinity", row=row)
    if collection.similarity is Similarity.COSINE:
        for row in np.flatnonzero(~vectors.any(axis=1)).tolist():
            place = int(np.searchsorted(ends, row, side="right"))
            results[place] = ZeroVector(f"vector {row} is zero: cosine cannot compare it", row=row)
    return results


def _is_plain(message: common_pb2.Matrix, dim: int) -> bool:
    """Whether one float32 row needs no closer look: one product tells.

    A finite, positive squared norm means no NaN, no infinity, not all zeros.
    """
    if message.element_type != common_pb2.ELEMENT_TYPE_F32 or len(message.data) != 4 * dim:
        return False
    row = np.frombuffer(message.data, "<f4")
    return message.columns == dim and 0.0 < float(np.dot(row, row)) < math.inf


def _min_coverage(options: router_pb2.SearchOptions) -> float:
    if not options.HasField("min_coverage"):
        return 1.0
    if not 0.0 <= options.min_coverage <= 1.0:
        raise InvalidRequest(
            f"min_coverage is {options.min_coverage}, it must be 0.0 to 1.0",
            field="options.min_coverage",
        )
    return options.min_coverage


def _how(name: str, collection: CollectionMap) -> str:
    if collection.kind is Kind.SINGLE:
        if name:
            raise InvalidRequest("only kind colbert has efforts", field="options.effort")
        return ""
    if name not in _EFFORTS:
        raise InvalidRequest(
            f"there is no effort {name[:40]!r}: use low, normal, high or {EXHAUSTIVE}",
            field="options.effort",
        )
    return name or "normal"
