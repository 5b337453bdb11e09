"""Decides which texts the model runs next. Pure: events in, actions out.

There is no timer: a batch is formed from what waits when the model is free. A
batch holds texts of one model, one padded length, and either all with or all
without padding, because an all-ones attention mask takes another path through
the model than one with zeros: so no text's bits depend on its batch-mates.
"""

import heapq
from dataclasses import dataclass
from enum import Enum
from itertools import islice
from typing import TypeAlias

BUCKET = 8
_NEWEST_SHARE = 0.2
_RETRY_S_MIN, _RETRY_S_MAX = 0.05, 30.0
_QUERIES_ABOUT_NS = 1_000_000_000
"""So long after a run of queries, the next query must not find the model busy for long."""


class Lane(Enum):
    """Queries go ahead of documents."""

    QUERY = "query"
    DOCUMENT = "document"


class DropReason(Enum):
    """Why a text was not encoded."""

    CALLER_LEFT = "caller_left"
    DEADLINE = "deadline"


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannerOptions:
    """Bounds of the planner.

    Attributes:
        batch_tokens: padded tokens in one batch, by lane; a longer text goes alone.
        queue_tokens: tokens beyond which a lane refuses new requests.
        tokens_per_s: rate assumed until batches have been measured.
    """

    batch_tokens: dict[Lane, int]
    queue_tokens: dict[Lane, int]
    tokens_per_s: float = 5_000.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Item:
    """One text that waits.

    Attributes:
        id: unique in the process.
        request: the request that it belongs to.
        lane: its lane.
        model: fingerprint of its model.
        tokens: its tokens, special ones included.
        length: its padded length.
        deadline_ns: when it is late, on the shell's clock; None is never.
    """

    id: int
    request: int
    lane: Lane
    model: str
    tokens: int
    length: int
    deadline_ns: int | None = None

    @property
    def key(self) -> tuple[str, int, bool]:
        """Texts with equal keys may travel together."""
        return self.model, self.length, self.tokens < self.length


@dataclass(frozen=True, slots=True)
class Arrived:
    """A request came in; its tokens are estimated until it is tokenised."""

    request: int
    lane: Lane
    tokens: int


@dataclass(frozen=True, slots=True)
class Tokenized:
    """The texts of a request that arrived can be encoded now."""

    request: int
    items: tuple[Item, ...]


@dataclass(frozen=True, slots=True)
class Left:
    """Nobody wants a request's remaining texts."""

    request: int


@dataclass(frozen=True, slots=True)
class ModelFree:
    """The model can take a batch."""

    now_ns: int


@dataclass(frozen=True, slots=True)
class BatchDone:
    """A batch of so many padded tokens took so long."""

    lane: Lane
    tokens: int
    elapsed_ns: int


@dataclass(frozen=True, slots=True)
class Refuse:
    """The lane is full: answer OVERLOADED with this hint."""

    request: int
    retry_after_s: float


@dataclass(frozen=True, slots=True)
class Drop:
    """A text will not be encoded."""

    item: Item
    reason: DropReason


@dataclass(frozen=True, slots=True)
class Run:
    """Encode these together, padded to `length`."""

    items: tuple[Item, ...]
    length: int


Event: TypeAlias = Arrived | Tokenized | Left | ModelFree | BatchDone
Action: TypeAlias = Refuse | Drop | Run


