"""What measured facts of a machine, an installation and a cluster say about them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from shoal.client.model import ClusterStatus, CollectionInfo, ProcessInfo

GIB = 1 << 30
LEAST_PYTHON = (3, 11)
LEAST_MEMORY, GOOD_MEMORY = GIB // 2, 2 * GIB
LEAST_DISK, GOOD_DISK = GIB, 10 * GIB
LEAST_SHARED = GIB // 2
LEAST_HANDLES, GOOD_HANDLES = 1_024, 4_096
SLOW_FSYNC_S = 0.02
LARGE_SKEW_S = 2.0
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
        torch: its devices ("cpu", "cuda:0, cuda:1"); empty where it cannot be imported.
        ray: (version that is imported, version that is installed); empty where it cannot be.
        clock_synchronised: by the kernel's account; None where it tells nothing.
        clock_skew_s: from the clock that stamps files of the data folder to this machine's;
            None where it cannot be written to.
    """

    python: tuple[int, int]
    packages: Mapping[str, tuple[str, str, bool]]
    kernels: str
    memory_bytes: int
    shared_bytes: int
    disk_bytes: int
    fsync_s: float | None
    handles: int
    torch: str
    ray: tuple[str, str]
    clock_synchronised: bool | None
    clock_skew_s: float | None


@dataclass(frozen=True, slots=True)
class EncoderFacts:
    """What an encoder process answered.

    Attributes:
        process: its name.
        models: (reference, fingerprint) of each model that it serves; None where it did
            not answer.
    """

    process: str
    models: tuple[tuple[str, str], ...] | None


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
        _torch(machine.torch),
        _ray(*machine.ray),
        _ok("kernels", machine.kernels)
        if machine.kernels
        else _warn(
            "kernels",
            "NumPy alone: about half as many answers a second",
            "install g++, then install Shoal again",
        ),
        _size(
            "memory",
            machine.memory_bytes,
            (LEAST_MEMORY, GOOD_MEMORY),
            "available",
            "end other processes, or give Shoal a larger machine",
        ),
        _size(
            "shared memory",
            machine.shared_bytes,
            (0, LEAST_SHARED),
            "free in /dev/shm",
            "give the container more (--shm-size 1g), or start with --no-ray",
        ),
        _size(
            "disk",
            machine.disk_bytes,
            (LEAST_DISK, GOOD_DISK),
            "free for the data",
            "free space, or choose another --data: a full disk refuses writes",
        ),
        _fsync(machine.fsync_s),
        _handles(machine.handles),
        _clock(machine.clock_synchronised, machine.clock_skew_s),
    ]


def cluster_findings(
    status: ClusterStatus, version: str, encoders: Sequence[EncoderFacts]
) -> list[Finding]:
    """Each check of a cluster that answers.

    Args:
        status: as its router tells it.
        version: of the Shoal that asks.
        encoders: what each of its encoders answered.
    """
    return [
        _ok("router", f"answers, with topology {status.topology_version}"),
        _at_least(
            "controller",
            status.controller_reachable,
            "answers" if status.controller_reachable else "does not answer",
            "read process-logs/controller.log in the data folder; searches go on without it",
        ),
        _ok("version", version)
        if status.version == version
        else _warn(
            "version",
            f"the cluster runs {status.version}, this is {version}",
            "install the same version on both sides",
        ),
        _processes(status.processes),
        _encoders(status.collections, encoders),
        _fingerprints(status.collections, encoders),
        _coverage(status.collections),
        *(found for each in status.collections for found in _collection(each)),
    ]


def model_finding(missing: Mapping[str, str]) -> Finding:
    """Whether the files of every encoder that collections name are on this machine.

    Args:
        missing: by reference, why its files are not there.
    """
    if not missing:
        return _ok("models", "the files of every encoder are here")
    seen = "; ".join(f"{reference}: {why}" for reference, why in sorted(missing.items()))
    return _warn(
        "models",
        seen,
        "fetch them before an encoder has to start here without the hub",
    )


def worst(findings: Sequence[Finding]) -> Verdict:
    """The verdict of all together."""
    order = list(Verdict)
    return max((each.verdict for each in findings), key=order.index, default=Verdict.OK)


def _ok(check: str, seen: str) -> Finding:
    return Finding(check, Verdict.OK, seen)


def _warn(check: str, seen: str, fix: str) -> Finding:
    return Finding(check, Verdict.WARN, seen, fix)


def _fail(check: str, seen: str, fix: str) -> Finding:
    return Finding(check, Verdict.FAIL, seen, fix)


def _at_least(check: str, good: bool, seen: str, fix: str) -> Finding:
    return _ok(check, seen) if good else _fail(check, seen, fix)


def _size(check: str, given: int, wanted: tuple[int, int], what: str, fix: str) -> Finding:
    least, good = wanted
    seen = f"{given / GIB:.1f} GiB {what}"
    if given >= good:
        return _ok(check, seen)
    return Finding(check, Verdict.FAIL if given < least else Verdict.WARN, seen, fix)


def _packages(packages: Mapping[str, tuple[str, str, bool]]) -> Finding:
    missing = sorted(name for name, (version, _, _) in packages.items() if not version)
    wrong = sorted(
        f"{name} {version} is not {wanted}"
        for name, (version, wanted, fits) in packages.items()
        if version and not fits
    )
    if missing:
        return _fail(
            "packages",
            f"missing: {', '.join(missing)}",
            'pip install "shoal[server,eval]", after the torch that fits the machine',
        )
    if wrong:
        return _warn("packages", "; ".join(wrong), "install what is supported")
    return _ok("packages", f"{len(packages)} of the supported versions")


