"""Search and SearchBatch: checked, encoded, fanned out, fetched, answered."""

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np
from google.protobuf.message import DecodeError, Message

from router import metrics
from router.core.admission import Admission
from router.core.coverage import coverage_of, shortfall
from router.core.topology import CollectionMap, TopologyMap
from router.encoding import Encoded, QueryEncoder, token_question
from router.fetching import Completed, Fetcher
from router.lanes import Answer, Ask, Lane, serves
from router.requests import (
    Clock,
    Plan,
    RequestChecker,
    check_text,
    check_vectors,
    find_collection,
)
from router.settings import RouterSettings
from router.topology import TopologyFollower
from shoal.errors import (
    EmptyText,
    InvalidRequest,
    LimitExceeded,
    MalformedMessage,
    ShoalError,
    StaleTopology,
)
from shoal.rpc.common.v1 import common_pb2
from shoal.rpc.router.v1 import router_pb2
from shoal.types import Coverage, Kind
from shoal.wire.arrays import check_limit
from shoal.wire.errors import to_status
from shoal.wire.server import Context

Request = TypeVar("Request", bound=Message)

_SEARCH_HITS = router_pb2.SearchResponse.HITS_FIELD_NUMBER
_BATCH_HITS = router_pb2.BatchAnswer.HITS_FIELD_NUMBER
_ENCODE = metrics.stage_seconds.labels("encode")
_FETCH = metrics.stage_seconds.labels("fetch")
_TOTAL = metrics.stage_seconds.labels("total")
_OK = metrics.queries.labels("ok")
_PARTIAL = metrics.queries.labels("partial")


@dataclass(frozen=True, slots=True)
class _Reply:
    """One question's reply, either as fetched hits or as merged columns."""

    answer: Answer
    completed: Completed | None
    coverage: Coverage
    truncated: bool


