"""The ingest session against a model of the cluster that loses, delays and refuses."""

import random
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shoal.client import ingest
from shoal.client.ingest import IngestSession, IngestWatch
from shoal.client.model import IngestReport
from shoal.errors import (
    ClusterUnreachable,
    DeadlineExceeded,
    DiskFull,
    InternalError,
    InvalidId,
    NonFiniteVector,
    Overloaded,
    ShardUnavailable,
    ShoalError,
)
from shoal.rpc.router.v1 import router_pb2
from shoal.settings import Limits
from shoal.wire.errors import to_status

LIMITS = Limits()
ROOMY = router_pb2.IngestStarted(window_documents=1000, window_bytes=1 << 30)


def session_of(stall_s: float = 60.0, limits: Limits = LIMITS) -> IngestSession:
    return IngestSession(
        request_id="r", name="papers", fingerprint="", limits=limits, stall_s=stall_s
    )


def opened(window: router_pb2.IngestStarted = ROOMY, stall_s: float = 60.0) -> IngestSession:
    session = session_of(stall_s)
    assert session.open().start.collection == "papers"
    session.receive(router_pb2.IngestResponse(started=window), 0.0)
    return session


def sent(session: IngestSession, now: float = 0.0) -> list[router_pb2.IngestDocument]:
    message = session.next_message(now)
    return [] if message is None else list(message.documents.documents)


def acknowledge(
    session: IngestSession, *numbers: int, error: ShoalError | None = None, now: float = 0.0
) -> None:
    session.receive(
        router_pb2.IngestResponse(
            acknowledgements=router_pb2.IngestAcknowledgements(
                acknowledgements=[
                    router_pb2.IngestAcknowledgement(
                        number=number,
                        outcome=router_pb2.INGEST_OUTCOME_REJECTED
                        if error
                        else router_pb2.INGEST_OUTCOME_STORED,
                        status=to_status(error) if error else None,
                    )
                    for number in numbers
                ],
                position=b"p",
            )
        ),
        now,
    )


def offer(session: IngestSession, *ids: str, first: int = 0) -> None:
    for number, document_id in enumerate(ids, first):
        session.offer(number, {"id": document_id, "text": f"text {number}"}, 0.0)


# --- against a model -----------------------------------------------------------


@dataclass
class Model:
    """What a cluster holds, and the stream that is open to it."""

    window: router_pb2.IngestStarted
    stored: dict[str, str] = field(default_factory=dict)
    seen: set[str] = field(default_factory=set)
    unacknowledged: list[router_pb2.IngestDocument] = field(default_factory=list)

    def open(self) -> None:
        self.seen = set()
        self.unacknowledged = []

    def receive(self, message: router_pb2.IngestRequest) -> None:
        documents = list(message.documents.documents)
        assert 1 <= len(documents) <= ingest.MESSAGE_DOCUMENTS
        size = sum(document.ByteSize() for document in documents)
        assert len(documents) == 1 or size <= ingest.MESSAGE_BYTES
        self.unacknowledged.extend(documents)
        held = self.unacknowledged
        ids = [document.document.id for document in held]
        assert len(ids) == len(set(ids)), "two versions of a document on the way"
        if len(held) > 1:
            assert len(held) <= self.window.window_documents
            assert sum(item.ByteSize() for item in held) <= self.window.window_bytes

    def settle(self, place: int, error: ShoalError | None) -> router_pb2.IngestAcknowledgement:
        document = self.unacknowledged.pop(place % len(self.unacknowledged))
        return self.outcome(document, error)

    def outcome(
        self, given: router_pb2.IngestDocument, error: ShoalError | None
    ) -> router_pb2.IngestAcknowledgement:
        document = given.document
        acknowledgement = router_pb2.IngestAcknowledgement(number=given.number)
        if error is not None:
            acknowledgement.outcome = router_pb2.INGEST_OUTCOME_REJECTED
            acknowledgement.status.CopyFrom(to_status(error))
        elif self.stored.get(document.id) == document.text:
            acknowledgement.outcome = router_pb2.INGEST_OUTCOME_UNCHANGED
        else:
            self.stored[document.id] = document.text
            acknowledgement.outcome = router_pb2.INGEST_OUTCOME_STORED
            acknowledgement.duplicate = document.id in self.seen
            self.seen.add(document.id)
        return acknowledgement


