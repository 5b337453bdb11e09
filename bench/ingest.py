"""Does the cost of storing a document grow with the collection?

Vectors given, two shard processes, `auto` index: documents a second in ten
equal windows of one ingest, at 10,000 and at 100,000 documents; the fsyncs
behind them, and the memory afterwards. Sealing and merging run meanwhile, on
the same cores, and are part of what is measured: so a run is faster until its
first seal, and 10,000 documents may be stored before it. Whether the cost
grows shows in the windows after that.

Example:
    python -m bench.ingest
"""

import argparse
import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from bench import fsync_probe, measured, report, vectors
from bench.cluster import running
from shoal import Client, IngestReport

SIZES = (10_000, 100_000)
WINDOWS = 10
GROWTH = 0.7  # share of the earlier rate that the later one is to keep
SHARDS = 2


class Progress:
    """(seconds, documents acknowledged) while an ingest runs."""

    def __init__(self) -> None:
        self._start = time.perf_counter()
        self.seconds, self.documents = [0.0], [0]

    def __call__(self, so_far: IngestReport) -> None:
        """Notes how far it is."""
        self.seconds.append(time.perf_counter() - self._start)
        self.documents.append(so_far.documents)

    def rates(self, count: int) -> list[float]:
        """Documents a second in each of WINDOWS equal parts."""
        edges = np.interp(np.linspace(0, count, WINDOWS + 1), self.documents, self.seconds)
        return [round(count / WINDOWS / seconds, 1) for seconds in np.diff(edges).tolist()]


def documents(rows: measured.Rows) -> Iterator[dict[str, Any]]:
    """What is stored."""
    for row, vector in enumerate(rows):
        yield {"id": measured.document_id(row), "vector": vector}


def measure(given: vectors.Vectors, count: int) -> dict[str, Any]:
    """One ingest into an empty cluster."""
    with tempfile.TemporaryDirectory(prefix="shoal-bench-") as folder:
        os.environ[fsync_probe.FOLDER_VARIABLE] = folder
        found = [str(Path(fsync_probe.__file__).parent), os.environ.get("PYTHONPATH", "")]
        os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, found))
        with running(shards=SHARDS, encoders=0) as cluster, cluster.connect() as client:
            return _ingested(client, given.documents[:count], Path(folder)) | {
                "resident_mib": cluster.resident_mib(),
                "cpu_s": {name: round(spent, 2) for name, spent in cluster.cpu_s().items()},
            }


def _ingested(client: Client, rows: measured.Rows, folder: Path) -> dict[str, Any]:
    client.create_collection(measured.NAME, encoder="none", dim=rows.shape[1], similarity="dot")
    fsyncs_before, fsync_s_before = fsync_probe.read(folder)
    progress = Progress()
    stored = client.ingest(measured.NAME, documents(rows), progress=progress)
    fsyncs, fsync_s = fsync_probe.read(folder)
    again = Progress()
    repeated = client.ingest(measured.NAME, documents(rows), progress=again)
    if (stored.stored, repeated.unchanged) != (len(rows), len(rows)):
        raise RuntimeError(f"not every document was stored: {stored}, then {repeated}")
    rates = progress.rates(len(rows))
    return {
        "documents": len(rows),
        "seconds": round(progress.seconds[-1], 2),
        "documents_per_s": round(len(rows) / progress.seconds[-1], 1),
        "documents_per_s_by_window": rates,
        "last_three_windows_per_first_three": round(sum(rates[-3:]) / sum(rates[:3]), 3),
        "last_three_windows_per_middle_three": round(sum(rates[-3:]) / sum(rates[3:6]), 3),
        "fsyncs": fsyncs - fsyncs_before,
        "fsync_s": round(fsync_s - fsync_s_before, 2),
        "again_unchanged_per_s": round(len(rows) / again.seconds[-1], 1),
        "collection": measured.described(client.status().collections[0]),
    }


def main() -> None:
    """Measures both sizes, prints JSON and writes it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=vectors.default_data())
    parser.add_argument("--out", type=Path, default=report.RESULTS)
    parser.add_argument("--cores", type=int, default=2)
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES)
    arguments = parser.parse_args()
    report.keep_to_cores(arguments.cores)
    result: dict[str, Any] = {"benchmark": "ingest", **report.surroundings()}
    given = vectors.load(arguments.data)
    runs = [measure(given, count) for count in arguments.sizes]
    result["data"] = given.source
    result["runs"] = runs
    growth = runs[-1]["documents_per_s"] / runs[0]["documents_per_s"]
    result["bars"] = [
        report.bar(
            f"rate of the last three windows / the first three, {run['documents']} documents",
            run["last_three_windows_per_first_three"],
            least=GROWTH,
        )
        for run in runs
    ] + [
        report.bar(f"rate at {arguments.sizes[-1]} / at {arguments.sizes[0]}", growth, least=GROWTH)
    ]
    report.keep("ingest", result, arguments.out)


if __name__ == "__main__":
    main()