def _fsync(seconds: float | None) -> Finding:
    if seconds is None:
        return _fail("fsync", "the data folder cannot be written to", "choose another --data")
    seen = f"{seconds * 1e3:.2f} ms"
    if seconds <= SLOW_FSYNC_S:
        return _ok("fsync", seen)
    return _warn("fsync", seen, "put the data on a disk with a faster sync")


def _handles(handles: int) -> Finding:
    seen = f"{handles:,} open files"
    if handles >= GOOD_HANDLES:
        return _ok("file handles", seen)
    verdict = Verdict.FAIL if handles < LEAST_HANDLES else Verdict.WARN
    return Finding("file handles", verdict, seen, f"ulimit -n {GOOD_HANDLES}")


def _torch(devices: str) -> Finding:
    return _at_least(
        "torch", bool(devices), devices or "cannot be imported", "install torch>=2.6,<3"
    )


def _ray(imported: str, installed: str) -> Finding:
    if not imported:
        return _warn(
            "ray",
            "cannot be imported",
            'pip install "shoal[server]", or start with --no-ray',
        )
    if imported != installed:
        return _fail(
            "ray",
            f"{imported} is imported, {installed} is installed",
            "remove the other copy from PYTHONPATH: every process must have the same Ray",
        )
    return _ok("ray", imported)


def _clock(synchronised: bool | None, skew_s: float | None) -> Finding:
    if skew_s is not None and abs(skew_s) > LARGE_SKEW_S:
        return _warn(
            "clock",
            f"{skew_s:+.1f} s from the clock of the data folder",
            "run NTP on both machines: logs and metrics cannot be compared otherwise",
        )
    if synchronised is False:
        return _warn(
            "clock",
            "nothing synchronises it",
            "run chronyd or systemd-timesyncd: logs of several machines are read side by side",
        )
    return _ok("clock", "synchronised" if synchronised else "as the data folder's")


def _processes(processes: Sequence[ProcessInfo]) -> Finding:
    down = [f"{each.name} is {each.state}" for each in processes if each.state != "serving"]
    if down:
        return _fail(
            "processes",
            "; ".join(down),
            "wait for them; if they do not come, read their logs in the data folder",
        )
    again = [f"{each.name} {each.restarts} times" for each in processes if each.restarts]
    if again:
        return _warn(
            "processes",
            f"all serve; started again: {', '.join(again)}",
            "their logs in the data folder say why",
        )
    return _ok("processes", f"{len(processes)} serve")


def _encoders(collections: Sequence[CollectionInfo], encoders: Sequence[EncoderFacts]) -> Finding:
    silent = [each.process for each in encoders if each.models is None]
    if silent:
        return _fail(
            "encoders",
            f"no answer from {', '.join(silent)}",
            "read their logs in the data folder; run the doctor where their addresses are reached",
        )
    needed = sorted(each.name for each in collections if each.encoder != "none")
    if needed and not encoders:
        return _warn(
            "encoders",
            f"none runs; {', '.join(needed)} can be asked by vector only",
            "start the cluster with --encoders 1",
        )
    return _ok("encoders", f"{len(encoders)} answer")


def _fingerprints(
    collections: Sequence[CollectionInfo], encoders: Sequence[EncoderFacts]
) -> Finding:
    """A collection is bound to one fingerprint: an encoder that has another one for the same
    reference has other weights, and can neither answer nor fill it.
    """
    wrong = [
        f"{each.name} wants {each.fingerprint[:12]}, {encoder.process} has {fingerprint[:12]}"
        for each in collections
        for encoder in encoders
        for reference, fingerprint in encoder.models or ()
        if each.fingerprint and reference == each.encoder and fingerprint != each.fingerprint
    ]
    if wrong:
        return _fail(
            "fingerprints",
            "; ".join(wrong),
            "give that encoder the model's first files again, or rebuild with the new ones: "
            "shoal rebuild NAME --encoder REFERENCE",
        )
    return _ok("fingerprints", "encoders and collections agree")


def _coverage(collections: Sequence[CollectionInfo]) -> Finding:
    parts = [
        (
            each.name,
            sum(shard.documents for shard in each.shards if shard.state == "serving"),
            sum(shard.documents for shard in each.shards),
        )
        for each in collections
    ]
    short = [f"{name} {covered / total:.1%}" for name, covered, total in parts if covered < total]
    if short:
        return _fail(
            "coverage",
            ", ".join(short),
            "mend the shards below; until then ask with --min-coverage",
        )
    return _ok("coverage", f"every document of {len(parts)} collections")


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
        return [_fail(name, "; ".join(away), fix)]
    wrong = [*_drift(name, collection), *_builds(name, collection)]
    return wrong or [_ok(name, f"{len(collection.shards)} shards serve")]


def _drift(name: str, collection: CollectionInfo) -> list[Finding]:
    new = sum(shard.new_tokens for shard in collection.shards)
    far = sum(shard.far_tokens for shard in collection.shards)
    if not collection.codec or not new or far / new <= DRIFTED:
        return []
    seen = f"{far / new:.0%} of {new:,} new tokens are far from their centroids"
    return [_warn(name, seen, f"shoal rebuild {collection.name}")]


def _builds(name: str, collection: CollectionInfo) -> list[Finding]:
    return [
        _warn(
            name,
            f"generation {each.generation} was given up: {each.detail}",
            "mend the reason, then rebuild again",
        )
        if each.phase == "given up"
        else _warn(
            name,
            f"generation {each.generation} is overdue ({each.phase}): {each.detail}",
            "mend the reason; it goes on by itself",
        )
        for each in collection.generations
        if each.phase == "given up" or (each.phase != "previous" and each.detail)
    ]
