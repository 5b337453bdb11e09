"""Starting and ending a whole cluster; what `shoal up` and `shoal down` do.

`DIR/cluster.json` says how the cluster runs, for `down`. What lives is told by
the backend (for processes of this machine: `deploy.launchers.runfiles`), so a
stale `cluster.json`, after a reboot for example, is no obstacle.
"""

import asyncio
import json
import secrets
import socket
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import grpc

from deploy.backend import Backend, ClusterError, ClusterFile, Mode, Progress, UpOptions
from deploy.core.state import Role
from deploy.launchers.processes import log_path
from deploy.plain import PlainBackend
from deploy.ray_head import set_ray_environment
from deploy.services import PREFIXES, default_environment, own_environment
from deploy.store import CONTROLLER_KEY, WANTED_KEY
from shoal.rpc.controller.v1 import controller_pb2, controller_pb2_grpc
from shoal.rpc.router.v1 import router_pb2
from shoal.storage.directory import open_storage
from shoal.wire.channels import channel_options

HOST = "127.0.0.1"
START_TIMEOUT_S = 600.0
_POLL_S = 0.1
_STATUS_TIMEOUT_S = 5.0
_FAILED_STARTS = 2


def up(options: UpOptions, progress: Progress) -> ClusterFile:
    """Starts a cluster and waits until it serves.

    Returns:
        How it runs; also in `DIR/cluster.json`.

    Raises:
        ClusterError: one runs there already, a port is taken, or a process does
            not start; nothing is left running.
    """
    refuse_second(options.data)
    port = choose_ports(options.port, options.routers)
    Path(options.data).mkdir(parents=True, exist_ok=True)
    catalog = open_storage(options.data).catalog
    # What the cluster was scaled to ends with it: the options say how this one begins.
    for key in (CONTROLLER_KEY, WANTED_KEY):
        catalog.delete(key)
    file = ClusterFile(
        mode=options.mode,
        target=f"{HOST}:{port}",
        ray_address=options.ray_address,
        namespace=f"shoal-{secrets.token_hex(4)}",
    )
    file.write(options.data)
    backend = backend_of(options.data, file)
    try:
        environment = default_environment() | own_environment()
        backend.start(environment | controller_environment(options, port), progress)
        target = asyncio.run(wait_until_serving(options.data, backend, progress))
    except BaseException:
        down(options.data, lambda _: None)
        raise
    file = backend.file.serving_at(target)
    file.write(options.data)
    return file


def down(data: str, progress: Progress) -> bool:
    """Ends the cluster of a folder and waits until it is gone.

    Returns:
        Whether one ran.

    Raises:
        ClusterError: something does not end.
    """
    file = ClusterFile.read(data)
    # Without the file, plain processes may still be told by their run files.
    backend = backend_of(data, file or ClusterFile(mode=Mode.PROCESSES, target=""))
    ran = backend.running() != []
    backend.end(progress)
    if ran or file is not None:
        open_storage(data).catalog.delete(CONTROLLER_KEY)
        (Path(data) / "cluster.json").unlink(missing_ok=True)
    return ran


def backend_of(data: str, file: ClusterFile) -> Backend:
    """What runs a cluster, by its file."""
    if file.mode is Mode.PROCESSES:
        return PlainBackend(data, file)
    # Ray reads its environment while it is imported, which takes 0.4 s.
    set_ray_environment(data, file.mode is Mode.LOCAL_RAY)
    from deploy.ray_backend import RayBackend  # noqa: PLC0415 - as above

    return RayBackend(data, file)


# --- before -----------------------------------------------------------------------


def choose_ports(port: int, routers: int) -> int:
    """The first of `routers` consecutive free ports.

    Args:
        port: the first; 0 chooses.
        routers: how many.

    Raises:
        ClusterError: one is taken.
    """
    if port:
        for number in range(port, port + routers):
            if not _free(number):
                raise ClusterError(
                    f"port {number} on {HOST} is taken: another program, or another cluster, "
                    "listens there. End it, or choose another with --port"
                )
        return port
    for _ in range(100):
        with closing(socket.socket()) as probe:
            probe.bind((HOST, 0))
            first = int(probe.getsockname()[1])
        if all(_free(number) for number in range(first, first + routers)):
            return first
    raise ClusterError(f"there are no {routers} consecutive free ports on {HOST}")


