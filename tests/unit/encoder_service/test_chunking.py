"""Every character is in a passage; passages fit; they end with sentences."""

import re
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from encoder_service.core.chunking import Passage, Room, share_room, split

WORDS = st.sampled_from(["a", "fish", "Shoal", "e.g.", "deep.", "sea!", "\n\n", "気。", "", "  "])
TEXTS = st.one_of(st.text(max_size=200), st.lists(WORDS, max_size=80).map(" ".join))


def word_tokens(text: str) -> NDArray[np.int64]:
    return np.array([match.start() for match in re.finditer(r"\w+|[^\w\s]", text)], np.int64)


@st.composite
def texts_with_tokens(draw: st.DrawFn) -> tuple[str, NDArray[np.int64]]:
    """A text and any token starts that a tokenizer could give, odd ones included."""
    text = draw(TEXTS)
    if draw(st.booleans()) or not text:
        return text, word_tokens(text)
    starts = draw(st.lists(st.integers(0, len(text) - 1), max_size=60))
    return text, np.array(starts if draw(st.booleans()) else sorted(starts), np.int64)


@st.composite
def windows(draw: st.DrawFn) -> tuple[int, int]:
    window = draw(st.integers(1, 20))
    return window, draw(st.integers(0, window - 1))


def spans(passages: list[Passage]) -> list[tuple[int, int]]:
    return [(passage.start, passage.end) for passage in passages]


@given(texts_with_tokens(), windows())
def test_passages_cover_the_text_in_order(
    tokens: tuple[str, NDArray[np.int64]], window: tuple[int, int]
) -> None:
    text, starts = tokens
    passages = split(text, starts, *window)
    assert passages[0].start == 0
    assert passages[-1].end == len(text)
    for before, after in pairwise(passages):
        assert before.start <= after.start <= before.end <= after.end
    assert len(passages) <= max(1, len(starts))


@given(TEXTS, windows())
def test_a_passage_holds_at_most_the_window_and_neighbours_at_most_the_overlap(
    text: str, window: tuple[int, int]
) -> None:
    starts = word_tokens(text)
    passages = split(text, starts, *window)
    for passage in passages:
        held = np.sum((starts >= passage.start) & (starts < passage.end))
        assert held <= window[0]
        assert held > 0 or len(starts) == 0
    for before, after in pairwise(passages):
        assert np.sum((starts >= after.start) & (starts < before.end)) <= window[1]


@given(texts_with_tokens(), windows())
def test_a_short_text_is_one_passage(
    tokens: tuple[str, NDArray[np.int64]], window: tuple[int, int]
) -> None:
    text, starts = tokens
    assert spans(split(text, starts[: window[0]], *window)) == [(0, len(text))]


def test_passages_end_with_sentences_and_share_whole_ones() -> None:
    text = "One two three. Four five six. Seven eight nine. Ten eleven twelve."
    passages = split(text, word_tokens(text), 9, 5)
    assert [text[passage.start : passage.end] for passage in passages] == [
        "One two three. Four five six. ",
        "Four five six. Seven eight nine. ",
        "Seven eight nine. Ten eleven twelve.",
    ]


def test_abbreviations_end_no_sentence() -> None:
    text = "Fish et al. found that deep water is cold. Light is rare there indeed."
    passages = split(text, word_tokens(text), 14, 0)
    assert text[: passages[0].end] == "Fish et al. found that deep water is cold. "


def test_chinese_sentences_need_no_space() -> None:
    text = "海很深。鱼很多。水很冷。光很少。"
    passages = split(text, np.arange(len(text), dtype=np.int64), 9, 0)
    assert [text[passage.start : passage.end] for passage in passages] == [
        "海很深。鱼很多。",
        "水很冷。光很少。",
    ]


def test_without_sentences_words_stay_whole() -> None:
    text = "abcdef " * 6
    starts = np.array([7 * word + half for word in range(6) for half in (0, 3)], np.int64)
    passages = split(text, starts, 5, 1)
    assert [text[passage.start : passage.end].split() for passage in passages] == [
        ["abcdef"] * 2
    ] * 3


def test_a_character_of_many_tokens_is_not_cut() -> None:
    passages = split("𓆟x", np.array([0, 0, 0, 0, 1], np.int64), 2, 1)
    assert spans(passages) == [(0, 1), (1, 2)]


@pytest.mark.parametrize(
    ("available", "title", "chunk", "room"),
    [
        (254, 0, 256, Room(0, 254)),
        (254, 10, 128, Room(10, 128)),
        (254, 126, 128, Room(126, 128)),
        (254, 200, 64, Room(190, 64)),
        (254, 9_999, 256, Room(127, 127)),
        (1, 5, 8, Room(0, 1)),
        (0, 5, 8, Room(0, 1)),
    ],
)
def test_room(available: int, title: int, chunk: int, room: Room) -> None:
    assert share_room(available, title, chunk) == room


@given(st.integers(2, 600), st.integers(0, 2_000), st.integers(1, 600))
def test_title_and_text_fit_and_text_keeps_half(available: int, title: int, chunk: int) -> None:
    room = share_room(available, title, chunk)
    assert room.title + room.text <= available
    assert room.title <= title
    assert room.text >= min(chunk, available // 2)


@pytest.mark.parametrize("part", [".", ")", ".)", "\n", " \n", "。", "x", ". "])
def test_long_runs_cost_no_more_than_their_length(part: str) -> None:
    """A quadratic scan of these would take hours; the suite's time limit is the judge."""
    text = part * 300_000
    passages = split(text, np.arange(0, len(text), 4, dtype=np.int64), 256, 32)
    assert passages[-1].end == len(text)
