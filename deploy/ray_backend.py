"""A cluster of Ray actors, in a local Ray of its own or in an existing one."""

import logging
import os
import secrets
import shutil
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayError

from deploy.backend import ClusterError, ClusterFile, Mode, Progress
from deploy.core.shares import Share
from deploy.launchers.processes import ProcessLauncher, log_path, log_tail, run_folder, spawn
from deploy.launchers.ray_actors import CONTROLLER, create_controller
from deploy.launchers.runfiles import RunRecord, living, read_living
from deploy.ray_head import RAY, ray_environment

_HEAD_ATTEMPTS = 2
"""Ray gives itself 30 s to start, which a busy machine may exceed once."""
_REACH_TIMEOUT_S = 5.0
_CONTROLLER_TIMEOUT_S = 120.0
_STOP_GRACE_S = 3.0
_END_TIMEOUT_S = 20.0
_POLL_S = 0.1
_CONTROLLER_SHARE = Share(1, 0.01)


class RayBackend:
    """Implements `Backend`.

    Args:
        data: the cluster's folder.
        file: how it runs.
    """

    def __init__(self, data: str, file: ClusterFile) -> None:
        self._data = data
        self.file = file

    # --- starting ---------------------------------------------------------------

    def start(self, environment: dict[str, str], progress: Progress) -> None:
        """Starts a local Ray where none is given, and the controller's actor in it."""
        if self.file.mode is Mode.LOCAL_RAY:
            progress("starting a local Ray cluster")
            self._start_head()
        with self._connected():
            controller = create_controller(
                self._data, self.file.namespace, environment, _CONTROLLER_SHARE
            )
            try:
                ray.get(controller.address.remote(), timeout=_CONTROLLER_TIMEOUT_S)
            except RayError as error:
                why = log_tail(self._data, CONTROLLER) or str(error)
                raise ClusterError(f"the controller does not start: {why}") from error

    def _start_head(self) -> None:
        # Unix sockets have paths of at most 107 bytes, so not below DIR.
        temporary = tempfile.mkdtemp(prefix="shoal-ray-")
        self.file = replace(self.file, temporary=temporary)
        self.file.write(self._data)
        token = Path(ray_environment(self._data)["RAY_AUTH_TOKEN_PATH"])
        token.touch(0o600)
        token.write_text(secrets.token_hex(32))
        cores = ProcessLauncher(self._data).cores()
        command = (
            *(sys.executable, "-m", "deploy.ray_head", "--data", self._data),
            *("--temporary", temporary, "--cores", str(cores)),
        )
        address = ""
        for _ in range(_HEAD_ATTEMPTS):
            pid = spawn(self._data, RAY, command, ray_environment(self._data))
            address = self._wait_for_head(pid)
            if address:
                break
        else:
            raise ClusterError(f"Ray does not start: {self.trouble()}")
        self.file = replace(self.file, ray_address=address)
        self.file.write(self._data)

    def _wait_for_head(self, pid: int) -> str:
        """The head's address once it serves; empty if it ended before."""
        while not _ended(pid):
            record = read_living(run_folder(self._data), RAY)
            if record is not None and record.address:
                return record.address
            time.sleep(_POLL_S)
        return ""

    @contextmanager
    def _connected(self) -> Iterator[None]:
        """This process as a driver of the Ray cluster."""
        _refuse_unreachable(self.file.ray_address)
        try:
            ray.init(
                address=self.file.ray_address,
                namespace=self.file.namespace,
                log_to_driver=False,
                logging_level=logging.ERROR,
            )
        except (ConnectionError, RuntimeError, ValueError) as error:
            raise ClusterError(f"no Ray at {self.file.ray_address}: {error}") from error
        try:
            yield
        finally:
            ray.shutdown()

    # --- running ------------------------------------------------------------------

    def running(self) -> list[str]:
        """The local head while it lives; in another's Ray, the cluster's actors."""
        if self.file.mode is Mode.LOCAL_RAY:
            return [record.name for record in living(run_folder(self._data))]
        if ray.is_initialized():
            return self._actors()
        try:
            with self._connected():
                return self._actors()
        except ClusterError:
            return []

    def trouble(self) -> str:
        """The end of the head's log, or the controller's."""
        name = RAY if self.file.mode is Mode.LOCAL_RAY else CONTROLLER
        return f"{log_path(self._data, name)} ends:\n{log_tail(self._data, name)}"

    def _actors(self) -> list[str]:
        actors = ray.util.list_named_actors(all_namespaces=True)
        return sorted(a["name"] for a in actors if a["namespace"] == self.file.namespace)

    # --- ending -------------------------------------------------------------------

    def end(self, progress: Progress) -> None:
        """Ends the actors, then the local head, and waits until they are gone."""
        head = read_living(run_folder(self._data), RAY)
        if self.file.mode is Mode.RAY or (head is not None and self.file.ray_address):
            with suppress(ClusterError), self._connected():
                self._end_actors(progress)
        if head is not None:
            progress(f"ending Ray (pid {head.pid})")
            _end_session(head)
        if self.file.temporary:
            shutil.rmtree(self.file.temporary, ignore_errors=True)

    def _end_actors(self, progress: Progress) -> None:
        names = self._actors()
        # The controller goes first, since it would start again what ends; routers
        # go before the shards that they ask.
        for group in (
            [name for name in names if name == CONTROLLER],
            [name for name in names if name.startswith("router-")],
            [name for name in names if name.startswith(("server-", "encoder-"))],
        ):
            self._end_group(group, progress)
        give_up = time.monotonic() + _END_TIMEOUT_S
        while left := self._actors():
            if time.monotonic() > give_up:
                raise ClusterError(f"still running in Ray: {', '.join(left)}")
            time.sleep(_POLL_S)

    def _end_group(self, names: list[str], progress: Progress) -> None:
        actors: list[Any] = []
        for name in names:
            progress(f"ending {name}")
            with suppress(ValueError):
                actors.append(ray.get_actor(name, namespace=self.file.namespace))
        if names != [CONTROLLER]:
            stops = [actor.stop.remote(_STOP_GRACE_S) for actor in actors]
            ray.wait(stops, num_returns=len(stops), timeout=_STOP_GRACE_S + 1.0) if stops else None
        for actor in actors:
            ray.kill(actor, no_restart=True)


