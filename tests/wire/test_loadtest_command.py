"""`shoal loadtest` over real gRPC: output, JSON, picture, exit codes, and what it leaves behind."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner, Result

import shoal as shoal_client
from deploy.cli import app
from shoal.errors import DiskFull
from shoal.rpc.common.v1 import common_pb2
from tests.wire.fake_router import FakeRouter, running
from tests.wire.load_server import LoadServer, no_delay, one_slot, serving

pytestmark = pytest.mark.slow

POLL_S = 0.05


def shoal(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["loadtest", "papers", *arguments])


@pytest.fixture
def queries(tmp_path: Path) -> tuple[str, str]:
    file = tmp_path / "queries.txt"
    file.write_text("one\n\ntwo\nthree\n")
    return "--queries", str(file)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> Iterator[LoadServer]:
    with serving(no_delay()) as (target, server):
        monkeypatch.setenv("SHOAL_TARGET", target)
        yield server


@pytest.fixture
def router(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeRouter]:
    for router in running():
        monkeypatch.setenv("SHOAL_TARGET", router.target)
        with shoal_client.connect(router.target) as client:
            client.create_collection("papers")
        yield router


def test_a_rate(quick: LoadServer, queries: tuple[str, str]) -> None:
    done = shoal(*queries, "--rate", "80", "--duration", "1", "--processes", "2", "--json")
    assert (done.exit_code, done.stderr) == (0, "")
    found = json.loads(done.stdout)
    assert {
        *("requests", "errors", "errors_by_code", "partial", "offered_qps", "goodput_qps"),
        *("latency_ms", "client"),
    } <= set(found)
    assert (found["errors"], found["errors_by_code"], found["partial"]) == (0, {}, 0)
    assert found["requests"] == found["offered_qps"]
    assert 40 < found["requests"] < 120
    times = list(found["latency_ms"].values())
    assert list(found["latency_ms"]) == ["p50", "p90", "p99", "p999"]
    assert times == sorted(times)
    assert found["client"]["processes"] == 2
    # On a machine that is busy with other things, this may well be true.
    assert found["client"]["limited"] is bool(found["client"]["reasons"])
    assert 0 < found["client"]["processor_share"] < 1


def test_for_people(quick: LoadServer, queries: tuple[str, str]) -> None:
    told = shoal(*queries, "--closed", "2", "--duration", "0.5").stdout
    assert "0 failed, 0 partial" in told
    assert "of a core in the busiest of 1 processes" in told
    assert "p99.9" in told
    assert (
        "THE CLIENT WAS THE LIMIT" in shoal(*queries, "--rate", "30000", "--duration", "0.3").stdout
    )


def test_exit_codes(quick: LoadServer, queries: tuple[str, str]) -> None:
    brief = (*queries, "--rate", "30", "--duration", "0.5")
    quick.coverage = common_pb2.Coverage(
        documents_total=2, documents_covered=1, shards_total=2, shards_answered=1
    )
    partial = shoal(*brief, "--json")
    assert partial.exit_code == 4
    assert json.loads(partial.stdout)["partial"] == json.loads(partial.stdout)["requests"]
    for wrong in (
        ("--rate", "1", "--sweep"),
        ("--closed", "1", "--rate", "1"),
        ("--plot", "x.svg"),
        ("--mix", "search=0.5"),
        ("--rate", "0"),
    ):
        assert shoal(*queries, *wrong).exit_code == 2
    assert shoal(*brief, "--target", "127.0.0.1:1").exit_code == 3


def test_a_sweep_and_its_picture(
    queries: tuple[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    picture = tmp_path / "sweep.svg"
    with serving(one_slot(1 / 70)) as (target, _):
        monkeypatch.setenv("SHOAL_TARGET", target)
        done = shoal(
            *(*queries, "--sweep", "--duration", "1", "--deadline", "3"),
            *("--json", "--plot", str(picture)),
        )
    assert done.exit_code == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["knee_is_bounded"] is True
    assert 50 < found["knee_qps"] < 80
    assert len(found["steps"]) >= 3
    assert all("client" in step for step in found["steps"])
    drawn = picture.read_text()
    assert drawn.startswith("<?xml")
    assert "</svg>" in drawn


def test_a_mix_cleans_up(router: FakeRouter, queries: tuple[str, str]) -> None:
    brief = (*queries, "--mix", "search=0.5,ingest=0.5", "--rate", "60", "--duration", "0.5")
    done = shoal(*brief, "--json")
    assert done.exit_code == 0, done.stdout
    assert json.loads(done.stdout)["ingest_latency_ms"]["p50"] > 0
    stored = [
        document.document.id
        for stream in router.streams
        for message in stream.messages
        for document in message.documents
    ]
    assert stored
    assert all(identity.startswith("loadtest-") for identity in stored)
    assert router.collections["papers"].documents == {}
    router.refuse = lambda _: DiskFull("no space")
    refused = shoal(*brief)
    assert refused.exit_code == 1
    assert "RESOURCE_EXHAUSTED" in refused.stdout


def test_an_interrupted_run_cleans_up(router: FakeRouter, queries: tuple[str, str]) -> None:
    run = subprocess.Popen(
        [
            *(sys.executable, "-c", "from deploy.cli import main; main()", "loadtest", "papers"),
            *(*queries, "--mix", "ingest=1", "--rate", "50", "--duration", "60"),
        ],
        env={**os.environ, "SHOAL_TARGET": router.target},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    documents = router.collections["papers"].documents
    end = time.monotonic() + 30
    while not documents and time.monotonic() < end:
        time.sleep(POLL_S)
    assert documents
    run.send_signal(signal.SIGINT)
    told, _ = run.communicate(timeout=30)
    assert run.returncode not in (0, None)
    assert b"Traceback" not in told
    assert documents == {}


def test_without_its_extra_it_says_what_to_install(
    queries: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    done = shoal(*queries)
    assert (done.exit_code, done.stdout) == (1, "")
    assert "pip install 'shoal[loadtest]'" in done.stderr


def test_vectors_from_a_file(router: FakeRouter, tmp_path: Path) -> None:
    file = tmp_path / "queries.npy"
    np.save(file, np.arange(12, dtype=np.float32).reshape(3, 4))
    done = shoal("--queries", str(file), "--rate", "30", "--duration", "0.5")
    assert done.exit_code == 0, done.stdout + done.stderr
    asked = [each for each in router.requests if type(each).__name__ == "SearchRequest"]
    assert {each.query.WhichOneof("input") for each in asked} == {"vector"}
    assert {each.query.vector.columns for each in asked} == {4}


def test_what_is_wrong_is_said_before_any_load(router: FakeRouter, tmp_path: Path) -> None:
    file = tmp_path / "queries.txt"
    file.write_text("one\n")
    with shoal_client.connect(router.target) as client:
        client.drop_collection("papers")
    missing = shoal("--queries", str(file))
    assert missing.exit_code == 1
    assert "`shoal ls` lists them." in missing.stderr
    assert shoal("--queries", str(file), "--vectors").exit_code == 1
    file.write_text(" \n")
    empty = shoal("--queries", str(file))
    assert "give one a line" in empty.stderr
    (tmp_path / "bad.npy").write_bytes(b"no array")
    assert "no .npy file" in shoal("--queries", str(tmp_path / "bad.npy")).stderr


def test_vectors_need_an_encoder_that_serves(router: FakeRouter, queries: tuple[str, str]) -> None:
    none_serves = shoal(*queries, "--vectors")
    assert none_serves.exit_code == 1
    assert none_serves.stderr.startswith("error ENCODER_UNAVAILABLE")
    with shoal_client.connect(router.target) as client:
        client.drop_collection("papers")
        client.create_collection("papers", encoder="none", dim=4)
    no_encoder = shoal(*queries, "--vectors")
    assert no_encoder.stderr.startswith("error TEXT_NOT_SUPPORTED")
    assert ".npy" in no_encoder.stderr
