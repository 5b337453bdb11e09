"""What a step has shown of the cluster, and whether the client was its limit."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from shoal.loadtest.core.schedule import Step
from shoal.loadtest.core.tally import LATE_NS, NOT_SENT, OK, Tally, merged

LATE_SHARE_MAX = 0.01
PROCESSOR_SHARE_MAX = 0.9
SENT_SHARE_MIN = 0.95


@dataclass(frozen=True, slots=True)
class ClientReport:
    """What one client process hands in.

    Attributes:
        tally: what it counted.
        processor_share: processor time by the time that it was sending; 1.0 is a core.
    """

    tally: Tally
    processor_share: float


@dataclass(frozen=True, slots=True)
class Report:
    """One step, over all clients.

    Attributes:
        step: what was to be sent.
        tally: what all clients counted.
        processor_shares: of each client, in cores.
    """

    step: Step
    tally: Tally
    processor_shares: tuple[float, ...]

    @staticmethod
    def of(step: Step, clients: Sequence[ClientReport]) -> "Report":
        """The clients' reports as one."""
        return Report(
            step,
            merged(client.tally for client in clients),
            tuple(client.processor_share for client in clients),
        )

    @property
    def offered_qps(self) -> float:
        """Requests a second that were meant to be sent."""
        return self.tally.requests / self.step.duration_s

    @property
    def sent_qps(self) -> float:
        """Requests a second that left: less than offered if the client fell behind."""
        return self.tally.sent / self.step.duration_s

    @property
    def goodput_qps(self) -> float:
        """Answers a second that came in time and from the whole collection."""
        return self.tally.good / self.step.duration_s

    @property
    def errors_by_code(self) -> dict[str, int]:
        """Failed requests by gRPC status code."""
        return {code: count for code, count in sorted(self.tally.codes.items()) if code != OK}

    @property
    def errors(self) -> int:
        """Failed requests."""
        return sum(self.errors_by_code.values())

    @property
    def late_share(self) -> float:
        """Share of the requests that left too late, or not at all."""
        late = self.tally.late + self.tally.codes[NOT_SENT]
        return late / max(1, self.tally.requests)

    @property
    def short(self) -> bool:
        """Whether the client could not offer the load: then the cluster has not failed.

        A client that is merely late spoils times, and offers the load all the same.
        """
        busy = max(self.processor_shares) > PROCESSOR_SHARE_MAX
        return busy or self.sent_qps < SENT_SHARE_MIN * self.offered_qps

    @property
    def limits(self) -> list[str]:
        """Why the figures may be the client's and not the cluster's; empty if they are not."""
        found = []
        if self.late_share > LATE_SHARE_MAX:
            found.append(
                f"{self.late_share:.1%} of the requests left more than {LATE_NS // 1_000_000} ms "
                "after their time, or not at all"
            )
        if max(self.processor_shares) > PROCESSOR_SHARE_MAX:
            found.append(f"a client used {max(self.processor_shares):.2f} of a core")
        return found

    def as_json(self) -> dict[str, Any]:
        """The object of `shoal loadtest --json`, rounded to what the histograms keep."""
        tally = self.tally
        return {
            "requests": tally.requests,
            "errors": self.errors,
            "errors_by_code": self.errors_by_code,
            "partial": tally.partial,
            "duration_s": self.step.duration_s,
            "offered_qps": round(self.offered_qps, 3),
            "goodput_qps": round(self.goodput_qps, 3),
            "latency_ms": tally.searches.as_json(),
            **({"ingest_latency_ms": tally.ingests.as_json()} if len(tally.ingests) else {}),
            **({"refusal_latency_ms": tally.refusals.as_json()} if len(tally.refusals) else {}),
            "client": {
                "processes": len(self.processor_shares),
                "processor_share": round(max(self.processor_shares), 4),
                "sent_qps": round(self.sent_qps, 3),
                "late_share": round(self.late_share, 6),
                "lag_ms": tally.lags.as_json(),
                "limited": bool(self.limits),
                "reasons": self.limits,
            },
        }
