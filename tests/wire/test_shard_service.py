"""The shard service over real gRPC: its answers, and every error that it can give."""

import asyncio
import errno
import os
from pathlib import Path

import grpc
import numpy as np
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from shard_service.server import ShardServer
from shard_service.settings import ShardSettings
from shoal.ids import content_digest
from shoal.rpc.common.v1 import common_pb2
from shoal.rpc.shard.v1 import shard_pb2
from shoal.wire.errors import from_rpc_error
from tests.wire.shard_support import (
    DIM,
    FINGERPRINT,
    TIMEOUT_S,
    Peer,
    collection_settings,
    document,
    failure,
    ids_of,
    served,
)


def vectors(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((count, DIM)).astype(np.float32)


async def filled(peer: Peer, count: int = 20) -> np.ndarray:
    await peer.open()
    stored = vectors(count)
    await peer.write([f"d{n}" for n in range(count)], stored)
    return stored


async def test_search_answers_in_columns(tmp_path: Path) -> None:
    async with served(tmp_path) as peer:
        stored = await filled(peer)
        response = await peer.search(stored[[4, 9]], 3)
        assert [answer[0] for answer in ids_of(response)] == ["d4", "d9"]
        assert list(response.hit_counts) == [3, 3]
        scores = np.frombuffer(response.scores, "<f8")
        assert scores[0] == pytest.approx(1.0)
        assert (np.diff(scores[:3]) <= 0).all()
        assert np.frombuffer(response.sequences, "<u8")[[0, 3]].tolist() == [5, 10]
        assert np.frombuffer(response.passages, "<u4").tolist() == [0] * 6
        assert (response.documents, response.position) == (20, 20)
        assert not response.statuses


async def test_a_bad_query_fails_alone(tmp_path: Path) -> None:
    async with served(tmp_path) as peer:
        stored = await filled(peer)
        queries = stored[:6].copy()
        queries[0, 0], queries[1] = np.nan, 0
        response = await peer.search(
            queries,
            top_k=[1, 1, 0, 1, 1, 1],
            time_left_us=[10**7] * 4 + [0, 10**7],
            after_sequence=[0, 0, 0, 21, 0, 20],
        )
        assert [status.reason for status in response.statuses] == [
            "NON_FINITE_VECTOR",
            "ZERO_VECTOR",
            "INVALID_TOP_K",
            "POSITION_NOT_REACHED",
            "DEADLINE_EXCEEDED",
            "",
        ]
        assert ids_of(response) == [[], [], [], [], [], ["d5"]]
        wrong = await peer.search(np.ones((2, DIM + 1)))
        assert [status.reason for status in wrong.statuses] == ["DIMENSION_MISMATCH"] * 2
        huge = await peer.search(stored[:1], 10**9)
        assert huge.statuses[0].reason == "INVALID_TOP_K"


async def test_malformed_searches(tmp_path: Path) -> None:
    async with served(tmp_path) as peer:
        stored = await filled(peer)
        assert (await failure(peer.search(stored[:2], top_k=[1]))).reason == "MALFORMED_MESSAGE"
        bad_key = Peer(peer.stub, shard_pb2.ShardKey(collection=b"x", generation=1))
        assert (await failure(bad_key.search(stored[:1]))).reason == "MALFORMED_MESSAGE"
        request = shard_pb2.SearchRequest(key=peer.key, top_k=[1], time_left_us=[1])
        assert (await failure(peer.stub.Search(request))).reason == "MALFORMED_MESSAGE"
        many = await failure(peer.search(np.ones((5000, DIM))))
        assert (many.reason, many.metadata["limit"]) == ("LIMIT_EXCEEDED", "max_batch")


async def test_what_is_not_held_is_stale(tmp_path: Path) -> None:
    async with served(tmp_path) as peer:
        for call in (
            peer.search(vectors(1)),
            peer.write(["a"], vectors(1)),
            peer.stub.Fetch(shard_pb2.FetchRequest(key=peer.key, ids=["a"])),
            peer.stub.Probe(shard_pb2.ProbeRequest(key=peer.key)),
            peer.stub.Delete(shard_pb2.DeleteRequest(key=peer.key)),
            peer.stub.Optimize(shard_pb2.OptimizeRequest(key=peer.key)),
        ):
            assert (await failure(call)).reason == "STALE_TOPOLOGY"


async def test_writes_have_outcomes_of_their_own(tmp_path: Path) -> None:
    async with served(tmp_path) as peer:
        await peer.open()
        given = vectors(6)
        given[1, 2], given[2] = np.inf, 0
        response = await peer.write(["a", "b", "c", "", "x" * 10_000, "a"], given)
        assert list(response.sequences) == [1, 0, 0, 0, 0, 2]
        assert list(response.replaced) == [0, 0, 0, 0, 0, 1]
        assert [status.reason for status in response.statuses] == [
            "",
            "NON_FINITE_VECTOR",
            "ZERO_VECTOR",
            "INVALID_ID",
            "INVALID_ID",
            "",
        ]
        assert ids_of(await peer.search(given[5:])) == [["a"]]
        wide = await peer.write(["z"], np.ones((1, DIM + 1)))
        assert [status.reason for status in wide.statuses] == ["DIMENSION_MISMATCH"]
        assert list(wide.sequences) == [0]
        other = await failure(peer.write(["z"], vectors(1), "cd" * 32))
        assert other.reason == "FINGERPRINT_MISMATCH"


async def test_malformed_writes(tmp_path: Path) -> None:
    async with served(tmp_path) as peer:
        await peer.open()

        async def reason(change: object) -> str:
            request = peer.write_request(["a", "b"], vectors(2))
            change(request)  # type: ignore[operator]
            return (await failure(peer.stub.Write(request))).reason

        def half(request: shard_pb2.WriteRequest) -> None:
            request.vectors.element_type = common_pb2.ELEMENT_TYPE_F16
            request.vectors.data = request.vectors.data[: len(request.vectors.data) // 2]

        assert await reason(lambda r: setattr(r.versions[0], "passage_count", 2)) == (
            "MALFORMED_MESSAGE"
        )
        assert await reason(lambda r: setattr(r.versions[0], "passage_count", 0)) == (
            "MALFORMED_MESSAGE"
        )
        assert await reason(lambda r: setattr(r.versions[1], "digest", b"x")) == (
            "MALFORMED_MESSAGE"
        )
        assert await reason(lambda r: r.versions[0].span_ends.append(1)) == "MALFORMED_MESSAGE"
        assert await reason(half) == "MALFORMED_MESSAGE"


async def test_a_document_of_another_shard_is_refused(tmp_path: Path) -> None:
    async with served(tmp_path) as peer:
        request = shard_pb2.OpenShardRequest(key=peer.key, shard_count=2, writer_epoch=1)
        request.settings.CopyFrom(
            common_pb2.CollectionSettings(
                kind=1, similarity=1, dim=DIM, index="flat", fingerprint=FINGERPRINT
            )
        )
        await peer.stub.OpenShard(request, timeout=TIMEOUT_S)
        error = await failure(peer.write([f"d{n}" for n in range(9)], vectors(9)))
        assert error.reason == "INVALID_REQUEST"


async def test_upsert_delete_fetch_and_probe(tmp_path: Path) -> None:
    async with served(tmp_path) as peer:
        stored = await filled(peer)
        replaced = await peer.write(["d3"], -stored[3:4])
        assert (list(replaced.replaced), replaced.position) == ([4], 21)
        assert ids_of(await peer.search(-stored[3:4], 1)) == [["d3"]]
        deleted = await peer.stub.Delete(
            shard_pb2.DeleteRequest(key=peer.key, ids=["d5", "nobody", "d5"])
        )
        assert (list(deleted.found), deleted.position) == ([True, False, False], 22)
        fetched = await peer.stub.Fetch(
            shard_pb2.FetchRequest(
                key=peer.key,
                ids=["d3", "d3", "d5", "d6", "nobody"],
                sequences=[0, 4, 0, 7, 0],
                passages=[0] * 5,
                fields=[shard_pb2.FIELD_TEXT, shard_pb2.FIELD_PAYLOAD],
            )
        )
        assert [one.found for one in fetched.documents] == [True, False, False, True, False]
        assert fetched.documents[0].sequence == 21
        assert fetched.documents[3].document == common_pb2.Document(
            id="d6", text=document("d6").text, payload=document("d6").payload
        )
        assert fetched.documents[3].span == common_pb2.Span(start=0, end=len("text of d6"))
        probed = await peer.stub.Probe(
            shard_pb2.ProbeRequest(
                key=peer.key,
                ids=["d6", "d7", "d5"],
                digests=content_digest(document("d6"))
                + content_digest(document("d6"))
                + content_digest(document("d5")),
            )
        )
        assert (list(probed.unchanged), probed.position) == ([True, False, False], 22)
        request = shard_pb2.FetchRequest(key=peer.key, ids=["d6"], passages=[1])
        assert (await failure(peer.stub.Fetch(request))).reason == "INVALID_REQUEST"


async def test_opening_again(tmp_path: Path) -> None:
    async with served(tmp_path) as peer:
        await filled(peer)
        assert (await peer.open(1)).position == 20
        assert (await peer.open(2)).writer_epoch == 2
        assert (await failure(peer.open(1))).reason == "SUPERSEDED_WRITER"
        async with served(tmp_path) as second:
            assert (await second.open(3)).documents == 20
            assert (await failure(peer.write(["x"], vectors(1)))).reason == "SUPERSEDED_WRITER"


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"kind": 7}, "NOT_SUPPORTED"),
        ({"similarity": 0}, "INVALID_REQUEST"),
        ({"index": "tree"}, "INVALID_REQUEST"),
        ({"dim": 0}, "INVALID_REQUEST"),
        ({"dim": 1 << 20}, "LIMIT_EXCEEDED"),
    ],
)
async def test_shards_that_cannot_be(
    tmp_path: Path, changes: dict[str, int | str], reason: str
) -> None:
    async with served(tmp_path) as peer:
        assert (await failure(peer.open(**changes))).reason == reason


