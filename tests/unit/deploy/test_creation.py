"""What becomes of a wish for a collection."""

import dataclasses

import pytest

from deploy.core.creation import Bounds, Model, Wish, check_wish, settle
from shoal.errors import InvalidName, InvalidRequest, LimitExceeded, ShoalError
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
        (Wish(name="a", code_bytes=8), InvalidRequest),
        (Wish(name="a", train_at=8), InvalidRequest),
        (Wish(name="a", kind=Kind.COLBERT, code_bytes=5), InvalidRequest),
        (Wish(name="a", kind=Kind.COLBERT, index="hnsw"), InvalidRequest),
        (Wish(name="a", kind=Kind.COLBERT, similarity=Similarity.L2), InvalidRequest),
        (Wish(name="a", index="lsh"), InvalidRequest),
        (Wish(name="a", encoder="none"), InvalidRequest),
        (Wish(name="a", encoder="none", dim=8, chunk_tokens=9), InvalidRequest),
        (Wish(name="a", encoder="none", dim=1025), LimitExceeded),
        (Wish(name="a", shards=9), LimitExceeded),
        (Wish(name="a", pool_factor=2), InvalidRequest),
        (Wish(name="a", kind=Kind.COLBERT, pool_factor=4), InvalidRequest),
        (Wish(name="a", kind=Kind.COLBERT, encoder="none", dim=8, pool_factor=2), InvalidRequest),
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


def test_colbert_wants_an_encoder_of_token_vectors() -> None:
    wish = check_wish(Wish(name="a", kind=Kind.COLBERT), BOUNDS)
    with pytest.raises(InvalidRequest, match="one vector per text"):
        settle(wish, MODEL)
    model = dataclasses.replace(
        MODEL, token_vectors=True, dim=96, card_json="", similarity=Similarity.DOT
    )
    settled = settle(wish, model)
    assert (settled.encoder, settled.dim, settled.code_bytes, settled.train_at) == (
        "all-minilm-l6-v2-tokens",
        96,
        8,
        2_000_000,
    )
    assert (settled.chunk_tokens, settled.chunk_overlap) == (256, 32)
    assert settled.similarity is Similarity.COSINE


def test_code_bytes_divide_the_columns() -> None:
    wish = Wish(name="a", kind=Kind.COLBERT, encoder="none", dim=100, code_bytes=8)
    with pytest.raises(InvalidRequest, match="use 4"):
        settle(check_wish(wish, BOUNDS), None)


def test_passages_fit_the_model() -> None:
    def chunked(tokens: int) -> tuple[int, int]:
        settled = settle(check_wish(Wish(name="a", chunk_tokens=tokens), BOUNDS), MODEL)
        return settled.chunk_tokens, settled.chunk_overlap

    assert chunked(0) == (0, 0)
    assert chunked(64) == (64, 16)
    assert chunked(1) == (1, 0)
    with pytest.raises(InvalidRequest, match="256"):
        chunked(257)
