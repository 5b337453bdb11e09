"""Cutting many items into messages that the cluster's limits allow. Pure."""

from collections.abc import Sequence

import numpy as np

from shoal.client.requests import Questions
from shoal.errors import ShoalError
from shoal.settings import Limits

# What protobuf and the rest of a request add, generously.
ITEM_OVERHEAD_BYTES = 16
MESSAGE_OVERHEAD_BYTES = 4096


class BatchSlicer:
    """Walks over items in spans that are bounded by count and by bytes.

    A single item above the bytes still gets a span of its own: the cluster
    refuses it by name.
    """

    def __init__(self, sizes: Sequence[int], max_items: int, max_bytes: int) -> None:
        self._sizes = sizes
        self._max_items = max(1, max_items)
        self._max_bytes = max_bytes
        self._start = 0
        self._end = 0

    def next_span(self) -> tuple[int, int] | None:
        """The next (start, end), or None at the end of the items."""
        if self._start >= len(self._sizes):
            return None
        end, total = self._start, 0
        last = min(len(self._sizes), self._start + self._max_items)
        while end < last:
            total += self._sizes[end] + ITEM_OVERHEAD_BYTES
            if total > self._max_bytes and end > self._start:
                break
            end += 1
        self._end = end
        return self._start, end

    def advance(self, end: int) -> None:
        """The items before `end` are done."""
        self._start = end

    def halve(self) -> None:
        """From now on at most half as many items as in the last span, rounded up."""
        self._max_items = (self._end - self._start + 1) // 2

    def may_cut(self, error: ShoalError) -> bool:
        """A smaller span may go through where the last one failed so."""
        return self.is_message_size(error) and self._end - self._start > 1

    @staticmethod
    def is_message_size(error: ShoalError) -> bool:
        """A request or a reply was larger than one message may be."""
        return error.metadata.get("limit") == "max_message_bytes"


def ids_slicer(ids: Sequence[str], limits: Limits) -> BatchSlicer:
    """Cuts the ids of a Get or Delete."""
    sizes = [len(document_id.encode()) for document_id in ids]
    return BatchSlicer(sizes, limits.max_ids, limits.max_message_bytes - MESSAGE_OVERHEAD_BYTES)


def questions_slicer(questions: Questions, limits: Limits) -> BatchSlicer:
    """Cuts the questions of a batch."""
    if isinstance(questions, np.ndarray):
        row_bytes = questions.shape[1] * questions.itemsize
        sizes = [row_bytes] * len(questions)
    else:
        sizes = [len(each.encode()) if isinstance(each, str) else each.nbytes for each in questions]
    return BatchSlicer(sizes, limits.max_batch, limits.max_message_bytes - MESSAGE_OVERHEAD_BYTES)
