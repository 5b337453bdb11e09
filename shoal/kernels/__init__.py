"""Scoring kernels: compiled where a compiler was at hand when Shoal was installed.

`portable` holds the same functions in NumPy, which define every bit of what comes
out; `COMPILED` says which ones serve.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from shoal.kernels import portable
from shoal.kernels.hits import Hits, Ints, Merged, Part
from shoal.kernels.sources import Documents
from shoal.types import Float32Matrix, Float64Vector, Similarity

try:
    from shoal.kernels import _native
except ImportError:
    COMPILED = False
else:
    COMPILED = True

__all__ = ["COMPILED", "Hits", "Merged", "Part", "encode_hits", "merge", "rank", "squares"]

_CODES = {Similarity.COSINE: 0, Similarity.DOT: 1, Similarity.L2: 2}


def squares(vectors: Float32Matrix) -> Float64Vector:
    """fold(x²) of each row; see `shoal.kernels.exact`.

    Args:
        vectors: [rows, dim] float32, C order.

    Returns:
        [rows] float64; zero exactly where the row is zero.
    """
    return _native.squares(vectors) if COMPILED else portable.squares(vectors)


def rank(
    similarity: Similarity,
    queries: Float32Matrix,
    query_squares: Float64Vector,
    proposals: Ints,
    top_k: Ints,
    documents: Documents,
    live: NDArray[np.uint8] | None,
) -> Hits:
    """Scores proposed rows exactly, folds them into documents, orders and cuts.

    Args:
        similarity: how vectors compare; see `shoal.kernels.exact.scores`.
        queries: [queries, dim] float32, C order.
        query_squares: [queries] float64, `squares(queries)`; read by cosine only.
        proposals: [queries, any] int64, row numbers without repeats; -1 is none.
        top_k: [queries] int64, documents wanted, 1 or more.
        documents: what the rows belong to.
        live: bit i & 7 of byte i >> 3 says that row i counts; None if all do.

    Returns:
        Per query its best documents by (score descending, id ascending), each with
        its best row, the first of equals.
    """
    if not COMPILED:
        return portable.rank(similarity, queries, query_squares, proposals, top_k, documents, live)
    return Hits(
        *_native.rank(
            _CODES[similarity],
            queries,
            query_squares,
            proposals,
            top_k,
            documents.vectors,
            documents.squares,
            documents.row_documents,
            documents.row_starts,
            documents.ids,
            documents.id_starts,
            documents.sequences,
            live,
        )
    )


def merge(parts: Sequence[Part], top_k: Ints) -> Merged:
    """Merges the hits of many places, removes repeated ids, cuts.

    The union of the places' top K contains the top K of the union, whatever the split.

    Args:
        parts: what each place answered, in any order.
        top_k: [n] int64, documents wanted by each query.

    Returns:
        Per query the best hits by (score descending, id ascending), an id once; of hits
        equal in both, the one of the earlier part.
    """
    if not COMPILED:
        return portable.merge(parts, top_k)
    columns, numbers = _native.merge(
        [
            (
                part.number,
                part.rows,
                part.hits.counts,
                part.hits.ids,
                part.hits.id_lengths,
                part.hits.scores,
                part.hits.sequences,
                part.hits.passages,
            )
            for part in parts
        ],
        top_k,
    )
    hits = Hits(*columns)
    offsets = np.zeros(len(top_k) + 1, dtype=np.int64)
    np.cumsum(hits.counts, out=offsets[1:])
    return Merged(hits, numbers, offsets)


def encode_hits(merged: Merged, field: int) -> list[bytes]:
    """Per query, its hits as the protobuf bytes of `repeated Hit`, field number `field`.

    A repeated message costs a Python call per field of every hit. What comes out is to
    be followed by the rest of a message: messages merge when their bytes are joined.
    """
    if not COMPILED:
        return portable.encode_hits(merged, field)
    hits = merged.hits
    return _native.encode(
        hits.counts,
        hits.ids,
        hits.id_lengths,
        hits.scores,
        hits.passages,
        merged.numbers,
        field,
    )
