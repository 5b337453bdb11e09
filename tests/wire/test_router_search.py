"""Search through a real router: answers, coverage, deadlines, faults."""

import asyncio
import time
from typing import Any

import grpc
import numpy as np
import pytest

from router.settings import RouterSettings
from shoal.errors import Overloaded, PositionNotReached, ShardUnavailable, StaleTopology
from shoal.ids import shard_of
from shoal.rpc.router.v1 import router_pb2
from shoal.wire.arrays import matrix_to_message
from shoal.wire.errors import from_rpc_error
from tests.wire.router_fakes import (
    DIM,
    Cluster,
    FakeShardServer,
    brute_force,
    eventually,
    text_request,
    text_vector,
    vector_request,
)

QUERY = np.linspace(-1, 1, DIM, dtype=np.float32)


async def refused(call: Any) -> Any:
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await call
    return from_rpc_error(raised.value)


async def test_a_vector_is_answered_from_every_shard() -> None:
    async with Cluster(shards=3) as cluster:
        filled = cluster.fill(50)
        reply = await cluster.search.Search(vector_request(QUERY, top_k=7))
        assert [hit.id for hit in reply.hits] == brute_force(filled, QUERY, 7)
        assert [hit.shard for hit in reply.hits] == [
            shard_of(hit.id.encode(), 3) for hit in reply.hits
        ]
        assert reply.coverage.shards_answered == reply.coverage.shards_total == 3
        assert reply.coverage.documents_covered == reply.coverage.documents_total == 50
        assert reply.generation == 1
        assert reply.request_id
        assert not reply.hits[0].title, "no fields were asked for"
        assert not any(server.fetch.messages for server in cluster.servers)


async def test_a_text_is_encoded_and_its_documents_fetched() -> None:
    async with Cluster() as cluster:
        filled = cluster.fill(30)
        reply = await cluster.search.Search(text_request("salt", fields=[1, 2]))
        assert [hit.id for hit in reply.hits] == brute_force(filled, text_vector("salt"), 10)
        assert reply.hits[0].title == f"title of {reply.hits[0].id}"
        assert reply.hits[0].text == f"text of {reply.hits[0].id}"
        assert not reply.timings.encode_cached
        again = await cluster.search.Search(text_request("salt", fields=[1, 2]))
        assert again.timings.encode_cached
        assert list(again.hits) == list(reply.hits)
        assert len(cluster.encoders[0].queries.messages) == 1


async def test_a_truncated_vector_is_cached_for_those_who_allow_it() -> None:
    async with Cluster() as cluster:
        cluster.fill(5)
        long = "word " * 30
        assert (await refused(cluster.search.Search(text_request(long)))).reason == "TEXT_TOO_LONG"
        for _ in range(2):
            reply = await cluster.search.Search(text_request(long, allow_truncation=True))
            assert reply.truncated
        assert reply.timings.encode_cached
        assert (await refused(cluster.search.Search(text_request(long)))).reason == "TEXT_TOO_LONG"


async def test_a_hung_shard_is_missing_at_the_deadline_and_no_more() -> None:
    async with Cluster(shards=3) as cluster:
        cluster.fill(30)
        await cluster.search.Search(vector_request(QUERY))
        cluster.servers[1].search.gate.clear()
        began = time.monotonic()
        reply = await cluster.search.Search(vector_request(QUERY, min_coverage=0.3), timeout=0.4)
        assert time.monotonic() - began < 0.4
        assert [(each.shard, each.reason) for each in reply.coverage.missing] == [
            (1, "DEADLINE_EXCEEDED")
        ]
        assert all(hit.shard != 1 for hit in reply.hits)
        held = len(cluster.servers[1].shards[1])
        assert reply.coverage.documents_covered == 30 - held
        error = await refused(cluster.search.Search(vector_request(QUERY), timeout=0.3))
        assert error.reason == "INSUFFICIENT_COVERAGE"
        assert error.metadata["missing"] == "1:DEADLINE_EXCEEDED"
        # The calls that nobody waits for any more were cancelled.
        await eventually(lambda: cluster.servers[1].search.cancelled == 2)


