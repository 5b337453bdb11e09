"""Counts fsyncs of processes that run with this folder on PYTHONPATH.

Python imports `sitecustomize` at start, which counts in a file named by
BENCH_FSYNC_FOLDER and the process id. Nothing in the product knows of it.
"""

import struct
from pathlib import Path

FOLDER_VARIABLE = "BENCH_FSYNC_FOLDER"
RECORD = struct.Struct("<Qd")


def read(folder: Path) -> tuple[int, float]:
    """Fsyncs so far, and the seconds they took, over all processes."""
    records = [RECORD.unpack(file.read_bytes()) for file in folder.glob("*.fsyncs")]
    return sum(count for count, _ in records), sum(seconds for _, seconds in records)
