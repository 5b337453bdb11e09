"""Both clients over real gRPC: calls, typed errors, deadlines, slices."""

import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

import grpc
import numpy as np
import pytest

import shoal
from shoal.errors import (
    ClusterUnreachable,
    CollectionExists,
    CollectionNotFound,
    DeadlineExceeded,
    EmptyText,
    EncoderUnavailable,
    InsufficientCoverage,
    InvalidRequest,
    LimitExceeded,
    LossMismatch,
    ShardUnavailable,
)
from shoal.rpc.common.v1 import common_pb2
from shoal.rpc.router.v1 import router_pb2
from shoal.settings import Limits
from tests.wire.client_twins import connected
from tests.wire.fake_router import FakeRouter, running

SMALL = Limits(max_message_bytes=64 << 10, max_batch=16, max_ids=50)


@pytest.fixture
def router() -> Iterator[FakeRouter]:
    yield from running(SMALL)


@pytest.fixture(params=["sync", "aio"])
def client(request: pytest.FixtureRequest, router: FakeRouter) -> Iterator[Any]:
    yield from connected(request.param, router.target)


@pytest.fixture
def papers(client: Any) -> Any:
    client.create_collection("papers")
    client.ingest(
        "papers",
        [
            {"id": f"d{n}", "title": f"title {n}", "text": f"word{n} common", "year": n}
            for n in range(20)
        ],
    )
    return client


def test_collections(client: Any, router: FakeRouter) -> None:
    made = client.create_collection(
        "vectors", encoder="none", dim=8, similarity="l2", chunk_tokens=0
    )
    assert (made.name, made.encoder, made.dim, made.similarity) == ("vectors", "none", 8, "l2")
    assert (made.kind, made.chunk_tokens, len(made.shards)) == ("single", 0, 2)
    client.create_collection("papers")
    assert [item.name for item in client.list_collections()] == ["papers", "vectors"]
    client.optimize("papers")
    with pytest.raises(CollectionExists):
        client.create_collection("papers")
    client.drop_collection("papers")
    with pytest.raises(CollectionNotFound):
        client.drop_collection("papers")


def test_accept_loss(client: Any, router: FakeRouter) -> None:
    client.accept_loss("papers", 1, router.loss)
    with pytest.raises(LossMismatch):
        client.accept_loss("papers", 1, "another")


def test_status(papers: Any) -> None:
    status = papers.status()
    assert status.processes[0].name == "router-0"
    assert status.collections[0].documents == 20
    assert status.limits["max_batch"] == 16
    assert status.controller_reachable


def test_search(papers: Any) -> None:
    answer = papers.search("papers", "word7 common", top_k=3)
    assert [hit.id for hit in answer] == ["d7", "d0", "d1"]
    best = answer[0]
    assert (best.score, best.title, best.text, best.payload) == (
        2.0,
        "title 7",
        "word7 common",
        {"year": 7},
    )
    assert best.chunk_text == "word7 "
    assert answer.coverage.ratio == 1.0
    assert answer.fingerprint == "f" * 64
    assert answer.timings.total_ms == 2.5
    assert len(answer.request_id) == 16


def test_search_without_fields(papers: Any, router: FakeRouter) -> None:
    (hit,) = papers.search("papers", "word7", top_k=1, fields=())
    assert (hit.id, hit.title, hit.text, hit.payload, hit.chunk) == ("d7", "", "", {}, None)


def test_vectors(client: Any) -> None:
    client.create_collection("vectors", encoder="none", dim=4)
    rows = np.eye(4, dtype=np.float32)
    client.ingest("vectors", [{"id": str(n), "vector": row} for n, row in enumerate(rows)])
    assert client.search("vectors", vector=rows[2], top_k=1)[0].id == "2"
    answers = client.search_batch("vectors", vectors=np.tile(rows, (10, 1)), top_k=1)
    assert [answer[0].id for answer in answers] == ["0", "1", "2", "3"] * 10


def test_batch(papers: Any, router: FakeRouter) -> None:
    texts = [f"word{n}" for n in range(20)]
    texts[5] = "  "
    answers = papers.search_batch("papers", texts, top_k=1)
    assert isinstance(answers[5], EmptyText)
    del answers[5]
    assert [answer[0].id for answer in answers] == [f"d{n}" for n in range(20) if n != 5]
    asked = [item for item in router.requests if isinstance(item, router_pb2.SearchBatchRequest)]
    assert [len(item.texts) for item in asked] == [16, 4]