async def test_a_full_shard_delays_nobody() -> None:
    settings = RouterSettings(shard_messages=2, straggler_wait_ms=1, watch_retry_ms=20)
    async with Cluster(settings=settings) as cluster:
        cluster.fill(30)
        hung = cluster.servers[0].search
        hung.gate.clear()
        waiting = [
            asyncio.ensure_future(
                cluster.search.Search(vector_request(QUERY, min_coverage=0.0), timeout=5)
            )
            for _ in range(2)
        ]
        await eventually(lambda: hung.active == 2 or len(hung.messages) >= 1)
        while hung.active < 2:
            waiting.append(
                asyncio.ensure_future(
                    cluster.search.Search(vector_request(QUERY, min_coverage=0.0), timeout=5)
                )
            )
            await asyncio.sleep(0.02)
        began = time.monotonic()
        reply = await cluster.search.Search(vector_request(QUERY, min_coverage=0.0), timeout=5)
        assert time.monotonic() - began < 2
        assert [(each.shard, each.reason) for each in reply.coverage.missing] == [(0, "OVERLOADED")]
        hung.gate.set()
        for each in await asyncio.gather(*waiting):
            assert not each.coverage.missing or each.coverage.missing[0].reason == "OVERLOADED"
        assert not (await cluster.search.Search(vector_request(QUERY))).coverage.missing


async def test_queries_that_wait_travel_in_one_message() -> None:
    async with Cluster() as cluster:
        filled = cluster.fill(40)
        gate = cluster.servers[0].search.gate
        gate.clear()
        queries = np.random.default_rng(5).normal(size=(9, DIM)).astype(np.float32)
        settings_wait = [
            asyncio.ensure_future(cluster.search.Search(vector_request(query), timeout=10))
            for query in queries
        ]
        await eventually(lambda: cluster.servers[0].search.active > 0)
        gate.set()
        for query, reply in zip(queries, await asyncio.gather(*settings_wait), strict=True):
            assert [hit.id for hit in reply.hits] == brute_force(filled, query, 10)
        sizes = [len(message.top_k) for message in cluster.servers[0].search.messages]
        assert sum(sizes) == 9
        assert len(sizes) < 9, "every question travelled alone"


async def test_texts_that_wait_travel_in_one_message() -> None:
    async with Cluster() as cluster:
        cluster.fill(10)
        gate = cluster.encoders[0].queries.gate
        gate.clear()
        calls = [
            asyncio.ensure_future(cluster.search.Search(text_request(f"text {number}"), timeout=10))
            for number in range(12)
        ]
        await eventually(lambda: cluster.encoders[0].queries.active == 2)
        gate.set()
        await asyncio.gather(*calls)
        sizes = [len(message.texts) for message in cluster.encoders[0].queries.messages]
        assert sum(sizes) == 12
        assert len(sizes) < 12


async def test_a_hung_encoder_delays_only_those_it_took() -> None:
    async with Cluster(encoders=2) as cluster:
        cluster.fill(10)
        cluster.encoders[0].queries.gate.clear()
        calls = [cluster.search.Search(text_request(f"text {n}"), timeout=2) for n in range(4)]
        outcomes = await asyncio.gather(*calls, return_exceptions=True)
        failed = [each for each in outcomes if isinstance(each, grpc.aio.AioRpcError)]
        assert len(failed) < 4
        for each in failed:
            assert from_rpc_error(each).reason == "DEADLINE_EXCEEDED"


async def test_without_an_encoder_a_text_is_refused_and_a_vector_is_not() -> None:
    async with Cluster() as cluster:
        cluster.fill(10)
        cluster.encoders[0].queries.always = Overloaded("busy")
        assert (await refused(cluster.search.Search(text_request("a")))).reason == "OVERLOADED"
        await cluster.encoders[0].stop()
        error = await refused(cluster.search.Search(text_request("a"), timeout=5))
        assert error.reason == "ENCODER_UNAVAILABLE"
        assert (await cluster.search.Search(vector_request(QUERY))).hits


async def test_a_cancelled_caller_disturbs_nobody() -> None:
    async with Cluster() as cluster:
        filled = cluster.fill(20)
        gate = cluster.servers[0].search.gate
        gate.clear()
        calls = [cluster.search.Search(vector_request(QUERY), timeout=10) for _ in range(8)]
        tasks = [asyncio.ensure_future(call) for call in calls]
        await eventually(lambda: cluster.servers[0].search.active > 0)
        for call in calls[::2]:
            call.cancel()
        gate.set()
        await asyncio.gather(*tasks[::2], return_exceptions=True)
        for reply in await asyncio.gather(*tasks[1::2]):
            assert [hit.id for hit in reply.hits] == brute_force(filled, QUERY, 10)
        # The router is alive for everybody who comes later.
        assert (await cluster.search.Search(vector_request(QUERY))).hits


