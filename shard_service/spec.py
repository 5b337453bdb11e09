"""What a shard is, as the controller says it."""

from dataclasses import dataclass

from shoal.types import Kind, ShardRef, Similarity


@dataclass(frozen=True, slots=True)
class ShardSpec:
    """Immutable facts of a shard within its generation.

    Attributes:
        ref: collection, generation, shard.
        shard_count: shards of the generation.
        dim: columns of every vector.
        similarity: how vectors compare.
        fingerprint: of the collection's encoder; empty when users bring vectors.
        index: "auto", "flat", "hnsw" or "ivf-pq".
        kind: what is stored for each passage.
        codec: of kind colbert, the generation's; empty keeps vectors in fixed point.
    """

    ref: ShardRef
    shard_count: int
    dim: int
    similarity: Similarity
    fingerprint: str
    index: str
    kind: Kind = Kind.SINGLE
    codec: str = ""
