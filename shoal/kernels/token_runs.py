"""What the MaxSim kernels read and give: tables of a query, tokens by document, matches."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

WORDS = 256
"""Codes of one byte: what a token's code may stand for in each group of columns."""
NORM_LEAST, NORM_STEP = 12_288, 80
"""Factors of tokens, with 2^15 as 1: 0.375 to 0.9976 in 256 steps."""
LANES = 32
"""Tokens of a query that stand side by side in a table; longer queries take more blocks."""


@dataclass(frozen=True, slots=True)
class Tables:
    """A query's similarities with all that a code may stand for, in int16.

    In every lane |centroids| + sum over groups of max |words| must be <= 32,767.

    Attributes:
        count: tokens of the query; B = ceil(count / 32) blocks.
        centroids: [B, 1, centroids, 32] int16, C order.
        words: [B, groups, 256, 32] int16, C order; no groups score by centroids alone.
    """

    count: int
    centroids: NDArray[np.int16]
    words: NDArray[np.int16]


@dataclass(frozen=True, slots=True)
class CodedRuns:
    """Tokens as centroid and codes, document after document, all in C order.

    Attributes:
        ids: [tokens] uint16, below the number of centroids: kernels do not check it.
        codes: [tokens, groups] uint8.
        offsets: [documents + 1] int64, not falling: where each document begins.
        norms: [tokens] uint8; the similarities of token t are (sum · factor + 2^14) >> 15
            with factor = NORM_LEAST + NORM_STEP · norms[t]. None leaves the sums as they are.
    """

    ids: NDArray[np.uint16]
    codes: NDArray[np.uint8]
    offsets: NDArray[np.int64]
    norms: NDArray[np.uint8] | None = None


@dataclass(frozen=True, slots=True)
class RowRuns:
    """Tokens as vectors in fixed point, document after document, all in C order.

    Attributes:
        rows: [tokens, dim] int16.
        offsets: [documents + 1] int64, not falling: where each document begins.
    """

    rows: NDArray[np.int16]
    offsets: NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Matches:
    """For each document and each token of the query, the best token of the document.

    Attributes:
        tokens: [documents, query tokens] int32, counted within the document; the first of
            equals; -1 where the document has none.
        similarities: [documents, query tokens] int32.
    """

    tokens: NDArray[np.int32]
    similarities: NDArray[np.int32]