async def test_a_call_that_everybody_left_is_cancelled_on_the_shard() -> None:
    async with Cluster() as cluster:
        cluster.fill(20)
        cluster.servers[0].search.gate.clear()
        call = cluster.search.Search(vector_request(QUERY), timeout=10)
        await eventually(lambda: cluster.servers[0].search.active == 1)
        call.cancel()
        await eventually(lambda: cluster.servers[0].search.cancelled == 1)
        cluster.servers[0].search.gate.set()
        assert (await cluster.search.Search(vector_request(QUERY))).coverage.shards_answered == 2


async def test_a_stale_topology_is_read_again_and_the_shard_asked_again() -> None:
    async with Cluster() as cluster:
        filled = cluster.fill(20)
        old, new = cluster.servers[1], FakeShardServer("server-9", [1])
        new.shards[1], old.shards = old.shards[1], {}
        await new.start()
        cluster.servers.append(new)
        cluster.publish()
        reply = await cluster.search.Search(vector_request(QUERY))
        assert [hit.id for hit in reply.hits] == brute_force(filled, QUERY, 10)
        assert len(old.search.messages) <= 1


async def test_a_shard_that_stays_stale_is_missing() -> None:
    async with Cluster() as cluster:
        cluster.fill(20)
        cluster.servers[1].search.always = StaleTopology("not here")
        error = await refused(cluster.search.Search(vector_request(QUERY), timeout=5))
        assert error.metadata["missing"] == "1:STALE_TOPOLOGY"
        assert len(cluster.servers[1].search.messages) == 2


async def test_a_question_moves_to_the_generation_that_serves_now() -> None:
    async with Cluster() as cluster:
        filled = cluster.fill(20)
        for server in cluster.servers:
            server.search.errors = [StaleTopology("that generation is gone")]
        cluster.topology = cluster.map()
        cluster.topology.collections[0].generation = 2
        cluster.catalog.set("topology", cluster.topology.SerializeToString())
        reply = await cluster.search.Search(vector_request(QUERY, fields=[1]))
        assert [hit.id for hit in reply.hits] == brute_force(filled, QUERY, 10)
        assert reply.generation == 2
        assert reply.hits[0].title


async def test_another_replica_answers_for_one_that_fails() -> None:
    async with Cluster() as cluster:
        filled = cluster.fill(20)
        twin = FakeShardServer("server-9", [0])
        twin.shards[0] = cluster.servers[0].shards[0]
        await twin.start()
        cluster.servers.append(twin)
        cluster.publish()
        await cluster.router._follower.refresh()
        cluster.servers[0].search.always = ShardUnavailable("broken")
        for _ in range(3):
            reply = await cluster.search.Search(vector_request(QUERY))
            assert [hit.id for hit in reply.hits] == brute_force(filled, QUERY, 10)
            assert reply.coverage.shards_answered == 2


async def test_a_dead_shard_is_named_at_once() -> None:
    async with Cluster() as cluster:
        cluster.fill(20)
        await cluster.search.Search(vector_request(QUERY))
        await cluster.servers[0].stop()
        error = await refused(cluster.search.Search(vector_request(QUERY), timeout=10))
        assert error.reason == "INSUFFICIENT_COVERAGE"
        assert error.metadata["missing"] == "0:SHARD_UNAVAILABLE"
        reply = await cluster.search.Search(vector_request(QUERY, min_coverage=0.0))
        assert reply.coverage.documents_total == 20


async def test_a_reply_that_does_not_fit_is_a_missing_shard() -> None:
    async with Cluster() as cluster:
        cluster.fill(20)

        def twist(reply: Any) -> Any:
            reply.scores = reply.scores[:-1]
            return reply

        cluster.servers[0].search.twist = twist
        error = await refused(cluster.search.Search(vector_request(QUERY)))
        assert error.metadata["missing"] == "0:INTERNAL"


async def test_positions_are_passed_on_shard_by_shard() -> None:
    async with Cluster() as cluster:
        cluster.fill(20)
        reply = await cluster.search.Search(vector_request(QUERY))
        await cluster.search.Search(vector_request(QUERY, after=reply.position))
        for shard, server in enumerate(cluster.servers):
            assert list(server.search.messages[-1].after_sequence) == [server.positions[shard]]
        cluster.servers[0].search.refuse = {0: PositionNotReached("behind")}
        error = await refused(cluster.search.Search(vector_request(QUERY, after=reply.position)))
        assert error.reason == "POSITION_NOT_REACHED"


