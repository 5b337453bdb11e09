"""How a stream of documents becomes batches for shards, within a window.

Documents of one shard keep their order, so that of two with one id the later
wins. Nothing here knows what a document holds.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Generic, TypeVar

Payload = TypeVar("Payload")


@dataclass(frozen=True, slots=True, kw_only=True)
class IngestOptions:
    """Bounds of one stream.

    Attributes:
        window_documents: documents unanswered from which reading stops.
        window_bytes: bytes unanswered from which reading stops.
        batch_documents: documents of one batch, at most.
        batch_bytes: bytes from which a batch is full; one document may exceed it.
        batches: batches under way at a time.
    """

    window_documents: int = 1_024
    window_bytes: int = 32 << 20
    batch_documents: int = 64
    batch_bytes: int = 1 << 20
    batches: int = 8


@dataclass(slots=True, eq=False)
class Item(Generic[Payload]):
    """A document on its way.

    Attributes:
        payload: the shell's own.
        id: bytes of the document's id.
        shard: that owns it.
        size: bytes that it counts for.
        again: an earlier version of the id is on its way in this stream, so what
            the shard holds now says nothing about what it will hold.
    """

    payload: Payload
    id: bytes
    shard: int
    size: int
    again: bool = False


@dataclass(slots=True, eq=False)
class Batch(Generic[Payload]):
    """Documents of one shard that travel together, in order.

    Attributes:
        shard: their owner.
        items: they.
        number: 0, 1, 2, ... within the shard; batches are written in this order.
    """

    shard: int
    items: list[Item[Payload]]
    number: int


@dataclass(slots=True)
class _Buffer(Generic[Payload]):
    items: list[Item[Payload]] = field(default_factory=list)
    size: int = 0
    batches: int = 0


class IngestPlanner(Generic[Payload]):
    """The documents of one stream.

    Args:
        options: bounds.
    """

    def __init__(self, options: IngestOptions) -> None:
        self._options = options
        self._buffers: dict[int, _Buffer[Payload]] = {}
        self._on_the_way: dict[bytes, int] = {}
        self._running = 0
        self._documents = self._bytes = 0

    @property
    def unanswered(self) -> tuple[int, int]:
        """(documents, bytes) read and not answered."""
        return self._documents, self._bytes

    @property
    def may_read(self) -> bool:
        """The window has room."""
        return (
            self._documents < self._options.window_documents
            and self._bytes < self._options.window_bytes
        )

    @property
    def idle(self) -> bool:
        """Every document has been answered."""
        return not self._documents

    def add(self, item: Item[Payload]) -> None:
        """A document was read."""
        earlier = self._on_the_way.get(item.id, 0)
        item.again = earlier > 0
        self._on_the_way[item.id] = earlier + 1
        self._documents += 1
        self._bytes += item.size
        buffer = self._buffers.setdefault(item.shard, _Buffer())
        buffer.items.append(item)
        buffer.size += item.size

    def start(self, flush: bool) -> list[Batch[Payload]]:
        """Batches to start now.

        Args:
            flush: half-full ones too, because nothing more comes for now.
        """
        started: list[Batch[Payload]] = []
        # The fullest go first, so that no shard's documents starve.
        for shard, buffer in sorted(self._buffers.items(), key=lambda each: -each[1].size):
            while buffer.items and self._running < self._options.batches:
                full = (
                    len(buffer.items) >= self._options.batch_documents
                    or buffer.size >= self._options.batch_bytes
                )
                if not full and not flush:
                    break
                started.append(self._cut(shard, buffer))
        return started

    def _cut(self, shard: int, buffer: _Buffer[Payload]) -> Batch[Payload]:
        size = count = 0
        for item in buffer.items[: self._options.batch_documents]:
            if count and size + item.size > self._options.batch_bytes:
                break
            size += item.size
            count += 1
        batch = Batch(shard, buffer.items[:count], buffer.batches)
        del buffer.items[:count]
        buffer.size -= size
        buffer.batches += 1
        self._running += 1
        return batch

    def done(self, batch: Batch[Payload]) -> None:
        """Every document of the batch was answered."""
        self._running -= 1
        for item in batch.items:
            self._documents -= 1
            self._bytes -= item.size
            self._on_the_way[item.id] -= 1
            if not self._on_the_way[item.id]:
                del self._on_the_way[item.id]


def stored_already(items: Iterable[Item[Payload]], unchanged: Iterable[bool]) -> set[bytes]:
    """Ids whose last version among the items is what the shard holds.

    After a write whose outcome is unknown these need no other attempt: writing
    an earlier version again would put it above the last one.
    """
    last = dict(zip((item.id for item in items), unchanged, strict=True))
    return {each for each, same in last.items() if same}
