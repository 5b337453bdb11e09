"""Client processes: started once, told one step after the other, their tallies merged.

A process of Python sends a few thousand requests a second; more need more
processes. They are spawned, never forked: gRPC does not survive a fork.
"""

import asyncio
import gc
import multiprocessing
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from types import TracebackType

from shoal.loadtest.core.report import ClientReport, Report
from shoal.loadtest.core.schedule import Step
from shoal.loadtest.driver import Client, Progress, Setup, event_loop

# Between the order and the first arrival, so that every client has the order by then.
HEAD_START_NS = 100_000_000
END_S = 5.0
READY = "ready"

Watch = Callable[[Progress], None]


class ClientDied(RuntimeError):
    """A client process ended by itself; the message says which, and what to do."""


class ClientPool:
    """So many client processes. A context manager.

    Args:
        setup: what the first client is told; the others get their own number.
    """

    def __init__(self, setup: Setup) -> None:
        self._setups = [replace(setup, client=number) for number in range(setup.clients)]
        self._processes: list[BaseProcess] = []
        self._connections: list[Connection] = []

    def __enter__(self) -> "ClientPool":
        context = multiprocessing.get_context("spawn")
        for setup in self._setups:
            ours, theirs = context.Pipe()
            process = context.Process(target=client_process, args=(theirs, setup), daemon=True)
            process.start()
            theirs.close()
            self._processes.append(process)
            self._connections.append(ours)
        try:
            for number, connection in enumerate(self._connections):
                ready = self._received(number, connection)
                assert ready == READY
        except BaseException:
            self._end(at_once=True)
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        # Sent away in the middle of a step, they would first end it.
        self._end(at_once=kind is not None)

    def run(self, step: Step, watch: Watch) -> Report:
        """Runs one step with all clients at once.

        Args:
            step: what to send.
            watch: told of each client's progress, about twice a second.

        Raises:
            ClientDied: a client process ended.
        """
        begin_ns = time.monotonic_ns() + HEAD_START_NS
        for number, connection in enumerate(self._connections):
            with self._alive(number):
                connection.send((step, begin_ns))
        reports: list[ClientReport] = []
        while len(reports) < len(self._connections):
            told_by = wait(self._connections)
            for number, connection in enumerate(self._connections):
                if connection not in told_by:
                    continue
                told = self._received(number, connection)
                if isinstance(told, ClientReport):
                    reports.append(told)
                else:
                    assert isinstance(told, Progress)
                    watch(told)
        return Report.of(step, reports)

    def _received(self, number: int, connection: Connection) -> object:
        with self._alive(number):
            told: object = connection.recv()
        return told

    @contextmanager
    def _alive(self, number: int) -> Iterator[None]:
        """Turns a broken pipe into an error that says whose it was."""
        try:
            yield
        except (EOFError, ConnectionError):
            self._processes[number].join(END_S)
            code = self._processes[number].exitcode
            raise ClientDied(
                f"client process {number} ended with exit code {code}; what it said stands above. "
                "If nothing does, it was killed: free memory, or use fewer --processes"
            ) from None

    def _end(self, *, at_once: bool) -> None:
        for connection in self._connections:
            connection.close()
        for process in self._processes:
            if at_once:
                process.terminate()
            process.join(END_S)
            if process.is_alive():
                process.kill()
                process.join()


def client_process(connection: Connection, setup: Setup) -> None:
    """Body of a client process: runs the steps that it is sent until the pipe is closed."""
    # Ctrl-C reaches the whole group; the parent ends its clients itself.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with asyncio.Runner(loop_factory=event_loop) as runner:
        runner.run(_serve(connection, setup))


async def _serve(connection: Connection, setup: Setup) -> None:
    async with Client(setup) as client:
        # A full collection walks over all that was loaded: its pause would be measured.
        gc.collect()
        gc.freeze()
        connection.send(READY)
        while (order := await _next_order(connection)) is not None:
            step, begin_ns = order
            connection.send(await client.run(step, begin_ns, connection.send))


async def _next_order(connection: Connection) -> tuple[Step, int] | None:
    try:
        order: tuple[Step, int] = await asyncio.to_thread(connection.recv)
    except EOFError:
        return None
    return order
