"""Operations, performed by hand: retries, slices, replies too large for a message."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from shoal.client import operations, requests
from shoal.client.model import Answer, Span, StoredDocument
from shoal.client.operations import Call, LimitsCache, Operation, Retry
from shoal.errors import (
    ClusterUnreachable,
    CollectionNotFound,
    DeadlineExceeded,
    EmptyText,
    InternalError,
    InvalidName,
    LimitExceeded,
    NotReady,
    Overloaded,
    ShardUnavailable,
    ShoalError,
)
from shoal.rpc.common.v1 import common_pb2
from shoal.rpc.router.v1 import router_pb2
from shoal.settings import Limits
from shoal.wire.errors import to_status

TOO_LARGE = LimitExceeded("sent message larger than max", limit="max_message_bytes")
OPTIONS = requests.search_options(
    top_k=3,
    min_coverage=1.0,
    fields=requests.ALL_FIELDS,
    allow_truncation=False,
    after=None,
    fingerprint="",
    effort="",
)
QUERY = requests.search_request("r", "papers", "words", None, OPTIONS)


def cache_of(**limits: int) -> LimitsCache:
    cache = LimitsCache()
    cache.limits = Limits(**limits)
    return cache


def perform(operation: Operation[Any], respond: Callable[[Any], Any]) -> Any:
    """Runs an operation: `respond` gives a step's outcome, or an error to throw."""
    try:
        step = next(operation)
        while True:
            outcome = respond(step)
            if isinstance(outcome, ShoalError):
                step = operation.throw(outcome)
            else:
                step = operation.send(outcome)
    except StopIteration as finished:
        return finished.value


def scripted(*outcomes: Any) -> tuple[Callable[[Any], Any], list[Any]]:
    steps: list[Any] = []
    left = list(outcomes)

    def respond(step: Any) -> Any:
        steps.append(step)
        return None if isinstance(step, Retry) else left.pop(0)

    return respond, steps


# --- retries -------------------------------------------------------------------


def test_a_read_is_repeated_once() -> None:
    respond, steps = scripted(ShardUnavailable("shard 1"), router_pb2.SearchResponse())
    assert isinstance(perform(operations.search(cache_of(), QUERY), respond), Answer)
    assert [type(step) for step in steps] == [Call, Retry, Call]
    assert isinstance(steps[1].error, ShardUnavailable)


def test_a_second_failure_is_raised() -> None:
    respond, steps = scripted(NotReady("starting"), ShardUnavailable("shard 1"))
    with pytest.raises(ShardUnavailable):
        perform(operations.search(cache_of(), QUERY), respond)
    assert len(steps) == 3


@pytest.mark.parametrize(
    "error", [CollectionNotFound("none"), DeadlineExceeded("late"), InternalError("bug")]
)
def test_what_cannot_help_is_not_repeated(error: ShoalError) -> None:
    respond, steps = scripted(error)
    with pytest.raises(type(error)):
        perform(operations.search(cache_of(), QUERY), respond)
    assert len(steps) == 1


def test_a_retry_that_may_not_be_raises_the_first_error() -> None:
    first = Overloaded("busy")
    respond, steps = scripted(first)
    with pytest.raises(Overloaded) as raised:
        perform(
            operations.search(cache_of(), QUERY),
            lambda step: first if isinstance(step, Retry) else respond(step),
        )
    assert raised.value is first
    assert len(steps) == 1


def changes() -> list[Operation[Any]]:
    request = requests.create_request(
        "papers",
        kind="single",
        encoder="",
        dim=None,
        index="auto",
        chunk_tokens=None,
        similarity="",
        shards=None,
        code_bytes=None,
        train_at=None,
        pool_factor=None,
    )
    loss = requests.accept_loss_request("papers", 0, "x")
    build = requests.rebuild_request("papers", shards=3, index="", encoder="", code_bytes=None)
    return [
        operations.create_collection(request),
        operations.drop_collection("papers"),
        operations.optimize("papers"),
        operations.accept_loss(loss),
        operations.delete(cache_of(), "papers", ["a"]),
        operations.rebuild(build),
        operations.rollback("papers"),
    ]


@pytest.mark.parametrize(
    "error", [NotReady("starting"), ClusterUnreachable("gone", connected="maybe")]
)
def test_what_may_have_changed_something_is_not_repeated(error: ShoalError) -> None:
    for operation in changes():
        respond, steps = scripted(error)
        with pytest.raises(type(error)):
            perform(operation, respond)
        assert len(steps) == 1


