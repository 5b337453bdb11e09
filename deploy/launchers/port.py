"""What the controller asks of whatever runs processes."""

from dataclasses import dataclass
from typing import Protocol

from deploy.core.shares import Share
from deploy.core.state import Role


class StartFailed(Exception):
    """A process ended, or did not answer in time, before it listened; says why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StartSpec:
    """A process to start.

    Attributes:
        name: "server-0".
        role: what it does.
        incarnation: 1 for its first start.
        environment: its settings, as `SHOAL_*` variables.
        share: threads (in the environment already) and cores to reserve.
    """

    name: str
    role: Role
    incarnation: int
    environment: dict[str, str]
    share: Share


class Handle(Protocol):
    """A process that was started, by this controller or by an earlier one."""

    @property
    def name(self) -> str:
        """As in its spec."""

    @property
    def role(self) -> Role:
        """What it does."""

    @property
    def incarnation(self) -> int:
        """As in its spec."""

    @property
    def address(self) -> str:
        """host:port where it listens."""

    @property
    def metrics_address(self) -> str:
        """host:port of its Prometheus page; empty if it serves none."""

    @property
    def pid(self) -> int:
        """Process id on its host."""

    async def exited(self) -> str:
        """Returns when the process is gone, with why, as far as is known."""

    async def stop(self, grace_s: float) -> None:
        """Asks it to end, ends it by force after grace_s, returns when it is gone."""


class Launcher(Protocol):
    """Starts processes."""

    async def start(self, spec: StartSpec) -> Handle:
        """Starts a process and waits until it listens.

        Raises:
            StartFailed: it does not.
        """

    async def adopt(self) -> list[Handle]:
        """Processes that an earlier controller of this cluster started and that run."""

    def cores(self) -> int:
        """Cores of a machine that processes run on, at least 1."""

    def gpus(self) -> int:
        """GPUs that processes may ask for."""
