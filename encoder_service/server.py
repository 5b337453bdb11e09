"""The encoder's gRPC server: messages to texts, vectors to messages."""

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, TypeVar

from encoder_service import metrics, replies
from encoder_service.backends.torch_backend import (
    choose_device,
    choose_precision,
    configure_threads,
)
from encoder_service.core.batching import Lane, PlannerOptions
from encoder_service.models import Model, check, load
from encoder_service.prepare import (
    PreparedDocument,
    PreparedQuery,
    prepare_document,
    prepare_query,
)
from encoder_service.settings import EncoderSettings
from encoder_service.worker import EncodeWorker
from shoal.errors import FingerprintMismatch, InvalidRequest, ShoalError
from shoal.rpc.encoder.v1 import encoder_pb2, encoder_pb2_grpc
from shoal.settings import Limits
from shoal.settings import load as load_settings
from shoal.wire.arrays import check_limit
from shoal.wire.metrics import OFF, serve_metrics
from shoal.wire.server import GrpcServer

logger = logging.getLogger(__name__)

_BYTES_PER_TOKEN = 4
_BATCH_TOKENS = {
    # (query, document). A query waits for the batch under way, so on a CPU, where
    # long texts gain nothing from company, a batch of documents stays small.
    "cpu": (1_024, 512),
    "cuda": (16_384, 32_768),
}

Result = TypeVar("Result")


