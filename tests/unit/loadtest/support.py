"""Tallies and reports made by hand."""

from shoal.loadtest.core.report import ClientReport, Report
from shoal.loadtest.core.schedule import Step
from shoal.loadtest.core.tally import NOT_SENT, Outcome, Tally

SECOND_NS = 1_000_000_000


def tally_of(*outcomes: Outcome, end_ns: int = SECOND_NS) -> Tally:
    tally = Tally(0, end_ns)
    for outcome in outcomes:
        tally.record(outcome)
    return tally


def report_of(
    rate_per_s: float, good: int, *, requests: int, unsent: int = 0, processor: float = 0.1
) -> Report:
    """A step of 1 s: so many good answers of so many requests, some of which never left."""
    tally = Tally(0, SECOND_NS, requests=requests, good=good, sent=requests - unsent)
    tally.codes[NOT_SENT] = unsent
    step = Step(0, 1.0, 0.0, rate_per_s=rate_per_s)
    return Report.of(step, [ClientReport(tally, processor)])
