"""Plain processes on this machine. They outlive the controller that started them."""

import asyncio
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from deploy.core.state import Role
from deploy.launchers.port import Handle, StartFailed, StartSpec
from deploy.launchers.runfiles import RunRecord, end, living

SERVE = (sys.executable, "-m", "deploy.serve")
_START_TIMEOUT_S = 600.0
_POLL_S = 0.2
_TAIL_BYTES = 4096


def run_folder(data: str) -> Path:
    """Where processes of a cluster keep their run files."""
    return Path(data) / "run"


def log_path(data: str, name: str) -> Path:
    """Where a process's stderr and stdout go."""
    return Path(data) / "process-logs" / f"{name}.log"


def spawn(
    data: str, name: str, command: Sequence[str], environment: Mapping[str, str], ready: int = -1
) -> int:
    """Starts a program in a session of its own, logging to its file; returns its pid.

    Args:
        data: the cluster's folder.
        name: of its log.
        command: program and arguments.
        environment: variables added to this process's own.
        ready: a file descriptor to pass on, or -1.
    """
    path = log_path(data, name)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab") as log:
        process = subprocess.Popen(  # noqa: S603 - our own interpreter and arguments
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env={**os.environ, **environment},
            start_new_session=True,
            pass_fds=() if ready < 0 else (ready,),
        )
    # It is waited for by its pid, also by a controller that is not its parent.
    process.returncode = 0
    return process.pid


def log_tail(data: str, name: str, lines: int = 5) -> str:
    """The last lines that a process logged; empty if it logged nothing."""
    try:
        with log_path(data, name).open("rb") as log:
            log.seek(0, os.SEEK_END)
            log.seek(max(0, log.tell() - _TAIL_BYTES))
            text = log.read().decode(errors="replace")
    except FileNotFoundError:
        return ""
    return "\n".join(text.rstrip().splitlines()[-lines:])


async def gone(pid: int) -> None:
    """Returns when a process has ended, a child of this one or not."""
    if sys.platform != "linux":
        while _exists(pid):  # noqa: ASYNC110 - nothing tells, without pidfd
            await asyncio.sleep(_POLL_S)
        return
    try:
        notice = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    loop, ended = asyncio.get_running_loop(), asyncio.Event()
    loop.add_reader(notice, ended.set)
    try:
        await ended.wait()
    finally:
        loop.remove_reader(notice)
        os.close(notice)
        _reap(pid)


def _reap(pid: int) -> bool:
    """Takes the exit status of a child that has ended."""
    try:
        return os.waitpid(pid, os.WNOHANG)[0] == pid
    except ChildProcessError:
        return False


def _exists(pid: int) -> bool:
    if _reap(pid):
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


@dataclass(frozen=True, slots=True)
class ProcessHandle:
    """A process known by its run record. Implements `Handle`."""

    data: str
    record: RunRecord

    @property
    def name(self) -> str:
        """As in its spec."""
        return self.record.name

    @property
    def role(self) -> Role:
        """What it does."""
        return Role(self.record.role)

    @property
    def incarnation(self) -> int:
        """As in its spec."""
        return self.record.incarnation

    @property
    def address(self) -> str:
        """host:port where it listens."""
        return self.record.address

    @property
    def metrics_address(self) -> str:
        """host:port of its Prometheus page; empty if it serves none."""
        return self.record.metrics_address

    @property
    def pid(self) -> int:
        """Process id."""
        return self.record.pid

    async def exited(self) -> str:
        """Returns when the process is gone, with the end of its log."""
        await gone(self.pid)
        return log_tail(self.data, self.name)

    async def stop(self, grace_s: float) -> None:
        """Asks it to end, ends it by force after grace_s, returns when it is gone."""
        await end_record(self.record, grace_s)


async def end_record(record: RunRecord, grace_s: float) -> None:
    """SIGTERM, SIGKILL after grace_s; returns when the process is gone."""
    end(record, force=False)
    try:
        await asyncio.wait_for(gone(record.pid), grace_s)
    except TimeoutError:
        end(record, force=True)
        await gone(record.pid)


class ProcessLauncher:
    """Starts `python -m deploy.serve ROLE NAME` on this machine. Implements `Launcher`."""

    def __init__(self, data: str, command: Sequence[str] = SERVE) -> None:
        self._data = data
        self._command = tuple(command)

    async def start(self, spec: StartSpec) -> Handle:
        """Starts a process and waits until it listens.

        Raises:
            StartFailed: it ended before, or took longer than ten minutes.
        """
        reader, writer = os.pipe()
        arguments = (
            spec.role.value,
            spec.name,
            *("--data", self._data),
            *("--incarnation", str(spec.incarnation)),
            *("--ready-fd", str(writer)),
        )
        try:
            pid = spawn(
                self._data, spec.name, (*self._command, *arguments), spec.environment, writer
            )
        finally:
            os.close(writer)
        record = RunRecord(spec.name, spec.role.value, pid, spec.incarnation)
        try:
            line = await asyncio.wait_for(_read_line(reader), _START_TIMEOUT_S)
        except (TimeoutError, asyncio.CancelledError):
            end(record, force=True)
            raise
        if not line:
            await end_record(record, grace_s=0.0)
            raise StartFailed(log_tail(self._data, spec.name) or "it ended without a word")
        address, _, metrics_address = line.partition(" ")
        return ProcessHandle(
            self._data, replace(record, address=address, metrics_address=metrics_address)
        )

    async def adopt(self) -> list[Handle]:
        """Services that run already. One that does not listen yet is ended: whoever
        waited for it to be ready is gone.
        """
        adopted: list[Handle] = []
        roles = {role.value for role in Role if role is not Role.CONTROLLER}
        for record in living(run_folder(self._data)):
            if record.role not in roles:
                continue
            if record.address:
                adopted.append(ProcessHandle(self._data, record))
            else:
                await end_record(record, grace_s=0.0)
        return adopted

    def cores(self) -> int:
        """Cores that this process may use."""
        if sys.platform == "linux":
            return len(os.sched_getaffinity(0))
        return os.cpu_count() or 1

    def gpus(self) -> int:
        """None are reserved: encoders choose a device by themselves."""
        return 0


async def _read_line(reader: int) -> str:
    """The first line that comes through a pipe; empty if it closes before."""
    loop = asyncio.get_running_loop()
    stream = asyncio.StreamReader()
    with os.fdopen(reader, "rb", buffering=0) as pipe:
        transport, _ = await loop.connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(stream), pipe
        )
        try:
            return (await stream.readline()).decode().strip()
        finally:
            transport.close()
