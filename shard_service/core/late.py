"""Late-interaction search of one shard: gather by centroids, refine by codes, fold, cut.

What is refined must not depend on how documents are spread over shards: it is the first B of the
whole generation by (centroid score descending, id ascending). A shard refines its own first B,
which hold every one of those that it has, and returns them all, uncut: see
`router.core.superset` for the cuts. A query that refines nothing scores every document, and
then the cut at K may be made here. Source: DESIGN, section 10.

A document's score is its best passage's, by centroids and by codes alike; passages without
tokens never count.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from shard_service.core.live import ranges
from shard_service.core.source import TokenSource, View, token_sources
from shard_service.core.token_codec import Question, Runs, TokenCodec
from shoal.kernels import Hits
from shoal.kernels.fixed import Fixed

Ints = NDArray[np.int64]
Wanted = Callable[[], NDArray[np.bool_]]
"""Asked before every slice of work: which queries are still worth it."""
_Score = Callable[[Runs, Ints], Ints]


@dataclass(frozen=True, slots=True)
class LateQuery:
    """One query.

    Attributes:
        tokens: [1 or more, dim] int16 in fixed point, none longer than 1.
        top_k: documents wanted, 1 or more.
        probes: centroids of each token that count by their own similarity.
        refined: B, documents of the whole generation that are scored by their codes; 0
            scores every document.
    """

    tokens: Fixed
    top_k: int
    probes: int = 0
    refined: int = 0


@dataclass(frozen=True, slots=True)
class LateFound:
    """What a search found.

    Attributes:
        hits: of every query; best first, or, where it refines, by centroid score.
        centroid_scores: [hits] float64; 0.0 for queries that score every document. None
            where no query refines.
        dropped: [queries] bool, no longer wanted when their turn came: no hits.
        tokens_scored: tokens compared by their full codes.
    """

    hits: Hits
    centroid_scores: NDArray[np.float64] | None
    dropped: NDArray[np.bool_]
    tokens_scored: int


@dataclass(frozen=True, slots=True)
class _Scored:
    """Documents with a score: places in parallel columns.

    Attributes:
        sources: [n] int64, number of the source of each.
        documents: [n] int64, its number there.
        scores: [n] int64.
        passages: [n] int64, its first passage with that score.
    """

    sources: Ints
    documents: Ints
    scores: Ints
    passages: Ints

    def taken(self, places: Ints) -> _Scored:
        return _Scored(
            self.sources[places],
            self.documents[places],
            self.scores[places],
            self.passages[places],
        )


@dataclass(frozen=True, slots=True)
class Explained:
    """Why one document has its score.

    Attributes:
        score: of its best passage, in the codec's units.
        centroid_score: the best of its passages by centroids; 0 where not asked for.
        passage: the best one by full codes.
        tokens: of that passage.
        tokens_before: of the passages before it.
        matched: [query tokens] int32, the passage's token that each matched.
        similarities: [query tokens] int32; they sum to the score.
    """

    score: int
    centroid_score: int
    passage: int
    tokens: int
    tokens_before: int
    matched: NDArray[np.int32]
    similarities: NDArray[np.int32]


def explain(
    source: TokenSource, document: int, codec: TokenCodec, query: LateQuery
) -> Explained | None:
    """Scores one document; None if it has no tokens.

    Args:
        source: that holds it.
        document: its number there.
        codec: that keeps its tokens.
        query: of which `top_k` and `refined` are not read; with `probes` 0 there is no
            centroid score.
    """
    table = source.table
    rows = np.arange(table.row_starts[document], table.row_starts[document + 1])
    counts = table.token_starts[rows + 1] - table.token_starts[rows]
    held = rows[counts > 0]
    if not len(held):
        return None
    question = codec.question(query.tokens, query.probes)
    runs = Runs(table.tokens, table.token_starts)
    scores = question.score(runs, held)
    best = held[int(scores.argmax())]
    matches = question.match(runs, best[np.newaxis])
    return Explained(
        score=int(scores.max()),
        centroid_score=int(question.score_centroids(runs, held).max()) if query.probes else 0,
        passage=int(best - rows[0]),
        tokens=int(counts[best - rows[0]]),
        tokens_before=int(table.token_starts[best] - table.token_starts[rows[0]]),
        matched=matches.tokens[0],
        similarities=matches.similarities[0],
    )


class _Unwanted(Exception):
    """The query was given up."""


def search(
    view: View, codec: TokenCodec, queries: Sequence[LateQuery], wanted: Wanted
) -> LateFound:
    """The documents of a view for each query.

    Args:
        view: what to search.
        codec: that keeps its tokens.
        queries: what is asked.
        wanted: tells which queries still are.
    """
    batch = _Batch(view, codec, wanted)
    refines = any(query.refined for query in queries)
    dropped = np.zeros(len(queries), dtype=np.bool_)
    parts: list[tuple[_Scored, Ints]] = []
    for number, query in enumerate(queries):
        try:
            parts.append(batch.search(number, query))
        except _Unwanted:
            dropped[number] = True
            parts.append((batch.nothing, np.empty(0, np.int64)))
    return LateFound(
        _hits(batch.sources, [found for found, _ in parts], codec.unit),
        np.concatenate([coarse for _, coarse in parts]) * codec.unit if refines else None,
        dropped,
        batch.tokens_scored,
    )


class _Batch:
    """The queries of one call."""

    def __init__(self, view: View, codec: TokenCodec, wanted: Wanted) -> None:
        self._codec, self._wanted = codec, wanted
        self.sources = token_sources(view)
        self.tokens_scored = 0

    @property
    def nothing(self) -> _Scored:
        """No documents."""
        none = np.empty(0, np.int64)
        return _Scored(none, none, none, none)

    def search(self, number: int, query: LateQuery) -> tuple[_Scored, Ints]:
        """Documents in the order of their answer, and their centroid scores."""
        question = self._codec.question(query.tokens, query.probes if query.refined else 0)
        if not query.refined:
            every = [source.documents for source in self.sources]
            scored = self._scored(number, question.score, every)
            best = scored.taken(self._first(scored, query.top_k))
            self._count(every)
            return best, np.zeros(len(best.scores), np.int64)
        every = [source.documents for source in self.sources]
        coarse = self._scored(number, question.score_centroids, every)
        chosen = coarse.taken(self._first(coarse, query.refined))
        return self._refine(number, question, chosen), chosen.scores

    def _refine(self, number: int, question: Question, chosen: _Scored) -> _Scored:
        """The chosen documents, in their order, with full scores."""
        places = [np.flatnonzero(chosen.sources == at) for at in range(len(self.sources))]
        order = [mine[np.argsort(chosen.documents[mine])] for mine in places]
        documents = [chosen.documents[mine] for mine in order]
        scored = self._scored(number, question.score, documents)
        self._count(documents)
        back = np.empty(len(chosen.scores), np.int64)
        back[np.concatenate([np.empty(0, np.int64), *order])] = np.arange(len(back))
        return scored.taken(back)

    def _count(self, documents: Sequence[Ints]) -> None:
        for source, mine in zip(self.sources, documents, strict=True):
            starts = source.table.token_starts[source.table.row_starts]
            self.tokens_scored += int((starts[mine + 1] - starts[mine]).sum())

    def _scored(self, number: int, score: _Score, documents: Sequence[Ints]) -> _Scored:
        """Scores documents, ascending by number within each source.

        Raises:
            _Unwanted: nobody waits for the query any more.
        """
        parts = [self.nothing]
        for at, (source, mine) in enumerate(zip(self.sources, documents, strict=True)):
            table = source.table
            runs = Runs(table.tokens, table.token_starts)
            begins, ends = table.row_starts[mine], table.row_starts[mine + 1]
            rows = ranges(begins, ends)
            full = table.token_starts[rows + 1] > table.token_starts[rows]
            scores = np.full(len(rows), np.iinfo(np.int64).min)
            held = rows[full]
            scores[full] = self._sliced(number, score, runs, held)
            parts.append(_fold(at, mine, ends - begins, scores))
        return _Scored(
            np.concatenate([part.sources for part in parts]),
            np.concatenate([part.documents for part in parts]),
            np.concatenate([part.scores for part in parts]),
            np.concatenate([part.passages for part in parts]),
        )

    def _sliced(self, number: int, score: _Score, runs: Runs, rows: Ints) -> Ints:
        tokens = np.cumsum(runs.starts[rows + 1] - runs.starts[rows])
        total = int(tokens[-1]) if len(tokens) else 0
        cuts = np.arange(self._codec.slice_tokens, total, self._codec.slice_tokens)
        found = []
        for part in np.split(rows, np.unique(np.searchsorted(tokens, cuts))):
            if not self._wanted()[number]:
                raise _Unwanted
            found.append(score(runs, part))
        return np.concatenate([np.empty(0, np.int64), *found])

    def _first(self, scored: _Scored, count: int) -> Ints:
        """Places of the first `count` by (score descending, id ascending), in that order."""
        scores = scored.scores
        places = np.arange(len(scores))
        if count < len(scores):
            least = np.partition(scores, len(scores) - count)[len(scores) - count]
            places = np.flatnonzero(scores >= least)
        order = places[np.argsort(-scores[places], kind="stable")]

        def key(place: int) -> bytes:
            source = self.sources[int(scored.sources[place])]
            return source.table.id(int(scored.documents[place]))

        # Ids are read where scores tie alone.
        edges = [0, *(np.flatnonzero(np.diff(scores[order])) + 1).tolist(), len(order)]
        for begin, end in pairwise(edges):
            if end - begin > 1:
                order[begin:end] = sorted(order[begin:end].tolist(), key=key)
        return order[:count]


def _fold(source: int, documents: Ints, rows: Ints, scores: Ints) -> _Scored:
    """Scores of passages to those of documents with tokens.

    Args:
        source: its number.
        documents: [n] int64.
        rows: [n] int64, 1 or more, passages of each.
        scores: [passages of all] int64; the least int64 for one without tokens.
    """
    if not len(documents):
        none = np.empty(0, np.int64)
        return _Scored(none, none, none, none)
    begins = np.cumsum(rows) - rows
    best = np.maximum.reduceat(scores, begins)
    # The first passage that reaches its document's best.
    at_best = np.flatnonzero(scores == np.repeat(best, rows))
    passages = at_best[np.searchsorted(at_best, begins)] - begins
    kept = best > np.iinfo(np.int64).min
    return _Scored(
        np.full(int(kept.sum()), source, np.int64), documents[kept], best[kept], passages[kept]
    )


def _hits(sources: Sequence[TokenSource], found: Sequence[_Scored], unit: float) -> Hits:
    none = np.empty(0, np.int64)
    owners = np.concatenate([none, *(part.sources for part in found)])
    documents = np.concatenate([none, *(part.documents for part in found)])
    ids, id_lengths = _ids(sources, owners, documents)
    sequences = np.empty(len(documents), np.uint64)
    for number, source in enumerate(sources):
        mine = owners == number
        sequences[mine] = source.table.sequences[documents[mine]]
    return Hits(
        counts=np.array([len(part.scores) for part in found], dtype=np.int64),
        ids=ids,
        id_lengths=id_lengths.astype(np.uint32),
        scores=np.concatenate([none, *(part.scores for part in found)]) * unit,
        sequences=sequences,
        passages=np.concatenate([none, *(part.passages for part in found)]).astype(np.uint32),
    )


def _ids(sources: Sequence[TokenSource], owners: Ints, documents: Ints) -> tuple[bytes, Ints]:
    """Ids one after the other, and their lengths.

    Args:
        sources: the parts of the view.
        owners: [n], the source of each document.
        documents: [n], its number there.
    """
    lengths = np.empty(len(documents), np.int64)
    begins = np.empty(len(documents), np.int64)
    places = [np.flatnonzero(owners == number) for number in range(len(sources))]
    for source, mine in zip(sources, places, strict=True):
        begins[mine] = source.table.id_starts[documents[mine]]
        lengths[mine] = source.table.id_starts[documents[mine] + 1] - begins[mine]
    ends = np.cumsum(lengths)
    ids = np.empty(int(lengths.sum()), np.uint8)
    for source, mine in zip(sources, places, strict=True):
        read = ranges(begins[mine], begins[mine] + lengths[mine])
        ids[ranges(ends[mine] - lengths[mine], ends[mine])] = source.table.ids[read]
    return ids.tobytes(), lengths