def test_a_change_that_was_never_sent_is_repeated_once() -> None:
    for operation in changes():
        never_sent = ClusterUnreachable("nothing answers", connected="no")
        respond, steps = scripted(never_sent, never_sent)
        with pytest.raises(ClusterUnreachable):
            perform(operation, respond)
        assert [type(step) for step in steps] == [Call, Retry, Call]


def test_limits_are_asked_for_once() -> None:
    cache = LimitsCache()
    status = router_pb2.GetStatusResponse(limits={"max_ids": 7, "of_a_later_version": 1})
    for asked in (["GetStatus", "Get"], ["Get"]):
        outcomes = [status] * (len(asked) - 1) + [router_pb2.GetResponse()]
        respond, steps = scripted(*outcomes)
        perform(operations.get(cache, "papers", ["a"]), respond)
        assert [step.rpc for step in steps] == asked
    assert cache.limits == Limits(max_ids=7)


# --- slices -----------------------------------------------------------------------


class Store:
    """Answers calls, and refuses replies with more than `room` units."""

    def __init__(self, room: int) -> None:
        self.room = room
        self.calls: list[Any] = []

    def __call__(self, step: Any) -> Any:
        assert isinstance(step, Call)
        self.calls.append(step)
        return getattr(self, step.rpc)(step.request)

    def Get(self, request: router_pb2.GetRequest) -> Any:  # noqa: N802
        if len(request.ids) > self.room:
            return TOO_LARGE
        return router_pb2.GetResponse(
            results=[
                router_pb2.GetResult(
                    found=item != "gone",
                    document=common_pb2.Document(
                        id=item, title=f"title {item}", text=f"text {item}", payload=b'{"n":1}'
                    ),
                )
                for item in request.ids
            ]
        )

    def Delete(self, request: router_pb2.DeleteRequest) -> Any:  # noqa: N802
        return router_pb2.DeleteResponse(
            found=[item != "gone" for item in request.ids], position=request.ids[-1].encode()
        )

    def hits(self, options: router_pb2.SearchOptions) -> list[router_pb2.Hit]:
        title = "t" if router_pb2.FIELD_TITLE in options.fields else ""
        chunk = common_pb2.Span(start=1, end=3) if options.fields else None
        return [
            router_pb2.Hit(id=item, score=score, title=title, chunk=chunk)
            for item, score in (("a", 3.0), ("gone", 2.0), ("c", 1.0))
        ]

    def Search(self, request: router_pb2.SearchRequest) -> Any:  # noqa: N802
        if len(request.options.fields) > self.room:
            return TOO_LARGE
        return router_pb2.SearchResponse(hits=self.hits(request.options), superseded=1)

    def SearchBatch(self, request: router_pb2.SearchBatchRequest) -> Any:  # noqa: N802
        count = len(request.texts) or request.vectors.rows
        if count * len(request.options.fields) > self.room:
            return TOO_LARGE
        return router_pb2.SearchBatchResponse(
            answers=[
                router_pb2.BatchAnswer(status=to_status(EmptyText("no words")))
                if text == ""
                else router_pb2.BatchAnswer(hits=self.hits(request.options))
                for text in (request.texts or ["vector"] * count)
            ]
        )


def test_get_is_cut_until_the_reply_fits() -> None:
    store = Store(room=3)
    ids = [f"d{number}" for number in range(10)]
    documents = perform(operations.get(cache_of(), "papers", ids), store)
    assert [document.id for document in documents] == ids
    sizes = [len(call.request.ids) for call in store.calls]
    assert sizes == [10, 5, 3, 3, 3, 1]


def test_get_of_one_document_too_large_says_so() -> None:
    with pytest.raises(LimitExceeded):
        perform(operations.get(cache_of(), "papers", ["a"]), Store(room=0))


def test_missing_documents_are_none() -> None:
    documents = perform(operations.get(cache_of(), "papers", ["a", "gone"]), Store(9))
    assert documents == [StoredDocument("a", "title a", "text a", {"n": 1}), None]


