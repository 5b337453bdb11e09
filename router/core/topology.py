"""The map of the cluster as routers use it. The higher version wins."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from shoal.types import Kind, Similarity

EXHAUSTIVE = "exhaustive"
"""The effort of a search that scores every document."""
_CALIBRATED_FOR = 10
"""Hits of the answers for which efforts are calibrated."""


@dataclass(frozen=True, slots=True)
class Effort:
    """How much of a generation a late-interaction query looks at.

    Attributes:
        probes: centroids of each query token that count by their own similarity.
        refined: documents that are scored by their codes; 0 scores every one.
        tokens: of the questions that it was calibrated with, for their 10 best documents.
        scan_from: refined documents from which scoring every one is cheaper.
    """

    probes: int = 0
    refined: int = 0
    tokens: int = 0
    scan_from: int = 0

    def fitted(self, top_k: int, tokens: int) -> Effort:
        """It for a question of so many tokens, 1 or more, and so many hits.

        Deeper hits lie deeper by centroids too; and the fewer tokens a question has, the more
        documents are about as near to it.
        """
        if not self.refined:
            return self
        shorter = max(1.0, self.tokens / tokens)
        refined = math.ceil(self.refined * -(-top_k // _CALIBRATED_FOR) * shorter)
        if refined >= self.scan_from:
            return Effort()
        return replace(self, refined=refined)


@dataclass(frozen=True, slots=True)
class CollectionMap:
    """A collection and where its serving generation is.

    Attributes:
        name: the user's name for it.
        uuid: identity, 16 bytes.
        generation: the one that serves.
        kind: what is stored for each passage.
        similarity: how vectors compare.
        dim: columns of a vector.
        encoder_dim: columns to ask the encoder for; 0 is all that it has.
        fingerprint: of the encoder's card; empty when users bring vectors.
        chunk_tokens: tokens of text in one passage; 0 turns chunking off.
        chunk_overlap: tokens that neighbouring passages share.
        servers: per shard, names of the servers that hold it; the first may write.
        documents: per shard, documents as last published.
        efforts: kind colbert: by name, as calibrated; none where every search is
            exhaustive.
        handed_over: per generation whose documents came to be in this one, the positions
            of its shards when they did.
        pool_factor: kind colbert: encoded vectors of a passage that become one; 1 keeps all.
    """

    name: str
    uuid: bytes
    generation: int
    kind: Kind
    similarity: Similarity
    dim: int
    encoder_dim: int
    fingerprint: str
    chunk_tokens: int
    chunk_overlap: int
    servers: tuple[tuple[str, ...], ...]
    documents: tuple[int, ...]
    efforts: Mapping[str, Effort] = field(default_factory=dict)
    handed_over: Mapping[int, tuple[int, ...]] = field(default_factory=dict)
    pool_factor: int = 1

    @property
    def lane(self) -> tuple[bytes, int]:
        """Names the generation among all collections'."""
        return self.uuid, self.generation

    @property
    def shard_count(self) -> int:
        """Shards of the generation."""
        return len(self.servers)


@dataclass(frozen=True, slots=True)
class TopologyMap:
    """Where everything is.

    Attributes:
        version: only grows; 0 is "none known".
        addresses: host:port of each server and encoder by name.
        encoders: names of the encoder workers that serve a fingerprint.
        collections: by name.
    """

    version: int = 0
    addresses: Mapping[str, str] = field(default_factory=dict)
    encoders: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    collections: Mapping[str, CollectionMap] = field(default_factory=dict)


def newer(current: TopologyMap, candidate: TopologyMap) -> bool:
    """Whether the candidate replaces the current map."""
    return candidate.version > current.version
