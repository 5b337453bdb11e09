"""Shards' logs in folders: opening with fencing and recovery, and the writer."""

import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass

from shoal.errors import DiskFull, InvalidRequest, LossMismatch, SupersededWriter
from shoal.storage import files
from shoal.storage.log_folder import EpochState, FilePart, LogFolder, LogReading, corrupt
from shoal.storage.ports import LogEntry
from shoal.storage.records import (
    HEADER_BYTES,
    MARKER_BYTES,
    LogFile,
    batch_bytes,
    check_header,
    encode_batch,
    encode_header,
    encode_marker,
)
from shoal.storage.recovery import Range, loss_name
from shoal.types import ShardRef

FILE_BYTES = 32 << 20
"""A file that has entries is not grown beyond this: the next one begins. Files
are read whole, and are what `drop_prefix` frees.
"""
STEP_BYTES = 4 << 20
"""How much room is preallocated at a time."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class LogSnapshot:
    """A log read without writing, as it was at one moment.

    Attributes:
        last_sequence: newest readable entry; 0 when there is none.
        synced_sequence: newest entry known durable; a follower of a live writer
            applies no further.
    """

    last_sequence: int
    synced_sequence: int
    _folder: LogFolder
    _reading: LogReading

    def entries(self, after: int) -> Iterator[LogEntry]:
        """Entries with sequence > after, ascending.

        Raises:
            CorruptLog: an entry is damaged, or was dropped with the log's prefix.
        """
        wanted = (after + 1, self.last_sequence)
        return self._folder.entries(self._reading.parts, wanted, self._reading.accepted)


class DirectoryLogs:
    """All shards' logs, each in a folder of its own."""

    def __init__(self, path: str) -> None:
        self._path = path

    def open(self, shard: ShardRef, writer_epoch: int, accept_loss: str = "") -> "DirectoryLog":
        """See `shoal.storage.ports.Logs`. Epochs begin at 1; the same epoch may be
        opened again once its writer has closed it or died.

        Raises:
            CorruptLog, LossMismatch, SupersededWriter: see the port.
            DiskFull: no room to record the epoch.
            NotSupported: the media is read-only; use `read`.
        """
        if writer_epoch < 1:
            raise InvalidRequest("a writer's epoch begins at 1", field="writer_epoch")
        folder = self._folder(shard)
        with files.typed_errors("the log's epoch"):
            files.make_folder(folder.path)
            held = _claim(folder, writer_epoch)
            try:
                reading = _recover(folder, writer_epoch, accept_loss)
                return DirectoryLog(folder, writer_epoch, held, reading)
            except BaseException as error:
                os.close(held)
                if isinstance(error, FileNotFoundError):
                    # A newer writer has tidied up what this one was reading.
                    _check_newest(folder, writer_epoch)
                raise

    def read(self, shard: ShardRef, accept_loss: str = "") -> LogSnapshot:
        """Reads a log and writes nothing, whoever writes it meanwhile; a log that
        is not there is empty.

        Raises:
            CorruptLog: as `open`.
            LossMismatch: as `open`; nothing is recorded as accepted.
        """
        folder = self._folder(shard)
        reading = folder.read()
        given_up = _given_up(folder, reading, accept_loss)
        if given_up:
            reading = _accepting(reading, given_up)
        return LogSnapshot(reading.last, reading.durable, folder, reading)

    def drop(self, shard: ShardRef) -> None:
        """Deletes a shard's log; dropping what is not there is a no-op."""
        with files.typed_errors("the log's removal"):
            files.remove_folder(self._folder(shard).path)

    def _folder(self, shard: ShardRef) -> LogFolder:
        if len(shard.collection) != 32 or set(shard.collection) - set("0123456789abcdef"):
            raise InvalidRequest("a collection's identity is 32 hex digits", field="collection")
        name = f"{shard.collection}-{shard.generation}-{shard.shard}"
        return LogFolder(os.path.join(self._path, name), shard)


