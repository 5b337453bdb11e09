"""Copies documents from one generation to another until they hold the same."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from deploy.core.build import Change, differences
from deploy.reconciler import Reconciler
from deploy.records import Record
from deploy.shards import GenerationShards, encoder_address
from router.document_encoder import EncodedDocument, encode_request, encoded_documents
from router.topology import collection_from_message
from shoal.errors import InvalidRequest, LimitExceeded, ShoalError
from shoal.ids import shard_of
from shoal.rpc.common.v1 import common_pb2
from shoal.rpc.shard.v1 import shard_pb2
from shoal.types import Float32Matrix
from shoal.wire.arrays import matrix_from_message, matrix_to_message
from shoal.wire.errors import from_status

_DOCUMENTS = 128
"""Documents of one message."""
ENCODED = 32
"""Documents that an encoder gets at a time: two such messages keep it busy."""
_AT_ONCE = 4
_ENCODE_TIMEOUT_S = 600.0
Sent = NDArray[np.float16] | NDArray[np.uint8] | Float32Matrix
"""Vectors of passages or tokens as a Write message carries them."""


class Copier:
    """Brings one generation to what another one holds.

    Args:
        source: the generation that serves.
        target: the one that is to.
    """

    def __init__(self, source: GenerationShards, target: GenerationShards) -> None:
        self._source, self._target = source, target

    async def once(self) -> int:
        """Copies every difference that there is now; gives their number.

        Raises:
            InvalidRequest: a document cannot be encoded anew.
            ShoalError: a shard or an encoder does not answer.
        """
        changes = 0
        batch: list[Change] = []
        waiting: set[asyncio.Task[None]] = set()
        try:
            async for change in differences(self._source.listed(), self._target.listed()):
                changes += 1
                batch.append(change)
                if len(batch) == _DOCUMENTS:
                    waiting.add(asyncio.create_task(self._apply(batch)))
                    batch = []
                while len(waiting) >= _AT_ONCE:
                    waiting = await _some(waiting)
            waiting.add(asyncio.create_task(self._apply(batch)))
            while waiting:
                waiting = await _some(waiting)
        finally:
            for task in waiting:
                task.cancel()
        return changes

    async def equal(self) -> bool:
        """Both hold the same documents with the same content."""
        async for _ in differences(self._source.listed(), self._target.listed()):
            return False
        return True

    async def _apply(self, changes: Sequence[Change]) -> None:
        await self._remove([change.id for change in changes if change.gone])
        await self._copy([change.id for change in changes if not change.gone])

    async def _remove(self, ids: Sequence[str]) -> None:
        for shard, mine in _by_shard(ids, self._target.count).items():
            await self._target.call(
                shard, "Delete", shard_pb2.DeleteRequest(ids=mine, from_builder=True)
            )

    async def _copy(self, ids: Sequence[str]) -> None:
        for shard, mine in _by_shard(ids, self._source.count).items():
            await self._copy_from(shard, mine)

    async def _copy_from(self, shard: int, ids: Sequence[str]) -> None:
        encode = self._encodes
        request = shard_pb2.ExportRequest(ids=ids, without_vectors=encode)
        try:
            exported = await self._source.call(shard, "Export", request)
        except LimitExceeded:
            if len(ids) == 1:
                raise
            half = len(ids) // 2
            await self._copy_from(shard, ids[:half])
            await self._copy_from(shard, ids[half:])
            return
        versions = list(exported.versions)
        if encode:
            for at in range(0, len(versions), ENCODED):
                await self._write_encoded(versions[at : at + ENCODED])
        elif versions:
            rows = matrix_from_message(exported.vectors)
            counts = [_rows_of(version) for version in versions]
            await self._write(versions, np.split(rows, np.cumsum(counts)[:-1]), exported.codec)

    @property
    def _encodes(self) -> bool:
        """Texts are encoded: the encoder is another, or only codes of another codec are kept."""
        source, target = self._source.record.settings, self._target.record.settings
        recoded = bool(source.late.codec) and source.late.codec != target.late.codec
        return recoded or source.fingerprint != target.fingerprint

    async def _write_encoded(self, versions: Sequence[shard_pb2.DocumentVersion]) -> None:
        """Writes documents with their texts encoded anew."""
        for version in versions:
            if not version.span_starts:
                raise cannot_encode(version.document.id)
        documents = [version.document for version in versions]
        found = await encode_documents(self._target.loop, self._target.record, documents)
        fresh = [
            encoded.version(version.document, version.digest)
            for version, encoded in zip(versions, found, strict=True)
        ]
        await self._write(fresh, [encoded.vectors for encoded in found])

    async def _write(
        self,
        versions: Sequence[shard_pb2.DocumentVersion],
        rows: Sequence[Sent],
        codec: str = "",
    ) -> None:
        owners: dict[int, list[int]] = {}
        for place, version in enumerate(versions):
            owner = shard_of(version.document.id.encode(), self._target.count)
            owners.setdefault(owner, []).append(place)
        for shard, places in owners.items():
            request = shard_pb2.WriteRequest(
                fingerprint=self._target.record.settings.fingerprint,
                versions=[versions[place] for place in places],
                vectors=matrix_to_message(np.concatenate([rows[place] for place in places])),
                from_builder=True,
                codec=codec,
            )
            reply = await self._target.call(shard, "Write", request)
            for status in reply.statuses:
                error = from_status(status)
                if error is not None:
                    raise error


def cannot_encode(document_id: str) -> InvalidRequest:
    """The error of a document whose vectors are wanted anew, and whose text gives none."""
    return InvalidRequest(
        f"document {document_id[:80]!r} cannot be encoded anew: its vectors were given, and are "
        "not kept as they came, or are another encoder's; ingest it into a new collection",
        field="name",
    )


async def encode_documents(
    loop: Reconciler, record: Record, documents: Sequence[common_pb2.Document]
) -> list[EncodedDocument]:
    """Texts encoded for a generation.

    Raises:
        InvalidRequest: the generation has no encoder.
        ShoalError: no encoder answers, or one refuses a text.
    """
    collection = collection_from_message(record.to_message())
    if not collection.fingerprint and documents:
        raise cannot_encode(documents[0].id)
    address = encoder_address(loop.fleet, collection.fingerprint)
    reply = await loop.calls.encoder(
        address, "EncodeDocuments", encode_request(collection, documents), _ENCODE_TIMEOUT_S
    )
    found: list[EncodedDocument] = []
    for encoded in await asyncio.to_thread(encoded_documents, collection, reply, len(documents)):
        if isinstance(encoded, ShoalError):
            raise encoded
        found.append(encoded)
    return found


async def _some(waiting: set[asyncio.Task[None]]) -> set[asyncio.Task[None]]:
    done, left = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
    for task in done:
        task.result()
    return left


def _by_shard(ids: Sequence[str], count: int) -> dict[int, list[str]]:
    owned: dict[int, list[str]] = {}
    for key in ids:
        owned.setdefault(shard_of(key.encode(), count), []).append(key)
    return owned


def _rows_of(version: shard_pb2.DocumentVersion) -> int:
    return sum(version.row_counts) if version.row_counts else version.passage_count
