"""Actors of a Ray cluster: each runs one service's own gRPC server.

Actor methods start, stop and wait; no query ever passes through Ray.
"""

import asyncio
import os
from typing import Any

import ray
from ray.exceptions import RayActorError, RayError, RayTaskError

from deploy.controller import ControllerServer
from deploy.core.shares import Share, reservation, role_resources
from deploy.core.state import Role
from deploy.launchers.port import Handle, StartFailed, StartSpec
from deploy.launchers.processes import log_path, log_tail
from deploy.services import PREFIXES, Server, build, metrics_address
from deploy.settings import ControllerSettings
from shoal import settings
from shoal.telemetry import configure_logging
from shoal.wire.metrics import OFF

CONTROLLER = "controller"
_START_TIMEOUT_S = 600.0
_ANSWER_TIMEOUT_S = 5.0


def enter_process(name: str, data: str, environment: dict[str, str]) -> None:
    """Turns an actor's fresh process into one of the cluster's: settings and log file."""
    os.environ.update(environment)
    path = log_path(data, name)
    path.parent.mkdir(parents=True, exist_ok=True)
    log = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    for stream in (1, 2):
        os.dup2(log, stream)
    os.close(log)
    configure_logging(name)


def node_address() -> str:
    """Address of the node that this actor runs on."""
    return str(ray.util.get_node_ip_address())  # type: ignore[no-untyped-call]


class ServiceActor:
    """A service in an actor's process.

    Args:
        role: of the service.
        name: of the process.
        data: the cluster's folder.
        environment: its settings.
    """

    def __init__(self, role: str, name: str, data: str, environment: dict[str, str]) -> None:
        self._role = Role(role)
        enter_process(name, data, environment | {PREFIXES[self._role] + "HOST": node_address()})
        self._server: Server | None = None
        self._address = ""

    async def start(self) -> tuple[str, int, str]:
        """Builds the service and listens; returns what `describe` does."""
        self._server = build(self._role)
        self._address = await self._server.start()
        return self.describe()

    def describe(self) -> tuple[str, int, str]:
        """host:port (empty until it listens), the process id, host:port of its metrics."""
        port = OFF if self._server is None else self._server.metrics_port
        return self._address, os.getpid(), metrics_address(self._address, port)

    async def wait(self) -> None:
        """Returns when the service has stopped."""
        assert self._server is not None
        await self._server.wait()

    async def stop(self, grace_s: float) -> None:
        """Lets running calls end within grace_s, then ends the service."""
        if self._server is not None:
            await self._server.stop(grace_s)


class ControllerActor:
    """The controller in an actor's process. Ray starts it again when it dies.

    Args:
        data: the cluster's folder.
        namespace: of the cluster's actors.
        environment: `SHOAL_*` settings of every process.
    """

    async def __init__(  # type: ignore[misc]
        self, data: str, namespace: str, environment: dict[str, str]
    ) -> None:
        prefix = PREFIXES[Role.CONTROLLER]
        enter_process(CONTROLLER, data, environment | {prefix + "HOST": node_address()})
        loaded = settings.load(ControllerSettings, prefix)
        self._server = ControllerServer(loaded, RayLauncher(data, namespace))
        self._address = await self._server.start()
        self._ending = asyncio.create_task(self._end_with_server())

    async def _end_with_server(self) -> None:
        try:
            await self._server.wait()
        finally:
            # An actor that merely raised would stay, and serve nothing.
            os._exit(1)

    async def address(self) -> str:
        """host:port where the controller listens."""
        return self._address


