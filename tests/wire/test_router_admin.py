"""The AdminService, the topology that a router follows, and its metrics."""

import asyncio
import json
from typing import Any

import grpc
import numpy as np
import pytest
from prometheus_client import REGISTRY

from router.settings import RouterSettings
from shoal.errors import CollectionExists, LossMismatch
from shoal.rpc.controller.v1 import controller_pb2
from shoal.rpc.router.v1 import router_pb2
from shoal.wire.errors import from_rpc_error
from shoal.wire.server import QUIET_S
from tests.wire.router_fakes import DIM, Cluster, FakeController, eventually, vector_request

QUERY = np.ones(DIM, np.float32)


class Controlled:
    """A cluster with a controller, whose address is in the catalog."""

    def __init__(self) -> None:
        self.cluster = Cluster(settings=RouterSettings(watch_retry_ms=20, drain_ms=60_000))
        self.controller = FakeController()

    async def __aenter__(self) -> "Controlled":
        await self.controller.start()
        self.announce()
        await self.cluster.__aenter__()
        await eventually(lambda: self.controller.watchers == 1)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.cluster.__aexit__()
        await self.controller.stop()

    def announce(self) -> None:
        address = json.dumps({"address": self.controller.address})
        self.cluster.catalog.set("controller", address.encode())

    def topology(self, *names: str, version: int = 10) -> controller_pb2.Topology:
        topology = self.cluster.map()
        topology.version = version
        del topology.collections[:]
        for name in names:
            topology.collections.append(self.cluster.placement(name))
        return topology


async def refused(call: Any) -> Any:
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await call
    return from_rpc_error(raised.value)


async def test_a_collection_can_be_searched_as_soon_as_it_is_created() -> None:
    async with Controlled() as world:

        async def created(request: Any) -> Any:
            topology = world.topology("papers", request.request.name)
            # The answer comes before the news: the router must wait for them.
            asyncio.get_running_loop().call_later(
                0.1, lambda: asyncio.ensure_future(world.controller.publish(topology))
            )
            return controller_pb2.CreateCollectionResponse(
                collection=topology.collections[1], topology_version=topology.version
            )

        world.controller.created = created
        reply = await world.cluster.admin.CreateCollection(
            router_pb2.CreateCollectionRequest(name="fresh", shards=2)
        )
        assert reply.collection.settings.name == "fresh"
        assert len(reply.collection.shards) == 2
        assert world.controller.asked[0].request.shards == 2
        found = await world.cluster.search.Search(vector_request(QUERY, collection="fresh"))
        assert found.coverage.shards_answered == 2
        listed = await world.cluster.admin.ListCollections(router_pb2.ListCollectionsRequest())
        assert [each.settings.name for each in listed.collections] == ["papers", "fresh"]


async def test_a_dropped_collection_is_not_found() -> None:
    async with Controlled() as world:
        await world.controller.publish(world.topology("papers"))
        await world.cluster.admin.DropCollection(router_pb2.DropCollectionRequest(name="papers"))
        error = await refused(world.cluster.search.Search(vector_request(QUERY)))
        assert error.reason == "COLLECTION_NOT_FOUND"


async def test_the_controllers_errors_are_passed_on() -> None:
    async with Controlled() as world:
        world.controller.error = CollectionExists("there")
        request = router_pb2.CreateCollectionRequest(name="papers")
        error = await refused(world.cluster.admin.CreateCollection(request))
        assert error.reason == "COLLECTION_EXISTS"
        request.name = "No Name"
        error = await refused(world.cluster.admin.CreateCollection(request))
        assert error.reason == "INVALID_NAME"
        world.controller.error = LossMismatch("other")
        loss = router_pb2.AcceptLossRequest(collection="papers", shard=1, loss="l")
        assert (await refused(world.cluster.admin.AcceptLoss(loss))).reason == "LOSS_MISMATCH"
        assert world.controller.asked[-1].shard == 1


async def draining(world: Controlled) -> "asyncio.Task[None]":
    """The router of a map that names it, on its way out."""
    topology = world.topology("papers")
    topology.routers.add(name="router-0", address=world.cluster.address)
    await world.controller.publish(topology)
    router = world.cluster.router
    await eventually(lambda: bool(router._follower.message.routers))
    return asyncio.create_task(router._drain())


async def test_a_draining_router_waits_until_no_map_names_it() -> None:
    async with Controlled() as world:
        ending = await draining(world)
        done, _ = await asyncio.wait({ending}, timeout=2 * QUIET_S)
        assert not done, "clients are still sent to it"
        await world.controller.publish(world.topology("papers", version=11))
        done, _ = await asyncio.wait({ending}, timeout=10.0)
        assert done == {ending}
        assert ending.exception() is None


async def test_a_draining_router_does_not_wait_for_a_controller_that_is_gone() -> None:
    async with Controlled() as world:
        ending = await draining(world)
        await world.controller.stop()
        done, _ = await asyncio.wait({ending}, timeout=10.0)
        assert done == {ending}
        assert ending.exception() is None


