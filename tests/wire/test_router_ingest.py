"""Ingest, Get and Delete through a real router."""

import asyncio
from collections.abc import AsyncIterator, Iterable
from typing import Any

import grpc
import numpy as np
import pytest

from router.settings import RouterSettings
from shoal.errors import (
    CorruptLog,
    DiskFull,
    NonFiniteVector,
    Overloaded,
    ShardUnavailable,
    StaleTopology,
)
from shoal.ids import shard_of
from shoal.rpc.common.v1 import common_pb2
from shoal.rpc.router.v1 import router_pb2
from shoal.settings import Limits
from shoal.wire.arrays import matrix_to_message
from shoal.wire.errors import from_rpc_error, to_status
from tests.wire.router_fakes import (
    DIM,
    MAX_BYTES,
    Cluster,
    eventually,
    text_request,
    vector_request,
)

STORED, UNCHANGED, REJECTED = 1, 2, 3
QUICK = RouterSettings(watch_retry_ms=20, ingest_patience_ms=300)


def document(number: int, document_id: str, text: str = "", **parts: Any) -> Any:
    vector = parts.pop("vector", None)
    return router_pb2.IngestDocument(
        number=number,
        document=common_pb2.Document(id=document_id, text=text, **parts),
        vector=None if vector is None else matrix_to_message(np.atleast_2d(vector)),
    )


def start(**parts: Any) -> Any:
    return router_pb2.IngestRequest(
        start=router_pb2.IngestStart(**{"collection": "papers", **parts})
    )


def documents(*each: Any) -> Any:
    return router_pb2.IngestRequest(documents=router_pb2.IngestDocuments(documents=each))


class Stream:
    """A client of one ingest stream, message by message."""

    def __init__(self, cluster: Cluster) -> None:
        self.call = cluster.search.Ingest()
        self.acknowledged: dict[int, Any] = {}
        self.position = b""

    async def open(self, **parts: Any) -> Any:
        await self.call.write(start(**parts))
        return (await self.call.read()).started

    async def send(self, *each: Any) -> None:
        await self.call.write(documents(*each))

    async def until(self, count: int) -> None:
        while len(self.acknowledged) < count:
            await self.read()

    async def read(self) -> bool:
        response = await self.call.read()
        if response is grpc.aio.EOF:
            return False
        self.position = response.acknowledgements.position
        for each in response.acknowledgements.acknowledgements:
            assert each.number not in self.acknowledged, "answered twice"
            self.acknowledged[each.number] = each
        return True

    async def finish(self) -> dict[int, Any]:
        await self.call.done_writing()
        while await self.read():
            pass
        return self.acknowledged


async def ingest(cluster: Cluster, each: Iterable[Any], **parts: Any) -> dict[int, Any]:
    stream = Stream(cluster)
    await stream.open(**parts)
    for one in each:
        await stream.send(one)
    return await stream.finish()


def outcomes(acknowledged: dict[int, Any]) -> dict[int, int]:
    return {number: each.outcome for number, each in sorted(acknowledged.items())}


def stored(cluster: Cluster) -> dict[str, Any]:
    return {
        key.decode(): each
        for server in cluster.servers
        for held in server.shards.values()
        for key, each in held.items()
    }


async def test_documents_are_stored_found_and_unchanged_the_second_time() -> None:
    async with Cluster() as cluster:
        batch = [document(n, f"doc-{n}", f"text {n}", title=f"title {n}") for n in range(150)]
        assert set(outcomes(await ingest(cluster, batch)).values()) == {STORED}
        assert len(stored(cluster)) == 150
        reply = await cluster.search.Search(text_request("text 7", fields=[1, 2]))
        assert reply.hits[0].id == "doc-7"
        assert reply.hits[0].title == "title 7"
        assert (reply.hits[0].chunk.start, reply.hits[0].chunk.end) == (0, 6)
        encoded = len(cluster.encoders[0].documents.messages)
        assert set(outcomes(await ingest(cluster, batch)).values()) == {UNCHANGED}
        assert len(cluster.encoders[0].documents.messages) == encoded, "encoded again"


async def test_a_lone_document_is_acknowledged_while_the_stream_is_open() -> None:
    async with Cluster() as cluster:
        stream = Stream(cluster)
        opened = await stream.open()
        assert opened.window_documents > 0
        assert opened.window_bytes > 0
        await stream.send(document(5, "a", "text"))
        await stream.until(1)
        await stream.send(document(6, "b", "text"))
        await stream.until(2)
        assert outcomes(await stream.finish()) == {5: STORED, 6: STORED}


