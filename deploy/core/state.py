"""What the cluster should be and what is seen of it, as plain values.

`Desired` comes from the catalog and the command line, `Observed` from processes
that were started, probed and asked. Times are monotonic nanoseconds, passed in.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum

from deploy.core.build import GenerationPhase
from shoal.types import ShardRef

NEVER_NS = 2**63 - 1
"""A time that does not come: whatever waits for it is under way already."""


class Role(Enum):
    """What a process of the cluster does."""

    CONTROLLER = "controller"
    ENCODER = "encoder"
    ROUTER = "router"
    SERVER = "server"


@dataclass(frozen=True, slots=True)
class ProcessSpec:
    """A process that should run.

    Attributes:
        name: "server-0"; unique in the cluster.
        role: what it does.
    """

    name: str
    role: Role


@dataclass(frozen=True, slots=True)
class Placement:
    """Where a shard belongs, as recorded in the catalog.

    Attributes:
        server: name of the server that serves it; empty before the first placement.
        epoch: the writer epoch under which that one serves it.
        target: name of the server that is to take it over; empty while it stays.
        highest: the highest epoch ever given out, if higher than `epoch`: then somebody
            may have taken over writing, and `server` answers from what it holds until it
            is known who has.
    """

    server: str = ""
    epoch: int = 0
    target: str = ""
    highest: int = 0

    @property
    def next_epoch(self) -> int:
        """An epoch that was never given out."""
        return max(self.epoch, self.highest) + 1

    @property
    def fenced(self) -> bool:
        """`server` may not be able to write any more."""
        return self.highest > self.epoch


@dataclass(frozen=True, slots=True)
class Collection:
    """A generation of a collection, as recorded in the catalog.

    Attributes:
        name: the user's name where it serves; see `deploy.core.build.record_name`.
        uuid: 32 hex digits.
        generation: from 1.
        shards: placements by shard number.
        encoder: reference of its model; "none" without one.
        fingerprint: of the model's card; empty without one.
        phase: what it is there for.
        highest: the highest number that a generation of the collection ever had.
        previous: the generation that served before this one; 0 where there is none.
        handed_over: per generation whose documents came to be in this one, the positions of
            its shards when they did.
    """

    name: str
    uuid: str
    generation: int
    shards: tuple[Placement, ...]
    encoder: str = "none"
    fingerprint: str = ""
    phase: GenerationPhase = GenerationPhase.SERVING
    highest: int = 1
    previous: int = 0
    handed_over: tuple[tuple[int, tuple[int, ...]], ...] = ()

    @property
    def identity(self) -> str:
        """Names this generation among all collections'."""
        return f"{self.uuid}-{self.generation}"

    def ref(self, shard: int) -> ShardRef:
        """Identity of one of its shards."""
        return ShardRef(self.uuid, self.generation, shard)

    def refs(self) -> tuple[ShardRef, ...]:
        """Identities of its shards, ascending."""
        return tuple(self.ref(shard) for shard in range(len(self.shards)))


@dataclass(frozen=True, slots=True)
class Desired:
    """What should be.

    Attributes:
        processes: those that should run, in the order in which to start them.
        collections: those that should serve, ascending by name.
        drops: those whose data is to be deleted.
    """

    processes: tuple[ProcessSpec, ...]
    collections: tuple[Collection, ...] = ()
    drops: tuple[Collection, ...] = ()


class Phase(Enum):
    """Life of a process."""

    STARTING = "starting"
    RUNNING = "running"
    STOPPING = "stopping"
    DEAD = "dead"


