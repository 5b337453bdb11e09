"""The synchronous client: the operations on gRPC's synchronous API.

It has no event loop, so it works beside one, and from many threads.
"""

import secrets
import time
from collections.abc import Iterable, Sequence
from types import TracebackType
from typing import TypeVar, overload

from numpy.typing import ArrayLike

from shoal.client import defaults, growth, operations, requests
from shoal.client.documents import GivenDocument
from shoal.client.explained import ExplainedAnswer, Reranked
from shoal.client.ingest import IngestSession, OnRejected, Progress
from shoal.client.model import (
    Answer,
    ClusterStatus,
    CollectionInfo,
    DeleteReport,
    IngestReport,
    StoredDocument,
)
from shoal.client.operations import Call, LimitsCache, Operation, Step
from shoal.client.requests import ALL_FIELDS, Field
from shoal.client.sync_ingest import SyncIngest
from shoal.client.sync_routers import SyncRouters
from shoal.client.transport import resolve_target
from shoal.errors import DeadlineExceeded, ShoalError
from shoal.ids import check_name

Result = TypeVar("Result")


class Client(growth.SyncGrowth):
    """Connections to a cluster's routers; a context manager, safe to use from many threads.

    Every method raises the classes of `shoal.errors`, never gRPC's own.
    `ClusterUnreachable`: no router answers. `DeadlineExceeded`: `deadline_s`, the
    time for the whole call, is over. Calls that change nothing are repeated once, at
    another router where there is one, if the error says that this may help, the
    deadline leaves time and few have failed of late; others if they were never sent.
    """

    def __init__(self, target: str | None = None) -> None:
        """Connects when first used.

        Args:
            target: "host:port" of one router or more, with commas between; the
                others are learned. None takes SHOAL_TARGET, or 127.0.0.1:50051.
        """
        self.target = resolve_target(target)
        self._routers = SyncRouters(self.target)
        self._limits = LimitsCache()

    def __enter__(self) -> "Client":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"Client({self.target!r})"

    def close(self) -> None:
        """Closes the connections; calls under way end with `Cancelled`."""
        self._routers.close()

    def search(  # noqa: PLR0913 - options, by keyword alone
        self,
        name: str,
        text: str | None = None,
        *,
        vector: ArrayLike | None = None,
        top_k: int = 10,
        deadline_s: float = defaults.SEARCH_S,
        min_coverage: float = 1.0,
        fields: Sequence[Field] = ALL_FIELDS,
        allow_truncation: bool = False,
        after: bytes | None = None,
        fingerprint: str = "",
        effort: str = "",
    ) -> Answer:
        """The best documents for one question.

        Args:
            name: the collection.
            text: the question in words; or
            vector: the question as an array [dim] of floats, or [tokens, dim] in kind
                colbert.
            top_k: documents wanted, 1 or more.
            deadline_s: seconds after which the answer is of no use.
            min_coverage: least share of the collection's documents that must be
                behind the answer, 0.0 to 1.0.
            fields: parts of each document that the hits carry; empty for ids
                and scores alone, which is faster.
            allow_truncation: cut an over-long question instead of refusing it.
            after: `position` of an earlier reply: see at least the writes up to it.
            fingerprint: of the encoder that made the vector, to have it checked.
            effort: kind colbert: "low", "normal", "high" or "exhaustive"; empty is
                "normal".

        Raises:
            CollectionNotFound, InsufficientCoverage, InvalidTopK, EmptyText,
            TextTooLong, DimensionMismatch, ...: see `shoal.errors`.
        """
        options = requests.search_options(
            top_k=top_k,
            min_coverage=min_coverage,
            fields=fields,
            allow_truncation=allow_truncation,
            after=after,
            fingerprint=fingerprint,
            effort=effort,
        )
        request = requests.search_request(_request_id(), name, text, vector, options)
        return self._run(operations.search(self._limits, request), deadline_s)

    def search_batch(  # noqa: PLR0913 - options, by keyword alone
        self,
        name: str,
        texts: Sequence[str] | None = None,
        *,
        vectors: ArrayLike | Sequence[ArrayLike] | None = None,
        top_k: int = 10,
        deadline_s: float = defaults.SEARCH_BATCH_S,
        min_coverage: float = 1.0,
        fields: Sequence[Field] = ALL_FIELDS,
        allow_truncation: bool = False,
        after: bytes | None = None,
        fingerprint: str = "",
        effort: str = "",
    ) -> list[Answer | ShoalError]:
        """Many questions at once; a bad one does not fail the others.

        Args:
            name: the collection.
            texts: the questions in words; or
            vectors: the questions as an array [questions, dim] of floats, or, in kind
                colbert, a list of arrays [tokens, dim].
            top_k: as in `search`, as are the others.
            deadline_s: seconds for the whole batch.
            min_coverage: as in `search`.
            fields: as in `search`.
            allow_truncation: as in `search`.
            after: as in `search`.
            fingerprint: as in `search`.
            effort: as in `search`.

        Returns:
            Per question, in the order asked, its answer or its error. A batch
            that fails as a whole raises.
        """
        options = requests.search_options(
            top_k=top_k,
            min_coverage=min_coverage,
            fields=fields,
            allow_truncation=allow_truncation,
            after=after,
            fingerprint=fingerprint,
            effort=effort,
        )
        questions = requests.batch_questions(texts, vectors)
        operation = operations.search_batch(self._limits, _request_id(), name, questions, options)
        return self._run(operation, deadline_s)

    def explain(  # noqa: PLR0913 - options, by keyword alone
        self,
        name: str,
        text: str | None = None,
        *,
        vector: ArrayLike | None = None,
        ids: Sequence[str] = (),
        top_k: int = 10,
        effort: str = "",
        fields: Sequence[Field] = ALL_FIELDS,
        deadline_s: float = defaults.EXPLAIN_S,
        min_coverage: float = 1.0,
        allow_truncation: bool = False,
    ) -> ExplainedAnswer:
        """Which token matched which, and where documents were dropped (kind colbert).

        Args:
            name: the collection.
            text: the question in words; or
            vector: the question as an array [tokens, dim] of floats.
            ids: documents to explain, found by the search or not; empty explains its hits.
            top_k: documents that the search wants; with effort, what the ranks and cuts
                are of.
            effort: as in `search`.
            fields: parts of each document that come along.
            deadline_s: seconds after which the answer is of no use.
            min_coverage: as in `search`.
            allow_truncation: cut an over-long question instead of refusing it.

        Raises:
            NotSupported: the collection is of kind single. Others: see `search`.
        """
        options = requests.search_options(
            top_k=top_k,
            min_coverage=min_coverage,
            fields=fields,
            allow_truncation=allow_truncation,
            after=None,
            fingerprint="",
            effort=effort,
        )
        query = requests.question(text, vector)
        request = requests.explain_request(_request_id(), name, query, ids, options)
        return self._run(operations.explain(request), deadline_s)

    def rerank(
        self,
        name: str,
        text: str | None = None,
        *,
        vector: ArrayLike | None = None,
        ids: Sequence[str],
        top_k: int = 0,
        fields: Sequence[Field] = ALL_FIELDS,
        deadline_s: float = defaults.EXPLAIN_S,
    ) -> Reranked:
        """Orders given documents by their scores for a question (kind colbert).

        Args:
            name: the collection.
            text: the question in words; or
            vector: the question as an array [tokens, dim] of floats.
            ids: the documents.
            top_k: documents wanted; 0 wants all.
            fields: parts of each document that come along.
            deadline_s: seconds after which the answer is of no use.

        Raises:
            NotSupported: the collection is of kind single. Others: see `search`.
        """
        options = requests.search_options(
            top_k=top_k or max(1, len(ids)),
            min_coverage=1.0,
            fields=fields,
            allow_truncation=False,
            after=None,
            fingerprint="",
            effort="",
        )
        query = requests.question(text, vector)
        request = requests.rerank_request(_request_id(), name, query, ids, options)
        return self._run(operations.rerank(request), deadline_s)

    def ingest(
        self,
        name: str,
        documents: Iterable[GivenDocument],
        *,
        progress: Progress | None = None,
        on_rejected: OnRejected = "collect",
        fingerprint: str = "",
        stall_s: float = defaults.INGEST_STALL_S,
    ) -> IngestReport:
        """Stores documents; each is durable and found once it is counted.

        Documents that are stored already with the same content are skipped
        before they are encoded, so an ingest that was interrupted is resumed by
        repeating it. If the stream breaks, it is opened again and what was not
        acknowledged is sent again.

        Args:
            name: the collection.
            documents: any iterable of dicts, or objects with attributes: `id`
                (or `_id`), `text`, `title`, `vector` (an array [dim] of floats,
                sent as it is), `payload` (a dict). Other keys of a dict join the
                payload. Only a window of them is held at a time.
            progress: called in this thread with the report so far.
            on_rejected: "collect" lists refused documents in the report;
                "raise" stops at the first.
            fingerprint: of the encoder that made the vectors, to have it checked.
            stall_s: longest time in seconds without an acknowledgement.

        Raises:
            ShoalError: the stream failed for good; its note says how far it came.
        """
        self._routers.check_open()
        limits = self._run(self._limits.get(), defaults.STATUS_S)
        session = IngestSession(
            request_id=_request_id(),
            name=check_name(name),
            fingerprint=fingerprint,
            limits=limits,
            stall_s=stall_s,
        )
        return SyncIngest(session, self._routers).run(documents, progress, on_rejected)

    @overload
    def get(  # type: ignore[overload-overlap]
        self, name: str, ids: str, *, deadline_s: float = ...
    ) -> StoredDocument | None: ...
    @overload
    def get(
        self, name: str, ids: Sequence[str], *, deadline_s: float = ...
    ) -> list[StoredDocument | None]: ...
    def get(
        self, name: str, ids: str | Sequence[str], *, deadline_s: float = defaults.GET_S
    ) -> StoredDocument | list[StoredDocument | None] | None:
        """Documents by id: one for one id, a list in the same order for many; None
        stands for a document that is not stored.
        """
        operation = operations.get(self._limits, name, requests.document_ids(ids))
        documents = self._run(operation, deadline_s)
        return documents[0] if isinstance(ids, str) else documents

    def delete(
        self, name: str, ids: str | Sequence[str], *, deadline_s: float = defaults.DELETE_S
    ) -> DeleteReport:
        """Deletes documents by id; an id that is not stored is no error."""
        operation = operations.delete(self._limits, name, requests.document_ids(ids))
        return self._run(operation, deadline_s)

    def create_collection(  # noqa: PLR0913 - options, by keyword alone
        self,
        name: str,
        kind: str = "single",
        *,
        encoder: str = "",
        dim: int | None = None,
        index: str = "auto",
        chunk_tokens: int | None = None,
        similarity: str = "",
        shards: int | None = None,
        code_bytes: int | None = None,
        train_at: int | None = None,
        pool_factor: int | None = None,
        deadline_s: float = defaults.CREATE_S,
    ) -> CollectionInfo:
        """Creates a collection and waits until it serves.

        Args:
            name: [a-z0-9][a-z0-9_-]{0,63}
            kind: "single" or "colbert".
            encoder: a built-in name, a folder, "hub/id@revision", or "none" to
                bring your own vectors; empty for the built-in default.
            dim: columns of the vectors; needed with encoder "none".
            index: "auto", "flat", "hnsw" or "ivf-pq".
            chunk_tokens: tokens of one passage; 0 turns chunking off, None is the default.
            similarity: "cosine", "dot" or "l2"; empty for the encoder's own.
            shards: None for the cluster's default.
            code_bytes: kind colbert: residual bytes of a token, 4, 8, 16 or 32; None is 8.
            train_at: kind colbert: tokens at which to train during an ingest; None: 2,000,000.
            pool_factor: kind colbert: token vectors that become one, 1 to 3; None is 1.
            deadline_s: seconds; loading an encoder takes some.

        Raises:
            CollectionExists, EncoderNotFound, InvalidRequest, ...: see `shoal.errors`.
        """
        request = requests.create_request(
            name,
            kind=kind,
            encoder=encoder,
            dim=dim,
            index=index,
            chunk_tokens=chunk_tokens,
            similarity=similarity,
            shards=shards,
            code_bytes=code_bytes,
            train_at=train_at,
            pool_factor=pool_factor,
        )
        return self._run(operations.create_collection(request), deadline_s)

    def drop_collection(self, name: str, *, deadline_s: float = defaults.DROP_S) -> None:
        """Drops a collection and its data."""
        self._run(operations.drop_collection(name), deadline_s)

    def list_collections(self, *, deadline_s: float = defaults.STATUS_S) -> list[CollectionInfo]:
        """The collections, ascending by name."""
        return self._run(operations.list_collections(), deadline_s)

    def optimize(self, name: str, *, deadline_s: float = defaults.OPTIMIZE_S) -> None:
        """Seals and merges a collection's shards into one segment each."""
        self._run(operations.optimize(name), deadline_s)

    def rebuild(
        self,
        name: str,
        *,
        shards: int | None = None,
        index: str = "",
        encoder: str = "",
        code_bytes: int | None = None,
        deadline_s: float = defaults.CREATE_S,
    ) -> int:
        """Begins to build a collection's next generation; gives its number.

        The collection serves and takes writes meanwhile; `status` says how far the build
        is, and which generation serves.

        Args:
            name: the collection.
            shards: of the next generation; None keeps their number, as with the others.
            index: kind single: "auto", "flat", "hnsw" or "ivf-pq".
            encoder: as in `create_collection`: every text is encoded anew.
            code_bytes: kind colbert: as in `create_collection`.
            deadline_s: time for the call, not for the build.

        Raises:
            BuildUnderWay, CollectionNotFound, InvalidRequest, EncoderNotFound, ...
        """
        request = requests.rebuild_request(
            name, shards=shards, index=index, encoder=encoder, code_bytes=code_bytes
        )
        return self._run(operations.rebuild(request), deadline_s)

    def rollback(self, name: str, *, deadline_s: float = defaults.CREATE_S) -> int:
        """Serves the generation before again; gives its number.

        It is as it was when it was replaced: what was written since is not in it, but in
        the generation that it replaces, which another `rollback` serves again.

        Raises:
            BuildUnderWay, CollectionNotFound, NoPreviousGeneration.
        """
        return self._run(operations.rollback(name), deadline_s)

    def accept_loss(
        self, name: str, shard: int, loss: str, *, deadline_s: float = defaults.ACCEPT_LOSS_S
    ) -> None:
        """Lets a corrupt shard serve without the data that is lost.

        Args:
            name: the collection.
            shard: number of the corrupt shard.
            loss: the loss, word for word as `status` names it.
            deadline_s: seconds.

        Raises:
            LossMismatch: the shard names another loss.
        """
        self._run(
            operations.accept_loss(requests.accept_loss_request(name, shard, loss)), deadline_s
        )

    def status(self, *, deadline_s: float = defaults.STATUS_S) -> ClusterStatus:
        """The cluster: processes, collections, shards, limits."""
        return self._run(operations.status(), deadline_s)

    def _run(self, operation: Operation[Result], deadline_s: float) -> Result:
        """Performs an operation's steps within the deadline."""
        end = time.monotonic() + deadline_s
        try:
            step = next(operation)
            while True:
                try:
                    reply = self._perform(step, end)
                except ShoalError as error:
                    step = operation.throw(error)
                else:
                    step = operation.send(reply)
        except StopIteration as finished:
            result: Result = finished.value
            return result

    def _perform(self, step: Step, end: float) -> object:
        left_s = end - time.monotonic()
        if isinstance(step, Call):
            if left_s <= 0:
                raise DeadlineExceeded("the time for this call is over")
            return self._routers.call(step.rpc, step.request, left_s)
        pause_s = self._routers.retry_pause_s(step.error, left_s)
        if pause_s is None:
            raise step.error
        time.sleep(pause_s)
        return None


def connect(target: str | None = None) -> Client:
    """A client for the cluster whose routers listen at `target`.

    Args:
        target: "host:port" or "a:1,b:2"; None takes SHOAL_TARGET, or 127.0.0.1:50051.
    """
    return Client(target)


def _request_id() -> str:
    return secrets.token_hex(8)
