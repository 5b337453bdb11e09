"""What an encoder is: its card, and the fingerprint of what can change a vector."""

import hashlib
import json
from dataclasses import asdict, dataclass
from enum import Enum
from typing import Any

from shoal.errors import InvalidRequest
from shoal.types import Similarity

CARD_VERSION = 1
_NO_EFFECT_ON_VECTORS = ("matryoshka_dims", "similarity", "licence", "source", "revision")


class Pooling(Enum):
    """How a text's token vectors become one; NONE keeps them all (late interaction)."""

    MEAN = "mean"
    CLS = "cls"
    LAST_TOKEN = "lasttoken"  # noqa: S105 - a pooling mode, not a secret
    NONE = "none"


@dataclass(frozen=True, slots=True, kw_only=True)
class DenseLayer:
    """A linear layer after pooling.

    Attributes:
        weights_sha256: of its safetensors file.
        in_features: columns in.
        out_features: columns out.
        bias: whether it adds one.
        activation: "identity", "tanh", "relu" or "gelu".
    """

    weights_sha256: str
    in_features: int
    out_features: int
    bias: bool
    activation: str


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenRules:
    """What late interaction adds to a text, and which of its tokens give vectors.

    Source: Khattab and Zaharia, ColBERT (SIGIR 2020), section 3.2.

    Attributes:
        query_marker: token that stands second in every question; empty adds none.
        document_marker: the same for every passage.
        query_expansion: tokens up to which a question is filled with the mask token; 0
            fills nothing.
        attend_to_expansion: the question's own tokens see those that fill it.
        skip: words whose tokens give a passage no vector, ascending.
    """

    query_marker: str
    document_marker: str
    query_expansion: int
    attend_to_expansion: bool
    skip: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Card:
    """Everything about an encoder except the precision that it runs in.

    Attributes:
        weights_sha256: of the transformer's safetensors (of their names and hashes,
            if there are several).
        tokenizer_sha256: of tokenizer.json.
        config_sha256: of the canonical JSON of config.json without notes on its origin.
        architecture: class name in `transformers`.
        lowercase: texts are lower-cased before the tokenizer's own rules.
        pooling: how token vectors become one.
        dense: layers after pooling, in order.
        normalize: vectors have length 1.
        query_prompt: stands before every question.
        document_prompt: stands before every passage.
        max_query_tokens: tokens of a question, special ones and prompt included.
        max_document_tokens: the same for a passage.
        dim: columns of a full vector.
        matryoshka_dims: smaller numbers of columns that may be asked for, ascending.
        similarity: how the model's vectors are meant to compare.
        licence: of the weights; empty if the model does not say.
        source: built-in name, hub id, or folder name.
        revision: 40 hex digits of the hub's commit, or empty.
        tokens: of a model that gives one vector per token; None of others.
    """

    weights_sha256: str
    tokenizer_sha256: str
    config_sha256: str
    architecture: str
    lowercase: bool
    pooling: Pooling
    dense: tuple[DenseLayer, ...]
    normalize: bool
    query_prompt: str
    document_prompt: str
    max_query_tokens: int
    max_document_tokens: int
    dim: int
    matryoshka_dims: tuple[int, ...]
    similarity: Similarity
    licence: str
    source: str
    revision: str
    tokens: TokenRules | None = None

    @property
    def query_room(self) -> int:
        """Tokens of a question, special ones and prompt included, its marker left out."""
        return self.max_query_tokens - bool(self.tokens and self.tokens.query_marker)

    @property
    def document_room(self) -> int:
        """The same for a passage."""
        return self.max_document_tokens - bool(self.tokens and self.tokens.document_marker)

    @property
    def max_tokens(self) -> int:
        """The longest padded length that the model meets."""
        return max(self.max_query_tokens, self.max_document_tokens)

    def columns(self, dim: int) -> int:
        """Columns that a request for `dim` keeps; 0 keeps all.

        Raises:
            InvalidRequest: the card does not offer that many.
        """
        offered = (*self.matryoshka_dims, self.dim)
        if dim and dim not in offered:
            raise InvalidRequest(
                f"dim is {dim}; this encoder offers {', '.join(map(str, offered))}", field="dim"
            )
        return dim or self.dim


def canonical_json(value: object) -> str:
    """JSON with sorted keys, no spaces, ASCII only: equal values, equal bytes."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True)


def card_json(card: Card) -> str:
    """The card as canonical JSON."""
    return canonical_json(_fields(card))


def fingerprint(card: Card) -> str:
    """64 hex digits that change exactly with what can change a vector."""
    fields = {
        name: value for name, value in _fields(card).items() if name not in _NO_EFFECT_ON_VECTORS
    }
    return hashlib.sha256(canonical_json(fields).encode()).hexdigest()


def _fields(card: Card) -> dict[str, Any]:
    fields = asdict(card)
    fields["pooling"] = card.pooling.value
    fields["similarity"] = card.similarity.value
    fields["version"] = CARD_VERSION
    if card.tokens is None:
        del fields["tokens"]  # as before there were such models: fingerprints stay
    return fields
