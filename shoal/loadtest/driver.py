"""One client: sends a step's requests from one event loop, and tallies what comes back."""

import asyncio
import selectors
import time
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import dataclass
from typing import Any

import grpc

from shoal.client.async_routers import AsyncRouters
from shoal.client.transport import Rpcs, typed_error
from shoal.errors import ShoalError
from shoal.loadtest.core.latencies import Latencies
from shoal.loadtest.core.report import ClientReport
from shoal.loadtest.core.schedule import (
    Operation,
    Step,
    generator,
    operations,
    poisson_ns,
    share,
)
from shoal.loadtest.core.tally import NOT_SENT, OK, Outcome, Tally
from shoal.loadtest.messages import (
    INGEST,
    SEARCH,
    Messages,
    document_id,
    ingest_documents,
    is_partial,
    refusal,
)

# A cluster that stands still must not fill the client's memory.
IN_FLIGHT_MAX = 10_000
# A client that is behind sends on for so long after the window, and leaves the rest.
GIVE_UP_NS = 1_000_000_000
PROGRESS_S = 0.5
CONNECT_S = 10.0


@dataclass(frozen=True, slots=True)
class Setup:
    """What a client is told once.

    Attributes:
        target: "host:port" of a router, or several with commas between.
        messages: the requests.
        ingest_share: share of ingests, 0.0 to 1.0.
        deadline_s: time for each call.
        seed: of arrivals and of the order of the questions.
        client: its number, from 0.
        clients: how many there are.
    """

    target: str
    messages: Messages
    ingest_share: float
    deadline_s: float
    seed: int
    client: int
    clients: int


@dataclass(frozen=True, slots=True)
class Progress:
    """What a client did since it last told.

    Attributes:
        client: its number.
        answered: requests that succeeded.
        failed: requests that did not.
        in_flight: calls under way now.
        latencies: of those that ended, from the time that they were meant to leave.
    """

    client: int
    answered: int
    failed: int
    in_flight: int
    latencies: Latencies


def event_loop() -> asyncio.AbstractEventLoop:
    """A loop whose sleeps end within microseconds.

    The usual selector, epoll, rounds a wait up to the next millisecond: every
    arrival would leave late by that.
    """
    return asyncio.SelectorEventLoop(selectors.SelectSelector())


