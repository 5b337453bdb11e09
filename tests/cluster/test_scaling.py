"""A cluster of plain processes that grows and shrinks under searches and writes."""

import itertools
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import pytest

import shoal
from shoal.client.model import ShardInfo
from shoal.errors import InvalidRequest, ShoalError
from tests.cluster.clusters import Cluster, cluster, gone, kill, run_shoal, wait_for

pytestmark = pytest.mark.slow

DIM = 8
SHARDS = 4
STREAMS = itertools.count()
VECTORS = np.random.default_rng(0).normal(size=(400, DIM)).astype(np.float32)


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    options = ("--no-ray", "--encoders", "0", "--servers", "1", "--shards", str(SHARDS))
    data = tmp_path_factory.mktemp("scaling")
    # Small segments, so that shards seal and merge while they move.
    with (
        cluster(data, *options, SHOAL_SHARD_SEAL_PASSAGES="200") as made,
        made.connect() as client,
    ):
        client.create_collection("v", encoder="none", dim=DIM)
        client.ingest("v", ({"id": f"d{n}", "vector": v} for n, v in enumerate(VECTORS)))
        client.optimize("v")
        yield made


class Stream:
    """Searches and writes without end, and what became of them."""

    def __init__(self, running: Cluster) -> None:
        self._running = running
        self._over = threading.Event()
        self._threads = [
            threading.Thread(target=self._forever, args=(work,))
            for work in (self._search, self._write)
        ]
        self._prefix = f"w{next(STREAMS)}-"
        self.failures: list[str] = []
        self.searches = 0
        self.written = 0

    def _forever(self, work: Callable[[shoal.Client, int], None]) -> None:
        with self._running.connect() as client:
            number = 0
            while not self._over.is_set():
                try:
                    work(client, number)
                except ShoalError as error:
                    self.failures.append(f"{work.__name__}: {error!r}")
                number += 1

    def _search(self, client: shoal.Client, number: int) -> None:
        row = number * 7 % len(VECTORS)
        answer = client.search("v", vector=VECTORS[row], top_k=3)
        self.searches += 1
        if answer.coverage.ratio < 1.0:
            self.failures.append(f"partial: {answer.coverage}")
        if answer[0].id != f"d{row}":
            self.failures.append(f"d{row} is not first: {answer[0].id}")

    def _write(self, client: shoal.Client, number: int) -> None:
        rows = [(number * 20 + place) % len(VECTORS) for place in range(20)]
        report = client.ingest(
            "v",
            (
                {"id": f"{self._prefix}{number * 20 + place}", "vector": VECTORS[row] * 0.5}
                for place, row in enumerate(rows)
            ),
        )
        if report.stored != 20:
            self.failures.append(f"not stored: {report}")
        self.written += 20
        if number % 5 == 0:
            client.delete("v", [f"gone{number}"])

    def ids(self) -> list[str]:
        return [f"{self._prefix}{number}" for number in range(self.written)]

    def end(self) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join()

    def start(self) -> None:
        for thread in self._threads:
            thread.start()


@contextmanager
def stream(running: Cluster) -> Iterator[Stream]:
    """At its end nothing had failed, and everything acknowledged is there."""
    made = Stream(running)
    made.start()
    try:
        yield made
    finally:
        made.end()
    assert made.failures == []
    assert made.searches > 50
    with running.connect() as client:
        assert sum(each is None for each in client.get("v", made.ids())) == 0


def holders(running: Cluster) -> list[ShardInfo]:
    with running.connect() as client:
        [collection] = client.status().collections
        return list(collection.shards)


def processes(running: Cluster, role: str) -> list[str]:
    with running.connect() as client:
        return [each.name for each in client.status().processes if each.role == role]


def scale(running: Cluster, **counts: int) -> None:
    with running.connect() as client:
        client.scale(**counts)
        settle(client)


def settle(client: shoal.Client) -> None:
    """Waits until nothing is left to do."""
    wait_for(lambda: (seen := client.status()).controller_reachable and not seen.pending, 60)


