"""The command line against a router over real gRPC: output, JSON, exit codes."""

import gzip
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from deploy.cli import app
from shoal.errors import CorruptLog, ShardUnavailable
from shoal.rpc.common.v1 import common_pb2
from shoal.rpc.router.v1 import router_pb2
from shoal.settings import Limits
from tests.wire.fake_router import FakeRouter, running

CORPUS = [
    {"_id": f"d{n}", "title": f"title {n}", "text": f"word{n} common", "metadata": {"n": n}}
    for n in range(30)
]


@pytest.fixture
def router(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeRouter]:
    for router in running(Limits()):
        monkeypatch.setenv("SHOAL_TARGET", router.target)
        yield router


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    file = tmp_path / "corpus.jsonl.gz"
    file.write_bytes(gzip.compress(lines_of(*CORPUS)))
    return file


@pytest.fixture
def papers(router: FakeRouter, corpus: Path) -> FakeRouter:
    assert shoal("create", "papers").exit_code == 0
    assert shoal("ingest", "papers", str(corpus)).exit_code == 0
    return router


def lines_of(*documents: object) -> bytes:
    return b"".join(json.dumps(document).encode() + b"\n" for document in documents)


def shoal(*arguments: str, stdin: bytes | None = None) -> Result:
    return CliRunner().invoke(app, arguments, input=stdin)


def test_collections(router: FakeRouter) -> None:
    made = shoal("create", "papers", "--kind", "single", "--index", "hnsw", "--json")
    assert json.loads(made.stdout)["index"] == "hnsw"
    options = ("--encoder", "none", "--dim", "8", "--similarity", "l2", "--chunk-tokens", "0")
    vectors = shoal("create", "vectors", *options, "--shards", "3")
    assert (vectors.exit_code, "vectors" in vectors.stdout) == (0, True)
    request = router.last(router_pb2.CreateCollectionRequest)
    assert (request.dim, request.shards, request.HasField("chunk_tokens")) == (8, 3, True)
    assert [item["name"] for item in json.loads(shoal("ls", "--json").stdout)["collections"]] == [
        "papers",
        "vectors",
    ]
    assert "hnsw" in shoal("ls").stdout
    again = shoal("create", "papers")
    assert again.exit_code == 1
    assert again.stderr.startswith("error COLLECTION_EXISTS: ")
    assert shoal("optimize", "papers").exit_code == 0
    assert shoal("drop", "papers").exit_code == 0
    assert shoal("drop", "vectors").exit_code == 0
    gone = shoal("drop", "papers")
    assert (gone.exit_code, gone.stdout) == (1, "")
    assert "`shoal ls` lists them." in gone.stderr
    assert "shoal create" in shoal("ls").stdout


def test_accept_loss(papers: FakeRouter) -> None:
    assert shoal("accept-loss", "papers", "1", papers.loss).exit_code == 0
    other = shoal("accept-loss", "papers", "1", "another")
    assert (other.exit_code, other.stderr.split(":")[0]) == (1, "error LOSS_MISMATCH")


def test_ingest_again_skips(papers: FakeRouter, corpus: Path) -> None:
    again = shoal("ingest", "papers", str(corpus))
    assert again.exit_code == 0
    assert "0 stored, 30 unchanged, 0 refused" in again.stdout
    assert again.stderr == ""
    kept = papers.collections["papers"].documents["d3"].document
    assert (kept.title, kept.text) == ("title 3", "word3 common")
    assert json.loads(kept.payload) == {"metadata": {"n": 3}}


def test_ingest_from_stdin_with_bad_lines(papers: FakeRouter) -> None:
    stdin = b'{"_id":"a","text":"x"}\nnot json\n{"text":"no id"}\n\n{"_id":"b","text":"y","z":1}\n'
    done = shoal("ingest", "papers", "-", stdin=stdin)
    assert done.exit_code == 1
    assert "2 stored, 0 unchanged, 2 refused" in done.stdout
    told = done.stderr.splitlines()
    assert told[0].startswith("stdin:2: this is no JSON")
    assert told[1].startswith("stdin:3: '' was refused: INVALID_ID")


def test_ingest_json(papers: FakeRouter, tmp_path: Path) -> None:
    file = tmp_path / "bad.jsonl"
    given = [{"_id": "a", "text": "one"}, {"_id": "a", "text": "two"}, {"_id": 5}]
    file.write_bytes(lines_of(*given) + b"[1]\n")
    done = shoal("ingest", "papers", str(file), "--json")
    assert done.exit_code == 1
    report = json.loads(done.stdout)
    assert (report["stored"], report["duplicates"]) == (2, 1)
    assert [(item["id"], item["reason"], item["line"]) for item in report["rejected"]] == [
        ("5", "INVALID_ID", 3)
    ]
    assert [(item["file"], item["line"]) for item in report["bad_lines"]] == [(str(file), 4)]


