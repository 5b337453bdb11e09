"""Domain types that every layer may use. Frozen, without behaviour."""

from dataclasses import dataclass
from enum import Enum

import numpy as np
from numpy.typing import NDArray

Float32Matrix = NDArray[np.float32]
Float64Vector = NDArray[np.float64]


class Kind(Enum):
    """What a collection stores for each passage."""

    SINGLE = "single"
    COLBERT = "colbert"


class Similarity(Enum):
    """How two vectors compare; larger scores are better in each."""

    COSINE = "cosine"
    DOT = "dot"
    L2 = "l2"


@dataclass(frozen=True, slots=True)
class ShardRef:
    """One shard of one generation of one collection.

    Attributes:
        collection: identity of the collection, 32 hex digits.
        generation: from 1.
        shard: 0 <= shard < shard count.
    """

    collection: str
    generation: int
    shard: int


@dataclass(frozen=True, slots=True)
class MissingShard:
    """A shard whose documents did not take part in an answer, and why (a reason
    of the error table).
    """

    shard: int
    reason: str


@dataclass(frozen=True, slots=True)
class Coverage:
    """How much of a collection stands behind an answer.

    Attributes:
        documents_total: documents of the collection.
        documents_covered: documents behind the shards that answered.
        shards_total: shards of the generation.
        shards_answered: shards that answered.
        missing: the others, ascending by number.
    """

    documents_total: int
    documents_covered: int
    shards_total: int
    shards_answered: int
    missing: tuple[MissingShard, ...] = ()

    @property
    def ratio(self) -> float:
        """Covered share of the documents, 0.0 to 1.0; 1.0 only if every shard answered."""
        if not self.missing:
            return 1.0
        if self.documents_total == 0:
            return self.shards_answered / self.shards_total
        return min(self.documents_covered / self.documents_total, 1.0 - 2.0**-53)


@dataclass(frozen=True, slots=True)
class Document:
    """What a user stores.

    Attributes:
        id: 1 to 512 bytes of UTF-8 without NUL.
        title: may be empty.
        text: may be empty when the document brings a vector.
        payload: a JSON object in UTF-8, or empty.
    """

    id: str
    title: str = ""
    text: str = ""
    payload: bytes = b""