async def test_of_two_with_one_id_the_later_wins_and_is_said_so() -> None:
    async with Cluster() as cluster:
        stream = Stream(cluster)
        await stream.open()
        await stream.send(
            document(1, "a", "first"), document(2, "a", "second"), document(3, "b", "b")
        )
        acknowledged = await stream.finish()
        assert stored(cluster)["a"].document.text == "second"
        assert {n: each.duplicate for n, each in acknowledged.items()} == {
            1: False,
            2: True,
            3: False,
        }


async def test_a_version_that_the_shard_holds_is_written_again_after_another() -> None:
    """The probe says "unchanged" of the second, but the first goes between."""
    async with Cluster() as cluster:
        await ingest(cluster, [document(1, "a", "old")])
        acknowledged = await ingest(cluster, [document(1, "a", "new"), document(2, "a", "old")])
        assert stored(cluster)["a"].document.text == "old"
        assert outcomes(acknowledged) == {1: STORED, 2: STORED}


async def test_a_duplicate_in_a_later_batch_is_said_so() -> None:
    async with Cluster() as cluster:
        stream = Stream(cluster)
        await stream.open()
        await stream.send(document(1, "a", "first"))
        await stream.until(1)
        await stream.send(document(2, "a", "second"))
        acknowledged = await stream.finish()
        assert acknowledged[2].duplicate
        # What an earlier stream stored is no duplicate.
        assert not (await ingest(cluster, [document(3, "a", "third")]))[3].duplicate


BAD_DOCUMENTS = [
    (document(1, ""), "INVALID_ID"),
    (document(1, "x" * 10_000, "text"), "INVALID_ID"),
    (document(1, "a\0b", "text"), "INVALID_ID"),
    (document(1, "a", " \n"), "EMPTY_TEXT"),
    (document(1, "a", "text", payload=b"[1]"), "INVALID_PAYLOAD"),
    (document(1, "a", "text", payload=b"{"), "INVALID_PAYLOAD"),
    (document(1, "a", "x" * 3_000), "LIMIT_EXCEEDED"),
    (document(1, "a", "text", payload=b" " * 3_000), "LIMIT_EXCEEDED"),
    (document(1, "a", vector=np.ones(3, np.float32)), "DIMENSION_MISMATCH"),
    (document(1, "a", vector=np.full(DIM, np.nan, np.float32)), "NON_FINITE_VECTOR"),
    (document(1, "a", vector=np.zeros(DIM, np.float32)), "ZERO_VECTOR"),
    (document(1, "a", vector=np.ones((2, DIM), np.float32)), "INVALID_REQUEST"),
    (document(1, "a", vector=np.ones(DIM, np.int8)), "MALFORMED_MESSAGE"),
]


async def test_a_bad_document_is_rejected_with_its_reason_and_the_rest_stored() -> None:
    limits = Limits(max_text_bytes=2_000, max_payload_bytes=2_000, max_message_bytes=MAX_BYTES)
    async with Cluster(limits=limits, similarity=common_pb2.SIMILARITY_COSINE) as cluster:
        for bad, reason in BAD_DOCUMENTS:
            acknowledged = await ingest(cluster, [bad, document(2, "good", "text")])
            assert acknowledged[1].outcome == REJECTED
            assert acknowledged[1].status.reason == reason
            assert acknowledged[2].outcome in (STORED, UNCHANGED)


async def test_what_the_shard_or_the_encoder_refuses_is_rejected() -> None:
    async with Cluster(shards=1) as cluster:

        def twist(reply: Any) -> Any:
            status = to_status(NonFiniteVector("NaN"))
            reply.statuses.extend([status, common_pb2.Status()])
            return reply

        cluster.servers[0].write.twist = twist
        acknowledged = await ingest(cluster, [document(1, "a", "x"), document(2, "b", "y")])
        assert outcomes(acknowledged) == {1: REJECTED, 2: STORED}
        assert acknowledged[1].status.reason == "NON_FINITE_VECTOR"


async def test_own_vectors_are_stored_as_given() -> None:
    async with Cluster(encoders=0) as cluster:
        vector = np.arange(DIM, dtype=np.float32)
        acknowledged = await ingest(
            cluster, [document(1, "a", vector=vector), document(2, "b", "words")]
        )
        assert outcomes(acknowledged) == {1: STORED, 2: REJECTED}
        assert acknowledged[2].status.reason == "TEXT_NOT_SUPPORTED"
        assert (stored(cluster)["a"].vectors == vector).all()


