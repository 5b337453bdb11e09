"""The codec: exact codes and similarities, whatever the company; training; damage."""

import math
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shard_service.core.codec import Codec, codec, from_bytes, rotated
from shard_service.indexes.codec import centroid_count, rotation, spaced, train
from shoal.kernels import maxsim
from shoal.kernels.fixed import ONE, to_fixed
from shoal.kernels.maxsim import CodedRuns, Tables
from shoal.types import Float32Matrix


def unit(rng: np.random.Generator, count: int, dim: int) -> np.ndarray:
    rows = rng.standard_normal((count, dim)) + rng.standard_normal(dim)
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def similarities(tables: Tables, runs: CodedRuns) -> np.ndarray:
    """[tokens, query tokens], each token as a document of its own."""
    alone = CodedRuns(runs.ids, runs.codes, np.arange(len(runs.ids) + 1), runs.norms)
    found = maxsim.match_coded(tables, alone, np.arange(len(runs.ids))).similarities
    return found.astype(float)


def random_codec(rng: np.random.Generator, count: int, dim: int, subspaces: int) -> Codec:
    centroids = to_fixed(unit(rng, count, dim))
    turn = np.linalg.qr(rng.standard_normal((dim, dim)))[0]
    words = rng.integers(-ONE // 4, ONE // 4, (subspaces, 256, dim // subspaces))
    return codec(centroids, to_fixed(turn), words.astype(np.int16))


def held_by(quantiser: Codec, vectors: np.ndarray, offsets: list[int]) -> CodedRuns:
    codes = quantiser.encode(vectors)
    return CodedRuns(codes.centroids, codes.words, np.array(offsets), codes.norms)


@settings(max_examples=40, deadline=None)
@given(
    st.integers(1, 30),
    st.integers(1, 20),
    st.sampled_from([(8, 1), (8, 4), (8, 8), (12, 4), (96, 32)]),
    st.integers(0, 2**32),
)
def test_codes_are_the_nearest_by_plain_integers(
    tokens: int, count: int, shape: tuple[int, int], seed: int
) -> None:
    dim, subspaces = shape
    rng = np.random.default_rng(seed)
    quantiser = random_codec(rng, count, dim, subspaces)
    vectors = unit(rng, tokens, dim)
    codes = quantiser.encode(vectors)
    for token, row in enumerate(to_fixed(vectors).astype(int)):
        far = [sum((row - each) ** 2) for each in quantiser.centroids.astype(int)]
        assert codes.centroids[token] == far.index(min(far))
        rest = row - quantiser.centroids[codes.centroids[token]]
        turned = [
            (sum(int(a) * int(b) for a, b in zip(axis, rest, strict=True)) + ONE // 2) // ONE
            for axis in quantiser.rotation
        ]
        stands = rotated(quantiser.centroids, quantiser.rotation)[codes.centroids[token]]
        chosen = []
        for j, part in enumerate(np.split(np.array(turned), subspaces)):
            far = [sum((part - word) ** 2) for word in quantiser.words[j].astype(int)]
            assert codes.words[token, j] == far.index(min(far))
            chosen += quantiser.words[j, codes.words[token, j]].tolist()
        length = math.sqrt(sum((int(a) + b) ** 2 for a, b in zip(stands, chosen, strict=True)))
        step = round((ONE * ONE / max(length, 1) - 12_288) / 80)
        assert codes.norms[token] == min(max(step, 0), 255)


@settings(max_examples=40, deadline=None)
@given(
    st.integers(1, 40), st.sampled_from([(8, 1), (8, 4), (96, 8), (96, 32)]), st.integers(0, 2**32)
)
def test_similarities_are_the_scaled_products_and_fit(
    tokens: int, shape: tuple[int, int], seed: int
) -> None:
    dim, subspaces = shape
    rng = np.random.default_rng(seed)
    quantiser = random_codec(rng, 9, dim, subspaces)
    documents, query = unit(rng, 50, dim), unit(rng, tokens, dim)
    tables = quantiser.tables(to_fixed(query))  # raises where sums might not fit
    found = similarities(tables, held_by(quantiser, documents, [0, 50])) * quantiser.unit
    exact = quantiser.decode(quantiser.encode(documents)) @ query.T
    np.testing.assert_allclose(found, exact, atol=(subspaces + 2) * quantiser.unit + 1e-3)
    assert math.log2(quantiser.unit).is_integer()


@pytest.mark.parametrize("subspaces", [4, 8])
def test_codes_do_not_depend_on_the_company(subspaces: int) -> None:
    rng = np.random.default_rng(subspaces)
    vectors = unit(rng, 3_000, 32)
    quantiser = train(vectors[:2_000], subspaces)
    together = quantiser.encode(vectors)
    order = rng.permutation(len(vectors))
    shuffled = quantiser.encode(vectors[order])
    assert (shuffled.centroids == together.centroids[order]).all()
    assert (shuffled.words == together.words[order]).all()
    assert (shuffled.norms == together.norms[order]).all()
    alone = [quantiser.encode(vectors[at : at + 1]) for at in range(0, 3_000, 331)]
    assert [int(each.centroids[0]) for each in alone] == together.centroids[::331].tolist()
    assert [each.words[0].tolist() for each in alone] == together.words[::331].tolist()


def test_the_same_sample_gives_the_same_name_and_more_bytes_less_error() -> None:
    rng = np.random.default_rng(1)
    vectors = unit(rng, 4_000, 32)
    errors = []
    for subspaces in (1, 4, 8, 16):
        quantiser = train(vectors, subspaces)
        assert train(vectors.copy(), subspaces).name == quantiser.name
        decoded = quantiser.decode(quantiser.encode(vectors))
        errors.append(float(np.square(decoded - vectors).sum(axis=1).mean()))
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < errors[0] / 3
    assert train(vectors[1:], 4).name != train(vectors, 4).name


@pytest.mark.parametrize("tokens", [1, 2, 10, 255, 256, 300])
def test_small_samples_train_and_score(tokens: int) -> None:
    rng = np.random.default_rng(tokens)
    vectors = unit(rng, tokens, 16)
    quantiser = train(vectors, 4)
    assert len(quantiser.centroids) == centroid_count(tokens)
    query = quantiser.tables(to_fixed(vectors[:1]))
    scores = maxsim.score_coded(query, held_by(quantiser, vectors, [0, tokens]), np.array([0]))
    assert scores[0] * quantiser.unit == pytest.approx(1.0, abs=0.1)


@settings(max_examples=25, deadline=None)
@given(
    st.sampled_from([(1, 1), (2, 1), (3, 3), (6, 2), (8, 8)]),
    st.integers(1, 400),
    st.integers(1, 5),
    st.integers(0, 2**32),
)
def test_any_tokens_train_and_stand_for_themselves(
    shape: tuple[int, int], tokens: int, distinct: int, seed: int
) -> None:
    """As many words as there are different tokens: nothing is lost but by rounding."""
    rng = np.random.default_rng(seed)
    dim, code_bytes = shape
    vectors = unit(rng, distinct, dim)[rng.integers(0, distinct, tokens)]
    quantiser = train(vectors, code_bytes)
    again = from_bytes(quantiser.to_bytes())
    assert again.name == quantiser.name == train(vectors, code_bytes).name
    decoded = again.decode(again.encode(vectors))
    assert (np.linalg.norm(decoded, axis=1) < 1.01).all()
    if tokens < 256:
        np.testing.assert_allclose(decoded, vectors, atol=0.01)


@settings(max_examples=40, deadline=None)
@given(
    st.sampled_from([(1, 1), (8, 2), (12, 4), (96, 8), (96, 32)]),
    st.integers(1, 300),
    st.integers(0, 2**32),
)
def test_a_rotation_is_orthonormal_and_shares_the_variance(
    shape: tuple[int, int], tokens: int, seed: int
) -> None:
    dim, parts = shape
    rng = np.random.default_rng(seed)
    scales = 2.0 ** rng.integers(0, 13, dim)
    rest = np.rint(rng.standard_normal((tokens, dim)) * scales).astype(np.int32)
    turn = rotation(rest, parts)
    np.testing.assert_allclose(turn @ turn.T, np.eye(dim), atol=1e-9)
    assert (rotation(rest, parts) == turn).all()
    variances = np.square(rest @ turn.T).mean(axis=0)
    weights = np.log(np.maximum(variances, 1)).reshape(parts, -1)
    # No part is ahead by more than a direction or two.
    assert np.ptp(weights.sum(axis=1)) <= 2 * weights.max() + 1e-6


def test_bytes_come_back_and_any_damage_is_refused() -> None:
    rng = np.random.default_rng(2)
    quantiser = random_codec(rng, 3, 8, 4)
    data = quantiser.to_bytes()
    again = from_bytes(data)
    assert again.name == quantiser.name
    assert again.factor == quantiser.factor
    for at in range(0, len(data), 97):
        damaged = bytearray(data)
        damaged[at] ^= 1 << at % 8
        with pytest.raises(ValueError, match="damaged"):
            from_bytes(bytes(damaged))
    for cut in (0, 10, len(data) - 1):
        with pytest.raises(ValueError, match="damaged"):
            from_bytes(data[:cut])


def test_what_is_no_codec_or_no_vector_is_refused() -> None:
    with pytest.raises(ValueError, match="4, 8, 16, 32"):
        train(np.ones((4, 96), np.float32) / 10, 7)
    for wrong in (np.nan, np.inf, 2.5):
        with pytest.raises(ValueError, match="NaN"):
            to_fixed(np.array([[wrong]], np.float32))
    quantiser = random_codec(np.random.default_rng(0), 3, 8, 4)
    with pytest.raises(ValueError, match="longer than 1"):
        quantiser.tables(np.full((1, 8), ONE, np.int16))


def far(quantiser: Codec, vectors: Float32Matrix) -> int:
    return quantiser.far(vectors, quantiser.encode(vectors).centroids)


def test_far_tokens_are_those_beyond_three_in_four_of_the_sample() -> None:
    rng = np.random.default_rng(6)
    vectors = unit(rng, 4_000, 32)
    quantiser = train(vectors, 4)
    assert far(quantiser, vectors) == pytest.approx(1_000, abs=20)
    elsewhere = -vectors[:500]
    assert far(quantiser, elsewhere) > 450


def test_a_factor_that_is_too_large_is_refused() -> None:
    quantiser = random_codec(np.random.default_rng(0), 3, 8, 4)
    arrays = (quantiser.centroids, quantiser.rotation, quantiser.words)
    with pytest.raises(ValueError, match="factor"):
        codec(*arrays, factor=2 * quantiser.factor)
    with pytest.raises(ValueError, match="factor"):
        codec(*arrays, factor=quantiser.factor - 1)


@given(st.lists(st.integers(0, 20), max_size=30), st.integers(1, 5))
def test_a_sample_has_every_nth_token_however_documents_are_cut(
    lengths: list[int], every: int
) -> None:
    tokens = np.arange(sum(lengths), dtype=np.int16)[:, np.newaxis]
    ends = np.cumsum([0, *lengths])
    kept = [spaced(tokens[begin:end], int(begin), every) for begin, end in pairwise(ends)]
    assert np.concatenate([tokens[:0], *kept]).tolist() == tokens[::every].tolist()