def test_servers_come_and_go_under_load(running: Cluster) -> None:
    with stream(running):
        for count in (2, 4, 2):
            scale(running, servers=count)
            names = [f"server-{number}" for number in range(count)]
            assert processes(running, "server") == names
            assert sorted({shard.server for shard in holders(running)}) == names


def test_routers_come_and_go_under_load(running: Cluster) -> None:
    with stream(running):
        scale(running, routers=3)
        with running.connect() as client:
            added = [p for p in client.status().processes if p.role == "router"]
        assert len(added) == 3
        for process in added:
            with shoal.connect(process.address) as client:
                assert client.search("v", vector=VECTORS[0], top_k=1)[0].id == "d0"
        scale(running, routers=1)
        assert processes(running, "router") == ["router-0"]


def test_a_controller_that_is_killed_in_the_middle_of_moves_ends_them(running: Cluster) -> None:
    before = {shard.shard: shard.server for shard in holders(running)}
    after = {n: "server-1" if server == "server-0" else "server-0" for n, server in before.items()}
    with stream(running), running.connect() as client:
        for number, server in after.items():
            wait_for(lambda number=number, server=server: client.move("v", number, server))
            victim = running.pids()["controller"]
            if number % 2:
                # The first time before the move has begun, the second while others go on.
                kill(victim)
                wait_for(lambda victim=victim: gone(victim))
        settle(client)
        assert {shard.shard: shard.server for shard in holders(running)} == after


def test_moving_draining_and_rebalancing(running: Cluster) -> None:
    with stream(running):
        target = ("--target", running.target)
        moved = run_shoal("move", "v", "0", "--to", "server-1", "--json", *target)
        assert moved.returncode == 0, moved.stderr
        assert json.loads(moved.stdout)["pending"] == []
        assert holders(running)[0].server == "server-1"
        again = run_shoal("move", "v", "0", "--to", "server-1", *target)
        assert "no shard moves" in again.stdout
        drained = run_shoal("drain", "server-0", *target)
        assert drained.returncode == 0, drained.stderr
        assert processes(running, "server") == ["server-1"]
        assert {shard.server for shard in holders(running)} == {"server-1"}
        added = run_shoal("scale", "--servers", "2", *target)
        assert added.returncode == 0, added.stderr
        assert "done: 0 encoders, 1 routers, 2 servers" in added.stdout
        assert processes(running, "server") == ["server-0", "server-1"]
        plan = run_shoal("rebalance", "--dry-run", "--json", *target)
        assert json.loads(plan.stdout) == [], "scaling has levelled them"


def test_status_shows_desired_and_actual(running: Cluster) -> None:
    table = run_shoal("status", "--target", running.target).stdout
    assert "0 of 0 encoders, 1 of 1 routers, 2 of 2 servers" in table
    status = json.loads(run_shoal("status", "--target", running.target, "--json").stdout)
    assert status["desired"] == {"encoder": 0, "router": 1, "server": 2}
    assert status["pending"] == []


def test_what_cannot_be_is_refused(running: Cluster) -> None:
    with running.connect() as client:
        with pytest.raises(InvalidRequest, match="no server"):
            client.drain("server-9")
        with pytest.raises(InvalidRequest, match="no server"):
            client.move("v", 0, "server-9")
        with pytest.raises(InvalidRequest, match="shards 0 to 3"):
            client.move("v", 9, "server-0")


def test_a_restarted_controller_keeps_what_was_asked_for(running: Cluster) -> None:
    with running.connect() as client:
        client.scale(servers=3)
        victim = running.pids()["controller"]
        kill(victim)
        wait_for(lambda: gone(victim))
        report = wait_for(lambda: client.status().controller_reachable and client.scale(servers=1))
        assert report.taken_over or report.moves
        settle(client)
        assert processes(running, "server") == ["server-0"]
        assert client.search("v", vector=VECTORS[3], top_k=1)[0].id == "d3"
