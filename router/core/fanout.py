"""Scatter and gather: which message leaves when, and which answers count.

One `FanOut` serves one lane: the shards of one generation (or one "shard" whose
replicas are the encoders of one model). Events come in as method calls with
the time in ns; what must be done comes out as actions. It never sees a
message's content.

Invariants:
    F1  A query is finished exactly once, or cancelled.
    F2  A shard counts once per query, whatever its replicas and retries.
    F3  Replies of attempts that are over (late, duplicate) change nothing.
    F4  No query is finished after its deadline, given a tick at `wake_ns`.
    F5  Messages and queries outstanding at a shard stay within their bounds, and
        return to 0 when no query is open.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from router.core.limit import AdaptiveLimit
from router.core.options import FanOutOptions
from router.core.pacing import Load, hold_until
from shoal.errors import DeadlineExceeded, Overloaded, ShardUnavailable, ShoalError, StaleTopology

Payload = TypeVar("Payload")
Reply = TypeVar("Reply")
NEVER = 1 << 62


@dataclass(slots=True, eq=False)
class Query(Generic[Payload]):
    """A question that somebody waits for.

    Attributes:
        payload: the shell's own; never looked at.
        deadline_ns: it is finished by then.
        cost: estimated bytes of the question and its hits.
        arrived_ns: when it was submitted.
        left_ns: when its round left; 0 while it waits.
        row: its place in its round.
        open: somebody still waits for it.
    """

    payload: Payload
    deadline_ns: int
    cost: int = 1
    arrived_ns: int = 0
    left_ns: int = 0
    row: int = -1
    open: bool = False
    round: _Round[Payload] | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True)
class Send(Generic[Payload]):
    """Send these queries to a replica of a shard; report with the attempt's number."""

    attempt: int
    shard: int
    server: str
    queries: Sequence[Query[Payload]]


@dataclass(frozen=True, slots=True)
class CancelCall:
    """Nobody wants the attempt's reply any more."""

    attempt: int


@dataclass(frozen=True, slots=True)
class RefreshTopology:
    """A server no longer holds its shard: read the topology, then call `refreshed`."""


@dataclass(frozen=True, slots=True)
class Part:
    """One shard's reply.

    Attributes:
        shard: its number.
        rows: row in the round of each query of the message.
        reply: as reported.
    """

    shard: int
    rows: Sequence[int]
    reply: object


@dataclass(frozen=True, slots=True)
class Finish(Generic[Payload]):
    """Queries of one round that are over.

    Attributes:
        queries: they; each has its row in the round.
        round_size: queries that the round left with; 0 for queries that never left.
        parts: replies of the shards that answered.
        missing: per query, the shards that did not take part, and why.
    """

    queries: Sequence[Query[Payload]]
    round_size: int
    parts: Sequence[Part]
    missing: Sequence[Mapping[int, ShoalError]]


Action = Send[Payload] | CancelCall | RefreshTopology | Finish[Payload]


@dataclass(slots=True, eq=False)
class _Ask:
    """A shard that a round still waits for; attempt 0 waits for a topology."""

    shard: int
    attempt: int = 0
    server: str = ""
    sent_ns: int = 0
    open_queries: int = 0
    rows: list[int] = field(default_factory=list)
    tried: set[str] = field(default_factory=set)
    refreshed: bool = False


@dataclass(slots=True, eq=False)
class _Round(Generic[Payload]):
    queries: list[Query[Payload]]
    open: int
    next_deadline_ns: int
    asks: dict[int, _Ask] = field(default_factory=dict)
    parts: list[Part] = field(default_factory=list)
    missing: dict[int, ShoalError] = field(default_factory=dict)
    refused: dict[int, dict[int, ShoalError]] = field(default_factory=dict)


@dataclass(slots=True, eq=False)
class _Shard:
    servers: tuple[str, ...]
    messages: int = 0
    queries: int = 0


