"""Which rows of a source are live: immutable bitmaps, copied on write."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Live:
    """One version of a source's visibility. A document's rows live and die together.

    Attributes:
        bits: [ceil(rows / 8)] uint8; bit i & 7 of byte i >> 3 is row i (the layout of
            FAISS's IDSelectorBitmap).
        rows: rows of the source.
        live_rows: rows that are live.
        live_documents: documents that are live.
    """

    bits: NDArray[np.uint8]
    rows: int
    live_rows: int
    live_documents: int

    @property
    def whole(self) -> bool:
        """No row is dead."""
        return self.live_rows == self.rows

    def of(self, rows: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Per row number: it is live."""
        found: NDArray[np.bool_] = (self.bits[rows >> 3] >> (rows & 7).astype(np.uint8)) & 1 != 0
        return found

    def one(self, row: int) -> bool:
        """Whether one row is live."""
        return bool(self.bits[row >> 3] >> (row & 7) & 1)

    def live(self) -> NDArray[np.int64]:
        """Numbers of the live rows, ascending."""
        return np.flatnonzero(np.unpackbits(self.bits, count=self.rows, bitorder="little"))


def all_live(rows: int, documents: int) -> Live:
    """Every row is live."""
    bits = np.full((rows + 7) // 8, 0xFF, dtype=np.uint8)
    if rows & 7:
        bits[-1] = (1 << (rows & 7)) - 1
    return Live(bits, rows, rows, documents)


def grown(live: Live, rows: int, documents: int) -> Live:
    """`live` with `rows` more live rows at the end, of `documents` more documents."""
    total = live.rows + rows
    bits = np.zeros((total + 7) // 8, dtype=np.uint8)
    bits[: len(live.bits)] = live.bits
    new = np.arange(live.rows, total)
    np.bitwise_or.at(bits, new >> 3, (1 << (new & 7)).astype(np.uint8))
    return Live(bits, total, live.live_rows + rows, live.live_documents + documents)


def masked(live: Live, documents: NDArray[np.int64], row_starts: NDArray[np.int64]) -> Live:
    """`live` without the rows of some documents, all of them live until now.

    Args:
        live: the version to start from.
        documents: distinct numbers of live documents.
        row_starts: [documents + 1], the source's row ranges.
    """
    if not len(documents):
        return live
    rows = ranges(row_starts[documents], row_starts[documents + 1])
    bits = live.bits.copy()
    np.bitwise_and.at(bits, rows >> 3, ~(1 << (rows & 7)).astype(np.uint8))
    return Live(bits, live.rows, live.live_rows - len(rows), live.live_documents - len(documents))


def ranges(starts: NDArray[np.int64], ends: NDArray[np.int64]) -> NDArray[np.int64]:
    """The numbers of many half-open ranges, one range after the other.

    >>> ranges(np.array([5, 0]), np.array([7, 3])).tolist()
    [5, 6, 0, 1, 2]
    """
    lengths = ends - starts
    offsets = np.cumsum(lengths) - lengths
    total = int(lengths.sum())
    numbers: NDArray[np.int64] = np.arange(total) + np.repeat(starts - offsets, lengths)
    return numbers
