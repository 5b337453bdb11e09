from typing import Any

import numpy as np
from numpy.typing import NDArray

_Columns = tuple[
    NDArray[np.int64],
    bytes,
    NDArray[np.uint32],
    NDArray[np.float64],
    NDArray[np.uint64],
    NDArray[np.uint32],
]

def squares(vectors: NDArray[np.float32]) -> NDArray[np.float64]: ...
def rank(
    similarity: int,
    queries: NDArray[np.float32],
    query_squares: NDArray[np.float64],
    proposals: NDArray[np.int64],
    top_k: NDArray[np.int64],
    vectors: NDArray[np.float32],
    row_squares: NDArray[np.float64],
    row_documents: NDArray[np.int32],
    row_starts: NDArray[np.int64],
    ids: NDArray[np.uint8],
    id_starts: NDArray[np.int64],
    sequences: NDArray[np.uint64],
    live: NDArray[np.uint8] | None,
) -> _Columns: ...
def merge(
    parts: list[tuple[Any, ...]], top_k: NDArray[np.int64]
) -> tuple[_Columns, NDArray[np.int64]]: ...
def encode(
    counts: NDArray[np.int64],
    ids: bytes,
    id_lengths: NDArray[np.uint32],
    scores: NDArray[np.float64],
    passages: NDArray[np.uint32],
    numbers: NDArray[np.int64],
    field: int,
) -> list[bytes]: ...
def maxsim_paths() -> tuple[str, ...]: ...
def tables(
    vectors: NDArray[np.int16], rows: NDArray[np.int16], factor: int, path: str
) -> NDArray[np.int16]: ...
def floored(table: NDArray[np.int16], kept: int, path: str) -> NDArray[np.int16]: ...
def nearest(
    vectors: NDArray[np.int16], rows: NDArray[np.int16], path: str
) -> NDArray[np.uint16]: ...
def score_coded(
    centroids: NDArray[np.int16],
    words: NDArray[np.int16],
    ids: NDArray[np.uint16],
    codes: NDArray[np.uint8],
    offsets: NDArray[np.int64],
    documents: NDArray[np.int64],
    queries: int,
    path: str,
    norms: NDArray[np.uint8] | None,
) -> NDArray[np.int64]: ...
def match_coded(
    centroids: NDArray[np.int16],
    words: NDArray[np.int16],
    ids: NDArray[np.uint16],
    codes: NDArray[np.uint8],
    offsets: NDArray[np.int64],
    documents: NDArray[np.int64],
    queries: int,
    path: str,
    norms: NDArray[np.uint8] | None,
) -> tuple[NDArray[np.int32], NDArray[np.int32]]: ...
def score_rows(
    queries: NDArray[np.int16],
    rows: NDArray[np.int16],
    offsets: NDArray[np.int64],
    documents: NDArray[np.int64],
    path: str,
) -> NDArray[np.int64]: ...
def match_rows(
    queries: NDArray[np.int16],
    rows: NDArray[np.int16],
    offsets: NDArray[np.int64],
    documents: NDArray[np.int64],
    path: str,
) -> tuple[NDArray[np.int32], NDArray[np.int32]]: ...
