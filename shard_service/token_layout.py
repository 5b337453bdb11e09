"""Vectors of kind colbert: one run of encoded tokens per passage."""

from __future__ import annotations

from functools import partial

import numpy as np
from numpy.typing import NDArray

from shard_service.assembly import Merged
from shard_service.columns import ColumnFiles
from shard_service.core.live import Live
from shard_service.core.source import Segment, TokenSource
from shard_service.core.table import Table, TokenTable
from shard_service.core.token_codec import TokenCodec
from shard_service.core.token_tail import TokenTail
from shard_service.core.vectors import (
    Rows,
    TokenVectors,
    starts_of,
    token_rows_from_bytes,
)
from shard_service.layout import Facts
from shard_service.manifest import SegmentEntry
from shard_service.sealed import read_content, read_segment, read_table
from shoal.errors import CorruptSegment

_NAME_DIGITS = 16
"""Of a codec's name, in the manifest and for people."""


class TokenLayout:
    """One vector per token, kept by a codec.

    Args:
        codec: of the generation.
        dim: columns of a token vector.
    """

    def __init__(self, codec: TokenCodec, dim: int) -> None:
        self.codec, self._dim = codec, dim
        named = [codec.description, codec.name[:_NAME_DIGITS]]
        self._index = ", ".join(filter(None, named))

    def read(self, logged: bytes, passages: int) -> TokenVectors:
        """The vectors that a log entry keeps, encoded again: the same codes."""
        return self.vectors(
            *token_rows_from_bytes(logged, passages, self._dim, self.codec.packed_bytes)
        )

    def vectors(self, rows: Rows, starts: NDArray[np.int64]) -> TokenVectors:
        """Vectors as they came, and as the codec keeps them.

        Args:
            rows: [tokens, dim] float16, none longer than 1; or what the codec packed.
            starts: [passages + 1] int64, where each passage begins.

        Raises:
            ValueError: the codec packed nothing like it.
        """
        if rows.dtype == np.uint8:
            packed: NDArray[np.uint8] = rows.astype(np.uint8, copy=False)
            return TokenVectors(rows, starts, self.codec.unpack(packed))
        return TokenVectors(rows, starts, self.codec.encode(rows.astype(np.float16, copy=False)))

    def far(self, vectors: TokenVectors) -> int:
        """How many tokens the codec was not made for."""
        if vectors.rows.dtype == np.uint8:
            return 0  # copied, not new
        return self.codec.far(vectors.rows.astype(np.float16, copy=False), vectors.codes)

    def tail(self) -> TokenTail:
        """An empty tail."""
        return TokenTail(self.codec.none)

    def stored(self, table: Table, document: int) -> TokenVectors:
        """A document's vectors as they were written; its codes where they alone are kept."""
        held = _tokens(table)
        rows = held.token_starts[held.row_starts[document] : held.row_starts[document + 1] + 1]
        codes = tuple(column[rows[0] : rows[-1]] for column in held.tokens)
        if self.codec.packed_bytes:
            return TokenVectors(self.codec.pack(codes), rows - rows[0], codes)
        # Rounded to fixed point, a float16 of length 1 or less comes back as it was, or is
        # closer to its fixed point than half a step: encoded again it gives the same.
        return TokenVectors(self.codec.decode(codes).astype(np.float16), rows - rows[0], codes)

    def write(self, files: ColumnFiles, merged: Merged) -> Facts:
        """Writes the tokens, document after document."""
        counts = np.concatenate(
            [part.astype(np.int64) for part in merged.runs(_row_starts, _token_counts)]
        )
        files.write("token_starts", starts_of(counts))
        for number in range(len(self.codec.none)):
            column = partial(_column, number)
            files.write_parts(f"tokens-{number}", merged.runs(_document_tokens, column))
        return Facts(self._index, {}, 1.0, 0.0)

    def open(self, files: ColumnFiles, entry: SegmentEntry) -> Segment:
        """Maps a segment whose files are verified.

        Raises:
            CorruptSegment: another codec encoded it.
        """
        if entry.index != self._index:
            raise CorruptSegment(
                f"segment {entry.name} was encoded by {entry.index}, not by {self._index}",
                segment=entry.name,
            )
        documents = read_table(files)
        table = TokenTable(
            ids=documents.ids,
            id_starts=documents.id_starts,
            sequences=documents.sequences,
            digests=documents.digests,
            row_starts=documents.row_starts,
            token_starts=files.read("token_starts"),
            tokens=tuple(files.read(f"tokens-{n}") for n in range(len(self.codec.none))),
        )
        content = read_content(files)

        def source(live: Live) -> TokenSource:
            return TokenSource(table, live, content)

        return read_segment(files, entry, table, content, source)


def _tokens(table: Table) -> TokenTable:
    assert isinstance(table, TokenTable)
    return table


def _row_starts(table: Table) -> NDArray[np.int64]:
    return table.row_starts


def _token_counts(table: Table) -> NDArray[np.int64]:
    return np.diff(_tokens(table).token_starts)


def _document_tokens(table: Table) -> NDArray[np.int64]:
    """[documents + 1] int64: where each document's tokens begin."""
    found: NDArray[np.int64] = _tokens(table).token_starts[table.row_starts]
    return found


def _column(number: int, table: Table) -> NDArray[np.generic]:
    return _tokens(table).tokens[number]
