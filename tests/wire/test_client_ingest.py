"""Ingest over real gRPC: windows, broken streams, refusals, stalls, callers who leave."""

import asyncio
import threading
from collections.abc import AsyncIterator, Iterator
from typing import Any

import numpy as np
import pytest

import shoal
from shoal.errors import (
    ClusterUnreachable,
    CollectionNotFound,
    DeadlineExceeded,
    DiskFull,
    InvalidId,
    NonFiniteVector,
    ShardUnavailable,
    ShoalError,
)
from shoal.rpc.router.v1 import router_pb2
from shoal.settings import Limits
from tests.wire.client_twins import connected
from tests.wire.fake_router import FakeRouter, running

WINDOW = 16
LIMITS = Limits(max_message_bytes=256 << 10)


@pytest.fixture
def router() -> Iterator[FakeRouter]:
    yield from running(LIMITS, window_documents=WINDOW, window_bytes=128 << 10)


@pytest.fixture(params=["sync", "aio"])
def client(request: pytest.FixtureRequest, router: FakeRouter) -> Iterator[Any]:
    for client in connected(request.param, router.target):
        client.create_collection("papers")
        yield client


def documents(count: int, version: str = "words") -> list[dict[str, Any]]:
    return [{"id": f"d{n}", "text": f"{version} {n}", "n": n} for n in range(count)]


def stored_texts(router: FakeRouter) -> dict[str, str]:
    return {
        document_id: item.document.text
        for document_id, item in router.collections["papers"].documents.items()
    }


def test_everything_is_stored_within_the_window(client: Any, router: FakeRouter) -> None:
    report = client.ingest("papers", iter(documents(500)))
    assert (report.stored, report.unchanged, report.rejected) == (500, 0, ())
    assert report.position == b"ingested"
    assert len(stored_texts(router)) == 500
    (stream,) = router.streams
    assert stream.ended_by_client
    assert stream.start.collection == "papers"
    assert max(len(message.documents) for message in stream.messages) <= WINDOW
    again = client.ingest("papers", documents(500))
    assert (again.stored, again.unchanged) == (0, 500)


def test_nothing_to_ingest(client: Any) -> None:
    assert client.ingest("papers", []).documents == 0


def test_documents_near_the_message_limit(client: Any, router: FakeRouter) -> None:
    texts = {
        f"d{n}": "x" * size for n, size in enumerate((200_000, 10, 130_000, 261_000, 20, 140_000))
    }
    report = client.ingest("papers", [{"id": key, "text": text} for key, text in texts.items()])
    assert report.stored == len(texts)
    assert stored_texts(router) == texts


def test_too_large_for_a_message_is_refused_here(client: Any, router: FakeRouter) -> None:
    given = [
        {"id": "a", "text": "x"},
        {"id": "b", "text": "x" * (256 << 10)},
        {"id": "c", "text": "y"},
    ]
    report = client.ingest("papers", given)
    assert report.stored == 2
    (rejection,) = report.rejected
    assert (rejection.id, rejection.reason, rejection.number) == ("b", "LIMIT_EXCEEDED", 1)
    assert rejection.metadata["limit"] == "max_message_bytes"


def test_bad_documents_do_not_stop_the_others(client: Any, router: FakeRouter) -> None:
    def refuse(item: router_pb2.IngestDocument) -> ShoalError | None:
        return NonFiniteVector("it holds NaN") if item.document.id == "d7" else None

    router.refuse = refuse
    given: list[Any] = documents(10)
    given[3] = {"text": "no id"}
    given[5] = "no document"
    report = client.ingest("papers", given)
    assert report.stored == 7
    found = {item.number: item.reason for item in report.rejected}
    assert found == {3: "INVALID_ID", 5: "INVALID_REQUEST", 7: "NON_FINITE_VECTOR"}


def test_refusals_can_be_raised(client: Any, router: FakeRouter) -> None:
    given = [*documents(5), {"text": "no id"}, *documents(5)]
    with pytest.raises(InvalidId, match="document 5") as caught:
        client.ingest("papers", given, on_rejected="raise")
    assert caught.value.metadata["number"] == "5"


def test_duplicates_last_wins(client: Any, router: FakeRouter) -> None:
    given = [{"id": f"d{n % 10}", "text": f"version {n}"} for n in range(30)]
    report = client.ingest("papers", given)
    assert (report.stored, report.duplicates) == (30, 20)
    assert stored_texts(router) == {f"d{n}": f"version {n + 20}" for n in range(10)}


def test_vectors_travel_as_they_are(client: Any, router: FakeRouter) -> None:
    rows = np.random.default_rng(0).standard_normal((100, 64)).astype(np.float32)
    client.ingest("papers", ({"id": str(n), "vector": row} for n, row in enumerate(rows)))
    held = router.collections["papers"].documents
    assert b"".join(held[str(n)].vector.data for n in range(100)) == rows.tobytes()


def test_a_broken_stream_is_resumed(client: Any, router: FakeRouter) -> None:
    router.break_after = [10, 30, 1]
    report = client.ingest("papers", documents(200))
    assert len(router.streams) == 4
    assert (report.stored + report.unchanged, report.rejected) == (200, ())
    assert stored_texts(router) == {f"d{n}": f"words {n}" for n in range(200)}


