"""A router's core among simulated shards, on virtual time, from one seed.

The network delays, loses, duplicates and reorders; shards hang, restart and
move; callers leave. Every answer is checked as it is given.
"""

import heapq
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from router.core.coverage import coverage_of
from router.core.fanout import (
    NEVER,
    CancelCall,
    FanOut,
    Finish,
    Query,
    RefreshTopology,
    Send,
)
from router.core.options import FanOutOptions
from router.core.pacing import Pacing
from shoal import kernels
from shoal.errors import DeadlineExceeded, Overloaded, ShardUnavailable, ShoalError, StaleTopology

MS = 1_000_000
DOCUMENTS = 40
DIM = 3


@dataclass
class Dials:
    """What this seed's world is like (drawn from the seed: swarm testing)."""

    shards: int
    replicas: int
    loss: float
    duplicate: float
    error: float
    hang: float
    cancel: float
    refuse: float
    move: float
    mean_delay_ms: float
    mean_gap_ms: float

    @classmethod
    def draw(cls, dice: random.Random) -> "Dials":
        def rate(most: float) -> float:
            return dice.choice([0.0, dice.random() * most])

        return cls(
            shards=dice.randint(1, 5),
            replicas=dice.randint(1, 3),
            loss=rate(0.3),
            duplicate=rate(0.5),
            error=rate(0.3),
            hang=rate(0.1),
            cancel=rate(0.3),
            refuse=rate(0.2),
            move=rate(0.1),
            mean_delay_ms=dice.choice([0.2, 2.0, 15.0]),
            mean_gap_ms=dice.choice([0.05, 0.5, 5.0]),
        )


@dataclass
class Asked:
    """A question as its caller sees it."""

    vector: np.ndarray[Any, Any]
    top_k: int
    submitted_ns: int
    deadline_ns: int
    ended: int = 0
    cancelled: bool = False