async def test_close_and_drop(tmp_path: Path) -> None:
    async with served(tmp_path) as peer:
        await filled(peer)
        await peer.stub.Optimize(shard_pb2.OptimizeRequest(key=peer.key))
        await peer.stub.CloseShard(shard_pb2.CloseShardRequest(key=peer.key))
        assert (await failure(peer.search(vectors(1)))).reason == "STALE_TOPOLOGY"
        assert (await peer.open(2)).documents == 20
        for _ in range(2):
            await peer.stub.CloseShard(shard_pb2.CloseShardRequest(key=peer.key, drop=True))
        assert (await peer.open(3)).documents == 0


async def test_status_of_segments(tmp_path: Path) -> None:
    async with served(tmp_path) as peer:
        await filled(peer)
        await peer.stub.Optimize(shard_pb2.OptimizeRequest(key=peer.key))
        await peer.write(["d0", "new"], vectors(2, 5))
        status = await peer.status()
        assert status.search_threads == 1
        (shard,) = status.shards
        assert (shard.documents, shard.passages, shard.tail_passages) == (21, 21, 2)
        (segment,) = shard.segments
        assert (segment.passages, segment.live_passages) == (20, 19)
        assert (segment.index, segment.recall) == ("Flat", 1.0)
        assert segment.bytes > 20 * DIM * 4


