"""The client's side of an ingest stream: windows, slices, resends. Pure.

An `IngestSession` is told what happens (documents given, messages received,
the stream broken, with the time as a value) and says what to send. The shells
in `sync` and `asynchronous` hold the stream.

Invariant: at most one document of an id is unanswered, so that a resend can
never put an older version over a newer one.
"""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from shoal.client.documents import (
    ENVELOPE_BYTES,
    GivenDocument,
    ingest_document,
    readable_id,
)
from shoal.client.model import IngestReport, Rejection
from shoal.client.slicing import ITEM_OVERHEAD_BYTES
from shoal.errors import (
    DeadlineExceeded,
    InternalError,
    ShoalError,
    from_reason,
)
from shoal.rpc.common.v1 import common_pb2
from shoal.rpc.router.v1 import router_pb2
from shoal.settings import Limits
from shoal.wire.errors import from_status, to_status

Progress: TypeAlias = Callable[[IngestReport], None]
"""Called with the report so far."""
OnRejected = Literal["collect", "raise"]

# A message is cut at these, whatever the window: more only delays its first
# acknowledgement.
MESSAGE_BYTES = 1 << 20
MESSAGE_DOCUMENTS = 256
# Documents that wait here while the window is full.
BUFFER_BYTES = 2 * MESSAGE_BYTES
BUFFER_DOCUMENTS = 2 * MESSAGE_DOCUMENTS
# Shortest time between two reports of progress.
PROGRESS_S = 0.1
BACKOFF_FIRST_S = 0.1
BACKOFF_LAST_S = 2.0


@dataclass(slots=True)
class _Counts:
    stored: int = 0
    unchanged: int = 0
    duplicates: int = 0
    truncated: int = 0
    rejected: list[Rejection] = field(default_factory=list)