async def test_changes_of_size_go_to_the_controller() -> None:
    async with Controlled() as world:
        scaling = router_pb2.ScaleRequest(servers=3)
        scaled = await world.cluster.admin.Scale(scaling)
        assert list(scaled.taken_over) == ["3 servers"]
        moving = router_pb2.MoveShardRequest(collection="papers", shard=1, to_server="server-2")
        assert (await world.cluster.admin.MoveShard(moving)).move.to_server == "server-2"
        balancing = router_pb2.RebalanceRequest(dry_run=True)
        assert not (await world.cluster.admin.Rebalance(balancing)).moves
        assert [each.request for each in world.controller.asked] == [scaling, moving, balancing]
        status = await world.cluster.admin.GetStatus(router_pb2.GetStatusRequest())
        assert (dict(status.desired), list(status.pending)) == ({"server": 3}, ["server-2 starts"])


async def test_without_a_controller_searches_go_on() -> None:
    async with Controlled() as world:
        await world.controller.stop()
        assert (await world.cluster.search.Search(vector_request(QUERY))).coverage.shards_total
        drop = world.cluster.admin.DropCollection(router_pb2.DropCollectionRequest(name="papers"))
        assert (await refused(drop)).reason == "CONTROLLER_UNAVAILABLE"
        status = await world.cluster.admin.GetStatus(router_pb2.GetStatusRequest())
        assert not status.controller_reachable
        assert {each.role for each in status.processes} == {"server", "encoder"}
        assert [each.settings.name for each in status.collections] == ["papers"]


async def test_status_comes_from_the_controller_with_the_routers_limits() -> None:
    async with Controlled() as world:
        status = await world.cluster.admin.GetStatus(router_pb2.GetStatusRequest())
        assert status.controller_reachable
        assert status.processes[0].name == "controller"
        assert status.limits["max_top_k"] == 10_000
        assert status.topology_version == world.cluster.topology.version
        assert status.version


async def test_a_controller_that_moved_is_found_again() -> None:
    async with Controlled() as world:
        await world.controller.stop()
        world.controller = FakeController()
        await world.controller.start()
        world.announce()
        await world.controller.publish(world.topology("papers", "other", version=20))
        await eventually(lambda: world.cluster.router._follower.current.version == 20)
        status = await world.cluster.admin.GetStatus(router_pb2.GetStatusRequest())
        assert status.controller_reachable


async def test_an_older_topology_changes_nothing() -> None:
    async with Controlled() as world:
        await world.controller.publish(world.topology("papers", "new", version=20))
        follower = world.cluster.router._follower
        await eventually(lambda: follower.current.version == 20)
        await follower._offer(world.topology(version=19))
        assert set(follower.current.collections) == {"papers", "new"}


async def test_a_pushed_address_is_used_by_the_next_question() -> None:
    """A shard server restarts elsewhere; clients notice nothing."""
    async with Controlled() as world:
        cluster = world.cluster
        cluster.fill(20)
        await cluster.search.Search(vector_request(QUERY))
        await cluster.servers[0].stop()
        await cluster.servers[0].start()
        await world.controller.publish(world.topology("papers", version=30))
        await eventually(lambda: cluster.router._follower.current.version == 30)
        assert (await cluster.search.Search(vector_request(QUERY))).coverage.shards_answered == 2


async def test_every_shard_is_optimised() -> None:
    async with Cluster() as cluster:
        request = router_pb2.OptimizeCollectionRequest(name="papers")
        await cluster.admin.OptimizeCollection(request)
        request.name = "nothing"
        error = await refused(cluster.admin.OptimizeCollection(request))
        assert error.reason == "COLLECTION_NOT_FOUND"


async def test_questions_refusals_and_missing_shards_are_counted() -> None:
    def value(name: str, **labels: str) -> float:
        return REGISTRY.get_sample_value(f"shoal_router_{name}", labels) or 0.0

    async with Cluster() as cluster:
        cluster.fill(5)
        before = value("queries_total", outcome="ok")
        refusals = value("refusals_total", call="search", reason="COLLECTION_NOT_FOUND")
        missing = value("missing_shards_total", reason="SHARD_UNAVAILABLE")
        await cluster.search.Search(vector_request(QUERY))
        await refused(cluster.search.Search(vector_request(QUERY, collection="nothing")))
        await cluster.servers[0].stop()
        await cluster.search.Search(vector_request(QUERY, min_coverage=0.0))
        assert value("queries_total", outcome="ok") == before + 1
        assert value("refusals_total", call="search", reason="COLLECTION_NOT_FOUND") == refusals + 1
        assert value("missing_shards_total", reason="SHARD_UNAVAILABLE") == missing + 1
        assert value("stage_seconds_count", stage="total") > 0
        assert value("round_queries_count", lane="search") > 0
