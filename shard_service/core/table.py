"""Documents and their rows as columns: what a segment and the tail have in common."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from shard_service.core.vectors import Tokens
from shoal.types import Float32Matrix, Float64Vector


@dataclass(frozen=True, slots=True, eq=False)
class Table:
    """Immutable columns. Document i's passages are rows row_starts[i] to row_starts[i + 1].

    Attributes:
        ids: id bytes of all documents, one after the other, uint8.
        id_starts: [documents + 1] int64.
        sequences: [documents] uint64, the sequence number of each version.
        digests: [documents, 16] uint8.
        row_starts: [documents + 1] int64.
    """

    ids: NDArray[np.uint8]
    id_starts: NDArray[np.int64]
    sequences: NDArray[np.uint64]
    digests: NDArray[np.uint8]
    row_starts: NDArray[np.int64]

    @property
    def documents(self) -> int:
        """Documents, dead ones included."""
        return len(self.sequences)

    @property
    def rows(self) -> int:
        """Passages, dead ones included."""
        return int(self.row_starts[-1])

    def id(self, document: int) -> bytes:
        """Id of one document."""
        return self.ids[self.id_starts[document] : self.id_starts[document + 1]].tobytes()


@dataclass(frozen=True, slots=True, eq=False)
class DenseTable(Table):
    """One vector per passage.

    Attributes:
        row_documents: [rows] int32, the document of each row.
        vectors: [rows, dim] float32 as stored.
        squares: [rows] float64, `shoal.kernels.squares(vectors)`.
    """

    row_documents: NDArray[np.int32]
    vectors: Float32Matrix
    squares: Float64Vector


@dataclass(frozen=True, slots=True, eq=False)
class TokenTable(Table):
    """One vector per token. Passage i's tokens are token_starts[i] to token_starts[i + 1].

    Attributes:
        token_starts: [rows + 1] int64.
        tokens: as the codec keeps them.
    """

    token_starts: NDArray[np.int64]
    tokens: Tokens


def find_sorted(
    table: Table, hashes: NDArray[np.uint64], ids: Sequence[bytes], wanted: NDArray[np.uint64]
) -> NDArray[np.int64]:
    """Looks documents up in a table that is sorted by (hash, id).

    Args:
        table: the table; each id occurs once.
        hashes: [documents] uint64, ascending, `shoal.ids.id_hash` of each.
        ids: ids to look up.
        wanted: [ids] uint64, their hashes.

    Returns:
        [ids] int64: number of the document; -1 where there is none.
    """
    found = np.full(len(ids), -1, dtype=np.int64)
    starts = np.searchsorted(hashes, wanted, side="left")
    starts_clipped = np.minimum(starts, len(hashes) - 1)
    for at in np.flatnonzero(hashes[starts_clipped] == wanted).tolist():
        document = int(starts[at])
        while document < len(hashes) and hashes[document] == wanted[at]:
            if table.id(document) == ids[at]:
                found[at] = document
                break
            document += 1
    return found
