"""Counting: what a window holds, what merging keeps, and from when a time runs."""

import pickle
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal.loadtest.core.latencies import HIGHEST_US, Latencies
from shoal.loadtest.core.tally import LATE_NS, NOT_SENT, OK, Outcome, Tally, merged
from tests.unit.loadtest.support import SECOND_NS, tally_of

MOMENTS = st.integers(-SECOND_NS, 2 * SECOND_NS)
SPANS = st.integers(0, SECOND_NS)


@st.composite
def outcomes(draw: st.DrawFn) -> Outcome:
    due = draw(MOMENTS)
    sent = due + draw(SPANS)
    code = draw(st.sampled_from([OK, "UNAVAILABLE", "DEADLINE_EXCEEDED", NOT_SENT]))
    partial = draw(st.booleans()) and code == OK
    return Outcome(due, sent, sent + draw(SPANS), code, partial, draw(st.booleans()))


def seen(tally: Tally) -> tuple[object, ...]:
    times = (tally.searches, tally.ingests, tally.lags)
    counts = (
        tally.requests,
        Counter(tally.codes),
        tally.partial,
        tally.sent,
        tally.good,
        tally.late,
    )
    return (*counts, *((len(each), each.as_json()) for each in times))


@given(st.lists(st.lists(outcomes(), max_size=12), min_size=1, max_size=4))
def test_the_sum_of_the_parts_is_the_whole(parts: list[list[Outcome]]) -> None:
    whole = tally_of(*(outcome for part in parts for outcome in part))
    assert seen(merged(tally_of(*part) for part in parts)) == seen(whole)
    # As they come from another process.
    assert seen(pickle.loads(pickle.dumps(whole))) == seen(whole)


@given(st.lists(outcomes(), max_size=30))
def test_every_request_of_the_window_has_one_code(given_: list[Outcome]) -> None:
    tally = tally_of(*given_)
    within = [each for each in given_ if 0 <= each.due_ns < SECOND_NS]
    assert tally.requests == len(within) == tally.codes.total()
    assert tally.partial <= tally.codes[OK]
    assert len(tally.lags) == tally.requests - tally.codes[NOT_SENT]
    assert tally.sent == sum(
        each.code != NOT_SENT and 0 <= each.sent_ns < SECOND_NS for each in given_
    )
    assert tally.good == sum(
        each.code == OK and not each.partial and 0 <= each.done_ns < SECOND_NS for each in given_
    )


def test_a_time_runs_from_the_intended_moment() -> None:
    late = Outcome(due_ns=0, sent_ns=400_000_000, done_ns=500_000_000)
    tally = tally_of(late)
    assert tally.searches.percentile_ms(50) == pytest.approx(500, rel=1e-3)
    assert tally.lags.percentile_ms(50) == pytest.approx(400, rel=1e-3)
    assert tally.late == 1
    assert tally_of(Outcome(0, LATE_NS, LATE_NS)).late == 0


def test_what_ran_out_of_time_counts_and_what_was_refused_does_not() -> None:
    timed_out = Outcome(0, 0, 900_000_000, "DEADLINE_EXCEEDED")
    refused = Outcome(0, 2_000_000, 5_000_000, "RESOURCE_EXHAUSTED")
    tally = tally_of(timed_out, refused, Outcome(0, 0, 5_000_000, ingest=True))
    assert len(tally.searches) == 1
    assert tally.searches.percentile_ms(99.9) == pytest.approx(900, rel=1e-3)
    assert tally.ingests.percentile_ms(50) == pytest.approx(5, rel=1e-3)
    assert tally.refusals.percentile_ms(50) == pytest.approx(3, rel=1e-3), "from leaving"


def test_windows_must_be_one() -> None:
    for parts in ([], [Tally(0, 1), Tally(0, 2)]):
        with pytest.raises(ValueError, match="one window"):
            merged(parts)


@given(st.lists(st.integers(0, 10**13), min_size=1, max_size=50))
def test_percentiles_have_three_digits(times_ns: list[int]) -> None:
    latencies = Latencies()
    for time_ns in times_ns:
        latencies.record_ns(time_ns)
    largest_us = min(max(max(times_ns) / 1000, 1), HIGHEST_US)
    assert latencies.percentile_ms(100) == pytest.approx(largest_us / 1000, rel=2e-3, abs=2e-3)
    known = [value for value in latencies.as_json().values() if value is not None]
    assert known == sorted(known)


def test_no_times_have_no_percentile() -> None:
    assert Latencies().as_json() == {"p50": None, "p90": None, "p99": None, "p999": None}
