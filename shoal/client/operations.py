"""What each call of the client does, without doing it: generators of steps.

An operation yields `Call` and `Retry` and is sent what came of them; a failed
call is thrown into it as a typed error. `sync` and `asynchronous` each hold
one driver that performs the steps, so that retries, slicing and parsing exist
once. No sockets, clocks, threads or event loops here.

No other layer repeats a call: once here, within the budget of the client.
"""

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from google.protobuf.message import Message

from shoal.client import replies, requests
from shoal.client.explained import ExplainedAnswer, Reranked
from shoal.client.model import (
    Answer,
    ClusterStatus,
    CollectionInfo,
    DeleteReport,
    StoredDocument,
)
from shoal.client.slicing import BatchSlicer, ids_slicer, questions_slicer
from shoal.errors import LimitExceeded, ShoalError
from shoal.ids import check_name
from shoal.rpc.router.v1 import router_pb2
from shoal.settings import Limits

Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class Call:
    """Call an RPC with what is left of the time; yields its response."""

    rpc: str
    request: Message


@dataclass(frozen=True, slots=True)
class Retry:
    """Wait until the call that failed may be made once more; if it may not, `error` is raised."""

    error: ShoalError


Step = Call | Retry
Operation = Generator[Step, Any, Result]


class LimitsCache:
    """The cluster's limits, asked for once and again after one was exceeded."""

    def __init__(self) -> None:
        self.limits: Limits | None = None

    def get(self) -> Operation[Limits]:
        """The published limits."""
        if self.limits is None:
            request = router_pb2.GetStatusRequest(router_only=True)
            self.limits = replies.limits((yield from read("GetStatus", request)))
        return self.limits


def read(rpc: str, request: Message) -> Operation[Any]:
    """One call that changes nothing: repeated once where that may help."""
    return _call(rpc, request, lambda error: error.retryable)


def change(rpc: str, request: Message) -> Operation[Any]:
    """One call that changes something: repeated once if it cannot have been sent."""
    return _call(rpc, request, lambda error: error.metadata.get("connected") == "no")


def _call(rpc: str, request: Message, repeats: Callable[[ShoalError], bool]) -> Operation[Any]:
    try:
        return (yield Call(rpc, request))
    except ShoalError as error:
        if not repeats(error):
            raise
        yield Retry(error)
    return (yield Call(rpc, request))


def search(cache: LimitsCache, request: router_pb2.SearchRequest) -> Operation[Answer]:
    """One question; an answer too large for a message comes in parts."""
    try:
        return replies.answer((yield from read("Search", request)))
    except LimitExceeded as error:
        if not _reply_too_large(error, request, (yield from cache.get())):
            raise
    return (yield from _search_in_parts(cache, request))


def _search_in_parts(cache: LimitsCache, request: router_pb2.SearchRequest) -> Operation[Answer]:
    """The hits with their titles first (which bring the chunks), then their documents."""
    wanted = list(request.options.fields)
    slim = router_pb2.SearchRequest()
    slim.CopyFrom(request)
    slim.options.fields[:] = [router_pb2.FIELD_TITLE] if wanted else []
    answer = replies.answer((yield from read("Search", slim)))
    documents = yield from get(cache, request.collection, [hit.id for hit in answer])
    hits = tuple(
        replace(
            hit,
            title=hit.title if router_pb2.FIELD_TITLE in wanted else "",
            text=document.text if router_pb2.FIELD_TEXT in wanted else "",
            payload=document.payload if router_pb2.FIELD_PAYLOAD in wanted else {},
        )
        for hit, document in zip(answer, documents, strict=True)
        if document is not None
    )
    gone = len(answer) - len(hits)
    return replace(answer, hits=hits, superseded=answer.superseded + gone)


def explain(request: router_pb2.ExplainRequest) -> Operation[ExplainedAnswer]:
    """Why documents match."""
    return replies.explained((yield from read("Explain", request)))


def rerank(request: router_pb2.RerankRequest) -> Operation[Reranked]:
    """Given documents by score."""
    return replies.reranked((yield from read("Rerank", request)))


