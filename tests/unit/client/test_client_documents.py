"""Users' documents as messages."""

import json
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal.client.documents import ingest_document, readable_id
from shoal.client.model import StoredDocument
from shoal.errors import InvalidId, InvalidPayload, InvalidRequest, LimitExceeded
from shoal.ids import ID_BYTES_MAX
from shoal.settings import Limits
from shoal.wire.arrays import matrix_from_message

LIMITS = Limits()
SMALL = Limits(max_message_bytes=2000, max_text_bytes=400, max_payload_bytes=100)

unicode_text = st.text(st.characters(codec="utf-8"))
json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | unicode_text,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(unicode_text, inner, max_size=3),
    max_leaves=6,
)
names = unicode_text.filter(
    lambda name: name not in ("id", "_id", "title", "text", "vector", "payload")
)


@given(
    st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=100),
    unicode_text,
    unicode_text,
    st.dictionaries(names, json_values, max_size=4),
)
def test_nothing_of_a_dict_is_lost(document_id: str, title: str, text: str, extra: dict) -> None:
    message = ingest_document(
        7, {"_id": document_id, "title": title, "text": text, **extra}, LIMITS
    )
    document = message.document
    assert (message.number, document.id, document.title, document.text) == (
        7,
        document_id,
        title,
        text,
    )
    assert (json.loads(document.payload) if document.payload else {}) == extra
    assert not message.HasField("vector")


@pytest.mark.parametrize("dtype", ["<f4", "<f8", "<f2"])
def test_vectors_travel_as_they_are(dtype: str) -> None:
    vector = np.linspace(-1, 1, 12).astype(dtype)
    message = ingest_document(0, {"id": "a", "vector": vector}, LIMITS)
    received = matrix_from_message(message.vector)
    assert received.dtype == vector.dtype
    assert received.tobytes() == vector.tobytes()
    assert received.shape == (1, 12)


def test_vectors_without_a_float_type_become_float32() -> None:
    message = ingest_document(0, {"id": "a", "vector": [1, 2, 3]}, LIMITS)
    assert matrix_from_message(message.vector).dtype == np.float32


def test_strided_vectors() -> None:
    matrix = np.arange(20, dtype=np.float32).reshape(4, 5)
    message = ingest_document(0, {"id": "a", "vector": matrix[:, 2]}, LIMITS)
    assert matrix_from_message(message.vector).tolist() == [[2.0, 7.0, 12.0, 17.0]]


@dataclass
class Page:
    id: str
    text: str
    payload: dict[str, Any] = field(default_factory=dict)


def test_objects() -> None:
    page = ingest_document(0, Page("a", "words", {"n": 1}), LIMITS).document
    assert (page.id, page.text, page.payload) == ("a", "words", b'{"n":1}')
    space = ingest_document(0, SimpleNamespace(_id="b", title="t"), LIMITS).document
    assert (space.id, space.title, space.text) == ("b", "t", "")
    stored = ingest_document(0, StoredDocument("c", "t", "words", {"k": [1]}), LIMITS).document
    assert (stored.id, stored.payload) == ("c", b'{"k":[1]}')


def test_payload_joins_the_other_keys() -> None:
    document = {"_id": "a", "id": 5, "payload": {"x": 1, "year": 2}, "year": 1}
    assert json.loads(ingest_document(0, document, LIMITS).document.payload) == {
        "id": 5,
        "year": 2,
        "x": 1,
    }


def test_payload_bytes_stay_as_given() -> None:
    document = {"id": "a", "text": "t", "payload": b'{ "spaced" : 1 }'}
    assert ingest_document(0, document, LIMITS).document.payload == b'{ "spaced" : 1 }'
    joined = ingest_document(0, {**document, "more": 2}, LIMITS).document.payload
    assert json.loads(joined) == {"spaced": 1, "more": 2}


def test_missing_parts_are_empty() -> None:
    document = ingest_document(0, {"id": "a", "title": None, "text": None, "payload": None}, LIMITS)
    assert (document.document.title, document.document.text, document.document.payload) == (
        "",
        "",
        b"",
    )


@pytest.mark.parametrize(
    ("given_document", "error"),
    [
        ({"text": "t"}, InvalidId),
        ({"id": "", "text": "t"}, InvalidId),
        ({"id": 5, "text": "t"}, InvalidId),
        ({"id": "a\0b"}, InvalidId),
        ({"id": "x" * (ID_BYTES_MAX + 1)}, InvalidId),
        ({"id": "x" * 10_240}, InvalidId),
        ({"id": "\ud800"}, InvalidId),
        ({"id": "a", "text": 5}, InvalidRequest),
        ({"id": "a", "title": ["t"]}, InvalidRequest),
        ({"id": "a", "text": "\ud800"}, InvalidRequest),
        ({"id": "a", "vector": "words"}, InvalidRequest),
        ({"id": "a", "vector": [[1.0], [2.0, 3.0]]}, InvalidRequest),
        ({"id": "a", "vector": np.zeros((2, 2, 2))}, InvalidRequest),
        ({"id": "a", "vector": np.zeros(0)}, InvalidRequest),
        ({"id": "a", "payload": "text"}, InvalidPayload),
        ({"id": "a", "payload": b"no json", "more": 1}, InvalidPayload),
        ({"id": "a", "payload": b"[1]", "more": 1}, InvalidPayload),
        ({"id": "a", "year": float("nan")}, InvalidPayload),
        ({"id": "a", "what": object()}, InvalidPayload),
        ({"id": "a", "what": "\ud800"}, InvalidPayload),
        (17, InvalidRequest),
        ("words", InvalidRequest),
        (None, InvalidRequest),
    ],
)
def test_what_is_wrong_says_so(given_document: object, error: type[Exception]) -> None:
    with pytest.raises(error):
        ingest_document(0, given_document, LIMITS)


@pytest.mark.parametrize(
    ("given_document", "limit"),
    [
        ({"id": "a", "text": "x" * 401}, "max_text_bytes"),
        ({"id": "a", "text": "é" * 201}, "max_text_bytes"),
        ({"id": "a", "what": "x" * 101}, "max_payload_bytes"),
        ({"id": "a", "title": "x" * 2000}, "max_message_bytes"),
        ({"id": "a", "vector": np.zeros(500, np.float32)}, "max_message_bytes"),
    ],
)
def test_what_is_too_large_names_the_limit(given_document: dict, limit: str) -> None:
    with pytest.raises(LimitExceeded) as caught:
        ingest_document(0, given_document, SMALL)
    assert caught.value.metadata["limit"] == limit
    assert int(caught.value.metadata["given"]) > int(caught.value.metadata["allowed"])
    ingest_document(0, {"id": "a", "text": "x" * 400}, SMALL)


def test_a_wrong_document_is_named_where_it_can_be() -> None:
    assert readable_id({"_id": 5}) == "5"
    assert readable_id({"text": "t"}) == ""
    assert readable_id(Page("p", "t")) == "p"
    assert readable_id(object()) == ""
