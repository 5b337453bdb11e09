"""What the controller reaches the world by: calls, the catalog, the launcher; all of it fails."""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from grpc_health.v1 import health_pb2

from deploy.calls import Calls
from deploy.core.state import Role
from deploy.launchers.port import Handle, StartSpec
from shoal.errors import ClusterUnreachable, DeadlineExceeded, DiskFull, InternalError, ShoalError
from shoal.storage.ports import Versioned
from tests.simulation.build_servers import SimServer
from tests.simulation.virtual_loop import OWNER, Killed, check_alive

if TYPE_CHECKING:
    from tests.simulation.build_world import World

_CHANGING = {"OpenShard", "CloseShard", "SetWriters", "Write", "Delete"}
"""Calls that change something outside of the controller."""
_LATE_S = (0.05, 1.0, 40.0)
"""Means of the delays of what comes late."""


@dataclass(eq=False)
class _Call:
    address: str
    method: str
    request: Any
    done: asyncio.Future[Any]
    controllers: bool
    deadline_s: float


class Network:
    """Messages between processes."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._context = contextvars.copy_context()
        self._open: dict[str, dict[_Call, None]] = {}

    async def call(self, address: str, method: str, request: Any, timeout_s: float) -> Any:
        """Calls a server; the caller may be the controller, or nobody in particular."""
        check_alive()
        world = self._world
        if not address:
            raise ClusterUnreachable("no address")
        loop = world.loop
        controllers = OWNER.get() is not None
        call = _Call(
            address, method, request, loop.create_future(), controllers, loop.time() + timeout_s
        )
        self._open.setdefault(address, {})[call] = None
        try:
            self._send(call)
            async with asyncio.timeout(timeout_s):
                return await call.done
        except TimeoutError:
            raise DeadlineExceeded(f"{method} took too long") from None
        finally:
            self._open[address].pop(call, None)

    def _send(self, call: _Call) -> None:
        world = self._world
        if world.hits(f"lost {call.method}", world.rules.loss):
            self._break(call)
        elif self._changes(call) and world.hits(f"late {call.method}", world.rules.late):
            self._break(call)  # the caller has given it up, ...
            self._deliver_later(call, world.dice.choice(_LATE_S))  # ... and yet it comes
        else:
            self._deliver_later(call, world.delay_s)
        if self._changes(call) and world.hits(f"repeated {call.method}", world.rules.repeat):
            self._deliver_later(call, world.dice.choice(_LATE_S))

    def _changes(self, call: _Call) -> bool:
        return call.controllers and call.method in _CHANGING

    def _break(self, call: _Call) -> None:
        """The caller learns that the connection broke."""
        error = ClusterUnreachable("the connection broke")
        self._world.loop.call_later(0.001, self._end, call, error, context=self._context)

    def _deliver_later(self, call: _Call, mean_s: float) -> None:
        delay_s = self._world.dice.expovariate(1 / mean_s)
        self._world.loop.call_later(delay_s, self._deliver, call, context=self._context)

    def _deliver(self, call: _Call) -> None:
        handle = self._world.servers.get(call.address)
        if handle is None:
            self._end(call, ClusterUnreachable("nobody listens there"))
        elif handle.hangs_until_s > self._world.loop.time():
            left_s = handle.hangs_until_s - self._world.loop.time()
            self._world.loop.call_later(left_s, self._deliver, call, context=self._context)
        elif call.controllers or self._world.loop.time() < call.deadline_s:
            handle.server.owner.run(self._handle(handle.server, call))

    async def _handle(self, server: SimServer, call: _Call) -> None:
        world = self._world
        if call.method == "Check":
            reply: Any = health_pb2.HealthCheckResponse(status=1)
        else:
            try:
                await world.pause(0.001)
                reply = await getattr(server, call.method)(call.request)
            except ShoalError as error:
                reply = error
            except asyncio.CancelledError:
                raise
            except Exception as error:
                world.broken(f"{call.method} broke its server: {error!r}")
                reply = InternalError(repr(error))
            if self._changes(call):
                what = type(reply).__name__ if isinstance(reply, ShoalError) else ""
                world.effect(f"{call.method} {call.address} {_told(call.request)} {what}", server)
        if server.owner.dead:
            return
        if world.hits(f"lost reply of {call.method}", world.rules.loss):
            self._break(call)
            return
        delay_s = world.dice.expovariate(1 / world.delay_s)
        world.loop.call_later(delay_s, self._end, call, reply, context=self._context)

    def _end(self, call: _Call, reply: Any) -> None:
        if call.done.done():
            return
        if isinstance(reply, ShoalError):
            call.done.set_exception(reply)
        else:
            call.done.set_result(reply)

    def died(self, address: str) -> None:
        """Connections to a process break, a moment later."""
        for call in self._open.get(address, ()):
            self._break(call)


def _told(request: Any) -> str:
    """Of a request, what tells it from others."""
    key = getattr(request, "key", None)
    place = f"{key.generation}/{key.shard}" if key is not None else ""
    return f"{place} writers={request.writers}" if hasattr(request, "writers") else place


class SimCalls(Calls):
    """The controller's calls, over the simulated network."""

    def __init__(self, network: Network) -> None:
        super().__init__(1 << 20)
        self._network = network

    def _channel(self, address: str) -> Any:
        return _Channel(self._network, address)

    async def forget(self, address: str) -> None:
        """There is nothing to close."""


