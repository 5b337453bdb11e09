"""Whatever the state, the plan leads to the desired one, and never out of it."""

from dataclasses import dataclass, field, replace

from hypothesis import given, settings
from hypothesis import strategies as st

from deploy.core.planner import (
    Action,
    CloseShard,
    DropShard,
    ForgetDrop,
    LoadModel,
    OpenShard,
    StartProcess,
    StopProcess,
    plan,
)
from deploy.core.shares import retry_delay_ns
from deploy.core.state import (
    NEVER_NS,
    Collection,
    Desired,
    Observed,
    Phase,
    Placement,
    Process,
    ProcessSpec,
    Role,
    ShardPhase,
    ShardView,
)
from deploy.core.topology import Topology, next_topology, serves
from shoal.types import ShardRef

FINGERPRINT = "f" * 64


@dataclass
class World:
    """A cluster in which every action takes effect or fails as the test chooses."""

    processes: list[ProcessSpec]
    collections: dict[str, Collection]
    drops: dict[str, Collection] = field(default_factory=dict)
    seen: dict[str, Process] = field(default_factory=dict)
    shards: dict[ShardRef, ShardView] = field(default_factory=dict)
    dropping: dict[ShardRef, int] = field(default_factory=dict)
    dropped: set[ShardRef] = field(default_factory=set)
    epochs: dict[ShardRef, list[int]] = field(default_factory=dict)
    published: Topology = field(default_factory=Topology)
    now_ns: int = 0

    def desired(self) -> Desired:
        return Desired(
            tuple(self.processes),
            tuple(c for _, c in sorted(self.collections.items())),
            tuple(self.drops.values()),
        )

    def observed(self) -> Observed:
        return Observed(self.seen, self.shards, self.dropping, frozenset(self.dropped))

    def plan(self) -> list[Action]:
        return plan(self.desired(), self.observed(), self.now_ns)

    def publish(self) -> None:
        topology = next_topology(self.desired(), self.observed(), self.published, True)
        if topology is not None:
            assert topology.version == self.published.version + 1
            self.published = topology

    def apply(self, action: Action, works: bool) -> None:
        match action:
            case StartProcess(spec, incarnation):
                self.seen[spec.name] = (
                    Process(
                        spec.name,
                        spec.role,
                        Phase.RUNNING,
                        incarnation,
                        f"h:{incarnation}",
                        serving=True,
                    )
                    if works
                    else self.dead(spec, incarnation)
                )
            case StopProcess(name):
                del self.seen[name]
            case OpenShard(name, ref, server, epoch):
                self.open(name, ref, server, epoch, works)
            case CloseShard(ref, server):
                view = self.seen[server]
                self.seen[server] = replace(view, strays=view.strays - {ref})
            case LoadModel(encoder, _, fingerprint):
                view = self.seen[encoder]
                self.seen[encoder] = (
                    replace(view, fingerprints=view.fingerprints | {fingerprint})
                    if works
                    else replace(view, loads={fingerprint: self.retry_at()})
                )
            case DropShard(ref, _):
                if works:
                    self.dropped.add(ref)
                else:
                    self.dropping[ref] = self.retry_at()
            case ForgetDrop(identity):
                del self.drops[identity]

    def open(self, name: str, ref: ShardRef, server: str, epoch: int, works: bool) -> None:
        collection = self.collections[name]
        shards = list(collection.shards)
        shards[ref.shard] = Placement(server, epoch)
        self.collections[name] = replace(collection, shards=tuple(shards))
        self.epochs.setdefault(ref, []).append(epoch)
        self.shards[ref] = ShardView(
            server,
            self.seen[server].incarnation,
            epoch,
            ShardPhase.OPEN if works else ShardPhase.FAILED,
            retry_at_ns=0 if works else self.retry_at(),
        )

    def dead(self, spec: ProcessSpec, incarnation: int) -> Process:
        return Process(spec.name, spec.role, Phase.DEAD, incarnation, retry_at_ns=self.retry_at())

    def retry_at(self) -> int:
        return self.now_ns + retry_delay_ns(1)

    def settle(self, rounds: int = 20) -> None:
        for _ in range(rounds):
            for action in self.plan():
                self.apply(action, works=True)
            self.publish()
            self.now_ns += retry_delay_ns(100)