def _superseded(shard: ShardRef, epoch: int, why: str) -> SupersededWriter:
    return SupersededWriter(
        f"epoch {epoch} may not write the log of shard {shard.shard}: {why}",
        shard=shard.shard,
        writer_epoch=epoch,
    )


def _check_newest(folder: LogFolder, epoch: int) -> None:
    """Raises SupersededWriter unless the epoch owns the log."""
    newest = max(folder.epochs(), default=0)
    if newest > epoch:
        raise _superseded(folder.shard, epoch, f"epoch {newest} owns it")
    if newest < epoch:
        raise _superseded(folder.shard, epoch, "the log was dropped")


def _claim(folder: LogFolder, epoch: int) -> int:
    """Durably raises the epoch; the descriptor holds it against its like."""
    newest = max(folder.epochs(), default=0)
    if newest > epoch:
        raise _superseded(folder.shard, epoch, f"epoch {newest} owns it")
    path = folder.epoch_path(epoch)
    with suppress(FileExistsError):
        os.mkdir(path)
    files.fsync_folder(folder.path)
    held = files.lock(path)
    if held is None:
        raise _superseded(folder.shard, epoch, "another process holds this epoch")
    return held


def _recover(folder: LogFolder, epoch: int, accept_loss: str) -> LogReading:
    """Reads the log to its end and seals every epoch below this one."""
    while True:
        _settle(folder)
        reading = folder.read()
        given_up = _given_up(folder, reading, accept_loss)
        if given_up:
            folder.accept(accept_loss, given_up)
            _log.error("loss %s accepted: log entries %s are gone", accept_loss, given_up)
            reading = _accepting(reading, given_up)
        old = [state for state in reading.epochs if state.epoch < epoch]
        if all(state.sealed or folder.put_seal(state) for state in old):
            break
        # Another writer sealed an epoch first, perhaps further on: read again.
    for state in old:
        if not state.sealed:
            _trim(folder, state)
        if not state.parts:
            files.remove_folder(folder.epoch_path(state.epoch))
    return reading


def _settle(folder: LogFolder) -> None:
    """Makes what unsealed files hold durable, and lets the page cache go: after a
    failed fsync of a dead writer, cached pages may differ from the disk.
    """
    for epoch in folder.epochs():
        if folder.seal(epoch) is not None:
            continue
        for file in folder.log_files(epoch):
            descriptor = os.open(folder.file_path(file), os.O_RDONLY | os.O_CLOEXEC)
            try:
                files.fsync(descriptor, folder.file_path(file))
                os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            finally:
                os.close(descriptor)


def _given_up(folder: LogFolder, reading: LogReading, accept_loss: str) -> tuple[Range, ...]:
    """What is to be given up now, after checking that the operator named it."""
    name = loss_name(folder.shard, reading.lost) if reading.lost else ""
    if accept_loss in {"", name} or accept_loss in folder.accepted():
        if reading.lost and accept_loss != name:
            raise corrupt(folder.shard, reading.lost)
        return reading.lost
    raise LossMismatch(
        f"shard {folder.shard.shard} has "
        + (f"the loss {name}" if name else "no loss")
        + f", not {accept_loss[:80]!r}",
        loss=name,
    )


def _accepting(reading: LogReading, given_up: Sequence[Range]) -> LogReading:
    accepted = tuple(sorted({*reading.accepted, *given_up}))
    return LogReading(reading.epochs, reading.last, reading.durable, accepted, ())


def _trim(folder: LogFolder, state: EpochState) -> None:
    """Keeps a copy of a torn tail and frees what lies beyond what counts."""
    for part in state.parts[-1:]:
        if state.reading.torn_bytes:
            _keep_torn(folder, part, state)
        with suppress(FileNotFoundError):
            os.truncate(folder.file_path(part.file), part.length)


