"""Vectors of kind single: as they are, with an index beside them."""

from __future__ import annotations

import math
from functools import partial

import numpy as np
from numpy.typing import NDArray

from shard_service.assembly import Merged
from shard_service.columns import ColumnFiles
from shard_service.core.dense import DenseTail, prepared
from shard_service.core.engine import Engine
from shard_service.core.live import Live, all_live
from shard_service.core.policy import rank_weights, recipes
from shard_service.core.search import search
from shard_service.core.source import DenseSource, Segment, View
from shard_service.core.table import DenseTable, Table
from shard_service.core.vectors import Dense, dense_from_bytes
from shard_service.indexes import build as indexes
from shard_service.indexes.flat import FlatEngine
from shard_service.layout import Facts
from shard_service.manifest import SegmentEntry
from shard_service.sealed import read_content, read_segment, read_table
from shard_service.settings import ShardSettings
from shard_service.spec import ShardSpec
from shoal.ids import sample_rank
from shoal.types import Float32Matrix, Float64Vector

INDEX_FILE = "index.faiss"
_SAMPLE = 256
"""Documents whose neighbourhood the recall is measured on."""
_RECALL_AT = 10


class SingleLayout:
    """One float32 vector per passage.

    Args:
        spec: the shard.
        settings: which index to build.
    """

    def __init__(self, spec: ShardSpec, settings: ShardSettings) -> None:
        self._spec, self._settings = spec, settings

    def read(self, logged: bytes, passages: int) -> Dense:
        """The vectors that a log entry keeps."""
        return dense_from_bytes(logged, passages)

    def tail(self) -> DenseTail:
        """An empty tail."""
        similarity = self._spec.similarity
        return DenseTail(self._spec.dim, similarity, partial(FlatEngine, similarity))

    def stored(self, table: Table, document: int) -> Dense:
        """A document's vectors as they were written."""
        begin, end = table.row_starts[document], table.row_starts[document + 1]
        return Dense(_dense(table).vectors[begin:end])

    def write(self, files: ColumnFiles, merged: Merged) -> Facts:
        """Writes the vectors, then the cheapest index that reaches the target recall."""
        files.write_parts("vectors", merged.runs(_row_starts, lambda t: _dense(t).vectors))
        files.write_parts("squares", merged.runs(_row_starts, lambda t: _dense(t).squares))
        table = _table(files)
        built = self._index(table)
        indexes.write(built, files.path(INDEX_FILE))
        return Facts(built.factory, built.parameters, built.recall, longest(table.squares))

    def _index(self, table: DenseTable) -> indexes.Built:
        similarity, target = self._spec.similarity, self._settings.target_recall
        vectors = np.ascontiguousarray(prepared(similarity, table.vectors, table.squares))
        measure = _Recall(self._spec, table, vectors)
        for recipe in recipes(self._spec.index, table.rows, self._settings.flat_passages):
            built = indexes.build(recipe, similarity, vectors, measure, target)
            if built.recall >= target:
                break
        return built

    def open(self, files: ColumnFiles, entry: SegmentEntry) -> Segment:
        """Maps a segment whose files are verified."""
        table = _table(files)
        path = files.path(INDEX_FILE)
        engine = indexes.load(entry.index, path, self._spec.similarity, entry.parameters)

        content = read_content(files)

        def source(live: Live) -> DenseSource:
            return DenseSource(table, live, content, engine, entry.max_norm)

        return read_segment(files, entry, table, content, source)


def longest(squares: Float64Vector) -> float:
    """A float64 that is at least the length of every vector, from their fold(x²)."""
    return math.nextafter(math.sqrt(float(squares.max(initial=0.0))), math.inf)


def _row_starts(table: Table) -> NDArray[np.int64]:
    return table.row_starts


def _dense(table: Table) -> DenseTable:
    assert isinstance(table, DenseTable)
    return table


def _table(files: ColumnFiles) -> DenseTable:
    documents = read_table(files)
    numbers = np.arange(documents.documents, dtype=np.int32)
    return DenseTable(
        ids=documents.ids,
        id_starts=documents.id_starts,
        sequences=documents.sequences,
        digests=documents.digests,
        row_starts=documents.row_starts,
        row_documents=np.repeat(numbers, np.diff(documents.row_starts)),
        vectors=files.read("vectors"),
        squares=files.read("squares"),
    )


class _Recall:
    """Measures the collection's recall@10 on documents, through the very search that serves."""

    def __init__(self, spec: ShardSpec, table: DenseTable, vectors: Float32Matrix) -> None:
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
        norm = longest(self._table.squares)
        source = DenseSource(self._table, live, _no_content, engine, norm)
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
