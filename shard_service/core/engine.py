"""The port behind which candidates are found. Adapters: `shard_service.indexes`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from shard_service.core.live import Live
from shoal.types import Float32Matrix


@dataclass(frozen=True, slots=True)
class Proposals:
    """What an engine proposes, in any order.

    Attributes:
        rows: [queries, count] int64; -1 where it found no more.
        last: [queries] float32, of an exact engine: no row that was left out has a
            better engine score. Empty of others.
    """

    rows: NDArray[np.int64]
    last: NDArray[np.float32]


class Engine(Protocol):
    """Finds candidate rows of one source. Safe for concurrent searches."""

    @property
    def exact(self) -> bool:
        """Proposals are the best rows by engine score, up to float32 error."""

    @property
    def rows(self) -> range:
        """The rows that it searches."""

    @property
    def blocks(self) -> Sequence[Engine]:
        """Engines that share its rows, of which each answers a query within a few milliseconds."""

    def batch(self, budget_us: int) -> int:
        """Queries that one search answers in about so many microseconds, 1 or more."""

    def search(self, queries: Float32Matrix, count: int, live: Live, effort: int) -> Proposals:
        """Proposes rows: an exact engine `count` per query, others what holds so many good ones.

        Args:
            queries: [queries, dim] float32, C order; of length 1 for cosine.
            count: rows wanted per query.
            live: rows that may be proposed; an exact engine may propose others too,
                and then counts them.
            effort: 1 for the tuned search, 2, 4, ... for a wider one.
        """
