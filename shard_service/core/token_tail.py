"""The tail of a collection of kind colbert."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from shard_service.core.growable import Growable
from shard_service.core.records import Version
from shard_service.core.source import TokenSource
from shard_service.core.table import TokenTable
from shard_service.core.tail import Tail
from shard_service.core.vectors import Tokens, TokenVectors, Vectors


class TokenTail(Tail):
    """One run of encoded tokens per passage: what is sealed is scored by the same codes.

    Args:
        none: no tokens, as the codec keeps them.
    """

    def __init__(self, none: Tokens) -> None:
        super().__init__()
        self._none = none
        self._token_starts: Growable[np.int64] = Growable(np.int64)
        self._token_starts.extend(np.zeros(1))
        self._tokens: list[Growable[Any]] = [
            Growable(column.dtype, column.shape[1:]) for column in none
        ]

    def empty(self) -> TokenTail:
        """Another one of its kind, without documents."""
        return TokenTail(self._none)

    def table(self) -> TokenTable:
        """All rows so far, without a copy."""
        return TokenTable(
            ids=self._ids.view(),
            id_starts=self._id_starts.view(),
            sequences=self._sequences.view(),
            digests=self._digests.view(),
            row_starts=self._row_starts.view(),
            token_starts=self._token_starts.view(),
            tokens=tuple(column.view() for column in self._tokens),
        )

    def source(self) -> TokenSource:
        """It as it is now, to be searched."""
        return TokenSource(self.table(), self.live, self.contents.__getitem__)

    def _extend_rows(self, versions: Sequence[Version], vectors: Vectors) -> None:
        assert isinstance(vectors, TokenVectors)
        self._token_starts.extend(self._token_starts.view()[-1] + vectors.starts[1:])
        for column, more in zip(self._tokens, vectors.codes, strict=True):
            column.extend(more)

    def _rows_after(self, row: int) -> TokenVectors:
        starts = self._token_starts.view()
        first = int(starts[row])
        # The rows as they came are in the log; only codes go on.
        return TokenVectors(
            np.empty((0, 0), np.float16),
            starts[row:] - first,
            tuple(column.view()[first:] for column in self._tokens),
        )