@settings(max_examples=200, deadline=None)
@given(
    ids=st.lists(st.sampled_from("abcdefgh"), max_size=14),
    bad=st.sets(st.integers(0, 13)),
    window=st.tuples(st.integers(1, 12), st.integers(1, 120)),
    seed=st.integers(0, 1 << 32),
)
def test_every_document_gets_one_outcome_and_the_last_of_an_id_wins(ids, bad, window, seed) -> None:
    chance = random.Random(seed)
    model = Model(router_pb2.IngestStarted(window_documents=window[0], window_bytes=window[1]))
    session = session_of()
    inputs = [(number, item) for number, item in enumerate(ids)]
    now, streaming, faults = 0.0, False, 12
    while not session.done:
        now += 3.0
        actions = ["feed"] if inputs else ["close"]
        actions += ["send", "settle", "lose", "drop"] if streaming else ["open"]
        action = chance.choice(actions) if faults else actions[0]
        faults = max(0, faults - (action in ("lose", "drop")))
        if action == "feed" or (not faults and inputs):
            number, item = inputs.pop(0)
            identity = "" if number in bad else item
            session.offer(number, {"id": identity, "text": f"text {number}"}, now)
        elif action == "close":
            session.close()
        if not streaming and (action == "open" or not faults):
            session.open()
            model.open()
            session.receive(router_pb2.IngestResponse(started=model.window), now)
            streaming = True
        if streaming and (action == "send" or not faults):
            message = session.next_message(now)
            if message is not None:
                model.receive(message)
        if streaming and model.unacknowledged and (action == "settle" or not faults):
            error = Overloaded("busy") if faults and chance.random() < 0.5 else None
            faults = max(0, faults - 1)
            acknowledgement = model.settle(chance.randrange(50), error)
            session.receive(
                router_pb2.IngestResponse(
                    acknowledgements=router_pb2.IngestAcknowledgements(
                        acknowledgements=[acknowledgement]
                    )
                ),
                now,
            )
        if streaming and action in ("lose", "drop"):
            # "lose": the documents are stored, the acknowledgements are not received.
            for document in model.unacknowledged if action == "lose" else []:
                model.outcome(document, None)
            session.broken(ClusterUnreachable("closed"), now)
            streaming = False
    report = session.report
    expected = {item: f"text {number}" for number, item in enumerate(ids) if number not in bad}
    assert model.stored == expected
    assert report.documents == len(ids)
    assert {item.number for item in report.rejected} == {n for n in bad if n < len(ids)}


# --- cases -----------------------------------------------------------------------


def test_nothing_is_sent_before_the_window_is_known() -> None:
    session = session_of()
    session.open()
    offer(session, "a")
    assert sent(session) == []


def test_window_bounds_documents() -> None:
    session = opened(router_pb2.IngestStarted(window_documents=2, window_bytes=1 << 20))
    offer(session, "a", "b", "c")
    assert [document.document.id for document in sent(session)] == ["a", "b"]
    assert sent(session) == []
    acknowledge(session, 1)
    assert [document.document.id for document in sent(session)] == ["c"]


def test_a_document_larger_than_the_window_travels_alone() -> None:
    session = opened(router_pb2.IngestStarted(window_documents=8, window_bytes=10))
    offer(session, "a", "b")
    assert len(sent(session)) == 1
    assert sent(session) == []
    acknowledge(session, 0)
    assert len(sent(session)) == 1


