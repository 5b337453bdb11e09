"""A real cluster for the length of a `with` block, and what its processes use."""

import os
import signal
import socket
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import shoal
from shoal import Client

TICKS_PER_S = os.sysconf("SC_CLK_TCK")
START_TIMEOUT_S = 180
STOP_TIMEOUT_S = 60


@dataclass(frozen=True, slots=True)
class Cluster:
    """A running cluster.

    Attributes:
        target: "host:port" of router-0.
        metrics_port: where router-0 serves its metrics.
        pids: process ids by process name.
    """

    target: str
    metrics_port: int
    pids: dict[str, int]

    def connect(self) -> Client:
        """A client of router-0."""
        return shoal.connect(self.target)

    def resident_mib(self) -> dict[str, float]:
        """Resident memory by process name, MiB."""
        return {name: round(resident_mib(pid), 1) for name, pid in self.pids.items()}

    def cpu_s(self) -> dict[str, float]:
        """Processor time used so far by process name, seconds."""
        return {name: cpu_s(pid) for name, pid in self.pids.items()}

    def counter(self, prefix: str) -> float:
        """Sum of router-0's metrics whose sample begins with `prefix`."""
        url = f"http://127.0.0.1:{self.metrics_port}/metrics"
        with urllib.request.urlopen(url, timeout=10) as page:
            lines = page.read().decode().splitlines()
        return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith(prefix))


@contextmanager
def running(shards: int, encoders: int, ray: str = "", routers: int = 1) -> Iterator[Cluster]:
    """Starts plain processes in a folder of their own; stops and removes them after.

    Args:
        shards: shard server processes.
        encoders: encoder processes; 0 where vectors are given.
        ray: address of a Ray cluster whose actors they are to be instead.
        routers: router processes.

    Raises:
        RuntimeError: the cluster did not come up; the message has its output.
    """
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended"))  # so that the cluster ends too
    port, metrics_port = free_port(), free_port()
    # Several routers cannot have one port; then nobody reads their metrics here.
    own = {"SHOAL_ROUTER_METRICS_PORT": str(metrics_port)} if routers == 1 else {}
    environment = {**os.environ, **own}
    with tempfile.TemporaryDirectory(prefix="shoal-bench-") as data:
        how = f"--ray={ray}" if ray else "--no-ray"
        command = ["up", how, "--detach", f"--data={data}", f"--port={port}"]
        counts = [f"--shards={shards}", f"--encoders={encoders}", f"--routers={routers}"]
        try:
            told = _shoal([*command, *counts], environment, START_TIMEOUT_S)
            target = told.rpartition("Shoal serves at ")[2].partition(";")[0]
            with shoal.connect(target) as client:
                pids = {process.name: process.pid for process in client.status().processes}
            yield Cluster(target, metrics_port, pids)
        finally:
            if Path(data, "cluster.json").exists():
                _shoal(["down", f"--data={data}"], environment, STOP_TIMEOUT_S)


def free_port() -> int:
    """A port that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def resident_mib(pid: int) -> float:
    """Resident memory of a process, MiB."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1024
    return 0.0


def cpu_s(pid: int) -> float:
    """User and system time of a process, seconds."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS_PER_S


def _shoal(arguments: list[str], environment: dict[str, str], timeout_s: float) -> str:
    command = [str(Path(sys.executable).with_name("shoal")), *arguments]
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=timeout_s, check=False
    )
    if done.returncode != 0:
        raise RuntimeError(f"shoal {arguments[0]} failed:\n{done.stdout}{done.stderr}")
    return done.stdout