def test_a_restarted_cluster_is_waited_for(client: Any, router: FakeRouter) -> None:
    restarted = threading.Event()

    def given() -> Iterator[dict[str, Any]]:
        for number, document in enumerate(documents(300)):
            if number == 150:
                router.stop()
                threading.Thread(target=restart).start()
            yield document

    def restart() -> None:
        router.start(router.port)
        restarted.set()

    report = client.ingest("papers", given())
    assert restarted.wait(10)
    assert report.documents == 300
    assert stored_texts(router) == {f"d{n}": f"words {n}" for n in range(300)}


def test_a_stream_that_the_cluster_ends_is_resumed(client: Any, router: FakeRouter) -> None:
    router.end_after = [20]
    report = client.ingest("papers", documents(100))
    assert report.documents == 100
    assert len(router.streams) == 2


def test_refused_for_now_is_sent_again(client: Any, router: FakeRouter) -> None:
    refusals = {"d3": 2, "d9": 1}

    def refuse(item: router_pb2.IngestDocument) -> ShoalError | None:
        if refusals.get(item.document.id, 0) > 0:
            refusals[item.document.id] -= 1
            return ShardUnavailable("shard 1 does not answer", shard=1)
        return None

    router.refuse = refuse
    report = client.ingest("papers", documents(20))
    assert (report.stored, report.rejected) == (20, ())


def test_errors_that_stay_are_raised(client: Any, router: FakeRouter) -> None:
    with pytest.raises(CollectionNotFound):
        client.ingest("others", documents(100))
    router.errors["Ingest"] = [DiskFull("no room for the log")]
    with pytest.raises(DiskFull) as caught:
        client.ingest("papers", documents(100))
    assert caught.value.metadata["stored"] == "0"


def test_a_silent_cluster_is_a_stall(client: Any, router: FakeRouter) -> None:
    router.silent = True
    with pytest.raises(DeadlineExceeded):
        client.ingest("papers", documents(100), stall_s=0.3)


def test_a_cluster_that_is_gone_is_a_stall(client: Any, router: FakeRouter) -> None:
    def given() -> Iterator[dict[str, Any]]:
        yield from documents(50)
        router.stop()
        yield from documents(100)

    with pytest.raises(ClusterUnreachable, match=router.target):
        client.ingest("papers", given(), stall_s=0.5)
    router.start(router.port)


def test_progress(client: Any) -> None:
    reports: list[Any] = []
    report = client.ingest("papers", documents(300), progress=reports.append)
    counts = [item.documents for item in reports]
    assert counts == sorted(counts)
    assert reports[-1] == report


def test_the_callers_own_error_ends_the_stream(client: Any, router: FakeRouter) -> None:
    def given() -> Iterator[dict[str, Any]]:
        yield from documents(40)
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        client.ingest("papers", given())
    assert not [item for item in threading.enumerate() if item.name == "shoal-ingest"]
    assert client.ingest("papers", documents(10)).documents == 10


def test_documents_are_taken_in_the_callers_thread(router: FakeRouter) -> None:
    threads = set()

    def given() -> Iterator[dict[str, Any]]:
        for document in documents(100):
            threads.add(threading.get_ident())
            yield document

    with shoal.connect(router.target) as client:
        client.create_collection("papers")
        client.ingest("papers", given())
    assert threads == {threading.get_ident()}


def test_a_slow_cluster_holds_the_input_back(router: FakeRouter) -> None:
    """Only a window and a buffer of documents are taken from an endless input."""
    router.silent = True
    taken = 0

    def given() -> Iterator[dict[str, Any]]:
        nonlocal taken
        while True:
            taken += 1
            yield {"id": f"d{taken}", "text": "words"}

    with shoal.connect(router.target) as client:
        client.create_collection("papers")
        with pytest.raises(DeadlineExceeded):
            client.ingest("papers", given(), stall_s=0.3)
    assert WINDOW <= taken <= 1000


async def test_async_documents(router: FakeRouter) -> None:
    async def given() -> AsyncIterator[dict[str, Any]]:
        for document in documents(100):
            await asyncio.sleep(0)
            yield document

    async with shoal.aio.connect(router.target) as client:
        await client.create_collection("papers")
        report = await client.ingest("papers", given())
    assert report.stored == 100


async def test_a_cancelled_ingest_leaves_nothing(router: FakeRouter) -> None:
    router.silent = True
    async with shoal.aio.connect(router.target) as client:
        await client.create_collection("papers")
        before = asyncio.all_tasks()
        task = asyncio.create_task(client.ingest("papers", documents(500)))
        async with asyncio.timeout(10):
            while not router.streams or not router.streams[0].messages:
                await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        # gRPC's own task ends when the cancellation comes back from its queue; a leak stays.
        async with asyncio.timeout(10):
            while asyncio.all_tasks() - before:
                await asyncio.sleep(0.01)
        router.silent = False
        assert (await client.ingest("papers", documents(5))).documents == 5


async def test_many_calls_under_way(router: FakeRouter) -> None:
    async with shoal.aio.connect(router.target) as client:
        await client.create_collection("papers")
        await client.ingest("papers", [{"id": f"d{n}", "text": f"word{n}"} for n in range(20)])
        answers = await asyncio.gather(
            *(client.search("papers", f"word{n % 20}", top_k=1) for n in range(100))
        )
    assert [answer[0].id for answer in answers] == [f"d{n % 20}" for n in range(100)]
