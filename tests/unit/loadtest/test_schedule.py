"""Arrivals are a Poisson process that the seed alone decides; every question has its turn."""

from collections import Counter
from itertools import islice

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal.loadtest.core.schedule import (
    generator,
    ingest_share,
    operations,
    poisson_ns,
    share,
)

SEEDS = st.integers(0, 2**32)


@given(SEEDS, st.floats(0.1, 2000), st.floats(0.1, 3))
def test_arrivals_ascend_within_the_time_and_repeat_with_the_seed(
    seed: int, rate: float, seconds: float
) -> None:
    arrivals = poisson_ns(rate, seconds, generator(seed, 0, 0))
    assert (np.diff(arrivals) >= 0).all()
    assert ((arrivals >= 0) & (arrivals < seconds * 1e9)).all()
    assert (arrivals == poisson_ns(rate, seconds, generator(seed, 0, 0))).all()


def test_clients_and_steps_draw_their_own() -> None:
    drawn = [
        poisson_ns(100, 1, generator(7, step, client)).tolist()
        for step in (0, 1)
        for client in (0, 1)
    ]
    assert all(one != other for i, one in enumerate(drawn) for other in drawn[:i])


@pytest.mark.parametrize("clients", [1, 4])
def test_gaps_are_exponential(clients: int) -> None:
    """Mean and standard deviation are both 1 / rate, however many clients share it."""
    parts = [poisson_ns(500 / clients, 100, generator(3, 0, client)) for client in range(clients)]
    gaps_s = np.diff(np.sort(np.concatenate(parts))) / 1e9
    assert gaps_s.mean() == pytest.approx(1 / 500, rel=0.02)
    assert gaps_s.std() == pytest.approx(1 / 500, rel=0.03)


@given(st.integers(1, 40), st.integers(1, 4), SEEDS)
def test_no_question_comes_again_before_all_came(count: int, rounds: int, seed: int) -> None:
    drawn = islice(operations(count, 0.3, generator(seed, 0, 0)), count * rounds)
    assert Counter(each.question for each in drawn) == dict.fromkeys(range(count), rounds)


@pytest.mark.parametrize("wanted", [0.0, 0.05, 1.0])
def test_the_mix_is_kept(wanted: float) -> None:
    drawn = list(islice(operations(10, wanted, generator(1, 0, 0)), 20_000))
    assert sum(each.ingest for each in drawn) / len(drawn) == pytest.approx(wanted, abs=0.01)


@given(st.integers(0, 1000), st.integers(1, 64))
def test_shares_make_the_whole(whole: int, parts: int) -> None:
    shares = [share(whole, parts, part) for part in range(parts)]
    assert sum(shares) == whole
    assert max(shares) - min(shares) <= 1


def test_mixes() -> None:
    assert ingest_share("search=0.95,ingest=0.05") == 0.05
    assert ingest_share("search=1") == 0.0
    assert ingest_share("ingest=0.3, search=0.7") == 0.3
    for bad in ("", "search", "search=x", "delete=1", "search=0.9", "search=2,ingest=-1"):
        with pytest.raises(ValueError, match=r"search|add up"):
            ingest_share(bad)
