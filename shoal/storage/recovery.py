"""Judges what a log's files hold: entries, a torn tail, or damage. Pure.

A sequence number is *durable* when something sound says that it was synced: a
later record's `synced`, the first number of a later file, a seal. Durable
entries that cannot be read are damage. What cannot be read above every durable
number, in the last file of an unsealed epoch, is a torn tail: it was never
acknowledged by what the log knows.
"""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from shoal.storage.records import HEADER_BYTES, LogFile, RecordKind, entries, records
from shoal.types import ShardRef

Range = tuple[int, int]
"""Sequence numbers first..last, both included."""


@dataclass(frozen=True, slots=True)
class FileSummary:
    """What one file holds, without its payloads.

    Attributes:
        first: sequence number that the file was made for.
        found: (sequence, end offset) of each complete entry, ascending.
        synced: highest synced number that a sound record carries, 0 if none.
        marked: end offset of the last marker, 0 if none.
        used: offset after the last byte that is not zero.
    """

    first: int
    found: tuple[tuple[int, int], ...]
    synced: int
    marked: int
    used: int


@dataclass(frozen=True, slots=True)
class Seal:
    """Where an epoch ended when the next one took over.

    Attributes:
        last: its last sequence number.
        lengths: bytes that count, by each file's first sequence number. Other
            files and later bytes are a superseded writer's, ignored for ever.
    """

    last: int
    lengths: dict[int, int]


@dataclass(frozen=True, slots=True)
class EpochReading:
    """One epoch, judged.

    Attributes:
        durable: highest sequence number known durable.
        last: the last number that counts: durable, or readable without a gap
            above it.
        missing: durable numbers that cannot be read, ascending.
        cut: offset in the last file after everything that counts.
        torn_bytes: bytes after `cut` that are not zeros, in the last file.
        torn_entries: complete entries among them.
    """

    durable: int
    last: int
    missing: tuple[Range, ...]
    cut: int
    torn_bytes: int
    torn_entries: int


def summarise(data: bytes, file: LogFile) -> FileSummary:
    """Reads one file's records. Numbers that do not ascend are left out."""
    sound = list(records(data, file))
    found: list[tuple[int, int]] = []
    newest = file.first - 1
    for entry in entries(sound):
        if entry.sequence > newest:
            found.append((entry.sequence, entry.end))
            newest = entry.sequence
    return FileSummary(
        first=file.first,
        found=tuple(found),
        synced=max((record.synced for record in sound), default=0),
        marked=max((record.end for record in sound if record.kind is RecordKind.MARKER), default=0),
        used=len(data.rstrip(b"\0")),
    )


def judge(files: Sequence[FileSummary], previous: int, *, last: int | None = None) -> EpochReading:
    """Judges one epoch.

    Args:
        files: of this epoch, ascending by first number; a sealed epoch's with
            the bytes beyond the seal left out.
        previous: last sequence number of the epoch before, 0 if there is none.
        last: this epoch's last number, where a seal or the next epoch's first
            file tells it.
    """
    durable = max(
        previous,
        last or 0,
        *(file.first - 1 for file in files),
        *(file.synced for file in files),
    )
    if last is not None:
        durable = last
    numbers = sorted({number for file in files for number, _ in file.found})
    missing = _gaps(numbers, previous, durable)
    end = durable
    if last is None:
        readable = set(numbers)
        while end + 1 in readable:
            end += 1
    cut = used = torn_entries = 0
    if files:
        tail = files[-1]
        kept = [offset for number, offset in tail.found if number <= end]
        cut = max([HEADER_BYTES, tail.marked, *kept])
        used = tail.used
        torn_entries = len(tail.found) - len(kept)
    return EpochReading(durable, end, missing, cut, max(used - cut, 0), torn_entries)


def _gaps(numbers: Iterable[int], after: int, up_to: int) -> tuple[Range, ...]:
    """Ranges within (after, up_to] that are not among the ascending numbers."""
    gaps = []
    expected = after + 1
    for number in numbers:
        if number > up_to:
            break
        if number > expected:
            gaps.append((expected, number - 1))
        expected = max(expected, number + 1)
    if expected <= up_to:
        gaps.append((expected, up_to))
    return tuple(gaps)


def without(ranges: Iterable[Range], known: Iterable[Range]) -> tuple[Range, ...]:
    """What of the ranges no known range covers, ascending.

    >>> without([(3, 9)], [(1, 4), (7, 7)])
    ((5, 6), (8, 9))
    """
    left = list(ranges)
    for first, last in known:
        pieces = []
        for start, end in left:
            if start < first:
                pieces.append((start, min(end, first - 1)))
            if end > last:
                pieces.append((max(start, last + 1), end))
        left = pieces
    return tuple(sorted(left))


def loss_name(shard: ShardRef, lost: Sequence[Range]) -> str:
    """The name of a loss: the same for the same shard and numbers, always."""
    ranges = ",".join(f"{first}-{last}" for first, last in lost)
    text = f"{shard.collection}/{shard.generation}/{shard.shard}:{ranges}"
    return "loss-" + hashlib.blake2b(text.encode(), digest_size=8).hexdigest()
