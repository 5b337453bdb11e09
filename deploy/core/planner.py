"""The next actions that bring what is to what should be.

`plan` is level-triggered: it looks at the whole state each time and remembers
nothing, so that a controller that was killed goes on where any other would.
Actions under way are part of `Observed`, so calling it again repeats none.
"""

from dataclasses import dataclass

from deploy.core.placement import place
from deploy.core.state import (
    Collection,
    Desired,
    Observed,
    Phase,
    Placement,
    Process,
    ProcessSpec,
    Role,
    ShardPhase,
)
from shoal.types import ShardRef


@dataclass(frozen=True, slots=True)
class StartProcess:
    """Start a process that does not run."""

    spec: ProcessSpec
    incarnation: int


@dataclass(frozen=True, slots=True)
class StopProcess:
    """End a process that nobody wants (a larger cluster's, adopted)."""

    name: str


@dataclass(frozen=True, slots=True)
class OpenShard:
    """Record server and epoch in the catalog, then ask the server to open the shard."""

    collection: str
    ref: ShardRef
    server: str
    epoch: int


@dataclass(frozen=True, slots=True)
class CloseShard:
    """Ask a server to let go of a shard that was placed elsewhere."""

    ref: ShardRef
    server: str


@dataclass(frozen=True, slots=True)
class LoadModel:
    """Ask an encoder to load a collection's model."""

    encoder: str
    reference: str
    fingerprint: str


@dataclass(frozen=True, slots=True)
class DropShard:
    """Ask a server to delete the data of a dropped collection's shard."""

    ref: ShardRef
    server: str


@dataclass(frozen=True, slots=True)
class ForgetDrop:
    """Remove the record of a dropped generation: its data is gone."""

    identity: str


Action = StartProcess | StopProcess | OpenShard | CloseShard | LoadModel | DropShard | ForgetDrop


def plan(desired: Desired, observed: Observed, now_ns: int) -> list[Action]:
    """Every action that can begin now."""
    return [
        *_processes(desired, observed, now_ns),
        *_shards(desired, observed, now_ns),
        *_models(desired, observed, now_ns),
        *_drops(desired, observed, now_ns),
    ]


def placements(desired: Desired, observed: Observed) -> dict[ShardRef, str]:
    """The server where every shard belongs."""
    recorded = {
        collection.ref(number): placement
        for collection in desired.collections
        for number, placement in enumerate(collection.shards)
    }
    pinned = frozenset(
        ref
        for ref, placement in recorded.items()
        if (view := observed.holder(ref, placement)) and view.phase is not ShardPhase.FAILED
    )
    servers = [spec.name for spec in desired.processes if spec.role is Role.SERVER]
    current = {ref: placement.server for ref, placement in recorded.items()}
    return place(list(recorded), servers, current, pinned)


def _processes(desired: Desired, observed: Observed, now_ns: int) -> list[Action]:
    actions: list[Action] = []
    for spec in desired.processes:
        process = observed.processes.get(spec.name)
        if process is None:
            actions.append(StartProcess(spec, 1))
        elif process.phase is Phase.DEAD and process.retry_at_ns <= now_ns:
            actions.append(StartProcess(spec, process.incarnation + 1))
    wanted = {spec.name for spec in desired.processes}
    actions.extend(
        StopProcess(process.name)
        for process in observed.processes.values()
        if process.name not in wanted and process.phase is Phase.RUNNING
    )
    return actions


def _shards(desired: Desired, observed: Observed, now_ns: int) -> list[Action]:
    actions: list[Action] = []
    where = placements(desired, observed)
    for collection in desired.collections:
        for number, recorded in enumerate(collection.shards):
            ref = collection.ref(number)
            server = where.get(ref, "")
            if observed.running(server) and not _settled(observed, ref, recorded, server, now_ns):
                actions.append(OpenShard(collection.name, ref, server, recorded.epoch + 1))
    for process in observed.processes.values():
        if process.phase is Phase.RUNNING:
            actions.extend(
                CloseShard(ref, process.name)
                for ref in sorted(process.strays, key=_key)
                if ref in where and where[ref] != process.name
            )
    return actions


def _settled(
    observed: Observed, ref: ShardRef, recorded: Placement, server: str, now_ns: int
) -> bool:
    """The shard is open there, or an attempt on that very process is under way or waits."""
    view = observed.holder(ref, recorded)
    if view is None or recorded.server != server:
        return False
    return view.phase is not ShardPhase.FAILED or view.retry_at_ns > now_ns


def _models(desired: Desired, observed: Observed, now_ns: int) -> list[Action]:
    wanted = {c.fingerprint: c.encoder for c in desired.collections if c.fingerprint}
    return [
        LoadModel(process.name, reference, fingerprint)
        for process in observed.processes.values()
        if process.role is Role.ENCODER and process.phase is Phase.RUNNING and process.serving
        for fingerprint, reference in sorted(wanted.items())
        if fingerprint not in process.fingerprints and process.loads.get(fingerprint, 0) <= now_ns
    ]


def _drops(desired: Desired, observed: Observed, now_ns: int) -> list[Action]:
    actions: list[Action] = []
    for collection in desired.drops:
        left = [ref for ref in collection.refs() if ref not in observed.dropped]
        if not left:
            actions.append(ForgetDrop(collection.identity))
        for ref in left:
            server = _dropper(collection, ref, observed)
            if server is not None and observed.dropping.get(ref, 0) <= now_ns:
                actions.append(DropShard(ref, server.name))
    return actions


def _dropper(collection: Collection, ref: ShardRef, observed: Observed) -> Process | None:
    """Who held the shard, else any server: the data is in storage that all reach."""
    holder = observed.running(collection.shards[ref.shard].server)
    if holder is not None:
        return holder
    servers = (p for p in observed.processes.values() if p.role is Role.SERVER)
    return next((p for p in servers if p.phase is Phase.RUNNING), None)


def _key(ref: ShardRef) -> tuple[str, int, int]:
    return ref.collection, ref.generation, ref.shard
