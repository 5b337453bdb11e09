"""A cluster of plain processes: a supervisor, which keeps a controller alive."""

import asyncio
import sys
import time
from dataclasses import dataclass

from deploy.backend import ClusterError, ClusterFile, Progress
from deploy.launchers.processes import log_path, log_tail, run_folder, spawn
from deploy.launchers.runfiles import end, living, read_living
from deploy.supervise import GRACE_S, SUPERVISOR, end_everything

_START_TIMEOUT_S = 30.0
_END_TIMEOUT_S = 30.0
_POLL_S = 0.05


@dataclass(frozen=True, slots=True)
class PlainBackend:
    """Implements `Backend`. What lives is told by the run files.

    Attributes:
        data: the cluster's folder.
        file: how it runs.
    """

    data: str
    file: ClusterFile

    def start(self, environment: dict[str, str], progress: Progress) -> None:
        """Starts the supervisor and waits until it holds its lock."""
        progress("starting processes")
        command = (sys.executable, "-m", "deploy.supervise", "--data", self.data)
        spawn(self.data, SUPERVISOR, command, environment)
        give_up = time.monotonic() + _START_TIMEOUT_S
        while read_living(run_folder(self.data), SUPERVISOR) is None:
            if time.monotonic() > give_up:
                raise ClusterError(f"the supervisor does not start: {self.trouble()}")
            time.sleep(_POLL_S)

    def running(self) -> list[str]:
        """Names of living processes."""
        return [record.name for record in living(run_folder(self.data))]

    def trouble(self) -> str:
        """The end of the supervisor's log."""
        tail = log_tail(self.data, SUPERVISOR)
        return f"{log_path(self.data, SUPERVISOR)} ends:\n{tail}"

    def end(self, progress: Progress) -> None:
        """Has the supervisor end everything; does it itself where that is gone."""
        run = run_folder(self.data)
        supervisor = read_living(run, SUPERVISOR)
        for record in living(run):
            progress(f"ending {record.name} (pid {record.pid})")
        if supervisor is not None:
            end(supervisor, force=False)
        give_up = time.monotonic() + _END_TIMEOUT_S
        while running := living(run):
            if read_living(run, SUPERVISOR) is None:
                asyncio.run(end_everything(self.data, GRACE_S))
            if time.monotonic() > give_up:
                left = ", ".join(f"{record.name} (pid {record.pid})" for record in running)
                raise ClusterError(f"still running: {left}")
            time.sleep(_POLL_S)
