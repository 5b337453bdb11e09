"""What a document version must be before it may be logged."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from shoal.errors import InvalidRequest, NonFiniteVector, ShoalError, ZeroVector
from shoal.ids import check_id, shard_of
from shoal.types import Float32Matrix, Similarity

_LONGEST_SQUARE = 1.01
"""Of a token vector of length 1 after its entries were rounded to float16."""


def bad_rows(
    vectors: Float32Matrix, similarity: Similarity
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Per row: it holds NaN or infinity; it has no direction where one is needed."""
    infinite: NDArray[np.bool_] = np.logical_not(np.isfinite(vectors).all(axis=1))
    zero: NDArray[np.bool_] = np.logical_not(vectors.any(axis=1))
    if similarity is not Similarity.COSINE:
        zero[:] = False
    return infinite, zero


def version_errors(
    ids: Sequence[str],
    row_starts: NDArray[np.int64],
    vectors: Float32Matrix,
    similarity: Similarity,
) -> list[ShoalError | None]:
    """Per document version: why it cannot be stored, or None.

    Args:
        ids: as the caller gave them.
        row_starts: [versions + 1], each version's rows in vectors.
        vectors: [rows, dim] float32.
        similarity: of the collection.
    """
    infinite, zero = bad_rows(vectors, similarity)
    errors: list[ShoalError | None] = []
    for number, document_id in enumerate(ids):
        rows = slice(int(row_starts[number]), int(row_starts[number + 1]))
        errors.append(_version_error(document_id, infinite[rows], zero[rows]))
    return errors


def token_errors(
    ids: Sequence[str], row_starts: NDArray[np.int64], vectors: NDArray[np.float16]
) -> list[ShoalError | None]:
    """Per document version of kind colbert: why it cannot be stored, or None.

    Args:
        ids: as the caller gave them.
        row_starts: [versions + 1], each version's rows in vectors.
        vectors: [tokens, dim] float16.
    """
    lengths = np.square(vectors.astype(np.float32)).sum(axis=1)
    infinite = np.logical_not(np.isfinite(lengths))
    long = lengths > _LONGEST_SQUARE
    errors: list[ShoalError | None] = []
    for number, document_id in enumerate(ids):
        rows = slice(int(row_starts[number]), int(row_starts[number + 1]))
        error = _version_error(document_id, infinite[rows], np.zeros(0, np.bool_))
        if error is None and long[rows].any():
            error = InvalidRequest(
                f"a token vector of document {document_id!r} is longer than 1", field="vectors"
            )
        errors.append(error)
    return errors


def _version_error(
    document_id: str, infinite: NDArray[np.bool_], zero: NDArray[np.bool_]
) -> ShoalError | None:
    try:
        check_id(document_id)
    except ShoalError as error:
        return error
    if infinite.any():
        return NonFiniteVector(f"a vector of document {document_id!r} holds NaN or infinity")
    if zero.any():
        return ZeroVector(f"a vector of document {document_id!r} is zero; cosine needs a direction")
    return None


def check_owner(ids: Sequence[bytes], shard: int, shard_count: int) -> None:
    """Raises InvalidRequest unless the shard owns every id."""
    for key in ids:
        owner = shard_of(key, shard_count)
        if owner != shard:
            raise InvalidRequest(
                f"document {key[:40]!r} belongs to shard {owner}, not to {shard}", field="key"
            )