def _free(port: int) -> bool:
    with closing(socket.socket()) as probe:
        # As gRPC does: ports of connections that have just ended count as free.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
            probe.listen(1)
        except OSError:
            return False
    return True


def refuse_second(data: str) -> None:
    """Raises ClusterError if a cluster runs in the folder."""
    file = ClusterFile.read(data)
    backend = backend_of(data, file or ClusterFile(mode=Mode.PROCESSES, target=""))
    running = backend.running()
    if running:
        raise ClusterError(
            f"a cluster runs in {data} already"
            + (f", at {file.target}" if file else "")
            + f" ({', '.join(running)}). Use it, or end it with `shoal down --data {data}`"
        )


def controller_environment(options: UpOptions, port: int) -> dict[str, str]:
    """Settings that make a controller run this cluster."""
    values = {
        "DATA": options.data,
        "SERVERS": options.servers,
        "SHARDS": options.shards,
        "ENCODERS": options.encoders,
        "ROUTERS": options.routers,
        "ROUTER_PORT": port,
    }
    return {PREFIXES[Role.CONTROLLER] + name: str(value) for name, value in values.items()}


# --- waiting until it serves ----------------------------------------------------------


async def wait_until_serving(data: str, backend: Backend, progress: Progress) -> str:
    """Waits until every process serves and every shard is open or refuses to be.

    Returns:
        host:port of router-0.

    Raises:
        ClusterError: it does not come to serve.
    """
    catalog = open_storage(data).catalog
    give_up = time.monotonic() + START_TIMEOUT_S
    said: set[str] = set()
    while time.monotonic() < give_up:
        if not backend.running():
            raise ClusterError(f"the cluster does not start: {backend.trouble()}")
        value = catalog.get(CONTROLLER_KEY).value
        status = await _ask(json.loads(value)["address"]) if value else None
        if status is not None:
            for line in _news(status):
                if line not in said:
                    said.add(line)
                    progress(line)
            _refuse_failed(data, status)
            if _complete(status):
                return next(p.address for p in status.processes if p.name == "router-0")
        await asyncio.sleep(_POLL_S)
    raise ClusterError(f"the cluster did not serve within {START_TIMEOUT_S:.0f} s; see {data}")


async def _ask(address: str) -> controller_pb2.GetClusterStatusResponse | None:
    async with grpc.aio.insecure_channel(address, options=channel_options(-1)) as channel:
        stub = controller_pb2_grpc.ControllerServiceStub(channel)
        try:
            return await stub.GetClusterStatus(
                controller_pb2.GetClusterStatusRequest(), timeout=_STATUS_TIMEOUT_S
            )
        except grpc.aio.AioRpcError:
            return None


def _news(status: controller_pb2.GetClusterStatusResponse) -> Iterator[str]:
    for process in status.processes:
        if process.state == "serving":
            yield f"{process.name} serves at {process.address} (pid {process.pid})"
        elif process.detail:
            yield f"{process.name}: {last_line(process.detail)}"
    for collection in status.collections:
        for shard in collection.shards:
            if shard.state in {"serving", "corrupt"}:
                yield f"{collection.settings.name}/{shard.shard}: {shard.state} {shard.detail}"


def _refuse_failed(data: str, status: controller_pb2.GetClusterStatusResponse) -> None:
    for process in status.processes:
        if process.restarts >= _FAILED_STARTS and process.detail and process.state != "serving":
            raise ClusterError(
                f"{process.name} does not start: {last_line(process.detail)} "
                f"({log_path(data, process.name)} has more)"
            )


def _complete(status: controller_pb2.GetClusterStatusResponse) -> bool:
    return all(process.state == "serving" for process in status.processes) and all(
        _settled(shard) for collection in status.collections for shard in collection.shards
    )


def _settled(shard: router_pb2.ShardInfo) -> bool:
    return shard.state in {"serving", "corrupt"} or bool(shard.detail)


def last_line(text: str) -> str:
    """The last line, where a traceback says what happened."""
    return text.strip().rpartition("\n")[2]
