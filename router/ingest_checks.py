"""One document of an ingest stream, checked."""

import json
from dataclasses import dataclass

from router.core.ingest import Item
from router.core.topology import CollectionMap
from router.requests import check_vectors
from shoal.errors import EmptyText, InvalidPayload, InvalidRequest, ShoalError, TextNotSupported
from shoal.ids import check_id, content_digest, shard_of
from shoal.rpc.common.v1 import common_pb2
from shoal.rpc.router.v1 import router_pb2
from shoal.settings import Limits
from shoal.types import Document, Kind
from shoal.wire.arrays import check_limit

OVERHEAD_BYTES = 64
"""What a document without any content counts for in the window."""


@dataclass(frozen=True, slots=True)
class Incoming:
    """A document that may be stored.

    Attributes:
        number: the caller's number for it.
        document: as its user gave it.
        digest: of its content.
        vector: its own, as little-endian float32; empty to encode its text.
    """

    number: int
    document: common_pb2.Document
    digest: bytes
    vector: bytes


def check_document(
    message: router_pb2.IngestDocument, collection: CollectionMap, limits: Limits
) -> Item[Incoming]:
    """A document ready to be grouped by shard.

    Raises:
        ShoalError: why it is refused.
    """
    document = message.document
    encoded_id = check_id(document.id)
    check_limit("max_text_bytes", len(document.text.encode()), limits.max_text_bytes)
    check_limit("max_text_bytes", len(document.title.encode()), limits.max_text_bytes)
    check_limit("max_payload_bytes", len(document.payload), limits.max_payload_bytes)
    _check_payload(document.payload)
    vector = b""
    if message.HasField("vector"):
        vector = _vector(message.vector, collection)
    elif not collection.fingerprint:
        raise TextNotSupported(
            f"collection {collection.name!r} has no encoder: send a vector with the document"
        )
    elif not (document.text.strip() or document.title.strip()):
        raise EmptyText("the document has neither text nor vector")
    plain = Document(document.id, document.title, document.text, document.payload)
    return Item(
        Incoming(message.number, document, content_digest(plain, vector), vector),
        encoded_id,
        shard_of(encoded_id, collection.shard_count),
        document.ByteSize() + len(vector) + OVERHEAD_BYTES,
    )


def _check_payload(payload: bytes) -> None:
    if not payload:
        return
    try:
        value = json.loads(payload)
    except (ValueError, RecursionError) as error:
        raise InvalidPayload(f"the payload is no JSON: {error}") from error
    if not isinstance(value, dict):
        raise InvalidPayload(f"the payload is a JSON {type(value).__name__}, not an object")


def _vector(message: common_pb2.Matrix, collection: CollectionMap) -> bytes:
    if message.rows != 1 and collection.kind is Kind.SINGLE:
        raise InvalidRequest(f"a document has one vector, {message.rows} were sent", field="vector")
    if not message.rows:
        raise InvalidRequest("a document has 1 token vector or more", field="vector")
    rows = check_vectors(message, collection, [message.rows])[0]
    if isinstance(rows, ShoalError):
        raise rows
    return rows