def test_get_and_delete(papers: Any) -> None:
    assert papers.get("papers", "d3").payload == {"year": 3}
    assert papers.get("papers", "nothing") is None
    found = papers.get("papers", ["d3", "nothing", "d1"])
    assert [item and item.id for item in found] == ["d3", None, "d1"]
    report = papers.delete("papers", ["d3", "nothing"])
    assert (report.found, report.deleted, report.position) == ((True, False), 1, b"deleted")
    assert papers.delete("papers", "d3").deleted == 0


def test_replies_larger_than_a_message(client: Any, router: FakeRouter) -> None:
    client.create_collection("books")
    text = "common " * 1000
    books = [{"id": f"b{n:02}", "title": "t", "text": text, "n": n} for n in range(40)]
    assert client.ingest("books", books).stored == 40
    documents = client.get("books", [book["id"] for book in books])
    assert [document.text for document in documents] == [text] * 40
    answer = client.search("books", "common", top_k=40)
    assert [(hit.id, hit.text, hit.payload["n"]) for hit in answer] == [
        (f"b{n:02}", text, n) for n in range(40)
    ]
    answers = client.search_batch("books", ["common"] * 5, top_k=20)
    assert [[len(hit.text) for hit in each] for each in answers] == [[len(text)] * 20] * 5


def test_a_question_larger_than_a_message(papers: Any) -> None:
    with pytest.raises(LimitExceeded) as caught:
        papers.search("papers", "x" * (1 << 20))
    assert caught.value.metadata["limit"] == "max_message_bytes"
    answers = papers.search_batch("papers", ["word1", "x" * (1 << 20), "word2"], top_k=1)
    assert isinstance(answers[1], LimitExceeded)
    assert [answers[0][0].id, answers[2][0].id] == ["d1", "d2"]


def test_many_ids(papers: Any, router: FakeRouter) -> None:
    assert len(papers.get("papers", [f"d{n}" for n in range(120)])) == 120
    asked = [item for item in router.requests if isinstance(item, router_pb2.GetRequest)]
    assert [len(item.ids) for item in asked] == [50, 50, 20]


def test_insufficient_coverage(papers: Any, router: FakeRouter) -> None:
    router.missing = [common_pb2.MissingShard(shard=1, reason="SHARD_UNAVAILABLE")]
    with pytest.raises(InsufficientCoverage) as caught:
        papers.search("papers", "common")
    assert caught.value.metadata["missing"] == "1:SHARD_UNAVAILABLE"
    answer = papers.search("papers", "common", min_coverage=0.5)
    assert answer.coverage.missing[0].shard == 1
    assert answer.coverage.ratio == 0.5


def test_reads_are_repeated_once(papers: Any, router: FakeRouter) -> None:
    router.errors["Search"] = [EncoderUnavailable("gone")]
    assert len(papers.search("papers", "common")) == 10
    router.errors["Search"] = [EncoderUnavailable("gone"), ShardUnavailable("gone", shard=1)]
    with pytest.raises(ShardUnavailable) as caught:
        papers.search("papers", "common")
    assert caught.value.metadata == {"shard": "1"}
    router.errors["Delete"] = [ShardUnavailable("gone", shard=1)]
    with pytest.raises(ShardUnavailable):
        papers.delete("papers", "d1")


def test_no_repeat_past_the_deadline(papers: Any, router: FakeRouter) -> None:
    router.errors["Search"] = [ShardUnavailable("gone", retry_after_s=60.0)]
    started = time.monotonic()
    with pytest.raises(ShardUnavailable):
        papers.search("papers", "common", deadline_s=5.0)
    assert time.monotonic() - started < 4.0


def test_deadlines_travel(papers: Any, router: FakeRouter) -> None:
    papers.search("papers", "common", deadline_s=7.0)
    assert router.time_left_s["Search"] == pytest.approx(7.0, abs=1.0)
    with pytest.raises(DeadlineExceeded):
        papers.search("papers", "common", deadline_s=0.0)
    router.hang = threading.Event()
    started = time.monotonic()
    with pytest.raises(DeadlineExceeded):
        papers.search("papers", "common", deadline_s=0.2)
    assert time.monotonic() - started < 2.0
    router.hang.set()


