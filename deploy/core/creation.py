"""What a wish for a collection becomes, or why it cannot."""

import json
from dataclasses import dataclass

from encoder_service import DEFAULT_CHUNK_OVERLAP, DEFAULT_CHUNK_TOKENS
from shoal.errors import InvalidRequest, LimitExceeded
from shoal.ids import check_name
from shoal.types import Kind, Similarity

DEFAULT_ENCODERS = {Kind.SINGLE: "all-minilm-l6-v2", Kind.COLBERT: "all-minilm-l6-v2-tokens"}
NO_ENCODER = "none"
CODE_BYTES = (4, 8, 16, 32)
DEFAULT_CODE_BYTES = 8
DEFAULT_TRAIN_AT = 2_000_000
MOST_POOLED = 3
_LATE_OVERLAP_PARTS = 8
"""Neighbouring passages of late interaction share one of so many parts of their tokens."""
INDEXES = ("auto", "flat", "hnsw", "ivf-pq")


@dataclass(frozen=True, slots=True, kw_only=True)
class Wish:
    """A collection as asked for. Empty, 0 and None stand for "not said"."""

    name: str
    kind: Kind = Kind.SINGLE
    encoder: str = ""
    dim: int = 0
    index: str = ""
    chunk_tokens: int | None = None
    similarity: Similarity | None = None
    shards: int = 0
    code_bytes: int = 0
    train_at: int = 0
    pool_factor: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """What an encoder says of the model that it loaded.

    Attributes:
        fingerprint: 64 hex digits.
        card_json: canonical JSON of the card.
        dim: columns of a full vector.
        similarity: the card's.
        max_document_tokens: tokens of a passage at most, special ones included.
        token_vectors: it gives one vector per token, not one per text.
    """

    fingerprint: str
    card_json: str
    dim: int
    similarity: Similarity
    max_document_tokens: int
    token_vectors: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Bounds:
    """Limits and defaults of the cluster."""

    max_dim: int
    max_shards: int
    default_shards: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Settled:
    """A collection's settings, complete."""

    name: str
    kind: Kind
    similarity: Similarity
    dim: int
    encoder: str
    fingerprint: str
    card_json: str
    index: str
    chunk_tokens: int
    chunk_overlap: int
    shards: int
    code_bytes: int
    train_at: int
    pool_factor: int


def check_wish(wish: Wish, bounds: Bounds) -> Wish:
    """The wish with its defaults, as far as no model is needed to know them.

    Raises:
        InvalidName: the name.
        InvalidRequest: an unknown index; no dim without an encoder; chunking
            without an encoder; what the other kind has.
        LimitExceeded: dim or shards.
    """
    check_name(wish.name)
    _check_late(wish)
    index = wish.index or "auto"
    if index not in INDEXES:
        raise InvalidRequest(f"index {index[:40]!r} is none of {', '.join(INDEXES)}", field="index")
    encoder = wish.encoder or DEFAULT_ENCODERS[wish.kind]
    if encoder == NO_ENCODER and wish.dim == 0:
        raise InvalidRequest("a collection without an encoder needs a dim", field="dim")
    if encoder == NO_ENCODER and wish.chunk_tokens:
        raise InvalidRequest("without an encoder there is no chunking", field="chunk_tokens")
    shards = wish.shards or bounds.default_shards
    _check_limit("max_dim", wish.dim, bounds.max_dim)
    _check_limit("max_shards", shards, bounds.max_shards)
    return Wish(
        name=wish.name,
        kind=wish.kind,
        encoder=encoder,
        dim=wish.dim,
        index=index,
        chunk_tokens=wish.chunk_tokens,
        similarity=wish.similarity,
        shards=shards,
        code_bytes=wish.code_bytes or DEFAULT_CODE_BYTES * (wish.kind is Kind.COLBERT),
        train_at=wish.train_at or DEFAULT_TRAIN_AT * (wish.kind is Kind.COLBERT),
        pool_factor=wish.pool_factor or int(wish.kind is Kind.COLBERT),
    )


def _check_late(wish: Wish) -> None:
    if wish.kind is Kind.SINGLE:
        for field in ("code_bytes", "train_at", "pool_factor"):
            if getattr(wish, field):
                raise InvalidRequest(f"only kind colbert has {field}", field=field)
        return
    if wish.pool_factor > MOST_POOLED:
        raise InvalidRequest(
            f"pool_factor is {wish.pool_factor}; use 1 to {MOST_POOLED}", field="pool_factor"
        )
    if wish.pool_factor > 1 and wish.encoder == NO_ENCODER:
        raise InvalidRequest(
            "vectors that users bring are stored as they come: pool them before",
            field="pool_factor",
        )
    if wish.code_bytes and wish.code_bytes not in CODE_BYTES:
        raise InvalidRequest(
            f"code_bytes is {wish.code_bytes}; use {', '.join(map(str, CODE_BYTES))}",
            field="code_bytes",
        )
    if wish.similarity not in {None, Similarity.COSINE}:
        raise InvalidRequest("kind colbert compares tokens by cosine", field="similarity")
    if wish.index not in {"", "auto"}:
        raise InvalidRequest("kind colbert has an index of its own; leave index out", field="index")