class RayHandle:
    """A service's actor. Implements `Handle`."""

    def __init__(self, actor: Any, name: str, role: Role, incarnation: int, data: str) -> None:
        self._actor = actor
        self._data = data
        self.name = name
        self.role = role
        self.incarnation = incarnation
        self.address = ""
        self.metrics_address = ""
        self.pid = 0

    async def begin(self) -> None:
        """Starts the service.

        Raises:
            StartFailed: it does not start.
        """
        try:
            self.address, self.pid, self.metrics_address = await asyncio.wait_for(
                self._actor.start.remote(), _START_TIMEOUT_S
            )
        except RayTaskError as error:
            await self.kill()
            raise StartFailed(str(error.cause)) from error
        except (RayError, TimeoutError) as error:
            await self.kill()
            raise StartFailed(log_tail(self._data, self.name) or str(error)) from error

    async def find(self) -> bool:
        """Asks an actor that an earlier controller started; False if it does not listen."""
        try:
            self.address, self.pid, self.metrics_address = await asyncio.wait_for(
                self._actor.describe.remote(), _ANSWER_TIMEOUT_S
            )
        except (RayError, TimeoutError):
            return False
        return bool(self.address)

    async def exited(self) -> str:
        """Returns when the actor is gone, with the end of its log."""
        try:
            await self._actor.wait.remote()
        except RayActorError:
            return log_tail(self._data, self.name)
        except RayError as error:
            await self.kill()
            return str(error)
        await self.kill()
        return log_tail(self._data, self.name)

    async def stop(self, grace_s: float) -> None:
        """Asks the service to end, ends its process, returns when it is gone."""
        if grace_s > 0:
            try:
                await asyncio.wait_for(self._actor.stop.remote(grace_s), grace_s + 1.0)
            except (RayError, TimeoutError):
                await self.kill()
                return
        await self.kill()

    async def kill(self) -> None:
        """Ends the actor's process."""
        await asyncio.to_thread(ray.kill, self._actor, no_restart=True)


class RayLauncher:
    """Starts detached actors in one namespace. Implements `Launcher`.

    An actor's name is `<process>#<incarnation>`, so that a successor need not
    wait until Ray has forgotten the dead one's name.
    """

    def __init__(self, data: str, namespace: str) -> None:
        self._data = data
        self._namespace = namespace
        self._starting = 0

    async def start(self, spec: StartSpec) -> Handle:
        """Creates an actor and waits until its service listens.

        Raises:
            StartFailed: it does not.
        """
        self._starting += 1
        try:
            actor = await asyncio.to_thread(self._create, spec)
            handle = RayHandle(actor, spec.name, spec.role, spec.incarnation, self._data)
            await handle.begin()
        finally:
            self._starting -= 1
        return handle

    def _create(self, spec: StartSpec) -> Any:
        name = f"{spec.name}#{spec.incarnation}"
        gpus = self.gpus() if spec.role is Role.ENCODER else 0
        free: dict[str, float] = ray.available_resources()  # type: ignore[no-untyped-call]
        return (
            ray.remote(ServiceActor)
            .options(
                name=name,
                namespace=self._namespace,
                lifetime="detached",
                max_restarts=0,
                num_cpus=reservation(spec.share, free.get("CPU", 0.0), self._starting),
                num_gpus=min(1.0, gpus * spec.share.gpus),
                resources=role_resources(spec.role, self._resources()),
                scheduling_strategy="SPREAD",
                enable_task_events=False,
            )
            .remote(spec.role.value, spec.name, self._data, spec.environment)
        )

    async def adopt(self) -> list[Handle]:
        """Actors that listen; of several of one name the youngest. Others are ended."""
        adopted: dict[str, Handle] = {}
        for name, incarnation in sorted(await asyncio.to_thread(self._known)):
            actor = await asyncio.to_thread(
                ray.get_actor, f"{name}#{incarnation}", namespace=self._namespace
            )
            handle = RayHandle(actor, name, Role(name.rpartition("-")[0]), incarnation, self._data)
            if not await handle.find():
                await handle.kill()
                continue
            if name in adopted:
                await adopted[name].stop(0.0)
            adopted[name] = handle
        return list(adopted.values())

    def _known(self) -> list[tuple[str, int]]:
        actors = ray.util.list_named_actors(all_namespaces=True)
        parts = (
            actor["name"].rpartition("#")
            for actor in actors
            if actor["namespace"] == self._namespace and "#" in actor["name"]
        )
        return [(name, int(incarnation)) for name, _, incarnation in parts]

    def cores(self) -> int:
        """Cores of the largest node."""
        nodes = ray.nodes()  # type: ignore[no-untyped-call]
        cores = (node["Resources"].get("CPU", 0) for node in nodes if node["Alive"])
        return max(1, int(max(cores, default=1)))

    def gpus(self) -> int:
        """GPUs of the whole Ray cluster."""
        return int(self._resources().get("GPU", 0))

    def _resources(self) -> dict[str, float]:
        resources: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
        return resources


def create_controller(data: str, namespace: str, environment: dict[str, str], share: Share) -> Any:
    """Creates the controller's actor, which outlives the caller."""
    return (
        ray.remote(ControllerActor)
        .options(
            name=CONTROLLER,
            namespace=namespace,
            lifetime="detached",
            max_restarts=-1,
            num_cpus=share.cpus,
            enable_task_events=False,
        )
        .remote(data, namespace, environment)
    )
