"""The pump that serves everybody: no query's fault stops it."""

import asyncio
from typing import Any

import pytest

from router.core.fanout import Finish, Query, Send
from router.core.options import FanOutOptions
from router.core.pacing import Pacing
from router.pump import Outcome, Pump
from shoal.errors import StaleTopology

FAR = 1 << 61


class Lane:
    """A pump whose sends and finishes the test decides."""

    def __init__(self) -> None:
        self.fault: BaseException | None = None
        self.finish_fault: Exception | None = None
        self.finished: list[Finish[asyncio.Future[str]]] = []
        self.refreshes = 0
        self.pump: Pump[asyncio.Future[str]] = Pump(
            [["a"]],
            FanOutOptions(pacing=Pacing(hold_ns=0)),
            send=self.send,
            finish=self.finish,
            refresh=self.refresh,
        )

    async def send(self, action: Send[Any]) -> Outcome:
        await asyncio.sleep(0)
        if self.fault is not None:
            raise self.fault
        return "reply", {}

    def finish(self, finish: Finish[Any]) -> None:
        self.finished.append(finish)
        for query in finish.queries:
            query.payload.set_result("answer")
        if self.finish_fault is not None:
            raise self.finish_fault

    async def refresh(self) -> bool:
        self.refreshes += 1
        self.fault = None
        return True

    def ask(self) -> asyncio.Future[str]:
        future: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self.pump.submit([Query(payload=future, deadline_ns=FAR)])
        return future


async def test_a_cancelled_future_does_not_stop_the_pump() -> None:
    """`set_result` on it raises; everybody else must still be answered."""
    lane = Lane()
    lane.ask().cancel()
    assert await lane.ask() == "answer"
    assert await lane.ask() == "answer"
    assert lane.pump.core.open_queries == 0


@pytest.mark.parametrize("fault", [RuntimeError("a bug"), ValueError("another")])
async def test_a_fault_in_a_send_is_that_messages_failure(fault: Exception) -> None:
    lane = Lane()
    lane.fault = fault
    await lane.ask()
    assert lane.finished[-1].missing[0][0].reason == "INTERNAL"
    lane.fault = None
    await lane.ask()
    assert lane.finished[-1].missing == [{}]


async def test_a_fault_in_a_finish_is_its_own() -> None:
    lane = Lane()
    lane.finish_fault = RuntimeError("a bug")
    await lane.ask()
    lane.finish_fault = None
    assert await lane.ask() == "answer"


async def test_a_stale_topology_is_refreshed_by_the_pump() -> None:
    lane = Lane()
    lane.fault = StaleTopology("moved")
    assert await lane.ask() == "answer"
    assert lane.refreshes == 1


async def test_a_query_ends_at_its_deadline_without_a_reply() -> None:
    lane = Lane()
    gate = asyncio.Event()

    async def hang(action: Send[Any]) -> Outcome:
        await gate.wait()
        raise AssertionError("it was not cancelled")

    lane.pump._send = hang
    loop = asyncio.get_running_loop()
    future: asyncio.Future[str] = loop.create_future()
    deadline_ns = int(loop.time() * 1e9) + 20_000_000
    lane.pump.submit([Query(payload=future, deadline_ns=deadline_ns)])
    await future
    assert lane.finished[-1].missing[0][0].reason == "DEADLINE_EXCEEDED"
    assert lane.pump.core.outstanding(0) == (0, 0)
    assert not lane.pump._calls
