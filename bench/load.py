"""Drives a gRPC method with h2load, a load generator in C that is not the bottleneck.

h2load posts one framed body (0x00, 4 bytes of big-endian length, the message)
over HTTP/2. It reads that body from its file anew for every request, so a
thread here overwrites the file about 1,000 times a second with the next of the
given bodies: neighbouring requests carry different vectors. (A request may
catch a body half overwritten: then its vector is the beginning of one and the
end of another, which is a valid question too.)

h2load counts HTTP statuses and never sees a gRPC status. An error's reply
carries no data, so the share of bytes that came back shows errors; whoever
calls this also checks answers with the real client before and after.
"""

import os
import re
import shutil
import struct
import subprocess
import tempfile
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np

ROTATE_S = 0.001
WARM_UP_S = 1
CONNECTIONS_MAX = 4
FIX = "h2load is not installed: apt-get update && apt-get install -y nghttp2-client"
_DONE = re.compile(r"requests: (\d+) total, .*?(\d+) succeeded, (\d+) failed")
_TRAFFIC = re.compile(r"traffic: .*?\((\d+)\) data")


class LoadToolMissing(RuntimeError):
    """h2load is not on the path; the message says how to get it."""


@dataclass(frozen=True, slots=True)
class Load:
    """What one run measured.

    Attributes:
        in_flight: calls under way at a time (closed loop).
        rate_per_s: finished calls a second, after the warm-up.
        mean_ms, p50_ms, p99_ms: time to the end of the answer.
        requests: calls measured.
        failed: calls that HTTP/2 failed.
        reply_bytes: mean data bytes of an answer, frame header included.
    """

    in_flight: int
    rate_per_s: float
    mean_ms: float
    p50_ms: float
    p99_ms: float
    requests: int
    failed: int
    reply_bytes: float

    def as_json(self) -> dict[str, Any]:
        """The fields, rounded for a result file."""
        return {name: _rounded(value) for name, value in asdict(self).items()}


def framed(message: bytes) -> bytes:
    """A message as gRPC sends it: uncompressed flag, length, bytes."""
    return struct.pack(">BI", 0, len(message)) + message


def version() -> str:
    """The tool's version line.

    Raises:
        LoadToolMissing: it is not installed.
    """
    tool = shutil.which("h2load")
    if tool is None:
        raise LoadToolMissing(FIX)
    return subprocess.run(
        [tool, "--version"], check=True, capture_output=True, text=True
    ).stdout.strip()


def run(address: str, method: str, messages: Sequence[bytes], in_flight: int, seconds: int) -> Load:
    """Posts the messages to `method` with `in_flight` calls under way.

    Args:
        address: "host:port".
        method: "/package.Service/Method".
        messages: serialised requests, all of one length; used in turn.
        in_flight: calls under way at a time.
        seconds: time measured, after a second of warm-up; h2load counts whole ones.

    Raises:
        LoadToolMissing: h2load is not installed.
        ValueError: the messages have different lengths.
        RuntimeError: h2load failed, or measured nothing.
    """
    version()
    bodies = [framed(message) for message in messages]
    if len({len(body) for body in bodies}) != 1:
        raise ValueError("the messages must have one length, since they share one file")
    connections = min(in_flight, CONNECTIONS_MAX)
    with tempfile.TemporaryDirectory(prefix="shoal-bench-") as folder:
        body, log = Path(folder, "body.bin"), Path(folder, "log.tsv")
        body.write_bytes(bodies[0])
        command = [
            "h2load",
            "--threads=1",
            f"--clients={connections}",
            f"--max-concurrent-streams={in_flight // connections}",
            f"--data={body}",
            "--header=content-type: application/grpc",
            "--header=te: trailers",
            f"http://{address}{method}",
        ]
        with _rotating(body, bodies):
            # Not h2load's own warm-up, whose bytes it would count as measured.
            _h2load([*command, f"--duration={WARM_UP_S}"])
            output = _h2load([*command, f"--duration={seconds}", f"--log-file={log}"])
        return _parsed(output, log, in_flight, seconds)


def _h2load(command: list[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"h2load failed: {done.stderr.strip() or done.stdout.strip()}")
    return done.stdout


@contextmanager
def _rotating(path: Path, bodies: Sequence[bytes]) -> Iterator[None]:
    """Overwrites the file with one body after the other until the block ends."""
    ended = threading.Event()
    descriptor = os.open(path, os.O_WRONLY)

    def rotate() -> None:
        for body in cycle(bodies):
            os.pwrite(descriptor, body, 0)
            if ended.wait(ROTATE_S):
                return

    thread = threading.Thread(target=rotate, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
        os.close(descriptor)


def _parsed(output: str, log: Path, in_flight: int, seconds: int) -> Load:
    done, traffic = _DONE.search(output), _TRAFFIC.search(output)
    if done is None or traffic is None or int(done[1]) == 0:
        raise RuntimeError(f"h2load measured nothing:\n{output}")
    requests = int(done[1])
    latencies_us = [int(row.split("\t")[2]) for row in log.read_text().splitlines()]
    latencies_ms = np.array(latencies_us) / 1_000
    return Load(
        in_flight=in_flight,
        rate_per_s=requests / seconds,
        mean_ms=float(latencies_ms.mean()),
        p50_ms=float(np.percentile(latencies_ms, 50)),
        p99_ms=float(np.percentile(latencies_ms, 99)),
        requests=requests,
        failed=int(done[3]),
        reply_bytes=int(traffic[1]) / requests,
    )


def _rounded(value: float) -> float:
    return value if isinstance(value, int) else float(f"{value:.4g}")
