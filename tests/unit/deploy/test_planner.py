"""Whatever the state, the plan leads to the desired one, and never out of it."""

from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st

from deploy.core.planner import (
    CloseShard,
    DropShard,
    LoadModel,
    OpenShard,
    StartProcess,
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
    ShardPhase,
    ShardView,
)
from deploy.core.topology import next_topology, serves
from shoal.types import ShardRef
from tests.unit.deploy.world import FINGERPRINT, World, check_converged, check_honest, specs

names = st.sampled_from(["server-0", "server-1", "server-2", "server-9", ""])


def views(*phases: ShardPhase) -> st.SearchStrategy[ShardView]:
    return st.builds(
        ShardView,
        server=names,
        incarnation=st.integers(1, 3),
        epoch=st.integers(0, 7),
        phase=st.sampled_from(phases),
        documents=st.integers(0, 9),
        size=st.integers(0, 1_000),
    )


@st.composite
def worlds(draw: st.DrawFn) -> World:
    """Any world: processes in any phase, shards anywhere, adopted ones that nobody wants."""
    processes = specs(draw(st.integers(1, 3)), draw(st.integers(0, 2)))
    collections = {}
    for name in draw(st.lists(st.sampled_from("abc"), unique=True)):
        placements = draw(
            st.lists(
                st.builds(Placement, names, st.integers(0, 5), names, st.integers(0, 7)),
                min_size=1,
                max_size=5,
            )
        )
        fingerprint = draw(st.sampled_from(["", FINGERPRINT]))
        collections[name] = Collection(
            name, name * 32, 1, tuple(placements), "model" if fingerprint else "none", fingerprint
        )
    world = World(processes, collections)
    for spec in [*processes, ProcessSpec("server-9", Role.SERVER)]:
        phase = draw(st.sampled_from([None, *Phase]))
        if phase in (Phase.RUNNING, Phase.DEAD):
            world.seen[spec.name] = Process(
                spec.name,
                spec.role,
                phase,
                draw(st.integers(1, 3)),
                "h:1",
                draw(st.booleans()),
                reported=True,
            )
    for collection in collections.values():
        for ref in collection.refs():
            if draw(st.booleans()):
                world.shards[ref] = draw(views(ShardPhase.OPEN, ShardPhase.FAILED))
            if draw(st.booleans()):
                world.arrivals[ref] = draw(views(ShardPhase.OPEN, ShardPhase.PREPARED))
    dropped = draw(st.lists(st.sampled_from("xy"), unique=True))
    world.drops = {
        f"{name * 32}-1": Collection(name, name * 32, 1, (Placement("server-0", 1),) * 2)
        for name in dropped
    }
    return world


def make_serving(world: World) -> None:
    """Health says SERVING of every process that runs, as it does in time."""
    world.seen = {
        name: replace(process, serving=process.phase is Phase.RUNNING)
        for name, process in world.seen.items()
    }


@given(worlds())
@settings(max_examples=50, deadline=None)
def test_converges_from_any_state(world: World) -> None:
    make_serving(world)
    world.settle()
    check_converged(world)
    assert world.plan() == []


@given(worlds(), st.data())
@settings(max_examples=50, deadline=None)
def test_converges_after_any_failures(world: World, data: st.DataObject) -> None:
    make_serving(world)
    for _ in range(data.draw(st.integers(1, 6))):
        for action in world.plan():
            world.apply(action, works=data.draw(st.booleans()))
        if world.seen and data.draw(st.booleans()):
            victim = world.seen[data.draw(st.sampled_from(sorted(world.seen)))]
            world.seen[victim.name] = world.dead(
                ProcessSpec(victim.name, victim.role), victim.incarnation
            )
        version = world.published.version
        world.publish()
        assert world.published.version >= version
        check_honest(world)
        if data.draw(st.booleans()):
            world.follow()
        world.now_ns += data.draw(st.integers(0, retry_delay_ns(2)))
    make_serving(world)
    world.settle()
    check_converged(world)
    for epochs in world.epochs.values():
        assert epochs == sorted(set(epochs)), "an epoch was given out twice"


def settled_world() -> World:
    collection = Collection("c", "c" * 32, 1, (Placement(),) * 4)
    world = World(specs(2, 0), {"c": collection})
    world.settle()
    return world


