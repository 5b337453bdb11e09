"""A batch of queries against a view: proposals, exact scores, documents, the cut at K.

Pure but for the engines behind their port. Queries of a batch never influence each
other's answers, nor do sources: each is asked until it has given its own best K
documents, whatever the others hold.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from shard_service.core import guard
from shard_service.core.dense import prepared
from shard_service.core.engine import Engine
from shard_service.core.source import DenseSource, View
from shoal import kernels
from shoal.kernels import Hits, Part, exact
from shoal.types import Float32Matrix, Similarity

Indices = NDArray[np.int64]
Wanted = Callable[[], NDArray[np.bool_]]
"""Asked before every slice of work: which queries are still worth it."""

_SLICE_US = 5_000
"""Work between two looks at the deadlines."""
_SCAN_ROWS = 4_096
"""Rows scored exactly between two looks at the deadlines."""


@dataclass(frozen=True, slots=True)
class Found:
    """What a search found.

    Attributes:
        hits: of every query, best first.
        dropped: [queries] bool, no longer wanted when their turn came: no hits.
    """

    hits: Hits
    dropped: NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class _Ask:
    """Queries that an engine is asked for in the same way, whoever they came with.

    Attributes:
        members: their numbers.
        top_k: documents wanted by each.
        rows: to propose, or guard.SCAN.
        effort: of the engine.
    """

    members: Indices
    top_k: int
    rows: int
    effort: int


def search(
    view: View,
    similarity: Similarity,
    queries: Float32Matrix,
    top_k: Indices,
    wanted: Wanted,
) -> Found:
    """The best documents of a view for each query.

    Args:
        view: what to search.
        similarity: how vectors compare.
        queries: [queries, dim] float32, finite; not zero for cosine.
        top_k: [queries] int64, documents wanted, 1 or more.
        wanted: tells which queries still are.
    """
    return _Batch(similarity, np.ascontiguousarray(queries), top_k, wanted).search(view)


class _Batch:
    """The queries of one call."""

    def __init__(
        self, similarity: Similarity, queries: Float32Matrix, top_k: Indices, wanted: Wanted
    ) -> None:
        self._similarity, self._queries, self._top_k = similarity, queries, top_k
        self._wanted = wanted
        self._squares = kernels.squares(queries)
        self._prepared = prepared(similarity, queries, self._squares)
        self._dropped = ~wanted()

    def search(self, view: View) -> Found:
        parts: list[Part] = []
        for number, source in enumerate(view.sources):
            assert isinstance(source, DenseSource)
            parts += self._of_source(number, source)
        whole = np.arange(len(self._queries))
        if len(parts) == 1 and not self._dropped.any() and np.array_equal(parts[0].rows, whole):
            return Found(parts[0].hits, self._dropped)
        places = np.where(self._dropped, -1, whole)
        parts = [
            Part(part.number, np.where(part.rows < 0, -1, places[part.rows]), part.hits)
            for part in parts
        ]
        return Found(kernels.merge(parts, self._top_k).hits, self._dropped)

    def _of_source(self, number: int, source: DenseSource) -> Iterator[Part]:
        """The best K documents of a source for every query, in parts."""
        live = source.live
        if live.live_rows == 0:
            return
        for top_k in np.unique(self._top_k).tolist():
            members = np.flatnonzero(self._top_k == top_k)
            rows = guard.first_ask(top_k, live, exact=source.engine.exact)
            if rows == guard.SCAN:
                yield from self._scan(number, source, members, range(live.rows))
                continue
            ask = _Ask(members, top_k, rows, effort=1)
            for engine in source.engine.blocks:
                yield from self._of_engine(number, source, engine, ask)

    def _of_engine(
        self, number: int, source: DenseSource, engine: Engine, first: _Ask
    ) -> Iterator[Part]:
        """The best K documents among an engine's rows for an ask's queries, in parts."""
        size = engine.batch(_SLICE_US)
        asks = [first]
        while asks:
            ask = asks.pop()
            if ask.rows == guard.SCAN:
                yield from self._scan(number, source, ask.members, engine.rows)
                continue
            for start in range(0, len(ask.members), size):
                members = ask.members[start : start + size]
                members = members[self._still_wanted()[members]]
                if not len(members):
                    continue
                hits, enough = self._propose(source, engine, members, ask)
                yield Part(number, np.where(enough, members, -1), hits)
                if not enough.all():
                    asks.append(_wider(ask, members[~enough], source))

    def _still_wanted(self) -> NDArray[np.bool_]:
        self._dropped |= ~self._wanted()
        left: NDArray[np.bool_] = np.logical_not(self._dropped)
        return left

    def _propose(
        self, source: DenseSource, engine: Engine, members: Indices, ask: _Ask
    ) -> tuple[Hits, NDArray[np.bool_]]:
        """Hits of each member, and whether no better ones can be among the engine's rows."""
        count = min(ask.rows, len(engine.rows))
        proposals = engine.search(self._prepared[members], count, source.live, ask.effort)
        hits = self._rank(source, members, proposals.rows)
        if not engine.exact:
            return hits, hits.counts >= min(ask.top_k, source.live.live_documents)
        if count == len(engine.rows):
            return hits, np.ones(len(members), dtype=np.bool_)
        kth = np.full(len(members), -np.inf)
        full = hits.counts == ask.top_k
        kth[full] = hits.scores[np.cumsum(hits.counts)[full] - 1]
        lengths = np.sqrt(self._squares[members])
        error = exact.engine_error(
            self._similarity, self._queries.shape[1], lengths, source.max_norm
        )
        return hits, guard.enough_exact(proposals.last, error, kth)

    def _rank(self, source: DenseSource, members: Indices, rows: Indices) -> Hits:
        return kernels.rank(
            self._similarity,
            self._queries[members],
            self._squares[members],
            rows,
            self._top_k[members],
            source.table,
            None if source.live.whole else source.live.bits,
        )

    def _scan(
        self, number: int, source: DenseSource, members: Indices, among: range
    ) -> Iterator[Part]:
        """Scores every live row of a range, query by query."""
        live = source.live.live()
        first, last = np.searchsorted(live, [among.start, among.stop]).tolist()
        for query in members.tolist():
            for start in range(first, last, _SCAN_ROWS):
                if not self._still_wanted()[query]:
                    break
                rows = live[np.newaxis, start : min(last, start + _SCAN_ROWS)]
                yield Part(number, np.array([query]), self._rank(source, np.array([query]), rows))


def _wider(ask: _Ask, members: Indices, source: DenseSource) -> _Ask:
    rows = guard.next_ask(ask.rows, ask.top_k, source.engine.exact, source.live.live_rows)
    return _Ask(members, ask.top_k, rows, ask.effort * 2)
