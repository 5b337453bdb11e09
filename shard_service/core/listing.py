"""Live documents of a view in the order of (id hash, id), which no layout changes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from shard_service.core.source import View
from shoal.ids import id_hash


@dataclass(frozen=True, slots=True)
class Listing:
    """Every live document of a view, in order.

    Attributes:
        view: of which they are.
        hashes: [n] uint64, ascending.
        sources: [n] int64, number of the source of each.
        documents: [n] int64, its number there.
    """

    view: View
    hashes: NDArray[np.uint64]
    sources: NDArray[np.int64]
    documents: NDArray[np.int64]

    def after(self, key: bytes, count: int) -> list[tuple[bytes, bytes]]:
        """The next documents' ids and digests.

        Args:
            key: only documents after this id's place; empty begins.
            count: at most, 1 or more.
        """
        begin = (id_hash(key), key) if key else None
        at = 0
        if begin is not None:
            at = int(np.searchsorted(self.hashes, np.uint64(begin[0]), side="left"))
        found: list[tuple[bytes, bytes]] = []
        while at < len(self.hashes) and len(found) < count:
            table = self.view.sources[self.sources[at]].table
            document = int(self.documents[at])
            mine = table.id(document)
            if begin is None or (int(self.hashes[at]), mine) > begin:
                found.append((mine, table.digests[document].tobytes()))
            at += 1
        return found


def listing(view: View) -> Listing:
    """Orders a view's documents; takes time in proportion to them."""
    hashes, sources, documents = [], [], []
    sealed = len(view.segments)
    for number, source in enumerate(view.sources):
        live = np.flatnonzero(source.live.of(source.table.row_starts[:-1]))
        if number < sealed:
            hashes.append(view.segments[number].hashes[live])
        else:
            ids = map(source.table.id, live.tolist())
            hashes.append(np.fromiter(map(id_hash, ids), np.uint64, len(live)))
        sources.append(np.full(len(live), number, np.int64))
        documents.append(live)
    together = np.concatenate([np.empty(0, np.uint64), *hashes])
    order = np.argsort(together, kind="stable")
    owners = np.concatenate([np.empty(0, np.int64), *sources])
    numbers = np.concatenate([np.empty(0, np.int64), *documents])
    for at in np.flatnonzero(together[order[1:]] == together[order[:-1]]).tolist():
        # Two ids with one 64-bit hash: never seen, but possible.
        pair = order[at : at + 2]
        first, second = (view.sources[owners[i]].table.id(int(numbers[i])) for i in pair)
        if first > second:
            order[at : at + 2] = pair[::-1].copy()
    return Listing(view, together[order], owners[order], numbers[order])
