"""Packed matrices and columns: bytes on the wire, NumPy arrays here, no copy on receipt."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shoal.errors import DimensionMismatch, LimitExceeded, MalformedMessage, NonFiniteVector
from shoal.rpc.common.v1 import common_pb2
from shoal.types import Float32Matrix

_DTYPES: dict[int, np.dtype[Any]] = {
    common_pb2.ELEMENT_TYPE_F64: np.dtype("<f8"),
    common_pb2.ELEMENT_TYPE_F32: np.dtype("<f4"),
    common_pb2.ELEMENT_TYPE_F16: np.dtype("<f2"),
    common_pb2.ELEMENT_TYPE_I16: np.dtype("<i2"),
    common_pb2.ELEMENT_TYPE_I8: np.dtype("i1"),
    common_pb2.ELEMENT_TYPE_U8: np.dtype("u1"),
}
_ELEMENT_TYPES: dict[np.dtype[Any], Any] = {
    dtype: element_type for element_type, dtype in _DTYPES.items()
}


def matrix_to_message(array: NDArray[Any]) -> common_pb2.Matrix:
    """Packs a 2-D array (float64, float32, float16, int16, int8 or uint8)."""
    if array.ndim != 2:
        raise ValueError(f"a matrix has 2 dimensions, this has {array.ndim}")
    dtype = array.dtype.newbyteorder("<")
    return common_pb2.Matrix(
        element_type=_ELEMENT_TYPES[dtype],
        rows=array.shape[0],
        columns=array.shape[1],
        data=np.ascontiguousarray(array, dtype=dtype).tobytes(),
    )


def matrix_from_message(message: common_pb2.Matrix) -> NDArray[Any]:
    """Views the message's bytes as a read-only [rows, columns] array.

    Raises:
        MalformedMessage: no element type, or the length is not rows x columns.
    """
    dtype = _DTYPES.get(message.element_type)
    if dtype is None:
        raise MalformedMessage("the matrix has no element type; set F64, F32, F16, I16, I8 or U8")
    expected = message.rows * message.columns * dtype.itemsize
    if len(message.data) != expected:
        raise MalformedMessage(
            f"a matrix of {message.rows} x {message.columns} {dtype.name} takes {expected} "
            f"bytes, {len(message.data)} were sent"
        )
    matrix: NDArray[Any] = np.frombuffer(message.data, dtype)
    return matrix.reshape(message.rows, message.columns)


def vectors_from_message(message: common_pb2.Matrix, dim: int) -> Float32Matrix:
    """The message's rows as float32 vectors of `dim` finite columns.

    Float32 arrives as a read-only view; float64 and float16 are rounded once.

    Raises:
        MalformedMessage: not a floating-point matrix, or a wrong length.
        DimensionMismatch: columns is not dim.
        NonFiniteVector: NaN, infinity, or a float64 beyond float32's range.
    """
    array = matrix_from_message(message)
    if array.dtype.kind != "f":
        raise MalformedMessage(f"vectors are F64, F32 or F16, not {array.dtype.name}")
    if array.shape[1] != dim:
        raise DimensionMismatch(
            f"the vector has {array.shape[1]} columns, the collection has {dim}",
            expected=dim,
            given=array.shape[1],
        )
    with np.errstate(over="ignore"):
        vectors: Float32Matrix = array.astype(np.float32, copy=False)
    if not np.isfinite(vectors).all():
        row = int(np.flatnonzero(~np.isfinite(vectors).all(axis=1))[0])
        raise NonFiniteVector(f"vector {row} holds NaN or infinity", row=row)
    return vectors


def pack_column(values: NDArray[Any] | Sequence[int], dtype: str) -> bytes:
    """A column of numbers as little-endian bytes; dtype is "<u4", "<u8" or "<f8"."""
    return np.asarray(values, dtype=dtype).tobytes()


def column(data: bytes, dtype: str, length: int, name: str) -> NDArray[Any]:
    """Views a packed column as a read-only array of `length` numbers.

    Raises:
        MalformedMessage: it has another length.
    """
    expected = length * np.dtype(dtype).itemsize
    if len(data) != expected:
        raise MalformedMessage(f"{name} takes {expected} bytes, {len(data)} were sent")
    return np.frombuffer(data, dtype)


def split_ids(ids: bytes, lengths: NDArray[Any]) -> list[bytes]:
    """Cuts concatenated ids apart.

    Raises:
        MalformedMessage: the lengths do not add up to the bytes.
    """
    ends = np.cumsum(lengths, dtype=np.int64)
    if (int(ends[-1]) if len(ends) else 0) != len(ids):
        raise MalformedMessage("the ids' lengths do not add up to their bytes")
    starts = ends - lengths
    return [ids[start:end] for start, end in zip(starts.tolist(), ends.tolist(), strict=True)]


def check_limit(name: str, given: int, allowed: int) -> None:
    """Raises LimitExceeded, naming the limit, if given is above allowed."""
    if given > allowed:
        raise LimitExceeded(
            f"{given} is above the limit {name} = {allowed}; send less at a time",
            limit=name,
            allowed=allowed,
            given=given,
        )
