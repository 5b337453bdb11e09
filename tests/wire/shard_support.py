"""A real shard server on a free port, and messages for it."""

import uuid
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import grpc
import numpy as np
import pytest

from shard_service.server import ShardServer
from shard_service.settings import ShardSettings
from shoal.errors import ShoalError
from shoal.ids import content_digest
from shoal.rpc.common.v1 import common_pb2
from shoal.rpc.shard.v1 import shard_pb2, shard_pb2_grpc
from shoal.types import Document
from shoal.wire.arrays import matrix_to_message
from shoal.wire.channels import channel_options
from shoal.wire.errors import from_rpc_error

DIM = 5
TIMEOUT_S = 30
COLLECTION = uuid.UUID(int=7).bytes
FINGERPRINT = "ab" * 32


def collection_settings(**changes: object) -> common_pb2.CollectionSettings:
    settings = {
        "name": "c",
        "uuid": COLLECTION,
        "kind": common_pb2.COLLECTION_KIND_SINGLE,
        "similarity": common_pb2.SIMILARITY_COSINE,
        "dim": DIM,
        "encoder": "some",
        "fingerprint": FINGERPRINT,
        "index": "flat",
    }
    return common_pb2.CollectionSettings(**(settings | changes))


@dataclass
class Peer:
    """One shard of one collection, seen by a client."""

    stub: shard_pb2_grpc.ShardServiceStub
    key: shard_pb2.ShardKey

    async def open(
        self, epoch: int = 1, *, similarity: int = 1, accept_loss: str = "", **changes: object
    ) -> shard_pb2.ShardStatus:
        request = shard_pb2.OpenShardRequest(
            key=self.key,
            shard_count=1,
            settings=collection_settings(similarity=similarity, **changes),
            writer_epoch=epoch,
            accept_loss=accept_loss,
        )
        return (await self.stub.OpenShard(request, timeout=TIMEOUT_S)).status

    async def write(
        self, ids: Sequence[str], vectors: np.ndarray, fingerprint: str = FINGERPRINT
    ) -> shard_pb2.WriteResponse:
        request = self.write_request(ids, vectors, fingerprint)
        return await self.stub.Write(request, timeout=TIMEOUT_S)

    def write_request(
        self, ids: Sequence[str], vectors: np.ndarray, fingerprint: str = FINGERPRINT
    ) -> shard_pb2.WriteRequest:
        return shard_pb2.WriteRequest(
            key=self.key,
            fingerprint=fingerprint,
            versions=[version(key) for key in ids],
            vectors=matrix_to_message(vectors.astype(np.float32)),
        )

    async def search(
        self, queries: np.ndarray, top_k: int | list[int] = 3, **columns: Sequence[int]
    ) -> shard_pb2.SearchResponse:
        fields = {
            "top_k": [top_k] * len(queries) if isinstance(top_k, int) else top_k,
            "time_left_us": [10**7] * len(queries),
        }
        request = shard_pb2.SearchRequest(
            key=self.key,
            queries=matrix_to_message(queries.astype(np.float32)),
            **(fields | columns),
        )
        return await self.stub.Search(request, timeout=TIMEOUT_S)

    async def status(self) -> shard_pb2.GetStatusResponse:
        return await self.stub.GetStatus(shard_pb2.GetStatusRequest(), timeout=TIMEOUT_S)


async def failure(call: object) -> ShoalError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call  # type: ignore[misc]
    return from_rpc_error(caught.value)


def document(key: str) -> Document:
    return Document(key, f"title {key}", f"text of {key}", b'{"n": 1}')


def version(key: str) -> shard_pb2.DocumentVersion:
    stored = document(key)
    return shard_pb2.DocumentVersion(
        document=common_pb2.Document(
            id=stored.id, title=stored.title, text=stored.text, payload=stored.payload
        ),
        digest=content_digest(stored),
        passage_count=1,
        span_starts=[0],
        span_ends=[len(stored.text)],
    )


@asynccontextmanager
async def connected(address: str) -> AsyncIterator[Peer]:
    async with grpc.aio.insecure_channel(address, options=channel_options(-1)) as channel:
        key = shard_pb2.ShardKey(collection=COLLECTION, generation=1, shard=0)
        yield Peer(shard_pb2_grpc.ShardServiceStub(channel), key)


@asynccontextmanager
async def served(data: Path, **settings: int) -> AsyncIterator[Peer]:
    server = ShardServer(ShardSettings(data=str(data), **settings))
    address = await server.start()
    try:
        async with connected(address) as peer:
            yield peer
    finally:
        await server.stop(1)


def ids_of(response: shard_pb2.SearchResponse) -> list[list[str]]:
    lengths = np.frombuffer(response.id_lengths, "<u4").tolist()
    ids, start, hit = [], 0, 0
    for count in response.hit_counts:
        mine = []
        for length in lengths[hit : hit + count]:
            mine.append(response.ids[start : start + length].decode())
            start += length
        hit += count
        ids.append(mine)
    return ids
