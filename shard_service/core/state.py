"""A shard's documents: what is stored where, and which version of it is live.

`ShardState` takes durable writes and deletes in order and gives immutable views. A
view is one consistent moment: an upsert masks the old version and shows the new one
between two views, never within one. Not thread-safe: its shell serialises changes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from shard_service.core.live import Live, masked
from shard_service.core.records import DeleteRecord, Version
from shard_service.core.source import Segment, View
from shard_service.core.table import Table, find_sorted
from shard_service.core.tail import Tail
from shard_service.core.vectors import Vectors
from shoal.ids import id_hash

TAIL = -1
"""Number of the tail among the sources; segments count from 0."""


@dataclass(frozen=True, slots=True)
class Writes:
    """Versions to apply together.

    Attributes:
        versions: in order.
        sequences: [versions] uint64, ascending.
        vectors: passages of all versions.
    """

    versions: Sequence[Version]
    sequences: NDArray[np.uint64]
    vectors: Vectors


@dataclass(frozen=True, slots=True)
class Frozen:
    """What is sealed: the tail's first documents and some segments with their masks.

    Attributes:
        tail: the tail's documents as they were; None if it is not taken.
        tail_live: their visibility.
        contents: their contents, in order.
        segments: segments that are absorbed, oldest first.
        lives: their visibility.
        position: newest sequence number that is covered.
    """

    tail: Table | None
    tail_live: Live
    contents: Sequence[bytes]
    segments: tuple[Segment, ...]
    lives: tuple[Live, ...]
    position: int


class ShardState:
    """The documents of one shard."""

    def __init__(
        self,
        tail: Tail,
        segments: Sequence[tuple[Segment, Live]] = (),
        position: int = 0,
    ) -> None:
        """Begins with sealed segments, oldest first, that cover `position`.

        Args:
            tail: an empty one.
            segments: sealed segments with their live rows.
            position: newest sequence number in the segments.
        """
        self._segments = [segment for segment, _ in segments]
        self._lives = [live for _, live in segments]
        self._tail = tail
        self._position = position

    @property
    def position(self) -> int:
        """Newest sequence number that was applied."""
        return self._position

    @property
    def tail_rows(self) -> int:
        """Rows of the tail, dead ones included."""
        return self._tail.rows

    @property
    def tail_bytes(self) -> int:
        """Bytes of the contents in the tail."""
        return self._tail.content_bytes

    def locate(self, ids: Sequence[bytes]) -> list[tuple[int, int] | None]:
        """Where the live version of each id is: (source, document), or None."""
        hashes = np.fromiter((id_hash(key) for key in ids), np.uint64, len(ids))
        found: list[tuple[int, int] | None] = [None] * len(ids)
        for number, segment in enumerate(self._segments):
            live = self._lives[number]
            documents = find_sorted(segment.table, segment.hashes, ids, hashes)
            for at in np.flatnonzero(documents >= 0).tolist():
                document = int(documents[at])
                if live.one(int(segment.table.row_starts[document])):
                    found[at] = (number, document)
        for at, key in enumerate(ids):
            document_in_tail = self._tail.newest.get(key)
            if document_in_tail is not None:
                found[at] = (TAIL, document_in_tail)
        return found

    def table(self, source: int) -> Table:
        """The table of a source that `locate` named."""
        return self._tail.table() if source == TAIL else self._segments[source].table

    def reader(self, source: int, document: int) -> Callable[[], bytes]:
        """Reads the content of a document that `locate` named, whatever changes later."""
        if source == TAIL:
            return partial(self._tail.contents.__getitem__, document)
        return partial(self._segments[source].content, document)

    def write(self, writes: Writes) -> list[int]:
        """Shows versions and masks those that they replace, in one step.

        Returns:
            Per version: the sequence number of the live version it replaced, or 0.
        """
        ids = [version.id for version in writes.versions]
        old = self.locate(ids)
        first = self._tail.documents
        self._tail.extend(writes.versions, writes.sequences, writes.vectors)
        replaced = self._replace(ids, old, first)
        self._position = int(writes.sequences[-1])
        return replaced

    def _replace(
        self, ids: Sequence[bytes], old: list[tuple[int, int] | None], first: int
    ) -> list[int]:
        dead: dict[int, list[int]] = {}
        replaced = []
        newest = self._tail.newest
        sealed = {key: place for key, place in zip(ids, old, strict=True) if place is not None}
        for offset, key in enumerate(ids):
            place = sealed.pop(key, None)
            if place is None and key in newest:  # an earlier version of this very batch
                place = (TAIL, newest[key])
            newest[key] = first + offset
            if place is None:
                replaced.append(0)
                continue
            dead.setdefault(place[0], []).append(place[1])
            replaced.append(int(self.table(place[0]).sequences[place[1]]))
        self._mask(dead)
        return replaced

    def delete(self, records: Sequence[DeleteRecord], position: int) -> list[bool]:
        """Masks documents.

        Args:
            records: what to delete.
            position: sequence number of the last of them.

        Returns:
            Per record: there was such a document.
        """
        dead: dict[int, set[int]] = {}
        found = []
        for record, place in zip(records, self.locate([r.id for r in records]), strict=True):
            found.append(place is not None and place[1] not in dead.get(place[0], ()))
            if place is not None:
                dead.setdefault(place[0], set()).add(place[1])
                self._tail.newest.pop(record.id, None)
        self._mask({source: sorted(documents) for source, documents in dead.items()})
        self._position = position
        return found

    def _mask(self, dead: dict[int, list[int]]) -> None:
        for source, documents in dead.items():
            numbers = np.array(documents, dtype=np.int64)
            starts = self.table(source).row_starts
            if source == TAIL:
                self._tail.live = masked(self._tail.live, numbers, starts)
            else:
                self._lives[source] = masked(self._lives[source], numbers, starts)

    def view(self) -> View:
        """The state now, immutable."""
        sources = [
            segment.source(live) for segment, live in zip(self._segments, self._lives, strict=True)
        ]
        if self._tail.rows:
            sources.append(self._tail.source())
        return View(
            sources=tuple(sources),
            segments=tuple(self._segments),
            position=self._position,
            documents=sum(source.live.live_documents for source in sources),
            passages=sum(source.live.live_rows for source in sources),
        )

    def freeze(self, segments: Sequence[Segment], with_tail: bool) -> Frozen:
        """What a new segment will hold: these segments and all of the tail, or none of it."""
        chosen = {segment.name for segment in segments}
        pairs = [
            (s, live)
            for s, live in zip(self._segments, self._lives, strict=True)
            if s.name in chosen
        ]
        return Frozen(
            tail=self._tail.table() if with_tail else None,
            tail_live=self._tail.live,
            contents=self._tail.contents,
            segments=tuple(segment for segment, _ in pairs),
            lives=tuple(live for _, live in pairs),
            position=self._position,
        )

    def install(self, frozen: Frozen, segment: Segment | None, origins: NDArray[np.int64]) -> None:
        """Puts a sealed segment in the place of what it holds.

        Documents that died since the freeze are masked in it.

        Args:
            frozen: what `freeze` gave.
            segment: the new segment; None if nothing was live.
            origins: [documents, 2] int64, where each of its documents came from: index
                into frozen.segments, or TAIL; number there.
        """
        position = min(map(self._segments.index, frozen.segments), default=len(self._segments))
        if segment is not None:
            dead = self._died(frozen, origins)
            live = masked(segment.all_live(), dead, segment.table.row_starts)
        for absorbed in frozen.segments:
            at = self._segments.index(absorbed)
            del self._segments[at], self._lives[at]
        if segment is not None:
            self._segments.insert(position, segment)
            self._lives.insert(position, live)
        if frozen.tail is not None:
            self._tail = self._tail.after(frozen.tail.documents)

    def dead_after(
        self, frozen: Frozen, segment: Segment | None, origins: NDArray[np.int64]
    ) -> dict[str, NDArray[np.int64]]:
        """Numbers of the dead documents of every segment, by name, as they would be if the
        sealed segment were installed now.
        """
        dead = {
            kept.name: np.flatnonzero(~live.of(kept.table.row_starts[:-1]))
            for kept, live in zip(self._segments, self._lives, strict=True)
            if kept not in frozen.segments
        }
        if segment is not None:
            dead[segment.name] = self._died(frozen, origins)
        return dead

    def _died(self, frozen: Frozen, origins: NDArray[np.int64]) -> NDArray[np.int64]:
        lives = dict(zip(self._segments, self._lives, strict=True))
        alive = np.empty(len(origins), dtype=np.bool_)
        for number in range(TAIL, len(frozen.segments)):
            mine = np.flatnonzero(origins[:, 0] == number)
            if number == TAIL:
                starts, live = self._tail.table().row_starts, self._tail.live
            else:
                source = frozen.segments[number]
                starts, live = source.table.row_starts, lives[source]
            alive[mine] = live.of(starts[origins[mine, 1]])
        return np.flatnonzero(~alive)