def specs(servers: int, encoders: int) -> list[ProcessSpec]:
    return [
        ProcessSpec("router-0", Role.ROUTER),
        *(ProcessSpec(f"server-{n}", Role.SERVER) for n in range(servers)),
        *(ProcessSpec(f"encoder-{n}", Role.ENCODER) for n in range(encoders)),
    ]


names = st.sampled_from(["server-0", "server-1", "server-2", "server-9", ""])


@st.composite
def worlds(draw: st.DrawFn) -> World:
    """Any world: processes in any phase, shards anywhere, adopted ones that nobody wants."""
    processes = specs(draw(st.integers(1, 3)), draw(st.integers(0, 2)))
    collections = {}
    for name in draw(st.lists(st.sampled_from("abc"), unique=True)):
        placements = draw(
            st.lists(st.builds(Placement, names, st.integers(0, 5)), min_size=1, max_size=5)
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
                spec.name, spec.role, phase, draw(st.integers(1, 3)), "h:1", draw(st.booleans())
            )
    for collection in collections.values():
        for ref in collection.refs():
            if draw(st.booleans()):
                world.shards[ref] = draw(
                    st.builds(
                        ShardView,
                        server=names,
                        incarnation=st.integers(1, 3),
                        epoch=st.integers(0, 5),
                        phase=st.sampled_from([ShardPhase.OPEN, ShardPhase.FAILED]),
                        documents=st.integers(0, 9),
                    )
                )
    dropped = draw(st.lists(st.sampled_from("xy"), unique=True))
    world.drops = {
        f"{name * 32}-1": Collection(name, name * 32, 1, (Placement("server-0", 1),) * 2)
        for name in dropped
    }
    return world


def check_converged(world: World) -> None:
    running = {spec.name for spec in world.processes}
    assert (
        set(world.seen) - running
        == {name for name, process in world.seen.items() if process.phase is Phase.DEAD} - running
    )
    assert all(world.seen[name].phase is Phase.RUNNING for name in running)
    for collection in world.collections.values():
        assert serves(world.published, collection.name)
        for ref, placement in zip(collection.refs(), collection.shards, strict=True):
            assert placement.server in running
            assert world.observed().holder(ref, placement) is not None
    for process in world.seen.values():
        if process.role is Role.ENCODER:
            wanted = {c.fingerprint for c in world.collections.values() if c.fingerprint}
            assert wanted <= process.fingerprints
    assert not world.drops


def make_serving(world: World) -> None:
    """Health says SERVING of every process that runs, as it does in time."""
    world.seen = {
        name: replace(process, serving=process.phase is Phase.RUNNING)
        for name, process in world.seen.items()
    }


@given(worlds())
@settings(max_examples=50)
def test_converges_from_any_state(world: World) -> None:
    make_serving(world)
    world.settle()
    check_converged(world)
    assert world.plan() == []


@given(worlds(), st.data())
@settings(max_examples=50)
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
        world.now_ns += data.draw(st.integers(0, retry_delay_ns(2)))
    make_serving(world)
    world.settle()
    check_converged(world)
    for epochs in world.epochs.values():
        assert epochs == sorted(set(epochs)), "an epoch was given out twice"


def check_honest(world: World) -> None:
    """The topology names only what runs, and no placement is ever lost."""
    alive = {n for n, p in world.seen.items() if p.phase is Phase.RUNNING}
    assert {endpoint.name for endpoint in world.published.servers} <= alive
    assert {c.name for c in world.published.collections} == set(world.collections)
    for placed in world.published.collections:
        collection = world.collections[placed.name]
        assert len(placed.shards) == len(collection.shards)
        for shard, placement in zip(placed.shards, collection.shards, strict=True):
            assert set(shard.servers) <= alive
            assert shard.servers in ((), (placement.server,))


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
