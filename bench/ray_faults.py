"""What a Ray cluster of several nodes survives: a node killed, and its head's control service.

The nodes are raylets on this machine that share one data folder; each of three offers room for one
shard server, two of which run. While one client searches without a pause, the raylet of a server's
node and its workers are killed: the seconds until every answer is whole again are those of finding
out, starting an actor on the node that is left, and reading the shard back. Then Ray's control
service (GCS) is killed for good: Ray ends its raylets when they have missed it for
RAY_gcs_rpc_server_reconnect_timeout_s; a minute later it is seen whether questions still go on.

Example:
    python -m bench.ray_faults
"""

import argparse
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from bench import report
from bench.cluster import Cluster, running
from shoal import Client
from shoal.errors import ShoalError

NAME, DIM, DOCUMENTS = "vectors", 16, 2_000
NODES = 3
RECONNECT = "RAY_gcs_rpc_server_reconnect_timeout_s"
DEFAULT_S, RAISED_S = 60, 180
"""What Ray waits by itself, and what it is told to wait in the second run."""
PAUSE_S, PATIENCE_S, SLACK_S = 0.05, 120.0, 60.0
VECTORS = np.random.default_rng(6).standard_normal((DOCUMENTS, DIM)).astype(np.float32)
ENVIRONMENT = {"RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0"}


# --- the Ray cluster, in a process of its own -------------------------------------


def nodes() -> None:
    """A head and nodes; each line on stdin kills a node, by its raylet, or the "gcs"."""
    from ray._private.ray_constants import PROCESS_TYPE_RAYLET as RAYLET  # noqa: PLC0415
    from ray.cluster_utils import Cluster as RayCluster  # noqa: PLC0415 - reads its environment

    small = {"object_store_memory": 80 << 20, "include_dashboard": False}
    router = {"shoal_router": 1}
    made = RayCluster(
        initialize_head=True, head_node_args={"num_cpus": 1, "resources": router, **small}
    )
    server = {"num_cpus": 1, "resources": {"shoal_server": 1}, "object_store_memory": 80 << 20}
    workers = [made.add_node(**server) for _ in range(NODES)]
    print(made.address, flush=True)
    for line in sys.stdin:
        if line.strip() == "gcs":
            made.head_node.kill_gcs_server(check_alive=False)
        for node in workers:
            raylet = node.all_processes[RAYLET][0].process
            if str(raylet.pid) == line.strip():
                made.remove_node(node, allow_graceful=False)
        print("done", flush=True)
    # Ray's own way to end waits for a control service that may be gone.
    os.killpg(0, signal.SIGKILL)


@dataclass(frozen=True, slots=True)
class Nodes:
    """A running Ray cluster.

    Attributes:
        process: that holds it.
        address: of its control service.
    """

    process: "subprocess.Popen[str]"
    address: str

    def kill(self, what: int | str) -> None:
        """Kills a node by its raylet's process, or the "gcs"."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(f"{what}\n")
        self.process.stdin.flush()
        self.process.stdout.readline()


@contextmanager
def ray_nodes() -> Iterator[Nodes]:
    """Starts a Ray cluster, and ends all its processes."""
    command = [sys.executable, "-m", "bench.ray_faults", "--nodes"]
    with subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        start_new_session=True,
    ) as process:
        assert process.stdout is not None
        assert process.stdin is not None
        try:
            yield Nodes(process, process.stdout.readline().strip())
        finally:
            process.stdin.close()
            process.wait(PATIENCE_S)


# --- what is seen from outside -------------------------------------------------------


@dataclass(slots=True)
class Watch:
    """One client that searches without a pause.

    Attributes:
        outcomes: (seconds on the monotonic clock, every document stood behind the answer).
    """

    outcomes: list[tuple[float, bool]] = field(default_factory=list)

    @contextmanager
    def searching(self, cluster: Cluster) -> Iterator["Watch"]:
        """Searches for the length of a block."""
        done = threading.Event()

        def work() -> None:
            with cluster.connect() as client:
                while not done.wait(PAUSE_S):
                    self.outcomes.append((time.monotonic(), whole(client)))

        thread = threading.Thread(target=work)
        thread.start()
        try:
            yield self
        finally:
            done.set()
            thread.join()

    def last_failure_after(self, began: float) -> float:
        """Seconds from then to the last answer that was not whole; 0 without one."""
        failed = [at for at, good in self.outcomes if not good and at >= began]
        return max(failed, default=began) - began


def whole(client: Client) -> bool:
    """An answer comes, with every document behind it."""
    try:
        answer = client.search(NAME, vector=VECTORS[0], top_k=1, fields=(), deadline_s=2.0)
    except ShoalError:
        return False
    return answer.coverage.ratio == 1.0


def until(condition: Any, patience_s: float) -> float:
    """Seconds until a condition holds.

    Raises:
        TimeoutError: it does not.
    """
    began = time.monotonic()
    while not condition():
        if time.monotonic() - began > patience_s:
            raise TimeoutError(f"nothing came of it in {patience_s:.0f} s")
        time.sleep(PAUSE_S)
    return time.monotonic() - began


def node_of(pid: int) -> int:
    """The raylet that started a worker process."""
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def ended(pid: int) -> bool:
    """A process is no more, or waits for its parent to notice."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "ZX"
    except FileNotFoundError:
        return True


