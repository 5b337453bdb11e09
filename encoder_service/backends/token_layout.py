"""What late-interaction folders say of markers, expansion and skipped tokens.

Three layouts: PyLate's, that of sentence-transformers' MultiVectorEncoder, and Stanford
ColBERT's.
"""

import string
from dataclasses import dataclass
from typing import Any

from encoder_service.core.card import TokenRules
from shoal.errors import UnsupportedModel

PYLATE, SENTENCE_TRANSFORMERS = "ColBERT", "MultiVectorEncoder"
"""`model_type` in config_sentence_transformers.json."""
STANFORD_ARCHITECTURE = "HF_ColBERT"
STANFORD_SETTINGS = "artifact.metadata"


@dataclass(frozen=True, slots=True)
class TokenLayout:
    """What a folder says.

    Attributes:
        rules: of its tokens.
        max_query_tokens: longest question, marker included; None is the model's own length.
        max_document_tokens: longest passage, marker included.
    """

    rules: TokenRules
    max_query_tokens: int | None
    max_document_tokens: int | None


def pylate(words: dict[str, Any]) -> TokenLayout:
    """From PyLate's config_sentence_transformers.json.

    Source: lightonai/pylate, pylate/models/colbert.py: questions are filled up to
    query_length, or cut there.
    """
    length = int(words.get("query_length") or 32)
    rules = TokenRules(
        query_marker=str(words.get("query_prefix", "[Q] ")),
        document_marker=str(words.get("document_prefix", "[D] ")),
        query_expansion=length if words.get("do_query_expansion", True) else 0,
        attend_to_expansion=bool(words.get("attend_to_expansion_tokens", False)),
        skip=_skip(words.get("skiplist_words")),
    )
    return TokenLayout(rules, length, int(words.get("document_length") or 180))


def sentence_transformers(bert: dict[str, Any], mask: dict[str, Any]) -> TokenLayout:
    """From sentence_bert_config.json and the mask module's config.json.

    Markers are prompts in this layout, which the card has anyway.

    Raises:
        UnsupportedModel: an expansion that Shoal does not know.
    """
    expansion = bert.get("query_expansion") or {}
    strategy = expansion.get("strategy", "min")
    if strategy not in {"fixed", "min"} or expansion.get("token") not in {None, "[MASK]", "<mask>"}:
        raise UnsupportedModel(
            f"query expansion {expansion} is not supported: use fixed or min, with the mask token"
        )
    length = int(expansion.get("length") or 0)
    rules = TokenRules(
        query_marker="",
        document_marker="",
        query_expansion=length,
        attend_to_expansion=bool(expansion.get("attend", False)),
        skip=_skip(mask.get("skiplist_words")),
    )
    longest = length if length and strategy == "fixed" else bert.get("query_length")
    return TokenLayout(rules, longest, bert.get("document_length"))


def stanford(settings: dict[str, Any]) -> TokenLayout:
    """From Stanford ColBERT's artifact.metadata.

    Source: stanford-futuredata/ColBERT, colbert/infra/config/settings.py.
    """
    length = int(settings.get("query_maxlen", 32))
    rules = TokenRules(
        query_marker=str(settings.get("query_token_id", "[unused0]")),
        document_marker=str(settings.get("doc_token_id", "[unused1]")),
        query_expansion=length,
        attend_to_expansion=bool(settings.get("attend_to_mask_tokens", False)),
        skip=_skip(None if settings.get("mask_punctuation", True) else []),
    )
    return TokenLayout(rules, length, int(settings.get("doc_maxlen", 220)))


def _skip(words: object) -> tuple[str, ...]:
    if words is None:
        return tuple(sorted(string.punctuation))
    if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
        raise UnsupportedModel("skiplist_words is no list of words")
    return tuple(sorted(words))
