"""Messages of the shard service to domain values and back, checked on receipt."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shard_service.core.checks import check_owner, token_errors, version_errors
from shard_service.core.late import LateFound
from shard_service.core.records import Content, Version, encode_content
from shard_service.core.search import Found
from shard_service.core.vectors import Dense, TokenVectors, Vectors, starts_of
from shard_service.core.writers import Writers
from shard_service.shard import Shard, Stored
from shard_service.spec import ShardSpec
from shard_service.token_layout import TokenLayout
from shard_service.writer import WriteOperation
from shoal.errors import (
    DimensionMismatch,
    FingerprintMismatch,
    InvalidRequest,
    InvalidTopK,
    MalformedMessage,
    NonFiniteVector,
    NotSupported,
    PositionNotReached,
    ShoalError,
    ZeroVector,
)
from shoal.ids import DIGEST_BYTES
from shoal.rpc.common.v1 import common_pb2
from shoal.rpc.shard.v1 import shard_pb2
from shoal.settings import Limits
from shoal.types import Document, Float32Matrix, Kind, ShardRef, Similarity
from shoal.wire.arrays import (
    check_limit,
    column,
    matrix_from_message,
    pack_column,
)
from shoal.wire.errors import to_status

_SIMILARITIES = {
    common_pb2.SIMILARITY_COSINE: Similarity.COSINE,
    common_pb2.SIMILARITY_DOT: Similarity.DOT,
    common_pb2.SIMILARITY_L2: Similarity.L2,
}
_KINDS = {
    common_pb2.COLLECTION_KIND_SINGLE: Kind.SINGLE,
    common_pb2.COLLECTION_KIND_COLBERT: Kind.COLBERT,
}
WRITERS = {
    shard_pb2.WRITERS_UNSPECIFIED: Writers.USERS,
    shard_pb2.WRITERS_BUILDER: Writers.BUILDER,
    shard_pb2.WRITERS_NOBODY: Writers.NOBODY,
}
WRITER_NUMBERS = {writers: number for number, writers in WRITERS.items()}
_INDEXES = ("auto", "flat", "hnsw", "ivf-pq")


def shard_ref(key: shard_pb2.ShardKey) -> ShardRef:
    """The shard that a message names.

    Raises:
        MalformedMessage: the collection is not 16 bytes.
    """
    if len(key.collection) != 16:
        raise MalformedMessage(f"a collection is 16 bytes, {len(key.collection)} were sent")
    return ShardRef(key.collection.hex(), key.generation, key.shard)


def shard_key(ref: ShardRef) -> shard_pb2.ShardKey:
    """The message that names a shard."""
    return shard_pb2.ShardKey(
        collection=bytes.fromhex(ref.collection), generation=ref.generation, shard=ref.shard
    )


def writers(number: shard_pb2.Writers.ValueType) -> Writers:
    """Whose writes a message names.

    Raises:
        InvalidRequest: nobody that this version knows.
    """
    known = WRITERS.get(number)
    if known is None:
        raise InvalidRequest(f"there are no writers {number}", field="writers")
    return known


def writer_of(request: shard_pb2.WriteRequest | shard_pb2.DeleteRequest) -> Writers:
    """Who sends a write."""
    return Writers.BUILDER if request.from_builder else Writers.USERS


def shard_spec(
    request: shard_pb2.OpenShardRequest | shard_pb2.PrepareShardRequest, limits: Limits
) -> ShardSpec:
    """The shard to open or prepare.

    Raises:
        MalformedMessage, InvalidRequest, LimitExceeded: it cannot be such a shard.
        NotSupported: a kind that this version does not serve.
    """
    settings, ref = request.settings, shard_ref(request.key)
    kind = _KINDS.get(settings.kind)
    if kind is None:
        raise NotSupported("this version serves collections of kinds single and colbert")
    if settings.similarity not in _SIMILARITIES:
        raise InvalidRequest("the similarity is not given", field="settings.similarity")
    if settings.index not in _INDEXES:
        raise InvalidRequest(
            f"{settings.index[:40]!r} is no index: use {', '.join(_INDEXES)}",
            field="settings.index",
        )
    if not 0 <= ref.shard < request.shard_count:
        raise InvalidRequest(f"there is no shard {ref.shard}", field="key.shard")
    if settings.dim < 1:
        raise InvalidRequest("dim is 1 or more", field="settings.dim")
    check_limit("max_dim", settings.dim, limits.max_dim)
    return ShardSpec(
        ref,
        request.shard_count,
        settings.dim,
        _SIMILARITIES[settings.similarity],
        settings.fingerprint,
        settings.index,
        kind,
        settings.late.codec,
    )


# --- searching -----------------------------------------------------------------


def check_search(request: shard_pb2.SearchRequest, limits: Limits) -> int:
    """The number of queries.

    Raises:
        MalformedMessage: columns of different lengths.
        LimitExceeded: too many queries.
    """
    count = len(request.top_k)
    check_limit("max_batch", count, limits.max_batch)
    if {len(request.time_left_us), len(request.after_sequence) or count} != {count}:
        raise MalformedMessage("time_left_us and after_sequence must be as long as top_k")
    return count


def single_queries(request: shard_pb2.SearchRequest) -> Float32Matrix:
    """The queries as sent, [queries, columns] float32.

    Raises:
        MalformedMessage: not one row per query, or no floats.
    """
    queries = matrix_from_message(request.queries)
    if len(queries) != len(request.top_k):
        raise MalformedMessage("queries must have a row per query")
    if queries.dtype.kind != "f":
        raise MalformedMessage(f"queries are F64, F32 or F16, not {queries.dtype.name}")
    with np.errstate(over="ignore"):
        converted: Float32Matrix = queries.astype(np.float32, copy=False)
    return converted


def vector_errors(spec: ShardSpec, queries: Float32Matrix) -> dict[int, ShoalError]:
    """Why vectors of kind single cannot be searched for, by their numbers."""
    if len(queries) and queries.shape[1] != spec.dim:
        error = DimensionMismatch(
            f"the query has {queries.shape[1]} columns, the collection has {spec.dim}",
            expected=spec.dim,
            given=queries.shape[1],
        )
        return dict.fromkeys(range(len(queries)), error)
    errors: dict[int, ShoalError] = {}
    for number in np.flatnonzero(~np.isfinite(queries).all(axis=1)).tolist():
        errors[number] = NonFiniteVector("the query vector holds NaN or infinity")
    if spec.similarity is Similarity.COSINE:
        for number in np.flatnonzero(~queries.any(axis=1)).tolist():
            errors[number] = ZeroVector("the query vector is zero; cosine needs a direction")
    return errors


def query_errors(
    spec: ShardSpec, request: shard_pb2.SearchRequest, position: int, limits: Limits
) -> dict[int, ShoalError]:
    """Why queries of any kind cannot be answered, by their numbers."""
    errors: dict[int, ShoalError] = {}
    for number, top_k in enumerate(request.top_k):
        if not 1 <= top_k <= limits.max_top_k:
            errors[number] = InvalidTopK(
                f"top_k is {top_k}; 1 to {limits.max_top_k} are allowed",
                allowed=limits.max_top_k,
                given=top_k,
            )
    for number, after in enumerate(request.after_sequence):
        if after > position:
            errors[number] = PositionNotReached(
                f"the shard is at {position}, the query asks for {after}",
                retry_after_s=0.05,
                shard=spec.ref.shard,
            )
    return errors


def search_response(
    found: Found | LateFound,
    queries: int,
    answered: NDArray[np.int64],
    errors: dict[int, ShoalError],
) -> shard_pb2.SearchResponse:
    """The reply: what was found belongs to the queries numbered in `answered`."""
    hits = found.hits
    counts = np.zeros(queries, dtype=np.int64)
    counts[answered] = hits.counts
    response = shard_pb2.SearchResponse(
        hit_counts=counts.tolist(),
        ids=hits.ids,
        id_lengths=pack_column(hits.id_lengths, "<u4"),
        scores=pack_column(hits.scores, "<f8"),
        sequences=pack_column(hits.sequences, "<u8"),
        passages=pack_column(hits.passages, "<u4"),
    )
    if isinstance(found, LateFound):
        response.tokens_scored = found.tokens_scored
        if found.centroid_scores is not None:
            response.centroid_scores = pack_column(found.centroid_scores, "<f8")
    if errors:
        response.statuses.extend(_statuses(queries, errors))
    return response


def _statuses(count: int, errors: dict[int, ShoalError]) -> list[common_pb2.Status]:
    return [
        to_status(errors[number]) if number in errors else common_pb2.Status()
        for number in range(count)
    ]


# --- writing -------------------------------------------------------------------


def check_write(
    shard: Shard, request: shard_pb2.WriteRequest, limits: Limits
) -> tuple[WriteOperation | None, dict[int, ShoalError]]:
    """What to write, and which versions cannot be, by their numbers.

    Raises:
        FingerprintMismatch: the vectors are another encoder's.
        MalformedMessage: rows, spans or digests do not fit together.
        LimitExceeded: too many versions, or one that is too large.
        InvalidRequest: a document belongs to another shard.
    """
    spec = shard.spec
    if request.fingerprint != spec.fingerprint:
        raise FingerprintMismatch(
            f"the vectors are of encoder {request.fingerprint[:16] or 'none'}, the "
            f"collection's is {spec.fingerprint[:16] or 'none'}"
        )
    versions = request.versions
    check_limit("max_batch", len(versions), max(limits.max_batch, limits.max_ids))
    passages = np.fromiter((v.passage_count for v in versions), np.int64, len(versions))
    if len(passages) and int(passages.min()) < 1:
        raise MalformedMessage("a version has 1 passage or more")
    rows = matrix_from_message(request.vectors)
    if request.codec:
        _check_codes(shard, request)
    elif len(rows) and rows.shape[1] != spec.dim:
        error = DimensionMismatch(
            f"the vector has {rows.shape[1]} columns, the collection has {spec.dim}",
            expected=spec.dim,
            given=rows.shape[1],
        )
        return None, dict.fromkeys(range(len(versions)), error)
    row_starts = starts_of(passages)
    ids = [version.document.id for version in versions]
    vectors, found = _vectors(shard, request, rows, ids, row_starts)
    errors = {number: error for number, error in enumerate(found) if error is not None}
    good = [number for number in range(len(versions)) if number not in errors]
    accepted = [_version(versions[number], limits) for number in good]
    check_owner([version.id for version in accepted], spec.ref.shard, spec.shard_count)
    if not accepted:
        return None, errors
    if errors:
        first, *others = (
            vectors.part(int(row_starts[number]), int(row_starts[number + 1])) for number in good
        )
        vectors = first.joined(others)
    if not isinstance(vectors, TokenVectors):
        return WriteOperation(accepted, vectors), errors
    assert isinstance(shard.layout, TokenLayout)
    far = shard.layout.far(vectors)
    return WriteOperation(accepted, vectors, len(vectors.rows), far), errors


def _check_codes(shard: Shard, request: shard_pb2.WriteRequest) -> None:
    if not request.from_builder:
        raise MalformedMessage("codes are the builder's alone to write; send vectors")
    if request.codec != shard.spec.codec:
        raise InvalidRequest(
            f"the codes are of codec {request.codec[:16]}, the generation's is "
            f"{shard.spec.codec[:16] or 'none'}",
            field="codec",
        )


def _copied(layout: TokenLayout, rows: NDArray[Any], starts: NDArray[np.int64]) -> TokenVectors:
    if rows.dtype != np.uint8:
        raise MalformedMessage(f"codes are U8, not {rows.dtype.name}")
    try:
        return layout.vectors(rows, starts)
    except ValueError as error:
        raise MalformedMessage(f"these are no codes: {error}") from error


def _vectors(
    shard: Shard,
    request: shard_pb2.WriteRequest,
    rows: NDArray[Any],
    ids: Sequence[str],
    row_starts: NDArray[np.int64],
) -> tuple[Vectors, list[ShoalError | None]]:
    """The passages' vectors, and per version why it cannot be stored."""
    layout = shard.layout
    if isinstance(layout, TokenLayout):
        counts = np.fromiter(
            (count for version in request.versions for count in version.row_counts), np.int64
        )
        if len(counts) != row_starts[-1] or int(counts.sum()) != len(rows):
            raise MalformedMessage("row_counts must give every passage its rows of vectors")
        starts = starts_of(counts)
        if request.codec:
            return _copied(layout, rows, starts), [None] * len(ids)
        if rows.dtype != np.float16:
            raise MalformedMessage(f"token vectors to store are F16, not {rows.dtype.name}")
        found = token_errors(ids, starts[row_starts], rows)
        if any(found):
            rows = np.nan_to_num(rows, posinf=0.0, neginf=0.0).clip(-1.0, 1.0)
        return layout.vectors(rows, starts), found
    if row_starts[-1] != len(rows):
        raise MalformedMessage(f"{row_starts[-1]} passages, but {len(rows)} vectors")
    if rows.dtype != np.float32:
        raise MalformedMessage(f"vectors to store are F32, not {rows.dtype.name}")
    return Dense(rows), version_errors(ids, row_starts, rows, shard.spec.similarity)


