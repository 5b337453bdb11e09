"""Routers that end or die under a client's feet: real processes, a steady stream of searches."""

import itertools
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest

import shoal
from deploy.launchers.runfiles import living
from shoal.errors import ShoalError
from tests.cluster.clusters import Cluster, cluster, gone, kill, wait_for

pytestmark = pytest.mark.slow

DIM = 8
VECTORS = np.random.default_rng(0).normal(size=(300, DIM)).astype(np.float32)


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    options = ("--no-ray", "--routers", "3", "--encoders", "0", "--shards", "1")
    with cluster(tmp_path_factory.mktemp("routers"), *options) as made:
        with made.connect() as client:
            client.create_collection("vectors", encoder="none", dim=DIM)
            client.ingest("vectors", ({"id": f"d{n}", "vector": v} for n, v in enumerate(VECTORS)))
        yield made


class Searcher:
    """Searches from several threads with one client; every failure is kept."""

    def __init__(self, client: shoal.Client) -> None:
        self._client = client
        self._over = threading.Event()
        self.answered = 0
        self.failures: list[ShoalError] = []

    def _search(self) -> None:
        while not self._over.is_set():
            try:
                answer = self._client.search("vectors", vector=VECTORS[7], top_k=3, deadline_s=5.0)
                assert answer.coverage.ratio == 1.0
                assert answer[0].id == "d7"
                self.answered += 1
            except ShoalError as error:
                self.failures.append(error)
            # A steady load that leaves the processes of this machine their share.
            self._over.wait(0.02)

    @contextmanager
    def searching(self, threads: int = 4) -> Iterator[None]:
        callers = [threading.Thread(target=self._search) for _ in range(threads)]
        for each in callers:
            each.start()
        try:
            yield
        finally:
            self._over.set()
            for each in callers:
                each.join()

    def more(self, count: int) -> None:
        """Waits for so many more answers."""
        wanted = self.answered + count
        wait_for(lambda: self.answered >= wanted or bool(self.failures))


def routers(running: Cluster) -> dict[str, int]:
    """Process ids by name."""
    return {each.name: each.pid for each in living(running.data / "run") if each.role == "router"}


def state(client: shoal.Client, name: str) -> str:
    return next(each.state for each in client.status().processes if each.name == name)


def serves_anew(client: shoal.Client, running: Cluster, name: str, pid: int) -> bool:
    return routers(running).get(name, pid) != pid and state(client, name) == "serving"


@contextmanager
def ingesting(client: shoal.Client, count: list[int]) -> Iterator[None]:
    """One long ingest beside the block; `count` is given its documents and how many are stored."""
    over = threading.Event()

    def documents() -> Iterator[dict[str, object]]:
        for number in itertools.count():
            if over.wait(0.005):
                count.append(number)
                return
            yield {"id": f"e{number}", "vector": -VECTORS[number % len(VECTORS)]}

    def ingest() -> None:
        report = client.ingest("vectors", documents())
        count.append(report.stored + report.unchanged)

    thread = threading.Thread(target=ingest)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def test_a_rolling_restart_of_every_router_fails_nobody(running: Cluster) -> None:
    with running.connect() as client, running.connect() as looker:
        searcher = Searcher(client)
        count: list[int] = []
        with searcher.searching(), ingesting(client, count):
            searcher.more(50)
            for name, pid in sorted(routers(running).items()):
                os.kill(pid, signal.SIGTERM)
                wait_for(lambda name=name: state(looker, name) == "draining")
                wait_for(lambda name=name, pid=pid: serves_anew(looker, running, name, pid), 60)
                searcher.more(20)
        assert searcher.failures == []
        assert searcher.answered > 100
        given, stored = count
        assert given == stored > 0
        assert client.get("vectors", f"e{given - 1}") is not None


def test_a_killed_router_fails_no_search(running: Cluster) -> None:
    with running.connect() as client:
        searcher = Searcher(client)
        with searcher.searching():
            searcher.more(100)
            # router-0 is the one whose address the client was given.
            victim = routers(running)["router-0"]
            kill(victim)
            wait_for(lambda: gone(victim))
            searcher.more(100)
        assert searcher.failures == []
        wait_for(lambda: serves_anew(client, running, "router-0", victim), 60)
