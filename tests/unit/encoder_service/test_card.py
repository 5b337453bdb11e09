"""A fingerprint changes exactly with what can change a vector."""

import dataclasses
import json

import pytest

from encoder_service.core.card import Card, DenseLayer, Pooling, TokenRules, card_json, fingerprint
from shoal.errors import InvalidRequest
from shoal.types import Similarity

DENSE = DenseLayer(weights_sha256="d", in_features=4, out_features=4, bias=True, activation="tanh")
CARD = Card(
    weights_sha256="w",
    tokenizer_sha256="t",
    config_sha256="c",
    architecture="BertModel",
    lowercase=False,
    pooling=Pooling.MEAN,
    dense=(DENSE,),
    normalize=True,
    query_prompt="query: ",
    document_prompt="passage: ",
    max_query_tokens=64,
    max_document_tokens=256,
    dim=4,
    matryoshka_dims=(2,),
    similarity=Similarity.COSINE,
    licence="apache-2.0",
    source="a/model",
    revision="0" * 40,
)
RULES = TokenRules(
    query_marker="[Q] ",
    document_marker="[D] ",
    query_expansion=32,
    attend_to_expansion=False,
    skip=(".",),
)
TOKEN_FIELDS = {
    "query_marker": "",
    "document_marker": "",
    "query_expansion": 0,
    "attend_to_expansion": True,
    "skip": (),
}
VECTOR_FIELDS: dict[str, object] = {
    "weights_sha256": "x",
    "tokenizer_sha256": "x",
    "config_sha256": "x",
    "architecture": "MPNetModel",
    "lowercase": True,
    "pooling": Pooling.CLS,
    "dense": (dataclasses.replace(DENSE, activation="relu"),),
    "normalize": False,
    "query_prompt": "query:",
    "document_prompt": "",
    "max_query_tokens": 65,
    "max_document_tokens": 255,
    "dim": 5,
    "tokens": RULES,
}
OTHER_FIELDS = {
    "matryoshka_dims": (),
    "similarity": Similarity.DOT,
    "licence": "mit",
    "source": "b/model",
    "revision": "",
}


def test_every_field_is_of_one_kind() -> None:
    assert {field.name for field in dataclasses.fields(Card)} == VECTOR_FIELDS.keys() | OTHER_FIELDS


@pytest.mark.parametrize(("name", "value"), VECTOR_FIELDS.items())
def test_what_changes_a_vector_changes_the_fingerprint(name: str, value: object) -> None:
    assert fingerprint(dataclasses.replace(CARD, **{name: value})) != fingerprint(CARD)


@pytest.mark.parametrize(("name", "value"), TOKEN_FIELDS.items())
def test_every_token_rule_changes_the_fingerprint(name: str, value: object) -> None:
    card = dataclasses.replace(CARD, tokens=RULES)
    other = dataclasses.replace(CARD, tokens=dataclasses.replace(RULES, **{name: value}))
    assert fingerprint(other) != fingerprint(card)


@pytest.mark.parametrize(("name", "value"), OTHER_FIELDS.items())
def test_nothing_else_does(name: str, value: object) -> None:
    changed = dataclasses.replace(CARD, **{name: value})
    assert fingerprint(changed) == fingerprint(CARD)
    assert card_json(changed) != card_json(CARD)


def test_the_json_is_canonical() -> None:
    text = card_json(CARD)
    assert text == json.dumps(json.loads(text), sort_keys=True, separators=(",", ":"))
    assert text.isascii()


def test_the_fingerprint_of_a_card_is_the_same_in_every_release() -> None:
    """Stored collections are bound to it: a change needs a new CARD_VERSION."""
    expected = "f03e42a04b095bea15a8ae1ac7c4c53569175e0a938744aced419de5d0feee55"
    assert fingerprint(CARD) == expected


def test_only_offered_dims_are_served() -> None:
    assert [CARD.columns(dim) for dim in (0, 2, 4)] == [4, 2, 4]
    with pytest.raises(InvalidRequest, match="2, 4"):
        CARD.columns(3)
