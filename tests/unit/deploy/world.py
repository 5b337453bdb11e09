"""A cluster of values: every action of the planner takes effect, or fails as a test chooses."""

from dataclasses import dataclass, field, replace
from typing import Any

from deploy.core.pending import pending
from deploy.core.planner import (
    Action,
    AimShard,
    CloseShard,
    DropShard,
    FinishMove,
    ForgetDrop,
    LoadModel,
    Move,
    OpenShard,
    PrepareShard,
    StartProcess,
    StopProcess,
    TakeOver,
    plan,
)
from deploy.core.shares import retry_delay_ns
from deploy.core.state import (
    Collection,
    Desired,
    Mention,
    Observed,
    Phase,
    Placement,
    Process,
    ProcessSpec,
    Role,
    ShardPhase,
    ShardView,
)
from deploy.core.topology import Topology, mentions, next_topology, serves
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
    arrivals: dict[ShardRef, ShardView] = field(default_factory=dict)
    steps: dict[ShardRef, int] = field(default_factory=dict)
    named: dict[Mention, int] = field(default_factory=dict)
    history: dict[int, Topology] = field(default_factory=lambda: {0: Topology()})
    moved: list[ShardRef] = field(default_factory=list)
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
        return Observed(
            processes=self.seen,
            shards=self.shards,
            arrivals=self.arrivals,
            steps=self.steps,
            named=self.named,
            version=self.published.version,
            dropping=self.dropping,
            dropped=frozenset(self.dropped),
        )

    def plan(self) -> list[Action]:
        return plan(self.desired(), self.observed(), self.now_ns)

    def publish(self) -> None:
        topology = next_topology(self.desired(), self.observed(), self.published, True)
        if topology is not None:
            assert topology.version == self.published.version + 1
            self.published = topology
            self.history[topology.version] = topology
            self.named.update(dict.fromkeys(mentions(topology), topology.version))

    def follow(self) -> None:
        """Routers learn the newest topology, and tell the controller so."""
        for name, process in self.seen.items():
            if process.role is Role.ROUTER and process.phase is Phase.RUNNING:
                version = self.published.version
                self.seen[name] = replace(process, topology_version=version)

    def check_unasked(self, mention: Mention) -> None:
        """No router that runs may ask what is about to go."""
        for process in self.seen.values():
            if process.role is Role.ROUTER and process.phase is Phase.RUNNING:
                assert mention not in mentions(self.history[process.topology_version])

    def apply(self, action: Action, works: bool) -> None:
        match action:
            case StartProcess(spec, incarnation):
                self.start(spec, incarnation, works)
            case StopProcess(name):
                self.stop(name)
            case OpenShard(name, ref, server, epoch):
                self.open(name, ref, server, epoch, works)
            case AimShard() | PrepareShard() | TakeOver() | FinishMove():
                self.move(action, works)
            case CloseShard(ref, server):
                self.close(ref, server)
            case LoadModel(encoder, _, fingerprint):
                self.load(encoder, fingerprint, works)
            case DropShard(ref, _):
                self.drop(ref, works)
            case ForgetDrop(identity):
                del self.drops[identity]

    def start(self, spec: ProcessSpec, incarnation: int, works: bool) -> None:
        address, phase = f"h:{incarnation}", Phase.RUNNING
        process = Process(spec.name, spec.role, phase, incarnation, address)
        self.seen[spec.name] = (
            replace(process, serving=True, reported=True, advertised=address)
            if works
            else self.dead(spec, incarnation)
        )

    def stop(self, name: str) -> None:
        if self.seen[name].phase is Phase.RUNNING:
            self.check_unasked(name)
        del self.seen[name]

    def close(self, ref: ShardRef, server: str) -> None:
        self.check_unasked((server, ref))
        view = self.seen[server]
        self.seen[server] = replace(view, strays=view.strays - {ref})

    def load(self, encoder: str, fingerprint: str, works: bool) -> None:
        view = self.seen[encoder]
        self.seen[encoder] = (
            replace(view, fingerprints=view.fingerprints | {fingerprint})
            if works
            else replace(view, loads={fingerprint: self.retry_at()})
        )

    def drop(self, ref: ShardRef, works: bool) -> None:
        if works:
            self.dropped.add(ref)
        else:
            self.dropping[ref] = self.retry_at()

    def move(self, action: Move, works: bool) -> None:
        match action:
            case AimShard(name, ref, target):
                self.place(name, ref, target=target)
            case PrepareShard(_, ref, server):
                self.arrive(ref, server, 0, ShardPhase.PREPARED, works)
            case TakeOver(name, ref, server, epoch):
                self.epochs.setdefault(ref, []).append(epoch)
                self.place(name, ref, highest=epoch)
                self.arrivals.pop(ref, None)
                self.arrive(ref, server, epoch, ShardPhase.OPEN, works)
            case FinishMove(name, ref, server):
                self.finish(name, ref, server)

    def place(self, name: str, ref: ShardRef, **changes: Any) -> Placement:
        collection = self.collections[name]
        shards = list(collection.shards)
        before = shards[ref.shard]
        shards[ref.shard] = replace(before, **changes)
        self.collections[name] = replace(collection, shards=tuple(shards))
        return before

    def arrive(
        self, ref: ShardRef, server: str, epoch: int, phase: ShardPhase, works: bool
    ) -> None:
        if works:
            incarnation = self.seen[server].incarnation
            self.arrivals[ref] = ShardView(server, incarnation, epoch, phase)
        else:
            self.steps[ref] = self.retry_at()

    def finish(self, name: str, ref: ShardRef, server: str) -> None:
        before = self.collections[name].shards[ref.shard]
        view = self.arrivals.pop(ref)
        assert (view.server, view.epoch, view.phase) == (server, before.highest, ShardPhase.OPEN)
        target = "" if server == before.target else before.target
        self.place(name, ref, server=server, epoch=before.highest, target=target, highest=0)
        size = self.shards[ref].size if ref in self.shards else 0
        self.shards[ref] = replace(view, size=size)
        self.moved.append(ref)
        held = self.seen.get(before.server)
        if before.server != server and held is not None and held.phase is Phase.RUNNING:
            self.seen[before.server] = replace(held, strays=held.strays | {ref})

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

    def settle(self, rounds: int = 200) -> None:
        for _ in range(rounds):
            actions, version = self.plan(), self.published.version
            for action in actions:
                self.apply(action, works=True)
            self.publish()
            self.follow()
            self.now_ns += retry_delay_ns(100)
            if not actions and self.published.version == version and not self.plan():
                return


def specs(servers: int, encoders: int) -> list[ProcessSpec]:
    return [
        ProcessSpec("router-0", Role.ROUTER),
        *(ProcessSpec(f"server-{n}", Role.SERVER) for n in range(servers)),
        *(ProcessSpec(f"encoder-{n}", Role.ENCODER) for n in range(encoders)),
    ]


def check_converged(world: World) -> None:
    running = {spec.name for spec in world.processes}
    assert set(world.seen) == running
    assert pending(world.desired(), world.observed()) == []
    assert all(world.seen[name].phase is Phase.RUNNING for name in running)
    for collection in world.collections.values():
        assert serves(world.published, collection.name)
        for ref, placement in zip(collection.refs(), collection.shards, strict=True):
            assert placement.server in running
            assert not placement.target
            assert not placement.fenced
            assert world.observed().holder(ref, placement) is not None
    for process in world.seen.values():
        if process.role is Role.ENCODER:
            wanted = {c.fingerprint for c in world.collections.values() if c.fingerprint}
            assert wanted <= process.fingerprints
    assert not world.drops


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
