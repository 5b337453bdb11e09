"""The tail of a collection of kind single."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from shard_service.core.engine import Engine
from shard_service.core.growable import Growable
from shard_service.core.records import Version
from shard_service.core.source import DenseSource
from shard_service.core.table import DenseTable
from shard_service.core.tail import Tail
from shard_service.core.vectors import Dense, Vectors
from shoal.kernels import squares
from shoal.types import Float32Matrix, Similarity

TailEngine: TypeAlias = Callable[[Float32Matrix], Engine]


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


class DenseTail(Tail):
    """One vector per passage, searched exactly.

    Args:
        dim: columns of every vector.
        similarity: how vectors compare.
        engine: makes an exact engine over [rows, dim] prepared vectors.
    """

    def __init__(self, dim: int, similarity: Similarity, engine: TailEngine) -> None:
        super().__init__()
        self._dim, self._similarity, self._engine = dim, similarity, engine
        self._row_documents: Growable[np.int32] = Growable(np.int32)
        self._vectors: Growable[np.float32] = Growable(np.float32, (dim,))
        self._prepared: Growable[np.float32] = (
            Growable(np.float32, (dim,)) if similarity is Similarity.COSINE else self._vectors
        )
        self._squares: Growable[np.float64] = Growable(np.float64)
        self._max_square = 0.0

    def empty(self) -> DenseTail:
        """Another one of its kind, without documents."""
        return DenseTail(self._dim, self._similarity, self._engine)

    def table(self) -> DenseTable:
        """All rows so far, without a copy."""
        return DenseTable(
            ids=self._ids.view(),
            id_starts=self._id_starts.view(),
            sequences=self._sequences.view(),
            digests=self._digests.view(),
            row_starts=self._row_starts.view(),
            row_documents=self._row_documents.view(),
            vectors=self._vectors.view(),
            squares=self._squares.view(),
        )

    def source(self) -> DenseSource:
        """It as it is now, to be searched."""
        return DenseSource(
            self.table(),
            self.live,
            self.contents.__getitem__,
            self._engine(self._prepared.view()),
            float(np.nextafter(np.sqrt(self._max_square), np.inf)),
        )

    def _extend_rows(self, versions: Sequence[Version], vectors: Vectors) -> None:
        assert isinstance(vectors, Dense)
        rows = vectors.rows
        squared = squares(rows)
        passages = np.fromiter((v.passages for v in versions), np.int64, len(versions))
        numbers = np.arange(self.documents, self.documents + len(versions))
        self._row_documents.extend(np.repeat(numbers, passages))
        self._vectors.extend(rows)
        if self._prepared is not self._vectors:
            self._prepared.extend(unit(rows, squared))
        self._squares.extend(squared)
        self._max_square = max(self._max_square, float(squared.max(initial=0.0)))

    def _rows_after(self, row: int) -> Dense:
        return Dense(self._vectors.view()[row:])
