"""`shoal doctor`: machine, installation and cluster, checked by name."""

from __future__ import annotations

import ctypes
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
from typing import TYPE_CHECKING, Annotated

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
    EncoderFacts,
    Finding,
    Machine,
    Verdict,
    cluster_findings,
    machine_findings,
    model_finding,
    worst,
)
from shoal.errors import EncoderNotFound, ShoalError

if TYPE_CHECKING:
    from shoal.client.model import ClusterStatus

_SHARED = Path("/dev/shm")  # noqa: S108 - Ray keeps its objects there
_SYNCS = 9
_EXTRAS = ("server", "eval")
_ANSWER_TIMEOUT_S = 5.0
_TIMEX_BYTES = 1024
"""More than any kernel's `struct timex`."""
_UNSYNCHRONISED = 5
"""TIME_ERROR of adjtimex(2)."""


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
    fsync_s, skew_s = _disk(folder)
    handles, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return Machine(
        python=(sys.version_info.major, sys.version_info.minor),
        packages=_packages(),
        kernels=_kernels(),
        memory_bytes=_available_memory(),
        shared_bytes=shutil.disk_usage(_SHARED).free if _SHARED.is_dir() else 0,
        disk_bytes=shutil.disk_usage(folder).free,
        fsync_s=fsync_s,
        handles=handles,
        torch=_torch(),
        ray=_ray(),
        clock_synchronised=_synchronised(),
        clock_skew_s=skew_s,
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


def _torch() -> str:
    try:
        import torch  # noqa: PLC0415 - takes seconds, and a broken one is a finding
    except (ImportError, OSError):
        return ""
    devices = [f"cuda:{number}" for number in range(torch.cuda.device_count())]
    return f"{torch.__version__} on {', '.join(devices) or 'cpu'}"


def _ray() -> tuple[str, str]:
    try:
        import ray  # noqa: PLC0415 - a broken one is a finding
    except (ImportError, OSError):
        return "", ""
    return ray.__version__, metadata.version("ray")


def _synchronised() -> bool | None:
    """What the kernel says of its clock; asking changes nothing and needs no right."""
    if sys.platform != "linux":
        return None
    state = ctypes.CDLL(None).adjtimex(ctypes.create_string_buffer(_TIMEX_BYTES))
    return None if state < 0 else bool(state != _UNSYNCHRONISED)


def _disk(folder: Path) -> tuple[float | None, float | None]:
    """Median seconds of a 4 KiB write and its sync, and how far ahead the folder's clock is."""
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            times = []
            for _ in range(_SYNCS):
                started = time.perf_counter()
                file.write(bytes(4096))
                file.flush()
                os.fsync(file.fileno())
                times.append(time.perf_counter() - started)
            return statistics.median(times), os.fstat(file.fileno()).st_mtime - time.time()
    except OSError:
        return None, None


def _cluster(target: str) -> list[Finding]:
    try:
        with shoal.connect(target) as client:
            status = client.status()
    except ShoalError as error:
        seen = f"nothing answers at {target}: {error.message}"
        return [Finding("router", Verdict.WARN, seen, "start a cluster: shoal up --detach")]
    findings = cluster_findings(status, metadata.version("shoal"), _encoders(status))
    return [*findings, model_finding(_missing_models(status))]


def _encoders(status: ClusterStatus) -> list[EncoderFacts]:
    """Asks each encoder itself what it serves."""
    import grpc  # noqa: PLC0415 - as above

    from shoal.rpc.encoder.v1 import encoder_pb2, encoder_pb2_grpc  # noqa: PLC0415
    from shoal.wire.channels import channel_options  # noqa: PLC0415

    facts = []
    for process in status.processes:
        if process.role != "encoder":
            continue
        with grpc.insecure_channel(process.address, options=channel_options(-1)) as channel:
            stub = encoder_pb2_grpc.EncoderServiceStub(channel)
            try:
                info = stub.GetInfo(encoder_pb2.GetInfoRequest(), timeout=_ANSWER_TIMEOUT_S)
            except grpc.RpcError:
                facts.append(EncoderFacts(process.name, None))
            else:
                models = tuple((each.encoder, each.fingerprint) for each in info.models)
                facts.append(EncoderFacts(process.name, models))
    return facts


def _missing_models(status: ClusterStatus) -> dict[str, str]:
    """The encoders of collections whose files are not on this machine, and why."""
    references = {each.encoder for each in status.collections} - {"none"}
    try:
        from encoder_service.backends.reference import find  # noqa: PLC0415 - as above
    except ImportError as error:
        return dict.fromkeys(references, str(error))
    missing = {}
    for reference in references:
        try:
            find(reference, os.environ.get("SHOAL_ENCODER_HUB_CACHE", ""), hub_downloads=False)
        except EncoderNotFound as error:
            missing[reference] = error.message
    return missing


def register(app: typer.Typer) -> None:
    """Adds the command."""
    app.command("doctor")(doctor)
