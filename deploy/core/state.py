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
        server: name of the server; empty before the first placement.
        epoch: highest writer epoch ever given out for the shard; only grows.
    """

    server: str = ""
    epoch: int = 0


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


class ShardPhase(Enum):
    """Life of a shard on a server."""

    OPENING = "opening"
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
    """

    server: str
    incarnation: int
    epoch: int
    phase: ShardPhase
    documents: int = 0
    retry_at_ns: int = 0


@dataclass(frozen=True, slots=True)
class Observed:
    """What is.

    Attributes:
        processes: by name.
        shards: by identity, the newest attempt to open each.
        dropping: shards of dropped collections that were asked to go, with the
            earliest time to ask again (NEVER_NS while under way).
        dropped: shards whose data is gone.
    """

    processes: Mapping[str, Process] = field(default_factory=dict)
    shards: Mapping[ShardRef, ShardView] = field(default_factory=dict)
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
        process = self.running(view.server)
        return view if process is not None and process.incarnation == view.incarnation else None
