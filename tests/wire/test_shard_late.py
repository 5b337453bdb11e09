"""The shard service's kind colbert over gRPC: what is damaged, foreign or out of range."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import numpy as np
import pytest

from shard_service.codecs import write_codec
from shard_service.core.codec import Codec
from shard_service.core.token_codec import QuantisedCodec
from shard_service.indexes.codec import train
from shoal.kernels.fixed import to_fixed
from shoal.rpc.common.v1 import common_pb2
from shoal.rpc.shard.v1 import shard_pb2
from shoal.storage.directory import open_storage
from shoal.wire.arrays import matrix_from_message, matrix_to_message
from tests.wire.shard_support import COLLECTION, TIMEOUT_S, Peer, failure, ids_of, served, version

DIM = 8
TOKENS = 6


def unit(seed: int, tokens: int) -> np.ndarray:
    rows = np.random.default_rng(seed).standard_normal((tokens, DIM))
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def trained(folder: Path, seed: int = 0) -> Codec:
    codec = train(unit(seed, 400), 4)
    write_codec(codec, COLLECTION.hex(), open_storage(str(folder)))
    return codec


async def opened(peer: Peer, epoch: int, codec: str = "") -> shard_pb2.ShardStatus:
    return await peer.open(
        epoch,
        kind=common_pb2.COLLECTION_KIND_COLBERT,
        dim=DIM,
        index="auto",
        late=common_pb2.LateInteraction(code_bytes=4, codec=codec),
    )


async def write(peer: Peer, key: str, rows: np.ndarray) -> shard_pb2.WriteResponse:
    made = version(key)
    made.row_counts.append(len(rows))
    request = peer.write_request([], np.zeros((0, DIM)))
    request.versions.append(made)
    request.vectors.CopyFrom(matrix_to_message(rows.astype(np.float16)))
    return await peer.stub.Write(request, timeout=TIMEOUT_S)


def question(peer: Peer, rows: np.ndarray, refined: int = 0) -> shard_pb2.SearchRequest:
    return shard_pb2.SearchRequest(
        key=peer.key,
        queries=matrix_to_message(to_fixed(rows)),
        row_counts=[len(rows)],
        top_k=[3],
        time_left_us=[10**7],
        probes=[2],
        refined=[refined],
    )


@asynccontextmanager
async def filled(folder: Path, codec: str) -> AsyncIterator[Peer]:
    async with served(folder) as peer:
        await opened(peer, 1, codec)
        for number in range(20):
            await write(peer, f"d{number}", unit(number, TOKENS))
        await peer.stub.Optimize(shard_pb2.OptimizeRequest(key=peer.key))
        yield peer


async def test_a_flipped_byte_of_a_segment_or_of_the_codec_never_answers(tmp_path: Path) -> None:
    name = trained(tmp_path).name
    async with filled(tmp_path, name) as peer:
        found = await peer.stub.Search(question(peer, unit(3, TOKENS)), timeout=TIMEOUT_S)
        assert ids_of(found)[0][0] == "d3"
    files = [path for path in (tmp_path / "blobs").rglob("*") if path.is_file()]
    damaged = [path for path in files if path.name.startswith("tokens-") or path.name == "codec"]
    assert len(damaged) == 4
    for epoch, path in enumerate(damaged, 2):
        data = path.read_bytes()
        at = len(data) // 2
        path.write_bytes(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
        async with served(tmp_path) as peer:
            assert (await failure(opened(peer, epoch, name))).reason == "CORRUPT_SEGMENT"
            asked = peer.stub.Search(question(peer, unit(3, TOKENS)), timeout=TIMEOUT_S)
            assert (await failure(asked)).reason == "CORRUPT_SEGMENT"
        path.write_bytes(data)


async def test_another_codec_is_refused(tmp_path: Path) -> None:
    ours, theirs = trained(tmp_path), trained(tmp_path, seed=1)
    async with filled(tmp_path, ours.name):
        pass
    async with served(tmp_path) as peer:
        error = await failure(opened(peer, 2, theirs.name))
        assert error.reason == "CORRUPT_SEGMENT"
        assert theirs.name[:16] in error.message
    async with served(tmp_path) as peer:
        missing = await failure(opened(peer, 3, "ab" * 32))
        assert (missing.reason, "cannot be read" in missing.message) == ("CORRUPT_SEGMENT", True)


@pytest.mark.parametrize("codec", [False, True])
async def test_documents_of_none_and_of_50_000_tokens(tmp_path: Path, codec: bool) -> None:
    name = trained(tmp_path).name if codec else ""
    async with served(tmp_path) as peer:
        await opened(peer, 1, name)
        await write(peer, "short", unit(1, 1))
        await write(peer, "none", unit(1, 0))
        long = unit(2, 50_000)
        await write(peer, "long", long)
        for _ in range(2):
            found = await peer.stub.Search(question(peer, long[40_000:40_040]), timeout=TIMEOUT_S)
            assert ids_of(found) == [["long", "short"]]
            await peer.stub.Optimize(shard_pb2.OptimizeRequest(key=peer.key))
        (shard,) = (await peer.status()).shards
        assert (shard.documents, shard.tokens) == (3, 50_001)


async def test_what_is_no_token_is_refused_alone(tmp_path: Path) -> None:
    async with served(tmp_path) as peer:
        await opened(peer, 1)
        rows = unit(1, 3)
        refused = {np.nan: "NON_FINITE_VECTOR", np.inf: "NON_FINITE_VECTOR", 2.0: "INVALID_REQUEST"}
        for wrong, reason in refused.items():
            broken = rows.copy()
            broken[1, 0] = wrong
            reply = await write(peer, "broken", broken)
            assert [status.reason for status in reply.statuses] == [reason]
        await write(peer, "whole", rows)
        found = await peer.stub.Search(question(peer, rows), timeout=TIMEOUT_S)
        assert ids_of(found) == [["whole"]]
        refining = peer.stub.Search(question(peer, rows, 5), timeout=TIMEOUT_S)
        assert (await failure(refining)).reason == "INVALID_REQUEST"
        too_long = question(peer, rows)
        too_long.queries.CopyFrom(matrix_to_message(np.full((3, DIM), 16_384, np.int16)))
        asked = peer.stub.Search(too_long, timeout=TIMEOUT_S)
        assert (await failure(asked)).reason == "MALFORMED_MESSAGE"


async def test_codes_are_the_builders_and_of_the_generations_codec(tmp_path: Path) -> None:
    ours, theirs = trained(tmp_path), trained(tmp_path, seed=1)
    keeper = QuantisedCodec(ours)
    rows = unit(1, 3)
    packed = keeper.pack(keeper.encode(rows.astype(np.float16)))
    foreign = packed.copy()
    foreign[0, :2] = 255
    async with served(tmp_path) as peer:
        await opened(peer, 1, ours.name)

        def copied(codes: np.ndarray, codec: str, **changes: bool) -> shard_pb2.WriteRequest:
            made = version("copy")
            made.row_counts.append(len(codes))
            request = peer.write_request([], np.zeros((0, DIM)))
            request.versions.append(made)
            request.vectors.CopyFrom(matrix_to_message(codes))
            request.codec = codec
            request.from_builder = changes.get("from_builder", True)
            return request

        for request, reason in (
            (copied(packed, ours.name, from_builder=False), "MALFORMED_MESSAGE"),
            (copied(packed, theirs.name), "INVALID_REQUEST"),
            (copied(packed[:, :-1], ours.name), "MALFORMED_MESSAGE"),
            (copied(foreign, ours.name), "MALFORMED_MESSAGE"),
            (copied(rows.astype(np.float16), ours.name), "MALFORMED_MESSAGE"),
        ):
            error = await failure(peer.stub.Write(request, timeout=TIMEOUT_S))
            assert error.reason == reason
        admit = shard_pb2.SetWritersRequest(key=peer.key, writers=shard_pb2.WRITERS_BUILDER)
        await peer.stub.SetWriters(admit, timeout=TIMEOUT_S)
        await peer.stub.Write(copied(packed, ours.name), timeout=TIMEOUT_S)
        found = await peer.stub.Search(question(peer, rows), timeout=TIMEOUT_S)
        assert ids_of(found) == [["copy"]]
        exported = await peer.stub.Export(
            shard_pb2.ExportRequest(key=peer.key, ids=["copy"]), timeout=TIMEOUT_S
        )
        assert exported.codec == ours.name
        assert (matrix_from_message(exported.vectors) == packed).all()