def test_a_dead_server_is_started_at_once_and_its_shards_are_absent_until_reopened() -> None:
    world = settled_world()
    before = world.collections["c"].shards
    world.seen["server-0"] = Process("server-0", Role.SERVER, Phase.DEAD, 1)
    world.publish()
    placed = world.published.collection("c")
    assert placed is not None
    assert [shard.servers for shard in placed.shards] == [
        () if placement.server == "server-0" else ("server-1",) for placement in before
    ]
    [start] = world.plan()
    assert start == StartProcess(ProcessSpec("server-0", Role.SERVER), 2)
    world.apply(start, works=True)
    world.publish()
    placed = world.published.collection("c")
    assert placed is not None
    assert not all(shard.servers for shard in placed.shards), "nobody has opened them yet"
    opens = world.plan()
    assert {action.epoch for action in opens if isinstance(action, OpenShard)} == {2}
    assert len(opens) == 2
    world.settle(1)
    assert serves(world.published, "c")


def test_what_is_under_way_is_not_asked_again() -> None:
    world = settled_world()
    ref = world.collections["c"].ref(0)
    world.shards[ref] = replace(world.shards[ref], phase=ShardPhase.OPENING)
    world.seen["server-1"] = replace(world.seen["server-1"], phase=Phase.STARTING)
    assert world.plan() == []


def test_a_corrupt_shard_waits_for_the_operator() -> None:
    world = settled_world()
    ref = world.collections["c"].ref(0)
    world.shards[ref] = replace(world.shards[ref], phase=ShardPhase.CORRUPT)
    assert world.plan() == []
    world.publish()
    assert not serves(world.published, "c")


def test_counts_alone_make_a_topology_only_when_due() -> None:
    world = settled_world()
    ref = world.collections["c"].ref(0)
    world.shards[ref] = replace(world.shards[ref], documents=7)
    arguments = (world.desired(), world.observed(), world.published)
    assert next_topology(*arguments, counts_due=False) is None
    newer = next_topology(*arguments, counts_due=True)
    assert newer is not None
    assert newer.collections[0].shards[0].documents == 7


def test_a_missing_shard_counts_with_its_last_published_number() -> None:
    world = settled_world()
    collection = world.collections["c"]
    for ref in collection.refs():
        world.shards[ref] = replace(world.shards[ref], documents=10 + ref.shard)
    world.publish()
    world.seen["server-0"] = Process("server-0", Role.SERVER, Phase.DEAD, 1)
    world.publish()
    assert [s.documents for s in world.published.collections[0].shards] == [10, 11, 12, 13]


def test_a_model_that_loads_is_not_asked_for_again() -> None:
    collection = Collection("c", "c" * 32, 1, (Placement(),), "model", FINGERPRINT)
    world = World(specs(1, 1), {"c": collection})
    world.settle(1)
    encoder = world.seen["encoder-0"]
    world.seen["encoder-0"] = replace(encoder, loads={FINGERPRINT: NEVER_NS}, serving=True)
    assert not [action for action in world.plan() if isinstance(action, LoadModel)]


def test_data_of_a_dropped_collection_goes_though_its_server_is_dead() -> None:
    world = settled_world()
    world.drops["d" * 32 + "-1"] = Collection("d", "d" * 32, 1, (Placement("server-0", 1),))
    world.seen["server-0"] = world.dead(ProcessSpec("server-0", Role.SERVER), 1)
    assert DropShard(ShardRef("d" * 32, 1, 0), "server-1") in world.plan()


def test_a_stray_shard_is_closed_where_it_does_not_belong() -> None:
    world = settled_world()
    ref = world.collections["c"].ref(0)
    holder = world.collections["c"].shards[0].server
    other = "server-1" if holder == "server-0" else "server-0"
    world.seen[other] = replace(world.seen[other], strays=frozenset({ref}))
    assert world.plan() == [CloseShard(ref, other)]


def test_what_failed_waits_its_time() -> None:
    world = settled_world()
    world.seen["server-0"] = Process("server-0", Role.SERVER, Phase.DEAD, 1, retry_at_ns=9)
    ref = next(
        ref
        for ref, placement in zip(
            world.collections["c"].refs(), world.collections["c"].shards, strict=True
        )
        if placement.server == "server-1"
    )
    world.shards[ref] = replace(world.shards[ref], phase=ShardPhase.FAILED, retry_at_ns=9)
    for world.now_ns, kinds in ((8, set()), (9, {StartProcess, OpenShard})):
        assert {type(action) for action in world.plan()} == kinds
