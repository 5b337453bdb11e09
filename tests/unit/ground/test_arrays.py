"""Packed matrices: what arrives is what was sent, or an error."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from shoal.errors import DimensionMismatch, LimitExceeded, MalformedMessage, NonFiniteVector
from shoal.rpc.common.v1 import common_pb2
from shoal.types import Coverage, MissingShard
from shoal.wire.arrays import (
    check_limit,
    column,
    matrix_from_message,
    matrix_to_message,
    pack_column,
    split_ids,
    vectors_from_message,
)

ELEMENTS = st.sampled_from(["<f8", "<f4", "<f2", "<i2", "i1"])


@given(
    ELEMENTS.flatmap(
        lambda d: hnp.arrays(d, hnp.array_shapes(min_dims=2, max_dims=2, min_side=0, max_side=5))
    )
)
def test_matrix_round_trip(array: np.ndarray) -> None:
    back = matrix_from_message(matrix_to_message(array))
    assert back.dtype == array.dtype
    assert back.shape == array.shape
    assert back.tobytes() == array.tobytes()


def test_big_endian_is_turned() -> None:
    array = np.arange(6, dtype=">f4").reshape(2, 3)
    assert np.array_equal(matrix_from_message(matrix_to_message(array)), array)


@given(st.integers(0, 9), st.integers(0, 9), st.binary(max_size=64))
def test_wrong_length_is_refused(rows: int, columns: int, data: bytes) -> None:
    message = common_pb2.Matrix(
        element_type=common_pb2.ELEMENT_TYPE_F32, rows=rows, columns=columns, data=data
    )
    if len(data) == 4 * rows * columns:
        assert matrix_from_message(message).shape == (rows, columns)
    else:
        with pytest.raises(MalformedMessage):
            matrix_from_message(message)


def test_element_type_is_required() -> None:
    with pytest.raises(MalformedMessage):
        matrix_from_message(common_pb2.Matrix())


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_non_finite_is_refused(bad: float) -> None:
    vectors = np.ones((3, 4), np.float32)
    vectors[1, 2] = bad
    with pytest.raises(NonFiniteVector) as caught:
        vectors_from_message(matrix_to_message(vectors), 4)
    assert caught.value.metadata["row"] == "1"


def test_beyond_float32_is_refused() -> None:
    with pytest.raises(NonFiniteVector):
        vectors_from_message(matrix_to_message(np.full((1, 2), 1e300)), 2)


def test_wrong_dim_and_type_are_refused() -> None:
    with pytest.raises(DimensionMismatch):
        vectors_from_message(matrix_to_message(np.ones((1, 3), np.float32)), 4)
    with pytest.raises(MalformedMessage):
        vectors_from_message(matrix_to_message(np.ones((1, 3), np.int16)), 3)


@given(st.lists(st.binary(max_size=6), max_size=8))
def test_ids_split(ids: list[bytes]) -> None:
    lengths = column(pack_column([len(i) for i in ids], "<u4"), "<u4", len(ids), "id_lengths")
    assert split_ids(b"".join(ids), lengths) == ids
    with pytest.raises(MalformedMessage):
        split_ids(b"".join(ids) + b"x", lengths)


def test_column_of_another_length_is_refused() -> None:
    with pytest.raises(MalformedMessage, match="scores"):
        column(b"1234", "<f8", 1, "scores")


def test_limit_names_itself() -> None:
    check_limit("max_batch", 3, 3)
    with pytest.raises(LimitExceeded) as caught:
        check_limit("max_batch", 4, 3)
    assert caught.value.metadata == {"limit": "max_batch", "allowed": "3", "given": "4"}


def test_coverage_is_whole_only_when_all_answered() -> None:
    assert Coverage(0, 0, 2, 2).ratio == 1.0
    assert Coverage(10, 10, 2, 1, (MissingShard(1, "SHARD_UNAVAILABLE"),)).ratio < 1.0
    assert Coverage(0, 0, 2, 1, (MissingShard(1, "SHARD_UNAVAILABLE"),)).ratio == 0.5
