"""From texts to token ids: prompts, cutting, chunking. Runs on tokenising threads."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from encoder_service.backends.port import ModelInput, TokenIds
from encoder_service.backends.tokenizer import Tokenizer
from encoder_service.core.card import Card
from encoder_service.core.chunking import Passage, Room, share_room, split
from shoal.errors import EmptyText, TextTooLong


@dataclass(frozen=True, slots=True)
class PreparedQuery:
    """A question as the model reads it.

    Attributes:
        input: it.
        truncated: it was cut.
    """

    input: ModelInput
    truncated: bool


@dataclass(frozen=True, slots=True)
class PreparedDocument:
    """A document's passages as the model reads them.

    Attributes:
        passages: where each is in the text.
        inputs: of each.
        truncated: some words of title or text are in no passage.
        before: prompt and title as they stand before each passage.
    """

    passages: tuple[Passage, ...]
    inputs: tuple[ModelInput, ...]
    truncated: bool
    before: str


def prepare_query(card: Card, tokenizer: Tokenizer, text: str, may_cut: bool) -> PreparedQuery:
    """Tokenises a question behind the card's prompt.

    Raises:
        EmptyText: it has no words.
        TextTooLong: it has more tokens than the card takes, and may not be cut.
    """
    if not text.strip():
        raise EmptyText("the text is empty")
    tokens, _ = tokenizer.encode_cut(card.query_prompt + text, card.query_room)
    if tokens.count <= tokenizer.count_of_prompt(card.query_prompt):
        raise EmptyText("the text has no words that this encoder reads")
    truncated = tokens.count > len(tokens.ids)
    if truncated and not may_cut:
        raise TextTooLong(
            f"the text has {tokens.count} tokens, this encoder takes {card.query_room}",
            given=tokens.count,
            allowed=card.query_room,
        )
    return PreparedQuery(_query_input(card, tokenizer, tokens.ids), truncated)


def prepare_document(
    card: Card, tokenizer: Tokenizer, title: str, text: str, chunking: tuple[int, int]
) -> PreparedDocument:
    """Cuts a document into passages, each behind the card's prompt and the title.

    Args:
        card: of the encoder.
        tokenizer: of the encoder.
        title: may be empty.
        text: may be empty if there is a title.
        chunking: (tokens of text in one passage, tokens that neighbours share);
            0 tokens makes one passage, cut at the card's length.

    Raises:
        EmptyText: there are no words.
    """
    if not title.strip() and not text.strip():
        raise EmptyText("title and text are empty")
    chunk_tokens, overlap = chunking
    if chunk_tokens == 0 or not text.strip():
        return _one_passage(card, tokenizer, title, text)
    available = card.document_room - tokenizer.count_of_prompt(card.document_prompt)
    title_starts = tokenizer.offsets(title)
    room = share_room(available, len(title_starts), chunk_tokens)
    cut_title = room.title < len(title_starts)
    if cut_title:
        title = title[: int(title_starts[room.title])].rstrip()
    passages, ids = _passages(card, tokenizer, (title, text), room, overlap)
    inputs = _document_inputs(card, tokenizer, ids)
    return PreparedDocument(passages, inputs, cut_title, _before(card, title))


def _one_passage(card: Card, tokenizer: Tokenizer, title: str, text: str) -> PreparedDocument:
    before = _before(card, title)
    tokens, end = tokenizer.encode_cut(before + text, card.document_room)
    covered = min(max(end - len(before), 0), len(text))
    passage = Passage(0, covered)
    inputs = _document_inputs(card, tokenizer, [tokens.ids])
    return PreparedDocument((passage,), inputs, tokens.count > len(tokens.ids), before)


def _query_input(card: Card, tokenizer: Tokenizer, ids: TokenIds) -> ModelInput:
    rules = card.tokens
    if rules is None:
        return ModelInput(ids, len(ids))
    ids = _marked(tokenizer, ids, rules.query_marker)
    filled = max(len(ids), rules.query_expansion)
    attended = filled if rules.attend_to_expansion else len(ids)
    masks = np.full(filled - len(ids), tokenizer.mask_id if filled > len(ids) else 0, np.int32)
    return ModelInput(np.concatenate([ids, masks]), attended, np.ones(filled, np.bool_))


def _document_inputs(
    card: Card, tokenizer: Tokenizer, passages: Sequence[TokenIds]
) -> tuple[ModelInput, ...]:
    rules = card.tokens
    if rules is None:
        return tuple(ModelInput(ids, len(ids)) for ids in passages)
    skipped = np.array(sorted(tokenizer.ids_of_words(rules.skip)), np.int32)
    marked = [_marked(tokenizer, ids, rules.document_marker) for ids in passages]
    return tuple(ModelInput(ids, len(ids), ~np.isin(ids, skipped)) for ids in marked)


def _marked(tokenizer: Tokenizer, ids: TokenIds, marker: str) -> TokenIds:
    """With the marker behind the first token, where ColBERT models were taught it."""
    if not marker:
        return ids
    marked: TokenIds = np.insert(ids, 1, tokenizer.id_of(marker))
    return marked


def _before(card: Card, title: str) -> str:
    return f"{card.document_prompt}{title} " if title.strip() else card.document_prompt


def _passages(
    card: Card, tokenizer: Tokenizer, words: tuple[str, str], room: Room, overlap: int
) -> tuple[tuple[Passage, ...], tuple[TokenIds, ...]]:
    title, text = words
    before = _before(card, title)
    starts = tokenizer.offsets(text)
    window = room.text
    while True:
        passages = split(text, starts, window, min(overlap, window - 1))
        ids = tokenizer.encode([before + text[part.start : part.end] for part in passages])
        excess = max(len(tokens) for tokens in ids) - card.document_room
        if excess <= 0:
            return tuple(passages), tuple(ids)
        # Title and text joined may have more tokens than apart: leave more room.
        if window == 1:
            cut = [
                tokenizer.encode_cut(before + text[part.start : part.end], card.document_room)
                for part in passages
            ]
            return tuple(passages), tuple(tokens.ids for tokens, _ in cut)
        window = max(1, window - excess)
