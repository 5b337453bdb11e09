"""Arguments to request messages: checked here, so that a wrong call costs no round trip."""

from collections.abc import Sequence
from typing import Any, Literal, TypeVar, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray

from shoal.errors import InvalidRequest, InvalidTopK
from shoal.ids import check_name
from shoal.rpc.common.v1 import common_pb2
from shoal.rpc.router.v1 import router_pb2
from shoal.wire.arrays import matrix_to_message

Questions = list[str] | NDArray[Any] | list[NDArray[Any]]
"""Words, a [questions, dim] array of float64, float32 or float16, or, of late interaction, a
[tokens, dim] array for each."""

Field = Literal["title", "text", "payload"]
ALL_FIELDS: tuple[Field, ...] = get_args(Field)

_FIELDS: dict[str, router_pb2.Field.ValueType] = {
    "title": router_pb2.FIELD_TITLE,
    "text": router_pb2.FIELD_TEXT,
    "payload": router_pb2.FIELD_PAYLOAD,
}
_KINDS: dict[str, common_pb2.CollectionKind.ValueType] = {
    "single": common_pb2.COLLECTION_KIND_SINGLE,
    "colbert": common_pb2.COLLECTION_KIND_COLBERT,
}
_SIMILARITIES: dict[str, common_pb2.Similarity.ValueType] = {
    "": common_pb2.SIMILARITY_UNSPECIFIED,
    "cosine": common_pb2.SIMILARITY_COSINE,
    "dot": common_pb2.SIMILARITY_DOT,
    "l2": common_pb2.SIMILARITY_L2,
}
_UINT32_END = 1 << 32

Value = TypeVar("Value")


def search_options(
    *,
    top_k: int,
    min_coverage: float,
    fields: Sequence[Field],
    allow_truncation: bool,
    after: bytes | None,
    fingerprint: str,
    effort: str,
) -> router_pb2.SearchOptions:
    """How to answer.

    Raises:
        InvalidTopK: top_k is below 1 or no 32-bit number.
        InvalidRequest: min_coverage is outside [0, 1], or a field is unknown.
    """
    if not 1 <= top_k < _UINT32_END:
        raise InvalidTopK(f"top_k is {top_k}; ask for 1 or more", given=top_k)
    if not 0.0 <= min_coverage <= 1.0:
        raise InvalidRequest(
            f"min_coverage is {min_coverage}; it lies between 0 and 1", field="min_coverage"
        )
    return router_pb2.SearchOptions(
        top_k=top_k,
        min_coverage=min_coverage,
        fields=[_choice("fields", name, _FIELDS) for name in fields],
        allow_truncation=allow_truncation,
        after=after or b"",
        fingerprint=fingerprint,
        effort=utf8("effort", effort),
    )


def search_request(
    request_id: str,
    name: str,
    text: str | None,
    vector: ArrayLike | None,
    options: router_pb2.SearchOptions,
) -> router_pb2.SearchRequest:
    """One question: words or a vector.

    Raises:
        InvalidRequest: both or neither are given, or the text is no Unicode.
        InvalidName: the collection's name cannot be one.
    """
    return router_pb2.SearchRequest(
        request_id=request_id,
        collection=check_name(name),
        query=question(text, vector),
        options=options,
    )


def question(text: str | None, vector: ArrayLike | None) -> router_pb2.Query:
    """Words, or vectors.

    Raises:
        InvalidRequest: both or neither are given, or the text is no Unicode.
    """
    if (text is None) == (vector is None):
        raise InvalidRequest("give either text or vector", field="query")
    if text is not None:
        return router_pb2.Query(text=utf8("text", text))
    return router_pb2.Query(vector=vector_message(vector))


def explain_request(
    request_id: str,
    name: str,
    query: router_pb2.Query,
    ids: str | Sequence[str],
    options: router_pb2.SearchOptions,
) -> router_pb2.ExplainRequest:
    """Why documents match a question."""
    return router_pb2.ExplainRequest(
        request_id=request_id,
        collection=check_name(name),
        query=query,
        ids=document_ids(ids),
        options=options,
    )


def rerank_request(
    request_id: str,
    name: str,
    query: router_pb2.Query,
    ids: str | Sequence[str],
    options: router_pb2.SearchOptions,
) -> router_pb2.RerankRequest:
    """Documents from elsewhere, to be ordered."""
    return router_pb2.RerankRequest(
        request_id=request_id,
        collection=check_name(name),
        query=query,
        ids=document_ids(ids),
        options=options,
    )


def batch_request(
    request_id: str,
    name: str,
    questions: Questions,
    options: router_pb2.SearchOptions,
) -> router_pb2.SearchBatchRequest:
    """Many questions: words, or a [questions, dim] array of vectors."""
    request = router_pb2.SearchBatchRequest(request_id=request_id, collection=name, options=options)
    if isinstance(questions, np.ndarray):
        request.vectors.CopyFrom(matrix_to_message(questions))
        return request
    for question in questions:
        if isinstance(question, str):
            request.texts.append(question)
        else:
            request.row_counts.append(len(question))
    if request.row_counts:
        matrices = [question for question in questions if not isinstance(question, str)]
        request.vectors.CopyFrom(matrix_to_message(np.concatenate(matrices)))
    return request


