"""MaxSim: every path and plain Python give the same integers."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shoal import kernels
from shoal.kernels import QueryTables, TokenCodes, late

CENTROIDS = 7


def plain(similarity: np.ndarray, words: np.ndarray, codes: TokenCodes, document: int) -> int:
    """[tokens, centroids] and [tokens, M, 256], one number at a time."""
    total = 0
    for query_token in range(len(similarity)):
        total += max(
            int(similarity[query_token, codes.centroids[token]])
            + sum(
                int(words[query_token, j, codes.words[token, j]])
                for j in range(codes.words.shape[1])
            )
            for token in range(codes.starts[document], codes.starts[document + 1])
        )
    return total


def codes_of(rng: np.random.Generator, lengths: list[int], subspaces: int) -> TokenCodes:
    tokens = sum(lengths)
    codes = TokenCodes(
        rng.integers(0, CENTROIDS, tokens).astype(np.uint32),
        rng.integers(0, 256, (tokens, subspaces)).astype(np.uint8),
        np.cumsum([0, *lengths]).astype(np.int64),
    )
    codes.check(CENTROIDS)
    return codes


def tables_of(
    rng: np.random.Generator, tokens: int, subspaces: int, *, extreme: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """Similarities; the extreme ones reach the bound on both sides."""
    most = late.LARGEST // (subspaces + 1)
    shapes = (tokens, CENTROIDS), (tokens, subspaces, 256)
    if extreme:
        centroids, residuals = (rng.choice([-most, most], shape) for shape in shapes)
    else:
        centroids, residuals = (rng.integers(-most, most + 1, shape) for shape in shapes)
    return centroids.astype(np.int16), residuals.astype(np.int16)


@pytest.mark.parametrize("path", kernels.MAXSIM_PATHS)
@settings(max_examples=40, deadline=None)
@given(
    st.integers(1, 70),
    st.lists(st.integers(0, 9), min_size=1, max_size=6),
    st.sampled_from([0, 1, 4, 8, 16]),
    st.booleans(),
    st.integers(0, 2**32),
)
def test_every_path_is_plain_python(
    path: str, tokens: int, lengths: list[int], subspaces: int, extreme: bool, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    codes = codes_of(rng, lengths, subspaces)
    centroids, residuals = tables_of(rng, tokens, subspaces, extreme=extreme)
    wanted = rng.permutation(len(lengths))
    found = kernels.maxsim(late.query_tables(centroids, residuals), codes, wanted, path)
    assert found.tolist() == [
        plain(centroids, residuals, codes, document) if lengths[document] else late.NO_TOKENS
        for document in wanted.tolist()
    ]


@pytest.mark.parametrize("tokens", [1, 31, 32, 33, 100])
@pytest.mark.parametrize("subspaces", [4, 8, 16, 32])
def test_paths_agree_on_long_documents(tokens: int, subspaces: int) -> None:
    rng = np.random.default_rng(tokens * subspaces)
    codes = codes_of(rng, [1, 10_000, 0, 300], subspaces)
    query = late.query_tables(*tables_of(rng, tokens, subspaces))
    wanted = np.array([3, 1, 0, 2, 1])
    found = [kernels.maxsim(query, codes, wanted, path) for path in kernels.MAXSIM_PATHS]
    assert all(each.tobytes() == found[0].tobytes() for each in found)
    assert found[0][3] == late.NO_TOKENS


def test_explanations_sum_to_the_score() -> None:
    rng = np.random.default_rng(3)
    codes = codes_of(rng, [40, 1], 8)
    query = late.query_tables(*tables_of(rng, 37, 8))
    matrix = late.similarities(query, codes, 0)
    assert matrix.shape == (40, 37)
    score = kernels.maxsim(query, codes, np.array([0]))[0]
    assert matrix.max(axis=0).sum() == score


def test_tables_that_might_overflow_are_refused() -> None:
    centroids = np.full((2, CENTROIDS), 16_384, np.int16)
    residuals = np.zeros((2, 1, 256), np.int16)
    residuals[1, 0, 5] = -16_383
    assert isinstance(late.query_tables(centroids, residuals), QueryTables)
    residuals[1, 0, 5] = -16_384
    with pytest.raises(ValueError, match="16 bits"):
        late.query_tables(centroids, residuals)
    with pytest.raises(ValueError, match="do not fit"):
        late.query_tables(centroids[:0], residuals[:0])


def test_codes_that_do_not_fit_are_refused() -> None:
    rng = np.random.default_rng(0)
    codes = codes_of(rng, [2, 3], 4)
    query = late.query_tables(*tables_of(rng, 5, 4))
    for wrong in (-1, 2):
        with pytest.raises(ValueError, match="there are 2 documents"):
            kernels.maxsim(query, codes, np.array([wrong]))
    with pytest.raises(ValueError, match="not below 3"):
        TokenCodes(np.array([3], np.uint32), codes.words[:1], np.array([0, 1])).check(3)
    for starts in ([0, 6], [1, 5], [0, 4, 2, 5]):
        with pytest.raises(ValueError, match="starts"):
            TokenCodes(codes.centroids, codes.words, np.array(starts)).check(CENTROIDS)
    if kernels.COMPILED:
        with pytest.raises(ValueError, match="different shapes"):
            kernels.maxsim(late.query_tables(*tables_of(rng, 5, 8)), codes, np.array([0]))
