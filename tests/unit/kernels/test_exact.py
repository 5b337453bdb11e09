"""The scores' bits: against the oracle, and independent of company, order and layout."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from shoal.kernels import exact
from shoal.types import Similarity

numbers = st.floats(width=32, allow_nan=False, allow_infinity=False)


@st.composite
def pairs(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray]:
    dim, count = draw(st.integers(1, 70)), draw(st.integers(1, 5))
    shape = (count, dim)
    ordinary = st.sampled_from([0.0, -0.0, 1.0, -1.5, 0.1, 3.7e-5, 1e30, -1e-42]) | numbers
    queries = draw(arrays(np.float32, shape, elements=ordinary))
    rows = draw(arrays(np.float32, shape, elements=ordinary))
    return queries, rows


def bits(values: object) -> list[int]:
    return np.asarray(values, dtype=np.float64).view(np.uint64).tolist()


def score(similarity: Similarity, queries: np.ndarray, rows: np.ndarray) -> np.ndarray:
    return exact.scores(similarity, queries, rows, exact.squares(queries), exact.squares(rows))


@pytest.mark.parametrize("similarity", Similarity)
@given(pairs())
def test_the_kernel_gives_the_oracles_bits(
    similarity: Similarity, given_pairs: tuple[np.ndarray, np.ndarray]
) -> None:
    queries, rows = given_pairs
    if similarity is Similarity.COSINE:
        alive = queries.any(axis=1) & rows.any(axis=1)
        queries, rows = queries[alive], rows[alive]
    expected = [exact.reference(similarity, q, x) for q, x in zip(queries, rows, strict=True)]
    assert bits(score(similarity, queries, rows)) == bits(expected)


@pytest.mark.parametrize("similarity", Similarity)
@pytest.mark.parametrize("dim", [1, 2, 3, 33, 384, 1000])
def test_bits_do_not_depend_on_company_order_or_layout(similarity: Similarity, dim: int) -> None:
    rng = np.random.default_rng(dim)
    count = 2 * exact._BLOCK_ELEMENTS // dim % 997 + 700
    queries = rng.standard_normal((count, dim)).astype(np.float32)
    rows = rng.standard_normal((count, dim)).astype(np.float32)
    together = score(similarity, queries, rows)
    order = rng.permutation(count)
    assert bits(score(similarity, queries[order], rows[order])) == bits(together[order])
    fortran = score(similarity, np.asfortranarray(queries), np.asfortranarray(rows))
    assert bits(fortran) == bits(together)
    wide = np.zeros((count, 2 * dim), dtype=np.float32)
    wide[:, ::2] = rows
    assert bits(score(similarity, queries, wide[:, ::2])) == bits(together)
    for number in range(0, count, 97):
        alone = score(similarity, queries[number : number + 1], rows[number : number + 1])
        assert bits(alone) == bits(together[number : number + 1])


def test_a_zero_score_has_one_bit_pattern() -> None:
    query = np.array([[-0.0, 1.0]], dtype=np.float32)
    row = np.array([[1.0, -0.0]], dtype=np.float32)
    assert bits(score(Similarity.DOT, query, row)) == [0]
    assert bits(score(Similarity.L2, query, query)) == [0]


def test_squares_are_zero_for_the_zero_vector_alone() -> None:
    tiny = np.float32(1e-45)
    assert exact.squares(np.array([[0.0, -0.0], [tiny, 0.0]], dtype=np.float32)).tolist() == [
        0.0,
        float(tiny) ** 2,
    ]


@pytest.mark.parametrize("similarity", Similarity)
@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e12])
def test_float32_engines_stay_within_the_error_bound(similarity: Similarity, scale: float) -> None:
    rng = np.random.default_rng(7)
    queries = (scale * rng.standard_normal((300, 193))).astype(np.float32)
    rows = (queries + scale * rng.standard_normal((300, 193)) * 1e-3).astype(np.float32)
    squares = exact.squares(rows)
    bound = exact.engine_error(
        similarity, 193, np.sqrt(exact.squares(queries)), float(np.sqrt(squares.max()))
    )
    truth = score(similarity, queries, rows)
    if similarity is Similarity.COSINE:
        queries = (queries / np.sqrt(exact.squares(queries))[:, None]).astype(np.float32)
        rows = (rows / np.sqrt(squares)[:, None]).astype(np.float32)
    for order in (slice(None), rng.permutation(193)):
        q, x = queries[:, order], rows[:, order]
        with np.errstate(under="ignore"):
            products = q * x if similarity is not Similarity.L2 else -((q - x) * (q - x))
            sums = np.cumsum(products, axis=1, dtype=np.float32)[:, -1]
            if similarity is Similarity.L2:
                dot = np.cumsum(q * x, axis=1, dtype=np.float32)[:, -1]
                norms = [np.cumsum(v * v, axis=1, dtype=np.float32)[:, -1] for v in (q, x)]
                expanded = np.float32(2) * dot - (norms[0] + norms[1])
                assert (np.abs(expanded.astype(np.float64) - truth) <= bound).all()
        assert (np.abs(sums.astype(np.float64) - truth) <= bound).all()


def test_the_bound_is_infinite_where_float32_overflows() -> None:
    norms = np.array([1e10, 1e30])
    assert np.isinf(exact.engine_error(Similarity.DOT, 4, norms, 1e20)).tolist() == [False, True]
    assert np.isinf(exact.engine_error(Similarity.L2, 4, norms, 1.0)).tolist() == [False, True]
    assert not np.isinf(exact.engine_error(Similarity.COSINE, 4, norms, 1e30)).any()
