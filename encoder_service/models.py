"""Loads models and checks them before they serve."""

import json
import logging
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np

from encoder_service.backends.layout import read_layout
from encoder_service.backends.port import Backend, ModelInput, TokenIds
from encoder_service.backends.reference import Source, find
from encoder_service.backends.tokenizer import Tokenizer
from encoder_service.backends.torch_backend import TorchBackend
from encoder_service.core.batching import padded_length
from encoder_service.core.card import Card, fingerprint
from encoder_service.core.vectors import cosine_distance, finish
from encoder_service.prepare import prepare_document, prepare_query
from encoder_service.settings import EncoderSettings
from shoal.errors import EncoderDrift, FingerprintMismatch, UnsupportedModel
from shoal.types import Float32Matrix

logger = logging.getLogger(__name__)

GOLDEN_FILE = "shoal_golden.json"
GOLDEN_BOUND = {"fp32": 1e-6, "fp16": 1e-4, "bf16": 1e-3}
"""Largest cosine distance to a golden vector, by precision."""

BATCH_DRIFT_BOUND = {"fp32": 1e-5, "fp16": 1e-2, "bf16": 1e-2}
"""Largest absolute difference that batch-mates may make to a unit vector's element."""

_PROBE_LENGTHS = (8, 16, 64)
_PROBES = 4


@dataclass(frozen=True, slots=True)
class Model:
    """A model that serves.

    Attributes:
        reference: what it was loaded from.
        card: its description.
        fingerprint: of the card.
        tokenizer: its tokenizer.
        backend: its engine.
        batch_drift: largest absolute difference between a text alone and among others.
        golden_drift: largest cosine distance to its golden vectors.
        golden_texts: how many golden texts were encoded again; 0 if it brings none.
    """

    reference: str
    card: Card
    fingerprint: str
    tokenizer: Tokenizer
    backend: Backend
    batch_drift: float = 0.0
    golden_drift: float = 0.0
    golden_texts: int = 0


def load(
    reference: str, expected_fingerprint: str, settings: EncoderSettings, device: tuple[str, str]
) -> Model:
    """Reads a model's files.

    Args:
        reference: a built-in name, a folder, or "hub/id@revision".
        expected_fingerprint: what its card must have; empty accepts any.
        settings: of the process.
        device: (device, precision).

    Raises:
        EncoderNotFound: there is no such model.
        UnsupportedModel: Shoal does not load its layout.
        FingerprintMismatch: it is not the expected one.
    """
    source = find(reference, settings.hub_cache, settings.hub_downloads)
    layout = read_layout(source)
    found = fingerprint(layout.card)
    if expected_fingerprint and found != expected_fingerprint:
        raise FingerprintMismatch(
            f"{reference!r} has fingerprint {found[:16]}…, not {expected_fingerprint[:16]}…: its "
            "weights, tokenizer, prompts or lengths differ",
            expected=expected_fingerprint,
            given=found,
        )
    tokenizer = Tokenizer(layout.transformer / "tokenizer.json", layout.card.lowercase)
    for max_tokens in (layout.card.query_room, layout.card.document_room):
        tokenizer.prepare_cut(max_tokens)
    if layout.card.tokens is not None:
        tokenizer.check_rules(layout.card.tokens)
    backend = TorchBackend(layout, *device)
    return Model(reference, layout.card, found, tokenizer, backend)


def check(model: Model, settings: EncoderSettings) -> Model:
    """Encodes golden texts and probes; on the model's thread.

    Returns:
        The model with what was measured.

    Raises:
        EncoderDrift: golden vectors or batch-mates differ beyond the bounds.
    """
    source = find(model.reference, settings.hub_cache, hub_downloads=False)
    golden_drift, golden_texts = _golden_drift(model, source)
    batch_drift = _batch_drift(model)
    precision = model.backend.precision
    for name, drift, bound in (
        ("golden vectors", golden_drift, GOLDEN_BOUND[precision]),
        ("the same text among others", batch_drift, BATCH_DRIFT_BOUND[precision]),
    ):
        if not drift <= bound:  # NaN is drift too
            raise EncoderDrift(
                f"{model.reference!r} in {precision} differs from {name} by {drift:.3g}, "
                f"{bound:.3g} is allowed; compare weights, library versions and precision",
                encoder=model.reference,
                drift=drift,
                allowed=bound,
            )
    if batch_drift > 0.0 and model.backend.device == "cpu":
        logger.warning("event=batch_drift encoder=%s drift=%g", model.reference, batch_drift)
    return Model(
        model.reference,
        model.card,
        model.fingerprint,
        model.tokenizer,
        model.backend,
        batch_drift,
        golden_drift,
        golden_texts,
    )


