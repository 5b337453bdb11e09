"""The batch planner: lanes, buckets, budgets, bounds, drops."""

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from encoder_service.core.batching import (
    Arrived,
    BatchDone,
    BatchPlanner,
    Drop,
    DropReason,
    Item,
    Lane,
    Left,
    ModelFree,
    PlannerOptions,
    Refuse,
    Run,
    Tokenized,
    padded_length,
)

MAX_TOKENS = 60
MS = 1_000_000
OPTIONS = PlannerOptions(
    batch_tokens={Lane.QUERY: 64, Lane.DOCUMENT: 128},
    queue_tokens={Lane.QUERY: 100, Lane.DOCUMENT: 200},
    tokens_per_s=100.0,
)


def item(
    id_: int,
    lane: Lane = Lane.QUERY,
    tokens: int = 10,
    model: str = "m",
    deadline_ns: int | None = None,
    request: int = 1,
) -> Item:
    return Item(
        id=id_,
        request=request,
        lane=lane,
        model=model,
        tokens=tokens,
        length=padded_length(tokens, MAX_TOKENS),
        deadline_ns=deadline_ns,
    )


def enqueue(planner: BatchPlanner, *items: Item) -> None:
    for request in dict.fromkeys(each.request for each in items):
        mine = tuple(each for each in items if each.request == request)
        assert planner.handle(Arrived(request, mine[0].lane, 1)) == []
        assert planner.handle(Tokenized(request, mine)) == []


def run(planner: BatchPlanner, now_ns: int = 0) -> list[int]:
    (action,) = planner.handle(ModelFree(now_ns))
    assert isinstance(action, Run)
    return [each.id for each in action.items]


def test_nothing_waits_nothing_runs() -> None:
    assert BatchPlanner(OPTIONS).handle(ModelFree(0)) == []


def test_queries_go_ahead_of_documents_that_came_first() -> None:
    planner = BatchPlanner(OPTIONS)
    enqueue(planner, item(1, Lane.DOCUMENT, request=1), item(2, request=2))
    assert run(planner) == [2]
    assert run(planner) == [1]


def test_documents_give_way_while_queries_come() -> None:
    """A query waits for the batch under way, so that one takes no longer than a run of queries."""
    planner = BatchPlanner(OPTIONS)
    ids = itertools.count(1)

    def batch_of_documents(now_ms: int) -> int:
        documents = [item(next(ids), Lane.DOCUMENT, tokens=16, request=1) for _ in range(8)]
        enqueue(planner, *documents)
        count = len(run(planner, now_ms * MS))
        planner.handle(BatchDone(lane=Lane.DOCUMENT, tokens=16 * count, elapsed_ns=count * 10 * MS))
        planner.handle(Left(1))
        return count

    for _ in range(20):
        assert batch_of_documents(0) == 8, "nobody waits"
    for number in range(20):
        enqueue(planner, item(next(ids), request=2))
        run(planner, number * 10 * MS)
        planner.handle(BatchDone(lane=Lane.QUERY, tokens=16, elapsed_ns=25 * MS))
    assert batch_of_documents(300) == 2, "20 ms, where a query takes 25"
    assert batch_of_documents(1_100) == 2
    assert batch_of_documents(1_300) == 8, "no query for a second"


def test_a_batch_holds_one_length_one_model_and_the_oldest_goes_first() -> None:
    planner = BatchPlanner(OPTIONS)
    enqueue(
        planner,
        item(1, tokens=10),
        item(2, tokens=20),
        item(3, tokens=12),
        item(4, tokens=11, model="n"),
        item(5, tokens=16),
        item(6, tokens=16),
    )
    # 16 tokens fill their bucket: without padding they take another path through the model.
    assert [run(planner) for _ in range(4)] == [[1, 3], [2], [4], [5, 6]]


def test_the_token_budget_bounds_a_batch_and_a_long_text_goes_alone() -> None:
    planner = BatchPlanner(OPTIONS)
    enqueue(planner, *(item(number, tokens=10) for number in range(1, 7)))
    assert [run(planner), run(planner)] == [[1, 2, 3, 4], [5, 6]]
    small = PlannerOptions(
        batch_tokens={Lane.QUERY: 8, Lane.DOCUMENT: 8}, queue_tokens=OPTIONS.queue_tokens
    )
    planner = BatchPlanner(small)
    enqueue(planner, item(1, tokens=40), item(2, tokens=40))
    assert run(planner) == [1]


def test_a_full_lane_refuses_with_a_hint_and_the_other_lane_takes() -> None:
    planner = BatchPlanner(OPTIONS)
    enqueue(planner, *(item(number) for number in range(10)))
    assert planner.handle(Arrived(2, Lane.QUERY, 1)) == [Refuse(2, pytest.approx(1.0))]
    assert planner.handle(Arrived(3, Lane.DOCUMENT, 1)) == []
    for _ in range(50):
        planner.handle(BatchDone(lane=Lane.QUERY, tokens=200, elapsed_ns=1_000_000_000))
    (refusal,) = planner.handle(Arrived(4, Lane.QUERY, 1))
    assert isinstance(refusal, Refuse)
    assert refusal.retry_after_s == pytest.approx(0.5, rel=0.01)


