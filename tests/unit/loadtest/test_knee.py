"""The knee and the client's own limit, from reports alone."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal.loadtest.core.knee import (
    BRACKET,
    FIRST_QPS,
    KEPT_SHARE,
    STEPS_MAX,
    kept_up,
    knee_is_bounded,
    knee_qps,
    next_rate,
    rate,
)
from shoal.loadtest.core.report import ClientReport, Report
from shoal.loadtest.core.tally import NOT_SENT
from tests.unit.loadtest.support import SECOND_NS, Outcome, report_of, tally_of

NEVER = Outcome(0, 0, 0, NOT_SENT)


def swept(capacity: float) -> list[Report]:
    """The reports of a sweep against a cluster that answers `capacity` a second."""
    reports: list[Report] = []
    while (offered := next_rate(reports)) is not None:
        # Windows of 1,000 s, so that counts are not rounded much.
        good = min(offered, capacity)
        reports.append(report_of(offered, round(1000 * good), requests=round(1000 * offered)))
    return reports


@given(st.floats(2, 100_000))
def test_the_knee_is_the_capacity(capacity: float) -> None:
    reports = swept(capacity)
    found = knee_qps(reports)
    assert found is not None
    # Two neighbours of the bracket, and what still passes above the capacity.
    assert capacity / BRACKET * 0.999 <= found / 1000 <= capacity * 1.001
    assert knee_is_bounded(reports)
    assert len(reports) < STEPS_MAX
    assert rate(reports[0]) == FIRST_QPS


def test_a_cluster_that_answers_nothing_has_no_knee() -> None:
    reports = swept(0.0)
    assert knee_qps(reports) is None
    assert rate(reports[-1]) < 1


def test_a_limited_client_ends_the_sweep_after_a_second_try() -> None:
    fine = [report_of(50, 50, requests=50), report_of(100, 100, requests=100)]
    limited = report_of(200, 150, requests=200, unsent=50)
    assert next_rate([*fine, limited]) == 200
    assert next_rate([*fine, limited, limited]) is None
    assert knee_qps([*fine, limited, limited]) == 100
    assert not knee_is_bounded([*fine, limited, limited])
    recovered = report_of(200, 200, requests=200)
    assert next_rate([*fine, limited, recovered]) == 400
    failed = report_of(200, 150, requests=200)
    assert next_rate([*fine, limited, failed]) == pytest.approx(20_000**0.5)


def test_a_late_client_offers_the_load_all_the_same() -> None:
    """Every request left 20 ms late: the times are the client's, the failure is the cluster's."""
    late = [Outcome(0, 20_000_000, SECOND_NS)] * 100
    step = report_of(100, 0, requests=0).step
    report = Report.of(step, [ClientReport(tally_of(*late), 0.1)])
    assert report.limits
    assert not report.short
    assert knee_is_bounded([report])
    unsent = Report.of(step, [ClientReport(tally_of(*late[:90], *[NEVER] * 10), 0.1)])
    assert unsent.short
    assert not knee_is_bounded([unsent])


def test_kept_up() -> None:
    assert kept_up(report_of(100, round(100 * KEPT_SHARE), requests=100))
    assert not kept_up(report_of(100, round(100 * KEPT_SHARE) - 1, requests=100))
    assert not kept_up(report_of(100, 0, requests=0))


def test_the_client_is_the_limit_when_it_is_late_or_busy() -> None:
    assert report_of(100, 100, requests=100).limits == []
    (busy,) = report_of(100, 100, requests=100, processor=0.95).limits
    assert "0.95 of a core" in busy
    (late,) = report_of(100, 98, requests=100, unsent=2).limits
    assert late.startswith("2.0% of the requests left more than 10 ms after")
    on_time, behind = Outcome(0, 0, 1), Outcome(0, 20_000_000, 20_000_001)
    for late_ones, limited in ((1, False), (2, True)):
        tally = tally_of(*[on_time] * (100 - late_ones), *[behind] * late_ones)
        step = report_of(100, 100, requests=100).step
        assert bool(Report.of(step, [ClientReport(tally, 0.1)]).limits) is limited


def test_the_busiest_client_decides() -> None:
    step = report_of(1, 1, requests=1).step
    clients = [ClientReport(tally_of(), share) for share in (0.1, 0.97, 0.2)]
    report = Report.of(step, clients)
    assert report.as_json()["client"]["processor_share"] == 0.97
    assert report.as_json()["client"]["limited"] is True


def test_shape() -> None:
    outcomes = [
        *[Outcome(0, 0, 2_000_000)] * 7,
        Outcome(0, 0, 1, partial=True),
        *[Outcome(0, 0, 1, "UNAVAILABLE")] * 2,
    ]
    step = report_of(10, 10, requests=10).step
    shape = Report.of(step, [ClientReport(tally_of(*outcomes), 0.25)]).as_json()
    assert (shape["requests"], shape["errors"], shape["partial"]) == (10, 2, 1)
    assert shape["errors_by_code"] == {"UNAVAILABLE": 2}
    assert (shape["offered_qps"], shape["goodput_qps"]) == (10.0, 7.0)
    assert shape["latency_ms"]["p50"] == pytest.approx(2, rel=1e-3)
    assert "ingest_latency_ms" not in shape
    assert list(shape["latency_ms"]) == ["p50", "p90", "p99", "p999"]
