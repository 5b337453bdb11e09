"""Shards that take a set time for a message, behind routers' cores, on virtual time."""

import heapq
import random
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from router.core.fanout import NEVER, CancelCall, FanOut, Finish, Query, Send
from router.core.options import FanOutOptions

MS = 1_000_000
S = 1_000 * MS
HOP_NS = MS


@dataclass(frozen=True)
class Server:
    """How long one shard works: one message at a time, `fixed` and `each` query of it."""

    fixed_ns: int
    each_ns: int
    jitter: float = 0.0
    hangs_from_ns: int = NEVER


@dataclass
class Counts:
    """Of queries offered from `from_ns` on; answers whenever they came."""

    offered: int = 0
    refused: int = 0
    late: int = 0
    waits_ms: list[float] = field(default_factory=list)
    ends_ns: list[int] = field(default_factory=list)

    def percentile(self, share: float) -> float:
        waits = sorted(self.waits_ms)
        return waits[min(len(waits) - 1, int(share * len(waits)))]

    def answered_within(self, begin_ns: int, end_ns: int) -> float:
        """A second."""
        return sum(begin_ns <= end < end_ns for end in self.ends_ns) / ((end_ns - begin_ns) / S)


@dataclass
class World:
    """Callers who come at `rate`, whatever becomes of them, to routers that share the servers."""

    servers: Sequence[Server]
    rate: Callable[[int], float]
    seconds: float
    seed: int = 0
    routers: int = 1
    deadline_ns: int = 10 * S
    from_ns: int = 0
    make: Callable[..., FanOut[int]] = FanOut

    def __post_init__(self) -> None:
        self.dice = random.Random(self.seed)
        self.now = 0
        self.events: list[tuple[int, int, Callable[[], None]]] = []
        self.number = 0
        placement = [[f"server-{number}"] for number in range(len(self.servers))]
        self.cores = [self.make(placement, FanOutOptions()) for _ in range(self.routers)]
        self.timers = [NEVER] * self.routers
        self.busy = [False] * len(self.servers)
        self.queues: list[deque[tuple[int, Send[int]]]] = [deque() for _ in self.servers]
        self.cancelled: set[tuple[int, int]] = set()
        self.counts = Counts()

    def at(self, when: int, what: Callable[[], None]) -> None:
        self.number += 1
        heapq.heappush(self.events, (when, self.number, what))

    def run(self) -> "World":
        self.at(self._gap(), self.arrive)
        while self.events:
            self.now, _, what = heapq.heappop(self.events)
            what()
        return self

    def _gap(self) -> int:
        return self.now + int(self.dice.expovariate(max(1e-9, self.rate(self.now))) * S) + 1

    def arrive(self) -> None:
        if self.now >= self.seconds * S:
            return
        self.at(self._gap(), self.arrive)
        router = self.dice.randrange(self.routers)
        core = self.cores[router]
        measured = self.now >= self.from_ns
        self.counts.offered += measured
        if core.refusal(self.deadline_ns, self.now) is not None:
            self.counts.refused += measured
            return
        query = Query(payload=self.now, deadline_ns=self.now + self.deadline_ns)
        self.apply(router, core.submit([query], self.now))

    def apply(self, router: int, actions: list[Any]) -> None:
        for action in actions:
            match action:
                case Send():
                    self.at(self.now + HOP_NS, lambda send=action: self.work(router, send))
                case CancelCall():
                    self.cancelled.add((router, action.attempt))
                case Finish():
                    self.finish(action)
        wake = self.cores[router].wake_ns
        if wake < self.timers[router]:
            self.timers[router] = wake
            self.at(max(wake, self.now), lambda: self.tick(router))

    def tick(self, router: int) -> None:
        self.timers[router] = NEVER
        self.apply(router, self.cores[router].tick(self.now))

    def work(self, router: int, send: Send[int]) -> None:
        self.queues[send.shard].append((router, send))
        if not self.busy[send.shard]:
            self.next(send.shard)

    def next(self, shard: int) -> None:
        """The oldest message; a query whose time is over costs nothing."""
        self.busy[shard] = bool(self.queues[shard])
        if not self.busy[shard]:
            return
        if self.now >= self.servers[shard].hangs_from_ns:
            return
        router, send = self.queues[shard].popleft()
        wanted = [query for query in send.queries if query.open and query.deadline_ns > self.now]
        server, took = self.servers[shard], 0
        if wanted:
            luck = 1 - server.jitter + server.jitter * self.dice.expovariate(1)
            took = int((server.fixed_ns + server.each_ns * len(wanted)) * luck)
        self.at(self.now + took, lambda: self.next(shard))
        self.at(self.now + took + HOP_NS, lambda: self.reply(router, send))

    def reply(self, router: int, send: Send[int]) -> None:
        if (router, send.attempt) not in self.cancelled:
            self.apply(router, self.cores[router].replied(send.attempt, None, {}, self.now))

    def finish(self, finish: Finish[int]) -> None:
        for query, missing in zip(finish.queries, finish.missing, strict=True):
            if missing:
                self.counts.late += query.payload >= self.from_ns
                continue
            if query.payload >= self.from_ns:
                self.counts.waits_ms.append((self.now - query.payload) / MS)
            self.counts.ends_ns.append(self.now)
