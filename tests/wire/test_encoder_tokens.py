"""Late-interaction folders as users have them, against a direct forward pass.

Beside the wire tests because it loads torch; see `test_encoder_layouts`.
"""

import json
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import torch

from encoder_service.backends.port import ModelInput
from encoder_service.core.batching import padded_length
from encoder_service.core.card import Pooling, card_json
from encoder_service.core.vectors import finish
from encoder_service.models import Model, check, encode_alone, load
from encoder_service.prepare import prepare_document, prepare_query
from encoder_service.server import EncoderServer
from encoder_service.settings import EncoderSettings
from shoal.errors import EmptyText, TextTooLong, UnsupportedModel
from shoal.rpc.encoder.v1 import encoder_pb2, encoder_pb2_grpc
from shoal.wire.arrays import matrix_from_message
from tests.unit.encoder_service.checkpoints import write_json
from tests.unit.encoder_service.late_checkpoints import (
    DIM,
    DOCUMENT_LENGTH,
    LAYOUTS,
    QUERY_LENGTH,
    direct,
    write_late,
)

pytestmark = pytest.mark.slow  # loads torch and transformers

SETTINGS = EncoderSettings(hub_downloads=False)
QUERIES = ["fish", "what makes the sky blue", "fish , water . and the deep sea"]
DOCUMENTS = ["the sea is deep .", "fish , shoal , water : light !", "one two three"]


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def load_model(folder: Path) -> Model:
    return check(load(str(folder), "", SETTINGS, ("cpu", "fp32")), SETTINGS)


def together(model: Model, inputs: list[ModelInput]) -> list[np.ndarray]:
    length = max(padded_length(len(each.ids), model.card.max_tokens) for each in inputs)
    return [
        finish(rows, DIM, model.card.normalize) for rows in model.backend.encode(inputs, length)
    ]


@pytest.mark.parametrize("attend", [False, True])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_token_vectors_equal_a_direct_forward_pass(
    tmp_path: Path, layout: str, attend: bool
) -> None:
    folder = write_late(tmp_path / "model", layout, attend=attend)
    model = load_model(folder)
    queries = [prepare_query(model.card, model.tokenizer, text, False).input for text in QUERIES]
    passages = [
        prepare_document(model.card, model.tokenizer, "", text, (0, 0)).inputs[0]
        for text in DOCUMENTS
    ]
    for side, texts, inputs in (
        ("query", QUERIES, queries),
        ("document", DOCUMENTS, passages),
    ):
        # In one batch: padding must change no row.
        for text, rows in zip(texts, together(model, inputs), strict=True):
            expected = direct(folder, layout, side, text, attend=attend)
            assert rows.shape == expected.shape
            np.testing.assert_allclose(rows, expected, atol=2e-6)
            np.testing.assert_allclose(encode_alone(model, side, text), expected, atol=2e-6)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_what_the_folder_says_stands_in_the_card(tmp_path: Path, layout: str) -> None:
    model = load_model(write_late(tmp_path / "model", layout))
    card = model.card
    assert (card.pooling, card.dim, card.normalize) == (Pooling.NONE, DIM, True)
    assert card.tokens is not None
    assert card.tokens.query_expansion == QUERY_LENGTH
    assert card.max_document_tokens == DOCUMENT_LENGTH
    assert card.max_query_tokens == (48 if layout == "sentence-transformers" else QUERY_LENGTH)
    assert json.loads(card_json(card))["tokens"]["query_expansion"] == QUERY_LENGTH


def test_a_card_without_token_rules_does_not_name_them() -> None:
    model = load("all-minilm-l6-v2", "", SETTINGS, ("cpu", "fp32"))
    assert "tokens" not in json.loads(card_json(model.card))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_long_and_empty_texts(tmp_path: Path, layout: str) -> None:
    model = load_model(write_late(tmp_path / "model", layout))
    long = "fish " * 60
    with pytest.raises(TextTooLong):
        prepare_query(model.card, model.tokenizer, long, may_cut=False)
    cut = prepare_query(model.card, model.tokenizer, long, may_cut=True)
    assert cut.truncated
    assert len(cut.input.ids) == model.card.max_query_tokens
    with pytest.raises(EmptyText):
        prepare_query(model.card, model.tokenizer, "  ", may_cut=True)
    document = prepare_document(model.card, model.tokenizer, "sea", long, (10, 2))
    assert len(document.passages) > 5
    assert max(len(each.ids) for each in document.inputs) <= DOCUMENT_LENGTH
    assert not document.truncated


