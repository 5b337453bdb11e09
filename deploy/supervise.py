"""Keeps the controller of a cluster of plain processes alive: `python -m deploy.supervise`.

It restarts nothing but the controller. SIGTERM ends the controller and then
everything that the cluster runs.
"""

import argparse
import asyncio
import logging
import os
import signal
import sys
import time
from collections.abc import Sequence

from deploy.core.shares import failures_in_row, restart_delay_ns
from deploy.core.state import Role
from deploy.launchers.processes import SERVE, end_record, gone, log_tail, run_folder, spawn
from deploy.launchers.runfiles import AlreadyRunning, RunFile, RunRecord, living, read_living
from shoal.telemetry import configure_logging

logger = logging.getLogger(__name__)

SUPERVISOR = "supervisor"
CONTROLLER = "controller"
GRACE_S = 5.0


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit status."""
    parser = argparse.ArgumentParser(prog="deploy.supervise", description=__doc__)
    parser.add_argument("--data", required=True)
    data = parser.parse_args(arguments).data
    configure_logging(SUPERVISOR)
    try:
        run_file = RunFile(run_folder(data), RunRecord(SUPERVISOR, SUPERVISOR, os.getpid()))
    except AlreadyRunning as error:
        logger.error("event=refused why=%s", error)
        return 1
    asyncio.run(_supervise(data))
    run_file.close()
    return 0


async def _supervise(data: str) -> None:
    stopping = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stopping.set)
    keeper = asyncio.create_task(_keep_controller(data))
    await stopping.wait()
    keeper.cancel()
    await end_everything(data)


async def _keep_controller(data: str) -> None:
    incarnation, failures = 0, 0
    while True:
        incarnation += 1
        started_ns = time.monotonic_ns()
        earlier = read_living(run_folder(data), CONTROLLER)
        pid = earlier.pid if earlier else _spawn_controller(data, incarnation)
        await gone(pid)
        lived_ns = time.monotonic_ns() - started_ns
        failures = failures_in_row(failures, lived_ns)
        delay_ns = restart_delay_ns(failures, lived_ns)
        logger.warning(
            "event=controller_died pid=%d restart_in_ms=%d why=%r",
            pid,
            delay_ns // 1_000_000,
            log_tail(data, CONTROLLER),
        )
        await asyncio.sleep(delay_ns / 1e9)


def _spawn_controller(data: str, incarnation: int) -> int:
    command = (
        *SERVE,
        *(Role.CONTROLLER.value, CONTROLLER),
        *("--data", data),
        *("--incarnation", str(incarnation)),
    )
    return spawn(data, CONTROLLER, command, {})


async def end_everything(data: str, grace_s: float = GRACE_S) -> None:
    """Ends every process of a cluster but the supervisor; returns when they are gone.

    The controller goes first, since it would start again what ends; routers go
    before the shards that they ask.
    """
    for role in (Role.CONTROLLER, Role.ROUTER, Role.ENCODER, Role.SERVER):
        records = [record for record in living(run_folder(data)) if record.role == role.value]
        await asyncio.gather(*(end_record(record, grace_s) for record in records))


if __name__ == "__main__":
    sys.exit(main())