class EncoderServer(encoder_pb2_grpc.EncoderServiceServicer):
    """One encoder process."""

    def __init__(self, settings: EncoderSettings) -> None:
        self._settings = settings
        self._limits = load_settings(Limits, "SHOAL_LIMIT_")
        self._models: dict[str, Model] = {}
        self._loading = asyncio.Lock()
        self._device = choose_device(settings.device)
        self._precision = choose_precision(settings.precision, self._device)
        self._worker = EncodeWorker(_planner_options(settings, self._device))
        # Queries have a thread of their own: a large document may take seconds.
        self._tokenizers = {
            Lane.QUERY: ThreadPoolExecutor(1, "encoder-query-text"),
            Lane.DOCUMENT: ThreadPoolExecutor(settings.tokenize_threads, "encoder-text"),
        }
        self.metrics_port = OFF
        self._grpc = GrpcServer(self._limits.max_message_bytes)
        self._grpc.add(encoder_pb2.DESCRIPTOR.services_by_name["EncoderService"], self)

    async def start(self) -> str:
        """Listens, loads and checks the models, then serves; returns "host:port".

        Raises:
            OSError: the port is taken.
            EncoderNotFound: a model is not there.
            UnsupportedModel: a model's layout is not one that Shoal loads.
            EncoderDrift: a model does not give the vectors that it should.
        """
        configure_threads(self._settings.threads)
        try:
            address = await self._grpc.start(self._settings.host, self._settings.port)
            self.metrics_port = serve_metrics(self._settings.host, self._settings.metrics_port)
            for reference in self._settings.models.split(","):
                if reference.strip():
                    await self._load(reference.strip(), "")
        except BaseException:
            await self.stop(0.0)
            raise
        logger.info("event=serving address=%s metrics_port=%d", address, self.metrics_port)
        await self._grpc.set_serving(True)
        return address

    async def stop(self, grace_s: float) -> None:
        """Refuses new calls, lets running ones end within grace_s."""
        await self._grpc.stop(grace_s)
        await self._worker.close()
        for threads in self._tokenizers.values():
            threads.shutdown(wait=False, cancel_futures=True)

    async def wait(self) -> None:
        """Returns when the server has stopped."""
        await self._grpc.wait()

    async def EncodeQueries(
        self, request: encoder_pb2.EncodeQueriesRequest, context: Any
    ) -> encoder_pb2.EncodeQueriesResponse:
        """See the contract."""
        model = self._model(request.fingerprint)
        columns = model.card.columns(request.dim)
        check_limit("max_batch", len(request.texts), self._limits.max_batch)
        _check_parallel("time_left_us", request.time_left_us, request.texts)
        _check_parallel("allow_truncation", request.allow_truncation, request.texts)
        deadlines_ns = _query_deadlines(request, context)
        with self._worker.admit(Lane.QUERY, _estimate(request.texts)) as admission:
            prepared, tokenize_us = await self._tokenize(
                Lane.QUERY, partial(_prepare_queries, model, request, self._limits)
            )
            rows = [row for row, text in enumerate(prepared) if isinstance(text, PreparedQuery)]
            encoded = await admission.encode(
                (model.fingerprint, model.backend, model.card.max_tokens),
                [text.input for text in prepared if isinstance(text, PreparedQuery)],
                [deadlines_ns[row] for row in rows],
            )
        texts = request.texts if request.want_labels and model.card.tokens else None
        return replies.queries(model, columns, prepared, encoded, tokenize_us, texts)

    async def EncodeDocuments(
        self, request: encoder_pb2.EncodeDocumentsRequest, context: Any
    ) -> encoder_pb2.EncodeDocumentsResponse:
        """See the contract."""
        model = self._model(request.fingerprint)
        columns = model.card.columns(request.dim)
        check_limit("max_batch", len(request.documents), self._limits.max_batch)
        if request.chunk_tokens and request.chunk_overlap >= request.chunk_tokens:
            raise InvalidRequest(
                f"chunk_overlap is {request.chunk_overlap}; it must be below chunk_tokens, "
                f"{request.chunk_tokens}",
                field="chunk_overlap",
            )
        deadline_ns = _call_deadline(context)
        texts = [part for document in request.documents for part in (document.title, document.text)]
        with self._worker.admit(Lane.DOCUMENT, _estimate(texts)) as admission:
            prepared, tokenize_us = await self._tokenize(
                Lane.DOCUMENT, partial(_prepare_documents, model, request, self._limits)
            )
            passages = [
                passage
                for document in prepared
                if isinstance(document, PreparedDocument)
                for passage in document.inputs
            ]
            encoded = await admission.encode(
                (model.fingerprint, model.backend, model.card.max_tokens),
                passages,
                [deadline_ns] * len(passages),
            )
        labelled = request.want_labels and model.card.tokens is not None
        bodies = [document.text for document in request.documents] if labelled else None
        reply = partial(replies.documents, model, columns, prepared, encoded, tokenize_us, bodies)
        return await asyncio.get_running_loop().run_in_executor(
            self._tokenizers[Lane.DOCUMENT], reply
        )

    async def LoadModel(
        self, request: encoder_pb2.LoadModelRequest, context: Any
    ) -> encoder_pb2.LoadModelResponse:
        """See the contract."""
        # A caller who leaves must not stop half of a load that others wait for.
        model = await asyncio.shield(self._load(request.encoder, request.fingerprint))
        return encoder_pb2.LoadModelResponse(model=replies.model_info(model))

    async def GetInfo(
        self, request: encoder_pb2.GetInfoRequest, context: Any
    ) -> encoder_pb2.GetInfoResponse:
        """See the contract."""
        return encoder_pb2.GetInfoResponse(
            models=[replies.model_info(model) for _, model in sorted(self._models.items())],
            queue_length=self._worker.waiting(),
            device=self._device,
            threads=self._settings.threads,
        )

    def _model(self, fingerprint: str) -> Model:
        model = self._models.get(fingerprint)
        if model is None:
            held = ", ".join(sorted(self._models)) or "none"
            raise FingerprintMismatch(
                f"this worker holds no model {fingerprint[:64]!r}; it holds {held}",
                held=held,
            )
        return model

    async def _load(self, reference: str, fingerprint: str) -> Model:
        async with self._loading:
            for model in self._models.values():
                if model.reference == reference and fingerprint in ("", model.fingerprint):
                    return model
            check_limit("max_models", len(self._models) + 1, self._settings.max_models)
            device = (self._device, self._precision)
            started_ns = time.monotonic_ns()
            loaded = await asyncio.to_thread(load, reference, fingerprint, self._settings, device)
            if loaded.fingerprint in self._models:
                return self._models[loaded.fingerprint]
            model = await self._worker.on_model_thread(partial(check, loaded, self._settings))
            self._models[model.fingerprint] = model
            logger.info(
                "event=model_loaded encoder=%s fingerprint=%s device=%s precision=%s "
                "batch_drift=%g golden_drift=%g golden_texts=%d seconds=%.2f",
                reference,
                model.fingerprint,
                self._device,
                self._precision,
                model.batch_drift,
                model.golden_drift,
                model.golden_texts,
                (time.monotonic_ns() - started_ns) / 1e9,
            )
            return model

    async def _tokenize(self, lane: Lane, call: Callable[[], Result]) -> tuple[Result, int]:
        started_ns = time.monotonic_ns()
        result = await asyncio.get_running_loop().run_in_executor(self._tokenizers[lane], call)
        elapsed_ns = time.monotonic_ns() - started_ns
        metrics.TOKENIZE_SECONDS.labels(lane.value).observe(elapsed_ns / 1e9)
        return result, elapsed_ns // 1_000


