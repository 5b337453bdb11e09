"""Times in a histogram that keeps three digits and can be merged: HDR."""

from typing import Any

from hdrh.histogram import HdrHistogram

LOWEST_US = 1
HIGHEST_US = 3_600_000_000
DIGITS = 3
PERCENTILES = {"p50": 50.0, "p90": 90.0, "p99": 99.0, "p999": 99.9}


class Latencies:
    """Times from 1 us to 1 h, exact to three digits, in constant memory."""

    def __init__(self) -> None:
        self._histogram: Any = _empty()

    def __len__(self) -> int:
        return int(self._histogram.get_total_count())

    def __getstate__(self) -> bytes:
        encoded: bytes = self._histogram.encode()
        return encoded

    def __setstate__(self, state: bytes) -> None:
        self._histogram = _empty()
        self._histogram.decode_and_add(state)

    def record_ns(self, nanoseconds: int) -> None:
        """Counts one time; what is out of range counts as the nearest that is in it."""
        microseconds = round(nanoseconds / 1000)
        self._histogram.record_value(max(LOWEST_US, min(microseconds, HIGHEST_US)))

    def add(self, other: "Latencies") -> None:
        """Counts all times of the other as well."""
        self._histogram.add(other._histogram)

    def percentile_ms(self, percent: float) -> float | None:
        """The time in ms that `percent` of all do not exceed; None if there is none."""
        if not len(self):
            return None
        return float(self._histogram.get_value_at_percentile(percent)) / 1000

    def as_json(self) -> dict[str, float | None]:
        """p50, p90, p99 and p99.9 in ms."""
        return {name: self.percentile_ms(percent) for name, percent in PERCENTILES.items()}


def _empty() -> Any:
    return HdrHistogram(LOWEST_US, HIGHEST_US, DIGITS)
