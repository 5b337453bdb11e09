"""The one place that knows which class serves a role, and with which settings.

Services are imported by name when they start: a router's process must not pay
for torch, nor an encoder's for FAISS.
"""

import gc
import importlib
import os
from collections.abc import Mapping
from typing import Protocol, cast

from deploy.core.state import Role
from shoal import settings
from shoal.wire.metrics import OFF


class Server(Protocol):
    """What every service looks like from outside."""

    @property
    def metrics_port(self) -> int:
        """Port of its Prometheus page once it has started; OFF if it serves none."""

    async def start(self) -> str:
        """Listens; returns host:port."""

    async def stop(self, grace_s: float) -> None:
        """Lets running calls end within grace_s, then ends."""

    async def wait(self) -> None:
        """Returns when it has stopped."""


PREFIXES = {
    Role.CONTROLLER: "SHOAL_CONTROLLER_",
    Role.ENCODER: "SHOAL_ENCODER_",
    Role.ROUTER: "SHOAL_ROUTER_",
    Role.SERVER: "SHOAL_SHARD_",
}
"""Environment variables of each role's settings."""

_CLASSES = {
    Role.CONTROLLER: ("deploy", "controller", "Controller"),
    Role.ENCODER: ("encoder_service", "server", "Encoder"),
    Role.ROUTER: ("router", "server", "Router"),
    Role.SERVER: ("shard_service", "server", "Shard"),
}


def build(role: Role, environment: Mapping[str, str] | None = None) -> Server:
    """A role's server, with settings from the environment; for a process of its own.

    Raises:
        ValueError: a variable names no setting, or has a wrong value.
    """
    package, module, prefix = _CLASSES[role]
    settings_class = getattr(importlib.import_module(f"{package}.settings"), f"{prefix}Settings")
    server_class = getattr(importlib.import_module(f"{package}.{module}"), f"{prefix}Server")
    loaded = settings.load(
        settings_class, PREFIXES[role], os.environ if environment is None else environment
    )
    server = cast("Server", server_class(loaded))
    _collect_rarely()
    return server


def _collect_rarely() -> None:
    """Collects cycles less often, and never looks at what was imported.

    A call makes hundreds of objects and next to no cycles; looking for them took 5 % of a
    loaded router's time (perf).
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 20)


def metrics_address(address: str, metrics_port: int) -> str:
    """host:port of the Prometheus page of the service at an address; empty without one."""
    if not address or metrics_port == OFF:
        return ""
    return f"{address.rpartition(':')[0]}:{metrics_port}"


def default_environment() -> dict[str, str]:
    """Settings of a cluster that `shoal up` starts: every service shows its metrics, on
    a free port of the address that it serves on.
    """
    return {
        PREFIXES[role] + "METRICS_PORT": "0" for role in PREFIXES if role is not Role.CONTROLLER
    }


def own_environment() -> dict[str, str]:
    """This process's `SHOAL_*` variables, to hand on to processes started elsewhere."""
    return {name: value for name, value in os.environ.items() if name.startswith("SHOAL_")}