def _keep_torn(folder: LogFolder, part: FilePart, state: EpochState) -> None:
    torn = folder.load(part.file)[part.length :].rstrip(b"\0")
    target = os.path.join(folder.path, "torn")
    files.make_folder(target)
    name = f"{part.file.epoch:020d}-{part.file.first:020d}-{part.length}.torn"
    files.replace(target, name, torn)
    _log.warning(
        "torn tail of the log of shard %d, epoch %d: %d bytes (%d whole entries) that were "
        "never acknowledged are cut after entry %d; a copy is in %s",
        folder.shard.shard,
        state.epoch,
        state.reading.torn_bytes,
        state.reading.torn_entries,
        state.reading.last,
        os.path.join(target, name),
    )


class _ActiveFile:
    """The file that is being written. Owns its descriptor."""

    def __init__(self, path: str, file: LogFile, position: int) -> None:
        self.path = path
        self.file = file
        self.position = position
        self._allocated = position
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC
        self._descriptor = os.open(path, flags, 0o644)

    def reserve(self, size: int) -> None:
        """Makes sure that `size` bytes fit at the position, before any is written.

        Raises:
            DiskFull: they do not.
        """
        short = self.position + size - self._allocated
        if short <= 0:
            return
        for step in (max(short, STEP_BYTES), short):
            try:
                os.posix_fallocate(self._descriptor, self._allocated, step)
            except OSError as error:
                self._give_back()
                refusal = files.as_typed(error, "the log")
                if not isinstance(refusal, DiskFull) or step == short:
                    raise refusal from error
            else:
                self._allocated += step
                return

    def _give_back(self) -> None:
        with suppress(OSError):
            os.ftruncate(self._descriptor, self._allocated)

    def write(self, data: bytes, *, sync: bool) -> None:
        """Writes at the position, in room that is reserved, and moves it on.

        Raises:
            DiskFull: a file system without real preallocation had no room.
        """
        try:
            files.write_all(self._descriptor, data, self.position)
        except OSError as error:
            self._take_back()
            raise files.as_typed(error, "the log") from error
        if sync:
            files.fsync(self._descriptor, self.path, data_only=True)
        self.position += len(data)

    def _take_back(self) -> None:
        self._allocated = self.position
        try:
            os.ftruncate(self._descriptor, self.position)
        except OSError as error:
            # Half a batch that was refused would stay, and could be read back.
            files.end_process(f"cutting {self.path}", error)

    def finish(self) -> None:
        """Frees the room that is left, makes all durable, closes the file."""
        os.ftruncate(self._descriptor, self.position)
        files.fsync(self._descriptor, self.path)
        self.abandon()

    def abandon(self) -> None:
        """Closes the file as it is."""
        os.close(self._descriptor)


