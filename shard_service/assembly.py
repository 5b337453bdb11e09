"""Writes a segment's files from what is sealed. Off the serving path."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from shard_service.columns import ColumnFiles
from shard_service.core.live import Live, ranges
from shard_service.core.state import TAIL, Frozen
from shard_service.core.table import Table
from shard_service.core.vectors import starts_of
from shard_service.manifest import SegmentEntry
from shard_service.segments import SegmentStore
from shoal.ids import id_hash

_CHUNK_DOCUMENTS = 1_024
"""Documents copied at a time, so that searches get the interpreter in between."""

Pick: TypeAlias = Callable[[Table], NDArray[np.generic]]
"""A column of a table."""


@dataclass(frozen=True, slots=True)
class _Part:
    """What one source gives to the new segment."""

    number: int
    table: Table
    content: Callable[[int], bytes]
    documents: NDArray[np.int64]
    hashes: NDArray[np.uint64]


@dataclass(frozen=True, slots=True)
class Merged:
    """The documents of the new segment in their order."""

    parts: dict[int, _Part]
    origins: NDArray[np.int64]
    hashes: NDArray[np.uint64]

    def chunks(self) -> Iterator[NDArray[np.int64]]:
        """Origins, a chunk at a time."""
        for start in range(0, len(self.origins), _CHUNK_DOCUMENTS):
            yield self.origins[start : start + _CHUNK_DOCUMENTS]

    def columns(self, pick: Pick) -> NDArray[np.generic]:
        """A per-document column in the new order."""
        first = pick(next(iter(self.parts.values())).table)
        merged = np.empty((len(self.origins), *first.shape[1:]), dtype=first.dtype)
        for number, part in self.parts.items():
            mine = self.origins[:, 0] == number
            merged[mine] = pick(part.table)[self.origins[mine, 1]]
        return merged

    def runs(self, starts: Pick, pick: Pick) -> Iterator[NDArray[np.generic]]:
        """A column of which every document has a run, a chunk of documents at a time.

        Args:
            starts: where each document's run begins, and the end of the last.
            pick: the column.
        """
        first = pick(next(iter(self.parts.values())).table)
        for chunk in self.chunks():
            begins, ends = np.empty(len(chunk), np.int64), np.empty(len(chunk), np.int64)
            for number, part in self.parts.items():
                mine = chunk[:, 0] == number
                of = starts(part.table)
                begins[mine], ends[mine] = of[chunk[mine, 1]], of[chunk[mine, 1] + 1]
            sources = np.repeat(chunk[:, 0], ends - begins)
            rows = ranges(begins, ends)
            gathered = np.empty((len(rows), *first.shape[1:]), dtype=first.dtype)
            for number, part in self.parts.items():
                mine = sources == number
                gathered[mine] = pick(part.table)[rows[mine]]
            yield gathered


def assemble(store: SegmentStore, frozen: Frozen) -> tuple[SegmentEntry | None, NDArray[np.int64]]:
    """Writes and publishes the folder of a new segment.

    Args:
        store: where it goes.
        frozen: what it holds.

    Returns:
        Its entry for the manifest, None if nothing is live; and per document where it
        came from (see `ShardState.install`).

    Raises:
        DiskFull: no room; nothing changed.
    """
    merged = _merge(frozen)
    if not len(merged.origins):
        return None, merged.origins
    name, staging = store.staging()
    try:
        files = ColumnFiles(store.ref, staging.folder)
        _write_documents(files, merged)
        facts = store.layout.write(files, merged)
        entry = SegmentEntry(
            name=name,
            files=tuple(staging.publish()),
            index=facts.index,
            parameters=facts.parameters,
            recall=facts.recall,
            max_norm=facts.max_norm,
        )
    except BaseException:
        staging.discard()
        raise
    return entry, merged.origins


def _merge(frozen: Frozen) -> Merged:
    parts = {}
    for number, (segment, live) in enumerate(zip(frozen.segments, frozen.lives, strict=True)):
        documents = _live_documents(segment.table, live)
        parts[number] = _Part(
            number, segment.table, segment.content, documents, segment.hashes[documents]
        )
    if frozen.tail is not None:
        table = frozen.tail
        documents = _live_documents(table, frozen.tail_live)
        hashes = np.fromiter(
            (id_hash(table.id(number)) for number in documents.tolist()),
            np.uint64,
            len(documents),
        )
        content = frozen.contents.__getitem__
        parts[TAIL] = _Part(TAIL, table, content, documents, hashes)
    empty = np.empty((0, 2), dtype=np.int64)
    origins = np.concatenate(
        [empty]
        + [np.stack([np.full(len(p.documents), p.number), p.documents], 1) for p in parts.values()]
    )
    hashes = np.concatenate(
        [np.empty(0, dtype=np.uint64)] + [part.hashes for part in parts.values()]
    )
    order = _by_hash_and_id(parts, origins, hashes)
    return Merged(parts, origins[order], hashes[order])


def _live_documents(table: Table, live: Live) -> NDArray[np.int64]:
    return np.flatnonzero(live.of(table.row_starts[:-1]))


def _by_hash_and_id(
    parts: dict[int, _Part], origins: NDArray[np.int64], hashes: NDArray[np.uint64]
) -> NDArray[np.int64]:
    order = np.argsort(hashes, kind="stable")
    same = np.flatnonzero(hashes[order[1:]] == hashes[order[:-1]])
    for at in same.tolist():  # two ids with one 64-bit hash: never seen, but possible
        pair = order[at : at + 2]
        ids = [parts[int(origins[i, 0])].table.id(int(origins[i, 1])) for i in pair]
        if ids[0] > ids[1]:
            order[at : at + 2] = pair[::-1].copy()
    return order


def _write_documents(files: ColumnFiles, merged: Merged) -> None:
    files.write("hashes", merged.hashes)
    lengths = merged.columns(lambda table: np.diff(table.row_starts))
    files.write("row_starts", starts_of(lengths.astype(np.int64)))
    files.write("sequences", merged.columns(lambda table: table.sequences))
    files.write("digests", merged.columns(lambda table: table.digests))
    readers = {number: part.content for number, part in merged.parts.items()}
    _write_blobs(files, merged, "contents", "content_starts", lambda n, d: readers[n](d))
    tables = {number: part.table for number, part in merged.parts.items()}
    _write_blobs(files, merged, "ids", "id_starts", lambda n, d: tables[n].id(d))


def _write_blobs(
    files: ColumnFiles,
    merged: Merged,
    name: str,
    starts_name: str,
    read: Callable[[int, int], bytes],
) -> None:
    lengths: list[int] = []

    def joined() -> Iterator[NDArray[np.uint8]]:
        for chunk in merged.chunks():
            blobs = [read(number, document) for number, document in chunk.tolist()]
            lengths.extend(map(len, blobs))
            yield np.frombuffer(b"".join(blobs), np.uint8)

    files.write_parts(name, joined())
    files.write(starts_name, starts_of(np.array(lengths, dtype=np.int64)))
