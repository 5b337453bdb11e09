"""The log's bytes: how entries become 8-byte aligned records, and back.

Pure: bytes in, bytes out. A log file is a header of `HEADER_BYTES`, then
records, then zeros (it is preallocated). A record is

    magic 4s | crc32c u32 | length u32 | fragment u32 | sequence u64 |
    synced u64 | kind u8 | 7 zero bytes | payload | zeros up to 8-byte alignment

all little-endian. The CRC covers the file's identity (collection, generation,
shard, epoch, first sequence), the record's offset and everything in the record
but the CRC itself: a record that was written for another place never passes.
It is not chained, so each record can be judged alone, also after a hole.
"""

import struct
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import IntEnum

from crc32c import crc32c

from shoal.errors import NotSupported
from shoal.types import ShardRef

FORMAT_VERSION = 1
FRAGMENT_BYTES = 1 << 20
"""Most payload bytes in one record; bounds what a damaged length can ask for."""

_FILE = struct.Struct("<8sII16sQIIQQ")
_FILE_MAGIC = b"SHOALLOG"
_RECORD = struct.Struct("<4sIIIQQB7x")
_RECORD_MAGIC = b"SHLr"
_IDENTITY = struct.Struct("<16sQIQQ")
_OFFSET = struct.Struct("<Q")

HEADER_BYTES = _FILE.size
RECORD_BYTES = _RECORD.size
MARKER_BYTES = _RECORD.size
_AFTER_CRC = 8


class RecordKind(IntEnum):
    """What a record is."""

    PART = 1
    """A fragment of an entry; more follow."""
    LAST = 2
    """The last (or only) fragment of an entry: it commits the entry."""
    MARKER = 3
    """No entry: says only which sequence number is known synced."""


@dataclass(frozen=True, slots=True)
class LogFile:
    """Identity of one log file.

    Attributes:
        shard: whose log.
        epoch: writer epoch that the file belongs to.
        first: sequence number that its first entry has; all before it were
            durable when the file was made.
    """

    shard: ShardRef
    epoch: int
    first: int


@dataclass(frozen=True, slots=True)
class Record:
    """One record that passed its checksum.

    Attributes:
        kind: part or last fragment of an entry, or marker.
        sequence: the entry's number; 0 in markers.
        fragment: 0, 1, ... within the entry.
        synced: highest sequence number known durable when it was written.
        offset: where it begins in the file.
        end: where the next record begins.
        payload: the fragment's bytes, a view into the file's bytes.
    """

    kind: RecordKind
    sequence: int
    fragment: int
    synced: int
    offset: int
    end: int
    payload: memoryview


@dataclass(frozen=True, slots=True)
class Entry:
    """A complete entry: its number, its payload's parts, the offset after it."""

    sequence: int
    parts: tuple[memoryview, ...]
    end: int

    def payload(self) -> bytes:
        """The payload as it was given to the writer."""
        return b"".join(self.parts)


def align(size: int) -> int:
    """The smallest multiple of 8 that is >= size."""
    return (size + 7) & ~7


def encode_header(file: LogFile) -> bytes:
    """The first `HEADER_BYTES` bytes of a log file."""
    shard = file.shard
    fields = (
        bytes.fromhex(shard.collection),
        shard.generation,
        shard.shard,
        0,
        file.epoch,
        file.first,
    )
    unsummed = _FILE.pack(_FILE_MAGIC, FORMAT_VERSION, 0, *fields)
    return _FILE.pack(_FILE_MAGIC, FORMAT_VERSION, crc32c(unsummed), *fields)


def check_header(data: bytes, file: LogFile) -> bool:
    """Whether the data begins with this file's header.

    A damaged header loses nothing: every record carries the file's identity.

    Raises:
        NotSupported: the header is sound, but of a format that this version does
            not read.
    """
    if len(data) < HEADER_BYTES:
        return False
    magic, version, found, *fields = _FILE.unpack_from(data)
    if magic != _FILE_MAGIC or crc32c(_FILE.pack(magic, version, 0, *fields)) != found:
        return False
    if version != FORMAT_VERSION:
        raise NotSupported(
            f"a log file has format {version}, this version reads {FORMAT_VERSION}",
            format=version,
        )
    return data[:HEADER_BYTES] == encode_header(file)