class RawCalls:
    """A router's calls that the load tester makes, by name: bytes in, bytes out."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self.channel = channel
        self._calls: dict[str, Any] = {
            "Search": channel.unary_unary(SEARCH),
            "Ingest": channel.stream_stream(INGEST),
            "GetStatus": Rpcs(channel)["GetStatus"],
        }

    def __getitem__(self, rpc: str) -> Any:
        return self._calls[rpc]


class Client:
    """Connections to the routers, and the calls under way on them. One step at a time.

    Calls are spread as those of `shoal.aio`, and never repeated: what fails counts.

    An async context manager.
    """

    def __init__(self, setup: Setup) -> None:
        self._setup = setup
        self._routers = AsyncRouters(setup.target, RawCalls)
        self._calls: set[asyncio.Task[None]] = set()
        self._broken: BaseException | None = None
        self._ingested = 0
        self._tally = Tally(0, 0)
        self._since = _Since()

    async def __aenter__(self) -> "Client":
        address, calls = self._routers.begin()
        await asyncio.wait_for(calls.channel.channel_ready(), CONNECT_S)
        self._routers.end(address, None)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._routers.close()

    async def run(
        self, step: Step, begin_ns: int, tell: Callable[[Progress], None]
    ) -> ClientReport:
        """Sends the step's requests, and returns when the last has ended.

        Args:
            step: what all clients together send; this one sends its share.
            begin_ns: when the warm-up begins, on the monotonic clock.
            tell: told about twice a second.
        """
        window_ns = begin_ns + int(step.warm_up_s * 1e9)
        self._tally = Tally(window_ns, window_ns + int(step.duration_s * 1e9))
        telling = asyncio.create_task(self._tell(tell))
        wall_ns, processor_ns = time.monotonic_ns(), time.process_time_ns()
        try:
            if step.rate_per_s is not None:
                await self._open(step, step.rate_per_s, begin_ns)
            else:
                await self._closed(step, begin_ns)
            used = time.process_time_ns() - processor_ns
            share_of_core = used / max(1, time.monotonic_ns() - wall_ns)
            while self._calls:
                await asyncio.wait(self._calls)
        finally:
            telling.cancel()
        if self._broken is not None:
            raise self._broken
        return ClientReport(self._tally, share_of_core)

    async def _open(self, step: Step, rate_per_s: float, begin_ns: int) -> None:
        """Every request leaves at its time, whatever became of those before it."""
        rng = generator(self._setup.seed, step.number, self._setup.client)
        seconds = step.warm_up_s + step.duration_s
        arrivals_ns = poisson_ns(rate_per_s / self._setup.clients, seconds, rng)
        todo = operations(len(self._setup.messages.searches), self._setup.ingest_share, rng)
        for due_ns, operation in zip((begin_ns + arrivals_ns).tolist(), todo, strict=False):
            await asyncio.sleep(max(0.0, (due_ns - time.monotonic_ns()) / 1e9))
            given_up = time.monotonic_ns() - self._tally.end_ns > GIVE_UP_NS
            if given_up or len(self._calls) >= IN_FLIGHT_MAX:
                self._record(Outcome(due_ns, due_ns, due_ns, NOT_SENT))
                continue
            self._start(self._perform(operation, due_ns))

    async def _closed(self, step: Step, begin_ns: int) -> None:
        """Each of so many callers asks again when it has its answer."""
        setup, whole = self._setup, step.in_flight or 0
        rng = generator(setup.seed, step.number, setup.client)
        todo = operations(len(setup.messages.searches), setup.ingest_share, rng)
        await asyncio.sleep(max(0.0, (begin_ns - time.monotonic_ns()) / 1e9))
        for _ in range(share(whole, setup.clients, setup.client)):
            self._start(self._caller(todo))
        left_ns = self._tally.end_ns - time.monotonic_ns()
        await asyncio.sleep(max(0.0, left_ns / 1e9))

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        call = asyncio.create_task(work)
        self._calls.add(call)
        call.add_done_callback(self._ended)

    def _ended(self, call: asyncio.Task[None]) -> None:
        self._calls.discard(call)
        if not call.cancelled():
            self._broken = self._broken or call.exception()

    async def _caller(self, todo: Iterator[Operation]) -> None:
        while (now_ns := time.monotonic_ns()) < self._tally.end_ns:
            await self._perform(next(todo), now_ns)

    async def _perform(self, operation: Operation, due_ns: int) -> None:
        sent_ns, code, partial = time.monotonic_ns(), OK, False
        done_ns = 0
        try:
            if operation.ingest:
                code = await self._store(operation.question)
                done_ns = time.monotonic_ns()
            else:
                body = self._setup.messages.searches[operation.question]
                response = await self._routers.call("Search", body, self._setup.deadline_s)
                done_ns = time.monotonic_ns()
                partial = is_partial(response)
        except ShoalError as error:
            done_ns = time.monotonic_ns()
            failure = error.__cause__
            if not isinstance(failure, grpc.aio.AioRpcError):
                raise
            code = failure.code().name
        self._record(Outcome(due_ns, sent_ns, done_ns, code, partial, operation.ingest))

    async def _store(self, question: int) -> str:
        """Stores one document in a stream of its own; the code of what came of it."""
        setup, number = self._setup, self._ingested
        self._ingested += 1
        document = ingest_documents(
            setup.messages.documents[question],
            document_id(setup.messages.prefix, setup.client, number),
            number,
        )
        parts = iter((setup.messages.ingest_start, document))
        address, calls = self._routers.begin()
        code, error = OK, None
        try:
            async for response in calls["Ingest"](parts, timeout=setup.deadline_s):
                code = refusal(response) or code
        except grpc.aio.AioRpcError as failure:
            error = typed_error(failure, address)
            raise error from failure
        finally:
            self._routers.end(address, error)
        return code

    def _record(self, outcome: Outcome) -> None:
        self._tally.record(outcome)
        self._since.record(outcome)

    async def _tell(self, tell: Callable[[Progress], None]) -> None:
        while True:
            await asyncio.sleep(PROGRESS_S)
            since, self._since = self._since, _Since()
            tell(
                Progress(
                    client=self._setup.client,
                    answered=since.answered,
                    failed=since.failed,
                    in_flight=len(self._calls),
                    latencies=since.latencies,
                )
            )


class _Since:
    """What happened since the last progress."""

    def __init__(self) -> None:
        self.answered = 0
        self.failed = 0
        self.latencies = Latencies()

    def record(self, outcome: Outcome) -> None:
        self.answered += outcome.code == OK
        self.failed += outcome.code != OK
        self.latencies.record_ns(outcome.done_ns - outcome.due_ns)