def search_batch(
    cache: LimitsCache,
    request_id: str,
    name: str,
    questions: requests.Questions,
    options: router_pb2.SearchOptions,
) -> Operation[list[Answer | ShoalError]]:
    """Many questions, in as many messages as the limits ask for.

    An error of the first message is raised; a later one stands for the
    questions of its message, so that no answer is lost.
    """
    check_name(name)
    slicer = questions_slicer(questions, (yield from cache.get()))
    answers: list[Answer | ShoalError] = []

    def ask(start: int, end: int) -> Operation[None]:
        request = requests.batch_request(request_id, name, questions[start:end], options)
        try:
            response = yield from read("SearchBatch", request)
        except ShoalError as error:
            if not answers or slicer.is_message_size(error):
                raise
            answers.extend([error] * (end - start))
        else:
            answers.extend(replies.batch_answers(response))

    def ask_alone(start: int) -> Operation[None]:
        question = questions[start]
        text, vector = (question, None) if isinstance(question, str) else (None, question)
        request = requests.search_request(request_id, name, text, vector, options)
        try:
            answers.append((yield from _search_in_parts(cache, request)))
        except ShoalError as error:
            answers.append(error)

    yield from _in_slices(slicer, ask, ask_alone)
    return answers


def get(
    cache: LimitsCache, name: str, ids: Sequence[str]
) -> Operation[list[StoredDocument | None]]:
    """Documents by id, in as many messages as the limits ask for."""
    check_name(name)
    slicer = ids_slicer(ids, (yield from cache.get()))
    documents: list[StoredDocument | None] = []

    def ask(start: int, end: int) -> Operation[None]:
        request = router_pb2.GetRequest(collection=name, ids=ids[start:end])
        response = yield from read("Get", request)
        documents.extend(map(replies.stored_document, response.results))

    yield from _in_slices(slicer, ask)
    return documents


def delete(cache: LimitsCache, name: str, ids: Sequence[str]) -> Operation[DeleteReport]:
    """Deletes by id, in as many messages as the limits ask for."""
    check_name(name)
    slicer = ids_slicer(ids, (yield from cache.get()))
    found: list[bool] = []
    position = b""

    def ask(start: int, end: int) -> Operation[None]:
        nonlocal position
        request = router_pb2.DeleteRequest(collection=name, ids=ids[start:end])
        response = yield from change("Delete", request)
        found.extend(response.found)
        position = response.position

    yield from _in_slices(slicer, ask)
    return DeleteReport(tuple(found), position)


def create_collection(
    request: router_pb2.CreateCollectionRequest,
) -> Operation[CollectionInfo]:
    """Creates a collection and waits until it serves."""
    return replies.collection_info((yield from change("CreateCollection", request)).collection)


def drop_collection(name: str) -> Operation[None]:
    """Drops a collection and its data."""
    yield from change("DropCollection", router_pb2.DropCollectionRequest(name=check_name(name)))


def list_collections() -> Operation[list[CollectionInfo]]:
    """The collections, ascending by name."""
    response = yield from read("ListCollections", router_pb2.ListCollectionsRequest())
    return [replies.collection_info(item) for item in response.collections]


def optimize(name: str) -> Operation[None]:
    """Seals and merges a collection's shards into one segment each."""
    request = router_pb2.OptimizeCollectionRequest(name=check_name(name))
    yield from change("OptimizeCollection", request)


def rebuild(request: router_pb2.RebuildCollectionRequest) -> Operation[int]:
    """Begins to build the next generation; gives its number."""
    response: router_pb2.RebuildCollectionResponse = yield from change("RebuildCollection", request)
    return response.generation


def rollback(name: str) -> Operation[int]:
    """Serves the generation before again; gives its number."""
    request = router_pb2.RollbackCollectionRequest(name=check_name(name))
    response: router_pb2.RollbackCollectionResponse = yield from change(
        "RollbackCollection", request
    )
    return response.generation


def accept_loss(request: router_pb2.AcceptLossRequest) -> Operation[None]:
    """Lets a corrupt shard serve without the data that is lost."""
    yield from change("AcceptLoss", request)


def status() -> Operation[ClusterStatus]:
    """The cluster's state."""
    return replies.cluster_status((yield from read("GetStatus", router_pb2.GetStatusRequest())))


def _in_slices(
    slicer: BatchSlicer,
    ask: Callable[[int, int], Operation[None]],
    ask_alone: Callable[[int], Operation[None]] | None = None,
) -> Operation[None]:
    """Asks for slice after slice; halves them when a reply is too large for a message.

    Args:
        slicer: cuts the items.
        ask: asks for the items start to end.
        ask_alone: asks for one item whose reply alone is too large.
    """
    while (span := slicer.next_span()) is not None:
        start, end = span
        try:
            yield from ask(start, end)
        except LimitExceeded as error:
            if slicer.may_cut(error):
                slicer.halve()
                continue
            if ask_alone is None or not slicer.is_message_size(error):
                raise
            yield from ask_alone(start)
        slicer.advance(end)


def _reply_too_large(error: LimitExceeded, request: Message, limits: Limits) -> bool:
    return BatchSlicer.is_message_size(error) and request.ByteSize() <= limits.max_message_bytes
