"""What every result says about where it was measured, and how it is kept."""

import importlib.metadata
import json
import os
import platform
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "bench" / "results"
PACKAGES = ("shoal", "grpcio", "protobuf", "numpy", "faiss-cpu", "torch", "transformers", "uvloop")


def keep_to_cores(count: int) -> list[int]:
    """Binds this process, and all that it starts, to the first `count` cores allowed.

    Raises:
        ValueError: there are fewer.
    """
    allowed = sorted(os.sched_getaffinity(0))
    if len(allowed) < count:
        raise ValueError(f"{count} cores wanted, {len(allowed)} are there")
    os.sched_setaffinity(0, allowed[:count])
    return allowed[:count]


def surroundings() -> dict[str, Any]:
    """Machine, versions and commit, without names of hosts or folders."""
    return {
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        "commit": commit(),
        "machine": {
            "processor": _cpuinfo("model name"),
            "cores": len(os.sched_getaffinity(0)),
            "memory_gib": round(_memory_kib() / 2**20),
            "system": f"{platform.system()} {platform.release().split('-')[0]}",
            # Other work on the machine shows here: it should be near 0.
            "load_average_at_start": round(os.getloadavg()[0], 2),
        },
        "versions": {
            "python": platform.python_version(),
            **{name: version for name in PACKAGES if (version := _version(name))},
        },
    }


def commit() -> str:
    """The commit that is measured; "+changes" when the tree differs from it."""

    def git(*arguments: str) -> str:
        done = subprocess.run(
            ["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=False
        )
        return done.stdout.strip()

    measured = git(
        "status", "--porcelain", "--untracked-files=no", "--", ":!bench/results", ":!docs"
    )
    return (git("rev-parse", "HEAD") or "unknown") + ("+changes" if measured else "")


def middle(values: Sequence[float]) -> float:
    """The median, to four digits."""
    return float(f"{median(values):.4g}")


def bar(
    name: str, value: float, least: float | None = None, most: float | None = None
) -> dict[str, Any]:
    """A figure beside what it is to reach."""
    reached = (least is None or value >= least) and (most is None or value <= most)
    wanted = {"least": least} if least is not None else {"most": most}
    return {"name": name, "value": round(value, 4), **wanted, "reached": reached}


def keep(name: str, result: dict[str, Any], folder: Path) -> None:
    """Prints the result and writes it to `folder`/`name`.json."""
    text = json.dumps(result, indent=2)
    print(text)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.json").write_text(text + "\n")


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""  # a benchmark of one service needs no other's packages


def _cpuinfo(key: str) -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith(key):
            return line.partition(":")[2].strip()
    return platform.processor()


def _memory_kib() -> int:
    return int(Path("/proc/meminfo").read_text().split()[1])