@dataclass
class World:
    """One run. `make` builds the core under test (mutants included)."""

    seed: int
    make: Callable[..., FanOut[Asked]] = FanOut
    queries: int = 60
    answered: int = 0
    full: int = 0
    trace: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.dice = random.Random(self.seed)
        self.dials = Dials.draw(self.dice)
        self.now = 0
        self.events: list[tuple[int, int, Callable[[], None]]] = []
        self.number = 0
        self.options = FanOutOptions(
            pacing=Pacing(hold_from=self.dice.choice([2, 8])),
            round_queries=self.dice.choice([3, 16, 256]),
            busy_messages=self.dice.choice([1, 4]),
            shard_messages=self.dice.choice([2, 8]),
            shard_queries=self.dice.choice([6, 64]),
        )
        rng = np.random.default_rng(self.seed)
        # Few distinct values: ties are common.
        self.data = [
            {
                f"d{shard}-{number}".encode(): rng.integers(-2, 3, DIM).astype(np.float64)
                for number in range(self.dice.randint(0, DOCUMENTS))
            }
            for shard in range(self.dials.shards)
        ]
        self.holders = self._placement()
        self.core = self.make(self.holders, self.options)
        self.open: dict[Query[Asked], None] = {}
        self.calls: dict[int, Send[Asked]] = {}
        self.replied: dict[int, set[int]] = {}
        self.refreshes = 0
        self.timer = NEVER

    # --- the clock --------------------------------------------------------

    def at(self, when: int, what: Callable[[], None]) -> None:
        self.number += 1
        heapq.heappush(self.events, (when, self.number, what))

    def after(self, mean_ms: float, what: Callable[[], None]) -> None:
        self.at(self.now + int(self.dice.expovariate(1 / mean_ms) * MS) + 1, what)

    def run(self) -> "World":
        when = 0
        for _ in range(self.queries):
            when += int(self.dice.expovariate(1 / self.dials.mean_gap_ms) * MS)
            self.at(when, self.arrive)
        while self.events:
            self.now, _, what = heapq.heappop(self.events)
            what()
            self.check_bounds()
        self.check_end()
        return self

    # --- callers ----------------------------------------------------------

    def arrive(self) -> None:
        vector = np.array([self.dice.randint(-2, 2) for _ in range(DIM)], np.float64)
        deadline = self.now + int(self.dice.choice([5, 50, 400]) * MS)
        asked = Asked(vector, self.dice.choice([1, 3, 10, 100]), self.now, deadline)
        query = Query(payload=asked, deadline_ns=deadline, cost=1)
        self.open[query] = None
        if self.dice.random() < self.dials.cancel:
            self.after(self.dials.mean_delay_ms, lambda: self.leave(query))
        self.apply(self.core.submit([query], self.now))

    def leave(self, query: Query[Asked]) -> None:
        if query in self.open:
            query.payload.cancelled = True
            del self.open[query]
            self.apply(self.core.cancel(query, self.now))

    # --- what the shell does ----------------------------------------------

    def apply(self, actions: list[Any]) -> None:
        for action in actions:
            match action:
                case Send():
                    self.send(action)
                case CancelCall():
                    assert action.attempt in self.calls, "cancelled a call that is not under way"
                    del self.calls[action.attempt]
                case RefreshTopology():
                    self.refreshes += 1
                    self.after(2.0, self.refreshed)
                case Finish():
                    self.finish(action)
        wake = self.core.wake_ns
        if wake < self.timer:
            self.timer = wake
            self.at(max(wake, self.now), self.tick)

    def tick(self) -> None:
        self.timer = NEVER
        self.apply(self.core.tick(self.now))

    def refreshed(self) -> None:
        self.core.place(self.holders)
        self.apply(self.core.refreshed(True, self.now))

    def send(self, send: Send[Asked]) -> None:
        assert send.attempt not in self.calls
        for query in send.queries:
            # O4: no work starts for a caller who has gone.
            assert query in self.open, "sent a query that is over"
        assert any(query.deadline_ns > self.now for query in send.queries), "sent too late"
        self.calls[send.attempt] = send
        dice, dials = self.dice, self.dials
        if dice.random() < dials.move:
            self.holders = self._placement()
        if send.server not in self.holders[send.shard]:
            self.fail(send, StaleTopology("moved"))
        elif dice.random() < dials.error:
            kind = dice.choice([ShardUnavailable, Overloaded, DeadlineExceeded, StaleTopology])
            self.fail(send, kind("simulated"))
        elif dice.random() < dials.hang or dice.random() < dials.loss:
            pass
        else:
            self.answer(send)
            while dice.random() < dials.duplicate:
                self.answer(send)

    def fail(self, send: Send[Asked], error: ShoalError) -> None:
        def arrives() -> None:
            self.calls.pop(send.attempt, None)
            self.apply(self.core.failed(send.attempt, error, self.now))

        self.after(self.dials.mean_delay_ms, arrives)

    def answer(self, send: Send[Asked]) -> None:
        refused = {
            place: ShardUnavailable("refused")
            for place in range(len(send.queries))
            if self.dice.random() < self.dials.refuse
        }
        reply = self.hits(send, refused)

        def arrives() -> None:
            self.calls.pop(send.attempt, None)
            self.apply(self.core.replied(send.attempt, reply, refused, self.now))

        self.after(self.dials.mean_delay_ms, arrives)

    def hits(self, send: Send[Asked], refused: Mapping[int, ShoalError]) -> kernels.Hits:
        ranked = [
            [] if place in refused else self.best(send.shard, query.payload)
            for place, query in enumerate(send.queries)
        ]
        flat = [hit for hits in ranked for hit in hits]
        return kernels.Hits(
            counts=np.array([len(hits) for hits in ranked], np.int64),
            ids=b"".join(key for _, key in flat),
            id_lengths=np.array([len(key) for _, key in flat], np.uint32),
            scores=np.array([score for score, _ in flat], np.float64),
            sequences=np.zeros(len(flat), np.uint64),
            passages=np.zeros(len(flat), np.uint32),
        )

    def best(self, shard: int, asked: Asked) -> list[tuple[float, bytes]]:
        scored = [(float(asked.vector @ each), key) for key, each in self.data[shard].items()]
        return sorted(scored, key=lambda hit: (-hit[0], hit[1]))[: asked.top_k]

    # --- oracles ----------------------------------------------------------

    def finish(self, finish: Finish[Asked]) -> None:
        places = np.full(max(1, finish.round_size), -1)
        for place, query in enumerate(finish.queries):
            if query.row >= 0:
                places[query.row] = place
        parts = [
            kernels.Part(part.shard, places[list(part.rows)], part.reply) for part in finish.parts
        ]
        assert len({part.number for part in parts}) == len(parts), "a shard counted twice"
        top_k = np.array([query.payload.top_k for query in finish.queries])
        merged = kernels.merge(parts, top_k)
        for place, (query, missing) in enumerate(zip(finish.queries, finish.missing, strict=True)):
            self.check_answer(query, missing, merged, place)

    def check_answer(
        self, query: Query[Asked], missing: Mapping[int, ShoalError], merged: Any, place: int
    ) -> None:
        asked = query.payload
        asked.ended += 1
        assert asked.ended == 1, "answered twice"
        assert query in self.open, "answered a caller who had gone"
        del self.open[query]
        assert self.now <= asked.deadline_ns, f"late by {self.now - asked.deadline_ns} ns"
        coverage = coverage_of([len(each) for each in self.data], missing)
        answered = set(range(self.dials.shards)) - set(missing)
        assert coverage.shards_answered == len(answered)
        expected = sorted(
            (hit for shard in answered for hit in self.best(shard, asked)),
            key=lambda hit: (-hit[0], hit[1]),
        )[: asked.top_k]
        assert merged.ids(place) == [key for _, key in expected], "not the best of who answered"
        self.answered += 1
        self.full += not missing
        self.trace.append(f"{self.now} {asked.submitted_ns} {sorted(missing)}")

    def check_bounds(self) -> None:
        for shard in range(self.dials.shards):
            messages, queries = self.core.outstanding(shard)
            replicas = max(len(self.holders[shard]), self.dials.replicas)
            assert 0 <= messages <= self.options.shard_messages * replicas, "too many messages"
            assert 0 <= queries <= self.options.shard_queries * replicas, "too many queries"
        assert self.core.open_queries == len(self.open), "permits do not match"
        overdue = [query for query in self.open if query.deadline_ns < self.now]
        assert not overdue, "a query outlived its deadline"

    def check_end(self) -> None:
        assert not self.open, "somebody was never answered"
        assert self.core.open_queries == 0
        for shard in range(self.dials.shards):
            assert self.core.outstanding(shard) == (0, 0), "permits were lost"

    def _placement(self) -> list[list[str]]:
        servers = [f"server-{number}" for number in range(self.dials.replicas + 2)]
        return [self.dice.sample(servers, self.dials.replicas) for _ in range(self.dials.shards)]
