"""Documents for training and calibration, in an order that no layout changes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from shard_service.core.source import TokenSource
from shoal.ids import sample_rank


@dataclass(frozen=True, slots=True)
class Sampled:
    """Documents of a sample.

    Attributes:
        places: (number of the source, document), in the order of (sample rank, id).
        last: there are none after these.
    """

    places: Sequence[tuple[int, int]]
    last: bool


def sample(sources: Sequence[TokenSource], after: bytes, max_rows: int) -> Sampled:
    """The next live documents of some sources.

    Args:
        sources: of one view.
        after: only documents after this id's place; empty begins.
        max_rows: tokens at most, 1 or more; the first document counts whatever it has.
    """
    ranks = np.concatenate([np.empty(0, np.uint64), *(source.ranks for source in sources)])
    owners = np.repeat(np.arange(len(sources)), [len(source.ranks) for source in sources])
    documents = np.concatenate([np.empty(0, np.int64), *(source.documents for source in sources)])
    left = np.arange(len(ranks))
    begin = (sample_rank(after), after) if after else (0, b"")
    if after:
        left = np.flatnonzero(ranks >= np.uint64(begin[0]))
    # A document has a token or more, but for a few: the first max_rows of them will do.
    if len(left) > max_rows:
        left = left[np.argpartition(ranks[left], max_rows)[: max_rows + 1]]
    keyed = sorted(
        (int(ranks[at]), sources[owners[at]].table.id(int(documents[at])), at)
        for at in left.tolist()
    )
    keyed = [each for each in keyed if each[:2] > begin]
    places: list[tuple[int, int]] = []
    rows = 0
    for _, _, at in keyed:
        source, document = int(owners[at]), int(documents[at])
        rows += token_count(sources[source], document)
        if places and rows > max_rows:
            return Sampled(places, last=False)
        places.append((source, document))
    return Sampled(places, last=len(left) <= max_rows)


def token_count(source: TokenSource, document: int) -> int:
    """Tokens of one document."""
    begin, end = token_range(source, document)
    return end - begin


def token_range(source: TokenSource, document: int) -> tuple[int, int]:
    """Where a document's tokens begin and end."""
    table = source.table
    first, last = table.row_starts[document], table.row_starts[document + 1]
    return int(table.token_starts[first]), int(table.token_starts[last])
