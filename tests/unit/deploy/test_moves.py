"""Shards that move: nothing is interrupted, little is moved, and it ends whoever dies."""

from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st

from deploy.core.pending import pending
from deploy.core.planner import (
    CloseShard,
    FinishMove,
    OpenShard,
    PrepareShard,
    StopProcess,
    TakeOver,
    levelled,
)
from deploy.core.shares import retry_delay_ns
from deploy.core.state import (
    NEVER_NS,
    Collection,
    Phase,
    Placement,
    Process,
    ProcessSpec,
    Role,
)
from deploy.core.topology import serves
from shoal.types import ShardRef
from tests.unit.deploy.world import World, check_converged, check_honest, specs


@st.composite
def changes(draw: st.DrawFn) -> tuple[World, list[str]]:
    """A cluster that serves, with shards of any size, and the servers that it is to have."""
    counts = draw(st.lists(st.integers(1, 6), min_size=1, max_size=2))
    collections = {
        name: Collection(name, name * 32, 1, (Placement(),) * count)
        for name, count in zip("ab", counts, strict=False)
    }
    world = World(specs(draw(st.integers(1, 4)), 0), collections)
    world.settle()
    for ref, view in world.shards.items():
        world.shards[ref] = replace(view, size=draw(st.integers(0, 1_000)))
    wanted = draw(st.lists(st.sampled_from(range(6)), min_size=1, max_size=4, unique=True))
    return world, [f"server-{number}" for number in sorted(wanted)]


def scale(world: World, servers: list[str]) -> dict[ShardRef, str]:
    """What `shoal scale` does; gives the moves."""
    routers = [spec for spec in world.processes if spec.role is Role.ROUTER]
    world.processes = routers + [ProcessSpec(name, Role.SERVER) for name in servers]
    moves = levelled(world.desired(), world.observed())
    for name, collection in list(world.collections.items()):
        for ref in collection.refs():
            if ref in moves:
                world.place(name, ref, target=moves[ref])
    return moves


def loads(world: World) -> dict[str, int]:
    found = {spec.name: 0 for spec in world.processes if spec.role is Role.SERVER}
    for collection in world.collections.values():
        for ref, placement in zip(collection.refs(), collection.shards, strict=True):
            found[placement.server] += max(1, world.shards[ref].size)
    return found


@given(changes(), st.data())
@settings(max_examples=60, deadline=None)
def test_a_change_of_servers_interrupts_nothing(
    change: tuple[World, list[str]], data: st.DataObject
) -> None:
    world, servers = change
    before, moves = world.published.version, scale(world, servers)
    for _ in range(data.draw(st.integers(0, 12))):
        for action in world.plan():
            world.apply(action, works=data.draw(st.booleans()))
        world.publish()
        if data.draw(st.booleans()):
            world.follow()
        world.now_ns += data.draw(st.integers(0, retry_delay_ns(2)))
    world.settle()
    check_converged(world)
    after = [topology for version, topology in world.history.items() if version >= before]
    assert all(serves(topology, name) for topology in after for name in world.collections)
    assert set(world.moved) >= set(moves)
    assert levelled(world.desired(), world.observed()) == {}, "it is level"
    found = loads(world)
    largest = max(view.size for view in world.shards.values())
    assert max(found.values()) - min(found.values()) <= max(
        1.1 * largest, 0.1 * max(found.values()), 1.1
    )


@given(changes(), st.integers(0, 8), st.data())
@settings(max_examples=60, deadline=None)
def test_a_change_of_servers_ends_though_servers_die_half_way(
    change: tuple[World, list[str]], rounds: int, data: st.DataObject
) -> None:
    world, servers = change
    scale(world, servers)
    for _ in range(rounds):
        for action in world.plan():
            world.apply(action, works=data.draw(st.booleans()))
        victim = world.seen[data.draw(st.sampled_from(sorted(world.seen)))]
        if data.draw(st.booleans()):
            world.seen[victim.name] = world.dead(
                ProcessSpec(victim.name, victim.role), victim.incarnation
            )
        world.publish()
        check_honest(world)
    world.settle()
    check_converged(world)
    for epochs in world.epochs.values():
        assert epochs == sorted(set(epochs)), "an epoch was given out twice"


def moving_world() -> tuple[World, ShardRef]:
    """A shard on server-0 that is to move to server-1."""
    collection = Collection("c", "c" * 32, 1, (Placement("server-0"),))
    world = World(specs(2, 0), {"c": collection})
    world.settle()
    world.place("c", collection.ref(0), target="server-1")
    return world, collection.ref(0)


def test_a_move_prepares_takes_over_and_flips_before_the_old_place_closes() -> None:
    world, ref = moving_world()
    for expected in (
        PrepareShard("c", ref, "server-1"),
        TakeOver("c", ref, "server-1", 2),
        FinishMove("c", ref, "server-1"),
    ):
        [action] = world.plan()
        assert action == expected
        assert pending(world.desired(), world.observed()) == ["c/0 moves from server-0 to server-1"]
        world.apply(action, works=True)
    world.publish()
    assert world.plan() == [], "the router does not know it yet"
    world.follow()
    assert world.plan() == [CloseShard(ref, "server-0")]


def test_a_take_over_that_fails_gives_writing_back_first() -> None:
    world, ref = moving_world()
    world.apply(world.plan()[0], works=True)
    world.apply(TakeOver("c", ref, "server-1", 2), works=False)
    world.now_ns = world.steps[ref]
    assert world.plan() == [TakeOver("c", ref, "server-0", 3)]
    world.settle()
    assert world.collections["c"].shards == (Placement("server-1", 4),)


def test_a_server_that_dies_while_it_is_moved_to_gives_writing_back() -> None:
    world, ref = moving_world()
    world.apply(world.plan()[0], works=True)
    world.apply(TakeOver("c", ref, "server-1", 2), works=True)
    world.seen["server-1"] = Process("server-1", Role.SERVER, Phase.DEAD, 1, retry_at_ns=NEVER_NS)
    assert world.plan() == [TakeOver("c", ref, "server-0", 3)]


def test_a_shard_whose_server_died_opens_where_it_was_to_move() -> None:
    world, ref = moving_world()
    world.seen["server-0"] = Process("server-0", Role.SERVER, Phase.DEAD, 1, retry_at_ns=NEVER_NS)
    assert world.plan() == [OpenShard("c", ref, "server-1", 2)]


def test_an_encoder_that_is_to_go_ends_when_no_router_asks_it() -> None:
    world = World(specs(1, 2), {})
    world.settle()
    world.processes.pop()
    assert world.plan() == [], "the topology names it"
    world.publish()
    assert world.plan() == [], "a router may follow the older topology"
    world.follow()
    assert world.plan() == [StopProcess("encoder-1")]
