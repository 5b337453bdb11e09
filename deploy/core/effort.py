"""How hard a search of late interaction looks: chosen when a generation is built.

A search that refines B documents finds of the exhaustive ten best those that are among the first
B by centroid score, and puts them in the same places, for both use the same codes. So one list
of ranks gives the overlap of every B at once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

LEVELS = {"low": 0.95, "normal": 0.99, "high": 0.999}
"""overlap@10 with exhaustive search that each level is to reach."""
PROBES = (4, 16, 64)
"""Centroids of each query token that are tried."""
_MARGIN = 1.25
"""Documents refined beyond what the sample needed: other questions are other."""
_FULL_NS = {4: 2.9, 8: 5.0, 16: 10.0, 32: 24.0}
"""Time of one token's full similarities with 32 query tokens, by code bytes, measured with
`bench.maxsim` on one AVX-512 core ..."""
_COARSE_NS = 0.9
"""... and of its centroid's alone."""
_DOCUMENT_NS = 3_000.0
"""Time of one refined document besides its tokens', in the shard and the router."""


@dataclass(frozen=True, slots=True)
class Level:
    """One way to search.

    Attributes:
        name: "low", "normal" or "high".
        probes: centroids of each query token that count by their own similarity; 0 where
            every document is scored.
        refined: documents that are scored by their codes; 0 scores every one.
        recall: overlap@10 with exhaustive search, as measured on the sample.
    """

    name: str
    probes: int
    refined: int
    recall: float


def levels(
    ranks: Mapping[int, Sequence[Sequence[int]]], documents: int, tokens: int, code_bytes: int
) -> list[Level]:
    """The cheapest way to reach each level's overlap.

    Args:
        ranks: by number of probes, per question the ranks by centroid score, from 0, of its
            ten best documents by full score; a rank that is not known is `documents`.
        documents: of the collection.
        tokens: of the collection.
        code_bytes: of the codec.
    """
    return [
        _level(name, target, ranks, documents, tokens, code_bytes)
        for name, target in LEVELS.items()
    ]


def scan_from(documents: int, tokens: int, code_bytes: int) -> int:
    """Documents to be refined from which scoring every one is cheaper; of `levels`."""
    full = _FULL_NS[code_bytes]
    each = tokens / max(1, documents) * full + _DOCUMENT_NS
    return int(tokens * (full - _COARSE_NS) / each)


def _level(
    name: str,
    target: float,
    ranks: Mapping[int, Sequence[Sequence[int]]],
    documents: int,
    tokens: int,
    code_bytes: int,
) -> Level:
    best, most = Level(name, 0, 0, 1.0), scan_from(documents, tokens, code_bytes)
    for probes, questions in ranks.items():
        refined, recall = _least(questions, target)
        if 0 < refined < most:
            best, most = Level(name, probes, refined, recall), refined
    return best


def _least(questions: Sequence[Sequence[int]], target: float) -> tuple[int, float]:
    """The fewest refined documents that reach the target, with a margin, and their overlap;
    0 where there are no questions.
    """
    flat = sorted(rank for ranks in questions for rank in ranks)
    if not flat:
        return 0, 0.0
    needed = -(-int(target * len(flat) * 1_000_000) // 1_000_000)
    refined = int((flat[min(needed, len(flat)) - 1] + 1) * _MARGIN) + 1
    return refined, sum(rank < refined for rank in flat) / len(flat)
