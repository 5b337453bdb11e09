"""Arguments to messages, messages to values, and the two clients' signatures."""

import inspect
from dataclasses import FrozenInstanceError, fields
from typing import Any

import numpy as np
import pytest

import shoal
from shoal.client import replies, requests
from shoal.client.model import Answer, Hit, IngestReport, Rejection, Span, Timings
from shoal.client.transport import resolve_target
from shoal.errors import InvalidName, InvalidRequest, InvalidTopK
from shoal.rpc.common.v1 import common_pb2
from shoal.rpc.router.v1 import router_pb2
from shoal.types import Coverage, MissingShard
from shoal.wire.arrays import matrix_from_message

FULL = Coverage(2, 2, 1, 1)


def options_of(**changes: Any) -> router_pb2.SearchOptions:
    arguments: dict[str, Any] = {
        "top_k": 10,
        "min_coverage": 1.0,
        "fields": (),
        "allow_truncation": False,
        "after": None,
        "fingerprint": "",
        "effort": "",
    }
    return requests.search_options(**{**arguments, **changes})


def test_options() -> None:
    options = options_of(top_k=3, min_coverage=0.0, fields=("text", "title"), after=b"p")
    assert options.top_k == 3
    assert options.HasField("min_coverage")
    assert options.min_coverage == 0.0
    assert list(options.fields) == [router_pb2.FIELD_TEXT, router_pb2.FIELD_TITLE]
    assert options.after == b"p"


@pytest.mark.parametrize("top_k", [0, -1, 1 << 32])
def test_top_k_out_of_range(top_k: int) -> None:
    with pytest.raises(InvalidTopK):
        options_of(top_k=top_k)


@pytest.mark.parametrize("change", [{"min_coverage": 1.5}, {"fields": ("body",)}])
def test_wrong_options(change: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequest):
        options_of(**change)


def test_questions() -> None:
    asked = requests.search_request("r", "papers", None, np.array([1.0, 2.0]), options_of())
    assert matrix_from_message(asked.query.vector).tolist() == [[1.0, 2.0]]
    assert matrix_from_message(asked.query.vector).dtype == np.float64
    assert requests.search_request("r", "papers", "", None, options_of()).query.text == ""
    for text, vector in ((None, None), ("words", [1.0]), ("\ud800", None), (5, None)):
        with pytest.raises(InvalidRequest):
            requests.search_request("r", "papers", text, vector, options_of())
    with pytest.raises(InvalidName):
        requests.search_request("r", "No such name", "words", None, options_of())


def test_batch_questions() -> None:
    assert requests.batch_questions(("a", "b"), None) == ["a", "b"]
    floats = requests.batch_questions(None, [[1, 2], [3, 4]])
    assert isinstance(floats, np.ndarray)
    assert floats.dtype == np.float32
    for texts, vectors in (
        (None, None),
        (["a"], [[1.0]]),
        ("abc", None),
        (None, [1.0]),
        ([5], None),
    ):
        with pytest.raises(InvalidRequest):
            requests.batch_questions(texts, vectors)
    message = requests.batch_request("r", "papers", floats, options_of())
    assert matrix_from_message(message.vectors).tolist() == [[1, 2], [3, 4]]
    tokens = requests.batch_questions(None, [[[1, 2], [3, 4]], [[5, 6]]])
    message = requests.batch_request("r", "papers", tokens, options_of())
    assert matrix_from_message(message.vectors).tolist() == [[1, 2], [3, 4], [5, 6]]
    assert list(message.row_counts) == [2, 1]
    for mixed in ([[1.0], [[1.0]]], [[[1.0]], [[1.0, 2.0]]]):
        with pytest.raises(InvalidRequest):
            requests.batch_questions(None, mixed)


def test_create() -> None:
    def created(**changes: Any) -> router_pb2.CreateCollectionRequest:
        arguments: dict[str, Any] = {
            "kind": "single",
            "encoder": "",
            "dim": None,
            "index": "auto",
            "chunk_tokens": None,
            "similarity": "",
            "shards": None,
            "code_bytes": None,
            "train_at": None,
            "pool_factor": None,
        }
        return requests.create_request("papers", **{**arguments, **changes})

    assert not created().HasField("chunk_tokens")
    assert created(chunk_tokens=0).HasField("chunk_tokens")
    full = created(kind="colbert", encoder="none", dim=8, similarity="l2", shards=3)
    assert (full.kind, full.encoder, full.dim, full.similarity, full.shards) == (
        common_pb2.COLLECTION_KIND_COLBERT,
        "none",
        8,
        common_pb2.SIMILARITY_L2,
        3,
    )
    for change in ({"kind": "dense"}, {"similarity": "near"}, {"dim": -1}, {"shards": -2}):
        with pytest.raises(InvalidRequest):
            created(**change)


