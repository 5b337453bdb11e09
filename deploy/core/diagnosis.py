"""What measured facts of a machine, an installation and a cluster say about them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

from shoal.client.model import ClusterStatus, CollectionInfo, ProcessInfo

GIB = 1 << 30
LEAST_PYTHON = (3, 11)
LEAST_MEMORY, GOOD_MEMORY = GIB // 2, 2 * GIB
LEAST_DISK, GOOD_DISK = GIB, 10 * GIB
LEAST_SHARED = GIB // 2
LEAST_HANDLES, GOOD_HANDLES = 1_024, 4_096
SLOW_FSYNC_S = 0.02
DRIFTED = 0.4
"""Share of new tokens far from their centroids, 0.25 where nothing changes, that is drift."""


class Verdict(StrEnum):
    """How a check ended."""

    OK = "ok"
    WARN = "warn"
    FAIL = "fail"


@dataclass(frozen=True, slots=True)
class Finding:
    """One check.

    Attributes:
        check: its name.
        verdict: how it ended.
        seen: what was found.
        fix: what to do; empty when nothing is to be done.
    """

    check: str
    verdict: Verdict
    seen: str
    fix: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """What was measured here.

    Attributes:
        python: major and minor version.
        packages: by name, (installed version or empty, supported range, whether it fits).
        kernels: the fastest kernels that this processor runs; empty without compiled ones.
        memory_bytes: available.
        shared_bytes: free in /dev/shm.
        disk_bytes: free where the data is.
        fsync_s: of a small write there, median; None where it cannot be written to.
        handles: files that a process may have open.
    """

    python: tuple[int, int]
    packages: Mapping[str, tuple[str, str, bool]]
    kernels: str
    memory_bytes: int
    shared_bytes: int
    disk_bytes: int
    fsync_s: float | None
    handles: int


def machine_findings(machine: Machine) -> list[Finding]:
    """Each check of machine and installation."""
    least = ".".join(map(str, LEAST_PYTHON))
    return [
        _at_least(
            "python",
            machine.python >= LEAST_PYTHON,
            ".".join(map(str, machine.python)),
            f"install Python {least} or newer",
        ),
        _packages(machine.packages),
        Finding("kernels", Verdict.OK, machine.kernels)
        if machine.kernels
        else Finding(
            "kernels",
            Verdict.WARN,
            "NumPy alone: about half as many answers a second",
            "install g++, then install Shoal again",
        ),
        _size(
            "memory", machine.memory_bytes, (LEAST_MEMORY, GOOD_MEMORY), "available",
            "end other processes, or give Shoal a larger machine",
        ),
        _size(
            "shared memory", machine.shared_bytes, (0, LEAST_SHARED), "free in /dev/shm",
            "give the container more (--shm-size 1g), or start with --no-ray",
        ),
        _size(
            "disk", machine.disk_bytes, (LEAST_DISK, GOOD_DISK), "free for the data",
            "free space, or choose another --data: a full disk refuses writes",
        ),
        _fsync(machine.fsync_s),
        _handles(machine.handles),
    ]  # fmt: skip


def cluster_findings(status: ClusterStatus, version: str) -> list[Finding]:
    """Each check of a cluster that answers.

    Args:
        status: as its router tells it.
        version: of the Shoal that asks.
    """
    return [
        _at_least(
            "controller",
            status.controller_reachable,
            "answers" if status.controller_reachable else "does not answer",
            "read process-logs/controller.log in the data folder; searches go on without it",
        ),
        Finding("version", Verdict.OK, version)
        if status.version == version
        else Finding(
            "version",
            Verdict.WARN,
            f"the cluster runs {status.version}, this is {version}",
            "install the same version on both sides",
        ),
        _processes(status.processes),
        *(found for each in status.collections for found in _collection(each)),
    ]


def worst(findings: Sequence[Finding]) -> Verdict:
    """The verdict of all together."""
    order = list(Verdict)
    return max((each.verdict for each in findings), key=order.index, default=Verdict.OK)


def _at_least(check: str, good: bool, seen: str, fix: str) -> Finding:
    return Finding(check, Verdict.OK, seen) if good else Finding(check, Verdict.FAIL, seen, fix)


def _size(check: str, given: int, wanted: tuple[int, int], what: str, fix: str) -> Finding:
    least, good = wanted
    seen = f"{given / GIB:.1f} GiB {what}"
    if given >= good:
        return Finding(check, Verdict.OK, seen)
    return Finding(check, Verdict.FAIL if given < least else Verdict.WARN, seen, fix)


def _packages(packages: Mapping[str, tuple[str, str, bool]]) -> Finding:
    missing = sorted(name for name, (version, _, _) in packages.items() if not version)
    wrong = sorted(
        f"{name} {version} is not {wanted}"
        for name, (version, wanted, fits) in packages.items()
        if version and not fits
    )
    if missing:
        return Finding(
            "packages",
            Verdict.FAIL,
            f"missing: {', '.join(missing)}",
            'pip install "shoal[server,eval]", after the torch that fits the machine',
        )
    if wrong:
        return Finding("packages", Verdict.WARN, "; ".join(wrong), "install what is supported")
    return Finding("packages", Verdict.OK, f"{len(packages)} of the supported versions")


def _fsync(seconds: float | None) -> Finding:
    if seconds is None:
        return Finding(
            "fsync", Verdict.FAIL, "the data folder cannot be written to", "choose another --data"
        )
    seen = f"{seconds * 1e3:.2f} ms"
    if seconds <= SLOW_FSYNC_S:
        return Finding("fsync", Verdict.OK, seen)
    return Finding("fsync", Verdict.WARN, seen, "put the data on a disk with a faster sync")


def _handles(handles: int) -> Finding:
    seen = f"{handles:,} open files"
    if handles >= GOOD_HANDLES:
        return Finding("file handles", Verdict.OK, seen)
    verdict = Verdict.FAIL if handles < LEAST_HANDLES else Verdict.WARN
    return Finding("file handles", verdict, seen, f"ulimit -n {GOOD_HANDLES}")


def _processes(processes: Sequence[ProcessInfo]) -> Finding:
    down = [f"{each.name} is {each.state}" for each in processes if each.state != "serving"]
    if down:
        return Finding(
            "processes", Verdict.FAIL, "; ".join(down),
            "wait for them; if they do not come, read their logs in the data folder",
        )  # fmt: skip
    again = [f"{each.name} {each.restarts} times" for each in processes if each.restarts]
    if again:
        return Finding(
            "processes", Verdict.WARN, f"all serve; started again: {', '.join(again)}",
            "their logs in the data folder say why",
        )  # fmt: skip
    return Finding("processes", Verdict.OK, f"{len(processes)} serve")


def _collection(collection: CollectionInfo) -> list[Finding]:
    name = f"collection {collection.name}"
    away = [
        f"shard {shard.shard} is {shard.state}"
        for shard in collection.shards
        if shard.state != "serving"
    ]
    if away:
        lost = any(shard.loss for shard in collection.shards)
        fix = "see `shoal accept-loss --help`" if lost else "see `shoal status` for the reason"
        return [Finding(name, Verdict.FAIL, "; ".join(away), fix)]
    wrong = [*_drift(name, collection), *_builds(name, collection)]
    return wrong or [Finding(name, Verdict.OK, f"{len(collection.shards)} shards serve")]


def _drift(name: str, collection: CollectionInfo) -> list[Finding]:
    new = sum(shard.new_tokens for shard in collection.shards)
    far = sum(shard.far_tokens for shard in collection.shards)
    if not collection.codec or not new or far / new <= DRIFTED:
        return []
    seen = f"{far / new:.0%} of {new:,} new tokens are far from their centroids"
    return [Finding(name, Verdict.WARN, seen, f"shoal rebuild {collection.name}")]


def _builds(name: str, collection: CollectionInfo) -> list[Finding]:
    return [
        Finding(
            name, Verdict.WARN, f"generation {each.generation} was given up: {each.detail}",
            "mend the reason, then rebuild again",
        )
        for each in collection.generations
        if each.phase == "given up"
    ]  # fmt: skip
