"""`shoal doctor`: machine, installation and cluster, checked by name."""

from __future__ import annotations

import os
import resource
import shutil
import statistics
import sys
import tempfile
import time
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import Annotated

import typer

import shoal
from deploy.commands.cluster import DataOption
from deploy.commands.output import (
    DEFAULT_TARGET,
    EXIT_FAILED,
    JsonOption,
    TargetOption,
    print_json,
    printable,
    show,
    table,
)
from deploy.core.diagnosis import (
    Finding,
    Machine,
    Verdict,
    cluster_findings,
    machine_findings,
    worst,
)
from shoal.errors import ShoalError

_SHARED = Path("/dev/shm")  # noqa: S108 - Ray keeps its objects there
_SYNCS = 9
_EXTRAS = ("server", "eval")


def doctor(
    data: DataOption = Path(".shoal"),
    target: TargetOption = DEFAULT_TARGET,
    json: JsonOption = False,
    machine_only: Annotated[
        bool, typer.Option("--machine-only", help="Leave the cluster out.")
    ] = False,
) -> None:
    """Check machine, installation and cluster; each is ok, warn or fail, with the fix.

    Exits with 1 if anything fails.

    Example: shoal doctor --data /var/lib/shoal
    """
    findings = machine_findings(measured(data))
    if not machine_only:
        findings += _cluster(target)
    verdict = worst(findings)
    if json:
        print_json({"verdict": verdict, "checks": [asdict(each) for each in findings]})
    else:
        rows = table("check", "", "found", "what to do")
        for each in findings:
            rows.add_row(each.check, each.verdict, printable(each.seen), printable(each.fix))
        show(rows)
    if verdict is Verdict.FAIL:
        raise typer.Exit(EXIT_FAILED)


def measured(data: Path) -> Machine:
    """This machine, with the data in a folder that may not exist yet."""
    folder = data.absolute()
    while not folder.exists():
        folder = folder.parent
    handles, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return Machine(
        python=(sys.version_info.major, sys.version_info.minor),
        packages=_packages(),
        kernels=_kernels(),
        memory_bytes=_available_memory(),
        shared_bytes=shutil.disk_usage(_SHARED).free if _SHARED.is_dir() else 0,
        disk_bytes=shutil.disk_usage(folder).free,
        fsync_s=_fsync_s(folder),
        handles=handles,
    )


def _packages() -> dict[str, tuple[str, str, bool]]:
    """What `shoal[server,eval]` wants: installed version, wanted range, and whether it fits."""
    from packaging.requirements import Requirement  # noqa: PLC0415 - for this command alone

    found = {}
    for line in metadata.requires("shoal") or []:
        wanted = Requirement(line)
        if wanted.marker and not any(wanted.marker.evaluate({"extra": name}) for name in _EXTRAS):
            continue
        try:
            version = metadata.version(wanted.name)
        except metadata.PackageNotFoundError:
            version = ""
        fits = wanted.specifier.contains(version, prereleases=True) if version else False
        found[wanted.name] = (version, str(wanted.specifier), fits)
    return found


def _kernels() -> str:
    try:
        from shoal import kernels  # noqa: PLC0415 - a broken one is a finding, not a crash
        from shoal.kernels import maxsim  # noqa: PLC0415
    except ImportError:
        return ""
    return f"compiled, {maxsim.PATHS[0]}" if kernels.COMPILED else ""


def _available_memory() -> int:
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return 0


def _fsync_s(folder: Path) -> float | None:
    """Median seconds of a 4 KiB write and its sync."""
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            times = []
            for _ in range(_SYNCS):
                started = time.perf_counter()
                file.write(bytes(4096))
                file.flush()
                os.fsync(file.fileno())
                times.append(time.perf_counter() - started)
            return statistics.median(times)
    except OSError:
        return None


def _cluster(target: str) -> list[Finding]:
    try:
        with shoal.connect(target) as client:
            return cluster_findings(client.status(), shoal.__version__)
    except ShoalError as error:
        seen = f"nothing answers at {target}: {error.message}"
        return [Finding("cluster", Verdict.WARN, seen, "start one: shoal up --detach")]


def register(app: typer.Typer) -> None:
    """Adds the command."""
    app.command("doctor")(doctor)