def test_ingest_says_duplicates(papers: FakeRouter) -> None:
    stdin = lines_of({"_id": "a", "text": "one"}, {"_id": "a", "text": "two"})
    done = shoal("ingest", "papers", "-", stdin=stdin)
    assert (done.exit_code, "1 duplicate ids" in done.stdout) == (0, True)


def test_ingest_strict(papers: FakeRouter) -> None:
    done = shoal("ingest", "papers", "-", "--strict", stdin=b'{"_id":"a","text":"x"}\nnot json\n')
    assert done.exit_code == 1
    assert done.stderr.startswith("error INVALID_REQUEST: stdin:2: this is no JSON")
    done = shoal(
        "ingest", "papers", "-", "--strict", stdin=b'{"_id":"a","text":"x"}\n{"text":"y"}\n'
    )
    assert done.exit_code == 1
    assert done.stderr.startswith("error INVALID_ID: document 1")
    assert "It is at stdin:2." in done.stderr


def test_ingest_usage(papers: FakeRouter) -> None:
    assert shoal("ingest", "papers", "missing.jsonl").exit_code == 2
    assert shoal("ingest", "papers").exit_code == 2


def test_search(papers: FakeRouter) -> None:
    found = shoal("search", "papers", "word7 common", "-k", "2")
    assert found.exit_code == 0
    for part in ("title 7", "d7", "2.0000", "word7", "coverage 1.000", "encode 1.5"):
        assert part in found.stdout
    answer = json.loads(shoal("search", "papers", "word7 common", "-k", "2", "--json").stdout)
    assert list(answer) == ["hits", "coverage", "fingerprint", "timings"]
    assert [hit["id"] for hit in answer["hits"]] == ["d7", "d0"]
    assert answer["hits"][0]["payload"] == {"metadata": {"n": 7}}


def test_search_that_cannot_be(papers: FakeRouter) -> None:
    zero = shoal("search", "papers", "words", "-k", "0")
    assert (zero.exit_code, zero.stderr.split(":")[0]) == (1, "error INVALID_TOP_K")
    empty = shoal("search", "papers", " ")
    assert (empty.exit_code, empty.stderr.split(":")[0]) == (1, "error EMPTY_TEXT")
    papers.errors["Search"] = [CorruptLog("shard 1: records 7 to 9 are damaged")]
    corrupt = shoal("search", "papers", "words")
    assert (corrupt.exit_code, corrupt.stderr.split(":")[0]) == (1, "error CORRUPT_LOG")


def test_a_missing_shard_exits_with_4(papers: FakeRouter) -> None:
    papers.missing = [common_pb2.MissingShard(shard=1, reason="SHARD_UNAVAILABLE")]
    whole = shoal("search", "papers", "common")
    assert (whole.exit_code, whole.stdout) == (4, "")
    assert whole.stderr.startswith("error INSUFFICIENT_COVERAGE: ")
    part = shoal("search", "papers", "common", "--min-coverage", "0.5")
    assert part.exit_code == 4
    assert "shard 1 missing: SHARD_UNAVAILABLE" in part.stdout


def test_unreachable_exits_with_3(router: FakeRouter, corpus: Path) -> None:
    router.stop()
    for arguments in (
        ("ls",),
        ("search", "papers", "words"),
        ("get", "papers", "d1"),
        ("create", "papers"),
        ("ingest", "papers", str(corpus)),
    ):
        done = shoal(*arguments, "--target", router.target)
        assert done.exit_code == 3, arguments
        assert done.stderr.startswith(
            f"error CLUSTER_UNREACHABLE: nothing answers at {router.target}"
        )
        assert "shoal up" in done.stderr
    router.start(router.port)


def test_get_and_delete(papers: FakeRouter) -> None:
    document = json.loads(shoal("get", "papers", "d3", "--json").stdout)
    assert document == {
        "id": "d3",
        "title": "title 3",
        "text": "word3 common",
        "payload": {"metadata": {"n": 3}},
    }
    assert "text: word3 common" in shoal("get", "papers", "d3").stdout
    missing = shoal("get", "papers", "nothing")
    assert (missing.exit_code, missing.stdout, missing.stderr) == (1, "", "not found: nothing\n")
    done = shoal("delete", "papers", "d3", "nothing", "--json")
    assert json.loads(done.stdout) == {"deleted": 1, "not_found": ["nothing"]}
    again = shoal("delete", "papers", "d3", "d4")
    assert (again.exit_code, again.stdout, again.stderr) == (0, "1 deleted\n", "not found: d3\n")


