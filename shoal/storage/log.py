"""Shards' logs, each in a folder of its own: opening, reading, dropping."""

import os
from collections.abc import Iterator
from dataclasses import dataclass

from shoal.errors import InvalidRequest
from shoal.storage import files
from shoal.storage.log_folder import LogFolder, LogReading
from shoal.storage.log_recovery import accepting, check_newest, claim, given_up, recover
from shoal.storage.log_writer import DirectoryLog
from shoal.storage.ports import LogEntry
from shoal.types import ShardRef


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
            held = claim(folder, writer_epoch)
            try:
                reading = recover(folder, writer_epoch, accept_loss)
                return DirectoryLog(folder, writer_epoch, held, reading)
            except BaseException as error:
                os.close(held)
                if isinstance(error, FileNotFoundError):
                    # A newer writer has tidied up what this one was reading.
                    check_newest(folder, writer_epoch)
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
        lost = given_up(folder, reading, accept_loss)
        if lost:
            reading = accepting(reading, lost)
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
