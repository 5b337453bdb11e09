"""One shard on one server: recovery, reads of a view, writes through the log."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from shard_service.codecs import read_codec
from shard_service.core import late, sampling
from shard_service.core.late import Explained, LateFound, LateQuery
from shard_service.core.listing import Listing, listing
from shard_service.core.records import (
    Content,
    DeleteRecord,
    WriteRecord,
    decode_content,
    decode_record,
)
from shard_service.core.search import Found, Wanted, search
from shard_service.core.source import Segment, View, token_sources
from shard_service.core.state import ShardState, Writes
from shard_service.core.vectors import Tokens, Vectors
from shard_service.core.writers import Writers
from shard_service.layout import Layout
from shard_service.sealer import Sealer
from shard_service.segments import SegmentStore, read_segments
from shard_service.settings import ShardSettings
from shard_service.single_layout import SingleLayout
from shard_service.spec import ShardSpec
from shard_service.token_layout import TokenLayout
from shard_service.writer import (
    DeleteOperation,
    DeleteOutcome,
    WriteOperation,
    WriteOutcome,
    Writer,
)
from shoal.errors import NotSupported, Overloaded, StaleTopology
from shoal.storage.directory import Storage
from shoal.storage.ports import Log, LogEntry
from shoal.types import Float32Matrix, Kind

logger = logging.getLogger(__name__)

_REPLAY_ENTRIES = 512
"""Log entries applied at a time on recovery."""
_SEAL_RETRY_S = 0.2


@dataclass(frozen=True, slots=True)
class Stored:
    """A document version that is live: its sequence number and content."""

    sequence: int
    content: Content


@dataclass(frozen=True, slots=True)
class SampledContent:
    """A document of a sample, its tokens as kept, and their number."""

    content: Content
    tokens: Tokens
    count: int


@dataclass(slots=True)
class Drift:
    """How well a codec fits what users wrote since the server opened the shard.

    Attributes:
        tokens: that were written.
        far: of them are farther from their centroid than three in four of those that the codec
            was trained on: a quarter where nothing has changed.
    """

    tokens: int = 0
    far: int = 0


@dataclass(frozen=True, slots=True)
class Prepared:
    """What of a shard was read before it is opened.

    Attributes:
        layout: of its vectors.
        segments: mapped ones by name.
    """

    layout: Layout
    segments: Mapping[str, Segment]


class Shard:
    """Serves one shard. Thread-safe."""

    def __init__(
        self,
        spec: ShardSpec,
        storage: Storage,
        settings: ShardSettings,
        writer_epoch: int,
        accept_loss: str = "",
        writers: Writers = Writers.USERS,
        prepared: Prepared | None = None,
    ) -> None:
        """Recovers the shard from its manifest and log; takes as long as that takes.

        With what `prepare` read, only what came after it is read.

        Raises:
            CorruptLog: acknowledged data is damaged; metadata "loss" names it.
            CorruptSegment: a segment's file fails its checksum.
            LossMismatch: accept_loss names another loss.
            SupersededWriter: a higher epoch owns the shard.
        """
        self.spec = spec
        self.writer_epoch = writer_epoch
        self._max_tail = settings.max_tail_passages
        self._lock = threading.Lock()
        # The log fences older writers first: what they publish after that is too late.
        log = storage.logs.open(spec.ref, writer_epoch, accept_loss)
        try:
            prepared = prepared or Prepared(layout_of(spec, storage, settings), {})
            self.layout = prepared.layout
            store = SegmentStore(spec, storage, self.layout, writer_epoch)
            segments = store.open(prepared.segments)
            self._state = ShardState(self.layout.tail(), segments, store.position)
            _replay(log, self._state, self.layout)
        except BaseException:
            log.close()
            raise
        self._view = self._state.view()
        self._listing: Listing | None = None
        self.drift = Drift()
        self._writer = Writer(
            self._state, log, self._lock, self._changed, settings.max_waiting_writes, writers
        )
        self._sealer = Sealer(
            self._state, self._lock, store, self._writer.drop_prefix, self._publish, settings
        )
        self._sealer.wake()

    @property
    def view(self) -> View:
        """The newest consistent state."""
        return self._view

    @property
    def prepared(self) -> Prepared:
        """What another opening of it need not read again."""
        return Prepared(self.layout, {segment.name: segment for segment in self._view.segments})

    @property
    def tail_passages(self) -> int:
        """Rows that are in no segment yet."""
        return self._state.tail_rows

    @property
    def sealing_failure(self) -> str:
        """Why the last sealing failed; empty when it did not."""
        return self._sealer.failure

    def search(
        self, view: View, queries: Float32Matrix, top_k: NDArray[np.int64], wanted: Wanted
    ) -> Found:
        """See `shard_service.core.search.search`. For a search thread."""
        return search(view, self.spec.similarity, queries, top_k, wanted)

    def search_late(self, view: View, queries: Sequence[LateQuery], wanted: Wanted) -> LateFound:
        """See `shard_service.core.late.search`. For a search thread."""
        assert isinstance(self.layout, TokenLayout)
        return late.search(view, self.layout.codec, queries, wanted)

    def explain(
        self, ids: Sequence[bytes], query: LateQuery
    ) -> tuple[list[tuple[int, Explained] | None], float, int]:
        """Per document its sequence number and why it has its score, None if it is not stored
        or has no tokens; what 1 in a score is worth; and the position.

        Raises:
            NotSupported: the shard is of another kind.
        """
        if not isinstance(self.layout, TokenLayout):
            raise NotSupported("only collections of kind colbert score given documents")
        with self._lock:
            places, view = self._state.locate(ids), self._state.view()
        sources = token_sources(view)
        found: list[tuple[int, Explained] | None] = []
        for place in places:
            explained = None
            if place is not None:
                source = sources[place[0]]
                explained = late.explain(source, place[1], self.layout.codec, query)
            if place is None or explained is None:
                found.append(None)
            else:
                found.append((int(source.table.sequences[place[1]]), explained))
        return found, self.layout.codec.unit, view.position

    def sample(self, after: bytes, max_rows: int) -> tuple[list[SampledContent], bool]:
        """Documents in the order of (sample rank, id), and whether there are none after them.

        Args:
            after: only documents after this id's place; empty begins.
            max_rows: tokens at most, but for the first document's.

        Raises:
            NotSupported: the shard is of another kind.
        """
        if not isinstance(self.layout, TokenLayout):
            raise NotSupported("only collections of kind colbert are sampled")
        sources = token_sources(self._view)
        found = sampling.sample(sources, after, max_rows)
        documents = []
        for number, document in found.places:
            source = sources[number]
            begin, end = sampling.token_range(source, document)
            tokens = tuple(column[begin:end] for column in source.table.tokens)
            content = decode_content(source.content(document))
            documents.append(SampledContent(content, tokens, end - begin))
        return documents, found.last

    def write(
        self, operation: WriteOperation, writer: Writers = Writers.USERS
    ) -> Future[WriteOutcome]:
        """Queues versions; the future says when they are durable and visible.

        Raises:
            Overloaded: too many writes wait, or too many passages for sealing.
            StaleTopology: see `Writer.submit`.
        """
        waiting = self._state.tail_rows
        if waiting >= self._max_tail:
            why = self._sealer.failure or "sealing has to catch up"
            raise Overloaded(
                f"{waiting} passages wait to be sealed: {why}; try again",
                retry_after_s=_SEAL_RETRY_S,
                limit="max_tail_passages",
                allowed=self._max_tail,
            )
        self._writer.submit(operation, writer)
        return operation.done

    def delete(
        self, operation: DeleteOperation, writer: Writers = Writers.USERS
    ) -> Future[DeleteOutcome]:
        """Queues deletes; the future says when they are durable and visible.

        Raises:
            Overloaded, StaleTopology: see `Writer.submit`.
        """
        self._writer.submit(operation, writer)
        return operation.done

    def check_owner(self) -> None:
        """Raises StaleTopology if another server has taken the shard over: what it holds
        is then what the other one had at that moment.
        """
        self._writer.check_owner()

    def probe(self, ids: Sequence[bytes], digests: NDArray[np.uint8]) -> tuple[list[bool], int]:
        """Per id: its live version has this digest ([ids, 16] uint8); and the position.

        Raises:
            StaleTopology: it takes no users' writes, or another server does, so that what it
                holds is no answer to whether one is needed.
        """
        self._writer.check(Writers.USERS)
        self._writer.check_owner()
        with self._lock:
            places = self._state.locate(ids)
            unchanged = [
                place is not None
                and bool((self._state.table(place[0]).digests[place[1]] == digest).all())
                for place, digest in zip(places, digests, strict=True)
            ]
            return unchanged, self._state.position

    def fetch(
        self, ids: Sequence[bytes], sequences: Sequence[int]
    ) -> tuple[list[Stored | None], int]:
        """Live versions by id, and the position.

        Args:
            ids: what to fetch.
            sequences: per id the version wanted, 0 for the newest; None is given where
                another one is live.
        """
        found: list[tuple[int, Callable[[], bytes]] | None] = []
        with self._lock:
            position = self._state.position
            for place, wanted in zip(self._state.locate(ids), sequences, strict=True):
                if place is None:
                    found.append(None)
                    continue
                sequence = int(self._state.table(place[0]).sequences[place[1]])
                read = self._state.reader(*place)
                found.append((sequence, read) if wanted in {0, sequence} else None)
        return [
            None if item is None else Stored(item[0], decode_content(item[1]())) for item in found
        ], position

    def list_documents(self, after: bytes, count: int) -> tuple[list[tuple[bytes, bytes]], int]:
        """The next live documents' ids and digests by (id hash, id), and the position.

        Args:
            after: only documents after this id's place; empty begins.
            count: at most, 1 or more.
        """
        view = self._view
        known = self._listing
        if known is None or known.view is not view:
            known = self._listing = listing(view)
        return known.after(after, count), view.position

    def export(
        self, ids: Sequence[bytes], *, without_vectors: bool
    ) -> list[tuple[Content, Vectors | None]]:
        """Live documents as they were written; without vectors where only codes are kept."""
        with self._lock:
            places, view = self._state.locate(ids), self._state.view()
        found: list[tuple[Content, Vectors | None]] = []
        for place in places:
            if place is None:
                continue
            source = view.sources[place[0]]
            content = decode_content(source.content(place[1]))
            vectors = None if without_vectors else self.layout.stored(source.table, place[1])
            found.append((content, vectors))
        return found

    def admit(self, writers: Writers, writer_epoch: int = 0, order: int = 0) -> int:
        """Takes the writes of these alone from now on.

        Args:
            writers: they.
            writer_epoch: under which the shard must be open; 0 is whichever it is.
            order: see `Writer.admit`.

        Returns:
            The position when no write that came before is under way.

        Raises:
            StaleTopology: the shard is closed, open under another epoch, or has had a later
                word.
        """
        if writer_epoch not in {0, self.writer_epoch}:
            raise StaleTopology(f"the shard is open under epoch {self.writer_epoch}")
        self._writer.admit(writers, order)
        with self._lock:
            return self._state.position

    @property
    def writers(self) -> Writers:
        """Whose writes it takes."""
        return self._writer.writers

    def optimize(self) -> None:
        """Seals the tail and merges all segments into one; returns when it serves.

        Raises:
            DiskFull: no room; the shard goes on as it was.
        """
        self._sealer.optimize()

    def close(self) -> None:
        """Ends writing and sealing; views stay readable."""
        self._sealer.close()
        self._writer.close()

    def _changed(self) -> None:
        self._publish()
        self._sealer.wake()

    def _publish(self) -> None:
        self._view = self._state.view()


def layout_of(spec: ShardSpec, storage: Storage, settings: ShardSettings) -> Layout:
    """How a shard keeps vectors.

    Raises:
        CorruptSegment: its codec is damaged, or missing.
    """
    if spec.kind is Kind.SINGLE:
        return SingleLayout(spec, settings)
    return TokenLayout(read_codec(spec, storage), spec.dim)


def prepare(
    spec: ShardSpec, storage: Storage, settings: ShardSettings, known: Prepared | None
) -> Prepared:
    """Reads a shard that another server may be writing, and takes nothing from it.

    Args:
        spec: the shard.
        storage: where it lies.
        settings: the server's.
        known: what was read before.

    Raises:
        CorruptLog, CorruptSegment: it could not be served from here either.
    """
    layout = known.layout if known is not None else layout_of(spec, storage, settings)
    held = known.segments if known is not None else {}
    storage.logs.read(spec.ref)
    return Prepared(layout, read_segments(spec.ref, storage, layout, held))


def _replay(log: Log, state: ShardState, layout: Layout) -> None:
    """Applies what the log has beyond the segments."""
    waiting: list[tuple[LogEntry, WriteRecord]] = []
    for entry in log.entries(state.position):
        record = decode_record(entry.payload)
        if isinstance(record, WriteRecord):
            waiting.append((entry, record))
            if len(waiting) < _REPLAY_ENTRIES:
                continue
        _apply_writes(state, layout, waiting)
        waiting = []
        if isinstance(record, DeleteRecord):
            state.delete([record], entry.sequence)
    _apply_writes(state, layout, waiting)


def _apply_writes(
    state: ShardState, layout: Layout, waiting: list[tuple[LogEntry, WriteRecord]]
) -> None:
    if not waiting:
        return
    first, *others = (
        layout.read(record.vectors, record.version.passages).kept() for _, record in waiting
    )
    state.write(
        Writes(
            [record.version for _, record in waiting],
            np.array([entry.sequence for entry, _ in waiting], dtype=np.uint64),
            first.joined(others),
        )
    )
