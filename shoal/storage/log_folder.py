"""The folder of one shard's log: what is in it, and reading it back.

    epoch-<epoch>/<first sequence>.log   entries that the epoch's writer wrote
    epoch-<epoch>/seal                   where it ended, once a later writer took over
    floor-<sequence>                     entries up to it may be gone: segments hold them
    accepted-<loss name>                 damaged entries that an operator gave up
    torn/                                copies of tails that were cut

The newest epoch's folder says who may write. Numbers in names have 20 digits.
"""

import json
import logging
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace

from shoal.errors import CorruptLog
from shoal.storage import envelope, files
from shoal.storage.ports import LogEntry
from shoal.storage.records import LogFile, check_header, entries, records
from shoal.storage.recovery import (
    EpochReading,
    FileSummary,
    Range,
    Seal,
    judge,
    loss_name,
    summarise,
    without,
)
from shoal.types import ShardRef

_log = logging.getLogger(__name__)
_SEAL = "seal"
_SUFFIX = ".log"


@dataclass(frozen=True, slots=True)
class FilePart:
    """The bytes of a file that count: its first `length`."""

    file: LogFile
    length: int


@dataclass(frozen=True, slots=True)
class EpochState:
    """One epoch as found.

    Attributes:
        epoch: its number.
        sealed: a later writer recorded where it ends.
        reading: how it was judged.
        parts: its files, ascending, without what is torn.
    """

    epoch: int
    sealed: bool
    reading: EpochReading
    parts: tuple[FilePart, ...]


@dataclass(frozen=True, slots=True)
class LogReading:
    """A whole log as found.

    Attributes:
        epochs: ascending.
        last: its last sequence number.
        durable: highest number known synced.
        accepted: numbers that were given up.
        lost: durable numbers that cannot be read and were not given up.
    """

    epochs: tuple[EpochState, ...]
    last: int
    durable: int
    accepted: tuple[Range, ...]
    lost: tuple[Range, ...]

    @property
    def parts(self) -> tuple[FilePart, ...]:
        """All files that count, in the order of their entries."""
        return tuple(part for state in self.epochs for part in state.parts)


