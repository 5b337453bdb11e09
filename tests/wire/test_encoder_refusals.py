"""What the encoder refuses, drops and survives, over real gRPC with small models."""

import asyncio
import errno
import socket
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from prometheus_client import REGISTRY

from encoder_service.backends.torch_backend import TorchBackend
from encoder_service.server import EncoderServer
from encoder_service.settings import EncoderSettings
from shoal import errors
from shoal.rpc.encoder.v1 import encoder_pb2, encoder_pb2_grpc
from shoal.wire.arrays import matrix_from_message
from shoal.wire.errors import from_rpc_error
from shoal.wire.server import GrpcServer
from tests.unit.encoder_service.checkpoints import Recipe, write_checkpoint, write_json

TIMEOUT_S = 20


class Gate:
    """Holds the model's runs back until it opens; remembers what ran."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.open = threading.Event()
        self.entered = threading.Event()
        self.lengths: list[list[int]] = []
        honest = TorchBackend.encode

        def held(backend: TorchBackend, texts: Any, length: int) -> Any:
            self.entered.set()
            assert self.open.wait(TIMEOUT_S)
            self.lengths.append([len(text.ids) for text in texts])
            return honest(backend, texts, length)

        monkeypatch.setattr(TorchBackend, "encode", held)


class Service:
    """A running server with one small model."""

    def __init__(self, channel: grpc.aio.Channel, fingerprint: str) -> None:
        self.channel = channel
        self.stub: Any = encoder_pb2_grpc.EncoderServiceStub(channel)
        self.fingerprint = fingerprint

    def queries(self, *texts: str, **fields: Any) -> Any:
        request = encoder_pb2.EncodeQueriesRequest(
            fingerprint=self.fingerprint, texts=texts, **fields
        )
        return self.stub.EncodeQueries(request, timeout=TIMEOUT_S)

    def documents(self, *texts: str, **fields: Any) -> Any:
        request = encoder_pb2.EncodeDocumentsRequest(
            fingerprint=self.fingerprint,
            documents=[encoder_pb2.DocumentText(text=text) for text in texts],
            **fields,
        )
        return self.stub.EncodeDocuments(request, timeout=TIMEOUT_S)


Start = Callable[..., Awaitable[Service]]


@pytest.fixture
async def start(tmp_path: Path) -> AsyncIterator[Start]:
    """Starts a server with a small model; ended with the test."""
    running: list[tuple[EncoderServer, grpc.aio.Channel]] = []

    async def started(recipe: Recipe | None = None, **settings: Any) -> Service:
        folder = write_checkpoint(tmp_path / "model", recipe or Recipe())
        write_json(folder / "shoal_card.json", {"matryoshka_dims": [8]})
        server = EncoderServer(EncoderSettings(models=str(folder), **settings))
        channel = grpc.aio.insecure_channel(await server.start())
        running.append((server, channel))
        info = await encoder_pb2_grpc.EncoderServiceStub(channel).GetInfo(
            encoder_pb2.GetInfoRequest()
        )
        return Service(channel, info.models[0].fingerprint)

    yield started
    for server, channel in running:
        await channel.close()
        await server.stop(0.0)


async def failure(call: Awaitable[Any]) -> errors.ShoalError:
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await call
    return from_rpc_error(raised.value)


async def eventually(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(TIMEOUT_S):
        while not condition():
            await asyncio.sleep(0.005)


def metric(name: str, **labels: str) -> float:
    return REGISTRY.get_sample_value(f"shoal_encoder_{name}", labels) or 0.0


async def test_each_text_has_its_own_status(start: Start) -> None:
    service = await start()
    reply = await service.queries("blue sky", "", "fish " * 60, "deep sea")
    assert [status.reason for status in reply.statuses] == ["", "EMPTY_TEXT", "TEXT_TOO_LONG", ""]
    metadata = reply.statuses[2].metadata
    assert (metadata["given"], metadata["allowed"]) == ("62", "48")
    assert list(reply.token_counts) == [4, 0, 0, 4]
    vectors = matrix_from_message(reply.vectors)
    assert not vectors[1:3].any()
    np.testing.assert_allclose(np.linalg.norm(vectors[[0, 3]], axis=1), 1.0, atol=1e-6)
    reply = await service.queries("fish " * 60, "sea", allow_truncation=[True, False])
    assert not reply.statuses
    assert list(reply.truncated) == [True, False]
    assert list(reply.token_counts) == [48, 3]


async def test_each_document_has_its_own_status(start: Start) -> None:
    service = await start()
    reply = await service.documents("blue sky", " ", "fish " * 60)
    assert [status.reason for status in reply.statuses] == ["", "EMPTY_TEXT", ""]
    assert list(reply.passage_counts) == [1, 0, 1]
    assert list(reply.truncated) == [False, False, True]
    assert reply.vectors.rows == 2
    assert reply.span_ends[1] == len("fish " * 46) - 1
    reply = await service.documents()
    assert (reply.vectors.rows, len(reply.passage_counts)) == (0, 0)


async def test_limits(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("MAX_BATCH", "3"), ("MAX_QUERY_BYTES", "20"), ("MAX_TEXT_BYTES", "30")):
        monkeypatch.setenv(f"SHOAL_LIMIT_{name}", value)
    service = await start()
    for call in (service.queries(*["sea"] * 4), service.documents(*["sea"] * 4)):
        error = await failure(call)
        assert isinstance(error, errors.LimitExceeded)
        assert error.metadata == {"limit": "max_batch", "allowed": "3", "given": "4"}
    reply = await service.queries("sea", "é" * 11)
    assert [status.reason for status in reply.statuses] == ["", "LIMIT_EXCEEDED"]
    assert reply.statuses[1].metadata["limit"] == "max_query_bytes"
    reply = await service.documents("fish " * 7, "sea")
    assert [status.reason for status in reply.statuses] == ["LIMIT_EXCEEDED", ""]
    assert reply.statuses[0].metadata["limit"] == "max_text_bytes"


async def test_wrong_fields(start: Start) -> None:
    service = await start()
    for call, field in (
        (service.queries("sea", dim=7), "dim"),
        (service.documents("sea", dim=33), "dim"),
        (service.queries("sea", time_left_us=[1, 2]), "time_left_us"),
        (service.queries("a", "b", allow_truncation=[True]), "allow_truncation"),
        (service.documents("sea", chunk_tokens=8, chunk_overlap=8), "chunk_overlap"),
    ):
        error = await failure(call)
        assert isinstance(error, errors.InvalidRequest)
        assert error.metadata["field"] == field


async def test_matryoshka_vectors_are_cut_then_normalised(start: Start) -> None:
    service = await start()
    whole = matrix_from_message((await service.queries("deep sea")).vectors)
    cut = matrix_from_message((await service.queries("deep sea", dim=8)).vectors)
    expected = whole[:, :8] / np.linalg.norm(whole[:, :8])
    np.testing.assert_allclose(cut, expected, atol=1e-6)


async def test_another_fingerprint(start: Start) -> None:
    service = await start()
    service.fingerprint = "0" * 64
    assert isinstance(await failure(service.queries("sea")), errors.FingerprintMismatch)
    assert isinstance(await failure(service.documents("sea")), errors.FingerprintMismatch)


async def test_bytes_that_are_no_message(start: Start) -> None:
    service = await start()
    call = service.channel.unary_unary("/shoal.rpc.encoder.v1.EncoderService/EncodeQueries")
    for bad in (b"\xff\xff\xff", b"\x1a\x02\xff\xfe"):  # no protobuf; a text that is no UTF-8
        assert isinstance(await failure(call(bad)), errors.MalformedMessage)


async def test_loading_models(start: Start, tmp_path: Path) -> None:
    service = await start(hub_downloads=False, max_models=2)

    def load(encoder: str, fingerprint: str = "") -> Any:
        request = encoder_pb2.LoadModelRequest(encoder=encoder, fingerprint=fingerprint)
        return service.stub.LoadModel(request, timeout=TIMEOUT_S)

    for missing in (str(tmp_path / "nowhere"), "org/model", "org/model@main"):
        assert isinstance(await failure(load(missing)), errors.EncoderNotFound)
    odd = write_checkpoint(tmp_path / "odd", Recipe(pooling="max"))
    assert isinstance(await failure(load(str(odd))), errors.UnsupportedModel)
    drifted = write_checkpoint(tmp_path / "drifted", Recipe(seed=2))
    golden = {"side": "query", "text": "sea", "vector": [1.0] * 32}
    write_json(drifted / "shoal_golden.json", {"fingerprint": "0", "golden": [golden]})
    assert isinstance(await failure(load(str(drifted))), errors.EncoderDrift)
    second = write_checkpoint(tmp_path / "second", Recipe(seed=1))
    mismatch = await failure(load(str(second), service.fingerprint))
    assert isinstance(mismatch, errors.FingerprintMismatch)
    loaded = (await load(str(second))).model
    assert loaded.fingerprint != service.fingerprint
    assert (await load(str(second), loaded.fingerprint)).model == loaded
    info = await service.stub.GetInfo(encoder_pb2.GetInfoRequest())
    assert [model.fingerprint for model in info.models] == sorted(
        [service.fingerprint, loaded.fingerprint]
    )
    third = write_checkpoint(tmp_path / "third", Recipe(seed=3))
    error = await failure(load(str(third)))
    assert isinstance(error, errors.LimitExceeded)
    assert error.metadata["limit"] == "max_models"


async def test_requests_whose_caller_left_are_not_encoded(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    service = await start()
    gate = Gate(monkeypatch)
    running = asyncio.ensure_future(service.documents("fish"))
    await asyncio.to_thread(gate.entered.wait, TIMEOUT_S)
    before = metric("dropped_texts_total", lane="query", reason="caller_left")
    leaving = service.queries(*["one two three four five six"] * 5)
    info = encoder_pb2.GetInfoRequest()

    async def waiting() -> int:
        return int((await service.stub.GetInfo(info)).queue_length)

    async with asyncio.timeout(TIMEOUT_S):
        while await waiting() < 5:
            pass
    leaving.cancel()
    await eventually(
        lambda: metric("dropped_texts_total", lane="query", reason="caller_left") == before + 5
    )
    gate.open.set()
    assert (await running).vectors.rows == 1
    assert (await service.queries("sea")).vectors.rows == 1
    assert gate.lengths == [[3], [3]], "nothing of the caller who left ran"


async def test_a_text_whose_time_is_over_is_not_encoded_and_its_mates_are(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    service = await start()
    gate = Gate(monkeypatch)
    running = asyncio.ensure_future(service.documents("fish"))
    await asyncio.to_thread(gate.entered.wait, TIMEOUT_S)
    before = metric("dropped_texts_total", lane="query", reason="deadline")
    both = asyncio.ensure_future(service.queries("sea", "deep sea", time_left_us=[1_000, 0]))
    await eventually(lambda: metric("queue_texts", lane="query") == 2)
    gate.open.set()
    reply = await both
    assert [status.reason for status in reply.statuses] == ["DEADLINE_EXCEEDED", ""]
    assert metric("dropped_texts_total", lane="query", reason="deadline") == before + 1
    await running


async def test_a_full_lane_refuses_at_once_and_the_other_goes_on(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    service = await start(document_queue_tokens=1)
    gate = Gate(monkeypatch)
    running = asyncio.ensure_future(service.documents("fish"))
    await asyncio.to_thread(gate.entered.wait, TIMEOUT_S)
    waiting = asyncio.ensure_future(service.documents("deep sea"))
    await eventually(lambda: metric("queue_texts", lane="document") == 1)
    before = metric("refused_requests_total", lane="document")
    error = await failure(service.documents("light"))
    assert isinstance(error, errors.Overloaded)
    assert error.retry_after_s is not None
    assert error.retry_after_s > 0
    assert metric("refused_requests_total", lane="document") == before + 1
    query = asyncio.ensure_future(service.queries("what is blue"))
    await eventually(lambda: metric("queue_texts", lane="query") == 1)
    gate.open.set()
    for call in (query, running, waiting):
        assert (await call).vectors.rows == 1
    assert gate.lengths == [[3], [5], [4]], "the query went ahead of the document"


async def test_a_failing_batch_fails_its_request_and_no_other(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    service = await start()
    honest = TorchBackend.encode

    def broken(backend: TorchBackend, texts: Any, length: int) -> Any:
        if length > 8:
            raise RuntimeError("out of memory")
        vectors = honest(backend, texts, length)
        factor = np.float32(np.nan if len(texts[0].ids) == 4 else 1.0)
        return [rows * factor for rows in vectors]

    monkeypatch.setattr(TorchBackend, "encode", broken)
    error = await failure(service.queries("one two three four five six seven", "sea"))
    assert isinstance(error, errors.InternalError)
    assert "memory" not in error.message
    reply = await service.queries("deep sea")
    assert [status.reason for status in reply.statuses] == ["ENCODER_DRIFT"]
    assert (await service.queries("sea")).vectors.rows == 1


async def test_a_message_of_many_documents_is_many_batches(start: Start) -> None:
    service = await start(document_batch_tokens=64)
    count = metric("batch_texts_count", lane="document")
    texts = metric("batch_texts_sum", lane="document")
    reply = await service.documents(*["one two three four"] * 40, chunk_tokens=16)
    assert reply.vectors.rows == 40
    assert metric("batch_texts_sum", lane="document") == texts + 40
    assert metric("batch_texts_count", lane="document") == count + 5


async def test_a_busy_port_and_a_missing_model_stop_the_start() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        server = EncoderServer(EncoderSettings(port=taken.getsockname()[1]))
        with pytest.raises(OSError, match="taken") as raised:
            await server.start()
        assert raised.value.errno == errno.EADDRINUSE
        await server.stop(0.0)
    with pytest.raises(errors.EncoderNotFound):
        await EncoderServer(EncoderSettings(models="nowhere")).start()


async def test_health_follows_the_self_check(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    gate = Gate(monkeypatch)
    addresses: list[str] = []
    honest = GrpcServer.start

    async def announced(server: GrpcServer, host: str, port: int) -> str:
        addresses.append(await honest(server, host, port))
        return addresses[-1]

    monkeypatch.setattr(GrpcServer, "start", announced)
    starting = asyncio.ensure_future(start())
    await asyncio.to_thread(gate.entered.wait, TIMEOUT_S)
    async with grpc.aio.insecure_channel(addresses[0]) as channel:
        stub: Any = health_pb2_grpc.HealthStub(channel)
        before = await stub.Check(health_pb2.HealthCheckRequest())
        assert before.status == health_pb2.HealthCheckResponse.NOT_SERVING
        gate.open.set()
        await starting
        after = await stub.Check(health_pb2.HealthCheckRequest())
        assert after.status == health_pb2.HealthCheckResponse.SERVING
