"""The encoder with its built-in model over real gRPC: vectors, chunks, bits, responsiveness."""

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any

import grpc
import numpy as np
import pytest
import pytest_asyncio
import torch
from grpc_health.v1 import health_pb2, health_pb2_grpc
from numpy.typing import NDArray
from transformers import AutoModel, AutoTokenizer

from encoder_service.backends.reference import find
from encoder_service.backends.torch_backend import TorchBackend
from encoder_service.server import EncoderServer
from encoder_service.settings import EncoderSettings
from shoal.errors import EncoderDrift
from shoal.rpc.encoder.v1 import encoder_pb2, encoder_pb2_grpc
from shoal.wire.arrays import matrix_from_message

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.slow]

TEXTS = [
    "what makes the sky blue?",
    "0-dimensional biomaterials show inductive properties.",
    "Cafés and naïve façades",
    "a",
    "The shoal turned as one. " * 40,
]


class Encoder:
    """A running server and what a client needs of it."""

    def __init__(self, channel: grpc.aio.Channel, fingerprint: str) -> None:
        self.stub: Any = encoder_pb2_grpc.EncoderServiceStub(channel)
        self.health: Any = health_pb2_grpc.HealthStub(channel)
        self.fingerprint = fingerprint

    async def queries(
        self, texts: list[str], **fields: Any
    ) -> tuple[encoder_pb2.EncodeQueriesResponse, NDArray[Any]]:
        request = encoder_pb2.EncodeQueriesRequest(
            fingerprint=self.fingerprint, texts=texts, **fields
        )
        reply = await self.stub.EncodeQueries(request, timeout=60)
        return reply, matrix_from_message(reply.vectors)

    async def documents(
        self, documents: list[tuple[str, str]], **fields: Any
    ) -> tuple[encoder_pb2.EncodeDocumentsResponse, NDArray[Any]]:
        request = encoder_pb2.EncodeDocumentsRequest(
            fingerprint=self.fingerprint,
            documents=[
                encoder_pb2.DocumentText(title=title, text=text) for title, text in documents
            ],
            **fields,
        )
        reply = await self.stub.EncodeDocuments(request, timeout=60)
        return reply, matrix_from_message(reply.vectors)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def encoder() -> AsyncIterator[Encoder]:
    server = EncoderServer(EncoderSettings())
    address = await server.start()
    async with grpc.aio.insecure_channel(address) as channel:
        stub: Any = encoder_pb2_grpc.EncoderServiceStub(channel)
        info = await stub.GetInfo(encoder_pb2.GetInfoRequest(), timeout=10)
        yield Encoder(channel, info.models[0].fingerprint)
    await server.stop(1.0)


def direct(texts: list[str]) -> NDArray[np.float64]:
    """Each text alone through `transformers`, mean of its tokens, length 1."""
    folder = find("all-minilm-l6-v2", "", False).folder
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder)
    rows = []
    for text in texts:
        tokens = tokenizer(text, truncation=True, max_length=256, return_tensors="pt")
        with torch.inference_mode():
            hidden = model.eval()(**tokens).last_hidden_state[0].double().numpy()
        mean = hidden.mean(axis=0)
        rows.append(mean / np.linalg.norm(mean))
    return np.stack(rows)


async def test_queries_equal_a_direct_forward_pass(encoder: Encoder) -> None:
    reply, vectors = await encoder.queries(TEXTS, allow_truncation=[True] * len(TEXTS))
    np.testing.assert_allclose(vectors, direct(TEXTS), atol=1e-6)
    assert vectors.dtype == np.float32
    assert (reply.fingerprint, reply.precision) == (encoder.fingerprint, "fp32")
    assert list(reply.truncated) == [False, False, False, False, True]
    assert not reply.statuses
    assert list(reply.token_counts)[3] == 3
    assert reply.timings.inference_us > 0


async def test_documents_equal_a_direct_forward_pass(encoder: Encoder) -> None:
    text = " ".join(f"Sentence number {number} is about fish." for number in range(120))
    documents = [("A title", text), ("", TEXTS[0]), ("Only a title", "")]
    reply, vectors = await encoder.documents(documents, chunk_tokens=128, chunk_overlap=16)
    spans = list(zip(reply.span_starts, reply.span_ends, strict=True))
    assert list(reply.passage_counts) == [len(spans) - 2, 1, 1]
    assert spans[-2:] == [(0, len(TEXTS[0])), (0, 0)]
    words = [f"A title {text[start:end]}" for start, end in spans[:-2]]
    np.testing.assert_allclose(vectors, direct([*words, TEXTS[0], "Only a title"]), atol=1e-6)
    assert spans[0][0] == 0
    assert spans[-3][1] == len(text)


