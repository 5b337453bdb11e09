"""A router that ends says so first, ends its streams politely, and fails no call."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc
import numpy as np
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

import shoal
from router.server import RouterServer
from router.settings import RouterSettings
from shoal.errors import ClusterUnreachable
from shoal.rpc.controller.v1 import controller_pb2
from shoal.rpc.router.v1 import router_pb2
from shoal.settings import Limits
from shoal.wire.draining import drains
from shoal.wire.errors import from_rpc_error
from shoal.wire.server import QUIET_S
from tests.wire.router_fakes import DIM, MAX_BYTES, Cluster, eventually, vector_request
from tests.wire.test_router_ingest import Stream, document, outcomes, stored

QUERY = np.ones(DIM, np.float32)
LONG = RouterSettings(watch_retry_ms=20, drain_ms=20_000)
GRACE_S = 20.0


@asynccontextmanager
async def draining(cluster: Cluster) -> AsyncIterator["asyncio.Task[None]"]:
    """The cluster's router is told to end, and calls keep it from doing so at once."""
    ending = asyncio.create_task(cluster.router.stop(GRACE_S))
    try:
        while not (await status(cluster)).draining:
            await asyncio.sleep(0)
        yield ending
    finally:
        await ending


async def status(cluster: Cluster) -> Any:
    return await cluster.admin.GetStatus(router_pb2.GetStatusRequest(router_only=True))


async def test_it_says_so_and_answers_on() -> None:
    async with Cluster(settings=LONG) as cluster:
        call = cluster.search.Search(vector_request(QUERY))
        await call
        assert not drains(await call.trailing_metadata())
        async with draining(cluster) as ending:
            health = health_pb2_grpc.HealthStub(cluster.channel)
            answer = await health.Check(health_pb2.HealthCheckRequest())
            assert answer.status == health_pb2.HealthCheckResponse.NOT_SERVING
            for _ in range(20):
                call = cluster.search.Search(vector_request(QUERY))
                assert (await call).coverage.shards_answered == 2
                assert drains(await call.trailing_metadata())
            with pytest.raises(grpc.aio.AioRpcError) as raised:
                await cluster.search.Search(vector_request(QUERY, collection="nothing"))
            assert drains(raised.value.trailing_metadata())
            assert from_rpc_error(raised.value).reason == "COLLECTION_NOT_FOUND"
            assert not ending.done()


async def test_it_ends_soon_once_nobody_calls() -> None:
    async with Cluster(settings=LONG) as cluster:
        ending = asyncio.create_task(cluster.router.stop(GRACE_S))
        done, _ = await asyncio.wait({ending}, timeout=QUIET_S + 5.0)
        assert done == {ending}
        assert ending.exception() is None


async def test_a_call_under_way_is_answered() -> None:
    async with Cluster(settings=RouterSettings(watch_retry_ms=20, drain_ms=1)) as cluster:
        for server in cluster.servers:
            server.search.gate.clear()
        call = cluster.search.Search(vector_request(QUERY))
        await eventually(lambda: all(server.search.active for server in cluster.servers))
        async with draining(cluster):
            await eventually(lambda: cluster.router._grpc._leave.begun)
            for server in cluster.servers:
                server.search.gate.set()
            assert (await call).coverage.shards_answered == 2


async def test_an_ingest_stream_is_sent_elsewhere_with_its_window_acknowledged() -> None:
    async with Cluster(settings=LONG) as cluster:
        for server in cluster.servers:
            server.write.gate.clear()
        stream = Stream(cluster)
        await stream.open()
        await stream.send(*(document(n, f"d{n}", "text") for n in range(50)))
        await eventually(lambda: all(server.write.active for server in cluster.servers))
        async with draining(cluster):
            for server in cluster.servers:
                server.write.gate.set()
            # The client has not finished: it is the router that ends the stream.
            with pytest.raises(grpc.aio.AioRpcError) as raised:
                await stream.until(51)
            assert from_rpc_error(raised.value).reason == "ROUTER_DRAINING"
            assert set(outcomes(stream.acknowledged)) == set(range(50))
            assert len(stored(cluster)) == 50
            late = Stream(cluster)
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await late.call.read()
            assert from_rpc_error(refused.value).reason == "ROUTER_DRAINING"


