"""A cluster of plain processes: what users do to it, and what dies in it."""

import json
import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import shoal
from deploy.launchers.runfiles import living
from shoal.client.model import ShardInfo
from shoal.errors import EncoderNotFound, InsufficientCoverage, InvalidRequest
from tests.cluster.clusters import (
    SHOAL,
    Cluster,
    cluster,
    end,
    gone,
    kill,
    run_shoal,
    wait_for,
)

pytestmark = pytest.mark.slow

DIM = 8
VECTORS = np.random.default_rng(0).normal(size=(300, DIM)).astype(np.float32)
TEXTS = {
    "tides": "The moon pulls the oceans, which makes the tides.",
    "bread": "Yeast makes dough rise before it is baked to bread.",
    "vaccine": "A vaccine trains the immune system before an infection.",
}


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with (
        cluster(tmp_path_factory.mktemp("processes"), "--no-ray") as made,
        made.connect() as client,
    ):
        client.create_collection("vectors", encoder="none", dim=DIM)
        client.ingest("vectors", documents())
        client.create_collection("texts")
        client.ingest("texts", ({"id": id_, "text": text} for id_, text in TEXTS.items()))
        yield made


def documents() -> Iterator[dict[str, object]]:
    return ({"id": f"d{row}", "vector": vector} for row, vector in enumerate(VECTORS))


def best(client: shoal.Client) -> list[str]:
    return [hit.id for hit in client.search("vectors", vector=VECTORS[7], top_k=5)]


def test_text_is_found_by_meaning(running: Cluster) -> None:
    with running.connect() as client:
        assert client.search("texts", "why does the sea level change twice a day")[0].id == "tides"


def test_status_says_what_runs(running: Cluster) -> None:
    answer = run_shoal("status", "--target", running.target, "--json")
    assert answer.returncode == 0, answer.stderr
    status = json.loads(answer.stdout)
    assert {process["name"]: process["state"] for process in status["processes"]} == dict.fromkeys(
        ["controller", "encoder-0", "router-0", "server-0", "server-1"], "serving"
    )
    everything = {
        "shards_total": 2,
        "shards_serving": 2,
        "documents_total": len(VECTORS),
        "documents_covered": len(VECTORS),
    }
    # Counts are those that the shards last published, which follows a write by a moment.
    wait_for(lambda: coverage_in_status(running) == everything)
    table = run_shoal("status", "--target", running.target)
    assert "300 of 300 documents" in table.stdout


def coverage_in_status(running: Cluster) -> object:
    answer = run_shoal("status", "--target", running.target, "--json")
    [_, vectors] = json.loads(answer.stdout)["collections"]
    return vectors["coverage"]


def test_a_second_cluster_in_the_folder_is_refused(running: Cluster) -> None:
    again = run_shoal("up", "-d", "--no-ray", "--port", "0", "--data", str(running.data))
    assert again.returncode == 1
    assert "runs in" in again.stderr
    assert running.target in again.stderr


