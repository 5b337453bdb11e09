"""The young, in-memory part of a shard: documents are added at its end."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from shard_service.core.growable import Growable
from shard_service.core.live import Live, all_live, grown, masked
from shard_service.core.records import Version
from shard_service.core.source import Source
from shard_service.core.table import Table
from shard_service.core.vectors import Vectors
from shoal.ids import DIGEST_BYTES


class Tail(ABC):
    """Grows by document versions. Not thread-safe; views stay valid for ever.

    Attributes:
        newest: id to number of its newest version, where that is live.
        live: which rows are live.
        contents: of every version.
        content_bytes: bytes of all contents, for sealing in time.
    """

    def __init__(self) -> None:
        self._ids: Growable[np.uint8] = Growable(np.uint8)
        self._id_starts: Growable[np.int64] = Growable(np.int64)
        self._sequences: Growable[np.uint64] = Growable(np.uint64)
        self._digests: Growable[np.uint8] = Growable(np.uint8, (DIGEST_BYTES,))
        self._row_starts: Growable[np.int64] = Growable(np.int64)
        self._id_starts.extend(np.zeros(1))
        self._row_starts.extend(np.zeros(1))
        self.contents: list[bytes] = []
        self.newest: dict[bytes, int] = {}
        self.live: Live = all_live(0, 0)
        self.content_bytes = 0

    @property
    def documents(self) -> int:
        """Document versions, dead ones included."""
        return len(self._sequences)

    @property
    def rows(self) -> int:
        """Passages, dead ones included."""
        return int(self._row_starts.view()[-1])

    def extend(
        self, versions: Sequence[Version], sequences: NDArray[np.uint64], vectors: Vectors
    ) -> None:
        """Adds live versions; `newest` is the caller's to update.

        Args:
            versions: in order.
            sequences: [versions], their sequence numbers.
            vectors: passages of all versions.
        """
        self._extend_rows(versions, vectors)
        passages = np.fromiter((v.passages for v in versions), np.int64, len(versions))
        lengths = np.fromiter((len(v.id) for v in versions), np.int64, len(versions))
        self._row_starts.extend(self._row_starts.view()[-1] + np.cumsum(passages))
        self._ids.extend(np.frombuffer(b"".join(v.id for v in versions), np.uint8))
        self._id_starts.extend(self._id_starts.view()[-1] + np.cumsum(lengths))
        digests = np.frombuffer(b"".join(v.digest for v in versions), np.uint8)
        self._digests.extend(digests.reshape(-1, DIGEST_BYTES))
        self._sequences.extend(sequences)
        self.contents.extend(v.content for v in versions)
        self.content_bytes += sum(len(v.content) for v in versions)
        self.live = grown(self.live, int(passages.sum()), len(versions))

    def after(self, documents: int) -> Tail:
        """A new tail with the documents from number `documents` on."""
        fresh = self.empty()
        table = self.table()
        rest = [
            Version(table.id(i), table.digests[i].tobytes(), rows, self.contents[i])
            for i, rows in enumerate(np.diff(table.row_starts).tolist())
            if i >= documents
        ]
        if rest:
            first_row = int(table.row_starts[documents])
            fresh.extend(rest, table.sequences[documents:], self._rows_after(first_row))
            dead = np.flatnonzero(~self.live.of(table.row_starts[documents:-1]))
            fresh.live = masked(fresh.live, dead, fresh.table().row_starts)
        fresh.newest = {
            key: number - documents for key, number in self.newest.items() if number >= documents
        }
        return fresh

    @abstractmethod
    def empty(self) -> Tail:
        """Another one of its kind, without documents."""

    @abstractmethod
    def table(self) -> Table:
        """All rows so far, without a copy."""

    @abstractmethod
    def source(self) -> Source:
        """It as it is now, to be searched."""

    @abstractmethod
    def _extend_rows(self, versions: Sequence[Version], vectors: Vectors) -> None:
        """Adds the rows of versions that are not counted yet."""

    @abstractmethod
    def _rows_after(self, row: int) -> Vectors:
        """The rows from number `row` on."""
