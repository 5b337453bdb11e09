"""Real clusters for tests: started by the command, ended whatever happens."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import shoal
from deploy.launchers.runfiles import living
from shoal.errors import ShoalError

POLL_S = 0.05
SHOAL = str(Path(sys.executable).with_name("shoal"))
T = TypeVar("T")


def run_shoal(
    *arguments: str, timeout_s: float = 120.0, **environment: str
) -> "subprocess.CompletedProcess[str]":
    """Runs the command as a user does."""
    return subprocess.run(
        [SHOAL, *arguments],
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
        env={**os.environ, **environment},
    )


def wait_for(condition: Callable[[], T | None], timeout_s: float = 30.0) -> T:
    """The first truthy value of the condition; errors of Shoal count as "not yet"."""
    give_up = time.monotonic() + timeout_s
    last: ShoalError | None = None
    while time.monotonic() < give_up:
        try:
            if value := condition():
                return value
        except ShoalError as error:
            last = error
        time.sleep(POLL_S)
    raise AssertionError(f"it did not come true within {timeout_s} s; last error: {last!r}")


def gone(pid: int) -> bool:
    """The process has ended, whether or not somebody has asked for its status."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return True
    return state in "ZX"


@dataclass
class Cluster:
    """A running cluster."""

    data: Path
    target: str

    def connect(self) -> shoal.Client:
        return shoal.connect(self.target)

    def pids(self) -> dict[str, int]:
        with self.connect() as client:
            return {process.name: process.pid for process in client.status().processes}

    def restarts(self, name: str) -> int:
        with self.connect() as client:
            return next(p.restarts for p in client.status().processes if p.name == name)


def kill(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)


@contextmanager
def cluster(data: Path, *options: str, **environment: str) -> Iterator[Cluster]:
    """A cluster started with `shoal up -d --port 0`."""
    try:
        up = run_shoal("up", "-d", "--port", "0", "--data", str(data), *options, **environment)
        assert up.returncode == 0, up.stderr + up.stdout
        target = up.stdout.split("serves at ")[1].split(";")[0]
        yield Cluster(data, target)
    finally:
        end(data)


def end(data: Path) -> None:
    """Ends a cluster, by force where the command does not."""
    with suppress(subprocess.TimeoutExpired):
        run_shoal("down", "--data", str(data), timeout_s=60.0)
    for record in living(data / "run"):
        with suppress(ProcessLookupError):
            os.killpg(record.pid, signal.SIGKILL)
