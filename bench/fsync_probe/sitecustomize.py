"""Wraps os.fsync and os.fdatasync with a counter; see the package."""

import mmap
import os
import struct
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

_RECORD = struct.Struct("<Qd")


class _Counter:
    """Count and seconds in a mapped file, which outlives a killed process."""

    def __init__(self, path: Path) -> None:
        path.write_bytes(bytes(_RECORD.size))
        with path.open("r+b") as file:
            self._page = mmap.mmap(file.fileno(), _RECORD.size)
        self._lock = threading.Lock()
        self._count, self._seconds = 0, 0.0

    def wrapped(self, sync: Callable[[Any], None]) -> Callable[[Any], None]:
        def counted(descriptor: Any) -> None:
            start = time.perf_counter()
            try:
                sync(descriptor)
            finally:
                with self._lock:
                    self._count += 1
                    self._seconds += time.perf_counter() - start
                    _RECORD.pack_into(self._page, 0, self._count, self._seconds)

        return counted


if folder := os.environ.get("BENCH_FSYNC_FOLDER"):
    _counter = _Counter(Path(folder, f"{os.getpid()}.fsyncs"))
    os.fsync = _counter.wrapped(os.fsync)  # type: ignore[assignment]
    os.fdatasync = _counter.wrapped(os.fdatasync)  # type: ignore[assignment]