def test_what_is_still_being_tokenised_counts() -> None:
    planner = BatchPlanner(OPTIONS)
    assert planner.handle(Arrived(1, Lane.QUERY, 1_000)) == [], "one larger than the bound goes in"
    assert len(planner.handle(Arrived(2, Lane.QUERY, 1))) == 1
    planner.handle(Left(1))
    assert planner.handle(Arrived(3, Lane.QUERY, 1)) == []


def test_late_texts_and_those_of_a_caller_who_left_are_dropped() -> None:
    planner = BatchPlanner(OPTIONS)
    late, left = item(1, deadline_ns=50, request=1), item(2, Lane.DOCUMENT, request=2)
    other = item(3, deadline_ns=51, request=3)
    enqueue(planner, late, left, other)
    assert planner.handle(Left(2)) == [Drop(left, DropReason.CALLER_LEFT)]
    assert planner.handle(ModelFree(50)) == [
        Drop(late, DropReason.DEADLINE),
        Run((other,), other.length),
    ]
    assert planner.handle(ModelFree(60)) == []


@given(st.integers(1, 5_000), st.integers(1, 5_000))
def test_padded_length(tokens: int, most: int) -> None:
    length = padded_length(tokens, most)
    assert length >= tokens
    if tokens <= most:
        assert length <= most
        assert length % 8 == 0 or length == most
        assert length - tokens < 8


class Planner(RuleBasedStateMachine):
    """Every text ends once: run or dropped; nothing late or left behind runs."""

    def __init__(self) -> None:
        super().__init__()
        self.planner = BatchPlanner(OPTIONS)
        self.waiting: dict[int, Item] = {}
        self.now_ns = 0
        self.next = 1

    @rule(
        lane=st.sampled_from(Lane),
        tokens=st.lists(st.integers(1, MAX_TOKENS), min_size=1, max_size=5),
        model=st.sampled_from("mn"),
        left_ns=st.none() | st.integers(0, 20),
    )
    def arrive(self, lane: Lane, tokens: list[int], model: str, left_ns: int | None) -> None:
        request, self.next = self.next, self.next + 1
        backlog = sum(each.tokens for each in self.waiting.values() if each.lane is lane)
        refused = bool(self.planner.handle(Arrived(request, lane, sum(tokens))))
        assert refused == (backlog >= OPTIONS.queue_tokens[lane])
        if refused:
            return
        deadline_ns = None if left_ns is None else self.now_ns + left_ns
        items = []
        for count in tokens:
            items.append(item(self.next, lane, count, model, deadline_ns, request))
            self.next += 1
        assert self.planner.handle(Tokenized(request, tuple(items))) == []
        self.waiting |= {each.id: each for each in items}

    @rule(data=st.data())
    def leave(self, data: st.DataObject) -> None:
        requests = sorted({each.request for each in self.waiting.values()})
        if requests:
            request = data.draw(st.sampled_from(requests))
            actions = self.planner.handle(Left(request))
            gone = {each.item.id for each in actions if isinstance(each, Drop)}
            assert gone == {id_ for id_, each in self.waiting.items() if each.request == request}
            for id_ in gone:
                del self.waiting[id_]

    @rule(passed_ns=st.integers(0, 10))
    def free(self, passed_ns: int) -> None:
        self.now_ns += passed_ns
        late = {
            id_
            for id_, each in self.waiting.items()
            if each.deadline_ns is not None and each.deadline_ns <= self.now_ns
        }
        actions = self.planner.handle(ModelFree(self.now_ns))
        assert {each.item.id for each in actions if isinstance(each, Drop)} == late
        for id_ in late:
            del self.waiting[id_]
        batches = [each for each in actions if isinstance(each, Run)]
        assert len(batches) == (1 if self.waiting else 0)
        for batch in batches:
            self.check(batch)

    def check(self, batch: Run) -> None:
        lanes = [each for each in Lane if any(x.lane is each for x in self.waiting.values())]
        oldest = next(each for each in self.waiting.values() if each.lane is lanes[0])
        assert batch.items[0] == oldest
        assert {each.key for each in batch.items} == {oldest.key}
        assert batch.length == oldest.length
        budget = OPTIONS.batch_tokens[oldest.lane]
        assert len(batch.items) == 1 or batch.length * len(batch.items) <= budget
        for each in batch.items:
            assert self.waiting.pop(each.id) == each

    @invariant()
    def counts_agree(self) -> None:
        for lane in Lane:
            expected = sum(each.lane is lane for each in self.waiting.values())
            assert self.planner.waiting(lane) == expected


TestPlanner = Planner.TestCase
TestPlanner.settings = settings(max_examples=25, stateful_step_count=20, deadline=None)
