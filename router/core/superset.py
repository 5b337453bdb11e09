"""The two cuts of late interaction: at B by centroid scores, then at K by full scores.

Each shard sends the first B of its own documents by (centroid score descending, id ascending),
all of them. The first B of all shards are then the first B of the whole, whatever the split; only
after that cut may full scores decide. A shard that cut at K by full scores could displace a
document that counts by one that does not. Source: DESIGN, section 10.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class LateHit:
    """A refined document.

    Attributes:
        id: its id's bytes.
        centroid_score: by which it was refined.
        score: by its codes.
        shard: that holds it.
    """

    id: bytes
    centroid_score: int
    score: int
    shard: int


def cut(parts: Iterable[Sequence[LateHit]], refined: int, top_k: int) -> list[LateHit]:
    """The best K of the B documents that come first, by (score descending, id ascending).

    Args:
        parts: what each shard refined, in any order.
        refined: B, 1 or more.
        top_k: K, 1 or more.
    """
    everything = [hit for part in parts for hit in part]
    everything.sort(key=lambda hit: (-hit.centroid_score, hit.id))
    counted = everything[:refined]
    counted.sort(key=lambda hit: (-hit.score, hit.id))
    return counted[:top_k]