class IngestSession:
    """One ingest from its first document to its last acknowledgement.

    Args:
        request_id: correlates the servers' log lines.
        name: the collection's.
        fingerprint: of the encoder that made the documents' vectors, or empty.
        limits: what the cluster takes.
        stall_s: longest time without any progress while documents are unanswered.

    Every `now` is seconds of one clock that only grows.
    """

    def __init__(
        self, *, request_id: str, name: str, fingerprint: str, limits: Limits, stall_s: float
    ) -> None:
        self._start = router_pb2.IngestStart(
            request_id=request_id, collection=name, fingerprint=fingerprint
        )
        self._limits = limits
        self._message_bytes = min(MESSAGE_BYTES, limits.max_message_bytes - ENVELOPE_BYTES)
        self._stall_s = stall_s
        self._waiting: deque[router_pb2.IngestDocument] = deque()
        self._waiting_bytes = 0
        self._unanswered: dict[int, router_pb2.IngestDocument] = {}
        self._unanswered_ids: set[str] = set()
        self._unanswered_bytes = 0
        self._window: router_pb2.IngestStarted | None = None
        self._counts = _Counts()
        self._position = b""
        self._closed = False
        self._failures = 0
        self._hold_until = 0.0
        self._progress_at = 0.0
        self._last_error: ShoalError | None = None

    # --- documents -----------------------------------------------------------

    @property
    def has_room(self) -> bool:
        """Another document may be added."""
        return len(self._waiting) < BUFFER_DOCUMENTS and self._waiting_bytes < BUFFER_BYTES

    def offer(self, number: int, given: GivenDocument, now: float) -> None:
        """A document to store, `number` being its place in the input; one that is
        wrong is refused here and not sent.
        """
        try:
            document = ingest_document(number, given, self._limits)
        except ShoalError as error:
            self._reject(number, readable_id(given), to_status(error))
            return
        if self._idle:
            self._progress_at = now
        self._waiting.append(document)
        self._waiting_bytes += document.ByteSize()

    def close(self) -> None:
        """There are no more documents."""
        self._closed = True

    @property
    def done(self) -> bool:
        """Every document has its outcome, and no more will come."""
        return self._closed and self._idle

    @property
    def report(self) -> IngestReport:
        """What became of the documents so far."""
        counts = self._counts
        return IngestReport(
            stored=counts.stored,
            unchanged=counts.unchanged,
            rejected=tuple(counts.rejected),
            duplicates=counts.duplicates,
            truncated=counts.truncated,
            position=self._position,
        )

    def refusal(self) -> ShoalError | None:
        """The first refused document's error, for callers that want it raised."""
        if not self._counts.rejected:
            return None
        first = self._counts.rejected[0]
        return from_reason(
            first.reason,
            f"document {first.number} ({first.id!r}) was refused: {first.message}",
            {**first.metadata, "number": str(first.number), "id": first.id},
        )

    @property
    def _idle(self) -> bool:
        return not self._waiting and not self._unanswered

    # --- the stream ----------------------------------------------------------

    def open(self) -> router_pb2.IngestRequest:
        """The first message of a stream."""
        self._window = None
        return router_pb2.IngestRequest(start=self._start)

    def receive(self, response: router_pb2.IngestResponse, now: float) -> None:
        """A message of the stream's answer.

        Raises:
            InternalError: it acknowledges a document that is not unanswered.
        """
        if response.HasField("started"):
            self._window = response.started
            return
        self._position = response.acknowledgements.position or self._position
        retry: list[router_pb2.IngestDocument] = []
        for acknowledgement in response.acknowledgements.acknowledgements:
            document = self._take(acknowledgement.number)
            if not self._settle(document, acknowledgement):
                retry.append(document)
        if retry:
            self._put_back(retry)
            self._back_off(now)
        if len(retry) < len(response.acknowledgements.acknowledgements):
            self._progress_at = now
        if not retry:
            self._failures = 0
            self._last_error = None

    def next_message(self, now: float) -> router_pb2.IngestRequest | None:
        """What to send now, or None: nothing waits, or the window is full."""
        if self._window is None or now < self._hold_until:
            return None
        message = router_pb2.IngestRequest()
        documents = message.documents.documents
        size = 0
        while self._waiting and len(documents) < MESSAGE_DOCUMENTS:
            head_bytes = self._waiting[0].ByteSize()
            size += head_bytes + ITEM_OVERHEAD_BYTES
            if not self._fits(head_bytes) or (documents and size > self._message_bytes):
                break
            documents.append(self._send_first(head_bytes))
        return message if documents else None

    def hold_s(self, now: float) -> float:
        """Time until something may be sent again after a failure; 0 when now."""
        return max(0.0, self._hold_until - now)

    def broken(self, error: ShoalError, now: float) -> None:
        """The stream ended with an error; what is unanswered will be sent again.

        Raises:
            ShoalError: trying again cannot help.
        """
        if not error.retryable:
            raise self._explained(error)
        self._last_error = error
        self._window = None
        self._put_back([self._take(number) for number in list(self._unanswered)])
        self._back_off(now, error.retry_after_s or 0.0)

    def check_stall(self, now: float) -> None:
        """Raises the last error if nothing was acknowledged for too long."""
        if self._idle or now - self._progress_at <= self._stall_s:
            return
        raise self._explained(
            self._last_error
            or DeadlineExceeded(f"no document was acknowledged for {self._stall_s:g} s")
        )

    # --- within --------------------------------------------------------------

    def _fits(self, size: int) -> bool:
        """The first waiting document may be sent beside the unanswered ones."""
        assert self._window is not None
        if not self._unanswered:
            return True
        return (
            len(self._unanswered) < self._window.window_documents
            and self._unanswered_bytes + size <= self._window.window_bytes
            and self._waiting[0].document.id not in self._unanswered_ids
        )

    def _send_first(self, size: int) -> router_pb2.IngestDocument:
        document = self._waiting.popleft()
        self._waiting_bytes -= size
        self._unanswered[document.number] = document
        self._unanswered_ids.add(document.document.id)
        self._unanswered_bytes += size
        return document

    def _take(self, number: int) -> router_pb2.IngestDocument:
        document = self._unanswered.pop(number, None)
        if document is None:
            raise self._explained(
                InternalError(f"the cluster acknowledged document {number}, which it was not sent")
            )
        self._unanswered_ids.remove(document.document.id)
        self._unanswered_bytes -= document.ByteSize()
        return document

    def _put_back(self, documents: list[router_pb2.IngestDocument]) -> None:
        documents.sort(key=lambda document: document.number, reverse=True)
        for document in documents:
            self._waiting.appendleft(document)
            self._waiting_bytes += document.ByteSize()

    def _settle(
        self, document: router_pb2.IngestDocument, ack: router_pb2.IngestAcknowledgement
    ) -> bool:
        """Counts the outcome; False if the document should be sent again."""
        counts = self._counts
        if ack.outcome == router_pb2.INGEST_OUTCOME_REJECTED:
            error = from_status(ack.status)
            if error is not None and error.retryable:
                self._last_error = error
                return False
            self._reject(document.number, document.document.id, ack.status)
            return True
        if ack.outcome == router_pb2.INGEST_OUTCOME_STORED:
            counts.stored += 1
            counts.duplicates += ack.duplicate
        else:
            counts.unchanged += 1
        counts.truncated += ack.truncated
        return True

    def _back_off(self, now: float, at_least_s: float = 0.0) -> None:
        pause = min(BACKOFF_LAST_S, BACKOFF_FIRST_S * 2 ** min(self._failures, 16))
        self._failures += 1
        self._hold_until = now + max(pause, at_least_s)

    def _reject(self, number: int, document_id: str, status: common_pb2.Status) -> None:
        self._counts.rejected.append(
            Rejection(document_id, status.reason, status.message, number, dict(status.metadata))
        )

    def _explained(self, error: ShoalError) -> ShoalError:
        """The error with how far the ingest came."""
        counts = self._counts
        error.metadata.update(
            stored=str(counts.stored),
            unchanged=str(counts.unchanged),
            rejected=str(len(counts.rejected)),
        )
        error.add_note(
            f"{counts.stored} documents were stored and {counts.unchanged} found unchanged "
            "before; ingest the same documents again to go on from there"
        )
        return error


class IngestWatch:
    """When a caller is told of an ingest under way."""

    def __init__(
        self, session: IngestSession, progress: Progress | None, on_rejected: OnRejected
    ) -> None:
        self._session = session
        self._wants_reports = progress is not None
        self._raises = on_rejected == "raise"
        self._next_report = 0.0

    def due(self, now: float) -> IngestReport | None:
        """The report to give to the caller now, if one is due.

        Raises:
            ShoalError: a document was refused and the caller wants that raised.
        """
        if self._raises and (refusal := self._session.refusal()) is not None:
            raise refusal
        if not self._wants_reports or now < self._next_report:
            return None
        self._next_report = now + PROGRESS_S
        return self._session.report
