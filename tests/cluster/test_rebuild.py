"""Generations flip under load: nothing fails, nothing is lost or doubled, whatever is killed."""

import itertools
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

import shoal
from shoal.errors import BuildUnderWay, InvalidRequest, NoPreviousGeneration, ShoalError
from tests.cluster.clusters import Cluster, cluster, kill, run_shoal, wait_for

pytestmark = pytest.mark.slow

DIM = 16
GENERATOR = np.random.default_rng(8)
ROWS = GENERATOR.normal(size=(2_000, DIM)).astype(np.float32)
QUERIES = GENERATOR.normal(size=(8, DIM)).astype(np.float32)
Answers = list[list[tuple[str, float]]]


def documents(begin: int, end: int, version: int = 0) -> Iterator[dict[str, object]]:
    for number in range(begin, end):
        vector = np.roll(ROWS[number % len(ROWS)], version)
        yield {"id": f"d{number}", "vector": vector, "title": f"version {version}"}


def answers(client: shoal.Client, name: str) -> Answers:
    found = client.search_batch(name, vectors=QUERIES, top_k=20)
    return [
        [(hit.id, hit.score) for hit in each] for each in found if isinstance(each, shoal.Answer)
    ]


def generation(client: shoal.Client, name: str) -> int:
    return next(each.generation for each in client.status().collections if each.name == name)


def served(running: Cluster, name: str, number: int) -> Callable[[], bool]:
    def serves() -> bool:
        with running.connect() as client:
            return generation(client, name) == number

    return serves


@pytest.fixture
def running(tmp_path: Path) -> Iterator[Cluster]:
    with cluster(tmp_path, "--no-ray", "--encoders", "0", "--shards", "2") as made:
        yield made


class Traffic:
    """Searches, upserts and deletes until it is told to end.

    Attributes:
        held: what must be stored, by id: its title.
        failures: what went wrong.
    """

    def __init__(self, running: Cluster, name: str) -> None:
        self._running, self._name = running, name
        self._done = threading.Event()
        self.held = {f"d{number}": "version 0" for number in range(1_000)}
        self.failures: list[BaseException] = []

    def search(self) -> None:
        with self._running.connect() as client:
            while not self._done.is_set():
                answer = client.search(self._name, vector=QUERIES[0], top_k=3)
                assert answer.coverage.ratio == 1.0

    def write(self) -> None:
        with self._running.connect() as client:
            for version in itertools.count(1):
                begin = version * 7 % 1_500
                report = client.ingest(self._name, documents(begin, begin + 20, version))
                assert not report.rejected
                new = {f"d{number}": f"version {version}" for number in range(begin, begin + 20)}
                self.held.update(new)
                gone = [f"d{(begin + 3 * number) % 1_500}" for number in range(5)]
                client.delete(self._name, gone)
                self.held = {key: title for key, title in self.held.items() if key not in gone}
                if self._done.is_set():
                    return

    def _guarded(self, work: Callable[[], None]) -> None:
        try:
            work()
        except BaseException as error:
            self.failures.append(error)

    @contextmanager
    def flowing(self) -> Iterator[None]:
        threads = [
            threading.Thread(target=self._guarded, args=(work,))
            for work in (self.search, self.write)
        ]
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            self._done.set()
            for thread in threads:
                thread.join()
        assert not self.failures


def check_held(running: Cluster, name: str, held: dict[str, str]) -> None:
    """Exactly these documents are stored, and found."""
    with running.connect() as client:
        everything = [f"d{number}" for number in range(2_000)]
        stored = {each.id: each.title for each in client.get(name, everything) if each is not None}
        assert stored == held
        found = client.search(name, vector=QUERIES[0], top_k=5_000, fields=())
        assert sorted(hit.id for hit in found) == sorted(held)


def filled(running: Cluster, name: str = "papers") -> Answers:
    with running.connect() as client:
        client.create_collection(name, encoder="none", dim=DIM, index="flat")
        client.ingest(name, documents(0, 1_000))
        return answers(client, name)


def test_a_rebuild_under_traffic_loses_and_doubles_nothing(running: Cluster) -> None:
    filled(running)
    traffic = Traffic(running, "papers")
    with traffic.flowing(), running.connect() as client:
        assert client.rebuild("papers", shards=3) == 2
        wait_for(served(running, "papers", 2))
        assert client.rebuild("papers", shards=1) == 3
        wait_for(served(running, "papers", 3))
    check_held(running, "papers", traffic.held)


def test_going_back_gives_the_old_answers_bit_for_bit(running: Cluster) -> None:
    before = filled(running)
    with running.connect() as client:
        with pytest.raises(NoPreviousGeneration):
            client.rollback("papers")
        made = run_shoal("rebuild", "papers", "--shards", "3", "--target", running.target)
        assert made.returncode == 0, made.stderr
        assert "generation 2 serves" in made.stdout
        assert answers(client, "papers") == before
        client.ingest("papers", documents(1_000, 1_050))
        after = answers(client, "papers")
        assert client.rollback("papers") == 1
        assert answers(client, "papers") == before
        client.ingest("papers", documents(1_500, 1_501))
        assert client.get("papers", "d1500") is not None
        assert client.rollback("papers") == 2
        assert answers(client, "papers") == after
        # A number is never used twice.
        assert client.rebuild("papers", shards=2) == 3
        wait_for(served(running, "papers", 3))
        assert answers(client, "papers") == after


def test_what_cannot_be_built_is_refused(running: Cluster) -> None:
    filled(running)
    with running.connect() as client:
        with pytest.raises(InvalidRequest):
            client.rebuild("papers", code_bytes=8)
        with pytest.raises(InvalidRequest):
            client.rebuild("papers", index="tree")
        with pytest.raises(ShoalError):
            client.rebuild("papers", encoder="all-minilm-l6-v2")
        assert generation(client, "papers") == 1
        client.rebuild("papers", shards=4)
        with pytest.raises(BuildUnderWay):
            client.rebuild("papers", shards=5)
        wait_for(served(running, "papers", 2))
        client.drop_collection("papers")
        assert client.list_collections() == []
        client.create_collection("papers", encoder="none", dim=DIM)
        assert generation(client, "papers") == 1


@pytest.mark.parametrize("victim", ["controller", "server-0", "server-1"])
def test_whatever_is_killed_one_whole_generation_serves(running: Cluster, victim: str) -> None:
    before = filled(running)
    with running.connect() as client:
        for target in (3, 4):
            expected = client.rebuild("papers", shards=target)
            kill(running.pids()[victim])
            wait_for(served(running, "papers", expected), timeout_s=60)
            assert wait_for(lambda: answers(client, "papers")) == before
    held = {f"d{number}": "version 0" for number in range(1_000)}
    check_held(running, "papers", held)
