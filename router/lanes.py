"""One lane per serving generation: rounds out to its shards, answers back.

A lane turns rounds into messages and replies into merged columns; which round
leaves when, and which reply counts, is the core's.
"""

import asyncio
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from router import metrics
from router.core import superset
from router.core.coverage import coverage_of
from router.core.fanout import Finish, Part, Query, Send
from router.core.options import FanOutOptions
from router.core.position import encode_position
from router.core.superset import LatePart
from router.core.topology import CollectionMap, Effort, TopologyMap
from router.peers import Peers, invoke
from router.pump import Outcome, Pump
from router.topology import TopologyFollower
from shoal import kernels
from shoal.errors import (
    ClusterUnreachable,
    InternalError,
    MalformedMessage,
    ShardUnavailable,
    ShoalError,
)
from shoal.kernels import Hits, Merged
from shoal.rpc.common.v1 import common_pb2
from shoal.rpc.shard.v1 import shard_pb2
from shoal.types import Coverage, Kind
from shoal.wire.arrays import column
from shoal.wire.errors import from_status

# One observation per round, of its longest-waiting question.
_ROUND = metrics.round_queries.labels("search")
_QUEUE, _FAN_OUT, _MERGE = (
    metrics.stage_seconds.labels(stage) for stage in ("queue", "fan_out", "merge")
)


@dataclass(slots=True, eq=False)
class Ask:
    """A question for every shard of a generation.

    Attributes:
        vector: one row, little-endian float32; of late interaction little-endian int16.
        top_k: documents wanted.
        after: per shard, the sequence number to have applied; None asks for none.
        answer: resolved when the question is over.
        effort: of late interaction.
    """

    vector: bytes
    top_k: int
    after: tuple[int, ...] | None
    answer: "asyncio.Future[Answer]"
    effort: Effort


@dataclass(slots=True, eq=False)
class Group:
    """Questions of one round that ended together, and their merged hits.

    Attributes:
        parts: what each shard answered.
        top_k: per question.
        refined: per question, see `Effort`.
        merged: the best hits.
        position: token of what was seen.
        documents: per shard, live documents.
        merge_us: time of the merge.
        tokens_scored: that the shards compared by their full codes, for the whole round.
    """

    parts: Sequence[LatePart]
    top_k: Sequence[int]
    refined: Sequence[int]
    merged: Merged
    position: bytes
    documents: Sequence[int]
    merge_us: int
    tokens_scored: int
    _encoded: dict[int, list[bytes]] = field(default_factory=dict)
    _shared: dict[int, tuple[Coverage, bytes]] = field(default_factory=dict)
    _coverage: dict[int, tuple[Mapping[int, ShoalError], Coverage]] = field(default_factory=dict)

    def hits(self, row: int, field_number: int) -> bytes:
        """A question's hits as protobuf; see `shoal.kernels.encode_hits`."""
        encoded = self._encoded.get(field_number)
        if encoded is None:
            encoded = self._encoded[field_number] = kernels.encode_hits(self.merged, field_number)
        return encoded[row]

    def shared(self, coverage: Coverage, make: Callable[[], bytes]) -> bytes:
        """Bytes that every answer with this coverage has in common, made once."""
        known = self._shared.get(id(coverage))
        if known is None:
            known = self._shared[id(coverage)] = coverage, make()
        return known[1]

    def coverage(self, missing: Mapping[int, ShoalError]) -> Coverage:
        """Coverage of a question; most of a group share one."""
        known = self._coverage.get(id(missing))
        if known is None:
            known = self._coverage[id(missing)] = missing, coverage_of(self.documents, missing)
        return known[1]

    def without(self, row: int, shards: Mapping[int, ShoalError]) -> Merged:
        """One question's best hits when these shards do not count either."""
        parts = [
            replace(part, rows=np.where(part.rows == row, 0, -1))
            for part in self.parts
            if part.number not in shards
        ]
        return superset.merge(parts, [self.refined[row]], np.array([self.top_k[row]]))


@dataclass(frozen=True, slots=True)
class Answer:
    """A question's part of a group.

    Attributes:
        group: the merged hits.
        row: its row there.
        missing: shards that did not take part, and why.
        queue_us: waiting for a round to leave.
        fan_out_us: from leaving to the last needed reply.
    """

    group: Group
    row: int
    missing: Mapping[int, ShoalError]
    queue_us: int
    fan_out_us: int