def test_every_call_has_a_deadline(papers: Any, router: FakeRouter) -> None:
    papers.search("papers", "common")
    papers.search_batch("papers", ["common"])
    papers.get("papers", "d1")
    papers.delete("papers", "d1")
    papers.list_collections()
    papers.status()
    papers.optimize("papers")
    papers.accept_loss("papers", 0, router.loss)
    papers.drop_collection("papers")
    del router.time_left_s["Ingest"]  # bounded by its stall instead
    assert set(router.time_left_s) == {
        *("CreateCollection", "DropCollection", "ListCollections", "OptimizeCollection"),
        *("AcceptLoss", "GetStatus", "Search", "SearchBatch", "Get", "Delete"),
    }
    assert all(0 < left_s <= 601 for left_s in router.time_left_s.values())


def test_unreachable_names_the_target(client: Any, router: FakeRouter) -> None:
    router.stop()
    for ask in (
        client.status,
        lambda: client.search("papers", "words"),
        lambda: client.ingest("papers", []),
        lambda: client.create_collection("papers"),
    ):
        with pytest.raises(ClusterUnreachable, match=router.target) as caught:
            ask()
        assert isinstance(caught.value.__cause__, grpc.RpcError)
        assert isinstance(caught.value, ConnectionError)
    router.target = router.start()


def test_a_client_survives_a_restart(papers: Any, router: FakeRouter) -> None:
    papers.search("papers", "common")
    router.stop()
    router.start(router.port)
    deadline = time.monotonic() + 10
    while True:
        try:
            assert len(papers.search("papers", "common")) == 10
            break
        except ClusterUnreachable:
            assert time.monotonic() < deadline


def test_many_threads_share_a_client(router: FakeRouter) -> None:
    with shoal.connect(router.target) as client:
        client.create_collection("papers")
        client.ingest("papers", [{"id": f"d{n}", "text": f"word{n}"} for n in range(8)])
        found: dict[int, list[str]] = {}

        def ask(number: int) -> None:
            found[number] = [
                client.search("papers", f"word{number}", top_k=1)[0].id for _ in range(20)
            ]

        threads = [threading.Thread(target=ask, args=(number,)) for number in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert found == {number: [f"d{number}"] * 20 for number in range(8)}


def test_closed(papers: Any) -> None:
    papers.close()
    with pytest.raises(InvalidRequest, match="closed"):
        papers.status()
    with pytest.raises(InvalidRequest, match="closed"):
        papers.ingest("papers", [])


HEAVY = (
    "torch",
    "faiss",
    "ray",
    "transformers",
    "tokenizers",
    "safetensors",
    "crc32c",
    "prometheus_client",
    "grpc_reflection",
    "grpc_status",
    "uvloop",
)
LIGHT = """
import sys

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {heavy!r}:
            raise ImportError(name + " is not installed with the light client")

sys.meta_path.insert(0, Refuse())
import shoal, shoal.aio
from shoal.errors import ClusterUnreachable

with shoal.connect({target!r}) as client:
    client.create_collection("light")
    client.ingest("light", [{{"id": "a", "text": "words"}}])
    print(client.search("light", "words")[0].id)
"""


def test_the_client_needs_nothing_heavy(router: FakeRouter) -> None:
    script = LIGHT.format(heavy=HEAVY, target=router.target)
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.stdout, done.stderr) == ("a\n", "")


def test_naming_shoal_loads_no_grpc() -> None:
    script = "import shoal, shoal.types, sys; print('grpc' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout == "False\n"


def test_changes_of_size(client: Any, router: FakeRouter) -> None:
    report = client.scale(servers=4)
    assert report.taken_over == ("server-9 starts",)
    assert [(move.shard, move.to_server) for move in report.moves] == [(0, "server-1")]
    seen = client.status()
    assert seen.desired == {"router": 1, "server": 4}
    assert seen.pending[0] == "server-1 starts"
    client.drain("server-3")
    assert router.last(router_pb2.ScaleRequest).drain == "server-3"
    assert client.move("papers", 1, "server-1").from_server == "server-0"
    assert router.last(router_pb2.MoveShardRequest).shard == 1
    assert len(client.rebalance(dry_run=True)) == 1
    with pytest.raises(InvalidRequest, match="servers is -1"):
        client.scale(servers=-1)
    with pytest.raises(InvalidRequest, match="shard -1"):
        client.move("papers", -1, "server-1")
