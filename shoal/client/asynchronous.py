"""The asyncio client: the operations on `grpc.aio`."""

import asyncio
import secrets
import time
from collections.abc import AsyncIterable, Iterable, Sequence
from types import TracebackType
from typing import TypeVar, overload

from numpy.typing import ArrayLike

from shoal.client import defaults, growth, operations, requests
from shoal.client.async_ingest import AsyncIngest
from shoal.client.async_routers import AsyncRouters
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
from shoal.client.transport import resolve_target
from shoal.errors import DeadlineExceeded, ShoalError
from shoal.ids import check_name

Result = TypeVar("Result")


class AsyncClient(growth.AsyncGrowth):
    """The asyncio twin of `shoal.Client`: the same names, arguments and errors.

    An async context manager, for one event loop: the one it is first used in.
    """

    def __init__(self, target: str | None = None) -> None:
        """Connects when first used.

        Args:
            target: see `Client`.
        """
        self.target = resolve_target(target)
        self._routers = AsyncRouters(self.target)
        self._limits = LimitsCache()

    async def __aenter__(self) -> "AsyncClient":
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()

    def __repr__(self) -> str:
        return f"AsyncClient({self.target!r})"

    async def close(self) -> None:
        """Closes the connections; calls under way end with `Cancelled`."""
        await self._routers.close()

    async def search(  # noqa: PLR0913 - options, by keyword alone
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
        """The best documents for one question; see `Client.search`."""
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
        return await self._run(operations.search(self._limits, request), deadline_s)

    async def search_batch(  # noqa: PLR0913 - options, by keyword alone
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
        """Many questions at once; see `Client.search_batch`."""
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
        return await self._run(operation, deadline_s)

    async def explain(  # noqa: PLR0913 - options, by keyword alone
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
        """Why documents match; see `Client.explain`."""
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
        return await self._run(operations.explain(request), deadline_s)

    async def rerank(
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
        """Given documents by score; see `Client.rerank`."""
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
        return await self._run(operations.rerank(request), deadline_s)

    async def ingest(
        self,
        name: str,
        documents: Iterable[GivenDocument] | AsyncIterable[GivenDocument],
        *,
        progress: Progress | None = None,
        on_rejected: OnRejected = "collect",
        fingerprint: str = "",
        stall_s: float = defaults.INGEST_STALL_S,
    ) -> IngestReport:
        """Stores documents; see `Client.ingest`.

        `documents` may be an async iterable; an ordinary one is iterated in the
        event loop.
        """
        self._routers.check_open()
        limits = await self._run(self._limits.get(), defaults.STATUS_S)
        session = IngestSession(
            request_id=_request_id(),
            name=check_name(name),
            fingerprint=fingerprint,
            limits=limits,
            stall_s=stall_s,
        )
        return await AsyncIngest(session, self._routers).run(documents, progress, on_rejected)

    @overload
    async def get(  # type: ignore[overload-overlap]
        self, name: str, ids: str, *, deadline_s: float = ...
    ) -> StoredDocument | None: ...
    @overload
    async def get(
        self, name: str, ids: Sequence[str], *, deadline_s: float = ...
    ) -> list[StoredDocument | None]: ...
    async def get(
        self, name: str, ids: str | Sequence[str], *, deadline_s: float = defaults.GET_S
    ) -> StoredDocument | list[StoredDocument | None] | None:
        """Documents by id; see `Client.get`."""
        operation = operations.get(self._limits, name, requests.document_ids(ids))
        documents = await self._run(operation, deadline_s)
        return documents[0] if isinstance(ids, str) else documents

    async def delete(
        self, name: str, ids: str | Sequence[str], *, deadline_s: float = defaults.DELETE_S
    ) -> DeleteReport:
        """Deletes documents by id; see `Client.delete`."""
        operation = operations.delete(self._limits, name, requests.document_ids(ids))
        return await self._run(operation, deadline_s)

    async def create_collection(  # noqa: PLR0913 - options, by keyword alone
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
        """Creates a collection and waits until it serves; see `Client.create_collection`."""
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
        return await self._run(operations.create_collection(request), deadline_s)

    async def drop_collection(self, name: str, *, deadline_s: float = defaults.DROP_S) -> None:
        """Drops a collection and its data."""
        await self._run(operations.drop_collection(name), deadline_s)

    async def list_collections(
        self, *, deadline_s: float = defaults.STATUS_S
    ) -> list[CollectionInfo]:
        """The collections, ascending by name."""
        return await self._run(operations.list_collections(), deadline_s)

    async def optimize(self, name: str, *, deadline_s: float = defaults.OPTIMIZE_S) -> None:
        """Seals and merges a collection's shards into one segment each."""
        await self._run(operations.optimize(name), deadline_s)

    async def rebuild(
        self,
        name: str,
        *,
        shards: int | None = None,
        index: str = "",
        encoder: str = "",
        code_bytes: int | None = None,
        deadline_s: float = defaults.CREATE_S,
    ) -> int:
        """Begins to build the next generation; see `Client.rebuild`."""
        request = requests.rebuild_request(
            name, shards=shards, index=index, encoder=encoder, code_bytes=code_bytes
        )
        return await self._run(operations.rebuild(request), deadline_s)

    async def rollback(self, name: str, *, deadline_s: float = defaults.CREATE_S) -> int:
        """Serves the generation before again; see `Client.rollback`."""
        return await self._run(operations.rollback(name), deadline_s)

    async def accept_loss(
        self, name: str, shard: int, loss: str, *, deadline_s: float = defaults.ACCEPT_LOSS_S
    ) -> None:
        """Lets a corrupt shard serve without the lost data; see `Client.accept_loss`."""
        request = requests.accept_loss_request(name, shard, loss)
        await self._run(operations.accept_loss(request), deadline_s)

    async def status(self, *, deadline_s: float = defaults.STATUS_S) -> ClusterStatus:
        """The cluster: processes, collections, shards, limits."""
        return await self._run(operations.status(), deadline_s)

    async def _run(self, operation: Operation[Result], deadline_s: float) -> Result:
        """Performs an operation's steps within the deadline."""
        end = time.monotonic() + deadline_s
        try:
            step = next(operation)
            while True:
                try:
                    reply = await self._perform(step, end)
                except ShoalError as error:
                    step = operation.throw(error)
                else:
                    step = operation.send(reply)
        except StopIteration as finished:
            result: Result = finished.value
            return result

    async def _perform(self, step: Step, end: float) -> object:
        left_s = end - time.monotonic()
        if isinstance(step, Call):
            if left_s <= 0:
                raise DeadlineExceeded("the time for this call is over")
            return await self._routers.call(step.rpc, step.request, left_s)
        pause_s = self._routers.retry_pause_s(step.error, left_s)
        if pause_s is None:
            raise step.error
        await asyncio.sleep(pause_s)
        return None


def connect(target: str | None = None) -> AsyncClient:
    """An asyncio client for the cluster whose routers listen at `target`.

    Args:
        target: "host:port" or "a:1,b:2"; None takes SHOAL_TARGET, or 127.0.0.1:50051.
    """
    return AsyncClient(target)


def _request_id() -> str:
    return secrets.token_hex(8)
