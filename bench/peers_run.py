"""Runs each peer's command in the peers' own virtual environment, one after the other."""

import json
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bench.report import ROOT
from bench.vectors import Vectors

PYTHON = ROOT / ".bench-venv" / "bin" / "python"
PEERS = {
    "chroma": "server, Python HTTP client",
    "lancedb": "in process",
    "milvus_lite": "in process",
    "hnswlib": "in process, a library",
    "usearch": "in process, a library",
}
TIMEOUT_S = 1_800


def run_all(
    given: Vectors, exact: NDArray[np.int64], least_recall: float, seconds: float
) -> dict[str, Any]:
    """Each peer's figures, or what went wrong with it, by name."""
    if not PYTHON.exists():
        return {name: {"error": "run `make bench-peers` to install the peers"} for name in PEERS}
    with tempfile.TemporaryDirectory(prefix="shoal-bench-") as folder:
        file = Path(folder, "vectors.npz")
        np.savez(file, documents=given.documents, queries=given.queries, exact=exact)
        return {
            name: {"how": how, **_run(name, file, least_recall, seconds)}
            for name, how in PEERS.items()
        }


def _run(name: str, file: Path, least_recall: float, seconds: float) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(prefix="shoal-bench-") as folder:
        command = [
            str(PYTHON),
            "-m",
            f"bench.peers.run_{name}",
            f"--vectors={file}",
            f"--recall={least_recall}",
            f"--seconds={seconds}",
            f"--folder={folder}",
        ]
        try:
            done = subprocess.run(
                command, cwd=ROOT, capture_output=True, text=True, timeout=TIMEOUT_S, check=False
            )
        except subprocess.TimeoutExpired:
            return {"error": f"not done after {TIMEOUT_S} s"}
    if done.returncode != 0:
        said = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
        return {"error": f"exit status {done.returncode}: {said}"}
    result: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return result
