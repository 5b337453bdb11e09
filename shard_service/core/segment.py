"""A sealed, immutable part of a shard, as it is served."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from shard_service.core.engine import Engine
from shard_service.core.live import Live, all_live
from shard_service.core.table import Table


@dataclass(frozen=True, slots=True, eq=False)
class Segment:
    """Documents sorted by (hash, id), their index and their contents.

    Attributes:
        name: unique within the shard.
        table: documents and rows.
        hashes: [documents] uint64, ascending.
        engine: the index.
        content: bytes of one document's content.
        max_norm: at least the length of every vector.
        index: FAISS factory string.
        parameters: search parameters chosen at build time.
        recall: recall@10 on documents, measured at build time.
        size: bytes of its files.
    """

    name: str
    table: Table
    hashes: NDArray[np.uint64]
    engine: Engine
    content: Callable[[int], bytes]
    max_norm: float
    index: str
    parameters: str
    recall: float
    size: int

    def all_live(self) -> Live:
        """Its visibility before any document died."""
        return all_live(self.table.rows, self.table.documents)
