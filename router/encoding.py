"""Questions to vectors: a cache, then whichever encoder has least to do."""

import asyncio
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from router import metrics
from router.core.cache import CacheEntry, CacheKey, QueryCache
from router.core.fanout import Finish, Query, Send
from router.core.options import FanOutOptions
from router.core.topology import CollectionMap, TopologyMap
from router.lanes import refusals
from router.peers import Peers, invoke
from router.pump import Outcome, Pump
from router.topology import TopologyFollower
from shoal.errors import (
    Cancelled,
    ClusterUnreachable,
    EncoderUnavailable,
    FingerprintMismatch,
    InternalError,
    ShardUnavailable,
    ShoalError,
    TextTooLong,
)
from shoal.kernels.fixed import to_fixed, unit_rows
from shoal.rpc.encoder.v1 import encoder_pb2
from shoal.wire.arrays import vectors_from_message

Model = tuple[str, int]
"""Fingerprint, and columns asked for (0 is all)."""


@dataclass(frozen=True, slots=True)
class Encoded:
    """A question's vector.

    Attributes:
        vector: little-endian float32; of late interaction `token_question`.
        truncated: its text was cut.
        cached: no encoder was asked.
    """

    vector: bytes
    truncated: bool
    cached: bool


@dataclass(slots=True, eq=False)
class _Text:
    text: str
    allow_truncation: bool
    encoded: asyncio.Future[Encoded]


@dataclass(frozen=True, slots=True)
class _Reply:
    vectors: Sequence[bytes]
    truncated: Sequence[bool]


