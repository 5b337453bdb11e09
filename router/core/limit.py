"""How many queries may be open: as many as the slowest shard answers in a short while.

A number of queries says nothing about how long they wait; a time does. So the
limit is what keeps the time that a message to a shard takes near a target, some
times what it takes for a lone query: enough to keep the shard busy and its
messages worth sending. A longer queue would answer nobody sooner. There is
nothing to set: every constant here is a ratio or what people feel.

Source: C. Jin, D. Wei, S. Low, FAST TCP (2004), equation 1, window = window x base
time / measured time + alpha, with a target in place of the base time, since a
shard that batches needs a queue, and with the ratio squared.
"""

from shoal.errors import Overloaded

_PATIENCE = 8
"""Target, in times of a lone query's. At 80 % load, 1 query of 100 takes about as long."""
_SHORT_NS = 80_000_000
"""No target is below this: nobody feels it, and fast shards are fastest with full messages.

Source: J. Nielsen, Usability Engineering (1993), chapter 5: 0.1 s is felt as at once; the rest
is for the way to the user.
"""
_LEAST = 4
"""A limit below this would refuse for a hiccup of a machine that is not busy."""
_ROOM = 1
"""alpha of FAST TCP: routers that share a shard come to equal limits."""
_MARGIN = 1.5
"""A query needs so many times the expected time: rounds end together, not one by one."""
_SILENT = 8
"""A shard that has not replied for so many targets, while others did, hangs."""
_WEIGHT = 0.2
_FASTER, _SLOWER = 0.1, 0.02
"""Averages: of times in company, and of a lone query's, which company may only lengthen."""
_RETRY_S_MIN, _RETRY_S_MAX = 0.02, 5.0


class _Shard:
    """What one shard's replies say.

    Attributes:
        lone_ns: time of a message sent when nothing else was open; 0 is not known.
        open: queries open when messages left, averaged over those with company.
        took_ns: how long these messages took; 0 is not known.
        replied_ns: when it last replied.
    """

    __slots__ = ("lone_ns", "open", "replied_ns", "took_ns")

    def __init__(self) -> None:
        self.lone_ns = 0.0
        self.open = 0.0
        self.took_ns = 0.0
        self.replied_ns = 0

    @property
    def target_ns(self) -> float:
        return max(_SHORT_NS, _PATIENCE * self.lone_ns)

    @property
    def limit(self) -> float:
        # Squared: far below the target nothing queues, and a burst may pass.
        return self.open * (self.target_ns / self.took_ns) ** 2 + _ROOM

    def observe(self, open_queries: int, took_ns: int) -> None:
        if open_queries == 1 or took_ns < self.lone_ns:
            weight = _FASTER if took_ns < self.lone_ns else _SLOWER if self.lone_ns else 1.0
            self.lone_ns += weight * (took_ns - self.lone_ns)
        if open_queries > 1:
            # Few queries say little about many.
            weight = _WEIGHT * min(1.0, open_queries / self.limit) if self.took_ns else 1.0
            self.open += weight * (open_queries - self.open)
            self.took_ns += weight * (took_ns - self.took_ns)


class AdaptiveLimit:
    """The limit of one lane; times in ns of one clock.

    Args:
        shards: how many the lane asks.
    """

    def __init__(self, shards: int) -> None:
        self._shards = [_Shard() for _ in range(shards)]

    def observe(self, shard: int, open_queries: int, took_ns: int, now_ns: int) -> None:
        """A message came back.

        Args:
            shard: which was asked.
            open_queries: of the lane when the message left, its own included; at least 1.
            took_ns: from leaving to coming back.
            now_ns: the time.
        """
        self._shards[shard].observe(open_queries, max(1, took_ns))
        self._shards[shard].replied_ns = now_ns

    def outlasted(self, shard: int, open_queries: int, waited_ns: int) -> None:
        """Nobody waits for a message any more: it would have taken longer than this.

        That counts where it says that the shard is slower than thought.
        """
        known = self._shards[shard]
        if open_queries > 1 and waited_ns * known.open >= known.took_ns * open_queries:
            known.observe(open_queries, max(1, waited_ns))

    def queries(self) -> float:
        """Queries that may be open; infinite until there is something to go by.

        A shard that is silent while others reply does not count: its queries wait for
        their deadlines, and those who can do without it are served.
        """
        return min((max(_LEAST, shard.limit) for shard in self._known()), default=float("inf"))

    def _known(self) -> list[_Shard]:
        newest_ns = max(shard.replied_ns for shard in self._shards)
        return [
            shard
            for shard in self._shards
            if shard.took_ns and newest_ns - shard.replied_ns < _SILENT * shard.target_ns
        ]

    @property
    def target_ns(self) -> int:
        """How long the slowest shard should take, at most."""
        return int(max(shard.target_ns for shard in self._shards))

    @property
    def patience_ns(self) -> int:
        """How long the slowest shard may be busy before it is slow; 0 until it is known.

        Half the target: two messages, one at work and one that waits, make one.
        """
        return int(max(shard.lone_ns for shard in self._shards) * _PATIENCE / 2)

    def refusal(self, open_queries: int, left_ns: int, now_ns: int) -> Overloaded | None:
        """Why one more query is refused; None if it may come.

        Its own size does not count: one larger than the limit is not refused for ever.

        Args:
            open_queries: of the lane, without it.
            left_ns: the time that it has.
            now_ns: the time.
        """
        each_ns = max((shard.took_ns / shard.open for shard in self._known()), default=0.0)
        limit, wait_ns = self.queries(), (open_queries + 1) * each_ns
        late = open_queries > 0 and _MARGIN * wait_ns > left_ns
        if open_queries < limit and not late:
            return None
        return _refused(open_queries, limit, wait_ns)


def _refused(open_queries: int, limit: float, wait_ns: float) -> Overloaded:
    retry_s = min(max(wait_ns / 1e9, _RETRY_S_MIN), _RETRY_S_MAX)
    return Overloaded(
        f"{open_queries} queries are under way, and {limit:.0f} are answered in good time; "
        f"try again in {retry_s:.2f} s, or add processes",
        retry_after_s=retry_s,
    )