class SearchHandlers:
    """The hot path of the SearchService.

    Args:
        follower: the topology.
        checker: of requests.
        encoder: of questions.
        fetcher: of documents.
        lane: the lane of a generation.
        settings: bounds.
    """

    def __init__(
        self,
        *,
        follower: TopologyFollower,
        checker: RequestChecker,
        encoder: QueryEncoder,
        fetcher: Fetcher,
        lane: Callable[[CollectionMap], Lane],
        settings: RouterSettings,
    ) -> None:
        self._follower = follower
        self._checker = checker
        self._encoder = encoder
        self._fetcher = fetcher
        self._lane = lane
        self._admission = Admission("open_queries", settings.open_queries, retry_after_s=0.1)
        metrics.open_queries.set_function(lambda: self._admission.under_way)
        self._reserve_ns = settings.fetch_reserve_ms * 1_000_000

    async def search(self, data: bytes, context: Context) -> bytes:
        """Handles `SearchService.Search`, bytes in and bytes out."""
        with metrics.counted("search"):
            request = _parse(router_pb2.SearchRequest, data)
            with self._admission.enter():
                return await self._search(request, self._checker.clock(context))

    async def search_batch(self, data: bytes, context: Context) -> bytes:
        """Handles `SearchService.SearchBatch`, bytes in and bytes out."""
        with metrics.counted("search_batch"):
            request = _parse(router_pb2.SearchBatchRequest, data)
            count = max(len(request.texts), request.vectors.rows)
            check_limit("max_batch", count, self._checker.limits.max_batch)
            with self._admission.enter(count):
                return await self._search_batch(request, self._checker.clock(context))

    # --- one question -----------------------------------------------------

    async def _search(self, request: router_pb2.SearchRequest, clock: Clock) -> bytes:
        collection = find_collection(self._follower.current, request.collection)
        plan = self._checker.plan(request, collection, clock)
        self._lane(plan.collection).admit(clock.deadline_ns)
        encoded = await self.question(request.query, plan)
        encoded_ns = time.monotonic_ns()
        plan, answers = await self.ask(plan, [encoded.vector])
        answered_ns = time.monotonic_ns()
        completed = await self._fetcher.complete(plan, answers) if plan.fields else [None]
        reply = self._judge(plan, answers[0], completed[0], encoded.truncated)
        if isinstance(reply, ShoalError):
            raise reply
        timings = _timings(plan, answers, (encoded_ns, answered_ns), cached=encoded.cached)
        done = reply.completed
        own = router_pb2.SearchResponse(
            hits=() if done is None else done.hits,
            timings=timings,
            truncated=reply.truncated,
            superseded=0 if done is None else done.superseded,
            request_id=plan.request_id,
        ).SerializeToString()
        group = reply.answer.group
        hits = group.hits(reply.answer.row, _SEARCH_HITS) if done is None else b""
        # Messages merge when their bytes are joined; most of a round share this part.
        shared = group.shared(reply.coverage, lambda: _shared(plan.collection, reply))
        return self._bounded(b"".join((hits, shared, own)))

    async def question(self, query: router_pb2.Query, plan: Plan) -> Encoded:
        """A question ready to be asked.

        Raises:
            ShoalError: what is wrong with it, or why it cannot be encoded.
        """
        kind = query.WhichOneof("input")
        if kind == "vector":
            count = query.vector.rows
            if count != 1 and (plan.collection.kind is Kind.SINGLE or not count):
                raise InvalidRequest(
                    f"a question is one vector, {count} were sent", field="query.vector"
                )
            given = _brought(check_vectors(query.vector, plan.collection, [count])[0], plan)
            if isinstance(given, ShoalError):
                raise given
            return given
        if kind is None:
            raise EmptyText("there is neither text nor vector to search for")
        self._checker.texts([query.text], plan.collection)
        check_text(query.text)
        results = await self._encoder.encode(
            plan.collection, [query.text], plan.allow_truncation, plan.clock.deadline_ns
        )
        if isinstance(results[0], ShoalError):
            raise results[0]
        return results[0]

    # --- many questions ---------------------------------------------------

    async def _search_batch(self, request: router_pb2.SearchBatchRequest, clock: Clock) -> bytes:
        collection = find_collection(self._follower.current, request.collection)
        plan = self._checker.plan(request, collection, clock)
        self._lane(plan.collection).admit(clock.deadline_ns)
        questions = await self._questions(request, plan)
        encoded_ns = time.monotonic_ns()
        good = [question for question in questions if isinstance(question, Encoded)]
        plan, answers = await self.ask(plan, [question.vector for question in good])
        answered_ns = time.monotonic_ns()
        completed: Sequence[Completed | None] = [None] * len(answers)
        if plan.fields and answers:
            completed = await self._fetcher.complete(plan, answers)
        found = iter(zip(answers, completed, strict=True))
        parts = [
            _batch_answer(
                question
                if isinstance(question, ShoalError)
                else self._judge(plan, *next(found), question.truncated)
            )
            for question in questions
        ]
        rest = router_pb2.SearchBatchResponse(
            fingerprint=collection.fingerprint,
            generation=plan.collection.generation,
            timings=_timings(
                plan,
                answers,
                (encoded_ns, answered_ns),
                cached=bool(good) and all(question.cached for question in good),
            ),
            request_id=plan.request_id,
        ).SerializeToString()
        return self._bounded(b"".join([*map(_framed, parts), rest]))

    async def _questions(
        self, request: router_pb2.SearchBatchRequest, plan: Plan
    ) -> list[Encoded | ShoalError]:
        if request.texts and request.HasField("vectors"):
            raise InvalidRequest("give texts or vectors, not both", field="vectors")
        if request.HasField("vectors"):
            counts = list(request.row_counts) or [1] * request.vectors.rows
            if plan.collection.kind is Kind.SINGLE and request.row_counts:
                raise InvalidRequest("only kind colbert has row_counts", field="row_counts")
            rows = check_vectors(request.vectors, plan.collection, counts)
            return [_brought(row, plan) for row in rows]
        texts = list(request.texts)
        if not texts:
            return []
        self._checker.texts(texts, plan.collection)
        empty = EmptyText("the question is empty")
        worded = [text for text in texts if text and not text.isspace()]
        results = iter(
            await self._encoder.encode(
                plan.collection, worded, plan.allow_truncation, plan.clock.deadline_ns
            )
        )
        return [next(results) if text and not text.isspace() else empty for text in texts]

    # --- both -------------------------------------------------------------

    async def ask(self, plan: Plan, vectors: Sequence[bytes]) -> tuple[Plan, list[Answer]]:
        """Asks every shard; once more if another generation serves meanwhile.

        Returns:
            The plan of the generation that answered, and its answers.
        """
        answers = await self._ask_once(plan, vectors)
        stale = any(
            isinstance(error, StaleTopology)
            for answer in answers
            if answer.missing
            for error in answer.missing.values()
        )
        if not stale:
            return plan, answers
        current: TopologyMap = self._follower.current
        if serves(current, plan.collection) or not plan.clock.left_s():
            return plan, answers
        collection = find_collection(current, plan.collection.name)
        if collection.fingerprint != plan.collection.fingerprint or plan.after:
            return plan, answers
        plan = replace(plan, collection=collection)
        return plan, await self._ask_once(plan, vectors)

    async def _ask_once(self, plan: Plan, vectors: Sequence[bytes]) -> list[Answer]:
        loop = asyncio.get_running_loop()
        asks = [
            Ask(vector, plan.top_k, plan.after, loop.create_future(), plan.effort(vector))
            for vector in vectors
        ]
        deadline_ns = plan.clock.deadline_ns
        if plan.fields:
            left_ns = deadline_ns - time.monotonic_ns()
            deadline_ns -= max(0, min(self._reserve_ns, left_ns // 4))
        return await self._lane(plan.collection).ask(asks, deadline_ns)

    def _judge(
        self, plan: Plan, answer: Answer, completed: Completed | None, truncated: bool
    ) -> _Reply | ShoalError:
        missing: Mapping[int, ShoalError] = answer.missing
        coverage = answer.group.coverage(missing)
        if completed is not None and completed.missing is not missing:
            missing = completed.missing
            coverage = coverage_of(answer.group.documents, missing)
        if not missing:
            _OK.inc()
            return _Reply(answer, completed, coverage, truncated)
        for error in missing.values():
            metrics.missing_shards.labels(error.reason).inc()
        failure = shortfall(coverage, plan.min_coverage, missing)
        if failure is not None:
            return failure
        _PARTIAL.inc()
        return _Reply(answer, completed, coverage, truncated)

    def _bounded(self, reply: bytes) -> bytes:
        if len(reply) > self._checker.limits.max_message_bytes:
            raise LimitExceeded(
                f"the reply has {len(reply)} bytes, max_message_bytes = "
                f"{self._checker.limits.max_message_bytes}: ask for fewer at a time",
                limit="max_message_bytes",
                allowed=self._checker.limits.max_message_bytes,
                given=len(reply),
            )
        return reply


def _brought(rows: bytes | ShoalError, plan: Plan) -> Encoded | ShoalError:
    """A question that its user brings as vectors."""
    if isinstance(rows, ShoalError):
        return rows
    if plan.collection.kind is Kind.COLBERT:
        vectors = np.frombuffer(rows, "<f4").reshape(-1, plan.collection.dim)
        rows = token_question(vectors)
    return Encoded(rows, truncated=False, cached=False)


def _parse(kind: type[Request], data: bytes) -> Request:
    try:
        return kind.FromString(data)
    except DecodeError as error:
        raise MalformedMessage(
            f"the bytes are no {kind.DESCRIPTOR.full_name} (protobuf, text in UTF-8)"
        ) from error


def _batch_answer(reply: _Reply | ShoalError) -> bytes:
    if isinstance(reply, ShoalError):
        metrics.queries.labels("failed").inc()
        return router_pb2.BatchAnswer(status=to_status(reply)).SerializeToString()
    completed = reply.completed
    rest = router_pb2.BatchAnswer(
        hits=() if completed is None else completed.hits,
        coverage=coverage_message(reply.coverage),
        truncated=reply.truncated,
        superseded=0 if completed is None else completed.superseded,
        position=reply.answer.group.position,
    ).SerializeToString()
    if completed is not None:
        return rest
    return reply.answer.group.hits(reply.answer.row, _BATCH_HITS) + rest


def _framed(answer: bytes) -> bytes:
    """An answer as an element of `SearchBatchResponse.answers` (field 1)."""
    header = bytearray(b"\x0a")
    length = len(answer)
    while length > 0x7F:
        header.append(length & 0x7F | 0x80)
        length >>= 7
    header.append(length)
    return bytes(header) + answer


def _shared(collection: CollectionMap, reply: _Reply) -> bytes:
    """What the answers of a round have in common."""
    return router_pb2.SearchResponse(
        coverage=coverage_message(reply.coverage),
        fingerprint=collection.fingerprint,
        generation=collection.generation,
        position=reply.answer.group.position,
    ).SerializeToString()


def coverage_message(coverage: Coverage) -> common_pb2.Coverage:
    """Coverage on the wire."""
    return common_pb2.Coverage(
        documents_total=coverage.documents_total,
        documents_covered=coverage.documents_covered,
        shards_total=coverage.shards_total,
        shards_answered=coverage.shards_answered,
        missing=[
            common_pb2.MissingShard(shard=each.shard, reason=each.reason)
            for each in coverage.missing
        ],
    )


def _timings(
    plan: Plan, answers: Sequence[Answer], marks: tuple[int, int], *, cached: bool
) -> common_pb2.StageTimings:
    """Where the time went; of a batch, each stage's longest."""
    now_ns = time.monotonic_ns()
    encoded_ns, answered_ns = marks
    encode_us = (encoded_ns - plan.clock.arrived_ns) // 1_000
    fetch_us = (now_ns - answered_ns) // 1_000 if plan.fields else 0
    total_us = (now_ns - plan.clock.arrived_ns) // 1_000
    _TOTAL.observe(total_us / 1e6)
    if plan.collection.fingerprint:
        _ENCODE.observe(encode_us / 1e6)
    if fetch_us:
        _FETCH.observe(fetch_us / 1e6)
    return common_pb2.StageTimings(
        encode_us=encode_us,
        queue_us=max([answer.queue_us for answer in answers], default=0),
        fan_out_us=max([answer.fan_out_us for answer in answers], default=0),
        merge_us=max([answer.group.merge_us for answer in answers], default=0),
        fetch_us=fetch_us,
        total_us=total_us,
        encode_cached=cached,
        tokens_scored=sum(answer.group.tokens_scored for answer in answers[:1]),
        exhaustive=plan.collection.kind is Kind.COLBERT
        and not any(answer.group.refined[answer.row] for answer in answers),
    )