def test_answer() -> None:
    message = router_pb2.SearchResponse(
        hits=[
            router_pb2.Hit(
                id="a",
                score=0.5,
                payload=b'{"n":1}',
                chunk=common_pb2.Span(start=2, end=5),
                shard=1,
            ),
            router_pb2.Hit(id="b", score=0.25),
        ],
        coverage=common_pb2.Coverage(
            documents_total=4,
            documents_covered=2,
            shards_total=2,
            shards_answered=1,
            missing=[common_pb2.MissingShard(shard=1, reason="SHARD_UNAVAILABLE")],
        ),
        fingerprint="f",
        timings=common_pb2.StageTimings(encode_us=1500, total_us=2000, encode_cached=True),
        position=b"p",
    )
    answer = replies.answer(message)
    assert len(answer) == 2
    assert [hit.id for hit in answer] == ["a", "b"]
    assert answer[0] == Hit("a", 0.5, payload={"n": 1}, chunk=Span(2, 5), shard=1)
    assert answer[-1].chunk is None
    assert answer[:1] == (answer[0],)
    assert answer[1] in answer
    assert answer.coverage.missing == (MissingShard(1, "SHARD_UNAVAILABLE"),)
    assert answer.coverage.ratio == 0.5
    assert answer.timings == Timings(encode_ms=1.5, total_ms=2.0, encode_cached=True)


def test_chunk_text() -> None:
    assert Hit("a", 1.0, text="abcdef", chunk=Span(1, 3)).chunk_text == "bc"
    assert Hit("a", 1.0, text="abcdef").chunk_text == "abcdef"


def test_values_are_frozen_and_short() -> None:
    hits = tuple(Hit(str(n), 1.0, title="t" * 500, text="x" * 10_000) for n in range(100))
    answer = Answer(hits, FULL)
    assert len(repr(answer)) < 200
    assert len(repr(hits[0])) < 120
    rejected = tuple(Rejection("a", "INVALID_ID", "m" * 100, n) for n in range(1000))
    assert len(repr(IngestReport(stored=1, rejected=rejected))) < 120
    with pytest.raises(FrozenInstanceError):
        hits[0].score = 2.0  # type: ignore[misc]


def test_reports_add_up() -> None:
    report = IngestReport(stored=3, unchanged=2, rejected=(Rejection("a", "X", "m", 0),))
    assert report.documents == 6


def test_every_hit_field_has_a_place_in_the_message() -> None:
    assert {item.name for item in fields(Hit)} == {
        item.name for item in router_pb2.Hit.DESCRIPTOR.fields
    }


def public(kind: type) -> dict[str, inspect.Signature]:
    return {
        name: inspect.signature(member)
        for name, member in inspect.getmembers(kind, inspect.isfunction)
        if not name.startswith("_")
    }


def test_both_clients_have_the_same_names_and_arguments() -> None:
    sync, twin = public(shoal.Client), public(shoal.AsyncClient)
    assert set(sync) == set(twin)
    for name, signature in sync.items():
        ours, theirs = signature.parameters, twin[name].parameters
        assert list(ours) == list(theirs), name
        for argument in ours:
            if (name, argument) != ("ingest", "documents"):
                assert ours[argument] == theirs[argument], (name, argument)
    for name in twin:
        assert inspect.iscoroutinefunction(getattr(shoal.AsyncClient, name)), name


def test_every_method_says_what_it_does() -> None:
    for kind in (shoal.Client, shoal.AsyncClient):
        for name in public(kind):
            assert getattr(kind, name).__doc__, name


def test_target(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SHOAL_TARGET", raising=False)
    assert resolve_target(None) == "127.0.0.1:50051"
    monkeypatch.setenv("SHOAL_TARGET", "there:1")
    assert resolve_target(None) == "there:1"
    assert resolve_target("here:2") == "here:2"


def test_exports() -> None:
    assert {name for name in shoal.__all__ if getattr(shoal, name) is not None} == set(
        shoal.__all__
    )
    assert dir(shoal) == shoal.__all__
    with pytest.raises(AttributeError, match="nothing"):
        _ = shoal.nothing
