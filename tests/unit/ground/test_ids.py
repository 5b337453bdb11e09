"""Identity never changes: placements and digests are stored on disks."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal.errors import InvalidId, InvalidName, InvalidRequest
from shoal.ids import check_id, check_name, content_digest, id_hash, sample_rank, shard_of
from shoal.types import Document

IDS = st.binary(min_size=1, max_size=64)


@given(IDS, st.integers(1, 300))
def test_shard_owns_its_hash_range(document_id: bytes, shards: int) -> None:
    shard = shard_of(document_id, shards)
    assert shard << 64 <= id_hash(document_id) * shards < (shard + 1) << 64


@given(IDS, st.integers(1, 100))
def test_doubling_splits_every_shard_in_two(document_id: bytes, shards: int) -> None:
    assert shard_of(document_id, 2 * shards) // 2 == shard_of(document_id, shards)


def test_hashes_are_the_published_ones() -> None:
    assert id_hash(b"") == 0x2D06800538D394C2  # XXH3_64bits of nothing, seed 0
    assert sample_rank(b"a") != id_hash(b"a")


@pytest.mark.parametrize("bad", ["", "a\0b", "x" * 513, "é" * 257])
def test_bad_ids_are_refused(bad: str) -> None:
    with pytest.raises(InvalidId):
        check_id(bad)


def test_longest_id_is_taken() -> None:
    assert check_id("é" * 256) == ("é" * 256).encode()


@pytest.mark.parametrize("bad", ["", "A", "-a", "a/b", "..", "a" * 65, "a\n"])
def test_bad_names_are_refused(bad: str) -> None:
    with pytest.raises(InvalidName):
        check_name(bad)


@given(st.text(max_size=5), st.text(max_size=5), st.text(max_size=5))
def test_digest_keeps_fields_apart(title: str, text: str, other: str) -> None:
    one = content_digest(Document("a", title, text))
    two = content_digest(Document("a", title + other, text))
    three = content_digest(Document("a", title, other + text))
    if other:
        assert one not in (two, three)
        assert two != three or title + other == title
    else:
        assert one == two == three


def test_lone_surrogates_are_refused() -> None:
    with pytest.raises(InvalidRequest):
        content_digest(Document("a", text="\ud800"))
