"""Runs one process of a cluster: `python -m deploy.serve ROLE NAME --data DIR`.

Settings come from `SHOAL_*` variables. SIGTERM ends it gracefully.
"""

import argparse
import asyncio
import os
import signal
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace

import uvloop

from deploy.core.state import Role
from deploy.launchers.processes import run_folder
from deploy.launchers.runfiles import AlreadyRunning, RunFile, RunRecord
from deploy.services import Server, build, metrics_address
from shoal.telemetry import configure_logging

_GRACE_S = 3.0


def main(arguments: Sequence[str] | None = None, builder: Callable[[Role], Server] = build) -> int:
    """Entry point; returns the exit status.

    Args:
        arguments: of the command line.
        builder: makes the role's server.
    """
    parser = argparse.ArgumentParser(prog="deploy.serve", description=__doc__)
    parser.add_argument("role", choices=[role.value for role in Role])
    parser.add_argument("name")
    parser.add_argument("--data", required=True)
    parser.add_argument("--incarnation", type=int, default=1)
    parser.add_argument("--ready-fd", type=int, default=-1)
    parsed = parser.parse_args(arguments)
    configure_logging(parsed.name)
    record = RunRecord(parsed.name, parsed.role, os.getpid(), parsed.incarnation)
    try:
        run_file = RunFile(run_folder(parsed.data), record)
    except AlreadyRunning as error:
        print(error, file=sys.stderr)  # noqa: T201 - its log is its stderr
        return 1
    return uvloop.run(_serve(record, run_file, builder, parsed.ready_fd))


async def _serve(
    record: RunRecord, run_file: RunFile, builder: Callable[[Role], Server], ready_fd: int
) -> int:
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopping.set)
    server = builder(Role(record.role))
    address = await server.start()
    metrics = metrics_address(address, server.metrics_port)
    run_file.write(replace(record, address=address, metrics_address=metrics))
    if ready_fd >= 0:
        os.write(ready_fd, f"{address} {metrics}\n".encode())
        os.close(ready_fd)
    served = asyncio.create_task(server.wait())
    stopped = asyncio.create_task(stopping.wait())
    await asyncio.wait({served, stopped}, return_when=asyncio.FIRST_COMPLETED)
    if not stopping.is_set():
        # It ended by itself: that is a failure, and says why.
        await served
        return 1
    await server.stop(_GRACE_S)
    await served
    stopped.cancel()
    return 0


if __name__ == "__main__":
    sys.exit(main())