@dataclass(frozen=True, slots=True)
class Process:
    """A process as seen.

    Attributes:
        name: as in its spec.
        role: what it does.
        phase: where in its life it is.
        incarnation: 1 for its first start, then 2, ...
        address: host:port; empty unless running.
        serving: its health service says so.
        advertised: a router's host:port for clients; empty where it has none.
        draining: a router that is about to end.
        retry_at_ns: when dead, earliest time to start it again.
        fingerprints: models that an encoder serves.
        loads: models that an encoder lacks, with the earliest time to ask it
            to load them (NEVER_NS while it loads).
        strays: shards that a server holds and should not.
        reported: a server has said which shards it holds.
        topology_version: of the map that a router follows.
    """

    name: str
    role: Role
    phase: Phase
    incarnation: int
    address: str = ""
    serving: bool = False
    advertised: str = ""
    draining: bool = False
    retry_at_ns: int = 0
    fingerprints: frozenset[str] = frozenset()
    loads: Mapping[str, int] = field(default_factory=dict)
    strays: frozenset[ShardRef] = frozenset()
    reported: bool = False
    topology_version: int = 0


class ShardPhase(Enum):
    """Life of a shard on a server."""

    OPENING = "opening"
    PREPARED = "prepared"
    OPEN = "open"
    CORRUPT = "corrupt"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class ShardView:
    """A shard as last seen on a server. It holds for one incarnation only.

    Attributes:
        server: name of the server.
        incarnation: of the server.
        epoch: writer epoch it was opened with.
        phase: where in its life it is.
        documents: live documents, when open.
        retry_at_ns: when failed, earliest time to open it again.
        size: bytes of its segments, and about those of its tail.
    """

    server: str
    incarnation: int
    epoch: int
    phase: ShardPhase
    documents: int = 0
    retry_at_ns: int = 0
    size: int = 0


Mention = str | tuple[str, ShardRef]
"""What a topology names: a process, or a server as the holder of a shard."""


@dataclass(frozen=True, slots=True)
class Observed:
    """What is.

    Attributes:
        processes: by name.
        shards: by identity, the newest attempt to open each where it belongs.
        arrivals: what the server that is to take a shard over holds of it.
        steps: shards whose move is a step on, with the earliest time for the next one
            (NEVER_NS while it is under way).
        named: the version of the topology that named something last; what is not in it
            was last named before `named_from`.
        named_from: see `named`.
        version: of the newest topology.
        dropping: shards of dropped collections that were asked to go, with the
            earliest time to ask again (NEVER_NS while under way).
        dropped: shards whose data is gone.
    """

    processes: Mapping[str, Process] = field(default_factory=dict)
    shards: Mapping[ShardRef, ShardView] = field(default_factory=dict)
    arrivals: Mapping[ShardRef, ShardView] = field(default_factory=dict)
    steps: Mapping[ShardRef, int] = field(default_factory=dict)
    named: Mapping[Mention, int] = field(default_factory=dict)
    named_from: int = 0
    version: int = 0
    dropping: Mapping[ShardRef, int] = field(default_factory=dict)
    dropped: frozenset[ShardRef] = frozenset()

    def running(self, name: str) -> Process | None:
        """The process of that name if it runs."""
        process = self.processes.get(name)
        return process if process is not None and process.phase is Phase.RUNNING else None

    def holder(self, ref: ShardRef, placement: Placement) -> ShardView | None:
        """The shard's view if it is of its placement's server as that runs now,
        under its placement's epoch; None if the shard has to be opened.
        """
        view = self.shards.get(ref)
        if view is None or view.server != placement.server or view.epoch != placement.epoch:
            return None
        return view if self._alive(view) else None

    def arrival(self, ref: ShardRef, placement: Placement) -> ShardView | None:
        """What the server that takes the shard over holds of it, as that runs now. While
        nobody does, the one that serves it may take it over itself, to write again.
        """
        view = self.arrivals.get(ref)
        if view is None or view.server not in {placement.server, placement.target}:
            return None
        return view if self._alive(view) else None

    def _alive(self, view: ShardView) -> bool:
        process = self.running(view.server)
        return process is not None and process.incarnation == view.incarnation

    def released(self, mention: Mention) -> bool:
        """Every router that runs follows a topology that does not name it any more."""
        last = self.named.get(mention, self.named_from - 1)
        return last < self.version and all(
            process.topology_version > last
            for process in self.processes.values()
            if process.role is Role.ROUTER and process.phase is Phase.RUNNING
        )
