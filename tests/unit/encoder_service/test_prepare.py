"""Prompts, cutting and chunking with the built-in model's real tokenizer."""

import dataclasses
from functools import cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from encoder_service.backends.layout import read_layout
from encoder_service.backends.reference import find
from encoder_service.backends.tokenizer import Tokenizer
from encoder_service.core.card import Card
from encoder_service.prepare import PreparedDocument, prepare_document, prepare_query
from shoal.errors import EmptyText, TextTooLong


@cache
def encoder() -> tuple[Card, Tokenizer]:
    layout = read_layout(find("all-minilm-l6-v2", "", False))
    tokenizer = Tokenizer(layout.transformer / "tokenizer.json", layout.card.lowercase)
    tokenizer.prepare_cut(layout.card.max_query_tokens)
    return layout.card, tokenizer


def document(title: str, text: str, chunk: int = 256, overlap: int = 32) -> PreparedDocument:
    return prepare_document(*encoder(), title, text, (chunk, overlap))


def ids(text: str) -> list[int]:
    tokens: list[int] = encoder()[1].encode([text])[0].tolist()
    return tokens


def test_a_query_is_its_prompt_and_its_text() -> None:
    card, tokenizer = encoder()
    card = dataclasses.replace(card, query_prompt="query: ")
    prepared = prepare_query(card, tokenizer, "Blue sky", may_cut=False)
    assert prepared.input.ids.tolist() == ids("query: Blue sky")
    assert not prepared.truncated
    for empty in ("", " \n\t", "\x00\x01"):
        with pytest.raises(EmptyText):
            prepare_query(card, tokenizer, empty, may_cut=False)


def test_a_long_query_is_refused_or_cut_with_its_special_tokens() -> None:
    card, tokenizer = encoder()
    text = "fish " * 300
    with pytest.raises(TextTooLong) as refused:
        prepare_query(card, tokenizer, text, may_cut=False)
    assert refused.value.metadata == {"given": "302", "allowed": "256"}
    prepared = prepare_query(card, tokenizer, text, may_cut=True)
    whole = ids(text)
    assert prepared.truncated
    assert prepared.input.ids.tolist() == [*whole[:255], whole[-1]]
    exact = "fish " * 254
    assert not prepare_query(card, tokenizer, exact, may_cut=False).truncated


def test_a_passage_is_prompt_title_space_and_its_characters() -> None:
    card, tokenizer = encoder()
    card = dataclasses.replace(card, document_prompt="passage: ")
    text = "Deep water is cold. " * 60
    prepared = prepare_document(card, tokenizer, "The sea", text, (64, 8))
    assert len(prepared.passages) > 3
    for passage, text_input in zip(prepared.passages, prepared.inputs, strict=True):
        tokens = text_input.ids
        words = f"passage: The sea {text[passage.start : passage.end]}"
        assert tokens.tolist() == ids(words)
    assert not prepared.truncated


def test_chunking_off_is_one_passage_cut_at_the_cards_length_and_flagged() -> None:
    text = "Deep water is cold. " * 100
    prepared = document("The sea", text, chunk=0, overlap=0)
    (passage,) = prepared.passages
    assert len(prepared.inputs[0].ids) == 256
    assert prepared.truncated
    assert passage.start == 0
    assert ids(f"The sea {text[: passage.end]}") == prepared.inputs[0].ids.tolist()
    short = document("The sea", "Deep water.", chunk=0, overlap=0)
    assert (short.passages[0].end, short.truncated) == (11, False)


def test_a_title_alone_is_a_passage_and_no_words_are_an_error() -> None:
    prepared = document("The sea", "")
    assert [(each.start, each.end) for each in prepared.passages] == [(0, 0)]
    assert prepared.inputs[0].ids.tolist() == ids("The sea")
    with pytest.raises(EmptyText):
        document(" ", "\n")


def test_a_title_that_leaves_no_room_is_cut_and_flagged_and_no_text_is_lost() -> None:
    title, text = "cold " * 400, "One fish. Two fish. " * 100
    prepared = document(title, text)
    assert prepared.truncated
    assert prepared.passages[-1].end == len(text)
    for passage, text_input in zip(prepared.passages, prepared.inputs, strict=True):
        tokens = text_input.ids
        assert len(tokens) <= 256
        words = f"{'cold ' * 127}{text[passage.start : passage.end]}"
        assert tokens.tolist() == ids(words)


def test_the_end_of_twenty_thousand_tokens_is_encoded() -> None:
    text = "The water of the sea is cold and deep. " * 2_000 + "The answer is a blue coelacanth."
    assert len(ids(text)) > 20_000
    prepared = document("Oceans", text)
    last = text[prepared.passages[-1].start : prepared.passages[-1].end]
    assert last.endswith("The answer is a blue coelacanth.")
    end = ids("The answer is a blue coelacanth.")[1:]
    assert prepared.inputs[-1].ids.tolist()[-len(end) :] == end
    assert not prepared.truncated


@settings(max_examples=40, deadline=None)
@given(
    st.text(max_size=60),
    st.one_of(
        st.text(max_size=400),
        st.lists(st.sampled_from(["fish", "coelacanth.", "気。", "é", "𓆟"]), max_size=150).map(
            " ".join
        ),
    ),
    st.integers(1, 40),
    st.integers(0, 39),
    st.integers(6, 24),
)
def test_every_passage_fits_and_every_character_is_in_one(
    title: str, text: str, chunk: int, overlap: int, most: int
) -> None:
    card, tokenizer = encoder()
    card = dataclasses.replace(card, max_document_tokens=most)
    tokenizer.prepare_cut(most)
    try:
        prepared = prepare_document(card, tokenizer, title, text, (chunk, min(overlap, chunk - 1)))
    except EmptyText:
        assert not title.strip()
        assert not text.strip()
        return
    assert max(len(each.ids) for each in prepared.inputs) <= most
    covered = np.zeros(len(text), bool)
    for passage in prepared.passages:
        covered[passage.start : passage.end] = True
    assert covered.all()


def test_offsets_of_a_long_text_do_not_depend_on_the_pieces() -> None:
    _, tokenizer = encoder()
    text = "Deep waters, cold and unfathomable! " * 3_000
    starts = tokenizer.offsets(text)
    assert len(starts) == len(ids(text)) - 2
    assert all(text[start] != " " for start in starts)
    assert tokenizer.offsets("x" * 100_000).size > 0
    assert tokenizer.offsets("").size == 0
