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
from shard_service.shard import Shard
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
    """A shard that the server holds, or tries to."""

    spec: ShardSpec
    writer_epoch: int
    shard: Shard | None = None
    failure: ShoalError | None = None


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
        if entry is None:
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
        """Recovers and serves a shard; one open under the same epoch stays as it is.

        Raises:
            SupersededWriter: a higher epoch owns it.
            NotReady: it is being opened already.
            CorruptLog, CorruptSegment, LossMismatch: see `Shard`.
        """
        with self._lock:
            held = self._entries.get(spec.ref)
            if held is not None and held.shard is None and held.failure is None:
                raise NotReady(f"shard {spec.ref.shard} is being opened", retry_after_s=0.2)
            if held is not None and held.shard is not None:
                if held.writer_epoch == writer_epoch:
                    return _status(held)
                if held.writer_epoch > writer_epoch:
                    raise SupersededWriter(
                        f"shard {spec.ref.shard} is open under epoch {held.writer_epoch}"
                    )
            entry = _Entry(spec, writer_epoch)
            self._entries[spec.ref] = entry
        if held is not None and held.shard is not None:
            held.shard.close()
        self._recover(entry, accept_loss, writers)
        return _status(entry)

    def _recover(self, entry: _Entry, accept_loss: str, writers: Writers) -> None:
        try:
            entry.shard = Shard(
                entry.spec,
                self._storage,
                self._settings,
                entry.writer_epoch,
                accept_loss,
                writers,
            )
        except (CorruptLog, CorruptSegment) as error:
            entry.failure = error
            logger.error("event=shard_corrupt shard=%s: %s", entry.spec.ref, error.message)
            raise
        except BaseException:
            with self._lock:
                self._entries.pop(entry.spec.ref, None)
            raise
        logger.info(
            "event=shard_open shard=%s epoch=%d position=%d documents=%d",
            entry.spec.ref,
            entry.writer_epoch,
            entry.shard.view.position,
            entry.shard.view.documents,
        )

    def close(self, ref: ShardRef, *, drop: bool) -> None:
        """Lets a shard go; with drop, deletes its data too, held or not.

        Raises:
            NotReady: it is being opened.
        """
        with self._lock:
            entry = self._entries.get(ref)
            if entry is not None and entry.shard is None and entry.failure is None:
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
    if entry.failure is not None:
        status.state = shard_pb2.SHARD_STATE_CORRUPT
        status.loss = entry.failure.metadata.get("loss", "")
        status.detail = entry.failure.message
    if entry.shard is not None:
        _describe(entry.shard, status)
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