def padded_length(tokens: int, max_tokens: int) -> int:
    """The length that a text is padded to: it depends on the text alone.

    >>> [padded_length(tokens, 510) for tokens in (1, 8, 9, 510)]
    [8, 8, 16, 510]
    """
    return min(-(-tokens // BUCKET) * BUCKET, max(tokens, max_tokens))


class BatchPlanner:
    """Two lanes of waiting texts."""

    def __init__(self, options: PlannerOptions) -> None:
        self._options = options
        self._rates = dict.fromkeys(Lane, options.tokens_per_s)
        self._query_run_ns = 0.0
        self._query_ns = -2 * _QUERIES_ABOUT_NS
        self._lanes = {lane: _Queue() for lane in Lane}
        self._reserved: dict[int, tuple[Lane, int]] = {}

    def handle(self, event: Event) -> list[Action]:
        """Takes note of an event and says what to do now."""
        match event:
            case Arrived():
                return self._arrived(event)
            case Tokenized():
                self._reserved.pop(event.request, None)
                for item in event.items:
                    self._lanes[item.lane].append(item)
            case Left():
                self._reserved.pop(event.request, None)
                return [
                    Drop(item, DropReason.CALLER_LEFT)
                    for queue in self._lanes.values()
                    for item in queue.remove_request(event.request)
                ]
            case ModelFree():
                return self._next(event.now_ns)
            case BatchDone():
                self._done(event)
        return []

    def waiting(self, lane: Lane) -> int:
        """Texts that wait in a lane."""
        return len(self._lanes[lane])

    def _arrived(self, event: Arrived) -> list[Action]:
        reserved = sum(tokens for lane, tokens in self._reserved.values() if lane is event.lane)
        backlog = self._lanes[event.lane].tokens + reserved
        # The request's own size does not count: one larger than the bound must
        # not be refused for ever.
        if backlog >= self._options.queue_tokens[event.lane]:
            wait_s = backlog / self._rates[event.lane]
            return [Refuse(event.request, min(max(wait_s, _RETRY_S_MIN), _RETRY_S_MAX))]
        self._reserved[event.request] = (event.lane, event.tokens)
        return []

    def _next(self, now_ns: int) -> list[Action]:
        actions: list[Action] = [
            Drop(item, DropReason.DEADLINE)
            for queue in self._lanes.values()
            for item in queue.remove_late(now_ns)
        ]
        for lane, queue in self._lanes.items():
            if items := queue.take(self._batch_tokens(lane, now_ns)):
                actions.append(Run(items, items[0].length))
                if lane is Lane.QUERY:
                    self._query_ns = now_ns
                break
        return actions

    def _done(self, event: BatchDone) -> None:
        rate = event.tokens / max(event.elapsed_ns, 1) * 1e9
        self._rates[event.lane] += _NEWEST_SHARE * (rate - self._rates[event.lane])
        if event.lane is Lane.QUERY:
            self._query_run_ns += _NEWEST_SHARE * (event.elapsed_ns - self._query_run_ns)

    def _batch_tokens(self, lane: Lane, now_ns: int) -> int:
        """Documents give way: beside queries, a batch of them takes no longer than one of queries.

        The model cannot be interrupted, so a query waits for the batch under way.
        """
        most = self._options.batch_tokens[lane]
        if lane is Lane.QUERY or now_ns - self._query_ns > _QUERIES_ABOUT_NS:
            return most
        return min(most, int(self._query_run_ns / 1e9 * self._rates[lane]))


class _Queue:
    """Waiting texts in order of arrival, and again by key, request and deadline."""

    def __init__(self) -> None:
        self._items: dict[int, Item] = {}
        self._by_key: dict[tuple[str, int, bool], dict[int, Item]] = {}
        self._by_request: dict[int, set[int]] = {}
        self._deadlines: list[tuple[int, int]] = []
        self.tokens = 0

    def __len__(self) -> int:
        return len(self._items)

    def append(self, item: Item) -> None:
        self._items[item.id] = item
        self._by_key.setdefault(item.key, {})[item.id] = item
        self._by_request.setdefault(item.request, set()).add(item.id)
        if item.deadline_ns is not None:
            heapq.heappush(self._deadlines, (item.deadline_ns, item.id))
        self.tokens += item.tokens

    def remove_request(self, request: int) -> list[Item]:
        return [self._remove(id_) for id_ in sorted(self._by_request.get(request, ()))]

    def remove_late(self, now_ns: int) -> list[Item]:
        late: list[Item] = []
        while self._deadlines and self._deadlines[0][0] <= now_ns:
            _, id_ = heapq.heappop(self._deadlines)
            # The heap still names texts that ran or were dropped.
            if id_ in self._items:
                late.append(self._remove(id_))
        return late

    def take(self, batch_tokens: int) -> tuple[Item, ...]:
        """The oldest text, and those after it that may travel along."""
        if not self._items:
            return ()
        oldest = next(iter(self._items.values()))
        count = max(1, batch_tokens // oldest.length)
        ids = list(islice(self._by_key[oldest.key], count))
        return tuple(self._remove(id_) for id_ in ids)

    def _remove(self, id_: int) -> Item:
        item = self._items.pop(id_)
        alike = self._by_key[item.key]
        del alike[id_]
        if not alike:
            del self._by_key[item.key]
        ids = self._by_request[item.request]
        ids.discard(id_)
        if not ids:
            del self._by_request[item.request]
        self.tokens -= item.tokens
        return item
