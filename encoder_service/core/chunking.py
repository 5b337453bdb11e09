"""Cuts a document's text into passages, on token windows and sentence boundaries.

Windows are counted in tokens and given in characters. Every character of the
text is in at least one passage.
"""

import re
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

# A full stop before a small letter ("e.g. this", "et al. found") ends no sentence.
# No part may scan a run of characters from each of them: that is quadratic.
_SENTENCE_END = re.compile(
    r"[.!?\u2026][\"'\u201d\u2019)\]]*+\s++(?=[^a-z])"
    r"|[\u3002\uff01\uff1f][\u3002\uff01\uff1f\"'\u201d\u2019\u300d\u300f\uff09]*+\s*+"
    r"|\n[^\S\n]*+\n\s*+"
)


@dataclass(frozen=True, slots=True)
class Passage:
    """A half-open range of characters of the text."""

    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Room:
    """How the tokens of a passage are shared.

    Attributes:
        title: tokens of the title that are kept.
        text: tokens of text in one passage, 1 or more.
    """

    title: int
    text: int


def share_room(available: int, title_tokens: int, chunk_tokens: int) -> Room:
    """Shares a passage between title and text.

    The whole title is kept where `chunk_tokens`, or at least half of the
    passage, remains for the text. A longer title is cut to leave that much: no
    title costs a word of text.

    Args:
        available: tokens that the card leaves besides prompt and special ones.
        title_tokens: tokens of the title.
        chunk_tokens: tokens of text wished for, 1 or more.

    >>> share_room(available=254, title_tokens=20, chunk_tokens=256)
    Room(title=20, text=234)
    >>> share_room(available=254, title_tokens=400, chunk_tokens=256)
    Room(title=127, text=127)
    """
    reserved = min(chunk_tokens, available - available // 2)
    title = max(0, min(title_tokens, available - reserved))
    return Room(title=title, text=max(1, min(chunk_tokens, available - title)))


def split(text: str, starts: NDArray[np.int64], window: int, overlap: int) -> list[Passage]:
    """Cuts a text into passages of at most `window` tokens.

    A passage ends where a sentence ends if one does in its second half, else
    between words, else anywhere. The next begins at a sentence's or word's start
    among the last `overlap` tokens. A single character of more than `window`
    tokens is not cut.

    Args:
        text: the text.
        starts: int64[n], the character at which each of its tokens begins.
        window: tokens in one passage, 1 or more.
        overlap: tokens that neighbours share at most, 0 <= overlap < window.

    Returns:
        One passage at least; in the text's order; together they cover it.
    """
    tokens = _Tokens(text, starts)
    passages: list[Passage] = []
    first = 0
    while True:
        last = tokens.end_of_window(first, window, overlap)
        begin = tokens.character(first) if passages else 0
        passages.append(Passage(begin, tokens.character(last)))
        if last >= tokens.count:
            return passages
        first = tokens.start_of_next(first, last, overlap)


class _Tokens:
    """A text's tokens with the places where sentences and words begin."""

    def __init__(self, text: str, starts: NDArray[np.int64]) -> None:
        self._text = text
        # Some tokenizers give offsets that step back; windows need them in order.
        self._starts = np.maximum.accumulate(starts) if len(starts) else starts
        self.count = len(starts)
        ends = np.fromiter((match.end() for match in _SENTENCE_END.finditer(text)), np.int64)
        self._sentences = np.unique(np.searchsorted(self._starts, ends, side="left"))

    def character(self, token: int) -> int:
        """Where a token begins; the text's length beyond the last token."""
        return int(self._starts[token]) if token < self.count else len(self._text)

    def end_of_window(self, first: int, window: int, overlap: int) -> int:
        """One past the last token of the window that begins at `first`."""
        limit = first + window
        if limit >= self.count:
            return self.count
        # An earlier end would make a tiny passage, or no progress.
        floor = first + max(window // 2, overlap)
        at = int(np.searchsorted(self._sentences, limit, side="right")) - 1
        if at >= 0 and self._sentences[at] > floor:
            return self._not_inside_a_character(first, int(self._sentences[at]))
        end = limit
        while end > floor and not self._begins_word(end):
            end -= 1
        return self._not_inside_a_character(first, end if end > floor else limit)

    def start_of_next(self, first: int, last: int, overlap: int) -> int:
        """First token of the window after [first, last)."""
        earliest = max(last - overlap, first + 1)
        at = int(np.searchsorted(self._sentences, earliest, side="left"))
        if at < len(self._sentences) and self._sentences[at] < last:
            return int(self._sentences[at])
        start = earliest
        while start < last and not self._begins_word(start):
            start += 1
        return start

    def _not_inside_a_character(self, first: int, end: int) -> int:
        """Moves an end that would leave the window without a whole character."""
        while end < self.count and self._starts[end] == self._starts[first]:
            end += 1
        return end

    def _begins_word(self, token: int) -> bool:
        at = self.character(token)
        if token > 0 and self.character(token - 1) == at:
            return False  # a later token of the same character
        return at == 0 or self._text[at - 1].isspace()