def test_a_text_of_punctuation_alone_keeps_its_special_tokens(tmp_path: Path) -> None:
    model = load_model(write_late(tmp_path / "model", "stanford"))
    rows = encode_alone(model, "document", ". , !")
    assert rows.shape == (3, DIM)  # [CLS], the marker, [SEP]


def test_what_shoal_does_not_know_is_refused(tmp_path: Path) -> None:
    folder = write_late(tmp_path / "a", "sentence-transformers")
    bert = json.loads((folder / "sentence_bert_config.json").read_text())
    bert["query_expansion"] = {"strategy": "append_suffix", "token": ".", "count": 5}
    write_json(folder / "sentence_bert_config.json", bert)
    with pytest.raises(UnsupportedModel, match="query expansion"):
        load_model(folder)
    folder = write_late(tmp_path / "b", "pylate")
    dense = json.loads((folder / "1_Dense" / "config.json").read_text())
    write_json(folder / "1_Dense" / "config.json", {**dense, "use_residual": True})
    with pytest.raises(UnsupportedModel, match="residual"):
        load_model(folder)
    folder = write_late(tmp_path / "c", "stanford")
    settings = json.loads((folder / "artifact.metadata").read_text())
    write_json(folder / "artifact.metadata", {**settings, "query_token_id": "[unused7]"})
    with pytest.raises(UnsupportedModel, match=r"\[unused7\]"):
        load_model(folder)


async def test_the_built_in_token_encoder_over_the_wire() -> None:
    """One matrix for all texts; a text that failed has no rows, and padding changes none."""
    server = EncoderServer(EncoderSettings(models="all-minilm-l6-v2-tokens"))
    address = await server.start()
    try:
        async with grpc.aio.insecure_channel(address) as channel:
            stub: Any = encoder_pb2_grpc.EncoderServiceStub(channel)
            info = await stub.GetInfo(encoder_pb2.GetInfoRequest(), timeout=10)
            model = info.models[0]
            assert (model.token_vectors, model.dim, model.batch_drift) == (True, 96, 0.0)
            assert model.golden_texts > 0
            texts = ["what makes the sky blue?", " ", "fish " * 20]
            request = encoder_pb2.EncodeQueriesRequest(fingerprint=model.fingerprint, texts=texts)
            reply = await stub.EncodeQueries(request, timeout=60)
            assert list(reply.row_counts) == [8, 0, 22]
            assert [status.reason for status in reply.statuses] == ["", "EMPTY_TEXT", ""]
            rows = matrix_from_message(reply.vectors)
            assert rows.shape == (30, 96)
            np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1.0, atol=1e-6)
            alone = encoder_pb2.EncodeQueriesRequest(fingerprint=model.fingerprint, texts=texts[:1])
            again = matrix_from_message((await stub.EncodeQueries(alone, timeout=60)).vectors)
            assert again.tobytes() == rows[:8].tobytes()
            await _check_documents(stub, model)
    finally:
        await server.stop(1.0)


async def _check_documents(stub: Any, model: encoder_pb2.ModelInfo) -> None:
    request = encoder_pb2.EncodeDocumentsRequest(
        fingerprint=model.fingerprint,
        documents=[
            encoder_pb2.DocumentText(title="A title", text="The sea is deep. " * 60),
            encoder_pb2.DocumentText(title="", text=" "),
            encoder_pb2.DocumentText(title="", text="Fish swim, in water."),
        ],
        chunk_tokens=64,
        chunk_overlap=16,
    )
    reply = await stub.EncodeDocuments(request, timeout=60)
    passages = sum(reply.passage_counts)
    assert list(reply.passage_counts)[1:] == [0, 1]
    assert len(reply.row_counts) == passages > 4
    assert matrix_from_message(reply.vectors).shape == (sum(reply.row_counts), 96)
    assert list(reply.row_counts)[-1] == 8  # punctuation too: this model skips nothing