def test_delete_goes_in_slices() -> None:
    store = Store(9)
    report = perform(operations.delete(cache_of(max_ids=2), "papers", ["a", "gone", "c"]), store)
    assert report.found == (True, False, True)
    assert (report.deleted, report.position) == (2, b"c")
    assert [list(call.request.ids) for call in store.calls] == [["a", "gone"], ["c"]]


def test_an_answer_too_large_comes_in_parts() -> None:
    store = Store(room=2)
    answer = perform(operations.search(cache_of(), QUERY), store)
    assert [call.rpc for call in store.calls] == ["Search", "Search", "Get", "Get", "Get"]
    assert [(hit.id, hit.title, hit.text, hit.payload, hit.chunk) for hit in answer] == [
        ("a", "t", "text a", {"n": 1}, Span(1, 3)),
        ("c", "t", "text c", {"n": 1}, Span(1, 3)),
    ]
    assert answer.superseded == 2


def test_parts_hold_the_fields_asked_for_alone() -> None:
    request = router_pb2.SearchRequest()
    request.CopyFrom(QUERY)
    request.options.fields[:] = [router_pb2.FIELD_PAYLOAD, router_pb2.FIELD_TEXT]
    store = Store(room=1)
    answer = perform(operations.search(cache_of(), request), store)
    assert {(hit.title, hit.text) for hit in answer} == {("", "text a"), ("", "text c")}


def test_a_question_too_large_is_not_asked_twice() -> None:
    respond, steps = scripted(TOO_LARGE)
    with pytest.raises(LimitExceeded):
        perform(operations.search(cache_of(max_message_bytes=10), QUERY), respond)
    assert len(steps) == 1


@pytest.mark.parametrize("vectors", [False, True])
def test_batches_are_cut_until_the_reply_fits(vectors: bool) -> None:
    store = Store(room=7)
    questions: Any = np.zeros((10, 4), np.float32) if vectors else [f"q{n}" for n in range(10)]
    operation = operations.search_batch(cache_of(max_batch=8), "r", "papers", questions, OPTIONS)
    answers = perform(operation, store)
    assert [len(answer) for answer in answers] == [3] * 10
    sizes = [len(call.request.texts) or call.request.vectors.rows for call in store.calls]
    assert sizes == [8, 4, 2, 2, 2, 2, 2]


def test_one_question_of_a_batch_too_large_comes_in_parts() -> None:
    store = Store(room=2)
    operation = operations.search_batch(cache_of(), "r", "papers", ["q0", "q1"], OPTIONS)
    answers = perform(operation, store)
    assert [[hit.text for hit in answer] for answer in answers] == [["text a", "text c"]] * 2


def test_a_bad_question_does_not_fail_its_batch() -> None:
    operation = operations.search_batch(cache_of(), "r", "papers", ["q", "", "q"], OPTIONS)
    answers = perform(operation, Store(99))
    assert [type(answer) for answer in answers] == [Answer, EmptyText, Answer]


def test_an_error_after_answers_stands_for_its_questions() -> None:
    good = router_pb2.SearchBatchResponse(answers=[router_pb2.BatchAnswer()] * 2)
    respond, _ = scripted(good, DeadlineExceeded("late"))
    operation = operations.search_batch(cache_of(max_batch=2), "r", "papers", list("abc"), OPTIONS)
    assert [type(item) for item in perform(operation, respond)] == [
        Answer,
        Answer,
        DeadlineExceeded,
    ]


def test_an_error_of_the_first_message_is_raised() -> None:
    respond, _ = scripted(CollectionNotFound("none"))
    with pytest.raises(CollectionNotFound):
        perform(operations.search_batch(cache_of(), "r", "papers", ["a"], OPTIONS), respond)


def test_no_questions_and_no_ids_ask_nothing() -> None:
    respond, steps = scripted()
    assert perform(operations.search_batch(cache_of(), "r", "papers", [], OPTIONS), respond) == []
    assert perform(operations.get(cache_of(), "papers", []), respond) == []
    assert perform(operations.delete(cache_of(), "papers", []), respond).found == ()
    assert steps == []


def test_names_are_checked_before_anything_is_sent() -> None:
    for operation in (
        operations.get(LimitsCache(), "No", ["a"]),
        operations.delete(LimitsCache(), "No", ["a"]),
        operations.search_batch(LimitsCache(), "r", "No", ["a"], OPTIONS),
        operations.drop_collection("No"),
        operations.optimize("No"),
    ):
        with pytest.raises(InvalidName):
            next(operation)
