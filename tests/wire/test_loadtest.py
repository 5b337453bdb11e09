"""The load tester is right: against servers whose stalls and capacity are known."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import grpc
import numpy as np
import pytest

import shoal
from shoal.errors import DiskFull
from shoal.loadtest.core.knee import knee_is_bounded, knee_qps, next_rate
from shoal.loadtest.core.report import Report
from shoal.loadtest.core.schedule import Step
from shoal.loadtest.driver import Progress, Setup
from shoal.loadtest.messages import Question, all_ids, messages
from shoal.loadtest.pool import ClientDied, ClientPool
from tests.wire.fake_router import FakeRouter, running
from tests.wire.load_server import FULL, no_delay, one_slot, serving, stalls

PREFIX = "loadtest-t-"


def setup(
    target: str,
    *,
    clients: int = 1,
    deadline_s: float = 10.0,
    ingest_share: float = 0.0,
    questions: tuple[Question, ...] = ("one", "two"),
) -> Setup:
    asked = messages("papers", questions, top_k=10, prefix=PREFIX)
    return Setup(target, asked, ingest_share, deadline_s, seed=1, client=0, clients=clients)


def measured(given: Setup, step: Step) -> Report:
    with ClientPool(given) as pool:
        return pool.run(step, lambda _: None)


@pytest.fixture
def papers() -> Iterator[FakeRouter]:
    for router in running():
        with shoal.connect(router.target) as client:
            client.create_collection("papers")
        yield router


# --- what it must be right about ---------------------------------------------------


@pytest.mark.slow
def test_a_stall_is_seen_by_the_open_loop_and_hidden_by_the_closed_one() -> None:
    """The server stalls for a second each ten: both kinds of tester meet one stall at once."""
    with serving(stalls(10.0, 1.0)) as (target, _), ThreadPoolExecutor() as both:
        opened = both.submit(measured, setup(target), Step(0, 10.0, 0.5, rate_per_s=100))
        closed = both.submit(measured, setup(target), Step(0, 10.0, 0.5, in_flight=1))
        seen, hidden = opened.result().as_json(), closed.result().as_json()
    assert seen["latency_ms"]["p999"] > 900
    assert seen["latency_ms"]["p50"] < 200
    # One call in thousands stood still: the tester that waits for it asks nobody meanwhile.
    assert hidden["requests"] > 2000
    assert hidden["latency_ms"]["p999"] < 400


@pytest.mark.slow
def test_the_knee_is_the_known_capacity() -> None:
    capacity = 250.0
    reports: list[Report] = []
    with (
        serving(one_slot(1 / capacity)) as (target, _),
        ClientPool(setup(target, clients=2)) as pool,
    ):
        while (offered := next_rate(reports)) is not None:
            step = Step(len(reports), 1.0, 0.25, rate_per_s=offered)
            reports.append(pool.run(step, lambda _: None))
    assert knee_is_bounded(reports)
    assert knee_qps(reports) == pytest.approx(capacity, rel=0.1)


@pytest.mark.slow
def test_a_client_that_cannot_send_so_much_says_so() -> None:
    with serving(no_delay()) as (target, _):
        report = measured(setup(target, deadline_s=2.0), Step(0, 1.0, 0.2, rate_per_s=20_000))
    client = report.as_json()["client"]
    assert client["limited"] is True
    assert client["late_share"] > 0.01
    assert 0.1 < client["processor_share"] < 3.0
    assert any("left more than 10 ms after their time" in reason for reason in client["reasons"])


# --- what it counts ----------------------------------------------------------------


@pytest.mark.slow
def test_every_status_is_counted() -> None:
    with serving(no_delay()) as (target, server), ClientPool(setup(target)) as pool:
        step, told = Step(0, 1.0, 0.0, rate_per_s=100), list[Progress]()
        fine = pool.run(step, told.append)
        server.coverage = type(FULL)(
            documents_total=2, documents_covered=1, shards_total=2, shards_answered=1
        )
        partial = pool.run(step, lambda _: None)
        server.refusal = grpc.StatusCode.RESOURCE_EXHAUSTED
        refused = pool.run(step, lambda _: None)
    assert fine.errors_by_code == {}
    assert fine.goodput_qps == pytest.approx(fine.offered_qps, rel=0.05)
    assert sum(each.answered for each in told) <= fine.tally.requests
    assert told[0].answered > 0
    # The same step of the same seed: the same arrivals.
    assert partial.tally.partial == partial.tally.requests == fine.tally.requests
    assert (partial.errors, partial.goodput_qps) == (0, 0.0)
    assert refused.errors_by_code == {"RESOURCE_EXHAUSTED": refused.tally.requests}
    assert len(refused.tally.searches) == 0


@pytest.mark.slow
def test_calls_end_at_their_deadline_and_count_with_their_time() -> None:
    with serving(stalls(1000.0, 1000.0)) as (target, _):
        report = measured(setup(target, deadline_s=0.3), Step(0, 0.5, 0.0, rate_per_s=50))
    assert report.errors_by_code == {"DEADLINE_EXCEEDED": report.tally.requests}
    assert 290 < (report.tally.searches.percentile_ms(50) or 0) < 600


# --- ingest ------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("questions", [("one", "two"), (np.ones(4), np.zeros(4))])
def test_a_mix_stores_documents_under_ids_of_its_own(
    papers: FakeRouter, questions: tuple[Question, ...]
) -> None:
    given = setup(papers.target, clients=2, ingest_share=0.5, questions=questions)
    report = measured(given, Step(0, 1.0, 0.0, rate_per_s=100))
    assert report.errors == 0
    assert len(report.tally.ingests) + len(report.tally.searches) == report.tally.requests
    stored = papers.collections["papers"].documents
    assert len(report.tally.ingests) >= len(stored) > 10
    assert set(stored) <= set(all_ids(PREFIX, 2))
    assert len({item.document.payload for item in stored.values()}) > 10
    assert "ingest_latency_ms" in report.as_json()


@pytest.mark.slow
def test_a_refused_document_is_an_error(papers: FakeRouter) -> None:
    papers.refuse = lambda _: DiskFull("no space")
    report = measured(setup(papers.target, ingest_share=1.0), Step(0, 0.5, 0.0, rate_per_s=50))
    assert report.errors_by_code == {"RESOURCE_EXHAUSTED": report.tally.requests}


# --- its processes -----------------------------------------------------------------


@pytest.mark.slow
def test_a_client_that_dies_is_named() -> None:
    with serving(no_delay()) as (target, _), ClientPool(setup(target)) as pool:
        (process,) = pool._processes
        process.kill()
        with pytest.raises(ClientDied, match="client process 0 ended with exit code -9"):
            pool.run(Step(0, 1.0, 0.0, rate_per_s=1), lambda _: None)
