"""Bytes of writes and deletes in the log, and of documents in segments.

A document's content is: digest (16 bytes), lengths, passage spans, id, title, text,
payload. A log entry is one kind byte and either a content with its vectors, or the id
of a deleted document. All numbers are little-endian.
"""

import struct
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from shoal.ids import DIGEST_BYTES
from shoal.types import Document

_CONTENT = struct.Struct("<16sHIIIII")  # digest, id, title, text, payload, passages, spans
_WRITE = struct.Struct("<BII")  # kind, bytes of the content, passages
_KIND_WRITE, _KIND_DELETE = 1, 2


@dataclass(frozen=True, slots=True)
class Content:
    """One document version as stored, without its vectors.

    Attributes:
        document: as its user gave it.
        digest: 16 bytes, the content digest.
        passages: its rows, 1 or more.
        spans: [passages, 2] uint32, characters [start, end) of each passage; [0, 2]
            for a user's own vector.
    """

    document: Document
    digest: bytes
    passages: int
    spans: NDArray[np.uint32]


@dataclass(frozen=True, slots=True)
class Version:
    """One document version on its way into a shard.

    Attributes:
        id: UTF-8 bytes.
        digest: 16 bytes.
        passages: its rows.
        content: `encode_content` of it.
    """

    id: bytes
    digest: bytes
    passages: int
    content: bytes


@dataclass(frozen=True, slots=True)
class WriteRecord:
    """A logged document version, and the bytes of its vectors (`Vectors.to_bytes`)."""

    version: Version
    vectors: bytes


@dataclass(frozen=True, slots=True)
class DeleteRecord:
    """A logged delete."""

    id: bytes


def encode_content(content: Content) -> bytes:
    """The content's bytes."""
    document = content.document
    parts = (
        document.id.encode(),
        document.title.encode(),
        document.text.encode(),
        document.payload,
    )
    head = _CONTENT.pack(
        content.digest, *(len(part) for part in parts), content.passages, len(content.spans)
    )
    return b"".join((head, content.spans.astype("<u4").tobytes(), *parts))


def decode_content(data: bytes) -> Content:
    """Reads what `encode_content` wrote."""
    digest, *lengths, passages, span_count = _CONTENT.unpack_from(data)
    at = _CONTENT.size
    spans = np.frombuffer(data, "<u4", 2 * span_count, at).reshape(span_count, 2)
    at += 8 * span_count
    parts = []
    for length in lengths:
        parts.append(bytes(data[at : at + length]))
        at += length
    key, title, text, payload = parts
    document = Document(key.decode(), title.decode(), text.decode(), payload)
    return Content(document, digest, passages, spans)


def encode_write(version: Version, vectors: bytes) -> bytes:
    """The log entry of a document version; vectors are the `to_bytes` of its passages'."""
    head = _WRITE.pack(_KIND_WRITE, len(version.content), version.passages)
    return b"".join((head, version.content, vectors))


def encode_delete(document_id: bytes) -> bytes:
    """The log entry of a delete."""
    return bytes((_KIND_DELETE,)) + document_id


def decode_record(data: bytes) -> WriteRecord | DeleteRecord:
    """Reads a log entry."""
    if data[0] == _KIND_DELETE:
        return DeleteRecord(data[1:])
    _, length, passages = _WRITE.unpack_from(data)
    content = data[_WRITE.size : _WRITE.size + length]
    id_bytes = _CONTENT.unpack_from(content)[1]
    spans = _CONTENT.unpack_from(content)[-1]
    start = _CONTENT.size + 8 * spans
    version = Version(
        id=content[start : start + id_bytes],
        digest=content[:DIGEST_BYTES],
        passages=passages,
        content=content,
    )
    return WriteRecord(version, data[_WRITE.size + length :])
