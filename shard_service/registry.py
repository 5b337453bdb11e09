"""The shards of one server by name, and what each says of itself."""

from __future__ import annotations

import logging
import threading
from dataclasses import dataclass

from shard_service.core.source import token_sources
from shard_service.core.writers import Writers
from shard_service.messages import WRITER_NUMBERS, shard_key
from shard_service.segments import drop_segments
from shard_service.settings import ShardSettings
from shard_service.shard import Prepared, Shard, prepare
from shard_service.spec import ShardSpec
from shard_service.token_layout import TokenLayout
from shoal.errors import (
    CorruptLog,
    CorruptSegment,
    NotReady,
    ShoalError,
    StaleTopology,
    SupersededWriter,
)
from shoal.rpc.shard.v1 import shard_pb2
from shoal.storage.directory import Storage
from shoal.types import ShardRef

logger = logging.getLogger(__name__)


@dataclass(slots=True)
class _Entry:
    """A shard that the server holds, or is about to.

    Attributes:
        spec: the shard.
        writer_epoch: under which it was asked for last; 0 if it was only prepared.
        busy: it is being opened or prepared.
        shard: what answers; while it is opened anew, what answered before.
        failure: why it refuses.
        prepared: what was read of it, where nothing answers.
    """

    spec: ShardSpec
    writer_epoch: int = 0
    busy: bool = False
    shard: Shard | None = None
    failure: ShoalError | None = None
    prepared: Prepared | None = None


class Registry:
    """Opens, finds and closes shards. Thread-safe."""

    def __init__(self, settings: ShardSettings, storage: Storage) -> None:
        self._settings, self._storage = settings, storage
        self._entries: dict[ShardRef, _Entry] = {}
        self._lock = threading.Lock()

    def serving(self, ref: ShardRef) -> Shard:
        """The shard, ready to answer.

        Raises:
            StaleTopology: the server does not hold it.
            NotReady: it is recovering.
            CorruptLog, CorruptSegment: it refuses to serve.
        """
        entry = self._entries.get(ref)
        if entry is None or not (entry.writer_epoch or entry.shard):
            raise StaleTopology(
                f"this server does not hold shard {ref.shard} of generation {ref.generation}",
                shard=ref.shard,
            )
        if entry.shard is not None:
            return entry.shard
        if entry.failure is not None:
            raise entry.failure
        raise NotReady(f"shard {ref.shard} is recovering", retry_after_s=0.2, shard=ref.shard)

    def open(
        self, spec: ShardSpec, writer_epoch: int, accept_loss: str, writers: Writers
    ) -> shard_pb2.ShardStatus:
        """Recovers and serves a shard; one open under the same epoch stays as it is, one
        under a lower epoch answers until the new one does.

        Raises:
            SupersededWriter: a higher epoch owns it.
            NotReady: it is being opened or prepared already.
            CorruptLog, CorruptSegment, LossMismatch: see `Shard`.
        """
        with self._lock:
            entry = self._idle(spec)
            if entry.shard is not None and entry.writer_epoch == writer_epoch:
                return _status(entry)
            if entry.writer_epoch > writer_epoch:
                raise SupersededWriter(
                    f"shard {spec.ref.shard} is open under epoch {entry.writer_epoch}"
                )
            entry.busy = True
            before, entry.writer_epoch = entry.writer_epoch, writer_epoch
        try:
            self._recover(entry, accept_loss, writers)
        except (CorruptLog, CorruptSegment) as error:
            entry.failure = error
            if entry.shard is not None:
                entry.shard.close()
                entry.shard = None
            logger.error("event=shard_corrupt shard=%s: %s", entry.spec.ref, error.message)
            raise
        except BaseException:
            entry.writer_epoch = before
            self._forget_empty(entry)
            raise
        finally:
            entry.busy = False
        return _status(entry)

    def _idle(self, spec: ShardSpec) -> _Entry:
        """The shard's entry, a new one if there is none; the caller holds the lock."""
        entry = self._entries.get(spec.ref)
        if entry is None:
            entry = self._entries[spec.ref] = _Entry(spec)
        elif entry.busy:
            raise NotReady(f"shard {spec.ref.shard} is being opened", retry_after_s=0.2)
        return entry

    def _forget_empty(self, entry: _Entry) -> None:
        with self._lock:
            if entry.shard is None and entry.prepared is None and entry.failure is None:
                self._entries.pop(entry.spec.ref, None)

    def _recover(self, entry: _Entry, accept_loss: str, writers: Writers) -> None:
        before = entry.shard
        shard = Shard(
            entry.spec,
            self._storage,
            self._settings,
            entry.writer_epoch,
            accept_loss,
            writers,
            entry.prepared if before is None else before.prepared,
        )
        entry.shard, entry.prepared, entry.failure = shard, None, None
        if before is not None:
            before.close()
        logger.info(
            "event=shard_open shard=%s epoch=%d position=%d documents=%d",
            entry.spec.ref,
            entry.writer_epoch,
            shard.view.position,
            shard.view.documents,
        )

    def prepare(self, spec: ShardSpec) -> shard_pb2.ShardStatus:
        """Reads a shard that another server holds, so that opening it takes little time.

        Raises:
            NotReady: it is being opened or prepared already.
            CorruptLog, CorruptSegment: it could not be served from here.
        """
        with self._lock:
            entry = self._idle(spec)
            if entry.shard is not None:
                return _status(entry)
            entry.busy = True
        try:
            entry.prepared = prepare(spec, self._storage, self._settings, entry.prepared)
        finally:
            entry.busy = False
            self._forget_empty(entry)
        logger.info("event=shard_prepared shard=%s", spec.ref)
        return _status(entry)

    def close(self, ref: ShardRef, *, drop: bool) -> None:
        """Lets a shard go; with drop, deletes its data too, held or not.

        Raises:
            NotReady: it is being opened or prepared.
        """
        with self._lock:
            entry = self._entries.get(ref)
            if entry is not None and entry.busy:
                raise NotReady(f"shard {ref.shard} is being opened", retry_after_s=0.2)
            self._entries.pop(ref, None)
        if entry is not None and entry.shard is not None:
            entry.shard.close()
        if drop:
            drop_segments(ref, self._storage)
            self._storage.logs.drop(ref)
        logger.info("event=shard_closed shard=%s dropped=%s", ref, drop)

    def close_all(self) -> None:
        """Closes every shard; what waits for the logs becomes durable."""
        with self._lock:
            entries = list(self._entries.values())
            self._entries.clear()
        for entry in entries:
            if entry.shard is not None:
                entry.shard.close()

    def status(self, ref: ShardRef) -> shard_pb2.ShardStatus:
        """One shard as it is now.

        Raises:
            StaleTopology: the server does not hold it.
        """
        entry = self._entries.get(ref)
        if entry is None:
            raise StaleTopology(f"this server does not hold shard {ref.shard}")
        return _status(entry)

    def statuses(self) -> list[shard_pb2.ShardStatus]:
        """Every shard, ascending by collection, generation, shard."""
        with self._lock:
            entries = sorted(
                self._entries.items(),
                key=lambda item: (item[0].collection, item[0].generation, item[0].shard),
            )
        return [_status(entry) for _, entry in entries]


