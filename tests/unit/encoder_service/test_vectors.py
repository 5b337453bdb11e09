"""From pooled output to the stored vector."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from encoder_service.core.vectors import cosine_distance, finish


@given(st.integers(1, 9), st.integers(1, 40), st.integers(0, 2**32 - 1), st.booleans())
def test_a_row_depends_on_itself_alone(rows: int, dim: int, seed: int, normalize: bool) -> None:
    generator = np.random.default_rng(seed)
    pooled = generator.standard_normal((rows, dim)).astype(np.float32)
    columns = int(generator.integers(1, dim + 1))
    together = finish(pooled, columns, normalize)
    for row in range(rows):
        alone = finish(pooled[row : row + 1].copy(), columns, normalize)
        assert alone.tobytes() == together[row].tobytes()


def test_scaled_after_the_cut_and_rounded_once() -> None:
    pooled = np.array([[3.0, 4.0, 12.0], [0.0, 0.0, 0.0]], np.float32)
    np.testing.assert_array_equal(
        finish(pooled, 2, True), np.array([[0.6, 0.8], [0.0, 0.0]], np.float32)
    )
    np.testing.assert_array_equal(finish(pooled, 3, False), pooled)
    row = np.full((1, 3), 1e30, np.float32)
    np.testing.assert_allclose(finish(row, 3, True), 3**-0.5, rtol=1e-7)


def test_cosine_distance_is_the_largest_and_keeps_small_digits() -> None:
    one = np.array([[1.0, 0.0], [1.0, 0.0]], np.float32)
    other = np.array([[2.0, 0.0], [1.0, 1e-5]], np.float32)
    assert cosine_distance(one, other) == pytest.approx(5e-11, rel=1e-3)
    assert cosine_distance(one, one[:, ::-1]) == pytest.approx(1.0)