def test_messages_are_cut_by_bytes() -> None:
    session = opened()
    for number in range(5):
        session.offer(number, {"id": str(number), "text": "x" * (ingest.MESSAGE_BYTES // 2)}, 0.0)
    assert [len(sent(session)) for _ in range(6)] == [1, 1, 1, 1, 1, 0]


def test_messages_fit_the_clusters_limit() -> None:
    limits = Limits(max_message_bytes=4000)
    session = session_of(limits=limits)
    session.open()
    session.receive(router_pb2.IngestResponse(started=ROOMY), 0.0)
    for number in range(200):
        session.offer(number, {"id": f"d{number}", "text": "x" * (number * 17 % 1500)}, 0.0)
    session.offer(200, {"id": "large", "text": "x" * 3740}, 0.0)
    session.offer(201, {"id": "too large", "text": "x" * 3990}, 0.0)
    numbers = []
    while (message := session.next_message(0.0)) is not None:
        assert message.ByteSize() <= 4000
        numbers += [document.number for document in message.documents.documents]
    assert numbers == list(range(200)) + ([200] if 200 in numbers else [])
    assert 201 in {item.number for item in session.report.rejected}


def test_buffer_is_bounded() -> None:
    session = session_of()
    number = 0
    while session.has_room:
        offer(session, f"d{number}", first=number)
        number += 1
    assert number == ingest.BUFFER_DOCUMENTS


def test_a_second_version_waits_for_the_first() -> None:
    session = opened()
    offer(session, "a", "a", "b")
    assert [document.number for document in sent(session)] == [0]
    acknowledge(session, 0)
    assert [document.number for document in sent(session)] == [1, 2]


def test_wrong_documents_are_refused_without_being_sent() -> None:
    session = opened()
    session.offer(0, {"text": "no id"}, 0.0)
    session.offer(1, {"id": "x", "text": "t", "payload": [1]}, 0.0)
    session.close()
    assert session.done
    assert [item.reason for item in session.report.rejected] == ["INVALID_ID", "INVALID_PAYLOAD"]
    refusal = session.refusal()
    assert isinstance(refusal, InvalidId)
    assert refusal.metadata["number"] == "0"


def test_refused_by_the_cluster() -> None:
    session = opened()
    offer(session, "a")
    sent(session)
    acknowledge(session, 0, error=NonFiniteVector("vector 0 holds NaN", row=0))
    (rejection,) = session.report.rejected
    assert (rejection.id, rejection.reason, rejection.number) == ("a", "NON_FINITE_VECTOR", 0)
    assert rejection.metadata == {"row": "0"}


def test_refused_for_now_is_sent_again_after_a_pause() -> None:
    session = opened()
    offer(session, "a")
    sent(session)
    acknowledge(session, 0, error=ShardUnavailable("shard 1", shard=1), now=5.0)
    assert sent(session, 5.0) == []
    assert session.hold_s(5.0) == pytest.approx(ingest.BACKOFF_FIRST_S)
    assert [document.number for document in sent(session, 6.0)] == [0]
    acknowledge(session, 0, now=6.0)
    assert session.report.stored == 1


def test_pauses_grow_and_end_with_progress() -> None:
    session = session_of()
    pauses = []
    for _ in range(8):
        session.broken(ClusterUnreachable("closed"), 0.0)
        pauses.append(session.hold_s(0.0))
    assert pauses == sorted(pauses)
    assert pauses[-1] == ingest.BACKOFF_LAST_S
    session.receive(router_pb2.IngestResponse(started=ROOMY), 10.0)
    offer(session, "a")
    sent(session, 10.0)
    acknowledge(session, 0, now=10.0)
    session.broken(ClusterUnreachable("closed"), 10.0)
    assert session.hold_s(10.0) == pytest.approx(ingest.BACKOFF_FIRST_S)


def test_the_cluster_says_when_to_come_back() -> None:
    session = session_of()
    session.broken(Overloaded("busy", retry_after_s=9.0), 1.0)
    assert session.hold_s(1.0) == pytest.approx(9.0)


def test_a_broken_stream_resends_in_order() -> None:
    session = opened()
    offer(session, "a", "b", "c")
    sent(session)
    acknowledge(session, 1)
    session.broken(ClusterUnreachable("closed"), 0.0)
    session.open()
    session.receive(router_pb2.IngestResponse(started=ROOMY), 1.0)
    assert [document.number for document in sent(session, 1.0)] == [0, 2]


def test_an_error_that_stays_is_raised_with_how_far_it_came() -> None:
    session = opened()
    offer(session, "a", "b")
    sent(session)
    acknowledge(session, 0)
    with pytest.raises(DiskFull) as caught:
        session.broken(DiskFull("no room"), 0.0)
    assert caught.value.metadata["stored"] == "1"
    assert "ingest the same documents again" in caught.value.__notes__[0]


def test_stall_raises_the_last_error() -> None:
    session = opened(stall_s=10.0)
    offer(session, "a")
    sent(session)
    session.check_stall(10.0)
    with pytest.raises(DeadlineExceeded):
        session.check_stall(10.1)
    session.broken(ClusterUnreachable("closed"), 10.0)
    with pytest.raises(ClusterUnreachable):
        session.check_stall(10.1)


def test_waiting_for_the_callers_documents_is_no_stall() -> None:
    session = opened(stall_s=10.0)
    session.check_stall(1e6)
    session.offer(0, {"id": "a", "text": "t"}, 1e6)
    session.check_stall(1e6 + 10.0)
    with pytest.raises(DeadlineExceeded):
        session.check_stall(1e6 + 10.1)


def test_acknowledging_what_was_not_sent_is_an_error() -> None:
    session = opened()
    with pytest.raises(InternalError):
        acknowledge(session, 7)


def test_counts_what_the_cluster_says() -> None:
    session = opened()
    offer(session, "a", "b")
    sent(session)
    acknowledgements = [
        router_pb2.IngestAcknowledgement(
            number=0, outcome=router_pb2.INGEST_OUTCOME_STORED, duplicate=True, truncated=True
        ),
        router_pb2.IngestAcknowledgement(number=1, outcome=router_pb2.INGEST_OUTCOME_UNCHANGED),
    ]
    session.receive(
        router_pb2.IngestResponse(
            acknowledgements=router_pb2.IngestAcknowledgements(
                acknowledgements=acknowledgements, position=b"here"
            )
        ),
        0.0,
    )
    assert session.report == IngestReport(
        stored=1, unchanged=1, duplicates=1, truncated=1, position=b"here"
    )


def test_watch_reports_at_intervals_and_raises_refusals() -> None:
    session = opened()
    watch = IngestWatch(session, lambda report: None, "collect")
    assert watch.due(1.0) is not None
    assert watch.due(1.0 + ingest.PROGRESS_S / 2) is None
    assert watch.due(1.0 + ingest.PROGRESS_S) is not None
    session.offer(0, {"text": "no id"}, 0.0)
    assert watch.due(9.0) is not None
    with pytest.raises(InvalidId):
        IngestWatch(session, None, "raise").due(9.0)