def _status(entry: _Entry) -> shard_pb2.ShardStatus:
    status = shard_pb2.ShardStatus(
        key=shard_key(entry.spec.ref),
        state=shard_pb2.SHARD_STATE_OPENING,
        writer_epoch=entry.writer_epoch,
    )
    if entry.prepared is not None and not entry.busy:
        status.state = shard_pb2.SHARD_STATE_PREPARED
    if entry.failure is not None:
        status.state = shard_pb2.SHARD_STATE_CORRUPT
        status.loss = entry.failure.metadata.get("loss", "")
        status.detail = entry.failure.message
    shard = entry.shard
    if shard is not None:
        status.writer_epoch = shard.writer_epoch
        _describe(shard, status)
    return status


def _describe(shard: Shard, status: shard_pb2.ShardStatus) -> None:
    view = shard.view
    status.state = shard_pb2.SHARD_STATE_SERVING
    status.documents, status.passages = view.documents, view.passages
    status.position = view.position
    status.tail_passages = shard.tail_passages
    status.detail = shard.sealing_failure
    status.writers = WRITER_NUMBERS[shard.writers]
    if isinstance(shard.layout, TokenLayout):
        sources = token_sources(view)
        status.tokens = sum(source.live_tokens for source in sources)
        status.token_bytes = sum(source.token_bytes for source in sources)
        status.codec = shard.layout.codec.description
        status.new_tokens, status.far_tokens = shard.drift.tokens, shard.drift.far
    for segment, source in zip(view.segments, view.sources, strict=False):
        status.segments.append(
            shard_pb2.SegmentStatus(
                name=segment.name,
                passages=segment.table.rows,
                live_passages=source.live.live_rows,
                index=segment.index,
                parameters=segment.parameters,
                recall=segment.recall,
                bytes=segment.size,
            )
        )