class QueryEncoder:
    """Encodes questions; texts that wait travel in one message.

    Args:
        follower: the topology.
        peers: channels.
        options: bounds of the messages.
        cache: encoded questions.
    """

    def __init__(
        self,
        follower: TopologyFollower,
        peers: Peers,
        options: FanOutOptions,
        cache: QueryCache,
    ) -> None:
        self._follower = follower
        self._peers = peers
        self._options = options
        self._cache = cache
        self._precisions: dict[str, str] = {}
        self._pumps: dict[Model, Pump[_Text]] = {}

    def place(self, topology: TopologyMap) -> None:
        """Takes a newer topology."""
        for (fingerprint, _), pump in self._pumps.items():
            pump.core.place([topology.encoders.get(fingerprint, ())])

    @property
    def limit(self) -> float:
        """Questions that may be in encoders now, of the model that takes the fewest."""
        return min((pump.core.limit for pump in self._pumps.values()), default=float("inf"))

    def close(self) -> None:
        """Stops everything under way."""
        for pump in self._pumps.values():
            pump.close()

    async def encode(
        self,
        collection: CollectionMap,
        texts: Sequence[str],
        allow_truncation: bool,
        deadline_ns: int,
    ) -> list[Encoded | ShoalError]:
        """Vectors of questions, or why there is none, in the order asked.

        Each is an answer of its own: a bad text fails no other.

        Raises:
            Overloaded: the encoders would answer too late.
        """
        model = (collection.fingerprint, collection.encoder_dim)
        results: list[Encoded | ShoalError | None] = [
            self._cached(model, text, allow_truncation) for text in texts
        ]
        absent = [place for place, result in enumerate(results) if result is None]
        metrics.cache.labels("hit").inc(len(texts) - len(absent))
        metrics.cache.labels("miss").inc(len(absent))
        asks = [
            _Text(texts[place], allow_truncation, asyncio.get_running_loop().create_future())
            for place in absent
        ]
        for place, result in zip(
            absent, await self._ask(model, collection.dim, asks, deadline_ns), strict=True
        ):
            results[place] = result
        return [result for result in results if result is not None]

    async def labels(
        self, collection: CollectionMap, text: str, timeout_s: float
    ) -> Sequence[encoder_pb2.TokenLabel]:
        """Which token each row of a question of late interaction is.

        Raises:
            ShoalError: no encoder says.
        """
        names = self._follower.current.encoders.get(collection.fingerprint, ())
        if not names:
            raise EncoderUnavailable("no encoder worker with the collection's model serves")
        request = encoder_pb2.EncodeQueriesRequest(
            fingerprint=collection.fingerprint,
            texts=[text],
            allow_truncation=[True],
            dim=collection.encoder_dim,
            want_labels=True,
        )
        encoder = self._peers.encoder(self._follower.current.addresses.get(names[0], ""))
        response = await invoke(encoder.EncodeQueries, request, timeout_s)
        labels: Sequence[encoder_pb2.TokenLabel] = response.labels
        return labels

    def _key(self, model: Model, text: str) -> CacheKey | None:
        precision = self._precisions.get(model[0])
        if precision is None:
            return None
        return CacheKey(model[0], precision, "query", text.encode(), model[1])

    def _cached(
        self, model: Model, text: str, allow_truncation: bool
    ) -> Encoded | ShoalError | None:
        key = self._key(model, text)
        entry = None if key is None else self._cache.get(key)
        if entry is None:
            return None
        if entry.truncated and not allow_truncation:
            return TextTooLong("the question has more tokens than the encoder takes")
        return Encoded(entry.vector, entry.truncated, cached=True)

    async def _ask(
        self, model: Model, dim: int, texts: Sequence[_Text], deadline_ns: int
    ) -> list[Encoded | ShoalError]:
        if not texts:
            return []
        pump = self._pump(model, dim)
        pump.admit(deadline_ns)
        queries = [
            Query(payload=text, deadline_ns=deadline_ns, cost=len(text.text) + 4 * dim)
            for text in texts
        ]
        pump.submit(queries)
        results: list[Encoded | ShoalError] = []
        try:
            for text in texts:
                try:
                    results.append(await text.encoded)
                except ShoalError as error:
                    results.append(error)
        finally:
            for query in queries:
                if query.open:
                    pump.cancel(query)
        return results

    def _pump(self, model: Model, dim: int) -> Pump[_Text]:
        pump = self._pumps.get(model)
        if pump is None:

            async def send(action: Send[_Text]) -> Outcome:
                return await self._send(model, dim, action)

            async def refresh() -> bool:
                await self._follower.refresh()
                return True

            pump = self._pumps[model] = Pump(
                [self._follower.current.encoders.get(model[0], ())],
                self._options,
                send=send,
                finish=lambda finish: self._finish(model, finish),
                refresh=refresh,
            )
        return pump

    async def _send(self, model: Model, dim: int, action: Send[_Text]) -> Outcome:
        address = self._follower.current.addresses.get(action.server)
        if address is None:
            raise EncoderUnavailable(f"{action.server} has no address")
        now_ns = time.monotonic_ns()
        left_us = [max(1, (query.deadline_ns - now_ns) // 1_000) for query in action.queries]
        request = encoder_pb2.EncodeQueriesRequest(
            fingerprint=model[0],
            texts=[query.payload.text for query in action.queries],
            time_left_us=left_us,
            allow_truncation=[query.payload.allow_truncation for query in action.queries],
            dim=model[1],
        )
        encoder = self._peers.encoder(address)
        try:
            response = await invoke(encoder.EncodeQueries, request, max(left_us) / 1e6)
        except (ClusterUnreachable, Cancelled, FingerprintMismatch) as error:
            raise EncoderUnavailable(f"{action.server} does not encode: {error}") from error
        return self._parse(model, dim, response, len(action.queries))

    def _parse(
        self,
        model: Model,
        dim: int,
        response: encoder_pb2.EncodeQueriesResponse,
        texts: int,
    ) -> tuple[_Reply, Mapping[int, ShoalError]]:
        if response.fingerprint != model[0]:
            raise EncoderUnavailable("an encoder answered for another model")
        vectors = vectors_from_message(response.vectors, dim)
        counts = list(response.row_counts) or [1] * texts
        fits = len(counts) == len(response.truncated) == texts and sum(counts) == len(vectors)
        if not fits:
            raise InternalError("an encoder's reply does not fit its request")
        self._precisions[model[0]] = response.precision
        questions = [row.tobytes() for row in vectors]
        if response.row_counts:
            # The rows of a text that failed are none; nobody reads its question.
            questions = [token_question(rows) for rows in np.split(vectors, np.cumsum(counts)[:-1])]
        return _Reply(questions, list(response.truncated)), refusals(response.statuses)

    def _finish(self, model: Model, finish: Finish[_Text]) -> None:
        if finish.round_size:
            metrics.round_queries.labels("encode").observe(finish.round_size)
        places: dict[int, tuple[_Reply, int]] = {}
        for part in finish.parts:
            reply = part.reply
            assert isinstance(reply, _Reply)
            places.update({row: (reply, place) for place, row in enumerate(part.rows)})
        for query, missing in zip(finish.queries, finish.missing, strict=True):
            future = query.payload.encoded
            if future.done():
                continue
            if missing:
                future.set_exception(_as_encoder_error(missing[0]))
                continue
            reply, place = places[query.row]
            encoded = Encoded(reply.vectors[place], bool(reply.truncated[place]), cached=False)
            key = self._key(model, query.payload.text)
            if key is not None:
                self._cache.put(key, CacheEntry(encoded.vector, encoded.truncated))
            future.set_result(encoded)


def token_question(vectors: NDArray[np.float32]) -> bytes:
    """Token vectors as shards take them: of length 1, in fixed point, little-endian int16.

    This is the only rounding of a question: from here on there are integers.

    Args:
        vectors: [tokens, dim] float32, finite, none of them zero.
    """
    return to_fixed(unit_rows(vectors)).astype("<i2", copy=False).tobytes()


def _as_encoder_error(error: ShoalError) -> ShoalError:
    if isinstance(error, ShardUnavailable):
        return EncoderUnavailable(
            "no encoder worker with the collection's model serves", retry_after_s=1.0
        )
    return error
