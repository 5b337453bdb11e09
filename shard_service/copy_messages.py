"""Messages with which a generation is copied to the next one."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from shard_service.core.records import Content
from shard_service.core.vectors import Dense, TokenVectors, Vectors
from shard_service.shard import Shard
from shoal.errors import InvalidRequest
from shoal.rpc.common.v1 import common_pb2
from shoal.rpc.shard.v1 import shard_pb2
from shoal.settings import Limits
from shoal.wire.arrays import check_limit, matrix_to_message


def list_documents(
    shard: Shard, request: shard_pb2.ListDocumentsRequest
) -> shard_pb2.ListDocumentsResponse:
    """Answers a ListDocuments message.

    Raises:
        InvalidRequest: max_documents is 0.
    """
    if not request.max_documents:
        raise InvalidRequest("max_documents is 1 or more", field="max_documents")
    found, position = shard.list_documents(request.after_id.encode(), request.max_documents)
    return shard_pb2.ListDocumentsResponse(
        ids=[key.decode() for key, _ in found],
        digests=b"".join(digest for _, digest in found),
        last=len(found) < request.max_documents,
        position=position,
    )


def export(
    shard: Shard, request: shard_pb2.ExportRequest, limits: Limits
) -> shard_pb2.ExportResponse:
    """Answers an Export message.

    Raises:
        LimitExceeded: too many ids, or together too large for one message.
    """
    check_limit("max_ids", len(request.ids), limits.max_ids)
    ids = [key.encode() for key in request.ids]
    found = shard.export(ids, without_vectors=request.without_vectors)
    response = shard_pb2.ExportResponse(versions=[_version(*each) for each in found])
    vectors = [each for _, each in found if each is not None]
    if vectors:
        response.vectors.CopyFrom(_matrix(vectors))
        response.codec = shard.spec.codec
    check_limit("max_message_bytes", response.ByteSize(), limits.max_message_bytes)
    return response


def _version(content: Content, vectors: Vectors | None) -> shard_pb2.DocumentVersion:
    document = content.document
    counts: list[int] = []
    if isinstance(vectors, TokenVectors):
        counts = np.diff(vectors.starts).tolist()
    return shard_pb2.DocumentVersion(
        document=common_pb2.Document(
            id=document.id, title=document.title, text=document.text, payload=document.payload
        ),
        digest=content.digest,
        passage_count=content.passages,
        span_starts=content.spans[:, 0].tolist(),
        span_ends=content.spans[:, 1].tolist(),
        row_counts=counts,
    )


def _matrix(vectors: Sequence[Vectors]) -> common_pb2.Matrix:
    first, *others = vectors
    together = first.joined(others)
    assert isinstance(together, Dense | TokenVectors)
    return matrix_to_message(together.rows)
