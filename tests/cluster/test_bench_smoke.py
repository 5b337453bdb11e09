"""The speed benchmark runs from end to end on a small cluster, and measures what it says."""

import asyncio
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from bench import load
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