async def test_a_stream_that_is_finished_ends_well() -> None:
    async with Cluster(settings=LONG) as cluster:
        for server in cluster.servers:
            server.write.gate.clear()
        stream = Stream(cluster)
        await stream.open()
        await stream.send(document(1, "a", "text"))
        await stream.call.done_writing()
        await eventually(lambda: sum(server.write.active for server in cluster.servers) == 1)
        async with draining(cluster):
            for server in cluster.servers:
                server.write.gate.set()
            while await stream.read():
                pass
            assert list(stream.acknowledged) == [1]


def second_router(cluster: Cluster) -> RouterServer:
    settings = RouterSettings(watch_retry_ms=20, name="router-1")
    limits = Limits(max_message_bytes=MAX_BYTES)
    return RouterServer(settings, catalog=cluster.catalog, limits=limits)


def publish_routers(cluster: Cluster, *addresses: str) -> None:
    topology = cluster.map()
    topology.routers.extend(
        controller_pb2.Endpoint(name=f"router-{number}", address=address)
        for number, address in enumerate(addresses)
    )
    cluster.topology = topology
    cluster.catalog.set("topology", topology.SerializeToString())


async def test_routers_name_each_other_and_one_that_ends_fails_no_search() -> None:
    async with Cluster() as cluster:
        cluster.fill(20)
        other = second_router(cluster)
        address = await other.start()
        publish_routers(cluster, cluster.address, address)
        await cluster.router._follower.refresh()
        await other._follower.refresh()
        assert list((await status(cluster)).routers) == [cluster.address, address]
        async with shoal.aio.connect(cluster.address) as client:
            answered = 0
            over = False

            async def ask() -> None:
                nonlocal answered
                while not over:
                    await client.search("papers", vector=QUERY, deadline_s=10.0)
                    answered += 1

            callers = [asyncio.create_task(ask()) for _ in range(8)]
            await eventually(lambda: answered > 50)
            publish_routers(cluster, address)
            await cluster.router.stop(GRACE_S)
            after = answered + 50
            await eventually(lambda: answered > after or any(c.done() for c in callers))
            over = True
            await asyncio.gather(*callers)
        await other.stop(0)


async def test_callers_with_nowhere_to_go_learn_that_the_router_is_gone() -> None:
    """gRPC drops a call that comes just as a server stops as if its caller had cancelled it."""
    async with Cluster(settings=RouterSettings(watch_retry_ms=20, drain_ms=1)) as cluster:
        cluster.fill(5)
        async with shoal.aio.connect(cluster.address) as client:

            async def ask() -> None:
                while True:
                    await client.search("papers", vector=QUERY, deadline_s=10.0)

            callers = [asyncio.create_task(ask()) for _ in range(16)]
            await cluster.router.stop(GRACE_S)
            failures = await asyncio.gather(*callers, return_exceptions=True)
            assert {type(each) for each in failures} == {ClusterUnreachable}


@pytest.mark.parametrize(
    ("advertise", "listens", "told"),
    [
        ("", "10.0.0.7:50051", "10.0.0.7:50051"),
        ("", "0.0.0.0:50051", ""),
        ("", "[::]:50051", ""),
        ("shoal.example", "0.0.0.0:50052", "shoal.example:50052"),
        ("shoal.example:443", "0.0.0.0:50052", "shoal.example:443"),
        ("[fd00::7]", "[::]:50052", "[fd00::7]:50052"),
        ("[fd00::7]:443", "[::]:50052", "[fd00::7]:443"),
    ],
)
def test_the_address_that_clients_are_told(advertise: str, listens: str, told: str) -> None:
    assert RouterSettings(advertise=advertise).advertised(listens) == told


async def test_a_router_says_where_it_wants_to_be_called() -> None:
    settings = RouterSettings(watch_retry_ms=20, advertise="shoal.example")
    async with Cluster(settings=settings) as cluster:
        port = cluster.address.rpartition(":")[2]
        assert (await status(cluster)).address == f"shoal.example:{port}"
