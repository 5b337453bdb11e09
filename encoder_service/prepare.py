"""From texts to token ids: prompts, cutting, chunking. Runs on tokenising threads."""

from dataclasses import dataclass

from encoder_service.backends.port import TokenIds
from encoder_service.backends.tokenizer import Tokenizer
from encoder_service.core.card import Card
from encoder_service.core.chunking import Passage, Room, share_room, split
from shoal.errors import EmptyText, TextTooLong


@dataclass(frozen=True, slots=True)
class PreparedQuery:
    """A question as the model reads it.

    Attributes:
        ids: int32[n], special ones included.
        truncated: it was cut.
    """

    ids: TokenIds
    truncated: bool


@dataclass(frozen=True, slots=True)
class PreparedDocument:
    """A document's passages as the model reads them.

    Attributes:
        passages: where each is in the text.
        ids: int32[n] of each.
        truncated: some words of title or text are in no passage.
    """

    passages: tuple[Passage, ...]
    ids: tuple[TokenIds, ...]
    truncated: bool


def prepare_query(card: Card, tokenizer: Tokenizer, text: str, may_cut: bool) -> PreparedQuery:
    """Tokenises a question behind the card's prompt.

    Raises:
        EmptyText: it has no words.
        TextTooLong: it has more tokens than the card takes, and may not be cut.
    """
    if not text.strip():
        raise EmptyText("the text is empty")
    tokens, _ = tokenizer.encode_cut(card.query_prompt + text, card.max_query_tokens)
    if tokens.count <= tokenizer.count_of_prompt(card.query_prompt):
        raise EmptyText("the text has no words that this encoder reads")
    truncated = tokens.count > len(tokens.ids)
    if truncated and not may_cut:
        raise TextTooLong(
            f"the text has {tokens.count} tokens, this encoder takes {card.max_query_tokens}",
            given=tokens.count,
            allowed=card.max_query_tokens,
        )
    return PreparedQuery(tokens.ids, truncated)


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
    available = card.max_document_tokens - tokenizer.count_of_prompt(card.document_prompt)
    title_starts = tokenizer.offsets(title)
    room = share_room(available, len(title_starts), chunk_tokens)
    cut_title = room.title < len(title_starts)
    if cut_title:
        title = title[: int(title_starts[room.title])].rstrip()
    passages, ids = _passages(card, tokenizer, (title, text), room, overlap)
    return PreparedDocument(passages, ids, cut_title)


def _one_passage(card: Card, tokenizer: Tokenizer, title: str, text: str) -> PreparedDocument:
    before = _before(card, title)
    tokens, end = tokenizer.encode_cut(before + text, card.max_document_tokens)
    covered = min(max(end - len(before), 0), len(text))
    passage = Passage(0, covered)
    return PreparedDocument((passage,), (tokens.ids,), tokens.count > len(tokens.ids))


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
        excess = max(len(tokens) for tokens in ids) - card.max_document_tokens
        if excess <= 0:
            return tuple(passages), tuple(ids)
        # Title and text joined may have more tokens than apart: leave more room.
        if window == 1:
            cut = [
                tokenizer.encode_cut(before + text[part.start : part.end], card.max_document_tokens)
                for part in passages
            ]
            return tuple(passages), tuple(tokens.ids for tokens, _ in cut)
        window = max(1, window - excess)