def filled(cluster: Cluster) -> None:
    """Stores the documents."""
    with cluster.connect() as client:
        client.create_collection(NAME, encoder="none", dim=DIM)
        client.ingest(NAME, ({"id": f"d{n}", "vector": vector} for n, vector in enumerate(VECTORS)))


def node_killed() -> dict[str, Any]:
    """Kills the node of one of two servers."""
    with ray_nodes() as ray, running(2, 0, ray.address) as cluster:
        filled(cluster)
        places = {name: node_of(pid) for name, pid in cluster.pids.items()}
        with cluster.connect() as client, Watch().searching(cluster) as watch:
            until(lambda: bool(watch.outcomes), PATIENCE_S)
            began = time.monotonic()
            ray.kill(places["server-0"])
            until(lambda: not whole(client), PATIENCE_S)
            until(lambda: whole(client), PATIENCE_S)
            moved = {p.name: p.pid for p in client.status().processes}
            held = client.get(NAME, [f"d{n}" for n in range(DOCUMENTS)])
            seconds = watch.last_failure_after(began)
        return {
            "servers_on_nodes_of_their_own": places["server-0"] != places["server-1"],
            "whole_again_s": round(seconds, 2),
            "on_another_node": node_of(moved["server-0"]) != places["server-0"],
            "documents_lost": sum(each is None for each in held),
        }


def head_killed(reconnect_s: int) -> dict[str, Any]:
    """Kills Ray's control service; when its raylets end, and when questions fail, if they do."""
    os.environ[RECONNECT] = str(reconnect_s)
    result: dict[str, Any] = {"reconnect_timeout_s": reconnect_s}
    try:
        with ray_nodes() as ray, running(2, 0, ray.address) as cluster:
            filled(cluster)
            raylet = node_of(cluster.pids["server-0"])
            with cluster.connect() as client:
                ray.kill("gcs")
                began = time.monotonic()
                while (after := time.monotonic() - began) < reconnect_s + SLACK_S:
                    if "raylet_ended_s" not in result and ended(raylet):
                        result["raylet_ended_s"] = round(after, 1)
                    if not whole(client):
                        return result | {"questions_failed_s": round(after, 1)}
                    time.sleep(PAUSE_S)
        return result | {"questions_went_on_s": reconnect_s + SLACK_S}
    finally:
        del os.environ[RECONNECT]


def main() -> None:
    """Measures, prints JSON and writes it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=report.RESULTS)
    parser.add_argument("--nodes", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    os.environ.update(ENVIRONMENT)
    if arguments.nodes:
        nodes()
        return
    result: dict[str, Any] = {"benchmark": "ray_faults", **report.surroundings()}
    result["node_killed"] = node_killed()
    result["head_killed"] = [head_killed(seconds) for seconds in (DEFAULT_S, RAISED_S)]
    report.keep("ray_faults", result, arguments.out)


if __name__ == "__main__":
    main()