async def test_a_superseded_hit_is_dropped_and_counted() -> None:
    async with Cluster() as cluster:
        filled = cluster.fill(20)
        expected = brute_force(filled, QUERY, 5)
        shard = shard_of(expected[0].encode(), 2)
        gate = cluster.servers[shard].fetch.gate
        gate.clear()
        call = cluster.search.Search(vector_request(QUERY, top_k=5, fields=[1]), timeout=10)
        task = asyncio.ensure_future(call)
        await eventually(lambda: cluster.servers[shard].fetch.active == 1)
        cluster.put(expected[0], filled[expected[0]], title="newer")
        gate.set()
        reply = await task
        assert [hit.id for hit in reply.hits] == expected[1:]
        assert reply.superseded == 1


async def test_an_owner_that_cannot_be_fetched_from_is_missing() -> None:
    async with Cluster() as cluster:
        filled = cluster.fill(40)
        cluster.servers[0].fetch.always = ShardUnavailable("broken")
        error = await refused(cluster.search.Search(vector_request(QUERY, fields=[1])))
        assert error.metadata["missing"] == "0:SHARD_UNAVAILABLE"
        reply = await cluster.search.Search(vector_request(QUERY, fields=[1], min_coverage=0.1))
        theirs = {each: filled[each] for each in filled if shard_of(each.encode(), 2) == 1}
        assert [hit.id for hit in reply.hits] == brute_force(theirs, QUERY, 10)
        assert all(hit.title for hit in reply.hits)


async def test_a_batch_answers_each_question_by_itself() -> None:
    async with Cluster() as cluster:
        filled = cluster.fill(40)
        vectors = np.random.default_rng(1).normal(size=(5, DIM)).astype(np.float32)
        vectors[3, 2] = np.nan
        request = router_pb2.SearchBatchRequest(
            collection="papers",
            vectors=matrix_to_message(vectors),
            options=router_pb2.SearchOptions(top_k=4, fields=[1]),
        )
        reply = await cluster.search.SearchBatch(request)
        for row, answer in enumerate(reply.answers):
            if row == 3:
                assert answer.status.reason == "NON_FINITE_VECTOR"
                continue
            assert not answer.status.reason
            assert [hit.id for hit in answer.hits] == brute_force(filled, vectors[row], 4)
            assert answer.hits[0].title
            assert answer.coverage.documents_covered == 40
        del request.options.fields[:]
        plain = await cluster.search.SearchBatch(request)
        assert [[hit.id for hit in answer.hits] for answer in plain.answers] == [
            [hit.id for hit in answer.hits] for answer in reply.answers
        ]


async def test_a_batch_of_texts_has_a_status_each() -> None:
    async with Cluster() as cluster:
        cluster.fill(10)
        reply = await cluster.search.SearchBatch(
            router_pb2.SearchBatchRequest(
                collection="papers", texts=["salt", " ", "word " * 30, "salt"]
            )
        )
        assert [answer.status.reason for answer in reply.answers] == [
            "",
            "EMPTY_TEXT",
            "TEXT_TOO_LONG",
            "",
        ]
        assert list(reply.answers[0].hits) == list(reply.answers[3].hits)


async def test_alone_or_coalesced_the_answer_is_the_same_bits() -> None:
    async with Cluster(shards=3) as cluster:
        cluster.fill(60)
        vectors = np.random.default_rng(2).normal(size=(20, DIM)).astype(np.float32)
        alone = [await cluster.search.Search(vector_request(each)) for each in vectors]
        together = await asyncio.gather(
            *(cluster.search.Search(vector_request(each)) for each in vectors)
        )
        for one, other in zip(alone, together, strict=True):
            assert list(one.hits) == list(other.hits)


async def test_beyond_the_bound_questions_are_refused_at_once() -> None:
    settings = RouterSettings(open_queries=3, watch_retry_ms=20)
    async with Cluster(settings=settings) as cluster:
        cluster.fill(5)
        gate = cluster.servers[0].search.gate
        gate.clear()
        calls = [
            asyncio.ensure_future(cluster.search.Search(vector_request(QUERY), timeout=10))
            for _ in range(6)
        ]
        await eventually(lambda: sum(call.done() for call in calls) == 3)
        for call in [call for call in calls if call.done()]:
            error = await refused(call)
            assert error.reason == "OVERLOADED"
            assert error.retry_after_s
        gate.set()
        outcomes = await asyncio.gather(*calls, return_exceptions=True)
        assert sum(not isinstance(each, BaseException) for each in outcomes) == 3
