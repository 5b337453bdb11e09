"""What is left to do until a cluster is what it should be, in words."""

from collections.abc import Iterator

from deploy.core.state import Desired, Observed, Phase, Placement, Process, Role, ShardPhase
from shoal.types import ShardRef


def pending(desired: Desired, observed: Observed) -> list[str]:
    """One line for each thing; none when the cluster is as desired.

    A shard that refuses to serve because it is corrupt waits for a person, and is
    not among them.
    """
    lines = list(_processes(desired, observed))
    for collection in desired.collections:
        for number, placement in enumerate(collection.shards):
            line = _shard(collection.ref(number), placement, observed)
            if line:
                lines.append(f"{collection.name}/{number} {line}")
    return lines


def _processes(desired: Desired, observed: Observed) -> Iterator[str]:
    models = {c.fingerprint: c.encoder for c in desired.collections if c.fingerprint}
    for spec in desired.processes:
        process = observed.running(spec.name)
        if process is None or not process.serving:
            yield f"{spec.name} starts"
        elif process.role is Role.ENCODER:
            yield from (
                f"{spec.name} loads {encoder}"
                for fingerprint, encoder in sorted(models.items())
                if fingerprint not in process.fingerprints
            )
    wanted = {spec.name for spec in desired.processes}
    for process in sorted(observed.processes.values(), key=lambda process: process.name):
        if process.name not in wanted:
            yield f"{process.name} {_ending(process)}"


def _ending(process: Process) -> str:
    if process.phase is Phase.RUNNING and process.role is Role.SERVER:
        return "ends when it holds no shards and no router asks it"
    return "ends when no router asks it"


def _shard(ref: ShardRef, placement: Placement, observed: Observed) -> str:
    view = observed.holder(ref, placement)
    if view is None or view.phase in {ShardPhase.OPENING, ShardPhase.FAILED}:
        return f"opens on {placement.server or 'a server'}"
    if view.phase is ShardPhase.CORRUPT:
        return ""
    if placement.target:
        return f"moves from {placement.server} to {placement.target}"
    return f"is to be written again on {placement.server}" if placement.fenced else ""
