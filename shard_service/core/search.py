"""A batch of queries against a view: proposals, exact scores, documents, the cut at K.

Pure but for the engines behind their port. Queries of a batch never influence each
other's answers: each is asked for by its own numbers, scored pair by pair, and folded
by itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from shard_service.core import guard
from shard_service.core.fold import best_passages, break_ties, kth_scores, ranks_within
from shard_service.core.live import ranges
from shard_service.core.state import Source, View
from shard_service.core.tail import prepared
from shoal.kernels import exact
from shoal.types import Float32Matrix, Float64Vector, Similarity

Indices = NDArray[np.int64]
Wanted = Callable[[], NDArray[np.bool_]]
"""Asked before every slice of work: which queries are still worth it."""

_SLICE_US = 5_000
"""Work between two looks at the deadlines."""
_SCAN_ROWS = 4_096
"""Rows scored exactly between two looks at the deadlines."""


@dataclass(frozen=True, slots=True)
class Hits:
    """Hits of many queries as columns, query after query, best first.

    Attributes:
        counts: [queries] int64, hits of each.
        ids: id bytes of all hits, one after the other.
        id_lengths: [hits] int64.
        scores: [hits] float64.
        sequences: [hits] uint64, of the document versions.
        passages: [hits] int64, which passage of its document scored best.
        dropped: [queries] bool, no longer wanted when their turn came: no hits.
    """

    counts: Indices
    ids: bytes
    id_lengths: Indices
    scores: Float64Vector
    sequences: NDArray[np.uint64]
    passages: Indices
    dropped: NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Candidates:
    """Exactly scored rows as columns: query, source, row, document, score."""

    query: Indices
    source: Indices
    row: Indices
    document: Indices
    score: Float64Vector

    def take(self, chosen: NDArray[np.bool_] | Indices) -> Candidates:
        """Some of them."""
        return Candidates(
            self.query[chosen],
            self.source[chosen],
            self.row[chosen],
            self.document[chosen],
            self.score[chosen],
        )


def search(
    view: View,
    similarity: Similarity,
    queries: Float32Matrix,
    top_k: Indices,
    wanted: Wanted,
) -> Hits:
    """The best documents of a view for each query.

    Args:
        view: what to search.
        similarity: how vectors compare.
        queries: [queries, dim] float32, finite; not zero for cosine.
        top_k: [queries] int64, documents wanted, 1 or more.
        wanted: tells which queries still are.
    """
    batch = _Batch(view, similarity, np.ascontiguousarray(queries), top_k, wanted)
    while batch.step():
        pass
    return batch.hits()


def _join(parts: Sequence[Candidates]) -> Candidates:
    if len(parts) == 1:
        return parts[0]
    return Candidates(
        np.concatenate([part.query for part in parts]),
        np.concatenate([part.source for part in parts]),
        np.concatenate([part.row for part in parts]),
        np.concatenate([part.document for part in parts]),
        np.concatenate([part.score for part in parts]),
    )


class _Batch:
    """The queries of one call on their way."""

    def __init__(
        self,
        view: View,
        similarity: Similarity,
        queries: Float32Matrix,
        top_k: Indices,
        wanted: Wanted,
    ) -> None:
        self._view, self._similarity, self._top_k, self._wanted = view, similarity, top_k, wanted
        self._queries = queries
        self._squares = exact.squares(queries)
        self._prepared = np.ascontiguousarray(prepared(similarity, queries, self._squares))
        self._dropped = ~wanted()
        shape = (len(view.sources), len(queries))
        self._ask = np.full(shape, guard.SCAN, dtype=np.int64)
        self._effort = np.ones(shape, dtype=np.int64)
        self._pending = np.zeros(shape, dtype=np.bool_)
        self._last = np.full(shape, -np.inf, dtype=np.float32)
        self._complete = np.ones(shape, dtype=np.bool_)
        offsets = np.cumsum([0, *(source.table.documents for source in view.sources)])
        self._offsets = offsets.astype(np.int64)
        nothing = np.empty(0, dtype=np.int64)
        self._pool = Candidates(nothing, nothing, nothing, nothing, np.empty(0))
        for number, source in enumerate(view.sources):
            self._begin(number, source)

    def _begin(self, number: int, source: Source) -> None:
        if source.live.live_rows == 0:
            return
        engine, live = source.engine, source.live
        self._pending[number] = True
        self._complete[number] = False
        for top_k in np.unique(self._top_k).tolist():
            self._ask[number, self._top_k == top_k] = guard.first_ask(
                top_k, live, exact=engine.exact
            )

    def step(self) -> bool:
        """Asks every source for what is pending; whether anything still is."""
        fresh = [part for number in range(len(self._ask)) for part in self._ask_source(number)]
        self._pending[:] = False
        if fresh:
            self._pool = _join([self._pool, *fresh])
        self._judge()
        return bool(self._pending.any())

    def _ask_source(self, number: int) -> Iterator[Candidates]:
        source = self._view.sources[number]
        pending = self._pending[number] & ~self._dropped
        # Queries travel together only when asked in the same way, whoever they came with.
        asks = np.stack([self._ask[number], self._effort[number]])
        for ask, effort in np.unique(asks[:, pending], axis=1).T.tolist():
            members = np.flatnonzero(pending & (asks[0] == ask) & (asks[1] == effort))
            if ask == guard.SCAN:
                for query in members.tolist():
                    yield from self._scan(number, source, query)
                continue
            size = max(1, int(_SLICE_US / source.engine.query_cost_us))
            for start in range(0, len(members), size):
                part = members[start : start + size]
                part = part[self._still_wanted()[part]]
                if len(part):
                    yield self._propose(number, source, part, ask)

    def _still_wanted(self) -> NDArray[np.bool_]:
        self._dropped |= ~self._wanted()
        left: NDArray[np.bool_] = np.logical_not(self._dropped)
        return left

    def _propose(self, number: int, source: Source, part: Indices, ask: int) -> Candidates:
        effort = int(self._effort[number, part[0]])
        proposals = source.engine.search(self._prepared[part], ask, source.live, effort)
        rows = proposals.rows
        self._last[number, part] = proposals.scores[:, -1]
        if source.engine.exact:
            self._complete[number, part] = rows.shape[1] >= source.table.rows
        at, _ = held = np.nonzero(rows >= 0)
        found, query = rows[held], part[at]
        if not source.live.whole:
            alive = source.live.of(found)
            found, query = found[alive], query[alive]
        return self._score(number, source, query, found)

    def _score(self, number: int, source: Source, query: Indices, rows: Indices) -> Candidates:
        table = source.table
        squared = table.squares[rows] if self._similarity is Similarity.COSINE else self._squares
        score = exact.scores(
            self._similarity,
            self._queries[query],
            table.vectors[rows],
            self._squares[query],
            squared,
        )
        return Candidates(
            query,
            np.full(len(rows), number, dtype=np.int64),
            rows,
            table.row_documents[rows] + self._offsets[number],
            score,
        )

    def _scan(self, number: int, source: Source, query: int) -> Iterator[Candidates]:
        """Scores every live row; keeps what may be among the best K documents."""
        held = (self._pool.source == number) & (self._pool.query == query)
        self._pool = self._pool.take(~held)
        top_k = int(self._top_k[query])
        rows = source.live.live()
        kept: Candidates | None = None
        for start in range(0, len(rows), _SCAN_ROWS):
            if not self._still_wanted()[query]:
                return
            part = rows[start : start + _SCAN_ROWS]
            scored = self._score(number, source, np.full(len(part), query), part)
            kept = scored if kept is None else _join([kept, scored])
            kept = _best_documents(kept, top_k)
        self._complete[number, query] = True
        if kept is not None:
            yield kept

    def _judge(self) -> None:
        """Decides which queries need more from which source."""
        pool = self._pool
        best = self._best_of(pool)
        self._best = best
        kth, _ = kth_scores(pool.query[best], pool.score[best], self._top_k)
        for number, source in enumerate(self._view.sources):
            lacking = ~self._enough(number, source, kth, best) & ~self._dropped
            for query in np.flatnonzero(lacking).tolist():
                self._widen(number, source, query)

    def _best_of(self, pool: Candidates) -> Indices:
        """Indices of every document's best passage, in (query, score descending) order."""
        if all(source.table.rows == source.table.documents for source in self._view.sources):
            return np.lexsort((-pool.score, pool.query))
        return best_passages(pool.query, pool.document, pool.row, pool.score)

    def _enough(
        self, number: int, source: Source, kth: Float64Vector, best: Indices
    ) -> NDArray[np.bool_]:
        complete: NDArray[np.bool_] = self._complete[number]
        if complete.all():
            return complete
        if source.engine.exact:
            error = exact.engine_error(
                self._similarity,
                self._queries.shape[1],
                np.sqrt(self._squares),
                source.max_norm,
            )
            return guard.enough_exact(self._last[number], complete, error, kth)
        mine = best[self._pool.source[best] == number]
        held = np.bincount(self._pool.query[mine], minlength=len(kth))
        wanted = np.minimum(self._top_k, source.live.live_documents)
        enough: NDArray[np.bool_] = complete | (held >= wanted)
        return enough

    def _widen(self, number: int, source: Source, query: int) -> None:
        self._pending[number, query] = True
        self._effort[number, query] *= 2
        self._ask[number, query] = guard.next_ask(
            int(self._ask[number, query]),
            int(self._top_k[query]),
            source.engine.exact,
            source.live.live_rows,
        )
        held = (self._pool.source == number) & (self._pool.query == query)
        self._pool = self._pool.take(~held)

    def hits(self) -> Hits:
        """The answer, when no step is pending."""
        pool = self._pool
        best = self._best[~self._dropped[pool.query[self._best]]]
        best = break_ties(best, pool.query, pool.score, self._ids_of)
        chosen = pool.take(best[ranks_within(pool.query[best]) < self._top_k[pool.query[best]]])
        lengths, ids = self._gather_ids(chosen)
        sequences = np.empty(len(chosen.query), dtype=np.uint64)
        passages = np.empty(len(chosen.query), dtype=np.int64)
        for number, source in enumerate(self._view.sources):
            mine = np.flatnonzero(chosen.source == number)
            documents = chosen.document[mine] - self._offsets[number]
            sequences[mine] = source.table.sequences[documents]
            passages[mine] = chosen.row[mine] - source.table.row_starts[documents]
        counts = np.bincount(chosen.query, minlength=len(self._top_k)).astype(np.int64)
        return Hits(counts, ids, lengths, chosen.score, sequences, passages, self._dropped)

    def _ids_of(self, candidates: Indices) -> list[bytes]:
        chosen = self._pool.take(candidates)
        return [
            self._view.sources[source].table.id(document - int(self._offsets[source]))
            for source, document in zip(
                chosen.source.tolist(), chosen.document.tolist(), strict=True
            )
        ]

    def _gather_ids(self, chosen: Candidates) -> tuple[Indices, bytes]:
        lengths = np.empty(len(chosen.query), dtype=np.int64)
        for number, source in enumerate(self._view.sources):
            mine = chosen.source == number
            documents = chosen.document[mine] - self._offsets[number]
            starts = source.table.id_starts
            lengths[mine] = starts[documents + 1] - starts[documents]
        ends = np.cumsum(lengths)
        joined = np.empty(int(lengths.sum()), dtype=np.uint8)
        for number, source in enumerate(self._view.sources):
            mine = chosen.source == number
            documents = chosen.document[mine] - self._offsets[number]
            starts = source.table.id_starts
            there = ranges(starts[documents], starts[documents + 1])
            here = ranges((ends - lengths)[mine], ends[mine])
            joined[here] = source.table.ids[there]
        return lengths, joined.tobytes()


def _best_documents(candidates: Candidates, top_k: int) -> Candidates:
    """Of one query's candidates, those with a score no worse than the K-th document's."""
    best = best_passages(candidates.query, candidates.document, candidates.row, candidates.score)
    if len(best) <= top_k:
        return candidates.take(best)
    floor = candidates.score[best[top_k - 1]]
    return candidates.take(best[candidates.score[best] >= floor])