@dataclass(frozen=True)
class _Channel:
    network: Network
    address: str

    def unary_unary(self, path: str, **_: Any) -> Callable[..., Awaitable[Any]]:
        method = path.rpartition("/")[2]

        def call(request: Any, timeout: float) -> Awaitable[Any]:
            return self.network.call(self.address, method, request, timeout)

        return call

    def unary_stream(self, path: str, **_: Any) -> None:
        """Health has one; nobody uses it."""


class SimCatalog:
    """A catalog like the directory's: versions of a key only grow, also after a deletion."""

    def __init__(self, world: World) -> None:
        self._world = world
        self.values: dict[str, tuple[int, bytes]] = {}
        self._newest: dict[str, int] = {}

    def get(self, key: str) -> Versioned:
        return Versioned(*self.values.get(key, (0, b"")))

    def put(self, key: str, value: bytes, expected_version: int) -> int | None:
        world = self._world
        self._check()
        self._check_room(key)
        version, before = self.values.get(key, (0, None))
        if version != expected_version:
            return None
        self._newest[key] = self._newest.get(key, 0) + 1
        world.put_in_catalog(key, before, value)
        self.values[key] = (self._newest[key], value)
        if world.effect(f"put {key}"):
            raise Killed
        return self._newest[key]

    def delete(self, key: str) -> None:
        self._check()
        if key not in self.values:
            return
        self._check_room(key)  # a deletion is a version too
        del self.values[key]
        self._newest[key] += 1
        if self._world.effect(f"delete {key}"):
            raise Killed

    def keys(self, prefix: str) -> list[str]:
        return sorted(key for key in self.values if key.startswith(prefix))

    def _check_room(self, key: str) -> None:
        if self._world.hits(f"disk full at {key}", self._world.rules.disk_full):
            raise DiskFull("no room")

    def _check(self) -> None:
        owner = OWNER.get()
        if owner is not None and owner.dead:
            raise Killed


@dataclass(eq=False)
class SimHandle:
    """A process that was started. Implements `Handle`."""

    world: World
    name: str
    role: Role
    incarnation: int
    address: str
    server: SimServer
    metrics_address: str = ""
    pid: int = 1
    gone: asyncio.Event = field(default_factory=asyncio.Event)
    hangs_until_s: float = 0.0

    async def exited(self) -> str:
        await self.gone.wait()
        return "killed"

    async def stop(self, grace_s: float) -> None:
        check_alive()
        self.world.kill_server(self)


class SimLauncher:
    """Starts simulated processes. Implements `Launcher`."""

    def __init__(self, world: World) -> None:
        self._world = world

    async def start(self, spec: StartSpec) -> Handle:
        await self._world.pause(self._world.rules.start_s)
        check_alive()
        return self._world.start_server(spec)

    async def adopt(self) -> list[Handle]:
        return list(self._world.servers.values())

    def cores(self) -> int:
        return 2

    def gpus(self) -> int:
        return 0
