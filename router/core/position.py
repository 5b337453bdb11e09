"""Positions: what a read must have seen, as an opaque token.

A token names a collection, a generation and a sequence number per shard. One of another
generation is reached if that one handed its documents over later than that.
"""

import struct
from collections.abc import Sequence

from router.core.topology import CollectionMap
from shoal.errors import InvalidRequest, PositionNotReached

_HEADER = struct.Struct("<B16sQI")
_FORMAT = 1


def encode_position(uuid: bytes, generation: int, sequences: Sequence[int]) -> bytes:
    """The token of a position; a shard whose position is unknown has 0."""
    header = _HEADER.pack(_FORMAT, uuid, generation, len(sequences))
    return header + struct.pack(f"<{len(sequences)}Q", *sequences)


def decode_position(token: bytes, collection: CollectionMap) -> tuple[int, ...] | None:
    """Per shard, the sequence number that must have been applied.

    Returns:
        None if nothing is asked for, or what is asked for came from another generation.

    Raises:
        InvalidRequest: it is no token, or one of another collection.
        PositionNotReached: it is of a generation that did not hand that over to this one:
            a newer one, or one that was gone back from or written to again.
    """
    if not token:
        return None
    try:
        version, of, generation, count = _HEADER.unpack_from(token)
        sequences: tuple[int, ...] = struct.unpack_from(f"<{count}Q", token, _HEADER.size)
    except struct.error as error:
        raise InvalidRequest("after is no position of a reply", field="after") from error
    if version != _FORMAT or of != collection.uuid or len(token) != _HEADER.size + 8 * count:
        raise InvalidRequest("after is no position of this collection", field="after")
    if generation == collection.generation:
        if count != collection.shard_count:
            raise InvalidRequest("after is no position of this collection", field="after")
        return sequences
    received = collection.handed_over.get(generation, ())
    reached = len(received) == count and all(
        asked <= given for asked, given in zip(sequences, received, strict=True)
    )
    if not reached:
        raise PositionNotReached(
            f"generation {collection.generation} serves, and does not hold what was asked of "
            f"generation {generation}"
        )
    return None