def _version(message: shard_pb2.DocumentVersion, limits: Limits) -> Version:
    document = message.document
    if len(message.digest) != DIGEST_BYTES:
        raise MalformedMessage(f"a digest has 16 bytes, {len(message.digest)} were sent")
    counts = {len(message.span_starts), len(message.span_ends)}
    if counts not in ({0}, {message.passage_count}):
        raise MalformedMessage("spans must be as many as passages, or none")
    check_limit("max_payload_bytes", len(document.payload), limits.max_payload_bytes)
    check_limit("max_text_bytes", len(document.text), limits.max_text_bytes)
    spans = np.stack(
        [
            np.array(message.span_starts, dtype=np.uint32),
            np.array(message.span_ends, dtype=np.uint32),
        ],
        axis=1,
    )
    content = Content(
        Document(document.id, document.title, document.text, document.payload),
        message.digest,
        message.passage_count,
        spans,
    )
    return Version(
        document.id.encode(), message.digest, message.passage_count, encode_content(content)
    )


def write_response(
    count: int,
    sequences: Sequence[int],
    replaced: Sequence[int],
    position: int,
    errors: dict[int, ShoalError],
) -> shard_pb2.WriteResponse:
    """The reply: sequences and replaced belong to the versions without an error."""
    response = shard_pb2.WriteResponse(position=position)
    if not errors:
        response.sequences.extend(sequences)
        response.replaced.extend(replaced)
        return response
    stored = iter(zip(sequences, replaced, strict=True))
    for number in range(count):
        sequence, old = (0, 0) if number in errors else next(stored)
        response.sequences.append(sequence)
        response.replaced.append(old)
    response.statuses.extend(_statuses(count, errors))
    return response


