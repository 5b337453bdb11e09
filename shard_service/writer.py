"""Group commit: one thread makes what waits durable together, then shows it."""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from functools import partial
from itertools import groupby

import numpy as np

from shard_service.core.records import (
    DeleteRecord,
    Version,
    encode_delete,
    encode_write,
)
from shard_service.core.state import ShardState, Writes
from shard_service.core.vectors import Vectors
from shard_service.core.writers import Writers
from shoal.errors import Overloaded, ShoalError, StaleTopology, SupersededWriter
from shoal.storage.ports import Log

logger = logging.getLogger(__name__)

_BATCH_BYTES = 8 << 20
"""Vectors and documents that one fsync makes durable; what is larger goes alone."""


@dataclass(frozen=True, slots=True)
class WriteOutcome:
    """What became of versions, in order.

    Attributes:
        sequences: sequence number of each.
        replaced: sequence number of the live version that each replaced, or 0.
        position: newest sequence number of the shard.
    """

    sequences: list[int]
    replaced: list[int]
    position: int


@dataclass(frozen=True, slots=True)
class DeleteOutcome:
    """What became of deletes, in order: there was such a document."""

    found: list[bool]
    position: int


@dataclass(frozen=True, slots=True)
class WriteOperation:
    """Versions to store, and the vectors of all their passages.

    Attributes:
        versions: what they are.
        vectors: of their passages, one version's after the other's.
        tokens: of kind colbert, how many vectors that is, ...
        far: ... and how many of them the codec was not made for.
    """

    versions: Sequence[Version]
    vectors: Vectors
    tokens: int = 0
    far: int = 0
    done: Future[WriteOutcome] = field(default_factory=Future)

    @property
    def size(self) -> int:
        """Bytes that go to the log."""
        return self.vectors.nbytes + sum(len(version.content) for version in self.versions)

    def payloads(self) -> list[bytes]:
        """Its log entries."""
        entries, row = [], 0
        for version in self.versions:
            mine = self.vectors.part(row, row + version.passages)
            entries.append(encode_write(version, mine.to_bytes()))
            row += version.passages
        return entries


@dataclass(frozen=True, slots=True)
class DeleteOperation:
    """Documents to delete."""

    ids: Sequence[bytes]
    done: Future[DeleteOutcome] = field(default_factory=Future)

    @property
    def size(self) -> int:
        """Bytes that go to the log."""
        return sum(len(key) for key in self.ids)


@dataclass(frozen=True, slots=True)
class Mark:
    """Done when everything queued before it is."""

    done: Future[None] = field(default_factory=Future)
    size: int = 0


Operation = WriteOperation | DeleteOperation