def _refuse_unreachable(address: str) -> None:
    """Raises ClusterError where nothing listens: Ray itself would try for minutes."""
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit():
        raise ClusterError(
            f"{address!r} is no address of a Ray cluster: give HOST:PORT of its head (GCS)"
        )
    try:
        socket.create_connection((host, int(port)), _REACH_TIMEOUT_S).close()
    except OSError as error:
        raise ClusterError(f"no Ray at {address}: {error}") from error


def _ended(pid: int) -> bool:
    try:
        return os.waitpid(pid, os.WNOHANG)[0] == pid
    except ChildProcessError:
        return True


def _end_session(head: RunRecord) -> None:
    """Ends the head and every process of its session, by force where it must."""
    members = session(head.pid)
    with suppress(ProcessLookupError):
        os.kill(head.pid, signal.SIGTERM)
    give_up = time.monotonic() + _END_TIMEOUT_S
    force_at = time.monotonic() + _END_TIMEOUT_S / 2
    while members := members & session(head.pid):
        if time.monotonic() > force_at:
            for pid in members:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        if time.monotonic() > give_up:
            raise ClusterError(f"Ray's processes {sorted(members)} do not end")
        time.sleep(_POLL_S)


def session(leader: int) -> set[int]:
    """Living processes of a session: the head and all that it started."""
    found = set()
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        with suppress(OSError):
            state, _, _, leading = (entry / "stat").read_text().rpartition(")")[2].split()[:4]
            if int(leading) == leader and state != "Z":
                found.add(int(entry.name))
    return found
