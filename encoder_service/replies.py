"""What was encoded, as messages."""

from collections.abc import Sequence

import numpy as np

from encoder_service.core.card import card_json
from encoder_service.core.vectors import finish
from encoder_service.labels import Label, Origin, document_labels, query_labels
from encoder_service.models import Model
from encoder_service.prepare import PreparedDocument, PreparedQuery
from encoder_service.worker import Encoded
from shoal.errors import ShoalError
from shoal.rpc.common.v1 import common_pb2
from shoal.rpc.encoder.v1 import encoder_pb2
from shoal.types import Float32Matrix, Similarity
from shoal.wire.arrays import matrix_to_message
from shoal.wire.errors import to_status

_SIMILARITIES = {
    Similarity.COSINE: common_pb2.SIMILARITY_COSINE,
    Similarity.DOT: common_pb2.SIMILARITY_DOT,
    Similarity.L2: common_pb2.SIMILARITY_L2,
}
_ORIGINS = {
    Origin.ADDED: encoder_pb2.TOKEN_ORIGIN_ADDED,
    Origin.TITLE: encoder_pb2.TOKEN_ORIGIN_TITLE,
    Origin.TEXT: encoder_pb2.TOKEN_ORIGIN_TEXT,
}


def model_info(model: Model) -> encoder_pb2.ModelInfo:
    """Describes a model."""
    return encoder_pb2.ModelInfo(
        fingerprint=model.fingerprint,
        encoder=model.reference,
        card_json=card_json(model.card),
        dim=model.card.dim,
        similarity=_SIMILARITIES[model.card.similarity],
        precision=model.backend.precision,
        batch_drift=model.batch_drift,
        golden_drift=model.golden_drift,
        golden_texts=model.golden_texts,
        max_document_tokens=model.card.max_document_tokens,
        max_query_tokens=model.card.max_query_tokens,
        token_vectors=model.card.tokens is not None,
    )


def queries(
    model: Model,
    columns: int,
    prepared: Sequence[PreparedQuery | ShoalError],
    encoded: Sequence[Encoded],
    tokenize_us: int,
    texts: Sequence[str] | None = None,
) -> encoder_pb2.EncodeQueriesResponse:
    """The reply to EncodeQueries.

    Args:
        model: what encoded.
        columns: of each vector.
        prepared: an outcome for each text.
        encoded: an outcome for each text that was prepared, in order.
        tokenize_us: what preparing took.
        texts: to label their tokens.
    """
    nothing = np.zeros((0 if model.card.tokens else 1, model.card.dim), np.float32)
    rows = [nothing] * len(prepared)
    labels: list[Label] = []
    statuses = [common_pb2.Status() for _ in prepared]
    outcomes = iter(encoded)
    for number, text in enumerate(prepared):
        outcome = text if isinstance(text, ShoalError) else next(outcomes)
        if isinstance(outcome, ShoalError):
            statuses[number] = to_status(outcome)
        elif outcome.error is not None:
            statuses[number] = to_status(outcome.error)
        elif outcome.rows is not None:
            rows[number] = outcome.rows
            if texts is not None and isinstance(text, PreparedQuery):
                labels += query_labels(model.card, model.tokenizer, texts[number], text)
    return encoder_pb2.EncodeQueriesResponse(
        fingerprint=model.fingerprint,
        precision=model.backend.precision,
        vectors=_matrix(model, rows, columns),
        row_counts=_row_counts(model, rows),
        labels=map(_label, labels),
        statuses=_unless_all_ok(statuses),
        truncated=[isinstance(text, PreparedQuery) and text.truncated for text in prepared],
        token_counts=[
            len(text.input.ids) if isinstance(text, PreparedQuery) else 0 for text in prepared
        ],
        timings=_timings(encoded, tokenize_us),
    )


def documents(
    model: Model,
    columns: int,
    prepared: Sequence[PreparedDocument | ShoalError],
    encoded: Sequence[Encoded],
    tokenize_us: int,
    texts: Sequence[str] | None = None,
) -> encoder_pb2.EncodeDocumentsResponse:
    """The reply to EncodeDocuments; a document with a passage that failed has failed.

    Args:
        model: what encoded.
        columns: of each vector.
        prepared: an outcome for each document.
        encoded: an outcome for each passage of those that were prepared, in order.
        tokenize_us: what preparing took.
        texts: of the documents, to label their tokens.
    """
    statuses = [common_pb2.Status() for _ in prepared]
    counts = [0] * len(prepared)
    starts: list[int] = []
    ends: list[int] = []
    rows: list[Float32Matrix] = []
    labels: list[Label] = []
    at = 0
    for number, document in enumerate(prepared):
        if isinstance(document, ShoalError):
            statuses[number] = to_status(document)
            continue
        outcomes = encoded[at : at + len(document.passages)]
        at += len(document.passages)
        failed = next((outcome.error for outcome in outcomes if outcome.error is not None), None)
        if failed is not None:
            statuses[number] = to_status(failed)
            continue
        counts[number] = len(document.passages)
        starts += [passage.start for passage in document.passages]
        ends += [passage.end for passage in document.passages]
        rows += [outcome.rows for outcome in outcomes if outcome.rows is not None]
        if texts is not None:
            labels += document_labels(model.card, model.tokenizer, texts[number], document)
    return encoder_pb2.EncodeDocumentsResponse(
        fingerprint=model.fingerprint,
        precision=model.backend.precision,
        passage_counts=counts,
        span_starts=starts,
        span_ends=ends,
        vectors=_matrix(model, rows, columns),
        row_counts=_row_counts(model, rows),
        labels=map(_label, labels),
        statuses=_unless_all_ok(statuses),
        truncated=[
            isinstance(document, PreparedDocument) and document.truncated for document in prepared
        ],
        timings=_timings(encoded, tokenize_us),
    )


def _label(label: Label) -> encoder_pb2.TokenLabel:
    return encoder_pb2.TokenLabel(
        token=label.token, origin=_ORIGINS[label.origin], start=label.start, end=label.end
    )


def _matrix(model: Model, rows: Sequence[Float32Matrix], columns: int) -> common_pb2.Matrix:
    together = np.concatenate([np.zeros((0, model.card.dim), np.float32), *rows])
    return matrix_to_message(finish(together, columns, model.card.normalize))


def _row_counts(model: Model, rows: Sequence[Float32Matrix]) -> list[int]:
    return [len(each) for each in rows] if model.card.tokens else []


def _unless_all_ok(statuses: list[common_pb2.Status]) -> list[common_pb2.Status]:
    return statuses if any(status.reason for status in statuses) else []


def _timings(encoded: Sequence[Encoded], tokenize_us: int) -> encoder_pb2.EncodeTimings:
    batches = {outcome.batch: outcome.model_ns for outcome in encoded}
    return encoder_pb2.EncodeTimings(
        tokenize_us=tokenize_us,
        queue_us=max((outcome.queue_ns for outcome in encoded), default=0) // 1_000,
        inference_us=sum(batches.values()) // 1_000,
    )