class LogFolder:
    """Names and small files of one shard's log. Decides nothing."""

    def __init__(self, path: str, shard: ShardRef) -> None:
        self.path = path
        self.shard = shard

    def epochs(self) -> list[int]:
        """Epochs that have begun, ascending; empty if there is no log."""
        return _numbers(self.path, "epoch-", "")

    def epoch_path(self, epoch: int) -> str:
        """Folder of an epoch's files."""
        return os.path.join(self.path, f"epoch-{epoch:020d}")

    def file_path(self, file: LogFile) -> str:
        """Path of a log file."""
        return os.path.join(self.epoch_path(file.epoch), f"{file.first:020d}{_SUFFIX}")

    def log_files(self, epoch: int) -> list[LogFile]:
        """An epoch's files, ascending, those of a superseded writer included."""
        firsts = _numbers(self.epoch_path(epoch), "", _SUFFIX)
        return [LogFile(self.shard, epoch, first) for first in firsts]

    def load(self, file: LogFile, length: int | None = None) -> bytes:
        """A file's bytes, or its first `length`; b"" if it is gone."""
        try:
            with open(self.file_path(file), "rb") as stream:
                return stream.read() if length is None else stream.read(length)
        except FileNotFoundError:
            return b""

    def floor(self) -> int:
        """Entries up to this number are not needed any more."""
        return max(_numbers(self.path, "floor-", ""), default=0)

    def raise_floor(self, floor: int) -> None:
        """Durably sets the floor; it never falls, whoever else sets it."""
        older = _numbers(self.path, "floor-", "")
        name = os.path.join(self.path, f"floor-{floor:020d}")
        os.close(os.open(name, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o644))
        files.fsync_folder(self.path)
        for number in older:
            if number < floor:
                with suppress(FileNotFoundError):
                    os.unlink(os.path.join(self.path, f"floor-{number:020d}"))

    def accepted(self) -> dict[str, tuple[Range, ...]]:
        """Losses that were given up, by their names."""
        losses = {}
        for name in _names(self.path):
            if name.startswith("accepted-"):
                body = self._small(self.path, name)
                if body is not None:
                    ranges = json.loads(body)["lost"]
                    losses[name.removeprefix("accepted-")] = tuple((a, b) for a, b in ranges)
        return losses

    def accept(self, name: str, lost: Sequence[Range]) -> None:
        """Durably gives up what is lost."""
        self._put_small(self.path, "accepted-" + name, {"lost": list(lost)}, anew=True)

    def seal(self, epoch: int) -> Seal | None:
        """Where an epoch ends; None if that was never recorded (or is damaged:
        then the next epoch's first file still tells).
        """
        body = self._small(self.epoch_path(epoch), _SEAL)
        if body is None:
            return None
        fields = json.loads(body)
        return Seal(
            last=fields["last"],
            lengths={int(first): length for first, length in fields["lengths"].items()},
        )

    def put_seal(self, state: EpochState) -> bool:
        """Durably records where an epoch ends.

        Returns:
            False if another writer recorded it first: then that one counts.
        """
        value = {
            "last": state.reading.last,
            "lengths": {str(part.file.first): part.length for part in state.parts},
        }
        folder = self.epoch_path(state.epoch)
        damaged = os.path.exists(os.path.join(folder, _SEAL)) and self.seal(state.epoch) is None
        return self._put_small(folder, _SEAL, value, anew=damaged)

    def _context(self, folder: str, name: str) -> str:
        shard = self.shard
        where = os.path.relpath(os.path.join(folder, name), self.path)
        return f"{shard.collection}/{shard.generation}/{shard.shard}/{where}"

    def _small(self, folder: str, name: str) -> bytes | None:
        path = os.path.join(folder, name)
        try:
            with open(path, "rb") as stream:
                body = envelope.unwrap(self._context(folder, name), stream.read())
        except FileNotFoundError:
            return None
        if body is None:
            _log.warning("%s is damaged and left out of account", path)
        return body

    def _put_small(self, folder: str, name: str, value: object, *, anew: bool) -> bool:
        data = envelope.wrap(self._context(folder, name), json.dumps(value).encode())
        if anew:
            files.replace(folder, name, data)
            return True
        return files.publish(folder, name, data)

    def read(self) -> LogReading:
        """Reads the whole log and judges it. Writes nothing.

        A live writer can make a record behind the reader's back and then one that
        calls it synced, so a loss counts when it is seen twice.
        """
        reading = self._read_once()
        while reading.lost:
            before, reading = reading, self._read_once()
            if before.lost == reading.lost:
                break
        return reading

    def _read_once(self) -> LogReading:
        epochs = self.epochs()
        found = {epoch: self.log_files(epoch) for epoch in epochs}
        accepted = self.accepted()
        given_up = tuple(sorted({r for ranges in accepted.values() for r in ranges}))
        states: list[EpochState] = []
        last = durable = self.floor()
        missing: list[Range] = []
        for index, epoch in enumerate(epochs):
            later = [file.first for after in epochs[index + 1 :] for file in found[after]]
            state = self._judge(epoch, found[epoch], last, min(later) - 1 if later else None)
            states.append(state)
            missing += state.reading.missing
            last, durable = state.reading.last, state.reading.durable
        # The floor again: files may have been dropped while this read them.
        lost = without(missing, [*given_up, (1, self.floor())])
        return LogReading(tuple(states), last, durable, given_up, lost)

    def _judge(
        self, epoch: int, found: Iterable[LogFile], previous: int, bound: int | None
    ) -> EpochState:
        seal = self.seal(epoch)
        if seal is not None:
            found = [file for file in found if file.first in seal.lengths]
        elif bound is not None:
            found = [file for file in found if file.first <= bound]
        summaries = []
        for file in found:
            data = self.load(file, None if seal is None else seal.lengths[file.first])
            if data and not check_header(data, file):
                _log.warning("%s has a damaged header", self.file_path(file))
            summaries.append(summarise(data, file))
        reading = judge(summaries, previous, last=bound if seal is None else seal.last)
        parts = [
            FilePart(file, _extent(summary)) for file, summary in zip(found, summaries, strict=True)
        ]
        if seal is not None:
            parts = [replace(part, length=seal.lengths[part.file.first]) for part in parts]
        elif parts:
            parts[-1] = replace(parts[-1], length=reading.cut)
        return EpochState(epoch, seal is not None, reading, tuple(parts))

    def entries(
        self, parts: Sequence[FilePart], wanted: Range, accepted: Sequence[Range]
    ) -> Iterator[LogEntry]:
        """Entries with numbers within `wanted`, ascending, none left out but those
        that were given up.

        Raises:
            CorruptLog: one cannot be read.
        """
        expected, last = wanted
        for index, part in enumerate(parts):
            if index + 1 < len(parts) and parts[index + 1].file.first <= expected:
                continue
            data = self.load(part.file, part.length)
            for entry in entries(records(data, part.file)):
                number = entry.sequence
                if number < expected or number > last or _within(number, accepted):
                    continue
                self._check_gap(expected, number - 1, accepted)
                yield LogEntry(number, entry.payload())
                expected = number + 1
        self._check_gap(expected, last, accepted)

    def _check_gap(self, first: int, last: int, accepted: Sequence[Range]) -> None:
        if first <= last:
            lost = without([(first, last)], accepted)
            if lost:
                raise corrupt(self.shard, lost)


def corrupt(shard: ShardRef, lost: Sequence[Range]) -> CorruptLog:
    """The error that names a loss."""
    count = sum(last - first + 1 for first, last in lost)
    name = loss_name(shard, lost)
    return CorruptLog(
        f"shard {shard.shard} of generation {shard.generation}: {count} logged writes between "
        f"{lost[0][0]} and {lost[-1][1]} cannot be read back; restore the log's files, or "
        f"accept the loss {name}",
        loss=name,
        first_lost=lost[0][0],
        last_lost=lost[-1][1],
        lost=count,
        shard=shard.shard,
        generation=shard.generation,
    )


def _extent(summary: FileSummary) -> int:
    return max([summary.marked, *(end for _, end in summary.found)], default=0)


def _within(number: int, ranges: Iterable[Range]) -> bool:
    return any(first <= number <= last for first, last in ranges)


def _names(path: str) -> list[str]:
    try:
        return sorted(os.listdir(path))
    except FileNotFoundError:
        return []


def _numbers(path: str, prefix: str, suffix: str) -> list[int]:
    """Numbers of the names that are prefix + 20 digits + suffix, ascending."""
    size = len(prefix) + 20 + len(suffix)
    return [
        int(name[len(prefix) : len(prefix) + 20])
        for name in _names(path)
        if len(name) == size
        and name.startswith(prefix)
        and name.endswith(suffix)
        and name[len(prefix) : len(prefix) + 20].isdecimal()
    ]
