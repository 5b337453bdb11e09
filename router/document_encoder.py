"""Documents to passages and vectors, by whichever encoder has least to do."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from router.core.pooling import pool
from router.core.topology import CollectionMap
from router.lanes import refusals
from router.peers import Peers, invoke
from router.topology import TopologyFollower
from shoal.errors import (
    Cancelled,
    ClusterUnreachable,
    EncoderUnavailable,
    FingerprintMismatch,
    InternalError,
    LimitExceeded,
    ShoalError,
)
from shoal.rpc.common.v1 import common_pb2
from shoal.rpc.encoder.v1 import encoder_pb2
from shoal.rpc.shard.v1 import shard_pb2
from shoal.types import Kind
from shoal.wire.arrays import vectors_from_message

_MESSAGES_PER_ENCODER = 2


@dataclass(frozen=True, slots=True)
class EncodedDocument:
    """A document's passages.

    Attributes:
        vectors: [passages, dim] float32; of late interaction [tokens of all, dim] float16.
        passages: how many.
        row_counts: per passage its rows in vectors; empty where it has one.
        starts: per passage, its first character in the text.
        ends: per passage, one past its last character.
        truncated: some of its words were not encoded.
    """

    vectors: NDArray[np.float32] | NDArray[np.float16]
    passages: int
    row_counts: Sequence[int]
    starts: Sequence[int]
    ends: Sequence[int]
    truncated: bool

    def version(self, document: common_pb2.Document, digest: bytes) -> shard_pb2.DocumentVersion:
        """The document as it is written to a shard, with its vectors in the message's matrix."""
        return shard_pb2.DocumentVersion(
            document=document,
            digest=digest,
            passage_count=self.passages,
            span_starts=self.starts,
            span_ends=self.ends,
            row_counts=self.row_counts,
        )


class DocumentEncoder:
    """Encodes documents.

    Args:
        follower: the topology.
        peers: channels.
    """

    def __init__(self, follower: TopologyFollower, peers: Peers) -> None:
        self._follower = follower
        self._peers = peers
        self._outstanding: dict[str, int] = {}
        self._slots: dict[str, asyncio.Semaphore] = {}

    async def encode(
        self,
        collection: CollectionMap,
        documents: Sequence[common_pb2.Document],
        request_id: str,
        timeout_s: float,
    ) -> list[EncodedDocument | ShoalError]:
        """Encodes; per document, its passages or why it cannot be encoded, ever.

        Raises:
            ShoalError: it may be possible later.
        """
        try:
            return await self._encode(collection, documents, request_id, timeout_s)
        except LimitExceeded as error:
            # The message, or its reply, is too large: in halves it may not be.
            if len(documents) == 1:
                return [error]
        half = len(documents) // 2
        first = await self.encode(collection, documents[:half], request_id, timeout_s)
        return first + await self.encode(collection, documents[half:], request_id, timeout_s)

    async def _encode(
        self,
        collection: CollectionMap,
        documents: Sequence[common_pb2.Document],
        request_id: str,
        timeout_s: float,
    ) -> list[EncodedDocument | ShoalError]:
        response = await self.reply(collection, documents, request_id, timeout_s)
        # Pooling takes its time.
        return await asyncio.to_thread(encoded_documents, collection, response, len(documents))

    async def reply(
        self,
        collection: CollectionMap,
        documents: Sequence[common_pb2.Document],
        request_id: str,
        timeout_s: float,
        *,
        want_labels: bool = False,
    ) -> encoder_pb2.EncodeDocumentsResponse:
        """An encoder's own reply.

        Raises:
            ShoalError: why there is none.
        """
        request = encode_request(collection, documents)
        request.request_id, request.want_labels = request_id, want_labels
        name = self._choose(collection.fingerprint)
        address = self._follower.current.addresses.get(name, "")
        self._outstanding[name] = self._outstanding.get(name, 0) + 1
        try:
            # Two messages keep an encoder busy; more would only use up their time in its queue.
            async with self._slots.setdefault(name, asyncio.Semaphore(_MESSAGES_PER_ENCODER)):
                encoder = self._peers.encoder(address)
                response: encoder_pb2.EncodeDocumentsResponse = await invoke(
                    encoder.EncodeDocuments, request, timeout_s
                )
        except (ClusterUnreachable, Cancelled, FingerprintMismatch) as error:
            raise EncoderUnavailable(f"{name} does not encode: {error}") from error
        finally:
            self._outstanding[name] -= 1
        return response

    def _choose(self, fingerprint: str) -> str:
        names = self._follower.current.encoders.get(fingerprint, ())
        if not names:
            raise EncoderUnavailable("no encoder worker with the collection's model serves")
        return min(names, key=lambda name: self._outstanding.get(name, 0))


def encode_request(
    collection: CollectionMap, documents: Sequence[common_pb2.Document]
) -> encoder_pb2.EncodeDocumentsRequest:
    """What an encoder is asked for documents of a collection."""
    return encoder_pb2.EncodeDocumentsRequest(
        fingerprint=collection.fingerprint,
        documents=[
            encoder_pb2.DocumentText(title=each.title, text=each.text) for each in documents
        ],
        chunk_tokens=collection.chunk_tokens,
        chunk_overlap=collection.chunk_overlap,
        dim=collection.encoder_dim,
    )


def encoded_documents(
    collection: CollectionMap, response: encoder_pb2.EncodeDocumentsResponse, documents: int
) -> list[EncodedDocument | ShoalError]:
    """Per document its passages, or why it cannot be encoded, ever.

    Raises:
        EncoderUnavailable, InternalError: the reply is another model's, or does not fit.
        ShoalError: it may be possible later.
    """
    if response.fingerprint != collection.fingerprint:
        raise EncoderUnavailable("an encoder answered for another model")
    counts = list(response.passage_counts)
    passages = sum(counts)
    late = collection.kind is Kind.COLBERT
    rows = list(response.row_counts) if late else [1] * passages
    fits = (
        len(counts) == documents
        and len(rows) == len(response.span_starts) == len(response.span_ends) == passages
        and sum(rows) == response.vectors.rows
        and len(response.truncated) == documents
    )
    if not fits:
        raise InternalError("an encoder's reply does not fit its request")
    encoded: NDArray[np.float32] = (
        vectors_from_message(response.vectors, collection.dim)
        if response.vectors.rows
        else np.empty((0, collection.dim), np.float32)
    )
    vectors: NDArray[np.float32] | NDArray[np.float16] = encoded
    if late:
        if collection.pool_factor > 1:
            encoded, rows = pool(encoded, rows, collection.pool_factor)
        vectors = encoded.astype(np.float16)
    failures = refusals(response.statuses)
    for error in failures.values():
        if not error.caller_fault:
            raise error
    results: list[EncodedDocument | ShoalError] = []
    starts = np.concatenate([[0], np.cumsum(rows)]).astype(np.int64).tolist()
    at = 0
    for place, count in enumerate(counts):
        mine = slice(at, at + count)
        at += count
        results.append(
            failures[place]
            if place in failures
            else EncodedDocument(
                vectors[starts[mine.start] : starts[mine.stop]],
                count,
                rows[mine] if late else (),
                response.span_starts[mine],
                response.span_ends[mine],
                response.truncated[place],
            )
        )
    return results
