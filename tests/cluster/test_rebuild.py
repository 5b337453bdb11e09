"""Generations flip under load: nothing fails, nothing is lost or doubled, whatever is killed."""

import itertools
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import grpc
import numpy as np
import pytest
from numpy.typing import NDArray

import shoal
from shoal.errors import BuildUnderWay, InvalidRequest, NoPreviousGeneration, ShoalError
from shoal.rpc.router.v1 import router_pb2, router_pb2_grpc
from shoal.wire.arrays import matrix_to_message
from tests.cluster.clusters import Cluster, cluster, kill, run_shoal, wait_for

pytestmark = pytest.mark.slow

DIM = 16
GENERATOR = np.random.default_rng(8)
ROWS = GENERATOR.normal(size=(2_000, DIM)).astype(np.float32)
QUERIES = GENERATOR.normal(size=(8, DIM)).astype(np.float32)
Answers = list[list[tuple[str, float]]]
Made = Callable[[int, int, int], Iterator[dict[str, object]]]


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

    Args:
        running: the cluster.
        name: of the collection.
        made: makes documents.
        question: what is searched for.
        kills: processes die meanwhile.
    """

    def __init__(
        self,
        running: Cluster,
        name: str,
        made: Made = documents,
        question: NDArray[np.float32] = QUERIES[0],
        *,
        kills: bool = False,
    ) -> None:
        self._running, self._name, self._documents = running, name, made
        self._question, self._kills = question, kills
        self._done = threading.Event()
        self.held = {f"d{number}": "version 0" for number in range(1_000)}
        self.failures: list[BaseException] = []

    def search(self) -> None:
        with self._running.connect() as client:
            while not self._done.is_set():
                answer = client.search(self._name, vector=self._question, top_k=3)
                assert answer.coverage.ratio == 1.0

    def search_without_a_client(self) -> None:
        """Nothing is tried again for who calls over plain gRPC."""
        request = router_pb2.SearchRequest(
            collection=self._name,
            query=router_pb2.Query(vector=matrix_to_message(np.atleast_2d(self._question))),
            options=router_pb2.SearchOptions(top_k=3, fields=[router_pb2.FIELD_TITLE]),
        )
        with grpc.insecure_channel(self._running.target) as channel:
            stub = router_pb2_grpc.SearchServiceStub(channel)
            while not self._done.is_set():
                answer = stub.Search(request, timeout=10)
                # Documents that a writer has replaced meanwhile are counted, not shown.
                assert len(answer.hits) + answer.superseded == 3

    def write(self) -> None:
        with self._running.connect() as client:
            for version in itertools.count(1):
                begin = version * 7 % 1_500
                self._store(client, begin, version)
                gone = [f"d{(begin + 3 * number) % 1_500}" for number in range(5)]
                there = [key in self.held for key in gone]
                report = wait_for(lambda gone=gone: client.delete(self._name, gone))
                if not self._kills:
                    assert list(report.found) == there
                self.held = {key: title for key, title in self.held.items() if key not in gone}
                if self._done.is_set():
                    return

    def _store(self, client: shoal.Client, begin: int, version: int) -> None:
        report = wait_for(
            lambda: client.ingest(self._name, self._documents(begin, begin + 20, version))
        )
        assert not report.rejected
        self.held |= {f"d{number}": f"version {version}" for number in range(begin, begin + 20)}

    def _guarded(self, work: Callable[[], None]) -> None:
        try:
            work()
        except BaseException as error:
            self.failures.append(error)

    @contextmanager
    def flowing(self) -> Iterator[None]:
        # While a server is down, questions fail as they should.
        every = (self.write, self.search, self.search_without_a_client)
        threads = [
            threading.Thread(target=self._guarded, args=(work,))
            for work in ((self.write,) if self._kills else every)
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


@pytest.mark.parametrize("phase", ["copying", ""])
@pytest.mark.parametrize("victim", ["controller", "server-0", "server-1"])
def test_whatever_is_killed_nothing_acknowledged_is_lost(
    running: Cluster, victim: str, phase: str
) -> None:
    """Under writes, as soon as a build is seen to copy, or at once."""
    filled(running)
    traffic = Traffic(running, "papers", kills=True)
    with traffic.flowing(), running.connect() as client:
        for target in (3, 4):
            expected = client.rebuild("papers", shards=target)
            if phase:
                wait_for(lambda: phases(client, "papers") & {phase, "previous"})
            kill(running.pids()[victim])
            wait_for(served(running, "papers", expected), timeout_s=60)
    wait_for(lambda: running.connect().search("papers", vector=QUERIES[0]))
    check_held(running, "papers", traffic.held)


def phases(client: shoal.Client, name: str) -> set[str]:
    seen = next(each for each in client.status().collections if each.name == name)
    return {each.phase for each in seen.generations}


def matrices(begin: int, end: int, version: int = 0) -> Iterator[dict[str, object]]:
    """Documents of kind colbert: 60 tokens around some of 300 words."""
    words = np.random.default_rng(1).normal(size=(300, DIM))
    for number in range(begin, end):
        dice = np.random.default_rng((number, version))
        rows = words[dice.integers(0, 300, 60)] + dice.normal(size=(60, DIM)) / 4
        yield {
            "id": f"d{number}",
            "vector": rows.astype(np.float32),
            "title": f"version {version}",
        }


def test_no_codec_is_trained_while_documents_come_in(tmp_path: Path) -> None:
    """Encoding can leave long gaps between writes: an open stream is no quiet."""
    reading, go = threading.Event(), threading.Event()
    options = ("--no-ray", "--encoders", "0", "--shards", "2")
    quiet = {"SHOAL_CONTROLLER_TRAIN_QUIET_S": "0.1"}
    with cluster(tmp_path, *options, **quiet) as running, running.connect() as client:
        client.create_collection("tokens", "colbert", encoder="none", dim=DIM)

        def slow() -> Iterator[dict[str, object]]:
            yield from matrices(0, 1_000)
            reading.set()
            go.wait()
            yield from matrices(1_000, 1_010)

        stream = threading.Thread(target=client.ingest, args=("tokens", slow()))
        stream.start()
        reading.wait()
        # All that was read is stored, and the controller has looked often since.
        wait_for(lambda: tokens_of(client) >= 59_000)
        looks = itertools.count()
        wait_for(lambda: next(looks) > 60)
        assert generation(client, "tokens") == 1
        assert phases(client, "tokens") == set()
        go.set()
        stream.join()
        wait_for(served(running, "tokens", 2), timeout_s=120)
        seen = next(each for each in client.status().collections if each.name == "tokens")
        assert seen.generations[0].documents == 1_010


def tokens_of(client: shoal.Client) -> int:
    seen = next(each for each in client.status().collections if each.name == "tokens")
    return sum(shard.tokens for shard in seen.shards)


def test_a_codec_is_trained_and_replaces_fixed_point_under_traffic(running: Cluster) -> None:
    question = next(matrices(5, 6))["vector"]
    assert isinstance(question, np.ndarray)
    with running.connect() as client:
        client.create_collection("tokens", "colbert", encoder="none", dim=DIM, train_at=50_000)
        client.ingest("tokens", matrices(0, 1_000))
        traffic = Traffic(running, "tokens", matrices, question)
        with traffic.flowing():
            wait_for(served(running, "tokens", 2), timeout_s=120)
    with running.connect() as client:
        wait_for(lambda: client.search("tokens", vector=question).generation == 2)
        everything = [f"d{number}" for number in range(2_000)]
        stored = {
            each.id: each.title for each in client.get("tokens", everything) if each is not None
        }
        assert stored == traffic.held
        found = client.search(
            "tokens", vector=question, top_k=5_000, fields=(), effort="exhaustive"
        )
        assert sorted(hit.id for hit in found) == sorted(traffic.held)
        # Codes alone cannot be coded anew, and there is no text: the build says so.
        number = client.rebuild("tokens", code_bytes=4)
        wait_for(lambda: "given up" in phases(client, "tokens"))
        seen = next(each for each in client.status().collections if each.name == "tokens")
        assert [each.generation for each in seen.generations] == [1, number]
        assert "cannot be encoded anew" in seen.generations[1].detail
        assert seen.generation == 2
        # They are copied as they are to other shards, and give the same bits.
        before = every_answer(client, question)
        moved = client.rebuild("tokens", shards=3)
        wait_for(served(running, "tokens", moved), timeout_s=60)
        wait_for(lambda: client.search("tokens", vector=question).generation == moved)
        after = next(each for each in client.status().collections if each.name == "tokens")
        assert (after.codec, after.efforts, len(after.shards)) == (seen.codec, seen.efforts, 3)
        assert every_answer(client, question) == before
    server = running.pids()["server-1"]
    kill(server)  # what was copied is read back from the log
    wait_for(lambda: running.pids()["server-1"] not in (0, server), timeout_s=60)
    with running.connect() as client:
        assert wait_for(lambda: every_answer(client, question), timeout_s=60) == before


def every_answer(
    client: shoal.Client, question: np.ndarray
) -> list[tuple[str, list[tuple[str, float, int]]]]:
    return [
        (
            effort,
            [
                (hit.id, hit.score, hit.passage)
                for hit in client.search(
                    "tokens", vector=question, top_k=50, fields=(), effort=effort
                )
            ],
        )
        for effort in ("low", "normal", "high", "exhaustive")
    ]
