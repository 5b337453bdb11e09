"""What happens to one batch of documents: probe, encode, write, outcomes."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np

from router.core.ingest import Batch, Item, stored_already
from router.core.topology import CollectionMap
from router.document_encoder import DocumentEncoder, EncodedDocument
from router.ingest_checks import Incoming
from router.lanes import refusals, serves, shard_key
from router.requests import find_collection
from router.settings import RouterSettings
from router.shards import ShardCall, ShardCalls
from router.topology import TopologyFollower
from shoal.errors import Cancelled, DeadlineExceeded, LimitExceeded, ShoalError, StaleTopology
from shoal.kernels.fixed import unit_rows
from shoal.rpc.router.v1 import router_pb2
from shoal.rpc.shard.v1 import shard_pb2
from shoal.types import Kind
from shoal.wire.arrays import matrix_to_message
from shoal.wire.errors import to_status

Result = TypeVar("Result")
STORED = router_pb2.INGEST_OUTCOME_STORED
UNCHANGED = router_pb2.INGEST_OUTCOME_UNCHANGED
REJECTED = router_pb2.INGEST_OUTCOME_REJECTED

_PAUSE_S = 0.05
_PAUSE_MAX_S = 1.0
_PROBE_TIMEOUT_S = 10.0
_MESSAGE_SLACK = 64 << 10


@dataclass(slots=True, eq=False)
class Pending:
    """A document to be written, and its passages."""

    item: Item[Incoming]
    encoded: EncodedDocument


@dataclass(frozen=True, slots=True)
class Written:
    """What became of a batch.

    Attributes:
        acknowledgements: one per document.
        position: the shard's newest sequence number.
    """

    acknowledgements: list[router_pb2.IngestAcknowledgement]
    position: int


class BatchWriter:
    """Stores batches of one stream.

    Args:
        collection: of the stream.
        request_id: of the stream.
        follower: the topology.
        shards: calls to owners.
        encoder: of documents.
        settings: time-outs, patience.
        max_message_bytes: of one message.
    """

    def __init__(
        self,
        *,
        collection: CollectionMap,
        request_id: str,
        follower: TopologyFollower,
        shards: ShardCalls,
        encoder: DocumentEncoder,
        settings: RouterSettings,
        max_message_bytes: int,
    ) -> None:
        self._collection = collection
        self._request_id = request_id
        self._follower = follower
        self._shards = shards
        self._encoder = encoder
        self._settings = settings
        self._message_bytes = max_message_bytes - _MESSAGE_SLACK
        self._first_positions: dict[int, int] = {}
        self.hurry = False

    async def store(self, batch: Batch[Incoming], before: asyncio.Task[None] | None) -> Written:
        """Probes, encodes, and, when the shard's batch `before` is over, writes.

        Raises:
            ShoalError: the shard or the encoders did not come back in time, or
                cannot take the batch.
        """
        unchanged, position = await self._patiently(lambda: self._probe(batch.shard, batch.items))
        self._first_positions.setdefault(batch.shard, position)
        outcomes: dict[Item[Incoming], router_pb2.IngestAcknowledgement] = {}
        changed: list[Item[Incoming]] = []
        for item, same in zip(batch.items, unchanged, strict=True):
            if same and not item.again:
                outcomes[item] = _acknowledgement(item, UNCHANGED)
            else:
                changed.append(item)
        pending = await self._encode(changed, outcomes)
        if before is not None:
            await asyncio.wait({before})
        for part in self._sliced(pending, outcomes):
            position = max(position, await self._write(batch.shard, part, outcomes))
        return Written([outcomes[item] for item in batch.items], position)

    # --- probe ------------------------------------------------------------

    async def _probe(self, shard: int, items: Sequence[Item[Incoming]]) -> tuple[list[bool], int]:
        request = shard_pb2.ProbeRequest(
            request_id=self._request_id,
            key=shard_key(self._collection, shard),
            ids=[item.payload.document.id for item in items],
            digests=b"".join([item.payload.digest for item in items]),
        )
        response = await self._call(shard, "Probe", request, _PROBE_TIMEOUT_S)
        return list(response.unchanged), response.position

    # --- encode -----------------------------------------------------------

    async def _encode(
        self,
        items: Sequence[Item[Incoming]],
        outcomes: dict[Item[Incoming], router_pb2.IngestAcknowledgement],
    ) -> list[Pending]:
        worded = [item for item in items if not item.payload.vector]
        encoded: dict[Item[Incoming], EncodedDocument | ShoalError] = {}
        if worded:
            documents = [item.payload.document for item in worded]
            results = await self._patiently(
                lambda: self._encoder.encode(
                    self._collection,
                    documents,
                    self._request_id,
                    self._settings.encode_timeout_ms / 1e3,
                )
            )
            encoded.update(zip(worded, results, strict=True))
        pending = []
        for item in items:
            result = encoded.get(item) or self._own_vectors(item)
            if isinstance(result, ShoalError):
                outcomes[item] = _acknowledgement(item, REJECTED, error=result)
            else:
                pending.append(Pending(item, result))
        return pending

    def _own_vectors(self, item: Item[Incoming]) -> EncodedDocument:
        """A document that brings its vectors: one passage."""
        rows = np.frombuffer(item.payload.vector, "<f4").reshape(-1, self._collection.dim)
        if self._collection.kind is Kind.SINGLE:
            return EncodedDocument(rows, 1, (), (), (), truncated=False)
        tokens = unit_rows(rows).astype(np.float16)
        return EncodedDocument(tokens, 1, [len(tokens)], (), (), truncated=False)

    # --- write ------------------------------------------------------------

    def _sliced(
        self,
        pending: Sequence[Pending],
        outcomes: dict[Item[Incoming], router_pb2.IngestAcknowledgement],
    ) -> list[list[Pending]]:
        """Cuts what is to be written into messages that fit."""
        parts: list[list[Pending]] = []
        room = 0
        for each in pending:
            size = each.item.size + each.encoded.vectors.nbytes + 24 * each.encoded.passages
            if size > self._message_bytes:
                error = LimitExceeded(
                    f"the document and its vectors take {size} bytes",
                    limit="max_message_bytes",
                    allowed=self._message_bytes,
                    given=size,
                )
                outcomes[each.item] = _acknowledgement(each.item, REJECTED, error=error)
                continue
            if size > room:
                parts.append([])
                room = self._message_bytes
            parts[-1].append(each)
            room -= size
        return parts

    async def _write(
        self,
        shard: int,
        pending: Sequence[Pending],
        outcomes: dict[Item[Incoming], router_pb2.IngestAcknowledgement],
    ) -> int:
        """Writes a message's documents, however often that takes.

        A write that failed may have happened: before another attempt the shard
        is asked what it holds.
        """
        rest, position, attempts = list(pending), 0, 0

        async def attempt() -> shard_pb2.WriteResponse | None:
            nonlocal rest, position, attempts
            attempts += 1
            if attempts > 1:
                items = [each.item for each in rest]
                unchanged, position = await self._probe(shard, items)
                stored = stored_already(items, unchanged)
                for each in rest:
                    if each.item.id in stored:
                        outcomes[each.item] = _acknowledgement(
                            each.item,
                            STORED,
                            duplicate=each.item.again,
                            truncated=each.encoded.truncated,
                        )
                rest = [each for each in rest if each.item.id not in stored]
            if not rest:
                return None
            request = self._write_request(shard, rest)
            timeout_s = self._settings.write_timeout_ms / 1e3
            response: shard_pb2.WriteResponse = await self._call(shard, "Write", request, timeout_s)
            return response

        response = await self._patiently(attempt)
        if response is None:
            return position
        self._note(shard, rest, response, outcomes)
        return response.position

    def _write_request(self, shard: int, pending: Sequence[Pending]) -> shard_pb2.WriteRequest:
        return shard_pb2.WriteRequest(
            request_id=self._request_id,
            key=shard_key(self._collection, shard),
            fingerprint=self._collection.fingerprint,
            versions=[
                each.encoded.version(each.item.payload.document, each.item.payload.digest)
                for each in pending
            ],
            vectors=matrix_to_message(np.concatenate([each.encoded.vectors for each in pending])),
        )

    def _note(
        self,
        shard: int,
        pending: Sequence[Pending],
        response: shard_pb2.WriteResponse,
        outcomes: dict[Item[Incoming], router_pb2.IngestAcknowledgement],
    ) -> None:
        failures = refusals(response.statuses)
        first = self._first_positions[shard]
        for place, (each, replaced) in enumerate(zip(pending, response.replaced, strict=True)):
            if place in failures:
                outcomes[each.item] = _acknowledgement(each.item, REJECTED, error=failures[place])
                continue
            outcomes[each.item] = _acknowledgement(
                each.item,
                STORED,
                duplicate=each.item.again or replaced > first,
                truncated=each.encoded.truncated,
            )

    # --- patience ---------------------------------------------------------

    async def _call(
        self,
        shard: int,
        method: str,
        request: shard_pb2.ProbeRequest | shard_pb2.WriteRequest,
        timeout_s: float,
    ) -> Any:
        call = ShardCall(self._collection, shard, method, request, any_replica=False)
        deadline_ns = time.monotonic_ns() + int(timeout_s * 1e9)
        return await self._shards.call(call, deadline_ns)

    async def _patiently(self, attempt: Callable[[], Awaitable[Result]]) -> Result:
        """Tries again while what fails may come back: a restart takes its time."""
        give_up_s = time.monotonic() + self._settings.ingest_patience_ms / 1e3
        pause_s = _PAUSE_S
        while True:
            try:
                return await attempt()
            except ShoalError as error:
                passing = error.retryable or isinstance(error, DeadlineExceeded | Cancelled)
                if not passing or self.hurry or time.monotonic() > give_up_s:
                    raise
                if isinstance(error, StaleTopology):
                    self._check_still_serves()
                await asyncio.sleep(max(pause_s, error.retry_after_s or 0.0))
            pause_s = min(2 * pause_s, _PAUSE_MAX_S)

    def _check_still_serves(self) -> None:
        """Raises if the stream's generation is gone for good."""
        find_collection(self._follower.current, self._collection.name)
        if not serves(self._follower.current, self._collection):
            raise StaleTopology(
                f"another generation of {self._collection.name!r} serves now: ingest again"
            )


def _acknowledgement(
    item: Item[Incoming],
    outcome: router_pb2.IngestOutcome.ValueType,
    *,
    error: ShoalError | None = None,
    duplicate: bool = False,
    truncated: bool = False,
) -> router_pb2.IngestAcknowledgement:
    return router_pb2.IngestAcknowledgement(
        number=item.payload.number,
        outcome=outcome,
        status=None if error is None else to_status(error),
        duplicate=duplicate,
        truncated=truncated,
    )
