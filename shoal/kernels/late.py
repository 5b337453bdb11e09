"""MaxSim over product-quantised tokens, in integers.

A token is the id of a centroid and M residual words of 8 bits; its similarity to query token q is
the integer S[q, id] + sum over j of T[q][j][word_j] (DESIGN, section 10). A document's score is
the sum, over the query's tokens, of the largest similarity among the document's tokens.
Source: Khattab and Zaharia, ColBERT (SIGIR 2020), section 3.3; product quantisation: Jegou, Douze
and Schmid (2011).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

LANES = 32
"""Query tokens that one vector instruction takes; tables come in blocks of so many."""
WORDS = 256
LARGEST = 32_767
"""A similarity's bound: with |S| + sum of |T_j| within it, no partial sum leaves 16 bits."""
NO_TOKENS = -(1 << 63)
"""The score of a document without tokens: below every other."""


@dataclass(frozen=True, slots=True)
class QueryTables:
    """A query's similarities, as the kernel reads them.

    Attributes:
        centroids: int16[blocks, centroids, LANES].
        residuals: int16[blocks, M, WORDS, LANES].
        tokens: query tokens, 1 or more; lanes beyond them hold anything.
    """

    centroids: NDArray[np.int16]
    residuals: NDArray[np.int16]
    tokens: int


def query_tables(centroids: NDArray[np.int16], residuals: NDArray[np.int16]) -> QueryTables:
    """Lays similarities out for the kernel.

    Args:
        centroids: int16[tokens, centroids], S.
        residuals: int16[tokens, M, WORDS], T.

    Raises:
        ValueError: no tokens, other shapes, or sums that might leave 16 bits: the largest
            |S[q, c]| + sum over j of the largest |T[q][j][w]| is above LARGEST for some q.
    """
    tokens, count = centroids.shape
    if tokens < 1 or residuals.shape[0] != tokens or residuals.shape[2] != WORDS:
        raise ValueError(f"tables of shapes {centroids.shape} and {residuals.shape} do not fit")
    # Every partial sum of one similarity is within this bound, in any order of addition.
    bound = np.abs(centroids.astype(np.int64)).max(axis=1)
    bound += np.abs(residuals.astype(np.int64)).max(axis=2).sum(axis=1)
    if bound.max() > LARGEST:
        raise ValueError(f"similarities up to {bound.max()} do not fit 16 bits")
    blocks = -(-tokens // LANES)
    lanes = np.zeros((blocks * LANES, count), np.int16)
    lanes[:tokens] = centroids
    words = np.zeros((blocks * LANES, *residuals.shape[1:]), np.int16)
    words[:tokens] = residuals
    return QueryTables(
        np.ascontiguousarray(lanes.reshape(blocks, LANES, count).transpose(0, 2, 1)),
        np.ascontiguousarray(
            words.reshape(blocks, LANES, *residuals.shape[1:]).transpose(0, 2, 3, 1)
        ),
        tokens,
    )


@dataclass(frozen=True, slots=True)
class TokenCodes:
    """The tokens of documents, one document after the other.

    Attributes:
        centroids: uint32[tokens], C order.
        words: uint8[tokens, M], C order.
        starts: int64[documents + 1]; the tokens of document i are starts[i]:starts[i + 1].
    """

    centroids: NDArray[np.uint32]
    words: NDArray[np.uint8]
    starts: NDArray[np.int64]

    def check(self, centroid_count: int) -> None:
        """Once for columns that are read from somewhere: kernels trust them.

        Raises:
            ValueError: they do not fit together, or name a centroid that there is not.
        """
        tokens = len(self.centroids)
        if len(self.words) != tokens or not len(self.starts):
            raise ValueError("columns of different lengths")
        if self.starts[0] != 0 or self.starts[-1] != tokens or (np.diff(self.starts) < 0).any():
            raise ValueError("starts do not ascend from the first token to the last")
        if tokens and int(self.centroids.max()) >= centroid_count:
            raise ValueError(f"a token's centroid is not below {centroid_count}")


def similarities(query: QueryTables, codes: TokenCodes, document: int) -> NDArray[np.int32]:
    """int32[document tokens, query tokens]: every similarity, for explanations."""
    of = slice(int(codes.starts[document]), int(codes.starts[document + 1]))
    found = query.centroids[:, codes.centroids[of]].astype(np.int32)
    for subspace in range(codes.words.shape[1]):
        found += query.residuals[:, subspace, codes.words[of, subspace]]
    blocks, tokens, _ = found.shape
    lanes: NDArray[np.int32] = found.transpose(1, 0, 2).reshape(tokens, blocks * LANES)
    return lanes[:, : query.tokens]


def maxsim(
    query: QueryTables, codes: TokenCodes, documents: NDArray[np.int64]
) -> NDArray[np.int64]:
    """See `shoal.kernels.maxsim`."""
    scores = np.full(len(documents), NO_TOKENS, np.int64)
    for place, document in enumerate(documents.tolist()):
        found = similarities(query, codes, document)
        if len(found):
            scores[place] = found.max(axis=0).sum(dtype=np.int64)
    return scores
