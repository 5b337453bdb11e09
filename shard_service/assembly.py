"""Builds a segment's files from what is sealed. Off the serving path."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from shard_service.columns import ColumnFiles
from shard_service.core.engine import Engine
from shard_service.core.live import Live, all_live, ranges
from shard_service.core.policy import Recipe, rank_weights
from shard_service.core.search import search
from shard_service.core.state import TAIL, Frozen, Source, View
from shard_service.core.table import Table
from shard_service.core.tail import prepared
from shard_service.indexes import build as indexes
from shard_service.indexes.flat import FlatEngine
from shard_service.manifest import SegmentEntry
from shard_service.segments import INDEX_FILE, SegmentStore, longest
from shard_service.spec import ShardSpec
from shoal.ids import id_hash, sample_rank
from shoal.types import Float32Matrix

_CHUNK_DOCUMENTS = 1_024
"""Documents copied at a time, so that searches get the interpreter in between."""
_SAMPLE = 256
"""Documents whose neighbourhood the recall is measured on."""
_RECALL_AT = 10


@dataclass(frozen=True, slots=True)
class _Part:
    """What one source gives to the new segment."""

    number: int
    table: Table
    content: Callable[[int], bytes]
    documents: NDArray[np.int64]
    hashes: NDArray[np.uint64]


@dataclass(frozen=True, slots=True)
class _Merged:
    """The documents of the new segment in their order."""

    parts: dict[int, _Part]
    origins: NDArray[np.int64]
    hashes: NDArray[np.uint64]

    def chunks(self) -> Iterator[NDArray[np.int64]]:
        """Origins, a chunk at a time."""
        for start in range(0, len(self.origins), _CHUNK_DOCUMENTS):
            yield self.origins[start : start + _CHUNK_DOCUMENTS]

    def columns(self, pick: Callable[[Table], NDArray[np.generic]]) -> NDArray[np.generic]:
        """A per-document column in the new order."""
        first = pick(next(iter(self.parts.values())).table)
        merged = np.empty((len(self.origins), *first.shape[1:]), dtype=first.dtype)
        for number, part in self.parts.items():
            mine = self.origins[:, 0] == number
            merged[mine] = pick(part.table)[self.origins[mine, 1]]
        return merged


def assemble(
    store: SegmentStore,
    spec: ShardSpec,
    frozen: Frozen,
    recipes: Callable[[int], Sequence[Recipe]],
    target_recall: float,
) -> tuple[SegmentEntry | None, NDArray[np.int64]]:
    """Writes and publishes the folder of a new segment.

    Args:
        store: where it goes.
        spec: the shard.
        frozen: what it holds.
        recipes: kinds of index to try, by number of rows.
        target_recall: recall@10 to reach.

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
        files = ColumnFiles(spec.ref, staging.folder)
        _write_documents(files, merged)
        table = _write_rows(files, merged)
        built = _index(spec, table, recipes(table.rows), target_recall)
        indexes.write(built, files.path(INDEX_FILE))
        entry = SegmentEntry(
            name=name,
            files=tuple(staging.publish()),
            index=built.factory,
            parameters=built.parameters,
            recall=built.recall,
            max_norm=longest(table.squares),
        )
    except BaseException:
        staging.discard()
        raise
    return entry, merged.origins


def _merge(frozen: Frozen) -> _Merged:
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
    return _Merged(parts, origins[order], hashes[order])


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


def _write_documents(files: ColumnFiles, merged: _Merged) -> None:
    files.write("hashes", merged.hashes)
    files.write("sequences", merged.columns(lambda table: table.sequences))
    files.write("digests", merged.columns(lambda table: table.digests))
    readers = {number: part.content for number, part in merged.parts.items()}
    _write_blobs(files, merged, "contents", "content_starts", lambda n, d: readers[n](d))
    tables = {number: part.table for number, part in merged.parts.items()}
    _write_blobs(files, merged, "ids", "id_starts", lambda n, d: tables[n].id(d))


