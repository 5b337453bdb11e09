"""The knee: the highest rate that the cluster keeps up with, found by doubling and halving.

A step is kept up with when its goodput is at least `KEPT_SHARE` of what was
offered in the same window. A little above its capacity a cluster still passes,
since the queue that grows is short then; so the knee is the best *goodput* of
those steps, which capacity bounds, and not the rate that was offered.
"""

import math
from collections.abc import Sequence

from shoal.loadtest.core.report import Report

KEPT_SHARE = 0.95
BRACKET = 1.05
FIRST_QPS = 50.0
LOWEST_QPS = 0.5
STEPS_MAX = 24


def kept_up(report: Report) -> bool:
    """Whether the cluster answered what was offered."""
    return report.tally.good > 0 and report.goodput_qps >= KEPT_SHARE * report.offered_qps


def next_rate(reports: Sequence[Report]) -> float | None:
    """The rate of the next step, after these of one sweep; None when the knee is known.

    A step whose load the client could not offer says nothing about the cluster: it
    is repeated once, and ends the sweep the second time.
    """
    if not reports:
        return FIRST_QPS
    if len(reports) >= STEPS_MAX:
        return None
    last = reports[-1]
    if not kept_up(last) and last.short:
        repeated = len(reports) > 1 and rate(reports[-2]) == rate(last)
        return None if repeated else rate(last)
    return _between(
        best=max((rate(each) for each in reports if kept_up(each)), default=0.0),
        worst=min((rate(each) for each in reports if _failed(each)), default=math.inf),
    )


def knee_qps(reports: Sequence[Report]) -> float | None:
    """Answers a second at the knee; None if no step was kept up with."""
    return max((each.goodput_qps for each in reports if kept_up(each)), default=None)


def knee_is_bounded(reports: Sequence[Report]) -> bool:
    """Whether the cluster failed a step by itself: if not, the knee may lie higher."""
    return any(_failed(each) for each in reports)


def rate(report: Report) -> float:
    """The rate that the step was to offer, 1/s."""
    assert report.step.rate_per_s is not None
    return report.step.rate_per_s


def _failed(report: Report) -> bool:
    return not kept_up(report) and not report.short


def _between(best: float, worst: float) -> float | None:
    if math.isinf(worst):
        return 2 * best
    if not best:
        return worst / 2 if worst / 2 >= LOWEST_QPS else None
    return math.sqrt(best * worst) if worst > BRACKET * best else None
