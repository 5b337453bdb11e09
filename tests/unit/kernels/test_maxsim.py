"""MaxSim: every path of this processor against the NumPy oracle, and that against plain Python."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from shoal.kernels import maxsim
from shoal.kernels.maxsim import LANES, CodedRuns, RowRuns, Tables

every_path = pytest.mark.parametrize("path", maxsim.PATHS)
compiled = pytest.mark.parametrize("path", maxsim.PATHS[:-1])
LENGTHS = [1, 31, 32, 33, 100]


@every_path
@given(seed=st.integers(0, 2**32 - 1), count=st.integers(1, 80), data=st.data())
def test_below_the_kept_values_counts_as_the_last_of_them(
    path: str, seed: int, count: int, data: st.DataObject
) -> None:
    dice = np.random.default_rng(seed)
    widest = data.draw(st.sampled_from([1, 3, 32_767]))
    table = dice.integers(-widest - 1, widest, (2, 1, count, LANES), endpoint=True).astype(np.int16)
    kept = data.draw(st.integers(1, count))
    found = maxsim.floored(table, kept, path)
    for block, lane in ((0, 0), (1, 31), (1, 5)):
        values = table[block, 0, :, lane].tolist()
        least = sorted(values, reverse=True)[kept - 1]
        assert found[block, 0, :, lane].tolist() == [max(value, least) for value in values]
    with pytest.raises(ValueError, match="rows are kept"):
        maxsim.floored(table, count + 1, path)


@compiled
def test_a_table_of_65_536_rows_is_counted_without_overflow(path: str) -> None:
    table = np.zeros((1, 1, 65_536, LANES), np.int16)
    table[0, 0, :3] = 9
    assert (maxsim.floored(table, 65_536, path) == table).all()
    assert (maxsim.floored(table, 3, path) == 9).all()


def blocks(count: int) -> int:
    return -(-count // LANES)


def coded_case(
    seed: int, count: int, groups: int, lengths: list[int], centroids: int = 50
) -> tuple[Tables, CodedRuns]:
    """Tables that reach the limit of int16 in places, and few distinct values: many ties."""
    dice = np.random.default_rng(seed)
    share = 32_767 // (groups + 1)
    values = np.array([-share, -7, 0, 7, share], np.int16)
    tables = Tables(
        count,
        dice.choice(values, (blocks(count), 1, centroids, LANES)),
        dice.choice(values, (blocks(count), groups, 256, LANES)),
    )
    tokens = sum(lengths)
    runs = CodedRuns(
        dice.integers(0, centroids, tokens).astype(np.uint16),
        dice.integers(0, 256, (tokens, groups)).astype(np.uint8),
        np.cumsum([0, *lengths], dtype=np.int64),
        dice.integers(0, 256, tokens).astype(np.uint8) if seed % 2 else None,
    )
    return tables, runs


def row_case(seed: int, count: int, dim: int, lengths: list[int]) -> tuple[Any, RowRuns]:
    """Vectors as long as they may be: q·x reaches 2^30."""
    dice = np.random.default_rng(seed)

    def vectors(rows: int) -> NDArray[np.int16]:
        drawn = dice.standard_normal((rows, dim))
        drawn[::3] = np.eye(dim)[dice.integers(0, dim, len(drawn[::3]))]
        drawn *= 32_000 / np.linalg.norm(drawn, axis=1, keepdims=True)
        return np.rint(drawn).astype(np.int16)

    return vectors(count), RowRuns(vectors(sum(lengths)), np.cumsum([0, *lengths], dtype=np.int64))


def plain(case: tuple[Tables, CodedRuns], number: int) -> list[tuple[int, int]]:
    """(token, similarity) of each query token, one addition at a time."""
    tables, runs = case
    matches = []
    for query in range(tables.count):
        block, lane = divmod(query, LANES)
        best = (-1, -(1 << 15))
        begin = int(runs.offsets[number])
        for token in range(begin, int(runs.offsets[number + 1])):
            total = int(tables.centroids[block, 0, runs.ids[token], lane])
            for group, code in enumerate(runs.codes[token]):
                total += int(tables.words[block, group, code, lane])
            if runs.norms is not None:
                factor = 12_288 + 80 * int(runs.norms[token])
                total = (total * factor + 16_384) // 32_768
            if total > best[1]:
                best = (token - begin, total)
        matches.append(best)
    return matches


cases = st.tuples(
    st.integers(0, 2**32 - 1),
    st.sampled_from([*LENGTHS, 2, 64]),
    st.sampled_from([0, 1, 3, 4, 8, 16, 32]),
    st.lists(st.integers(0, 9), min_size=1, max_size=6),
)


@settings(max_examples=25, deadline=None)
@given(cases)
def test_the_oracle_is_the_definition(case) -> None:
    seed, count, groups, lengths = case
    tables, runs = coded_case(seed, count, groups, lengths)
    numbers = np.arange(len(lengths))
    matches = maxsim.match_coded(tables, runs, numbers, "numpy")
    found = [
        list(zip(tokens, values, strict=True))
        for tokens, values in zip(
            matches.tokens.tolist(), matches.similarities.tolist(), strict=True
        )
    ]
    expected = [plain((tables, runs), number) for number in range(len(lengths))]
    assert found == expected
    scores = maxsim.score_coded(tables, runs, numbers, "numpy")
    assert scores.tolist() == [sum(value for _, value in each) for each in expected]


@compiled
@settings(max_examples=40, deadline=None)
@given(cases, st.randoms(use_true_random=False))
def test_coded_documents_give_the_oracles_integers(path, case, dice) -> None:
    seed, count, groups, lengths = case
    tables, runs = coded_case(seed, count, groups, lengths)
    numbers = np.array([dice.randrange(len(lengths)) for _ in range(8)])
    scores = maxsim.score_coded(tables, runs, numbers, path)
    assert np.array_equal(scores, maxsim.score_coded(tables, runs, numbers, "numpy"))
    matches, expected = (maxsim.match_coded(tables, runs, numbers, at) for at in (path, "numpy"))
    assert np.array_equal(matches.tokens, expected.tokens)
    assert np.array_equal(matches.similarities, expected.similarities)
    assert np.array_equal(matches.similarities.sum(axis=1), scores)


@compiled
@settings(max_examples=40, deadline=None)
@given(
    st.integers(0, 2**32 - 1),
    st.sampled_from(LENGTHS),
    st.sampled_from([1, 2, 3, 8, 17, 96]),
    st.lists(st.integers(0, 9), min_size=1, max_size=6),
)
def test_fixed_point_documents_give_the_oracles_integers(path, seed, count, dim, lengths) -> None:
    query, runs = row_case(seed, count, dim, lengths)
    numbers = np.arange(len(lengths))[::-1].copy()
    scores = maxsim.score_rows(query, runs, numbers, path)
    assert np.array_equal(scores, maxsim.score_rows(query, runs, numbers, "numpy"))
    matches, expected = (maxsim.match_rows(query, runs, numbers, at) for at in (path, "numpy"))
    assert np.array_equal(matches.tokens, expected.tokens)
    assert np.array_equal(matches.similarities, expected.similarities)
    assert np.array_equal(matches.similarities.sum(axis=1, dtype=np.int64), scores)


@compiled
@settings(max_examples=40, deadline=None)
@given(
    st.integers(0, 2**32 - 1),
    st.sampled_from(LENGTHS),
    st.sampled_from([(1, 96), (4, 3), (3, 8), (2, 1)]),
    st.integers(1, 70),
)
def test_tables_and_nearest_rows_give_the_oracles_integers(path, seed, count, shape, rows) -> None:
    dice = np.random.default_rng(seed)
    groups, part = shape
    vectors = dice.integers(-1_000, 1_000, (count, groups * part)).astype(np.int16)
    words = dice.integers(-1_000, 1_000, (groups, rows, part)).astype(np.int16)
    words[:, rows // 2] = words[:, 0]
    made = maxsim.tables(vectors, words, 1_234_567, path)
    assert np.array_equal(made, maxsim.tables(vectors, words, 1_234_567, "numpy"))
    found = maxsim.nearest(vectors, words, path)
    assert np.array_equal(found, maxsim.nearest(vectors, words, "numpy"))


@every_path
def test_tables_round_half_up_and_leave_unused_lanes_zero(path) -> None:
    vectors = np.array([[3], [-3], [1]], np.int16)
    made = maxsim.tables(vectors, np.array([[[1]]], np.int16), 1 << 31, path)
    assert made.shape == (1, 1, 1, LANES)
    assert made[0, 0, 0, :4].tolist() == [2, -1, 1, 0]
    assert not made[0, 0, 0, 3:].any()


@every_path
def test_the_nearest_row_is_the_first_of_equals(path) -> None:
    rows = np.array([[[5], [-1], [1], [1]]], np.int16)
    found = maxsim.nearest(np.array([[0], [1], [4]], np.int16), rows, path)
    assert found[:, 0].tolist() == [1, 2, 0]


@compiled
def test_a_document_of_ten_thousand_tokens(path) -> None:
    tables, runs = coded_case(5, 33, 8, [1, 10_000, 0])
    numbers = np.array([2, 1, 0])
    scores = maxsim.score_coded(tables, runs, numbers, path)
    assert np.array_equal(scores, maxsim.score_coded(tables, runs, numbers, "numpy"))
    assert scores[0] == -33 * 32_768


@every_path
def test_nothing_to_score(path) -> None:
    tables, runs = coded_case(1, 3, 4, [2])
    none = np.empty(0, np.int64)
    assert maxsim.score_coded(tables, runs, none, path).shape == (0,)
    assert maxsim.match_coded(tables, runs, none, path).tokens.shape == (0, 3)
    query, rows = row_case(1, 3, 4, [2])
    assert maxsim.score_rows(query, rows, none, path).shape == (0,)


@every_path
def test_shapes_that_do_not_fit_are_refused(path) -> None:
    tables, runs = coded_case(1, 3, 4, [2, 1])
    number = np.array([0])
    beyond = CodedRuns(runs.ids, runs.codes, runs.offsets + 1)
    falling = CodedRuns(runs.ids, runs.codes, runs.offsets[::-1].copy())
    narrow = CodedRuns(runs.ids, runs.codes[:, :3].copy(), runs.offsets)
    short = CodedRuns(runs.ids, runs.codes[:2].copy(), runs.offsets)
    unscaled = CodedRuns(runs.ids, runs.codes, runs.offsets, np.zeros(2, np.uint8))
    query, rows = row_case(1, 3, 4, [2])
    refused: list[tuple[Any, ...]] = [
        (maxsim.score_coded, tables, runs, np.array([2])),
        (maxsim.score_coded, tables, runs, np.array([-1])),
        (maxsim.score_coded, tables, beyond, np.array([1])),
        (maxsim.score_coded, tables, falling, number),
        (maxsim.score_coded, tables, narrow, number),
        (maxsim.match_coded, tables, short, number),
        (maxsim.match_coded, tables, unscaled, number),
        (maxsim.score_coded, Tables(33, tables.centroids, tables.words), runs, number),
        (maxsim.score_rows, query[:, :3].copy(), rows, number),
        (maxsim.match_rows, query, rows, np.array([1])),
        (maxsim.tables, query, np.ones((1, 2, 3), np.int16), 1),
        (maxsim.nearest, query, np.ones((1, 0, 4), np.int16)),
    ]
    for kernel, *arguments in refused:
        with pytest.raises(ValueError, match=r"\w"):
            kernel(*arguments, path)


@compiled
def test_an_unknown_path_is_refused(path) -> None:
    with pytest.raises(ValueError, match="no path neon"):
        maxsim.tables(np.ones((1, 1), np.int16), np.ones((1, 1, 1), np.int16), 1, "neon")
