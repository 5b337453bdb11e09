"""Spans of items within the limits."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from shoal.client.slicing import ITEM_OVERHEAD_BYTES, BatchSlicer, ids_slicer, questions_slicer
from shoal.errors import LimitExceeded, Overloaded
from shoal.settings import Limits


def spans_of(slicer: BatchSlicer) -> list[tuple[int, int]]:
    spans = []
    while (span := slicer.next_span()) is not None:
        spans.append(span)
        slicer.advance(span[1])
    return spans


@given(st.lists(st.integers(0, 300), max_size=60), st.integers(1, 20), st.integers(1, 1000))
def test_spans_cover_everything_once_within_the_limits(sizes, max_items, max_bytes) -> None:
    spans = spans_of(BatchSlicer(sizes, max_items, max_bytes))
    assert [index for start, end in spans for index in range(start, end)] == list(range(len(sizes)))
    for start, end in spans:
        assert 1 <= end - start <= max_items
        total = sum(sizes[start:end]) + (end - start) * ITEM_OVERHEAD_BYTES
        assert total <= max_bytes or end - start == 1


@given(st.integers(1, 40), st.integers(1, 40))
def test_halving_ends_at_single_items(count, max_items) -> None:
    slicer = BatchSlicer([1] * count, max_items, 1 << 20)
    error = LimitExceeded("too large", limit="max_message_bytes")
    lengths = []
    while slicer.next_span() is not None and slicer.may_cut(error):
        start, end = slicer.next_span() or (0, 0)
        lengths.append(end - start)
        slicer.halve()
    assert lengths == sorted(set(lengths), reverse=True)
    assert slicer.next_span() == (0, 1)


def test_only_message_sizes_are_cut() -> None:
    slicer = BatchSlicer([1, 1], 2, 100)
    slicer.next_span()
    assert not slicer.may_cut(Overloaded("busy"))
    assert not slicer.may_cut(LimitExceeded("top_k", limit="max_top_k"))
    assert slicer.may_cut(LimitExceeded("size", limit="max_message_bytes"))


def test_limits_are_the_published_ones() -> None:
    limits = Limits(max_batch=3, max_ids=2, max_message_bytes=4096 + 1000)
    assert spans_of(ids_slicer(list("abcde"), limits)) == [(0, 2), (2, 4), (4, 5)]
    assert spans_of(questions_slicer(list("abcd"), limits)) == [(0, 3), (3, 4)]
    vectors = np.zeros((4, 100), np.float32)
    assert spans_of(questions_slicer(vectors, limits)) == [(0, 2), (2, 4)]
    assert spans_of(questions_slicer(["é" * 490, "a"], limits)) == [(0, 1), (1, 2)]