async def test_a_wrong_beginning_is_refused() -> None:
    async with Cluster() as cluster:
        for parts, reason in (
            ({"collection": "nothing"}, "COLLECTION_NOT_FOUND"),
            ({"fingerprint": "other"}, "FINGERPRINT_MISMATCH"),
            ({"request_id": "x" * 65}, "INVALID_REQUEST"),
        ):
            assert (await failure(cluster, start(**parts))).reason == reason
        assert (await failure(cluster, documents())).reason == "INVALID_REQUEST"
        assert (await failure(cluster, start(), start())).reason == "INVALID_REQUEST"


async def failure(cluster: Cluster, *messages: Any) -> Any:
    async def requests() -> AsyncIterator[Any]:
        for each in messages:
            yield each

    with pytest.raises(grpc.aio.AioRpcError) as raised:
        async for _ in cluster.search.Ingest(requests()):
            pass
    return from_rpc_error(raised.value)


async def test_a_shard_that_restarts_is_waited_for() -> None:
    async with Cluster() as cluster:
        for server in cluster.servers:
            server.probe.errors = [ShardUnavailable("gone"), StaleTopology("not open yet")]
            server.write.errors = [ShardUnavailable("gone"), Overloaded("later")]
        cluster.encoders[0].documents.errors = [Overloaded("busy")]
        acknowledged = await ingest(cluster, [document(n, f"d{n}", "text") for n in range(10)])
        assert set(outcomes(acknowledged).values()) == {STORED}
        assert len(stored(cluster)) == 10


