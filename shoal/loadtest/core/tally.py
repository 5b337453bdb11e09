"""What clients count while they send, and the sum of it.

A request belongs to the window in which it was *meant* to be sent, and its time
runs from that moment: a client or a server that stands still delays nothing
away. An answer belongs to the goodput of the window in which it came.
"""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

from shoal.loadtest.core.latencies import Latencies

OK = "OK"
TIMED_OUT = "DEADLINE_EXCEEDED"
REFUSED = "RESOURCE_EXHAUSTED"
NOT_SENT = "NOT_SENT"
LATE_NS = 10_000_000


class Outcome(NamedTuple):
    """What became of one request; times are nanoseconds of one monotonic clock.

    Attributes:
        due_ns: when it was meant to leave.
        sent_ns: when it left.
        done_ns: when its answer was there.
        code: the name of its gRPC status code, or NOT_SENT.
        partial: a part of the collection did not answer.
        ingest: it stored a document.
    """

    due_ns: int
    sent_ns: int
    done_ns: int
    code: str = OK
    partial: bool = False
    ingest: bool = False


@dataclass(slots=True)
class Tally:
    """Counts of the requests of one window.

    Attributes:
        begin_ns, end_ns: the window, half open.
        requests: meant to be sent within it.
        codes: the same by gRPC status code.
        partial: of the answers, those from a part of the collection.
        sent: requests that left within the window, whenever they were meant to.
        good: answers in full that came within the window.
        late: sent more than LATE_NS after they were meant to be.
        searches: times of searches that were answered, or whose time ran out: these
            count with the time that they waited. Refusals are quick, and would
            make an overloaded cluster look fast.
        ingests: the same of ingests.
        refusals: times of searches that were refused as overload, from leaving to the answer:
            it says how fast the cluster refuses, whatever the client's own delay.
        lags: how long after its time each request left.
    """

    begin_ns: int
    end_ns: int
    requests: int = 0
    codes: Counter[str] = field(default_factory=Counter)
    partial: int = 0
    sent: int = 0
    good: int = 0
    late: int = 0
    searches: Latencies = field(default_factory=Latencies)
    ingests: Latencies = field(default_factory=Latencies)
    refusals: Latencies = field(default_factory=Latencies)
    lags: Latencies = field(default_factory=Latencies)

    def record(self, outcome: Outcome) -> None:
        """Counts a request that has ended; one of the warm-up as sent and answered at most."""
        self.sent += outcome.code != NOT_SENT and self._holds(outcome.sent_ns)
        whole = outcome.code == OK and not outcome.partial
        self.good += whole and self._holds(outcome.done_ns)
        if not self._holds(outcome.due_ns):
            return
        self.requests += 1
        self.codes[outcome.code] += 1
        self.partial += outcome.partial
        if outcome.code == NOT_SENT:
            return
        lag_ns = outcome.sent_ns - outcome.due_ns
        self.lags.record_ns(lag_ns)
        self.late += lag_ns > LATE_NS
        if outcome.code in (OK, TIMED_OUT):
            times = self.ingests if outcome.ingest else self.searches
            times.record_ns(outcome.done_ns - outcome.due_ns)
        elif outcome.code == REFUSED and not outcome.ingest:
            self.refusals.record_ns(outcome.done_ns - outcome.sent_ns)

    def _holds(self, moment_ns: int) -> bool:
        return self.begin_ns <= moment_ns < self.end_ns


def merged(tallies: Iterable[Tally]) -> Tally:
    """The sum of what several clients counted in one window.

    Raises:
        ValueError: there is none, or their windows differ.
    """
    parts = list(tallies)
    if len({(part.begin_ns, part.end_ns) for part in parts}) != 1:
        raise ValueError("tallies are merged of one window, at least one of them")
    total = Tally(parts[0].begin_ns, parts[0].end_ns)
    for part in parts:
        total.requests += part.requests
        total.codes += part.codes
        total.partial += part.partial
        total.sent += part.sent
        total.good += part.good
        total.late += part.late
        total.searches.add(part.searches)
        total.ingests.add(part.ingests)
        total.refusals.add(part.refusals)
        total.lags.add(part.lags)
    return total
