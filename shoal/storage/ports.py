"""What Shoal asks of durable storage. Adapters: `shoal.storage.directory`.

Nothing above these ports knows where the bytes are.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from shoal.types import ShardRef


@dataclass(frozen=True, slots=True)
class LogEntry:
    """One durable write.

    Attributes:
        sequence: 1, 2, 3, ... within the shard, without gaps.
        payload: the writer's bytes.
    """

    sequence: int
    payload: bytes


class Log(Protocol):
    """A shard's ordered, durable record of writes, opened by one writer.

    Not thread-safe: one thread writes. A failed fsync ends the process.
    """

    @property
    def last_sequence(self) -> int:
        """Sequence number of the newest durable entry; 0 when there is none."""

    def append(self, payloads: Sequence[bytes]) -> int:
        """Makes the payloads durable with one fsync, in order.

        Returns:
            The sequence number of the last one.

        Raises:
            DiskFull: no room; nothing was written and the log goes on.
            SupersededWriter: a higher epoch owns the log; nothing is acknowledged.
        """

    def entries(self, after: int) -> Iterator[LogEntry]:
        """Entries with sequence > after, ascending, up to the last one now; none is
        left out but those that an operator gave up.

        Raises:
            CorruptLog: one cannot be read: it is damaged (metadata "loss" names it),
                or was dropped with the prefix.
        """

    def check_owner(self) -> None:
        """Raises SupersededWriter if a higher epoch owns the log. From any thread."""

    def drop_prefix(self, up_to: int) -> None:
        """Frees files whose entries all have sequence <= up_to."""

    def idle(self) -> None:
        """Writes the marker that covers the last append, if it is not covered yet."""

    def close(self) -> None:
        """Writes the marker and lets the files go."""


class LogReader(Protocol):
    """A log as it was at one moment, read without writing."""

    @property
    def last_sequence(self) -> int:
        """Sequence number of the newest readable entry; 0 when there is none."""

    @property
    def synced_sequence(self) -> int:
        """Newest entry known durable: a follower of a live writer applies no further."""

    def entries(self, after: int) -> Iterator[LogEntry]:
        """As `Log.entries`."""


class Logs(Protocol):
    """All shards' logs."""

    def open(self, shard: ShardRef, writer_epoch: int, accept_loss: str = "") -> Log:
        """Fences every lower epoch, reads the log to its end, opens it for writing.

        A torn tail (never acknowledged) is cut, a copy is kept, and a warning
        is logged.

        Raises:
            CorruptLog: acknowledged data is damaged and accept_loss does not name
                that loss. Metadata: "loss", "first_lost", "last_lost".
            LossMismatch: accept_loss names another loss.
            SupersededWriter: a higher epoch exists.
        """

    def read(self, shard: ShardRef, accept_loss: str = "") -> LogReader:
        """Reads a log and writes nothing: for followers, and where a disk is full
        or read-only. A log that is not there is empty.

        Raises:
            CorruptLog, LossMismatch: as `open`; an acceptance is not recorded.
        """

    def drop(self, shard: ShardRef) -> None:
        """Deletes a shard's log; dropping what is not there is a no-op."""


@dataclass(frozen=True, slots=True)
class Versioned:
    """A catalog value.

    Attributes:
        version: 1, 2, 3, ...; 0 stands for "no such key".
        value: its bytes; empty for version 0.
    """

    version: int
    value: bytes


class Catalog(Protocol):
    """Small values with compare-and-swap. Keys are like "collections/papers"."""

    def get(self, key: str) -> Versioned:
        """The newest value; version 0 if the key is absent or deleted."""

    def put(self, key: str, value: bytes, expected_version: int) -> int | None:
        """Publishes the value as expected_version + 1, durably.

        A key that was deleted goes on with the next number never used, so use
        what is returned.

        Returns:
            The new version, or None if somebody else published it first.
        """

    def delete(self, key: str) -> None:
        """Removes a key and its versions; removing what is not there is a no-op."""

    def keys(self, prefix: str) -> list[str]:
        """Keys that begin with prefix, ascending."""


class Blobs(Protocol):
    """Immutable folders of files by name: published whole or not at all."""

    def staging(self, name: str) -> "Staging":
        """A place to build the folder `name` in, on the disk where it will live."""

    def path(self, name: str) -> str:
        """Local path of a published folder (adapters may fetch it first)."""

    def delete(self, name: str) -> None:
        """Deletes a published folder; deleting what is not there is a no-op."""

    def names(self, prefix: str) -> list[str]:
        """Published folders whose name begins with prefix, ascending."""


@dataclass(frozen=True, slots=True)
class FileEntry:
    """A file of a published folder: name, bytes, CRC32C."""

    name: str
    size: int
    crc32c: int


class Staging(Protocol):
    """A folder under construction."""

    @property
    def folder(self) -> str:
        """Local path to write files into."""

    def publish(self) -> list[FileEntry]:
        """Fsyncs the files, renames the folder to its name, fsyncs its parent.

        Returns:
            The files, ascending by name, for the manifest.
        """

    def discard(self) -> None:
        """Deletes the folder under construction."""
