"""When the next round leaves: at once when alone, together when loaded.

The fixed cost of a message, not of a query, is what a loaded router pays
(measured), so rounds are worth filling, but only while more queries are sure to
come. How many come is read off the recent past: the largest number of queries
that were open at once.
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Pacing:
    """Settings of the rule; durations in ns.

    Attributes:
        hold_ns: longest time that a query is held so that others may join it.
        hold_from: open queries (recent peak) from which rounds are held.
        hold_share: share of the recent peak that fills a round.
        window_ns: how long a peak is remembered, at least.
    """

    hold_ns: int = 5_000_000
    hold_from: int = 4
    hold_share: float = 0.75
    window_ns: int = 50_000_000


class Load:
    """The largest number of open queries in the last one to two windows."""

    def __init__(self, window_ns: int) -> None:
        self._window_ns = window_ns
        self._window = 0
        self._now = self._before = 0

    def observe(self, now_ns: int, open_queries: int) -> int:
        """Notes how many are open, and returns the recent peak."""
        window = now_ns // self._window_ns
        if window != self._window:
            self._before = self._now if window == self._window + 1 else 0
            self._window, self._now = window, 0
        self._now = max(self._now, open_queries)
        return max(self._now, self._before)


def hold_until(pacing: Pacing, peak: int, waiting: int, oldest_ns: int) -> int:
    """The time before which the waiting queries should not leave; 0 is "leave".

    Args:
        pacing: settings.
        peak: most queries open at once lately.
        waiting: queries that wait now, at least 1.
        oldest_ns: when the oldest of them came.
    """
    if peak < pacing.hold_from or waiting >= pacing.hold_share * peak:
        return 0
    return oldest_ns + pacing.hold_ns