async def test_a_write_whose_answer_was_lost_is_not_a_duplicate() -> None:
    async with Cluster(shards=1) as cluster:
        server = cluster.servers[0]
        calls = 0

        def twist(reply: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls == 1:
                raise ShardUnavailable("died after the write")
            return reply

        server.write.twist = twist
        acknowledged = await ingest(
            cluster, [document(1, "a", "one"), document(2, "a", "two"), document(3, "b", "b")]
        )
        assert outcomes(acknowledged) == dict.fromkeys((1, 2, 3), STORED)
        assert [acknowledged[n].duplicate for n in (1, 2, 3)] == [False, True, False]
        assert stored(cluster)["a"].document.text == "two"
        assert calls == 1


async def test_a_shard_that_stays_away_fails_the_stream_after_what_is_durable() -> None:
    async with Cluster(settings=QUICK) as cluster:
        cluster.servers[0].write.always = ShardUnavailable("gone")
        stream = Stream(cluster)
        await stream.open()
        await stream.send(*(document(n, f"d{n}", "text") for n in range(20)))
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await stream.finish()
        error = from_rpc_error(raised.value)
        assert error.reason == "SHARD_UNAVAILABLE"
        assert error.metadata["shard"] == "0"
        theirs = {n for n in range(20) if shard_of(f"d{n}".encode(), 2) == 1}
        assert set(stream.acknowledged) == theirs


@pytest.mark.parametrize("error", [DiskFull("no room"), CorruptLog("damaged")])
async def test_a_full_disk_or_a_damaged_log_ends_the_stream(error: Any) -> None:
    async with Cluster() as cluster:
        cluster.servers[0].write.always = cluster.servers[1].write.always = error
        seen = await failure(cluster, start(), documents(document(1, "a", "text")))
        assert seen.reason == error.reason


async def test_a_failure_while_the_stream_lingers_for_documents_ends_it() -> None:
    """Nothing else is under way then that could wake the stream."""
    settings = RouterSettings(watch_retry_ms=20, ingest_linger_ms=300)
    async with Cluster(shards=1, settings=settings) as cluster:
        server = cluster.servers[0]
        server.write.gate.clear()
        server.write.always = DiskFull("no room")
        stream = Stream(cluster)
        await stream.open()
        await stream.send(document(1, "a", "text"))
        await eventually(lambda: server.write.active == 1)
        await stream.send(document(2, ""))
        # Document 2 is refused at once: from then on the stream lingers for the next message.
        await stream.until(1)
        server.write.gate.set()
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            async with asyncio.timeout(10):
                await stream.read()
        assert from_rpc_error(raised.value).reason == "DISK_FULL"


async def test_reading_stops_at_the_window() -> None:
    settings = RouterSettings(
        watch_retry_ms=20, ingest_window_documents=4, ingest_batch_documents=2
    )
    async with Cluster(shards=1, settings=settings) as cluster:
        cluster.servers[0].write.gate.clear()
        stream = Stream(cluster)
        await stream.open()
        for number in range(40):
            await stream.send(document(number, f"d{number}", "text"))
        await eventually(lambda: cluster.servers[0].write.active == 1)
        await asyncio.sleep(0.05)
        probed = sum(len(message.ids) for message in cluster.servers[0].probe.messages)
        assert probed <= 4, "more was taken in than the window"
        cluster.servers[0].write.gate.set()
        assert len(await stream.finish()) == 40


async def test_a_client_that_leaves_stops_its_work() -> None:
    async with Cluster() as cluster:
        for server in cluster.servers:
            server.write.gate.clear()
        stream = Stream(cluster)
        await stream.open()
        await stream.send(document(1, "a", "text"))
        await eventually(lambda: sum(server.write.active for server in cluster.servers) == 1)
        stream.call.cancel()
        await eventually(lambda: sum(server.write.active for server in cluster.servers) == 0)
        assert not stored(cluster)


async def test_positions_let_one_read_ones_own_writes() -> None:
    async with Cluster() as cluster:
        stream = Stream(cluster)
        await stream.open()
        await stream.send(*(document(n, f"d{n}", "text") for n in range(20)))
        await stream.finish()
        await cluster.search.Search(vector_request(np.ones(DIM, np.float32), after=stream.position))
        for shard, server in enumerate(cluster.servers):
            assert list(server.search.messages[-1].after_sequence) == [server.positions[shard]]


async def test_large_documents_are_written_in_messages_that_fit() -> None:
    settings = RouterSettings(watch_retry_ms=20, ingest_batch_bytes=64 << 20)
    limits = Limits(max_message_bytes=1 << 20)
    async with Cluster(shards=1, settings=settings, limits=limits) as cluster:
        acknowledged = await ingest(
            cluster, [document(n, f"d{n}", f"{n} " + "x" * 300_000) for n in range(9)]
        )
        assert set(outcomes(acknowledged).values()) == {STORED}
        assert all(message.ByteSize() <= 1 << 20 for message in cluster.servers[0].write.messages)


# --- Get and Delete ---------------------------------------------------------


async def test_documents_by_id_in_the_order_asked() -> None:
    async with Cluster() as cluster:
        cluster.fill(20)
        reply = await cluster.search.Get(
            router_pb2.GetRequest(collection="papers", ids=["doc-3", "nobody", "doc-1", "doc-3"])
        )
        assert [each.found for each in reply.results] == [True, False, True, True]
        assert [each.document.id for each in reply.results] == ["doc-3", "", "doc-1", "doc-3"]
        assert reply.results[0].document.text == "text of doc-3"


async def test_deletes_say_what_was_there() -> None:
    async with Cluster() as cluster:
        cluster.fill(20)
        request = router_pb2.DeleteRequest(collection="papers", ids=["doc-3", "nobody", "doc-1"])
        reply = await cluster.search.Delete(request)
        assert list(reply.found) == [True, False, True]
        assert reply.position
        assert list((await cluster.search.Delete(request)).found) == [False] * 3
        assert len(stored(cluster)) == 18


async def test_get_and_delete_are_never_partial() -> None:
    async with Cluster() as cluster:
        cluster.fill(20)
        await cluster.servers[0].stop()
        ids = [f"doc-{number}" for number in range(20)]
        for call in (
            cluster.search.Get(router_pb2.GetRequest(collection="papers", ids=ids)),
            cluster.search.Delete(router_pb2.DeleteRequest(collection="papers", ids=ids)),
        ):
            with pytest.raises(grpc.aio.AioRpcError) as raised:
                await call
            error = from_rpc_error(raised.value)
            assert error.reason == "SHARD_UNAVAILABLE"
            assert error.metadata["shard"] == "0"


async def test_bad_ids_and_too_many_are_refused() -> None:
    async with Cluster(limits=Limits(max_ids=3, max_message_bytes=MAX_BYTES)) as cluster:
        for ids, reason in ((["a"] * 4, "LIMIT_EXCEEDED"), ([""], "INVALID_ID")):
            with pytest.raises(grpc.aio.AioRpcError) as raised:
                await cluster.search.Get(router_pb2.GetRequest(collection="papers", ids=ids))
            assert from_rpc_error(raised.value).reason == reason


async def test_documents_too_large_for_one_message_are_fetched_in_parts() -> None:
    async with Cluster(shards=1, limits=Limits(max_message_bytes=1 << 20)) as cluster:
        for number in range(3):
            cluster.put(f"big-{number}", np.ones(DIM), text="x" * 500_000)
        request = router_pb2.GetRequest(collection="papers", ids=["big-0", "big-1", "big-2"])
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await cluster.search.Get(request)
        assert from_rpc_error(raised.value).metadata["limit"] == "max_message_bytes"
        assert {len(message.ids) for message in cluster.servers[0].fetch.messages} == {3, 1, 2}
        del request.ids[1:]
        assert (await cluster.search.Get(request)).results[0].found