class FanOut(Generic[Payload]):
    """The rounds of one lane.

    Args:
        placement: per shard, the names of the servers that hold it.
        options: bounds.
    """

    def __init__(self, placement: Sequence[Sequence[str]], options: FanOutOptions) -> None:
        self._options = options
        self._shards = [_Shard(tuple(servers)) for servers in placement]
        self._load = Load(options.pacing.window_ns)
        self._limit = AdaptiveLimit(len(placement))
        self._waiting: dict[Query[Payload], None] = {}
        self._waiting_cost = 0
        self._waiting_deadline_ns = NEVER
        self._rounds: dict[_Round[Payload], None] = {}
        self._attempts: dict[int, tuple[_Round[Payload], _Ask]] = {}
        self._server_messages: dict[str, int] = {}
        self._last_attempt = 0
        self._open = 0
        self._refreshing = False
        self._held_until_ns = NEVER

    # --- what can be asked ------------------------------------------------

    @property
    def open_queries(self) -> int:
        """Queries submitted and neither finished nor cancelled."""
        return self._open

    def refusal(self, left_ns: int, now_ns: int) -> Overloaded | None:
        """Why one more query must not be submitted; None if it may.

        Args:
            left_ns: the time that it has.
            now_ns: the time.
        """
        return self._limit.refusal(self._open, left_ns, now_ns)

    @property
    def limit(self) -> float:
        """Queries that may be open; see `AdaptiveLimit.queries`."""
        return self._limit.queries()

    @property
    def wake_ns(self) -> int:
        """When `tick` is due; NEVER if nothing waits for the clock."""
        deadlines = min((round_.next_deadline_ns for round_ in self._rounds), default=NEVER)
        return min(self._held_until_ns, deadlines, self._waiting_deadline_ns)

    def outstanding(self, shard: int) -> tuple[int, int]:
        """(messages, queries) that a shard has not answered."""
        return self._shards[shard].messages, self._shards[shard].queries

    # --- events -----------------------------------------------------------

    def submit(self, queries: Sequence[Query[Payload]], now_ns: int) -> list[Action[Payload]]:
        """Somebody asks; queries given together leave together if they fit a round."""
        for query in queries:
            query.arrived_ns, query.open = now_ns, True
            self._waiting[query] = None
            self._waiting_cost += query.cost
            self._waiting_deadline_ns = min(self._waiting_deadline_ns, query.deadline_ns)
        self._open += len(queries)
        actions: list[Action[Payload]] = []
        self._leave(now_ns, actions)
        return actions

    def cancel(self, query: Query[Payload], now_ns: int) -> list[Action[Payload]]:
        """The caller has gone."""
        actions: list[Action[Payload]] = []
        if not query.open:
            return actions
        self._close(query)
        if query in self._waiting:
            self._unqueue(query)
        elif query.round is not None:
            self._drop_if_unwanted(query.round, actions)
        self._leave(now_ns, actions)
        return actions

    def replied(
        self, attempt: int, reply: object, refused: Mapping[int, ShoalError], now_ns: int
    ) -> list[Action[Payload]]:
        """A server answered.

        Args:
            attempt: of the `Send`.
            reply: handed on in `Part`.
            refused: queries of the message (by their place in it) that failed.
            now_ns: the time.
        """
        actions: list[Action[Payload]] = []
        found = self._end_attempt(attempt)
        if found is None:
            return actions
        round_, ask = found
        self._limit.observe(ask.shard, ask.open_queries, now_ns - ask.sent_ns, now_ns)
        del round_.asks[ask.shard]
        round_.parts.append(Part(ask.shard, ask.rows, reply))
        for place, error in refused.items():
            round_.refused.setdefault(ask.rows[place], {})[ask.shard] = error
        self._finish_if_complete(round_, actions)
        self._leave(now_ns, actions)
        return actions

    def failed(self, attempt: int, error: ShoalError, now_ns: int) -> list[Action[Payload]]:
        """An attempt failed as a whole."""
        actions: list[Action[Payload]] = []
        found = self._end_attempt(attempt)
        if found is None:
            return actions
        round_, ask = found
        ask.attempt = 0
        if isinstance(error, StaleTopology) and not ask.refreshed:
            ask.refreshed = True
            if not self._refreshing:
                self._refreshing = True
                actions.append(RefreshTopology())
        elif error.caller_fault or not self._send(round_, ask, now_ns, actions):
            self._give_up(round_, ask, error)
            self._finish_if_complete(round_, actions)
        self._leave(now_ns, actions)
        return actions

    def place(self, placement: Sequence[Sequence[str]]) -> None:
        """A newer topology; the number of shards never changes in a generation."""
        for shard, servers in zip(self._shards, placement, strict=True):
            shard.servers = tuple(servers)

    def refreshed(self, held: bool, now_ns: int) -> list[Action[Payload]]:
        """The topology was read again.

        Args:
            held: the generation still serves; if not, nobody is asked again.
            now_ns: the time.
        """
        actions: list[Action[Payload]] = []
        self._refreshing = False
        for round_ in list(self._rounds):
            for ask in [ask for ask in round_.asks.values() if not ask.attempt]:
                ask.tried.clear()
                if not held or not self._send(round_, ask, now_ns, actions):
                    stale = StaleTopology(f"shard {ask.shard} is not where the topology says")
                    self._give_up(round_, ask, stale)
            self._finish_if_complete(round_, actions)
        self._leave(now_ns, actions)
        return actions

    def tick(self, now_ns: int) -> list[Action[Payload]]:
        """Time has passed."""
        actions: list[Action[Payload]] = []
        late = [query for query in self._waiting if query.deadline_ns <= now_ns]
        if late:
            for query in late:
                self._unqueue(query)
            errors = dict.fromkeys(
                range(len(self._shards)), DeadlineExceeded("the time was over before it was sent")
            )
            self._finish(late, 0, (), [errors] * len(late), actions)
        self._waiting_deadline_ns = min(
            (query.deadline_ns for query in self._waiting), default=NEVER
        )
        for round_ in [late for late in self._rounds if late.next_deadline_ns <= now_ns]:
            self._expire(round_, now_ns, actions)
        self._leave(now_ns, actions)
        return actions

    # --- leaving ----------------------------------------------------------

    def _leave(self, now_ns: int, actions: list[Action[Payload]]) -> None:
        self._held_until_ns = NEVER
        while self._waiting:
            until = self._held(now_ns)
            if until > now_ns:
                self._held_until_ns = until
                return
            self._start_round(now_ns, actions)
        self._waiting_deadline_ns = NEVER

    def _held(self, now_ns: int) -> int:
        """Until when the waiting queries stay; a time in the past lets them go."""
        options = self._options
        oldest_ns = next(iter(self._waiting)).arrived_ns
        peak = self._load.observe(now_ns, self._open)
        until = 0
        if len(self._waiting) < options.round_queries and self._waiting_cost < options.round_cost:
            until = hold_until(options.pacing, peak, len(self._waiting), oldest_ns)
        busy = bool(self._attempts) and any(
            shard.messages >= options.busy_messages * len(shard.servers)
            and not self._full(shard, 1)
            for shard in self._shards
        )
        if not busy:
            return until
        # A shard that takes as long as it always does is no straggler.
        usual_ns = self._limit.patience_ns if options.patient else 0
        return max(until, oldest_ns + max(options.straggler_wait_ns, usual_ns))

    def _full(self, shard: _Shard, more: int) -> bool:
        replicas = len(shard.servers)
        return (
            shard.messages >= self._options.shard_messages * replicas
            or shard.queries + more > self._options.shard_queries * replicas
        )

    def _start_round(self, now_ns: int, actions: list[Action[Payload]]) -> None:
        queries: list[Query[Payload]] = []
        cost = 0
        for query in self._waiting:
            cost += query.cost
            if queries and (
                cost > self._options.round_cost or len(queries) == self._options.round_queries
            ):
                break
            queries.append(query)
        round_ = _Round(queries, len(queries), min(query.deadline_ns for query in queries))
        for row, query in enumerate(queries):
            self._unqueue(query)
            query.round, query.row, query.left_ns = round_, row, now_ns
        self._rounds[round_] = None
        for number, shard in enumerate(self._shards):
            ask = round_.asks[number] = _Ask(number)
            if not self._send(round_, ask, now_ns, actions):
                self._give_up(round_, ask, self._refusal(number, shard, len(queries)))
        self._finish_if_complete(round_, actions)

    def _refusal(self, number: int, shard: _Shard, queries: int) -> ShoalError:
        if not shard.servers:
            return ShardUnavailable(f"no server holds shard {number}", shard=number)
        if self._full(shard, queries):
            return Overloaded(
                f"shard {number} has too much outstanding",
                retry_after_s=self._limit.target_ns / 1e9,
                shard=number,
            )
        return DeadlineExceeded("the time was over before it was sent")

    def _send(
        self, round_: _Round[Payload], ask: _Ask, now_ns: int, actions: list[Action[Payload]]
    ) -> bool:
        """Asks the least loaded replica that was not tried, with every open query.

        False if there is no such replica, no room, or no time.
        """
        shard = self._shards[ask.shard]
        servers = [server for server in shard.servers if server not in ask.tried]
        wanted = [query for query in round_.queries if query.open]
        in_time = any(query.deadline_ns > now_ns for query in wanted)
        if not servers or not in_time or self._full(shard, len(wanted)):
            return False
        ask.server = min(servers, key=lambda server: self._server_messages.get(server, 0))
        ask.tried.add(ask.server)
        ask.rows = [query.row for query in wanted]
        ask.sent_ns, ask.open_queries = now_ns, self._open
        self._last_attempt += 1
        ask.attempt = self._last_attempt
        self._attempts[ask.attempt] = (round_, ask)
        shard.messages += 1
        shard.queries += len(wanted)
        self._server_messages[ask.server] = self._server_messages.get(ask.server, 0) + 1
        actions.append(Send(ask.attempt, ask.shard, ask.server, wanted))
        return True

    # --- ending -----------------------------------------------------------

    def _end_attempt(self, attempt: int) -> tuple[_Round[Payload], _Ask] | None:
        found = self._attempts.pop(attempt, None)
        if found is not None:
            ask = found[1]
            self._shards[ask.shard].messages -= 1
            self._shards[ask.shard].queries -= len(ask.rows)
            self._server_messages[ask.server] -= 1
            if not self._server_messages[ask.server]:
                del self._server_messages[ask.server]
        return found

    def _give_up(self, round_: _Round[Payload], ask: _Ask, error: ShoalError) -> None:
        del round_.asks[ask.shard]
        round_.missing[ask.shard] = error

    def _finish_if_complete(self, round_: _Round[Payload], actions: list[Action[Payload]]) -> None:
        if round_.asks:
            return
        del self._rounds[round_]
        queries = [query for query in round_.queries if query.open]
        self._finish_of_round(round_, queries, actions)

    def _expire(self, round_: _Round[Payload], now_ns: int, actions: list[Action[Payload]]) -> None:
        wanted = [query for query in round_.queries if query.open]
        late = [query for query in wanted if query.deadline_ns <= now_ns]
        round_.next_deadline_ns = min(
            (query.deadline_ns for query in wanted if query.deadline_ns > now_ns), default=NEVER
        )
        if late and not round_.open - len(late):
            for ask in [ask for ask in round_.asks.values() if ask.attempt]:
                self._limit.outlasted(ask.shard, ask.open_queries, now_ns - ask.sent_ns)
        self._finish_of_round(round_, late, actions)
        self._drop_if_unwanted(round_, actions)

    def _finish_of_round(
        self,
        round_: _Round[Payload],
        queries: Sequence[Query[Payload]],
        actions: list[Action[Payload]],
    ) -> None:
        missing = dict(round_.missing)
        for number in round_.asks:
            missing[number] = DeadlineExceeded(f"shard {number} did not answer in time")
        errors = [
            {**missing, **round_.refused[query.row]} if query.row in round_.refused else missing
            for query in queries
        ]
        self._finish(queries, len(round_.queries), tuple(round_.parts), errors, actions)

    def _finish(
        self,
        queries: Sequence[Query[Payload]],
        round_size: int,
        parts: Sequence[Part],
        missing: Sequence[Mapping[int, ShoalError]],
        actions: list[Action[Payload]],
    ) -> None:
        if not queries:
            return
        for query in queries:
            self._close(query)
        actions.append(Finish(queries, round_size, parts, missing))

    def _close(self, query: Query[Payload]) -> None:
        query.open = False
        self._open -= 1
        if query.round is not None:
            query.round.open -= 1

    def _unqueue(self, query: Query[Payload]) -> None:
        del self._waiting[query]
        self._waiting_cost -= query.cost

    def _drop_if_unwanted(self, round_: _Round[Payload], actions: list[Action[Payload]]) -> None:
        """Cancels a round's calls when no query of it is open.

        Every message of a round holds all queries that were open when it left,
        so a call is unwanted exactly when its round is.
        """
        if round_.open or round_ not in self._rounds:
            return
        del self._rounds[round_]
        for ask in round_.asks.values():
            if ask.attempt:
                self._end_attempt(ask.attempt)
                actions.append(CancelCall(ask.attempt))
