"""What runs a cluster: plain processes, or actors of a Ray cluster."""

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import Protocol

Progress = Callable[[str], None]
"""Is told what happens, a line at a time."""


class ClusterError(Exception):
    """The cluster cannot be started or ended; says why and what to do."""


class Mode(StrEnum):
    """How a cluster runs."""

    PROCESSES = "processes"
    LOCAL_RAY = "local-ray"
    RAY = "ray"

    @staticmethod
    def of(no_ray: bool, ray_address: str) -> "Mode":
        """The mode that the options of `shoal up` ask for."""
        if no_ray:
            return Mode.PROCESSES
        return Mode.RAY if ray_address else Mode.LOCAL_RAY


@dataclass(frozen=True, slots=True, kw_only=True)
class UpOptions:
    """What `shoal up` was told.

    Attributes:
        data: the cluster's folder, absolute.
        mode: how to run it.
        ray_address: with Mode.RAY, of the Ray cluster to use.
        servers: shard servers.
        shards: default shard count of collections; 0 is `servers`.
        encoders: encoder workers.
        routers: routers.
        port: of router-0; 0 takes free ones.
    """

    data: str
    mode: Mode = Mode.LOCAL_RAY
    ray_address: str = ""
    servers: int = 2
    shards: int = 0
    encoders: int = 1
    routers: int = 1
    port: int = 50051


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterFile:
    """What `down` must know, as `DIR/cluster.json`.

    Attributes:
        mode: how the cluster runs.
        target: host:port of router-0.
        ray_address: of the GCS, with Ray.
        namespace: of the cluster's actors, with Ray.
        temporary: folder of a local Ray, deleted by `down`; else empty.
    """

    mode: Mode
    target: str
    ray_address: str = ""
    namespace: str = ""
    temporary: str = ""

    def write(self, data: str) -> None:
        """Publishes the file whole."""
        path = Path(data) / "cluster.json"
        partial = path.with_suffix(".new")
        partial.write_text(json.dumps(asdict(self), indent=2) + "\n")
        partial.replace(path)

    def serving_at(self, target: str) -> "ClusterFile":
        """The same with another target."""
        return replace(self, target=target)

    @staticmethod
    def read(data: str) -> "ClusterFile | None":
        """The folder's file, or None."""
        try:
            values = json.loads((Path(data) / "cluster.json").read_text())
        except FileNotFoundError:
            return None
        return ClusterFile(**values | {"mode": Mode(values["mode"])})


class Backend(Protocol):
    """Runs one cluster."""

    @property
    def file(self) -> ClusterFile:
        """How it runs, with what was learned while starting."""

    def start(self, environment: dict[str, str], progress: Progress) -> None:
        """Starts a controller, which starts the rest.

        Args:
            environment: `SHOAL_*` settings of every process.
            progress: is told what happens.

        Raises:
            ClusterError: it does not start.
        """

    def running(self) -> list[str]:
        """Names of what runs; empty when the cluster is gone."""

    def trouble(self) -> str:
        """Why it is gone, as far as is known."""

    def end(self, progress: Progress) -> None:
        """Ends everything and waits until it is gone; nothing there is no error.

        Raises:
            ClusterError: something does not end.
        """
