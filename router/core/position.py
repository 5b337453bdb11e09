"""Positions: what a read must have seen, as an opaque token.

A token names a collection, a generation and a sequence number per shard. One
of an older generation is always reached: a generation serves only after it has
applied what the one before it had.
"""

import struct
from collections.abc import Sequence

from shoal.errors import InvalidRequest, PositionNotReached

_HEADER = struct.Struct("<B16sQI")
_FORMAT = 1


def encode_position(uuid: bytes, generation: int, sequences: Sequence[int]) -> bytes:
    """The token of a position; a shard whose position is unknown has 0."""
    header = _HEADER.pack(_FORMAT, uuid, generation, len(sequences))
    return header + struct.pack(f"<{len(sequences)}Q", *sequences)


def decode_position(
    token: bytes, uuid: bytes, generation: int, shard_count: int
) -> tuple[int, ...] | None:
    """Per shard, the sequence number that must have been applied.

    Returns:
        None if nothing is asked for.

    Raises:
        InvalidRequest: it is no token, or one of another collection.
        PositionNotReached: its generation is newer than the one that serves.
    """
    if not token:
        return None
    try:
        version, of, token_generation, count = _HEADER.unpack_from(token)
        sequences: tuple[int, ...] = struct.unpack_from(f"<{count}Q", token, _HEADER.size)
    except struct.error as error:
        raise InvalidRequest("after is no position of a reply", field="after") from error
    if version != _FORMAT or of != uuid or len(token) != _HEADER.size + 8 * count:
        raise InvalidRequest("after is no position of this collection", field="after")
    if token_generation > generation:
        raise PositionNotReached(
            f"generation {token_generation} is asked for, {generation} serves here yet"
        )
    if token_generation < generation:
        return None
    if count != shard_count:
        raise InvalidRequest("after is no position of this collection", field="after")
    return sequences
