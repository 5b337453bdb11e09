"""The speed benchmark runs from end to end on a small cluster, and measures what it says."""

import asyncio
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from bench import load, overload, page_overload, report, slowed
from shoal.rpc.router.v1 import router_pb2
from shoal.wire.server import Context, GrpcServer, RawHandler

ROOT = Path(__file__).resolve().parents[2]
SERVICE = router_pb2.DESCRIPTOR.services_by_name["SearchService"]
BODIES = [bytes([number]) * 1_600 for number in range(200)]

needs_h2load = pytest.mark.skipif(shutil.which("h2load") is None, reason=load.FIX)


class Recorder:
    """A server that keeps what it was sent."""

    def __init__(self) -> None:
        self.seen: list[bytes] = []

    async def record(self, request: bytes, context: Context) -> bytes:
        self.seen.append(request)
        return b"0123456789"

    async def Ingest(self, requests: object, context: Context) -> None:  # noqa: N802
        raise NotImplementedError


@needs_h2load
@pytest.mark.slow
async def test_the_load_generator_varies_its_requests() -> None:
    recorder = Recorder()
    handlers: dict[str, RawHandler] = {
        method.name: recorder.record for method in SERVICE.methods if not method.server_streaming
    }
    server = GrpcServer(1 << 20)
    server.add(SERVICE, recorder, handlers)
    address = await server.start("127.0.0.1", 0)
    try:
        path = f"/{SERVICE.full_name}/Search"
        measured = await asyncio.to_thread(load.run, address, path, BODIES, 8, 1)
    finally:
        await server.stop(0)
    assert measured.failed == 0
    assert measured.reply_bytes == pytest.approx(len(load.framed(b"0123456789")), rel=0.02)
    assert 0 < measured.p50_ms <= measured.p99_ms
    assert {len(request) for request in recorder.seen} == {1_600}
    assert len(set(recorder.seen)) >= 50


@needs_h2load
@pytest.mark.slow
def test_quick_run_of_the_speed_benchmark(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "bench.single", "--quick", f"--out={tmp_path}"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "single.json").read_text())
    assert result["shoal"]["recall@10"] >= 0.99
    assert result["shoal"]["index"]["documents"] == result["data"]["shape"][0]
    checks = result["checks"]
    assert checks["answers_same_after_load"]
    assert checks["calls_refused"] == checks["http_failures"] == 0
    for group, least in checks["reply_bytes_least"].items():
        assert least > 0.9 * checks["reply_bytes_expected"][group]
    assert {line["name"] for line in result["bars"]} >= {"SearchBatch of 64 / raw FAISS"}
    assert (tmp_path / "single.svg").read_text().startswith("<?xml")


def test_processes_are_slowed_by_their_environment_alone() -> None:
    """The wrapper is in place before anything is served, and nowhere else."""
    code = (
        "import shard_service.shard as s, encoder_service.backends.torch_backend as t;"
        "print(s.Shard.search.__module__, t.TorchBackend.encode.__module__)"
    )

    def wrapped() -> list[str]:
        command = [sys.executable, "-c", code]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()

    with slowed.environment(**{slowed.SEARCH_VARIABLE: "0.5", slowed.ENCODE_VARIABLE: "0.5"}):
        assert wrapped() == ["sitecustomize", "sitecustomize"]
    assert wrapped() == ["shard_service.shard", "encoder_service.backends.torch_backend"]


def load_of(goodput: float, p99_ms: float, refused: int = 0) -> dict[str, object]:
    return {
        "offered_qps": goodput,
        "goodput_qps": goodput,
        "errors_by_code": {"RESOURCE_EXHAUSTED": refused} if refused else {},
        "p50_ms": p99_ms / 2,
        "p99_ms": p99_ms,
        "refusal_p99_ms": 3.0 if refused else None,
        "resident_mib": {"router-0": 90.0},
        "load_average": 1.0,
    }


@pytest.mark.parametrize(
    ("twice", "calm", "missed"),
    [
        (load_of(50, 300, 50), load_of(25, 100), set()),
        (load_of(40, 300, 50), load_of(25, 100), {"x: goodput at 2x / peak"}),
        (load_of(50, 500, 50), load_of(25, 100), {"x: p99 at 2x / p99 at 0.8x"}),
        (load_of(50, 300, 50), load_of(25, 40), {"x: p99 beside an ingest / without"}),
    ],
)
def test_bars_of_overload(
    twice: dict[str, object], calm: dict[str, object], missed: set[str]
) -> None:
    steps = {"0.8": load_of(40, 200), "1.0": load_of(48, 250), "2.0": twice}
    part = {
        "capacity_qps": 50.0,
        "steps": steps | dict.fromkeys(("5.0", "10.0"), load_of(50, 350, 200)),
        "calm": calm,
        "burst": load_of(50, 400, 100),
        "after_burst": load_of(25, 50),
        "with_ingest": load_of(25, 150),
        "ingested_per_s": 1_000.0,
        "hints": {
            "refused": 4,
            "typed": 4,
            "least_retry_after_s": 0.1,
            "most_retry_after_s": 0.2,
        },
    }
    bars = overload.bars("x", part, 5_000.0)
    assert {bar["name"] for bar in bars if not bar["reached"]} == missed
    result = {
        **report.surroundings(),
        "sleep_s": {"a question": 0.02},
        "step_s": 20.0,
        "niceness": 0,
        "echo_qps": 5_000.0,
        "parts": {"shards": part},
        "bars": bars,
    }
    page = page_overload.overload(result)
    assert page.count("**no**") == len(missed)
    assert "| 2 | " in page