async def test_a_corrupt_log_needs_its_loss_accepted(tmp_path: Path) -> None:
    async with served(tmp_path) as peer:
        await filled(peer)
        await peer.write(["last"], vectors(1, 3))
    (log,) = [path for path in (tmp_path / "logs").rglob("*") if b"text of d3" in contents(path)]
    data = log.read_bytes()
    log.write_bytes(data.replace(b"text of d3", b"text of d4"))
    async with served(tmp_path) as peer:
        error = await failure(peer.open(2))
        assert error.reason == "CORRUPT_LOG"
        assert (await failure(peer.search(vectors(1)))).reason == "CORRUPT_LOG"
        (shard,) = (await peer.status()).shards
        assert shard.state == shard_pb2.SHARD_STATE_CORRUPT
        assert shard.loss == error.metadata["loss"]
        assert (await failure(peer.open(3, accept_loss="another"))).reason == "LOSS_MISMATCH"
        opened = await peer.open(4, accept_loss=shard.loss)
        assert opened.state == shard_pb2.SHARD_STATE_SERVING
        assert opened.position == 21
        assert "last" in ids_of(await peer.search(vectors(1), 30))[0]


def contents(path: Path) -> bytes:
    return path.read_bytes() if path.is_file() else b""


async def test_a_corrupt_segment_never_answers(tmp_path: Path) -> None:
    async with served(tmp_path) as peer:
        await filled(peer)
        await peer.stub.Optimize(shard_pb2.OptimizeRequest(key=peer.key))
    (index,) = (tmp_path / "blobs").rglob("index.faiss")
    data = bytearray(index.read_bytes())
    data[len(data) // 2] ^= 1
    index.write_bytes(data)
    async with served(tmp_path) as peer:
        assert (await failure(peer.open(2))).reason == "CORRUPT_SEGMENT"
        assert (await failure(peer.search(vectors(1)))).reason == "CORRUPT_SEGMENT"
        (shard,) = (await peer.status()).shards
        assert shard.state == shard_pb2.SHARD_STATE_CORRUPT
        assert "index.faiss" in shard.detail


async def test_a_damaged_manifest_never_answers(tmp_path: Path) -> None:
    async with served(tmp_path) as peer:
        await filled(peer)
        await peer.stub.Optimize(shard_pb2.OptimizeRequest(key=peer.key))
    for version in [path for path in (tmp_path / "catalog").rglob("*") if path.is_file()]:
        data = bytearray(version.read_bytes())
        data[len(data) // 2] ^= 1
        version.write_bytes(data)
    async with served(tmp_path) as peer:
        assert (await failure(peer.open(2))).reason == "CORRUPT_CATALOG"
        assert (await failure(peer.search(vectors(1)))).reason == "STALE_TOPOLOGY"


async def test_a_full_disk_refuses_writes_and_serves_reads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    async with served(tmp_path) as peer:
        stored = await filled(peer)
        big = [f"big{n}" for n in range(3000)]
        with monkeypatch.context() as patched:
            patched.setattr(os, "posix_fallocate", full)
            request = peer.write_request(big, vectors(3000, 8))
            for one in request.versions:
                one.document.text = "x" * 2000
            assert (await failure(peer.stub.Write(request))).reason == "DISK_FULL"
            assert ids_of(await peer.search(stored[:1], 1)) == [["d0"]]
        assert (await peer.stub.Write(request)).position == 3020


async def test_a_full_queue_refuses_at_once(tmp_path: Path) -> None:
    async with served(tmp_path, max_waiting_searches=1) as peer:
        stored = await filled(peer)
        calls = [peer.search(np.repeat(stored, 40, axis=0), 20) for _ in range(8)]
        results = await asyncio.gather(*calls, return_exceptions=True)
        refused = [from_rpc_error(r) for r in results if isinstance(r, grpc.aio.AioRpcError)]
        assert refused
        assert {error.reason for error in refused} == {"OVERLOADED"}
        assert all(error.retry_after_s for error in refused)
        assert len(refused) < len(calls)


async def test_a_caller_that_leaves_disturbs_nobody(tmp_path: Path) -> None:
    async with served(tmp_path) as peer:
        stored = await filled(peer)
        writes = [
            asyncio.ensure_future(peer.write([f"w{n}"], vectors(1, n + 1))) for n in range(20)
        ]
        searches = [asyncio.ensure_future(peer.search(stored)) for _ in range(20)]
        await asyncio.sleep(0)
        for call in (*writes[::2], *searches[::2]):
            call.cancel()
        await asyncio.gather(*writes, *searches, return_exceptions=True)
        assert all(not call.cancelled() for call in (*writes[1::2], *searches[1::2]))
        assert (await peer.write(["after"], vectors(1, 99))).position > 20
        assert ids_of(await peer.search(stored[:1], 1)) == [["d0"]]


async def test_health_and_a_busy_port(tmp_path: Path) -> None:
    server = ShardServer(ShardSettings(data=str(tmp_path)))
    address = await server.start()
    try:
        async with grpc.aio.insecure_channel(address) as channel:
            health = health_pb2_grpc.HealthStub(channel)
            reply = await health.Check(
                health_pb2.HealthCheckRequest(service="shoal.rpc.shard.v1.ShardService"),
                timeout=TIMEOUT_S,
            )
            assert reply.status == health_pb2.HealthCheckResponse.SERVING
        port = int(address.rsplit(":", 1)[1])
        second = ShardServer(ShardSettings(data=str(tmp_path), port=port))
        with pytest.raises(OSError, match="is taken"):
            await second.start()
        await second.stop(0)
    finally:
        await server.stop(1)


async def test_writes_and_searches_at_once_see_whole_states(tmp_path: Path) -> None:
    """An upsert is one step: a search never sees both versions of a document, or none."""
    async with served(tmp_path, seal_passages=16) as peer:
        stored = await filled(peer)

        async def upserts() -> None:
            for turn in range(40):
                await peer.write([f"d{n}" for n in range(20)], vectors(20, turn))

        writing = asyncio.ensure_future(upserts())
        while not writing.done():
            response = await peer.search(stored[:1], 100)
            assert sorted(ids_of(response)[0]) == sorted(f"d{n}" for n in range(20))
            assert response.documents == 20
        await writing


async def test_a_shard_moves_to_another_server_and_the_old_one_says_so(tmp_path: Path) -> None:
    async with served(tmp_path) as old, served(tmp_path) as new:
        stored = await filled(old)
        request = shard_pb2.PrepareShardRequest(
            key=new.key, shard_count=1, settings=collection_settings()
        )
        prepared = await new.stub.PrepareShard(request, timeout=TIMEOUT_S)
        assert prepared.status.state == shard_pb2.SHARD_STATE_PREPARED
        refused = await failure(new.search(stored[:1]))
        assert refused.reason == "STALE_TOPOLOGY"
        await new.open(2)
        for peer in (old, new):
            assert ids_of(await peer.search(stored[[4]], 1)) == [["d4"]]
        written = await new.write(["e"], stored[:1])
        late = await failure(old.search(stored[:1], after_sequence=[written.position]))
        assert late.reason == "STALE_TOPOLOGY", "a router asks again elsewhere"
        assert (await failure(old.write(["f"], stored[:1]))).reason == "SUPERSEDED_WRITER"
        closing = shard_pb2.CloseShardRequest(key=old.key)
        await old.stub.CloseShard(closing, timeout=TIMEOUT_S)
        assert (await failure(old.search(stored[:1]))).reason == "STALE_TOPOLOGY"
