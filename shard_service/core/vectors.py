"""What the passages of document versions are: one vector each, or one vector per token."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, Self, TypeAlias

import numpy as np
from numpy.typing import NDArray

from shoal.types import Float32Matrix

Ints = NDArray[np.int64]
Tokens: TypeAlias = tuple[NDArray[np.generic], ...]
"""Tokens as a codec keeps them: arrays of one row per token, in C order."""
Rows: TypeAlias = NDArray[np.float16] | NDArray[np.uint8]

_TOKENS = struct.Struct("<I")


class Vectors(Protocol):
    """The vectors of passages, in order."""

    @property
    def passages(self) -> int:
        """How many there are."""

    @property
    def nbytes(self) -> int:
        """Bytes that they take in the log."""

    def part(self, begin: int, end: int) -> Self:
        """Those of passages `begin` to `end`."""

    def joined(self, others: Sequence[Self]) -> Self:
        """These, then the others'."""

    def to_bytes(self) -> bytes:
        """As the log keeps them."""

    def kept(self) -> Self:
        """What is kept beyond the log."""


@dataclass(frozen=True, slots=True, eq=False)
class Dense:
    """One vector per passage.

    Attributes:
        rows: [passages, dim] float32.
    """

    rows: Float32Matrix

    @property
    def passages(self) -> int:
        """How many there are."""
        return len(self.rows)

    @property
    def nbytes(self) -> int:
        """Bytes that they take in the log."""
        return self.rows.nbytes

    def part(self, begin: int, end: int) -> Dense:
        """Those of passages `begin` to `end`."""
        return Dense(self.rows[begin:end])

    def joined(self, others: Sequence[Dense]) -> Dense:
        """These, then the others'."""
        return Dense(np.concatenate([self.rows, *(other.rows for other in others)]))

    def to_bytes(self) -> bytes:
        """The rows, little-endian float32."""
        return self.rows.astype("<f4", copy=False).tobytes()

    def kept(self) -> Dense:
        """All of them."""
        return self


def dense_from_bytes(data: bytes, passages: int) -> Dense:
    """Reads what `Dense.to_bytes` wrote."""
    return Dense(np.frombuffer(data, "<f4").reshape(passages, -1))


@dataclass(frozen=True, slots=True, eq=False)
class TokenVectors:
    """One vector per token: as it came, for the log, and as the codec keeps it.

    Attributes:
        rows: [tokens, dim] float16; or, copied from a generation that keeps codes alone,
            [tokens, bytes] uint8, the codes packed.
        starts: [passages + 1] int64, where each passage begins.
        codes: the same tokens, encoded.
    """

    rows: Rows
    starts: Ints
    codes: Tokens

    @property
    def passages(self) -> int:
        """How many there are."""
        return len(self.starts) - 1

    @property
    def nbytes(self) -> int:
        """Bytes that they take in the log."""
        return self.rows.nbytes + _TOKENS.size * self.passages

    def part(self, begin: int, end: int) -> TokenVectors:
        """Those of passages `begin` to `end`."""
        first, last = int(self.starts[begin]), int(self.starts[end])
        return TokenVectors(
            self.rows[first:last],
            self.starts[begin : end + 1] - first,
            tuple(column[first:last] for column in self.codes),
        )

    def joined(self, others: Sequence[TokenVectors]) -> TokenVectors:
        """These, then the others'."""
        every = [self, *others]
        counts = np.concatenate([np.diff(each.starts) for each in every])
        return TokenVectors(
            np.concatenate([each.rows for each in every]),
            starts_of(counts),
            tuple(
                np.concatenate(columns)
                for columns in zip(*(each.codes for each in every), strict=True)
            ),
        )

    def to_bytes(self) -> bytes:
        """Tokens of each passage as u32, then the rows, little-endian."""
        counts = np.diff(self.starts).astype("<u4")
        return counts.tobytes() + self.rows.astype(self.rows.dtype.newbyteorder("<")).tobytes()

    def kept(self) -> TokenVectors:
        """The codes: copied ones and new ones stand beside each other."""
        return TokenVectors(np.empty((0, 0), np.float16), self.starts, self.codes)


def token_rows_from_bytes(
    data: bytes, passages: int, dim: int, packed_bytes: int
) -> tuple[Rows, Ints]:
    """Rows and starts from what `TokenVectors.to_bytes` wrote.

    Args:
        data: as written.
        passages: how many.
        dim: columns of a vector.
        packed_bytes: of a token's codes, fewer than its vector's bytes; 0 if there are none.
    """
    starts = starts_of(np.frombuffer(data, "<u4", passages))
    offset, tokens = _TOKENS.size * passages, int(starts[-1])
    if packed_bytes and len(data) - offset == tokens * packed_bytes:
        return np.frombuffer(data, np.uint8, offset=offset).reshape(tokens, packed_bytes), starts
    return np.frombuffer(data, "<f2", offset=offset).reshape(tokens, dim), starts


def starts_of(counts: NDArray[np.integer]) -> Ints:
    """[n + 1] int64: where each of n runs begins, and the end of the last.

    >>> starts_of(np.array([2, 0, 3])).tolist()
    [0, 2, 2, 5]
    """
    starts = np.zeros(len(counts) + 1, dtype=np.int64)
    np.cumsum(counts, out=starts[1:])
    return starts