async def test_the_end_of_a_long_document_is_found(encoder: Encoder) -> None:
    text = "The harbour was quiet and the boats lay still. " * 400
    text += "Coelacanths were thought to be extinct until 1938."
    reply, vectors = await encoder.documents(
        [("Harbours", text)], chunk_tokens=256, chunk_overlap=32
    )
    _, query = await encoder.queries(["when was the coelacanth rediscovered?"])
    assert int(np.argmax(vectors @ query[0])) == len(vectors) - 1
    assert reply.span_ends[-1] == len(text)
    reply, _ = await encoder.documents([("Harbours", text)])
    assert list(reply.passage_counts) == [1]
    assert list(reply.truncated) == [True]


async def test_the_same_text_gives_the_same_bits_among_any_others(encoder: Encoder) -> None:
    full = "fish " * 14  # 16 tokens with the special ones: no padding
    _, alone = await encoder.queries([TEXTS[1]])
    _, full_alone = await encoder.queries([full])
    crowd = [f"{'blue ' * (number % 40)}sky" for number in range(64)]
    mixed = [*crowd[:20], TEXTS[1], *crowd[20:], full]
    for _ in range(2):
        _, vectors = await encoder.queries(mixed)
        assert vectors[20].tobytes() == alone[0].tobytes()
        assert vectors[-1].tobytes() == full_alone[0].tobytes()
    calls = [encoder.queries([text]) for text in mixed[10:40]]
    replies = await asyncio.gather(*calls)
    assert replies[10][1].tobytes() == alone.tobytes()
    _, passages = await encoder.documents([("", TEXTS[1])] * 3)
    assert passages[2].tobytes() == alone.tobytes()


async def test_a_large_encode_does_not_block_the_loop_or_the_queries(encoder: Encoder) -> None:
    text = "Some words of a long document about the sea and its fish. " * 3_000
    large = asyncio.ensure_future(
        encoder.stub.EncodeDocuments(
            encoder_pb2.EncodeDocumentsRequest(
                fingerprint=encoder.fingerprint,
                documents=[encoder_pb2.DocumentText(text=text)],
                chunk_tokens=128,
            ),
            timeout=60,
        )
    )
    health_s, query_s = [], []
    for _ in range(15):
        started = time.perf_counter()
        check = await encoder.health.Check(health_pb2.HealthCheckRequest(), timeout=5)
        health_s.append(time.perf_counter() - started)
        assert check.status == health_pb2.HealthCheckResponse.SERVING
        started = time.perf_counter()
        await encoder.queries(["what lives in the sea?"])
        query_s.append(time.perf_counter() - started)
    assert not large.done(), "the document was to keep the model busy meanwhile"
    large.cancel()
    await asyncio.gather(large, return_exceptions=True)
    # The document takes half a minute; a query waits for one batch of it at most.
    assert np.median(health_s) < 0.1
    assert np.median(query_s) < 2.0


async def test_info(encoder: Encoder) -> None:
    info = await encoder.stub.GetInfo(encoder_pb2.GetInfoRequest(), timeout=10)
    (model,) = info.models
    assert (model.encoder, model.dim, model.precision) == ("all-minilm-l6-v2", 384, "fp32")
    assert (model.max_query_tokens, model.max_document_tokens) == (256, 256)
    assert model.golden_texts >= 4
    assert model.golden_drift < 1e-6
    assert model.batch_drift == 0.0
    assert '"licence":"apache-2.0"' in model.card_json
    assert (info.device, info.threads) == ("cpu", 1)
    again = await encoder.stub.LoadModel(
        encoder_pb2.LoadModelRequest(encoder="all-minilm-l6-v2"), timeout=10
    )
    assert again.model == model


async def test_drift_from_the_golden_texts_refuses_to_serve(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    honest = TorchBackend.encode
    noise = np.random.default_rng(0).standard_normal(384).astype(np.float32) / 100

    def drifting(backend: TorchBackend, texts: Any, length: int) -> Any:
        return honest(backend, texts, length) + noise

    monkeypatch.setattr(TorchBackend, "encode", drifting)
    server = EncoderServer(EncoderSettings())
    with pytest.raises(EncoderDrift, match="golden"):
        await server.start()
