"""Late-interaction search of one part of a generation: gather by centroids, refine by codes.

What is refined must not depend on how documents are spread over shards: it is the first B of the
whole generation by (centroid score descending, id ascending). A shard refines its own first B,
which hold every one of those that it has, and returns them all, uncut: see
`router.core.superset` for the cuts. Source: DESIGN, section 10.

The centroid score of a document is MaxSim over its tokens' centroids alone, where a centroid that
a query token does not probe counts as the first one that it does not (imputation as in Scheerer
et al., WARP (2025), but by rank, which depends on the query and the codec only).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from shoal.kernels import maxsim
from shoal.kernels.maxsim import WORDS, CodedRuns, Tables

Ints = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Effort:
    """How much of a generation a query looks at.

    Attributes:
        probes: centroids of each query token that count by their own similarity, 1 or more.
        refined: B, documents of the whole generation that are scored by their codes.
    """

    probes: int
    refined: int


@dataclass(frozen=True, slots=True)
class Refined:
    """Documents that a shard refined, by (centroid score descending, id ascending).

    Attributes:
        documents: int64, their numbers.
        centroid_scores: int64.
        scores: int64, by the full codes.
    """

    documents: Ints
    centroid_scores: Ints
    scores: Ints


def probed(query: Tables, probes: int) -> Tables:
    """Tables without residuals in which a query token sees the centroids that it probes.

    Ties at the last probe are all probed: which centroids count depends on similarities alone.

    Args:
        query: a query's tables.
        probes: centroids per query token, 1 or more.
    """
    centroids = query.centroids
    blocks, _, count, lanes = centroids.shape
    if probes < count:
        # The best that is not probed stands for all that are not.
        imputed = np.partition(centroids, count - probes - 1, axis=2)[:, :, count - probes - 1]
        centroids = np.maximum(centroids, imputed[:, :, np.newaxis])
    return Tables(query.count, centroids, np.empty((blocks, 0, WORDS, lanes), np.int16))


def search(query: Tables, runs: CodedRuns, ids: list[bytes], live: Ints, effort: Effort) -> Refined:
    """Refines the first B live documents of one part.

    Args:
        query: a query's tables.
        runs: the tokens of all documents of the part.
        ids: of all documents of the part.
        live: numbers of those that count; documents without tokens never do.
        effort: how many centroids and documents count.
    """
    live = live[runs.offsets[live + 1] > runs.offsets[live]]
    no_words = np.empty((len(runs.ids), 0), np.uint8)
    by_centroids = CodedRuns(runs.ids, no_words, runs.offsets)
    coarse = maxsim.score_coded(probed(query, effort.probes), by_centroids, live)
    chosen = first(coarse, [ids[number] for number in live.tolist()], effort.refined)
    scores = maxsim.score_coded(query, runs, live[chosen])
    return Refined(live[chosen], coarse[chosen], scores)


def first(scores: Ints, ids: list[bytes], count: int) -> Ints:
    """Places of the first `count` by (score descending, id ascending), in that order."""
    places = np.arange(len(scores))
    if count < len(scores):
        least = np.partition(scores, len(scores) - count)[len(scores) - count]
        places = np.flatnonzero(scores >= least)
    ordered = sorted(places.tolist(), key=lambda place: (-scores[place], ids[place]))
    return np.array(ordered[:count], dtype=np.int64)