class Lane:
    """A generation's shards.

    Args:
        collection: the generation's map.
        follower: the topology.
        peers: channels.
        options: bounds of the rounds.
    """

    def __init__(
        self,
        collection: CollectionMap,
        follower: TopologyFollower,
        peers: Peers,
        options: FanOutOptions,
    ) -> None:
        self.collection = collection
        self._follower = follower
        self._peers = peers
        self._documents = list(collection.documents)
        self._answered = [False] * collection.shard_count
        self._pump: Pump[Ask] = Pump(
            collection.servers,
            options,
            send=self._send,
            finish=self._finish,
            refresh=self._refresh,
        )

    def place(self, collection: CollectionMap) -> None:
        """Takes a newer map of the same generation."""
        self.collection = collection
        self._pump.core.place(collection.servers)
        for shard, count in enumerate(collection.documents):
            if not self._answered[shard]:
                self._documents[shard] = count

    @property
    def idle(self) -> bool:
        """Nobody waits for an answer."""
        return self._pump.core.open_queries == 0

    def close(self) -> None:
        """Stops everything under way."""
        self._pump.close()

    @property
    def limit(self) -> float:
        """Questions that may be open now."""
        return self._pump.core.limit

    def admit(self, deadline_ns: int) -> None:
        """The door, before anything is done for a question.

        Raises:
            Overloaded: the shards would answer it too late.
        """
        self._pump.admit(deadline_ns)

    async def ask(self, asks: Sequence[Ask], deadline_ns: int) -> list[Answer]:
        """Puts questions to every shard; returns by the deadline."""
        queries = [
            Query(
                payload=ask,
                deadline_ns=deadline_ns,
                cost=len(ask.vector) + 96 * max(ask.top_k, ask.effort.refined),
            )
            for ask in asks
        ]
        self._pump.submit(queries)
        try:
            if len(asks) == 1:
                return [await asks[0].answer]
            return [await ask.answer for ask in asks]
        finally:
            for query in queries:
                if query.open:
                    self._pump.cancel(query)

    async def _refresh(self) -> bool:
        await self._follower.refresh()
        return serves(self._follower.current, self.collection)

    async def _send(self, action: Send[Ask]) -> Outcome:
        address = self._follower.current.addresses.get(action.server)
        if address is None:
            raise ShardUnavailable(f"{action.server} has no address", shard=action.shard)
        request, timeout_s = self._request(action)
        try:
            response = await invoke(self._peers.shard(address).Search, request, timeout_s)
        except ClusterUnreachable as error:
            message = f"shard {action.shard} on {action.server} does not answer: {error}"
            raise ShardUnavailable(message, shard=action.shard) from error
        hits, refused = parse_reply(response, len(action.queries))
        self._documents[action.shard] = response.documents
        self._answered[action.shard] = True
        return (hits, response), refused

    def _request(self, action: Send[Ask]) -> tuple[shard_pb2.SearchRequest, float]:
        now_ns = time.monotonic_ns()
        asks = [query.payload for query in action.queries]
        left_us = [max(1, (query.deadline_ns - now_ns) // 1_000) for query in action.queries]
        after: list[int] = []
        if any(ask.after for ask in asks):
            after = [ask.after[action.shard] if ask.after else 0 for ask in asks]
        collection = self.collection
        data = b"".join([ask.vector for ask in asks])
        late = collection.kind is Kind.COLBERT
        row_bytes = (2 if late else 4) * collection.dim
        request = shard_pb2.SearchRequest(
            key=shard_key(collection, action.shard),
            queries=common_pb2.Matrix(
                element_type=(common_pb2.ELEMENT_TYPE_I16 if late else common_pb2.ELEMENT_TYPE_F32),
                rows=len(data) // row_bytes,
                columns=collection.dim,
                data=data,
            ),
            top_k=[ask.top_k for ask in asks],
            time_left_us=left_us,
            after_sequence=after,
        )
        if late:
            request.row_counts.extend(len(ask.vector) // row_bytes for ask in asks)
            request.probes.extend(ask.effort.probes for ask in asks)
            request.refined.extend(ask.effort.refined for ask in asks)
        return request, max(left_us) / 1e6

    def _finish(self, finish: Finish[Ask]) -> None:
        try:
            self._answer(finish)
        except Exception as error:
            for query in finish.queries:
                if not query.payload.answer.done():
                    query.payload.answer.set_exception(InternalError(f"merge failed: {error!r}"))
            raise

    def _answer(self, finish: Finish[Ask]) -> None:
        began_ns = time.monotonic_ns()
        group = self._group(finish, began_ns)
        if finish.round_size:
            first = finish.queries[0]
            _ROUND.observe(finish.round_size)
            _QUEUE.observe((first.left_ns - first.arrived_ns) / 1e9)
            _FAN_OUT.observe((began_ns - first.left_ns) / 1e9)
            _MERGE.observe(group.merge_us / 1e6)
        for row, (query, missing) in enumerate(zip(finish.queries, finish.missing, strict=True)):
            future = query.payload.answer
            if future.done():
                continue
            left_ns = query.left_ns or began_ns
            future.set_result(
                Answer(
                    group,
                    row,
                    missing,
                    (left_ns - query.arrived_ns) // 1_000,
                    (began_ns - left_ns) // 1_000,
                )
            )

    def _group(self, finish: Finish[Ask], began_ns: int) -> Group:
        places = np.full(finish.round_size, -1)
        if finish.round_size:
            places[[query.row for query in finish.queries]] = np.arange(len(finish.queries))
        parts, positions, tokens = [], [0] * self.collection.shard_count, 0
        for part in finish.parts:
            hits, response = _reply_of(part)
            positions[part.shard] = response.position
            tokens += response.tokens_scored
            rows = places[np.array(part.rows, np.int64)]
            coarse = np.frombuffer(response.centroid_scores, "<f8")
            parts.append(LatePart(part.shard, rows, hits, coarse))
        top_k = [query.payload.top_k for query in finish.queries]
        refined = [query.payload.effort.refined for query in finish.queries]
        return Group(
            parts=parts,
            top_k=top_k,
            refined=refined,
            merged=superset.merge(parts, refined, np.array(top_k)),
            position=encode_position(*self.collection.lane, positions),
            documents=tuple(self._documents),
            merge_us=(time.monotonic_ns() - began_ns) // 1_000,
            tokens_scored=tokens,
        )


def _reply_of(part: Part) -> tuple[Hits, shard_pb2.SearchResponse]:
    reply = part.reply
    assert isinstance(reply, tuple)
    hits, response = reply
    return hits, response


def serves(topology: TopologyMap, collection: CollectionMap) -> bool:
    """Whether the generation is still the one that serves its collection."""
    current = topology.collections.get(collection.name)
    return current is not None and current.lane == collection.lane


def shard_key(collection: CollectionMap, shard: int) -> shard_pb2.ShardKey:
    """The name of a shard in a message."""
    return shard_pb2.ShardKey(
        collection=collection.uuid, generation=collection.generation, shard=shard
    )


def refusals(statuses: Iterable[common_pb2.Status]) -> dict[int, ShoalError]:
    """The failures among a message's statuses, by their place."""
    failures = enumerate(from_status(status) for status in statuses)
    return {place: failure for place, failure in failures if failure is not None}


def parse_reply(
    response: shard_pb2.SearchResponse, queries: int
) -> tuple[Hits, dict[int, ShoalError]]:
    """Views a shard's reply as columns.

    Returns:
        The hits, and the queries that failed by their place in the message.

    Raises:
        InternalError: the reply's columns do not fit together.
    """
    counts = np.array(response.hit_counts, np.int64)
    total = int(counts.sum())
    try:
        hits = Hits(
            counts=counts,
            ids=response.ids,
            id_lengths=column(response.id_lengths, "<u4", total, "id_lengths"),
            scores=column(response.scores, "<f8", total, "scores"),
            sequences=column(response.sequences, "<u8", total, "sequences"),
            passages=column(response.passages, "<u4", total, "passages"),
        )
    except MalformedMessage as error:
        raise InternalError(f"a shard's reply does not fit: {error}") from error
    coarse = len(response.centroid_scores)
    if coarse not in {0, 8 * total}:
        raise InternalError("a shard's reply does not fit: centroid_scores")
    if len(counts) != queries or int(hits.id_lengths.sum()) != len(hits.ids):
        raise InternalError("a shard's reply does not fit its request")
    return hits, refusals(response.statuses)
