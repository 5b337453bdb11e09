"""The port behind which a kind keeps the vectors of passages: logged, in the tail, sealed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from shard_service.columns import ColumnFiles
from shard_service.core.source import Segment
from shard_service.core.table import Table
from shard_service.core.tail import Tail
from shard_service.core.vectors import Vectors
from shard_service.manifest import SegmentEntry

if TYPE_CHECKING:
    from shard_service.assembly import Merged


@dataclass(frozen=True, slots=True)
class Facts:
    """What is noted of a segment's vectors.

    Attributes:
        index: FAISS factory string, or what the codec is.
        parameters: search parameters by name.
        recall: recall@10 measured with them.
        max_norm: at least the length of every vector; 0.0 where no search needs it.
    """

    index: str
    parameters: dict[str, int]
    recall: float
    max_norm: float


class Layout(Protocol):
    """How one shard keeps vectors. Thread-safe."""

    def read(self, logged: bytes, passages: int) -> Vectors:
        """The vectors that a log entry keeps."""

    def tail(self) -> Tail:
        """An empty tail."""

    def stored(self, table: Table, document: int) -> Vectors | None:
        """A document's vectors as they were written; None where only codes are kept."""

    def write(self, files: ColumnFiles, merged: Merged) -> Facts:
        """Writes the files of a segment's vectors; those of its documents are there."""

    def open(self, files: ColumnFiles, entry: SegmentEntry) -> Segment:
        """Maps a segment whose files are verified."""
