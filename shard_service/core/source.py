"""The searchable parts of a shard, and one consistent moment of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from shard_service.core.engine import Engine
from shard_service.core.live import Live, all_live
from shard_service.core.table import DenseTable, Table, TokenTable
from shoal.ids import sample_rank


@dataclass(frozen=True, slots=True, eq=False)
class Source:
    """One searchable part of a view.

    Attributes:
        table: its documents and rows.
        live: which rows are live in this view.
        content: bytes of one document's content.
    """

    table: Table
    live: Live
    content: Callable[[int], bytes]


@dataclass(frozen=True, slots=True, eq=False)
class DenseSource(Source):
    """A part of a collection of kind single.

    Attributes:
        engine: finds candidates among its rows.
        max_norm: at least the length of every vector.
    """

    table: DenseTable
    engine: Engine
    max_norm: float


@dataclass(frozen=True, eq=False)
class TokenSource(Source):
    """A part of a collection of kind colbert."""

    table: TokenTable

    @cached_property
    def documents(self) -> NDArray[np.int64]:
        """Numbers of the live documents, ascending."""
        return np.flatnonzero(self.live.of(self.table.row_starts[:-1]))

    @cached_property
    def ranks(self) -> NDArray[np.uint64]:
        """[documents] uint64: sample rank of each live document."""
        ids = map(self.table.id, self.documents.tolist())
        return np.fromiter(map(sample_rank, ids), np.uint64, len(self.documents))

    @cached_property
    def live_tokens(self) -> int:
        """Tokens of the live documents."""
        starts = self.table.token_starts[self.table.row_starts]
        return int((starts[self.documents + 1] - starts[self.documents]).sum())

    @property
    def token_bytes(self) -> int:
        """Bytes of the tokens as kept, with their offsets, dead ones included."""
        columns = (*self.table.tokens, self.table.token_starts)
        return sum(column.nbytes for column in columns)


@dataclass(frozen=True, slots=True, eq=False)
class Segment:
    """A sealed, immutable part of a shard: documents sorted by (hash, id).

    Attributes:
        name: unique within the shard.
        table: documents and rows.
        hashes: [documents] uint64, ascending.
        content: bytes of one document's content.
        source: it with a visibility, to be searched.
        index: FAISS factory string, or what the codec is.
        parameters: search parameters chosen at build time.
        recall: recall@10 on documents, measured at build time.
        size: bytes of its files.
    """

    name: str
    table: Table
    hashes: NDArray[np.uint64]
    content: Callable[[int], bytes]
    source: Callable[[Live], Source]
    index: str
    parameters: str
    recall: float
    size: int

    def all_live(self) -> Live:
        """Its visibility before any document died."""
        return all_live(self.table.rows, self.table.documents)


@dataclass(frozen=True, slots=True)
class View:
    """One consistent state of a shard.

    Attributes:
        sources: segments, oldest first, then the tail.
        segments: the segments among them.
        position: newest sequence number that is visible.
        documents: live documents.
        passages: live rows.
    """

    sources: tuple[Source, ...]
    segments: tuple[Segment, ...]
    position: int
    documents: int
    passages: int


def token_sources(view: View) -> list[TokenSource]:
    """The sources of a view of kind colbert."""
    found = []
    for source in view.sources:
        assert isinstance(source, TokenSource)
        found.append(source)
    return found