def _planner_options(settings: EncoderSettings, device: str) -> PlannerOptions:
    query, document = _BATCH_TOKENS[device.partition(":")[0]]
    return PlannerOptions(
        batch_tokens={
            Lane.QUERY: settings.query_batch_tokens or query,
            Lane.DOCUMENT: settings.document_batch_tokens or document,
        },
        queue_tokens={
            Lane.QUERY: settings.query_queue_tokens,
            Lane.DOCUMENT: settings.document_queue_tokens,
        },
    )


def _estimate(texts: Sequence[str]) -> int:
    return sum(map(len, texts)) // _BYTES_PER_TOKEN + len(texts)


def _check_parallel(field: str, given: Sequence[object], texts: Sequence[str]) -> None:
    if len(given) not in (0, len(texts)):
        raise InvalidRequest(
            f"{field} has {len(given)} entries for {len(texts)} texts; send none or one for each",
            field=field,
        )


def _call_deadline(context: Any) -> int | None:
    left_s = context.time_remaining()
    return None if left_s is None else time.monotonic_ns() + int(left_s * 1e9)


def _query_deadlines(request: encoder_pb2.EncodeQueriesRequest, context: Any) -> list[int | None]:
    call_ns, now_ns = _call_deadline(context), time.monotonic_ns()
    if not request.time_left_us:
        return [call_ns] * len(request.texts)
    own = [now_ns + left_us * 1_000 if left_us else None for left_us in request.time_left_us]
    return [
        min((limit for limit in (mine, call_ns) if limit is not None), default=None) for mine in own
    ]


def _prepare_queries(
    model: Model, request: encoder_pb2.EncodeQueriesRequest, limits: Limits
) -> list[PreparedQuery | ShoalError]:
    may_cut = request.allow_truncation or [False] * len(request.texts)

    def prepare(text: str, cut: bool) -> PreparedQuery:
        check_limit("max_query_bytes", len(text.encode()), limits.max_query_bytes)
        return prepare_query(model.card, model.tokenizer, text, cut)

    return [
        _outcome(partial(prepare, text, cut))
        for text, cut in zip(request.texts, may_cut, strict=True)
    ]


def _prepare_documents(
    model: Model, request: encoder_pb2.EncodeDocumentsRequest, limits: Limits
) -> list[PreparedDocument | ShoalError]:
    chunking = (request.chunk_tokens, request.chunk_overlap)

    def prepare(document: encoder_pb2.DocumentText) -> PreparedDocument:
        size = len(document.title.encode()) + len(document.text.encode())
        check_limit("max_text_bytes", size, limits.max_text_bytes)
        return prepare_document(
            model.card, model.tokenizer, document.title, document.text, chunking
        )

    return [_outcome(partial(prepare, document)) for document in request.documents]


def _outcome(prepare: Callable[[], Result]) -> Result | ShoalError:
    """One bad text must not fail those beside it."""
    try:
        return prepare()
    except ShoalError as error:
        return error
