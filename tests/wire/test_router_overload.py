"""More questions than slowed servers can answer, over real gRPC."""

import asyncio
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from statistics import median
from typing import Any

import grpc
import pytest

from shoal.errors import Overloaded
from shoal.wire.errors import from_rpc_error
from tests.wire.router_fakes import Cluster, Faults, text_request, vector_request

EACH_S = 0.02
CAPACITY = 1 / EACH_S
DEADLINE_S = 10.0
QUERY = [1.0] * 8


class OneAtATime:
    """Stands for a fake server's gate: it works EACH_S for each question of a message."""

    def __init__(self, faults: Faults, field_name: str) -> None:
        self._faults, self._field = faults, field_name
        self._free = 0.0

    async def wait(self) -> None:
        count = len(getattr(self._faults.messages[-1], self._field))
        self._free = max(self._free, time.monotonic()) + EACH_S * count
        await asyncio.sleep(self._free - time.monotonic())

    def set(self) -> None:
        """Never closed."""


@dataclass
class Seen:
    """What became of the questions: seconds each, and refusals as they are typed."""

    answered: list[float] = field(default_factory=list)
    refused: list[float] = field(default_factory=list)
    refusals: list[Exception] = field(default_factory=list)
    ends: list[float] = field(default_factory=list)

    async def ask(self, call: Any) -> None:
        begin = time.monotonic()
        try:
            await call
        except grpc.aio.AioRpcError as error:
            self.refused.append(time.monotonic() - begin)
            self.refusals.append(from_rpc_error(error))
        else:
            self.ends.append(time.monotonic())
            self.answered.append(self.ends[-1] - begin)


async def offered(cluster: Cluster, rate: float, seconds: float, request: Any) -> Seen:
    """Asks `rate` questions a second, whatever becomes of them."""
    seen = Seen()
    begin = time.monotonic()
    async with asyncio.TaskGroup() as asked:
        for number in range(int(rate * seconds)):
            await asyncio.sleep(begin + number / rate - time.monotonic())
            call = cluster.search.Search(request(number), timeout=DEADLINE_S)
            asked.create_task(seen.ask(call))
    return seen


@pytest.fixture
async def slowed() -> AsyncIterator[Cluster]:
    async with Cluster(encoders=1) as cluster:
        cluster.fill(10)
        yield cluster


def check(seen: Seen, begin: float) -> None:
    """At twice the capacity: half is answered, soon; half is refused, at once, with a hint."""
    assert len(seen.ends) / (max(seen.ends) - begin) >= 0.5 * CAPACITY
    assert max(seen.answered) < 75 * EACH_S, "unlimited, the last would wait for 150"
    assert seen.refused
    assert median(seen.refused) < median(seen.answered) / 2, "it waited in no queue"
    for refusal in seen.refusals:
        assert isinstance(refusal, Overloaded)
        assert refusal.retry_after_s is not None
        assert 0.02 <= refusal.retry_after_s <= 5.0


@pytest.mark.slow
async def test_shards_at_twice_their_capacity(slowed: Cluster) -> None:
    for server in slowed.servers:
        server.search.gate = OneAtATime(server.search, "top_k")  # type: ignore[assignment]
    calm = await offered(slowed, CAPACITY / 2, 1.0, lambda _: vector_request(QUERY))
    assert not calm.refused
    begin = time.monotonic()
    seen = await offered(slowed, 2 * CAPACITY, 3.0, lambda _: vector_request(QUERY))
    check(seen, begin)
    assert not slowed.servers[0].fetch.messages


@pytest.mark.slow
async def test_an_encoder_at_twice_its_capacity(slowed: Cluster) -> None:
    for encoder in slowed.encoders:
        encoder.queries.gate = OneAtATime(encoder.queries, "texts")  # type: ignore[assignment]
    await offered(slowed, CAPACITY / 2, 1.0, lambda number: text_request(f"calm {number}"))
    begin = time.monotonic()
    seen = await offered(slowed, 2 * CAPACITY, 3.0, lambda number: text_request(f"word {number}"))
    check(seen, begin)
    await offered(slowed, 1.0, 1.0, lambda _: text_request("calm 1"))
    assert slowed.servers[0].search.messages