def test_a_busy_port_is_refused_before_anything_starts(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        up = run_shoal("up", "-d", "--no-ray", "--port", port, "--data", str(tmp_path / "data"))
    assert up.returncode == 1
    assert f"port {port}" in up.stderr
    assert not (tmp_path / "data").exists()


def test_a_wish_that_cannot_be_is_refused(running: Cluster) -> None:
    with running.connect() as client:
        with pytest.raises(InvalidRequest, match="one vector per text"):
            client.create_collection("x", kind="colbert", encoder="all-minilm-l6-v2")
        with pytest.raises(EncoderNotFound):
            client.create_collection("x", encoder="/no/such/folder")
        assert "x" not in {collection.name for collection in client.status().collections}


def test_a_killed_shard_server_serves_again_within_ten_seconds(running: Cluster) -> None:
    with running.connect() as client:
        expected = best(client)
        victim = running.pids()["server-0"]
        kill(victim)
        wait_for(lambda: gone(victim))
        started = time.monotonic()
        with pytest.raises(InsufficientCoverage, match="SHARD_UNAVAILABLE"):
            best(client)
        assert wait_for(lambda: best(client)) == expected
        assert time.monotonic() - started < 10
        assert client.search("vectors", vector=VECTORS[7]).coverage.documents_total == len(VECTORS)
        wait_for(lambda: running.restarts("server-0") == 1)


def test_queries_go_on_without_the_controller_and_it_comes_back(running: Cluster) -> None:
    before = running.pids()
    with running.connect() as client:
        expected = best(client)
        kill(before["controller"])
        while not gone(before["controller"]):
            assert best(client) == expected
        for _ in range(20):
            assert best(client) == expected
        wait_for(
            lambda: (
                (status := client.status()).controller_reachable
                and running.pids()["controller"] not in (0, before["controller"])
                and status
            )
        )
        after = running.pids()
        assert {n: p for n, p in after.items() if n != "controller"} == {
            n: p for n, p in before.items() if n != "controller"
        }, "it adopts what runs"
        client.create_collection("later", encoder="none", dim=DIM)
        client.drop_collection("later")


def test_a_killed_encoder_comes_back_with_its_models(running: Cluster) -> None:
    with running.connect() as client:
        victim = running.pids()["encoder-0"]
        kill(victim)
        wait_for(lambda: gone(victim))
        hits = wait_for(lambda: client.search("texts", "an injection against illness"), 60)
        assert hits[0].id == "vaccine"
        assert best(client)[0] == "d7"


def test_dropping_a_collection_deletes_its_data(running: Cluster) -> None:
    with running.connect() as client:
        client.create_collection("short", encoder="none", dim=DIM)
        uuid = next(c.uuid for c in client.status().collections if c.name == "short")
        client.ingest("short", documents())
        assert [path for path in running.data.rglob("*") if uuid in str(path)]
        client.drop_collection("short")
        left = [path for path in (running.data / "logs").rglob("*") if uuid in str(path)]
        assert left == []


def test_down_ends_everything_and_up_serves_the_same(running: Cluster) -> None:
    """Runs last: it ends the module's cluster."""
    with running.connect() as client:
        expected = best(client)
    pids = [record.pid for record in living(running.data / "run")]
    assert len(pids) == 6
    # With nobody left to help, `down` does it alone.
    supervisor = next(r for r in living(running.data / "run") if r.name == "supervisor")
    kill(supervisor.pid)
    down = run_shoal("down", "--data", str(running.data))
    assert down.returncode == 0, down.stderr
    assert all(gone(pid) for pid in pids)
    assert not (running.data / "cluster.json").exists()
    assert "no cluster runs" in run_shoal("down", "--data", str(running.data)).stdout
    options = ("--no-ray", "--shards", "3", "--encoders", "0")
    with cluster(running.data, *options) as again, again.connect() as client:
        assert best(client) == expected
        assert [c.name for c in client.status().collections] == ["texts", "vectors"]


def test_ctrl_c_in_the_foreground_ends_everything(tmp_path: Path) -> None:
    (tmp_path / "cluster.json").write_text(
        '{"mode": "processes", "target": "127.0.0.1:1", "ray_address": "", "namespace": ""}'
    )
    command = [SHOAL, "up", "--no-ray", "--encoders", "0", "--port", "0", "--data", str(tmp_path)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        first = process.stdout.readline()
        assert "serves at" in first, "a stale cluster.json is no obstacle"
        pids = [record.pid for record in living(tmp_path / "run")]
        assert len(pids) == 5
        os.kill(process.pid, signal.SIGINT)
        assert process.wait(timeout=30) == 0
        assert all(gone(pid) for pid in pids)
    finally:
        process.kill()
        process.communicate()
        end(tmp_path)


def test_a_corrupt_shard_refuses_until_its_loss_is_accepted(tmp_path: Path) -> None:
    options = ("--no-ray", "--encoders", "0", "--shards", "1")
    with cluster(tmp_path, *options) as made, made.connect() as client:
        client.create_collection("v", encoder="none", dim=DIM)
        for _ in range(2):
            client.ingest("v", documents())
            client.delete("v", ["d1"])
    damage(tmp_path)
    with cluster(tmp_path, *options) as made, made.connect() as client:
        shard = wait_for(lambda: corrupt(client))
        assert shard.loss
        with pytest.raises(InsufficientCoverage):
            client.search("v", vector=VECTORS[0])
        refused = run_shoal("accept-loss", "v", "0", "x", "--target", made.target)
        assert refused.returncode == 1
        accepted = run_shoal("accept-loss", "v", "0", shard.loss, "--target", made.target)
        assert accepted.returncode == 0, accepted.stderr
        wait_for(lambda: client.search("v", vector=VECTORS[0]).coverage.ratio == 1.0)


def corrupt(client: shoal.Client) -> ShardInfo | None:
    [shard] = client.status().collections[0].shards
    return shard if shard.state == "corrupt" else None


def damage(data: Path) -> None:
    """Flips a bit in the middle of the records of a shard's only log file."""
    [log] = [
        path for path in (data / "logs").rglob("*") if path.is_file() and path.stat().st_size > 4096
    ]
    content = bytearray(log.read_bytes())
    used = len(content.rstrip(b"\0"))
    content[used // 3] ^= 1
    log.write_bytes(content)