class Writer:
    """Owns a shard's log and every change of its state.

    A failed append fails the operations of its batch and leaves the state alone.
    """

    def __init__(
        self,
        state: ShardState,
        log: Log,
        lock: threading.Lock,
        publish: Callable[[], None],
        max_waiting: int,
        writers: Writers,
    ) -> None:
        """Starts the thread.

        Args:
            state: the shard's documents.
            log: where they become durable.
            lock: held while the state changes.
            publish: called with the lock held after every change.
            max_waiting: operations that may wait.
            writers: whose operations it takes.
        """
        self._state, self._log, self._lock, self._publish = state, log, lock, publish
        self._queue: queue.SimpleQueue[Operation | Mark | None] = queue.SimpleQueue()
        self._max_waiting = max_waiting
        self._admission = threading.Lock()
        self.writers = writers
        self._order = 0
        self._log_lock = threading.Lock()
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="shard-writer", daemon=True)
        self._thread.start()

    def submit(self, operation: Operation, writer: Writers) -> None:
        """Queues an operation; its future says when it is durable and visible.

        Raises:
            Overloaded: too many wait.
            StaleTopology: the shard is closed, or takes no writes of this writer.
        """
        # One lock with `admit` and `close`: nothing that they refuse is queued behind them.
        with self._admission:
            self.check(writer)
            if self._queue.qsize() >= self._max_waiting:
                raise Overloaded(
                    "too many writes wait for this shard; try again", retry_after_s=0.1
                )
            self._queue.put(operation)

    def check(self, writer: Writers) -> None:
        """Raises StaleTopology if the shard is closed, or takes no writes of this writer."""
        if self._closed:
            raise StaleTopology("the shard is closed on this server")
        if self.writers is not writer:
            raise StaleTopology("another generation serves, or soon will", retry_after_s=0.05)

    def check_owner(self) -> None:
        """Raises StaleTopology if another server has taken the shard over."""
        try:
            self._log.check_owner()
        except SupersededWriter as error:
            raise StaleTopology("another server has taken this shard over") from error

    def admit(self, writers: Writers, order: int) -> None:
        """Takes these writers' operations alone from now on; what waits still happens.

        Returns when nothing that was queued before is under way.

        Args:
            writers: they.
            order: of this word among those of all controllers; grows.

        Raises:
            StaleTopology: the shard is closed, or has had a later word.
        """
        mark = Mark()
        with self._admission:
            if self._closed:
                raise StaleTopology("the shard is closed on this server")
            if order < self._order:
                raise StaleTopology("a later word on the shard's writers came before this one")
            self.writers, self._order = writers, order
            self._queue.put(mark)
        mark.done.result()

    def drop_prefix(self, up_to: int) -> None:
        """Frees log files whose entries are all in segments."""
        with self._log_lock:
            self._log.drop_prefix(up_to)

    def close(self) -> None:
        """Lets what waits become durable, then closes the log."""
        with self._admission:
            self._closed = True
            self._queue.put(None)
        self._thread.join()
        self._log.close()

    def _run(self) -> None:
        while True:
            batch, last = self._collect()
            operations = [item for item in batch if not isinstance(item, Mark)]
            if operations:
                self._commit(operations)
            for item in batch:
                if isinstance(item, Mark):
                    item.done.set_result(None)
            if last:
                return
            if self._queue.empty():
                self._guarded_idle()

    def _guarded_idle(self) -> None:
        try:
            with self._log_lock:
                self._log.idle()
        except ShoalError:
            logger.warning("event=idle_marker_failed", exc_info=True)

    def _collect(self) -> tuple[list[Operation | Mark], bool]:
        """What waits, up to a size; and whether the writer is to end after it."""
        batch: list[Operation | Mark] = []
        item = self._queue.get()
        size = 0
        while item is not None:
            # From here on a caller that leaves cannot disturb the others of its batch.
            if item.done.set_running_or_notify_cancel():
                batch.append(item)
                size += item.size
            if size >= _BATCH_BYTES:
                return batch, False
            try:
                item = self._queue.get_nowait()
            except queue.Empty:
                return batch, False
        return batch, True

    def _commit(self, batch: list[Operation]) -> None:
        try:
            deletes = self._existing(batch)
            payloads: list[bytes] = []
            for operation in batch:
                if isinstance(operation, WriteOperation):
                    payloads += operation.payloads()
                else:
                    payloads += [encode_delete(key) for key in deletes[id(operation)]]
            if payloads:
                with self._log_lock:
                    last = self._log.append(payloads)
                assert last == self._state.position + len(payloads)
            self._apply(batch, deletes)
        except Exception as error:
            if not isinstance(error, ShoalError):
                logger.exception("event=commit_failed")
            for operation in batch:
                if not operation.done.done():
                    operation.done.set_exception(error)

    def _existing(self, batch: list[Operation]) -> dict[int, list[bytes]]:
        """Per delete operation: the ids that may exist when its turn comes."""
        written: set[bytes] = set()
        existing: dict[int, list[bytes]] = {}
        for operation in batch:
            if isinstance(operation, WriteOperation):
                written.update(version.id for version in operation.versions)
                continue
            ids = list(dict.fromkeys(operation.ids))
            places = self._state.locate(ids)
            existing[id(operation)] = [
                key
                for key, place in zip(ids, places, strict=True)
                if place is not None or key in written
            ]
        return existing

    def _apply(self, batch: list[Operation], deletes: dict[int, list[bytes]]) -> None:
        acknowledge: list[Callable[[], None]] = []
        with self._lock:
            for is_write, group in groupby(batch, lambda o: isinstance(o, WriteOperation)):
                if is_write:
                    writes = [o for o in group if isinstance(o, WriteOperation)]
                    acknowledge += self._apply_writes(writes)
                    continue
                for operation in group:
                    if isinstance(operation, DeleteOperation):
                        acknowledge.append(self._apply_delete(operation, deletes))
            self._publish()
        for tell in acknowledge:
            tell()

    def _apply_writes(self, operations: list[WriteOperation]) -> list[Callable[[], None]]:
        versions = [version for operation in operations for version in operation.versions]
        first = self._state.position + 1
        sequences = np.arange(first, first + len(versions), dtype=np.uint64)
        first_vectors, *others = (operation.vectors.kept() for operation in operations)
        vectors = first_vectors.joined(others)
        replaced = self._state.write(Writes(versions, sequences, vectors))
        results: list[Callable[[], None]] = []
        start = 0
        for operation in operations:
            end = start + len(operation.versions)
            outcome = WriteOutcome(
                sequences[start:end].tolist(), replaced[start:end], first + end - 1
            )
            results.append(partial(operation.done.set_result, outcome))
            start = end
        return results

    def _apply_delete(
        self, operation: DeleteOperation, deletes: dict[int, list[bytes]]
    ) -> Callable[[], None]:
        ids = deletes[id(operation)]
        position = self._state.position + len(ids)
        existed = self._state.delete([DeleteRecord(key) for key in ids], position)
        # The second mention of an id in one message finds nothing any more.
        gone = {key for key, found in zip(ids, existed, strict=True) if found}
        found = []
        for key in operation.ids:
            found.append(key in gone)
            gone.discard(key)
        return partial(operation.done.set_result, DeleteOutcome(found, position))