def batch_questions(
    texts: Sequence[str] | None, vectors: ArrayLike | Sequence[ArrayLike] | None
) -> Questions:
    """The questions of a batch: a list of words, a [questions, dim] float array, or a list of
    [tokens, dim] ones.

    Raises:
        InvalidRequest: both or neither are given, a text is no Unicode string,
            or the vectors are not a matrix of numbers.
    """
    if (texts is None) == (vectors is None):
        raise InvalidRequest("give either texts or vectors", field="query")
    if texts is not None:
        if isinstance(texts, str):
            raise InvalidRequest("texts is one string; give a list of them", field="texts")
        return [utf8("texts", text) for text in texts]
    if isinstance(vectors, list | tuple) and any(np.ndim(each) == 2 for each in vectors):
        return _token_matrices(vectors)
    matrix = float_array("vectors", np.asarray(vectors))
    if matrix.ndim == 3:
        return list(matrix)
    if matrix.ndim != 2:
        raise InvalidRequest(
            f"vectors has {matrix.ndim} dimensions; give an array [questions, dim]",
            field="vectors",
        )
    return matrix


def _token_matrices(vectors: Sequence[ArrayLike]) -> list[NDArray[Any]]:
    matrices = [float_array("vectors", each) for each in vectors]
    if {matrix.ndim for matrix in matrices} != {2}:
        raise InvalidRequest(
            "vectors mixes vectors and matrices; give an array [tokens, dim] for each question",
            field="vectors",
        )
    if len({matrix.shape[1] for matrix in matrices}) > 1:
        raise InvalidRequest("vectors holds matrices of different widths", field="vectors")
    return matrices


def vector_message(vector: ArrayLike | None) -> common_pb2.Matrix:
    """A vector [dim], or a matrix [tokens, dim], as packed bytes.

    Raises:
        InvalidRequest: it is not an array of numbers with 1 or 2 dimensions.
    """
    array = float_array("vector", vector)
    if array.ndim == 1:
        array = array[np.newaxis]
    if array.ndim != 2 or not array.shape[1]:
        raise InvalidRequest(
            f"the vector has shape {array.shape}; give an array [dim]", field="vector"
        )
    return matrix_to_message(array)


def float_array(name: str, values: ArrayLike | None) -> NDArray[Any]:
    """The values as float64, float32 or float16 where they are; else as float32."""
    try:
        array = np.asarray(values)
        if array.dtype.kind not in "fiub":
            raise TypeError(f"it holds {array.dtype.name}")
        if array.dtype.kind != "f" or array.dtype.itemsize > 8:
            array = array.astype(np.float32)
    except (TypeError, ValueError) as error:
        raise InvalidRequest(f"{name} is no array of numbers: {error}", field=name) from error
    return array


def utf8(name: str, text: object) -> str:
    """The text itself, if it is a string that UTF-8 can carry.

    Raises:
        InvalidRequest: it is not a string, or holds lone surrogates.
    """
    if not isinstance(text, str):
        raise InvalidRequest(f"{name} is {type(text).__name__}; give a string", field=name)
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InvalidRequest(f"{name} is not valid Unicode: {error}", field=name) from error
    return text


def create_request(  # noqa: PLR0913 - options, by keyword alone
    name: str,
    *,
    kind: str,
    encoder: str,
    dim: int | None,
    index: str,
    chunk_tokens: int | None,
    similarity: str,
    shards: int | None,
    code_bytes: int | None,
    train_at: int | None,
    pool_factor: int | None,
) -> router_pb2.CreateCollectionRequest:
    """A collection to create; what is None or empty is the cluster's default.

    Raises:
        InvalidName: the collection's name cannot be one.
        InvalidRequest: a value is none of those that exist.
    """
    return router_pb2.CreateCollectionRequest(
        name=check_name(name),
        kind=_choice("kind", kind, _KINDS),
        encoder=utf8("encoder", encoder),
        dim=_uint32("dim", dim or 0),
        index=utf8("index", index),
        chunk_tokens=None if chunk_tokens is None else _uint32("chunk_tokens", chunk_tokens),
        similarity=_choice("similarity", similarity, _SIMILARITIES),
        shards=_uint32("shards", shards or 0),
        code_bytes=_uint32("code_bytes", code_bytes or 0),
        train_at=_uint32("train_at", train_at or 0),
        pool_factor=_uint32("pool_factor", pool_factor or 0),
    )


def rebuild_request(
    name: str,
    *,
    shards: int | None,
    index: str,
    encoder: str,
    code_bytes: int | None,
) -> router_pb2.RebuildCollectionRequest:
    """A generation to build; what is None or empty stays as it is."""
    return router_pb2.RebuildCollectionRequest(
        name=check_name(name),
        shards=_uint32("shards", shards or 0),
        index=utf8("index", index),
        encoder=utf8("encoder", encoder),
        code_bytes=_uint32("code_bytes", code_bytes or 0),
    )


def accept_loss_request(name: str, shard: int, loss: str) -> router_pb2.AcceptLossRequest:
    """A loss to accept, as `status` names it."""
    return router_pb2.AcceptLossRequest(
        collection=check_name(name), shard=_uint32("shard", shard), loss=utf8("loss", loss)
    )


def document_ids(ids: str | Sequence[str]) -> list[str]:
    """One id or many, as a list of strings that UTF-8 can carry."""
    return [utf8("ids", item) for item in ([ids] if isinstance(ids, str) else ids)]


def _uint32(name: str, number: int) -> int:
    if not 0 <= number < _UINT32_END:
        raise InvalidRequest(f"{name} is {number}; it lies between 0 and 2**32 - 1", field=name)
    return number


def _choice(name: str, given: str, values: dict[str, Value]) -> Value:
    try:
        return values[given]
    except KeyError:
        known = ", ".join(filter(None, values))
        raise InvalidRequest(f"{name} is {given!r}; known are {known}", field=name) from None
