"""A cluster of Ray actors: one local Ray for the module, started and ended by the command."""

import json
import os
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from deploy.ray_backend import session
from deploy.scraping import read_pages
from tests.cluster.clusters import Cluster, cluster, gone, kill, run_shoal, wait_for

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

DIM = 8
VECTORS = np.random.default_rng(1).normal(size=(200, DIM)).astype(np.float32)


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    data = tmp_path_factory.mktemp("ray")
    with cluster(data, "--encoders", "0") as made, made.connect() as client:
        client.create_collection("v", encoder="none", dim=DIM)
        client.ingest(
            "v", ({"id": f"d{row}", "vector": vector} for row, vector in enumerate(VECTORS))
        )
        yield made


def head_pid(data: Path) -> int:
    return int(json.loads((data / "run" / "ray").read_text())["pid"])


def best(made: Cluster) -> list[str]:
    with made.connect() as client:
        return [hit.id for hit in client.search("v", vector=VECTORS[3], top_k=5)]


def test_services_are_actors_of_our_own_ray_and_no_other(running: Cluster) -> None:
    members = session(head_pid(running.data))
    pids = running.pids()
    assert set(pids) == {"controller", "router-0", "server-0", "server-1"}
    assert set(pids.values()) <= members
    names = [Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")[0] for pid in pids.values()]
    assert all(name.startswith(b"ray::") for name in names)


def test_actors_show_their_metrics(running: Cluster) -> None:
    with running.connect() as client:
        processes = client.status().processes
    assert set(read_pages(processes)) == {"router-0", "server-0", "server-1"}


def test_ray_asks_for_a_token_and_stays_on_the_loopback(running: Cluster) -> None:
    file = json.loads((running.data / "cluster.json").read_text())
    assert file["ray_address"].startswith("127.0.0.1:")
    assert (running.data / "ray-token").stat().st_mode & 0o077 == 0


def test_a_killed_shard_actor_serves_again_within_ten_seconds(running: Cluster) -> None:
    expected = best(running)
    victim = running.pids()["server-1"]
    kill(victim)
    wait_for(lambda: gone(victim))
    started = time.monotonic()
    assert wait_for(lambda: best(running)) == expected
    # Ten seconds from its restart; Ray itself takes a second or two to start an actor.
    assert time.monotonic() - started < 15
    wait_for(lambda: running.restarts("server-1") == 1)


def test_ray_restarts_the_controller_which_adopts_the_actors(running: Cluster) -> None:
    before = running.pids()
    kill(before["controller"])
    expected = best(running)
    wait_for(lambda: gone(before["controller"]))
    assert best(running) == expected, "queries do not need the controller"
    with running.connect() as client:
        wait_for(lambda: client.status().controller_reachable and running.restarts("controller"))
        client.create_collection("later", encoder="none", dim=DIM)
        client.drop_collection("later")
    after = running.pids()
    del before["controller"], after["controller"]
    assert after == before


@pytest.mark.parametrize("address", ["127.0.0.1:1", "ray://127.0.0.1"])
def test_a_ray_that_is_not_there_is_refused_at_once(tmp_path: Path, address: str) -> None:
    up = run_shoal("up", "-d", "--port", "0", "--data", str(tmp_path / "data"), "--ray", address)
    assert up.returncode == 1
    assert address in up.stderr
    assert not (tmp_path / "data" / "cluster.json").exists()


def test_down_ends_our_ray_and_leaves_nothing(running: Cluster) -> None:
    """Runs last: it ends the module's cluster."""
    members = session(head_pid(running.data))
    temporary = json.loads((running.data / "cluster.json").read_text())["temporary"]
    assert os.path.isdir(temporary)
    down = run_shoal("down", "--data", str(running.data))
    assert down.returncode == 0, down.stderr
    assert all(gone(pid) for pid in members)
    assert not os.path.exists(temporary)
    assert not (running.data / "cluster.json").exists()
