"""What users give as documents, as messages; what is wrong with one says so. Pure."""

import json
from collections.abc import Mapping
from typing import Any, TypeAlias

from shoal.client.requests import utf8, vector_message
from shoal.errors import InvalidId, InvalidPayload, InvalidRequest, LimitExceeded
from shoal.ids import check_id
from shoal.rpc.common.v1 import common_pb2
from shoal.rpc.router.v1 import router_pb2
from shoal.settings import Limits

GivenDocument: TypeAlias = "Mapping[str, Any] | object"
"""A dict, or an object with attributes: `id` (or `_id`), `text`, `title`,
`vector`, `payload`. Other keys of a dict join its payload."""

_NAMES = ("id", "title", "text", "vector", "payload")
# The message around one document: tags, lengths, the stream's envelope.
ENVELOPE_BYTES = 256


def ingest_document(number: int, given: GivenDocument, limits: Limits) -> router_pb2.IngestDocument:
    """The document as a message.

    Args:
        number: its place in the user's iterable, from 0.
        given: a dict or an object, see `GivenDocument`.
        limits: what the cluster takes.

    Raises:
        InvalidId: it has no id, or one that cannot be.
        InvalidPayload: its payload is no JSON object.
        InvalidRequest: it is no document, or a part of it has a wrong type.
        LimitExceeded: it, or a part of it, is larger than the cluster takes.
    """
    parts, payload = _parts(given)
    document = common_pb2.Document(
        id=_id(parts.get("id")),
        title=utf8("title", _or_empty(parts.get("title"))),
        text=utf8("text", _or_empty(parts.get("text"))),
        payload=payload,
    )
    message = router_pb2.IngestDocument(number=number, document=document)
    if (vector := parts.get("vector")) is not None:
        message.vector.CopyFrom(vector_message(vector))
    _check_size("max_payload_bytes", len(payload), limits.max_payload_bytes, document.id)
    if len(document.text) > limits.max_text_bytes // 4:
        size = len(document.text.encode())
        _check_size("max_text_bytes", size, limits.max_text_bytes, document.id)
    size = message.ByteSize() + ENVELOPE_BYTES
    _check_size("max_message_bytes", size, limits.max_message_bytes, document.id)
    return message


def readable_id(given: GivenDocument) -> str:
    """The id of a document that may be wrong, to name it by; empty if there is none."""
    if isinstance(given, Mapping):
        found = given.get("_id", given.get("id"))
    else:
        found = getattr(given, "id", getattr(given, "_id", None))
    return "" if found is None else str(found)[:512]


def _parts(given: GivenDocument) -> tuple[dict[str, Any], bytes]:
    if not isinstance(given, Mapping):
        parts = {name: getattr(given, name, None) for name in _NAMES}
        if parts["id"] is None:
            parts["id"] = getattr(given, "_id", None)
        if parts["id"] is None:
            raise InvalidRequest(
                f"{type(given).__name__} is no document; give a dict or an object with an id",
                field="document",
            )
        return parts, _payload_bytes(parts["payload"], {})
    own = {name: given[name] for name in _NAMES if name in given}
    if "_id" in given:
        own["id"] = given["_id"]
    others = {
        name: value
        for name, value in given.items()
        if name != "_id" and (name not in _NAMES or (name == "id" and "_id" in given))
    }
    return own, _payload_bytes(own.get("payload"), others)


def _payload_bytes(payload: object, others: dict[str, Any]) -> bytes:
    """The payload and the document's other keys as one JSON object."""
    if isinstance(payload, bytes) and not others:
        return payload
    if isinstance(payload, bytes):
        try:
            payload = json.loads(payload)
        except ValueError as error:
            raise InvalidPayload(f"the payload is no JSON: {error}") from error
    if payload is not None and not isinstance(payload, Mapping):
        raise InvalidPayload(f"the payload is {type(payload).__name__}; give a dict")
    merged = {**others, **(payload or {})}
    if not merged:
        return b""
    try:
        return json.dumps(
            merged, ensure_ascii=False, allow_nan=False, separators=(",", ":")
        ).encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise InvalidPayload(f"the payload cannot be JSON: {error}") from error


def _id(given: object) -> str:
    if given is None:
        raise InvalidId("the document has no id")
    if not isinstance(given, str):
        raise InvalidId(f"the id {given!r:.40} is {type(given).__name__}; give a string")
    try:
        check_id(given)
    except UnicodeEncodeError as error:
        raise InvalidId(f"the id is not valid Unicode: {error}") from error
    return given


def _or_empty(given: object) -> object:
    return "" if given is None else given


def _check_size(limit: str, given: int, allowed: int, document_id: str) -> None:
    if given > allowed:
        raise LimitExceeded(
            f"document {document_id[:80]!r}: {given} bytes are above the limit "
            f"{limit} = {allowed}; split it, or raise the setting",
            limit=limit,
            allowed=allowed,
            given=given,
        )
