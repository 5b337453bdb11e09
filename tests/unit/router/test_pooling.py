"""Token pooling: how many vectors stay, which tokens they stand for, and that they are means."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.core.pooling import clusters, pool, pooled


def unit(seed: int, tokens: int) -> np.ndarray:
    rows = np.random.default_rng(seed).standard_normal((tokens, 8))
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


@given(seed=st.integers(0, 999), tokens=st.integers(0, 40), factor=st.integers(1, 3))
def test_a_passage_keeps_its_first_token_and_one_in_factor_of_the_others(
    seed: int, tokens: int, factor: int
) -> None:
    rows = unit(seed, tokens)
    members = clusters(rows, factor)
    assert len(members) == tokens
    # Numbered by their first tokens, so that means stand in the text's order.
    firsts = dict.fromkeys(members.tolist())
    assert list(firsts) == list(range(len(firsts)))
    kept = int(members.max(initial=-1)) + 1
    if factor == 1 or tokens < 3:
        assert kept == tokens
    else:
        assert kept == 1 + max(1, (tokens - 1) // factor)
        assert (members[1:] > 0).all()
    means = pooled(rows, members)
    for number in range(kept):
        mine = rows[members == number].astype(float)
        mean = mine.sum(axis=0)
        assert means[number] == pytest.approx(mean / np.linalg.norm(mean), abs=1e-6)
        if len(mine) == 1:
            assert (means[number] == mine[0]).all()


def test_near_tokens_go_together() -> None:
    axes = np.eye(8, dtype=np.float32)
    near = axes[[0, 1, 1, 2, 2, 1, 2]] + np.float32(0.01) * unit(0, 7)
    rows = near / np.linalg.norm(near, axis=1, keepdims=True)
    assert clusters(rows, 3).tolist() == [0, 1, 1, 2, 2, 1, 2]


def test_passages_are_pooled_one_by_one() -> None:
    rows = unit(3, 12)
    found, counts = pool(rows, [5, 0, 7], 2)
    assert counts == [3, 0, 4]
    assert (found[:3] == pooled(rows[:5], clusters(rows[:5], 2))).all()
    assert (found[3:] == pooled(rows[5:], clusters(rows[5:], 2))).all()
    nothing, none = pool(rows[:0], [], 2)
    assert (len(nothing), none) == (0, [])
