"""The two cuts of late interaction by their definition."""

from collections.abc import Sequence


def cut(
    scored: Sequence[tuple[bytes, int, int, int]], refined: int, top_k: int
) -> list[tuple[bytes, int, int]]:
    """The best K of the B documents that come first, by (score descending, id ascending).

    Args:
        scored: (id, centroid score, score, passage), in any order.
        refined: B.
        top_k: K.
    """
    counted = sorted(scored, key=lambda each: (-each[1], each[0]))[:refined]
    counted.sort(key=lambda each: (-each[2], each[0]))
    return [(key, score, passage) for key, _, score, passage in counted[:top_k]]
