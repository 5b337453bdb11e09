"""Which token each row of token vectors is, for people who ask why a document matched."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

from encoder_service.backends.port import ModelInput
from encoder_service.backends.tokenizer import Tokenizer
from encoder_service.core.card import Card
from encoder_service.prepare import PreparedDocument, PreparedQuery


class Origin(Enum):
    """Where a token is from."""

    ADDED = "added"
    TITLE = "title"
    TEXT = "text"


@dataclass(frozen=True, slots=True)
class Label:
    """One token.

    Attributes:
        token: as the vocabulary has it.
        origin: where it is from.
        start: its first character there; 0 for what the encoder added.
        end: one past its last character there.
    """

    token: str
    origin: Origin
    start: int = 0
    end: int = 0


def query_labels(
    card: Card, tokenizer: Tokenizer, text: str, prepared: PreparedQuery
) -> list[Label]:
    """Of each row of a question."""
    before = len(card.query_prompt)
    spans = tokenizer.spans(card.query_prompt + text)
    marked = bool(card.tokens and card.tokens.query_marker)
    return _labels(tokenizer, prepared.input, marked, spans, [(before, len(text), Origin.TEXT, 0)])


def document_labels(
    card: Card, tokenizer: Tokenizer, text: str, prepared: PreparedDocument
) -> list[Label]:
    """Of each row of all passages of a document, one passage after the other."""
    marked = bool(card.tokens and card.tokens.document_marker)
    prompt, before = len(card.document_prompt), len(prepared.before)
    labels: list[Label] = []
    for passage, given in zip(prepared.passages, prepared.inputs, strict=True):
        spans = tokenizer.spans(prepared.before + text[passage.start : passage.end])
        parts = [
            (prompt, before - prompt, Origin.TITLE, 0),
            (before, passage.end - passage.start, Origin.TEXT, passage.start),
        ]
        labels += _labels(tokenizer, given, marked, spans, parts)
    return labels


def _labels(
    tokenizer: Tokenizer,
    given: ModelInput,
    marked: bool,
    spans: Sequence[tuple[int, int]],
    parts: Sequence[tuple[int, int, Origin, int]],
) -> list[Label]:
    """Of each token that is kept.

    Args:
        tokenizer: that made the tokens.
        given: the text as the model reads it.
        marked: a marker was put behind the first token.
        spans: characters of each token of the uncut text, without the marker.
        parts: (first character, characters, origin, its first character there).
    """
    placed = [spans[0], (0, 0), *spans[1:]] if marked else list(spans)
    labels = []
    for place, number in enumerate(given.ids.tolist()):
        if given.kept is not None and not given.kept[place]:
            continue
        start, end = placed[place] if place < len(placed) else (0, 0)
        labels.append(_label(tokenizer.token_of(number), start, end, parts))
    return labels


def _label(
    token: str, start: int, end: int, parts: Sequence[tuple[int, int, Origin, int]]
) -> Label:
    for first, length, origin, there in parts:
        if start < end and first <= start < first + length:
            stop = min(end, first + length)
            return Label(token, origin, start - first + there, stop - first + there)
    return Label(token, Origin.ADDED)
