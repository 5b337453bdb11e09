"""One locked file per process of a cluster: who runs, and where.

A process takes the lock of `<DIR>/run/<name>` before it does anything else and
holds it for life; the kernel lets it go however the process ends. So a held lock
is a living process: no process id is trusted that its owner does not vouch for,
and neither a reboot nor a reused id can deceive.
"""

import contextlib
import fcntl
import json
import os
import signal
import time
from dataclasses import asdict, dataclass
from pathlib import Path

_RECORD_BYTES = 1024
_LOCK_PATIENCE_S = 1.0
_LOCK_POLL_S = 0.01


@dataclass(frozen=True, slots=True)
class RunRecord:
    """What a living process says of itself.

    Attributes:
        name: "server-0", "controller", "supervisor", "ray".
        role: a role, or the name for what has none.
        pid: process id.
        incarnation: starts of that name, this one included.
        address: host:port once it listens, else empty.
        metrics_address: host:port of its Prometheus page, or empty.
    """

    name: str
    role: str
    pid: int
    incarnation: int = 1
    address: str = ""
    metrics_address: str = ""


class AlreadyRunning(Exception):
    """Another living process has that name."""


class RunFile:
    """This process's own lock and record."""

    def __init__(self, folder: Path, record: RunRecord) -> None:
        """Takes the lock of the record's name and publishes the record.

        Raises:
            AlreadyRunning: another process holds it.
        """
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / record.name
        self._file = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        if not self._lock():
            os.close(self._file)
            raise AlreadyRunning(f"{record.name} runs already: it holds the lock of {path}")
        self.write(record)

    def _lock(self) -> bool:
        # A reader holds the lock for an instant to see whether it is free.
        give_up = time.monotonic() + _LOCK_PATIENCE_S
        while True:
            try:
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() > give_up:
                    return False
                time.sleep(_LOCK_POLL_S)
            else:
                return True

    def write(self, record: RunRecord) -> None:
        """Publishes the record, whole, in one write."""
        os.pwrite(self._file, json.dumps(asdict(record)).ljust(_RECORD_BYTES).encode(), 0)

    def close(self) -> None:
        """Lets the lock go."""
        os.close(self._file)


def read_living(folder: Path, name: str) -> RunRecord | None:
    """The record of the living process of that name, or None."""
    try:
        file = os.open(folder / name, os.O_RDONLY)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return _parse(os.pread(file, _RECORD_BYTES, 0))
    finally:
        os.close(file)
    return None


def living(folder: Path) -> list[RunRecord]:
    """Records of every living process of a cluster, ascending by name."""
    names = sorted(entry.name for entry in folder.iterdir()) if folder.is_dir() else []
    return [record for name in names if (record := read_living(folder, name)) is not None]


def end(record: RunRecord, force: bool) -> None:
    """Signals a process; one that has just gone is no error."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(record.pid, signal.SIGKILL if force else signal.SIGTERM)


def _parse(data: bytes) -> RunRecord | None:
    # Empty between taking the lock for the first time and writing the record.
    return RunRecord(**json.loads(data)) if data.strip() else None
