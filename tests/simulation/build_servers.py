"""Shard servers in memory: the semantics of Registry, Shard and Writer, on virtual time."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from deploy.records import key_from_message, key_to_message
from shoal.errors import CorruptSegment, NotReady, StaleTopology, SupersededWriter
from shoal.ids import id_hash, sample_rank
from shoal.rpc.common.v1 import common_pb2
from shoal.rpc.shard.v1 import shard_pb2
from shoal.types import ShardRef
from shoal.wire.arrays import matrix_from_message, matrix_to_message
from tests.simulation.virtual_loop import Owner

DIM = 4
TOKENS_EACH = 10_000
"""What a row counts as in reports, so that few documents make a collection to train on."""
USERS = shard_pb2.WRITERS_UNSPECIFIED
BUILDER = shard_pb2.WRITERS_BUILDER
NOBODY = shard_pb2.WRITERS_NOBODY


@dataclass(frozen=True)
class Stored:
    """A document version as a shard holds it."""

    title: str
    digest: bytes
    rows: np.ndarray[Any, Any]
    codec: str


@dataclass
class DiskShard:
    """What is durable of a shard: the epoch that owns it, its documents, its position."""

    epoch: int = 0
    documents: dict[str, Stored] = field(default_factory=dict)
    position: int = 0


def digest_of(key: str, title: str) -> bytes:
    return hashlib.md5(f"{key} {title}".encode()).digest()


class Surroundings(Protocol):
    """What a server sees of the world."""

    disk: dict[ShardRef, DiskShard]
    codecs: set[tuple[str, str]]

    async def pause(self, mean_s: float) -> None:
        """Takes some time."""

    def chance(self, probability: float) -> bool:
        """Whether it happens."""

    def committed(self, ref: ShardRef, from_builder: bool) -> None:
        """Somebody's writes are durable."""

    def dropped(self, ref: ShardRef) -> None:
        """A shard's data is gone."""


class SimShard:
    """A shard open on a server."""

    def __init__(self, around: Surroundings, ref: ShardRef, epoch: int, codec: str) -> None:
        self._around, self.ref, self.epoch, self.codec = around, ref, epoch, codec
        self.opening, self.closed, self.writers = True, False, NOBODY
        self.disk, self.order = DiskShard(), 0
        self.documents: dict[str, Stored] = {}
        self._turn = asyncio.Lock()

    async def recover(self, writers: int) -> None:
        """Fences older writers, then reads."""
        disk = self._around.disk.setdefault(self.ref, DiskShard())
        if disk.epoch > self.epoch:
            raise SupersededWriter("a higher epoch owns the log")
        disk.epoch, self.disk = self.epoch, disk
        await self._around.pause(0.2)
        if self.codec and (self.ref.collection, self.codec) not in self._around.codecs:
            raise CorruptSegment("its codec is missing")
        self.documents = dict(disk.documents)
        self.writers, self.opening = writers, False

    def check(self, writer: int) -> None:
        if self.closed:
            raise StaleTopology("the shard is closed on this server")
        if self.writers != writer:
            raise StaleTopology("another generation serves, or soon will", retry_after_s=0.05)

    async def commit(self, writer: int, apply: Callable[[dict[str, Stored]], int]) -> None:
        """Queues a write; returns when it is durable and visible."""
        self.check(writer)
        async with self._turn:
            try:
                await self._around.pause(0.005)
            except asyncio.CancelledError:
                if self._around.chance(0.5):
                    self._append(writer, apply)  # durable, but nobody will ever say so
                raise
            if self.disk.epoch != self.epoch:
                raise SupersededWriter("a higher epoch owns the log")
            self._append(writer, apply)
            apply(self.documents)

    def _append(self, writer: int, apply: Callable[[dict[str, Stored]], int]) -> None:
        if self.disk.epoch == self.epoch:
            self.disk.position += apply(self.disk.documents)
            self._around.committed(self.ref, writer == BUILDER)

    async def admit(self, request: shard_pb2.SetWritersRequest) -> None:
        if self.closed or request.writer_epoch != self.epoch:
            raise StaleTopology("the shard is closed, or open under another epoch")
        if request.order < self.order:
            raise StaleTopology("a later word came before this one")
        self.writers, self.order = request.writers, request.order
        async with self._turn:
            pass

    async def close(self) -> None:
        self.closed = True
        async with self._turn:
            pass

    def status(self) -> shard_pb2.ShardStatus:
        status = shard_pb2.ShardStatus(
            key=key_to_message(self.ref),
            state=shard_pb2.SHARD_STATE_OPENING,
            writer_epoch=self.epoch,
        )
        if not self.opening:
            status.state = shard_pb2.SHARD_STATE_SERVING
            status.documents, status.position = len(self.documents), self.disk.position
            status.writers = self.writers
            status.tokens = TOKENS_EACH * sum(len(d.rows) for d in self.documents.values())
        return status


