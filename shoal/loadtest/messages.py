"""The bytes to send, made before the run: a client that encodes while it sends is slow."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray

from shoal.client import requests
from shoal.rpc.common.v1 import common_pb2
from shoal.rpc.router.v1 import router_pb2
from shoal.wire.errors import from_status, grpc_code

SEARCH = "/shoal.rpc.router.v1.SearchService/Search"
INGEST = "/shoal.rpc.router.v1.SearchService/Ingest"
IDS_PER_CLIENT = 100

Question = str | NDArray[Any]
"""Words, or a vector [dim], or a matrix [tokens, dim]."""


@dataclass(frozen=True, slots=True)
class Messages:
    """Serialised requests of one run.

    Attributes:
        searches: a SearchRequest for each question.
        ingest_start: the first message of an ingest stream.
        documents: an IngestDocument for each question, which is its text or its
            vector; the id is missing.
        prefix: what the ids of stored documents begin with.
    """

    searches: list[bytes]
    ingest_start: bytes
    documents: list[bytes]
    prefix: str


def messages(name: str, questions: Sequence[Question], *, top_k: int, prefix: str) -> Messages:
    """All that the clients send.

    A search asks for every field of its hits, as `shoal search` does, and takes
    partial answers, so that they can be counted.

    Raises:
        ShoalError: a name, a number or a question cannot be sent.
    """
    options = requests.search_options(
        top_k=top_k,
        min_coverage=0.0,
        fields=requests.ALL_FIELDS,
        allow_truncation=True,
        after=None,
        fingerprint="",
        effort="",
    )
    return Messages(
        searches=[_search(name, question, options) for question in questions],
        ingest_start=router_pb2.IngestRequest(
            start=router_pb2.IngestStart(collection=name)
        ).SerializeToString(),
        documents=[_document(question) for question in questions],
        prefix=prefix,
    )


def _search(name: str, question: Question, options: router_pb2.SearchOptions) -> bytes:
    text, vector = (question, None) if isinstance(question, str) else (None, question)
    return requests.search_request("", name, text, vector, options).SerializeToString()


def _document(question: Question) -> bytes:
    if isinstance(question, str):
        document = router_pb2.IngestDocument(document=common_pb2.Document(text=question))
    else:
        document = router_pb2.IngestDocument(vector=requests.vector_message(question))
    return document.SerializeToString()


def document_id(prefix: str, client: int, number: int) -> str:
    """The id under which a client stores its document number so-and-so."""
    return f"{prefix}{client}-{number % IDS_PER_CLIENT}"


def all_ids(prefix: str, clients: int) -> list[str]:
    """Every id that a run may have stored."""
    return [
        document_id(prefix, client, number)
        for client in range(clients)
        for number in range(IDS_PER_CLIENT)
    ]


def ingest_documents(template: bytes, identity: str, number: int) -> bytes:
    """The second message of an ingest stream.

    The payload holds the number: a document that is what is stored already would
    not be written again.
    """
    given = router_pb2.IngestDocument.FromString(template)
    given.document.id = identity
    given.document.payload = b'{"loadtest":%d}' % number
    return router_pb2.IngestRequest(
        documents=router_pb2.IngestDocuments(documents=[given])
    ).SerializeToString()


def is_partial(response: bytes) -> bool:
    """Whether a SearchResponse comes from less than the whole collection."""
    coverage = router_pb2.SearchResponse.FromString(response).coverage
    return (
        coverage.shards_answered < coverage.shards_total
        or coverage.documents_covered < coverage.documents_total
    )


def refusal(response: bytes) -> str | None:
    """The gRPC status code for a document that an IngestResponse refuses; None if none is."""
    for item in router_pb2.IngestResponse.FromString(response).acknowledgements.acknowledgements:
        error = from_status(item.status)
        if error is not None:
            return grpc_code(error.code).name
    return None