@pytest.fixture
def judged(tmp_path: Path) -> tuple[str, ...]:
    queries, qrels = tmp_path / "queries.jsonl.gz", tmp_path / "qrels.tsv"
    asked = [{"_id": f"q{n}", "text": f"word{n}"} for n in range(20)]
    queries.write_bytes(gzip.compress(lines_of(*asked, {"_id": "unjudged", "text": "word"})))
    # Half of the judged documents rank first, the others are not stored.
    pairs = [f"q{n}\t{'d' if n % 2 else 'x'}{n}\t1" for n in range(20)]
    qrels.write_text("\n".join(["query-id\tcorpus-id\tscore", *pairs]) + "\n")
    return ("--queries", str(queries), "--qrels", str(qrels))


def test_eval(papers: FakeRouter, judged: tuple[str, ...]) -> None:
    done = shoal("eval", "papers", *judged, "--json")
    assert done.exit_code == 0, done.stderr
    found = json.loads(done.stdout)
    assert list(found) == ["ndcg@10", "mrr@10", "recall@100", "queries", "latency_ms"]
    assert (found["ndcg@10"], found["mrr@10"], found["recall@100"]) == (0.5, 0.5, 0.5)
    assert found["queries"] == 20
    assert 0 < found["latency_ms"]["p50"] <= found["latency_ms"]["p99"]
    asked = [request for request in papers.requests if "Search" in type(request).__name__]
    assert {request.options.top_k for request in asked} == {100}
    assert all(not request.options.fields for request in asked)
    assert "ndcg@10     0.5000" in shoal("eval", "papers", *judged).stdout


def test_eval_is_all_or_nothing(papers: FakeRouter, judged: tuple[str, ...]) -> None:
    papers.errors["Search"] = [ShardUnavailable("gone")] * 2
    done = shoal("eval", "papers", *judged)
    assert (done.exit_code, done.stdout) == (1, "")
    assert shoal("eval", "papers", "--queries", "nofile", "--qrels", "nofile").exit_code == 2


def test_the_script_itself(papers: FakeRouter) -> None:
    """A real process: exit codes, and no colours where nobody looks."""

    def script(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-c", "from deploy.cli import main; main()", *arguments],
            env={**os.environ, "SHOAL_TARGET": papers.target},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    found = script("search", "papers", "word7")
    assert (found.returncode, found.stderr) == (0, "")
    assert "\x1b" not in found.stdout
    assert script("search", "nothing", "word7").returncode == 1
    assert script("search", "papers").returncode == 2
    assert script("ls", "--target", "127.0.0.1:1").returncode == 3


def test_help_loads_nothing_heavy() -> None:
    script = (
        "import sys, deploy.cli;"
        "heavy = {'torch', 'faiss', 'ray', 'grpc', 'numpy', 'ir_measures', 'hdrh', 'matplotlib'};"
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout == "[]\n"


def test_scaling_shows_what_is_left_until_nothing_is(router: FakeRouter) -> None:
    done = shoal("scale", "--servers", "2", "--routers", "1")
    assert done.exit_code == 0, done.stderr
    assert "done: 1 routers, 2 servers" in done.stdout
    assert "server-1" in done.stdout
    assert done.stderr.splitlines() == [
        "takes over from a change under way: server-9 starts",
        "server-1 starts",
        "papers/0 moves from server-0 to server-1",
    ]
    request = router.last(router_pb2.ScaleRequest)
    assert (request.servers, request.routers, request.HasField("encoders")) == (2, 1, False)
    drained = shoal("drain", "server-1", "--json")
    assert json.loads(drained.stdout) == {
        "moves": [
            {
                "collection": "papers",
                "shard": 0,
                "from_server": "server-0",
                "to_server": "server-1",
                "bytes": 7_000,
            }
        ],
        "desired": {"router": 1, "server": 1},
        "pending": [],
    }


def test_a_change_that_is_not_done_in_time_says_so(router: FakeRouter) -> None:
    late = shoal("scale", "--servers", "2", "--timeout", "0")
    assert late.exit_code == 1
    assert "not done after 0 s, and goes on: server-1 starts; papers/0 moves" in late.stderr
    assert shoal("scale").exit_code == 2, "it says nothing to change"


def test_moving_and_rebalancing(router: FakeRouter) -> None:
    assert "7,000" in shoal("move", "papers", "0", "--to", "server-1").stdout
    assert router.last(router_pb2.MoveShardRequest).to_server == "server-1"
    plan = shoal("rebalance", "--dry-run", "--json")
    assert [move["to_server"] for move in json.loads(plan.stdout)] == ["server-1"]
    assert router.last(router_pb2.RebalanceRequest).dry_run
    assert "done" in shoal("rebalance").stdout
