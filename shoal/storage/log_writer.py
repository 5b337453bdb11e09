"""The writer of one shard's log."""

import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import suppress

from shoal.errors import DiskFull, SupersededWriter
from shoal.storage import files
from shoal.storage.log_folder import EpochState, FilePart, LogFolder, LogReading
from shoal.storage.log_recovery import check_newest, superseded, trim
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

FILE_BYTES = 32 << 20
"""A file that has entries is not grown beyond this: the next one begins. Files
are read whole, and are what `drop_prefix` frees.
"""
STEP_BYTES = 4 << 20
"""How much room is preallocated at a time."""

_log = logging.getLogger(__name__)


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
        trim(self._folder, state)
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
        self.check_owner()
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
            raise superseded(file.shard, self._epoch, "the epoch is gone") from error
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

    def check_owner(self) -> None:
        """See `shoal.storage.ports.Log.check_owner`."""
        try:
            check_newest(self._folder, self._epoch)
        except SupersededWriter:
            self._usable = False
            raise

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
        self.check_owner()
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
            raise superseded(self._folder.shard, self._epoch, "it was superseded before")