# --- reading -------------------------------------------------------------------


def probe_digests(request: shard_pb2.ProbeRequest) -> NDArray[np.uint8]:
    """[ids, 16] uint8.

    Raises:
        MalformedMessage: another length.
    """
    digests = column(request.digests, "u1", DIGEST_BYTES * len(request.ids), "digests")
    return digests.reshape(-1, DIGEST_BYTES)


def fetch(shard: Shard, request: shard_pb2.FetchRequest, limits: Limits) -> shard_pb2.FetchResponse:
    """Answers a Fetch message.

    Raises:
        MalformedMessage: columns of different lengths.
        LimitExceeded: too many ids, or together too large for one message.
        InvalidRequest: a document has no such passage.
    """
    count = len(request.ids)
    check_limit("max_ids", count, limits.max_ids)
    for name, length in (
        ("sequences", len(request.sequences)),
        ("passages", len(request.passages)),
    ):
        if length not in {0, count}:
            raise MalformedMessage(f"{name} must be as long as ids, or empty")
    sequences = request.sequences or [0] * count
    passages: Sequence[int | None] = request.passages or [None] * count
    stored, position = shard.fetch([key.encode() for key in request.ids], sequences)
    fields = frozenset(request.fields)
    response = shard_pb2.FetchResponse(
        documents=[
            _fetched_document(one, fields, passage)
            for one, passage in zip(stored, passages, strict=True)
        ],
        position=position,
    )
    check_limit("max_message_bytes", response.ByteSize(), limits.max_message_bytes)
    return response


def _fetched_document(
    stored: Stored | None, fields: frozenset[int], passage: int | None
) -> shard_pb2.FetchedDocument:
    if stored is None:
        return shard_pb2.FetchedDocument(found=False)
    content = stored.content
    fetched = shard_pb2.FetchedDocument(found=True, sequence=stored.sequence)
    fetched.document.id = content.document.id
    if shard_pb2.FIELD_TITLE in fields:
        fetched.document.title = content.document.title
    if shard_pb2.FIELD_TEXT in fields:
        fetched.document.text = content.document.text
    if shard_pb2.FIELD_PAYLOAD in fields:
        fetched.document.payload = content.document.payload
    if passage is not None:
        if passage >= content.passages:
            raise InvalidRequest(
                f"document {content.document.id!r} has {content.passages} passages, "
                f"not {passage + 1}",
                field="passages",
            )
        if len(content.spans):
            start, end = content.spans[passage].tolist()
            fetched.span.start, fetched.span.end = start, end
    return fetched
