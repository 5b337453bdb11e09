"""Vectors of questions asked lately."""

from collections import OrderedDict
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class CacheKey:
    """Everything that decides a question's vector.

    Attributes:
        fingerprint: of the encoder's card (it fixes the query prompt).
        precision: that the encoder computes in.
        side: "query" or "document".
        text: exact bytes.
        dim: columns kept; 0 is all.
    """

    fingerprint: str
    precision: str
    side: str
    text: bytes
    dim: int


@dataclass(frozen=True, slots=True)
class CacheEntry:
    """An encoded question.

    Attributes:
        vector: little-endian float32.
        truncated: its text was cut, so only requests that allow this may use it.
    """

    vector: bytes
    truncated: bool


class QueryCache:
    """Least recently used goes first. Not thread-safe.

    Args:
        entries: most entries held; 0 holds none.
        text_bytes: texts longer than this are not held.
    """

    def __init__(self, entries: int, text_bytes: int = 4_096) -> None:
        self._entries = entries
        self._text_bytes = text_bytes
        self._held: OrderedDict[CacheKey, CacheEntry] = OrderedDict()

    def __len__(self) -> int:
        return len(self._held)

    def get(self, key: CacheKey) -> CacheEntry | None:
        """The entry, which is now the most recently used one."""
        entry = self._held.get(key)
        if entry is not None:
            self._held.move_to_end(key)
        return entry

    def put(self, key: CacheKey, entry: CacheEntry) -> None:
        """Holds an entry."""
        if self._entries <= 0 or len(key.text) > self._text_bytes:
            return
        self._held[key] = entry
        self._held.move_to_end(key)
        if len(self._held) > self._entries:
            self._held.popitem(last=False)
