"""Tokenising with the Rust `tokenizers`, which release the GIL for a batch."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer as RustTokenizer
from tokenizers import normalizers

from encoder_service.backends.port import TokenIds
from encoder_service.core.card import TokenRules
from shoal.errors import UnsupportedModel

# Its own thread pool would take cores that the process was not given.
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

_MASKS = ("[MASK]", "<mask>")
_PIECE_CHARACTERS = 32_768
_TEXTS_AT_ONCE = 256
"""An encoding of the library holds some 100 bytes a token: let go of them soon."""


@dataclass(frozen=True, slots=True)
class Tokens:
    """A text as the model reads it.

    Attributes:
        ids: int32[n], special ones included.
        count: tokens of the whole text; above n if it was cut.
    """

    ids: TokenIds
    count: int


class Tokenizer:
    """One model's tokenizer. Threads may share it.

    Raises:
        UnsupportedModel: the file is missing or of an unknown format.
    """

    def __init__(self, file: Path, lowercase: bool) -> None:
        self._file = file
        self._lowercase = lowercase
        self._whole = self._load()
        self._cutting: dict[int, RustTokenizer] = {}
        self._prompts: dict[str, int] = {}

    def _load(self) -> RustTokenizer:
        try:
            rust = RustTokenizer.from_file(str(self._file))
        except Exception as error:  # the library raises bare Exception
            raise UnsupportedModel(
                f"{self._file.name} cannot be read ({error}); save the model with a fast tokenizer"
            ) from error
        rust.no_truncation()
        rust.no_padding()
        if self._lowercase:
            before = [normalizers.Lowercase()]
            own = [rust.normalizer] if rust.normalizer is not None else []
            rust.normalizer = normalizers.Sequence(before + own)
        return rust

    @property
    def vocabulary(self) -> frozenset[str]:
        """Every token as the vocabulary has it."""
        return frozenset(self._whole.get_vocab())

    def prepare_cut(self, max_tokens: int) -> None:
        """Makes cutting at `max_tokens` possible; called before threads share this."""
        if max_tokens not in self._cutting:
            rust = self._load()
            rust.enable_truncation(max_tokens)
            self._cutting[max_tokens] = rust

    def check_rules(self, rules: TokenRules) -> None:
        """Raises UnsupportedModel if the vocabulary lacks a token that late interaction wants."""
        for marker in (rules.query_marker, rules.document_marker):
            if marker:
                self.id_of(marker)
        if rules.query_expansion:
            _ = self.mask_id

    def id_of(self, token: str) -> int:
        """The id of one token of the vocabulary.

        Raises:
            UnsupportedModel: there is no such token.
        """
        found = self._whole.token_to_id(token)
        if found is None:
            raise UnsupportedModel(f"the vocabulary has no token {token!r}")
        return int(found)

    @property
    def mask_id(self) -> int:
        """The id of the mask token.

        Raises:
            UnsupportedModel: there is none.
        """
        found = [self._whole.token_to_id(token) for token in _MASKS]
        known = [number for number in found if number is not None]
        if not known:
            raise UnsupportedModel("the vocabulary has no mask token to fill questions with")
        return int(known[0])

    def ids_of_words(self, words: Sequence[str]) -> frozenset[int]:
        """Ids of the words that are one token each; others have none."""
        coded = [self._whole.encode(word, add_special_tokens=False).ids for word in words]
        return frozenset(ids[0] for ids in coded if len(ids) == 1)

    def token_of(self, number: int) -> str:
        """A token of the vocabulary; empty for a number that it lacks."""
        return self._whole.id_to_token(number) or ""

    def spans(self, text: str) -> list[tuple[int, int]]:
        """[start, end) characters of each token, special ones included: (0, 0) for those."""
        return list(self._whole.encode(text).offsets)

    def count_of_prompt(self, prompt: str) -> int:
        """Tokens of a card's prompt alone, special ones included."""
        if prompt not in self._prompts:
            self._prompts[prompt] = len(self.encode([prompt])[0])
        return self._prompts[prompt]

    def encode(self, texts: Sequence[str]) -> list[TokenIds]:
        """Token ids of each text, special ones included, uncut."""
        ids: list[TokenIds] = []
        for begin in range(0, len(texts), _TEXTS_AT_ONCE):
            some = list(texts[begin : begin + _TEXTS_AT_ONCE])
            ids += [np.array(one.ids, np.int32) for one in self._whole.encode_batch_fast(some)]
        return ids

    def encode_cut(self, text: str, max_tokens: int) -> tuple[Tokens, int]:
        """A text's tokens, at most `max_tokens` of them.

        Args:
            text: the templated text.
            max_tokens: a length given to `prepare_cut`.

        Returns:
            The tokens, and one past the last character that they cover.
        """
        (whole,) = self.encode([text])
        if len(whole) <= max_tokens:
            return Tokens(whole, len(whole)), len(text)
        cut = self._cutting[max_tokens].encode_batch([text])[0]
        end = max(end for _, end in cut.offsets)
        return Tokens(np.array(cut.ids, np.int32), len(whole)), end

    def offsets(self, text: str) -> NDArray[np.int64]:
        """The character at which each token of the text begins, without special ones.

        Long texts are tokenised in pieces cut at white space, so that no call
        holds the GIL for long.
        """
        starts: list[NDArray[np.int64]] = []
        begin = 0
        while begin < len(text):
            end = _piece_end(text, begin)
            piece = self._whole.encode_batch([text[begin:end]], add_special_tokens=False)[0]
            starts.append(np.array([start for start, _ in piece.offsets], np.int64) + begin)
            begin = end
        return np.concatenate(starts) if starts else np.zeros(0, np.int64)


def _piece_end(text: str, begin: int) -> int:
    end = begin + _PIECE_CHARACTERS
    if end >= len(text):
        return len(text)
    at = max(text.rfind(" ", begin + 1, end), text.rfind("\n", begin + 1, end))
    return at if at > begin else end
