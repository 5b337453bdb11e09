"""What becomes of a wish for a collection."""

import dataclasses

import pytest

from deploy.core.creation import Bounds, Model, Wish, check_wish, settle
from shoal.errors import InvalidName, InvalidRequest, LimitExceeded, NotSupported, ShoalError
from shoal.types import Kind, Similarity

BOUNDS = Bounds(max_dim=1024, max_shards=8, default_shards=3)
MODEL = Model(
    fingerprint="f" * 64,
    card_json='{"matryoshka_dims":[64,128]}',
    dim=384,
    similarity=Similarity.DOT,
    max_document_tokens=256,
)


@pytest.mark.parametrize(
    ("wish", "error"),
    [
        (Wish(name="No!"), InvalidName),
        (Wish(name="a", kind=Kind.COLBERT), NotSupported),
        (Wish(name="a", index="lsh"), InvalidRequest),
        (Wish(name="a", encoder="none"), InvalidRequest),
        (Wish(name="a", encoder="none", dim=8, chunk_tokens=9), InvalidRequest),
        (Wish(name="a", encoder="none", dim=1025), LimitExceeded),
        (Wish(name="a", shards=9), LimitExceeded),
    ],
)
def test_refusals_that_need_no_model(wish: Wish, error: type[ShoalError]) -> None:
    with pytest.raises(error):
        check_wish(wish, BOUNDS)


def test_defaults_come_from_the_model() -> None:
    settled = settle(check_wish(Wish(name="a"), BOUNDS), MODEL)
    assert (settled.dim, settled.similarity, settled.shards) == (384, Similarity.DOT, 3)
    assert (settled.index, settled.encoder) == ("auto", "all-minilm-l6-v2")
    assert 0 < settled.chunk_overlap < settled.chunk_tokens <= 256


def test_own_vectors_compare_by_cosine_and_are_not_chunked() -> None:
    settled = settle(check_wish(Wish(name="a", encoder="none", dim=8), BOUNDS), None)
    assert (settled.dim, settled.similarity) == (8, Similarity.COSINE)
    assert (settled.chunk_tokens, settled.chunk_overlap, settled.fingerprint) == (0, 0, "")


def test_dims_are_the_cards() -> None:
    assert settle(check_wish(Wish(name="a", dim=64), BOUNDS), MODEL).dim == 64
    with pytest.raises(InvalidRequest, match="64, 128, 384"):
        settle(check_wish(Wish(name="a", dim=65), BOUNDS), MODEL)


def test_an_encoder_of_token_vectors_is_none_of_a_single_collection() -> None:
    model = dataclasses.replace(MODEL, token_vectors=True)
    with pytest.raises(InvalidRequest, match="one vector per token"):
        settle(check_wish(Wish(name="a"), BOUNDS), model)


def test_passages_fit_the_model() -> None:
    def chunked(tokens: int) -> tuple[int, int]:
        settled = settle(check_wish(Wish(name="a", chunk_tokens=tokens), BOUNDS), MODEL)
        return settled.chunk_tokens, settled.chunk_overlap

    assert chunked(0) == (0, 0)
    assert chunked(64) == (64, 16)
    assert chunked(1) == (1, 0)
    with pytest.raises(InvalidRequest, match="256"):
        chunked(257)
