"""The young, in-memory part of a shard: rows are added at its end."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from shard_service.core.growable import Growable
from shard_service.core.live import Live, all_live
from shard_service.core.records import Version
from shard_service.core.table import Table
from shoal.ids import DIGEST_BYTES
from shoal.kernels import squares
from shoal.types import Float32Matrix, Similarity


def unit(vectors: Float32Matrix, squared: NDArray[np.float64]) -> Float32Matrix:
    """Vectors scaled to length 1 in float64 and rounded to float32.

    Args:
        vectors: [rows, dim] float32, none of them zero.
        squared: [rows] float64, `squares(vectors)`.
    """
    scaled: Float32Matrix = (vectors / np.sqrt(squared)[:, np.newaxis]).astype(np.float32)
    return scaled


def prepared(
    similarity: Similarity, vectors: Float32Matrix, squared: NDArray[np.float64]
) -> Float32Matrix:
    """Vectors as engines take them: of length 1 for cosine, as they are otherwise."""
    return unit(vectors, squared) if similarity is Similarity.COSINE else vectors


class Tail:
    """Grows by document versions. Not thread-safe; views stay valid for ever.

    Attributes:
        newest: id to number of its newest version, where that is live.
        live: which rows are live.
        content_bytes: bytes of all contents, for sealing in time.
    """

    def __init__(self, dim: int, similarity: Similarity) -> None:
        self._similarity = similarity
        self._ids: Growable[np.uint8] = Growable(np.uint8)
        self._id_starts: Growable[np.int64] = Growable(np.int64)
        self._sequences: Growable[np.uint64] = Growable(np.uint64)
        self._digests: Growable[np.uint8] = Growable(np.uint8, (DIGEST_BYTES,))
        self._row_starts: Growable[np.int64] = Growable(np.int64)
        self._row_documents: Growable[np.int32] = Growable(np.int32)
        self._vectors: Growable[np.float32] = Growable(np.float32, (dim,))
        self._prepared: Growable[np.float32] = (
            Growable(np.float32, (dim,)) if similarity is Similarity.COSINE else self._vectors
        )
        self._squares: Growable[np.float64] = Growable(np.float64)
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
        return len(self._row_documents)

    def extend(
        self, versions: Sequence[Version], sequences: NDArray[np.uint64], vectors: Float32Matrix
    ) -> None:
        """Adds versions; `live` and `newest` are the caller's to update.

        Args:
            versions: in order.
            sequences: [versions], their sequence numbers.
            vectors: [passages of all versions, dim] float32.
        """
        squared = squares(vectors)
        passages = np.fromiter((v.passages for v in versions), np.int64, len(versions))
        lengths = np.fromiter((len(v.id) for v in versions), np.int64, len(versions))
        numbers = np.arange(self.documents, self.documents + len(versions))
        self._row_documents.extend(np.repeat(numbers, passages))
        self._row_starts.extend(self._row_starts.view()[-1] + np.cumsum(passages))
        self._ids.extend(np.frombuffer(b"".join(v.id for v in versions), np.uint8))
        self._id_starts.extend(self._id_starts.view()[-1] + np.cumsum(lengths))
        digests = np.frombuffer(b"".join(v.digest for v in versions), np.uint8)
        self._digests.extend(digests.reshape(-1, DIGEST_BYTES))
        self._vectors.extend(vectors)
        if self._prepared is not self._vectors:
            self._prepared.extend(unit(vectors, squared))
        self._squares.extend(squared)
        self._sequences.extend(sequences)
        self.contents.extend(v.content for v in versions)
        self.content_bytes += sum(len(v.content) for v in versions)

    def table(self) -> Table:
        """All rows so far, without a copy."""
        return Table(
            ids=self._ids.view(),
            id_starts=self._id_starts.view(),
            sequences=self._sequences.view(),
            digests=self._digests.view(),
            row_starts=self._row_starts.view(),
            row_documents=self._row_documents.view(),
            vectors=self._vectors.view(),
            squares=self._squares.view(),
        )

    def prepared(self) -> Float32Matrix:
        """[rows, dim] float32, as engines take them."""
        return self._prepared.view()

    def versions(self, start: int) -> list[Version]:
        """The versions from number `start` on."""
        table = self.table()
        passages = np.diff(table.row_starts)
        return [
            Version(table.id(i), table.digests[i].tobytes(), int(passages[i]), self.contents[i])
            for i in range(start, self.documents)
        ]