def batch_bytes(payloads: Iterable[bytes]) -> int:
    """Bytes that `encode_batch` makes of the payloads."""
    total = 0
    for payload in payloads:
        full, rest = divmod(len(payload), FRAGMENT_BYTES)
        total += full * (RECORD_BYTES + FRAGMENT_BYTES)
        if rest or not full:
            total += RECORD_BYTES + align(rest)
    return total


def encode_batch(
    file: LogFile, offset: int, payloads: Sequence[bytes], *, sequence: int, synced: int
) -> bytes:
    """Records of consecutive entries, to be written at one offset of a file.

    Args:
        file: the file that they are for.
        offset: where in it they will stand, a multiple of 8.
        payloads: one for each entry.
        sequence: number of the first entry.
        synced: highest sequence number known durable now.
    """
    seed = _seed(file)
    chunks: list[bytes | memoryview] = []
    for number, payload in enumerate(payloads, sequence):
        view = memoryview(payload)
        starts = range(0, max(len(view), 1), FRAGMENT_BYTES)
        for fragment, start in enumerate(starts):
            part = view[start : start + FRAGMENT_BYTES]
            kind = RecordKind.LAST if start == starts[-1] else RecordKind.PART
            head = _head(seed, offset, (len(part), fragment, number, synced, kind), part)
            padding = align(len(part)) - len(part)
            chunks += (head, part, bytes(padding))
            offset += RECORD_BYTES + len(part) + padding
    return b"".join(chunks)


def encode_marker(file: LogFile, offset: int, synced: int) -> bytes:
    """A marker record, to be written at an offset of a file."""
    fields = (0, 0, 0, synced, RecordKind.MARKER)
    return _head(_seed(file), offset, fields, memoryview(b""))


def _seed(file: LogFile) -> int:
    shard = file.shard
    identity = _IDENTITY.pack(
        bytes.fromhex(shard.collection), shard.generation, shard.shard, file.epoch, file.first
    )
    return crc32c(identity)


def _head(
    seed: int, offset: int, fields: tuple[int, int, int, int, int], payload: memoryview
) -> bytes:
    unsummed = _RECORD.pack(_RECORD_MAGIC, 0, *fields)
    crc = crc32c(_OFFSET.pack(offset) + unsummed[_AFTER_CRC:], seed)
    return _RECORD.pack(_RECORD_MAGIC, crc32c(payload, crc), *fields)


def records(data: bytes, file: LogFile) -> Iterator[Record]:
    """Every sound record of a file, ascending by offset; what is not sound is
    skipped to the next place where a sound record begins.
    """
    seed = _seed(file)
    view = memoryview(data)
    offset = HEADER_BYTES
    while offset >= 0:
        record = _read(view, offset, seed)
        if record is None:
            offset = _next_magic(data, offset + 8)
        else:
            yield record
            offset = record.end


def _next_magic(data: bytes, offset: int) -> int:
    found = data.find(_RECORD_MAGIC, offset)
    while found % 8 and found >= 0:
        found = data.find(_RECORD_MAGIC, found + 1)
    return found


def _read(view: memoryview, offset: int, seed: int) -> Record | None:
    if offset + RECORD_BYTES > len(view):
        return None
    magic, found, length, fragment, sequence, synced, kind = _RECORD.unpack_from(view, offset)
    start = offset + RECORD_BYTES
    if magic != _RECORD_MAGIC or length > FRAGMENT_BYTES or start + length > len(view):
        return None
    crc = crc32c(view[offset + _AFTER_CRC : start], crc32c(_OFFSET.pack(offset), seed))
    payload = view[start : start + length]
    if crc32c(payload, crc) != found:
        return None
    end = start + align(length)
    return Record(RecordKind(kind), sequence, fragment, synced, offset, end, payload)


def entries(sound: Iterable[Record]) -> Iterator[Entry]:
    """Joins fragments to entries; an entry with a fragment missing is left out."""
    parts: list[memoryview] = []
    sequence = end = 0
    for record in sound:
        if record.kind is RecordKind.MARKER:
            continue
        if record.fragment == 0:
            parts = []
        elif record.sequence != sequence or record.fragment != len(parts) or record.offset != end:
            sequence = 0
            continue
        parts.append(record.payload)
        sequence, end = record.sequence, record.end
        if record.kind is RecordKind.LAST:
            yield Entry(sequence, tuple(parts), end)
            sequence = 0