class SimServer:
    """A process that holds shards; methods bear the names of the RPCs."""

    def __init__(self, around: Surroundings, owner: Owner) -> None:
        self._around, self.owner = around, owner
        self.entries: dict[ShardRef, SimShard] = {}

    def serving(self, key: shard_pb2.ShardKey) -> SimShard:
        shard = self.entries.get(key_from_message(key))
        if shard is None:
            raise StaleTopology("this server does not hold the shard")
        if shard.opening:
            raise NotReady("the shard is recovering", retry_after_s=0.2)
        return shard

    # --- shards -----------------------------------------------------------

    async def OpenShard(self, request: shard_pb2.OpenShardRequest) -> shard_pb2.OpenShardResponse:
        ref = key_from_message(request.key)
        held = self.entries.get(ref)
        if held is not None and held.opening:
            raise NotReady("the shard is being opened", retry_after_s=0.2)
        if held is not None and held.epoch == request.writer_epoch:
            return shard_pb2.OpenShardResponse(status=held.status())
        if held is not None and held.epoch > request.writer_epoch:
            raise SupersededWriter("the shard is open under a higher epoch")
        shard = SimShard(self._around, ref, request.writer_epoch, request.settings.late.codec)
        self.entries[ref] = shard
        try:
            if held is not None:
                await held.close()
            await shard.recover(request.writers)
        except BaseException:
            self.entries.pop(ref, None)
            raise
        return shard_pb2.OpenShardResponse(status=shard.status())

    async def CloseShard(
        self, request: shard_pb2.CloseShardRequest
    ) -> shard_pb2.CloseShardResponse:
        ref = key_from_message(request.key)
        held = self.entries.get(ref)
        if held is not None and held.opening:
            raise NotReady("the shard is being opened", retry_after_s=0.2)
        self.entries.pop(ref, None)
        if held is not None:
            await held.close()
        if request.drop:
            self._around.disk.pop(ref, None)
            self._around.dropped(ref)
        return shard_pb2.CloseShardResponse()

    async def GetStatus(self, request: shard_pb2.GetStatusRequest) -> shard_pb2.GetStatusResponse:
        return shard_pb2.GetStatusResponse(
            shards=[shard.status() for _, shard in sorted(self.entries.items(), key=_by_ref)]
        )

    # --- writing ----------------------------------------------------------

    async def SetWriters(
        self, request: shard_pb2.SetWritersRequest
    ) -> shard_pb2.SetWritersResponse:
        shard = self.serving(request.key)
        await shard.admit(request)
        return shard_pb2.SetWritersResponse(position=shard.disk.position, writer_epoch=shard.epoch)

    async def Write(self, request: shard_pb2.WriteRequest) -> shard_pb2.WriteResponse:
        shard = self.serving(request.key)
        rows = matrix_from_message(request.vectors)
        if shard.codec and not request.codec:
            rows = np.zeros((len(rows), 4), np.uint8)
        counts = [sum(v.row_counts) or v.passage_count for v in request.versions]
        parts = np.split(rows, np.cumsum(counts)[:-1])
        fresh = {
            version.document.id: Stored(version.document.title, version.digest, part, shard.codec)
            for version, part in zip(request.versions, parts, strict=True)
        }

        def apply(documents: dict[str, Stored]) -> int:
            documents.update(fresh)
            return len(fresh)

        await shard.commit(BUILDER if request.from_builder else USERS, apply)
        return shard_pb2.WriteResponse(position=shard.disk.position)

    async def Delete(self, request: shard_pb2.DeleteRequest) -> shard_pb2.DeleteResponse:
        shard = self.serving(request.key)
        found = [key in shard.documents for key in request.ids]

        def apply(documents: dict[str, Stored]) -> int:
            return sum(documents.pop(key, None) is not None for key in request.ids)

        await shard.commit(BUILDER if request.from_builder else USERS, apply)
        return shard_pb2.DeleteResponse(found=found, position=shard.disk.position)

    # --- reading ----------------------------------------------------------

    async def Probe(self, request: shard_pb2.ProbeRequest) -> shard_pb2.ProbeResponse:
        shard = self.serving(request.key)
        shard.check(USERS)
        unchanged = [
            key in shard.documents
            and shard.documents[key].digest == request.digests[16 * at : 16 * at + 16]
            for at, key in enumerate(request.ids)
        ]
        return shard_pb2.ProbeResponse(unchanged=unchanged, position=shard.disk.position)

    async def Fetch(self, request: shard_pb2.FetchRequest) -> shard_pb2.FetchResponse:
        shard = self.serving(request.key)
        found = []
        for key in request.ids:
            stored = shard.documents.get(key)
            title = stored.title if stored is not None else ""
            found.append(
                shard_pb2.FetchedDocument(
                    found=stored is not None, document=common_pb2.Document(id=key, title=title)
                )
            )
        return shard_pb2.FetchResponse(documents=found)

    async def ListDocuments(
        self, request: shard_pb2.ListDocumentsRequest
    ) -> shard_pb2.ListDocumentsResponse:
        shard = self.serving(request.key)
        page = _after(shard.documents, request.after_id, id_hash)[: request.max_documents]
        return shard_pb2.ListDocumentsResponse(
            ids=page,
            digests=b"".join(shard.documents[key].digest for key in page),
            last=len(page) < request.max_documents,
            position=shard.disk.position,
        )

    async def Export(self, request: shard_pb2.ExportRequest) -> shard_pb2.ExportResponse:
        shard = self.serving(request.key)
        found = [(key, shard.documents[key]) for key in request.ids if key in shard.documents]
        response = shard_pb2.ExportResponse(
            versions=[
                shard_pb2.DocumentVersion(
                    document=common_pb2.Document(id=key, title=stored.title),
                    digest=stored.digest,
                    passage_count=1,
                    row_counts=[len(stored.rows)] if stored.rows.dtype != np.float32 else [],
                )
                for key, stored in found
            ]
        )
        if found and not request.without_vectors:
            rows = np.concatenate([stored.rows for _, stored in found])
            response.vectors.CopyFrom(matrix_to_message(rows))
            response.codec = shard.codec
        return response

    async def Sample(self, request: shard_pb2.SampleRequest) -> shard_pb2.SampleResponse:
        shard = self.serving(request.key)
        page = _after(shard.documents, request.after_id, sample_rank)[:5]
        counts = [len(shard.documents[key].rows) for key in page]
        return shard_pb2.SampleResponse(
            documents=[
                shard_pb2.SampledDocument(id=key, tokens=count)
                for key, count in zip(page, counts, strict=True)
            ],
            vectors=matrix_to_message(np.full((sum(counts), DIM), 1 << 13, np.int16)),
            last=len(page) < 5,
        )

    async def Search(self, request: shard_pb2.SearchRequest) -> shard_pb2.SearchResponse:
        shard = self.serving(request.key)
        keys = sorted(shard.documents)[:10]
        ids = [key.encode() for key in keys]
        scores = np.array([id_hash(key) % 1000 for key in ids], "<f8").tobytes()
        return shard_pb2.SearchResponse(
            hit_counts=[len(ids)],
            ids=b"".join(ids),
            id_lengths=np.array([len(key) for key in ids], "<u4").tobytes(),
            scores=scores,
            centroid_scores=scores,
        )


def _after(documents: Iterable[str], after: str, rank: Callable[[bytes], int]) -> list[str]:
    """Ids in the order of (rank, id) that come after one."""

    def place(key: str) -> tuple[int, bytes]:
        return rank(key.encode()), key.encode()

    return sorted((key for key in documents if not after or place(key) > place(after)), key=place)


def _by_ref(item: tuple[ShardRef, SimShard]) -> tuple[str, int, int]:
    ref = item[0]
    return ref.collection, ref.generation, ref.shard