def encode_alone(model: Model, side: str, text: str) -> Float32Matrix:
    """float32[rows, dim]: one text as its side ("query" or "document") would be encoded."""
    if side == "query":
        text_input = prepare_query(model.card, model.tokenizer, text, may_cut=True).input
    else:
        text_input = prepare_document(model.card, model.tokenizer, "", text, (0, 0)).inputs[0]
    return _encode(model, text_input)


def golden_json(model: Model, texts: list[tuple[str, str]]) -> str:
    """The content of a golden file for (side, text) pairs: vectors to 7 decimals, several of
    one text one after the other.
    """
    entries = [
        {
            "side": side,
            "text": text,
            "vector": [round(float(value), 7) for value in encode_alone(model, side, text).ravel()],
        }
        for side, text in texts
    ]
    golden = {"fingerprint": model.fingerprint, "golden": entries}
    return json.dumps(golden, ensure_ascii=False, indent=None, separators=(",", ":")) + "\n"


def _encode(model: Model, text: ModelInput) -> Float32Matrix:
    length = padded_length(len(text.ids), model.card.max_tokens)
    return finish(model.backend.encode([text], length)[0], model.card.dim, model.card.normalize)


def _golden_drift(model: Model, source: Source) -> tuple[float, int]:
    golden = _read_golden(source)
    if golden is None:
        return 0.0, 0
    if golden.get("fingerprint") != model.fingerprint:
        raise EncoderDrift(
            f"{model.reference!r} has fingerprint {model.fingerprint[:16]}…, its golden texts were "
            f"made with {str(golden.get('fingerprint'))[:16]}…",
            encoder=model.reference,
        )
    entries = golden["golden"]
    given = [encode_alone(model, entry["side"], entry["text"]) for entry in entries]
    if any(rows.size != len(entry["vector"]) for rows, entry in zip(given, entries, strict=True)):
        raise EncoderDrift(f"{model.reference!r}: golden vectors are of another length")
    promised = np.concatenate([entry["vector"] for entry in entries]).astype(np.float32)
    rows = np.concatenate(given)
    return cosine_distance(rows, promised.reshape(rows.shape)), len(entries)


def _read_golden(source: Source) -> dict[str, Any] | None:
    if source.built_in:
        text = (files("encoder_service") / "golden" / f"{source.name}.json").read_text("utf-8")
    else:
        file: Path = source.folder / GOLDEN_FILE
        if not file.is_file():
            return None
        text = file.read_text("utf-8")
    try:
        golden = json.loads(text)
        if not golden["golden"] or any(
            entry["side"] not in ("query", "document") or not isinstance(entry["text"], str)
            for entry in golden["golden"]
        ):
            raise ValueError("no golden texts, or one without side and text")
    except (ValueError, KeyError, TypeError) as error:
        raise UnsupportedModel(f"{GOLDEN_FILE} of {source.name} cannot be read: {error}") from error
    return dict(golden)


def _batch_drift(model: Model) -> float:
    """Encodes probes alone, then among others of their padded length."""
    (words,) = model.tokenizer.encode(["the quick brown fox jumps over a lazy dog by the river"])
    drift = 0.0
    for length in _PROBE_LENGTHS:
        if length > model.card.max_tokens:
            break
        padded = [
            np.resize(np.roll(words, shift), length - shift) for shift in range(1, _PROBES + 1)
        ]
        full = [np.resize(np.roll(words, shift), length) for shift in range(_PROBES)]
        for ids in (padded, full):
            probes = [_probe(model.card, one) for one in ids]
            among = model.backend.encode(probes, length)
            for probe, rows in zip(probes, among, strict=True):
                finished = finish(rows, model.card.dim, model.card.normalize)
                drift = max(drift, float(np.abs(_encode(model, probe) - finished).max()))
    return drift


def _probe(card: Card, ids: TokenIds) -> ModelInput:
    kept = None if card.tokens is None else np.ones(len(ids), np.bool_)
    return ModelInput(ids, len(ids), kept)