def settle(wish: Wish, model: Model | None) -> Settled:
    """Complete settings of a checked wish.

    Args:
        wish: from `check_wish`.
        model: what its encoder loaded; None for "none".

    Raises:
        InvalidRequest: a dim or a chunk length that the model does not have, or vectors
            of another kind than the collection's.
    """
    chunk_tokens = 0
    if model is not None:
        _check_kind(wish, model)
        _check_dim(wish.dim, model)
        chunk_tokens = _chunk_tokens(wish, model)
    dim = wish.dim or (model.dim if model else 0)
    check_code_bytes(wish.code_bytes, dim)
    return Settled(
        name=wish.name,
        kind=wish.kind,
        similarity=_similarity(wish, model),
        dim=dim,
        encoder=wish.encoder,
        fingerprint=model.fingerprint if model else "",
        card_json=model.card_json if model else "",
        index=wish.index,
        chunk_tokens=chunk_tokens,
        chunk_overlap=_overlap(wish.kind, chunk_tokens),
        shards=wish.shards,
        code_bytes=wish.code_bytes,
        train_at=wish.train_at,
        pool_factor=wish.pool_factor,
    )


def check_code_bytes(code_bytes: int, dim: int) -> None:
    """Raises InvalidRequest if a token of so many columns cannot have so many code bytes."""
    if code_bytes and dim % code_bytes:
        fitting = ", ".join(str(each) for each in CODE_BYTES if dim % each == 0)
        raise InvalidRequest(
            f"{code_bytes} code bytes do not divide the {dim} columns of a token; "
            f"use {fitting or 'another dim'}",
            field="code_bytes",
        )


def _similarity(wish: Wish, model: Model | None) -> Similarity:
    if wish.kind is Kind.COLBERT or model is None:
        # Token vectors are brought to length 1, whatever a card calls their product.
        return wish.similarity or Similarity.COSINE
    return wish.similarity or model.similarity


def _check_kind(wish: Wish, model: Model) -> None:
    if model.token_vectors and wish.kind is Kind.SINGLE:
        raise InvalidRequest(
            f"encoder {wish.encoder!r} gives one vector per token; a collection of kind single "
            "wants an encoder that gives one per text",
            field="encoder",
        )
    if not model.token_vectors and wish.kind is Kind.COLBERT:
        raise InvalidRequest(
            f"encoder {wish.encoder!r} gives one vector per text; a collection of kind colbert "
            f"wants one that gives one per token, such as {DEFAULT_ENCODERS[Kind.COLBERT]}",
            field="encoder",
        )


def _chunk_tokens(wish: Wish, model: Model) -> int:
    longest, asked = model.max_document_tokens, wish.chunk_tokens
    if asked is None:
        # A token is compared by itself: long passages lose nothing, and share fewer words.
        return longest if wish.kind is Kind.COLBERT else min(DEFAULT_CHUNK_TOKENS, longest)
    if asked > longest:
        raise InvalidRequest(
            f"a passage of {asked} tokens is longer than the model's {longest}; "
            "ask for fewer, or 0 to turn chunking off",
            field="chunk_tokens",
        )
    return asked


def _overlap(kind: Kind, chunk_tokens: int) -> int:
    if kind is Kind.COLBERT:
        return chunk_tokens // _LATE_OVERLAP_PARTS
    # Shorter passages share less, in proportion.
    return chunk_tokens * DEFAULT_CHUNK_OVERLAP // DEFAULT_CHUNK_TOKENS


def _check_dim(dim: int, model: Model) -> None:
    allowed = sorted({model.dim, *matryoshka_dims(model.card_json)})
    if dim and dim not in allowed:
        raise InvalidRequest(
            f"the model has no vectors of {dim} columns; it has {', '.join(map(str, allowed))}",
            field="dim",
        )


def matryoshka_dims(card_json: str) -> tuple[int, ...]:
    """Shorter dims that the card allows its vectors to be cut to."""
    card = json.loads(card_json) if card_json else {}
    return tuple(card.get("matryoshka_dims", ()))


def _check_limit(name: str, given: int, allowed: int) -> None:
    if given > allowed:
        raise LimitExceeded(
            f"{given} is above the limit {name} = {allowed}",
            limit=name,
            allowed=allowed,
            given=given,
        )
