"""Both clients before several routers: they learn them, spread, and go on when one ends."""

import itertools
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import pytest

from shoal.errors import ClusterUnreachable, InvalidRequest, Overloaded, ShardUnavailable
from shoal.rpc.router.v1 import router_pb2
from shoal.settings import Limits
from tests.wire.client_twins import connected
from tests.wire.fake_router import FakeRouter, running


@pytest.fixture
def routers() -> Iterator[list[FakeRouter]]:
    """Three routers of one cluster, which name each other."""
    with ExitStack() as stack:
        made = [
            stack.enter_context(contextmanager(running)(Limits(), window_documents=16))
            for _ in range(3)
        ]
        for each in made:
            each.collections = made[0].collections
            each.routers = [other.target for other in made]
        yield made


@pytest.fixture(params=["sync", "aio"])
def connect(request: pytest.FixtureRequest) -> Iterator[Callable[[str], Any]]:
    with ExitStack() as stack:
        yield lambda target: stack.enter_context(contextmanager(connected)(request.param, target))


@pytest.fixture
def client(connect: Callable[[str], Any], routers: list[FakeRouter]) -> Any:
    """Given the first router's address alone."""
    made = connect(routers[0].target)
    made.create_collection("papers")
    made.ingest("papers", [{"id": f"d{n}", "text": "common"} for n in range(5)])
    return made


def searches(router: FakeRouter) -> int:
    return sum(isinstance(each, router_pb2.SearchRequest) for each in router.requests)


def search_until(client: Any, condition: Callable[[], bool]) -> int:
    """Searches until something holds; every one must be answered. Returns how many."""
    give_up = time.monotonic() + 20
    for number in itertools.count():
        if condition():
            return number
        assert time.monotonic() < give_up
        assert len(client.search("papers", "common")) == 5
    raise AssertionError


def test_one_address_leads_to_all(client: Any, routers: list[FakeRouter]) -> None:
    search_until(client, lambda: all(searches(each) for each in routers))
    before = [searches(each) for each in routers]
    for _ in range(30):
        client.search("papers", "common")
    assert [searches(each) - n for each, n in zip(routers, before, strict=True)] == [10, 10, 10]


def test_several_addresses(connect: Callable[[str], Any], routers: list[FakeRouter]) -> None:
    for each in routers:
        each.routers = []
    client = connect(f"{routers[1].target}, {routers[2].target}")
    client.create_collection("papers")
    for _ in range(20):
        client.search("papers", "common")
    assert [searches(each) for each in routers] == [0, 10, 10]
    routers[1].stop()
    for _ in range(20):
        client.search("papers", "common")
    routers[1].start(routers[1].port)


def test_no_address_is_refused(connect: Callable[[str], Any]) -> None:
    with pytest.raises(InvalidRequest, match="names no router"):
        connect(" , ")


def test_addresses_that_lead_nowhere_leave_the_given_one(
    connect: Callable[[str], Any], routers: list[FakeRouter]
) -> None:
    first, second, third = routers
    first.routers = [second.target, third.target, "no-such-host.invalid:1"]
    second.stop()
    third.stop()
    client = connect(first.target)
    client.create_collection("papers")
    for _ in range(50):
        client.search("papers", "common")
    assert searches(first) == 50
    second.start(second.port)
    third.start(third.port)


def test_a_router_that_is_gone_fails_nobody(client: Any, routers: list[FakeRouter]) -> None:
    search_until(client, lambda: all(searches(each) for each in routers))
    # A gone router still stands in the others' lists until the cluster has noticed.
    routers[0].stop()
    for _ in range(50):
        assert len(client.search("papers", "common")) == 5
        client.delete("papers", ["nothing"])
    routers[0].start(routers[0].port)
    before = searches(routers[0])
    search_until(client, lambda: searches(routers[0]) > before)


def test_a_draining_router_is_left_after_one_answer(client: Any, routers: list[FakeRouter]) -> None:
    search_until(client, lambda: all(searches(each) for each in routers))
    before = searches(routers[1])
    routers[1].draining = True
    for each in routers:
        each.routers = [routers[0].target, routers[2].target]
    for _ in range(30):
        client.search("papers", "common")
    assert searches(routers[1]) <= before + 1


def test_an_error_too_says_that_its_router_drains(client: Any, routers: list[FakeRouter]) -> None:
    search_until(client, lambda: all(searches(each) for each in routers))
    before = searches(routers[1])
    routers[1].draining = True
    routers[1].errors["Search"] = [ShardUnavailable("gone") for _ in range(50)]
    search_until(client, lambda: searches(routers[1]) > before)
    for _ in range(30):
        client.search("papers", "common")
    assert searches(routers[1]) == before + 1


def test_an_ingest_goes_on_at_another_router(client: Any, routers: list[FakeRouter]) -> None:
    search_until(client, lambda: all(searches(each) for each in routers))
    before = sum(len(each.streams) for each in routers)
    routers[0].drain_after = 20
    for number in range(9):
        given = [{"id": f"{number}-{n}", "text": "other"} for n in range(100)]
        assert client.ingest("papers", given).stored == 100
    assert routers[0].draining
    # Each has one stream but for the one that was sent elsewhere.
    assert sum(len(each.streams) for each in routers) == before + 9 + 1


@pytest.mark.parametrize(
    "failure", [ShardUnavailable("gone"), Overloaded("full", retry_after_s=0.001)]
)
def test_when_everything_fails_few_calls_are_repeated(
    client: Any, routers: list[FakeRouter], failure: Any
) -> None:
    search_until(client, lambda: all(searches(each) for each in routers))
    before = sum(map(searches, routers))
    for each in routers:
        each.errors["Search"] = [failure for _ in range(1000)]
    for _ in range(200):
        with pytest.raises(type(failure)):
            client.search("papers", "common")
    assert sum(map(searches, routers)) - before <= 1.1 * 200


def test_nobody_there_at_all(client: Any, routers: list[FakeRouter]) -> None:
    search_until(client, lambda: all(searches(each) for each in routers))
    for each in routers:
        each.stop()
    for _ in range(20):
        with pytest.raises(ClusterUnreachable):
            client.search("papers", "common", deadline_s=5.0)
    for each in routers:
        each.start(each.port)
    search_until(client, lambda: True)