class DirectoryLog:
    """One shard's log, opened for writing. See `shoal.storage.ports.Log`."""

    def __init__(self, folder: LogFolder, epoch: int, held: int, reading: LogReading) -> None:
        self._folder = folder
        self._epoch = epoch
        self._held = held
        self._last = reading.last
        self._accepted = reading.accepted
        self._parts = list(reading.parts)
        self._active: _ActiveFile | None = None
        self._usable = True
        # The highest number that the log itself says is synced; seals say it too.
        self._noted = reading.last
        own = [state for state in reading.epochs if state.epoch == epoch and state.parts]
        if own:
            self._noted = own[0].reading.durable
            self._resume(own[0])

    def _resume(self, state: EpochState) -> None:
        part = self._parts.pop()
        _trim(self._folder, state)
        path = self._folder.file_path(part.file)
        self._active = _ActiveFile(path, part.file, part.length)
        if not check_header(self._folder.load(part.file, HEADER_BYTES), part.file):
            self._active.position = 0
            self._active.write(encode_header(part.file), sync=True)
            self._active.position = part.length

    @property
    def last_sequence(self) -> int:
        """Sequence number of the newest durable entry; 0 when there is none."""
        return self._last

    def append(self, payloads: Sequence[bytes]) -> int:
        """See `shoal.storage.ports.Log.append`."""
        self._check_usable()
        if not payloads:
            return self._last
        size = batch_bytes(payloads)
        active = self._room(size + MARKER_BYTES)
        data = encode_batch(
            active.file, active.position, payloads, sequence=self._last + 1, synced=self._last
        )
        active.write(data, sync=True)
        # Only now: a writer that was stopped before the fsync must see who came since.
        self._check_owner()
        self._noted = self._last
        self._last += len(payloads)
        return self._last

    def _room(self, size: int) -> _ActiveFile:
        """The file to write `size` bytes to, with room for them."""
        active = self._active
        if active is not None and active.position + size <= FILE_BYTES:
            active.reserve(size)
            return active
        if active is not None and active.position == HEADER_BYTES:
            active.reserve(size)
            return active
        fresh = self._begin_file(size)
        if active is not None:
            self._parts.append(FilePart(active.file, active.position))
            active.finish()
        self._active = fresh
        return fresh

    def _begin_file(self, size: int) -> _ActiveFile:
        file = LogFile(self._folder.shard, self._epoch, self._last + 1)
        path = self._folder.file_path(file)
        try:
            fresh = _ActiveFile(path, file, 0)
        except FileNotFoundError as error:
            self._usable = False
            raise _superseded(file.shard, self._epoch, "the epoch is gone") from error
        except OSError as error:
            raise files.as_typed(error, "the log") from error
        try:
            fresh.reserve(HEADER_BYTES + size)
            fresh.write(encode_header(file), sync=True)
        except BaseException:
            fresh.abandon()
            with suppress(FileNotFoundError):
                os.unlink(path)
            raise
        files.fsync_folder(self._folder.epoch_path(self._epoch))
        return fresh

    def entries(self, after: int) -> Iterator[LogEntry]:
        """See `shoal.storage.ports.Log.entries`.

        Raises:
            CorruptLog: an entry is damaged, or was dropped with the log's prefix.
        """
        parts = list(self._parts)
        if self._active is not None:
            parts.append(FilePart(self._active.file, self._active.position))
        return self._folder.entries(parts, (after + 1, self._last), self._accepted)

    def drop_prefix(self, up_to: int) -> None:
        """Frees files whose entries all have sequence <= up_to.

        Raises:
            SupersededWriter: a higher epoch owns the log.
        """
        self._check_usable()
        self._check_owner()
        up_to = min(up_to, self._last)
        if up_to <= self._folder.floor():
            return
        with files.typed_errors("the log's floor"):
            self._folder.raise_floor(up_to)
        firsts = [part.file.first for part in self._parts[1:]]
        firsts.append(self._active.file.first if self._active else self._last + 1)
        count = sum(following <= up_to + 1 for following in firsts[: len(self._parts)])
        dropped, self._parts = self._parts[:count], self._parts[count:]
        for part in dropped:
            with suppress(FileNotFoundError):
                os.unlink(self._folder.file_path(part.file))
        kept = {part.file.epoch for part in self._parts} | {self._epoch}
        for epoch in sorted({part.file.epoch for part in dropped} - kept):
            files.remove_folder(self._folder.epoch_path(epoch))

    def idle(self) -> None:
        """Writes the marker that covers the last append, if it is not covered yet.

        The marker is not fsynced: it guards against later damage of entries that
        are durable already.
        """
        self._check_usable()
        if self._active is None or self._noted == self._last:
            return
        try:
            self._active.reserve(MARKER_BYTES)
            marker = encode_marker(self._active.file, self._active.position, self._last)
            self._active.write(marker, sync=False)
        except DiskFull:
            _log.warning("no room for a marker in the log of shard %d", self._folder.shard.shard)
            return
        self._noted = self._last

    def close(self) -> None:
        """Writes the marker and lets the files go; closing again is a no-op."""
        if self._held < 0:
            return
        if self._usable:
            self.idle()
            if self._active is not None:
                self._active.finish()
        elif self._active is not None:
            self._active.abandon()
        self._usable = False
        os.close(self._held)
        self._held = -1

    def _check_usable(self) -> None:
        if self._held < 0:
            raise ValueError("the log is closed")
        if not self._usable:
            raise _superseded(self._folder.shard, self._epoch, "it was superseded before")

    def _check_owner(self) -> None:
        try:
            _check_newest(self._folder, self._epoch)
        except SupersededWriter:
            self._usable = False
            raise