def _write_blobs(
    files: ColumnFiles,
    merged: _Merged,
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
    files.write(starts_name, _starts(np.array(lengths, dtype=np.int64)))


def _starts(lengths: NDArray[np.int64]) -> NDArray[np.int64]:
    return np.concatenate([np.zeros(1, dtype=np.int64), np.cumsum(lengths)])


def _write_rows(files: ColumnFiles, merged: _Merged) -> Table:
    """Writes vectors and their norms; gives the new table, mapped, for building."""
    lengths = merged.columns(lambda table: np.diff(table.row_starts))
    files.write("row_starts", _starts(lengths.astype(np.int64)))
    files.write_parts("vectors", _rows(merged, lambda table: table.vectors))
    files.write_parts("squares", _rows(merged, lambda table: table.squares))
    row_starts = files.read("row_starts")
    numbers = np.arange(len(lengths), dtype=np.int32)
    return Table(
        ids=files.read("ids"),
        id_starts=files.read("id_starts"),
        sequences=files.read("sequences"),
        digests=files.read("digests"),
        row_starts=row_starts,
        row_documents=np.repeat(numbers, np.diff(row_starts)),
        vectors=files.read("vectors"),
        squares=files.read("squares"),
    )


def _rows(
    merged: _Merged, pick: Callable[[Table], NDArray[np.generic]]
) -> Iterator[NDArray[np.generic]]:
    """A per-row column in the new order, a chunk of documents at a time."""
    for chunk in merged.chunks():
        starts, ends = np.empty(len(chunk), np.int64), np.empty(len(chunk), np.int64)
        for number, part in merged.parts.items():
            mine = chunk[:, 0] == number
            starts[mine] = part.table.row_starts[chunk[mine, 1]]
            ends[mine] = part.table.row_starts[chunk[mine, 1] + 1]
        sources = np.repeat(chunk[:, 0], ends - starts)
        rows = ranges(starts, ends)
        first = pick(next(iter(merged.parts.values())).table)
        gathered = np.empty((len(rows), *first.shape[1:]), dtype=first.dtype)
        for number, part in merged.parts.items():
            mine = sources == number
            gathered[mine] = pick(part.table)[rows[mine]]
        yield gathered


# --- the index -------------------------------------------------------------------


def _index(
    spec: ShardSpec, table: Table, recipes: Sequence[Recipe], target_recall: float
) -> indexes.Built:
    vectors = np.ascontiguousarray(prepared(spec.similarity, table.vectors, table.squares))
    measure = _Recall(spec, table, vectors)
    for recipe in recipes:
        built = indexes.build(recipe, spec.similarity, vectors, measure, target_recall)
        if built.recall >= target_recall:
            break
    return built


class _Recall:
    """Measures the collection's recall@10 on documents, through the very search that serves."""

    def __init__(self, spec: ShardSpec, table: Table, vectors: Float32Matrix) -> None:
        self._similarity, self._table, self._vectors = spec.similarity, table, vectors
        self._weights = rank_weights(_RECALL_AT, spec.shard_count).tolist()
        self._queries: Float32Matrix | None = None
        self._truth: list[list[int]] = []

    def __call__(self, engine: Engine) -> float:
        if self._queries is None:
            ranks = [sample_rank(self._table.id(n)) for n in range(self._table.documents)]
            chosen = np.argsort(np.array(ranks, dtype=np.uint64))[:_SAMPLE]
            rows = self._table.row_starts[chosen]
            self._queries = indexes.sample_queries(self._table.vectors, rows)
            self._truth = self._found(FlatEngine(self._similarity, self._vectors))
        found = hits = 0.0
        for mine, best in zip(self._found(engine), self._truth, strict=True):
            for document, weight in zip(best, self._weights, strict=False):
                hits += weight
                found += weight * (document in mine)
        return found / hits if hits else 1.0

    def _found(self, engine: Engine) -> list[list[int]]:
        """Per query: sequence numbers of its best documents, best first."""
        assert self._queries is not None
        live = all_live(self._table.rows, self._table.documents)
        source = Source(self._table, engine, live, _no_content, longest(self._table.squares))
        view = View((source,), (), 0, self._table.documents, self._table.rows)
        count = len(self._queries)
        found = search(
            view,
            self._similarity,
            self._queries,
            np.full(count, _RECALL_AT, dtype=np.int64),
            lambda: np.ones(count, dtype=np.bool_),
        )
        hits = found.hits
        ends = np.cumsum(hits.counts)
        return [
            hits.sequences[end - length : end].tolist()
            for end, length in zip(ends.tolist(), hits.counts.tolist(), strict=True)
        ]


def _no_content(document: int) -> bytes:
    raise AssertionError(f"measuring recall reads no content, not even of {document}")
