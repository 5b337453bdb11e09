"""The next actions that bring what is to what should be.

`plan` is level-triggered: it looks at the whole state each time and remembers
nothing, so that a controller that was killed goes on where any other would.
Actions under way are part of `Observed`, so calling it again repeats none.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from deploy.core.placement import place
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
class AimShard:
    """Record in the catalog that a shard is to move to a server; to none, that it stays."""

    collection: str
    ref: ShardRef
    target: str


@dataclass(frozen=True, slots=True)
class PrepareShard:
    """Ask a server to read a shard that another one serves."""

    collection: str
    ref: ShardRef
    server: str


@dataclass(frozen=True, slots=True)
class TakeOver:
    """Record a higher epoch in the catalog, then ask a server to open the shard under it,
    while the one that serves it goes on answering.
    """

    collection: str
    ref: ShardRef
    server: str
    epoch: int


@dataclass(frozen=True, slots=True)
class FinishMove:
    """Record in the catalog that a shard is served by who has taken it over."""

    collection: str
    ref: ShardRef
    server: str


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


Move = AimShard | PrepareShard | TakeOver | FinishMove
Action = (
    StartProcess | StopProcess | OpenShard | Move | CloseShard | LoadModel | DropShard | ForgetDrop
)


def plan(desired: Desired, observed: Observed, now_ns: int) -> list[Action]:
    """Every action that can begin now."""
    return [
        *_processes(desired, observed, now_ns),
        *_shards(desired, observed, now_ns),
        *_closings(desired, observed),
        *_models(desired, observed, now_ns),
        *_drops(desired, observed, now_ns),
    ]


def placements(desired: Desired, observed: Observed) -> dict[ShardRef, str]:
    """The server where every shard belongs, or is to move to."""
    recorded = _recorded(desired)
    servers = _servers(desired)
    pinned = frozenset(
        ref
        for ref, placement in recorded.items()
        if (view := observed.holder(ref, placement)) and view.phase is not ShardPhase.FAILED
    )
    current = {
        ref: placement.target if placement.target in servers else placement.server
        for ref, placement in recorded.items()
    }
    return place(list(recorded), servers, current, sizes(desired, observed), pinned)


def levelled(desired: Desired, observed: Observed) -> dict[ShardRef, str]:
    """The shards that have to move until the servers are level by bytes, and where to."""
    recorded = _recorded(desired)
    current = placements(desired, observed)
    level = place(list(recorded), _servers(desired), current, sizes(desired, observed))
    return {
        ref: server
        for ref, server in level.items()
        if server != (recorded[ref].target or recorded[ref].server)
    }


def sizes(desired: Desired, observed: Observed) -> dict[ShardRef, int]:
    """Bytes by shard, as far as they are known."""
    return {ref: view.size for ref in _recorded(desired) if (view := observed.shards.get(ref))}


def _recorded(desired: Desired) -> dict[ShardRef, Placement]:
    return {
        collection.ref(number): placement
        for collection in desired.collections
        for number, placement in enumerate(collection.shards)
    }


def _servers(desired: Desired) -> list[str]:
    return [spec.name for spec in desired.processes if spec.role is Role.SERVER]


def _processes(desired: Desired, observed: Observed, now_ns: int) -> list[Action]:
    actions: list[Action] = []
    for spec in desired.processes:
        process = observed.processes.get(spec.name)
        if process is None:
            actions.append(StartProcess(spec, 1))
        elif process.phase is Phase.DEAD and process.retry_at_ns <= now_ns:
            actions.append(StartProcess(spec, process.incarnation + 1))
    wanted = {spec.name for spec in desired.processes}
    needed = {name for p in _recorded(desired).values() for name in (p.server, p.target)}
    actions.extend(
        StopProcess(process.name)
        for process in observed.processes.values()
        if process.name not in wanted and _may_end(process, observed, needed)
    )
    return actions


def _may_end(process: Process, observed: Observed, needed: set[str]) -> bool:
    """Nobody needs a process that should not run: no router asks it, no shard is on it."""
    if process.phase is not Phase.RUNNING:
        return process.phase is Phase.DEAD
    if process.role is Role.SERVER and (
        process.name in needed or process.strays or not process.reported
    ):
        return False
    return observed.released(process.name)


def _shards(desired: Desired, observed: Observed, now_ns: int) -> list[Action]:
    where, servers = placements(desired, observed), _servers(desired)
    engaged = _engaged(desired, observed)
    actions: list[Action] = []
    for collection in desired.collections:
        for number, recorded in enumerate(collection.shards):
            ref = collection.ref(number)
            step_ns = observed.steps.get(ref, 0)
            if step_ns == NEVER_NS:
                continue
            shard = _Shard(collection.name, ref, recorded, where.get(ref, ""))
            view = observed.holder(ref, recorded)
            action: Action | None
            if view is None or view.phase is not ShardPhase.OPEN:
                action = _arrived(shard, observed) or _opening(shard, observed, now_ns)
            else:
                action = _arrived(shard, observed)
                if action is None and step_ns <= now_ns:
                    action = _moving(shard, observed, servers, engaged)
            if action is not None:
                actions.append(action)
    return actions


@dataclass(frozen=True, slots=True)
class _Shard:
    """A shard, and the server where it belongs or is to move to."""

    collection: str
    ref: ShardRef
    recorded: Placement
    belongs: str


def _engaged(desired: Desired, observed: Observed) -> set[str]:
    """Servers that give or take a shard now: each does so with one at a time."""
    found: set[str] = set()
    for ref, placement in _recorded(desired).items():
        if placement.target and (
            observed.steps.get(ref) == NEVER_NS or observed.arrival(ref, placement)
        ):
            found |= {placement.server, placement.target}
    return found


def _arrived(shard: _Shard, observed: Observed) -> FinishMove | None:
    """Somebody has taken the shard over."""
    view = observed.arrival(shard.ref, shard.recorded)
    if view is None or view.phase is not ShardPhase.OPEN or not shard.recorded.fenced:
        return None
    if view.epoch != shard.recorded.highest:
        return None
    return FinishMove(shard.collection, shard.ref, view.server)


def _opening(shard: _Shard, observed: Observed, now_ns: int) -> OpenShard | None:
    """Nobody serves the shard, so that there is nobody to wait for."""
    view = observed.holder(shard.ref, shard.recorded)
    if view is not None and view.phase is ShardPhase.OPENING:
        return None
    if not observed.running(shard.belongs):
        return None
    if _settled(observed, shard.ref, shard.recorded, shard.belongs, now_ns):
        return None
    return OpenShard(shard.collection, shard.ref, shard.belongs, shard.recorded.next_epoch)


def _moving(
    shard: _Shard, observed: Observed, servers: Sequence[str], engaged: set[str]
) -> Move | None:
    """The next step of a shard that is served: to where it is to be, or to be written again."""
    recorded = shard.recorded
    target = recorded.target
    if (target and target not in servers) or (not target and shard.belongs != recorded.server):
        stays = shard.belongs in {"", recorded.server}
        if target or not stays:
            return AimShard(shard.collection, shard.ref, "" if stays else shard.belongs)
    arrival = observed.arrival(shard.ref, recorded)
    if arrival is not None and arrival.phase is ShardPhase.OPENING:
        return None
    ready = arrival is not None and arrival.phase in {ShardPhase.PREPARED, ShardPhase.OPEN}
    if arrival is not None and ready and arrival.server == target:
        return TakeOver(shard.collection, shard.ref, target, recorded.next_epoch)
    if recorded.fenced:
        return TakeOver(shard.collection, shard.ref, recorded.server, recorded.next_epoch)
    if not observed.running(target) or {recorded.server, target} & engaged:
        return None
    engaged |= {recorded.server, target}
    return PrepareShard(shard.collection, shard.ref, target)


def _closings(desired: Desired, observed: Observed) -> list[Action]:
    """Shards that were taken over elsewhere, once no router asks for them here any more."""
    recorded = _recorded(desired)
    return [
        CloseShard(ref, process.name)
        for process in observed.processes.values()
        if process.phase is Phase.RUNNING
        for ref in sorted(process.strays, key=_key)
        if ref in recorded
        and process.name not in {recorded[ref].server, recorded[ref].target}
        and observed.released((process.name, ref))
    ]


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
