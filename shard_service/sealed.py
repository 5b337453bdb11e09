"""What segments of every kind have in common, read from their files."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from shard_service.columns import ColumnFiles
from shard_service.core.live import Live
from shard_service.core.source import Segment, Source
from shard_service.core.table import Table
from shard_service.manifest import SegmentEntry

Content: TypeAlias = Callable[[int], bytes]


def read_table(files: ColumnFiles) -> Table:
    """The documents of a segment."""
    return Table(
        ids=files.read("ids"),
        id_starts=files.read("id_starts"),
        sequences=files.read("sequences"),
        digests=files.read("digests"),
        row_starts=files.read("row_starts"),
    )


def read_content(files: ColumnFiles) -> Content:
    """Gives the content of a segment's documents."""
    return partial(_content, files.read("contents"), files.read("content_starts"))


def read_segment(
    files: ColumnFiles,
    entry: SegmentEntry,
    table: Table,
    content: Content,
    source: Callable[[Live], Source],
) -> Segment:
    """A segment.

    Args:
        files: its folder.
        entry: of the manifest.
        table: its documents and rows.
        content: from `read_content`.
        source: see `Segment`.
    """
    return Segment(
        name=entry.name,
        table=table,
        hashes=files.read("hashes"),
        content=content,
        source=source,
        index=entry.index,
        parameters=",".join(f"{name}={value}" for name, value in entry.parameters.items()),
        recall=entry.recall,
        size=sum(file.size for file in entry.files),
    )


def _content(contents: NDArray[np.uint8], starts: NDArray[np.int64], document: int) -> bytes:
    return contents[starts[document] : starts[document + 1]].tobytes()
