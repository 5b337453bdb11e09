"""The sample: the same documents in the same order, however they are spread."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from shard_service.core.sampling import sample, token_count
from shard_service.core.source import token_sources
from shard_service.core.token_codec import ExactCodec
from shoal.ids import sample_rank
from tests.unit.late.test_invariance import DIM, Doc, view_of, vocabulary_of


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 25), st.integers(1, 30), st.integers(0, 2**32))
def test_pages_give_every_live_document_once_in_order(count: int, rows: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    vocabulary = vocabulary_of(rng, 4)
    documents = [Doc(b"%d" % key, rng, vocabulary) for key in rng.permutation(count)]
    dead = np.flatnonzero(rng.random(count) < 0.3).tolist()
    sources = token_sources(view_of(documents, ExactCodec(DIM), dead))
    expected = sorted(
        (document.id for number, document in enumerate(documents) if number not in dead),
        key=lambda key: (sample_rank(key), key),
    )
    found: list[bytes] = []
    while True:
        page = sample(sources, found[-1] if found else b"", rows)
        sizes = [token_count(sources[source], document) for source, document in page.places]
        assert sum(sizes) <= rows or len(sizes) == 1
        found += [sources[source].table.id(document) for source, document in page.places]
        if page.last:
            break
        assert page.places
    assert found == expected
