"""Which server holds which shard: level by bytes, deterministic, few moves."""

from collections.abc import Mapping, Sequence

from shoal.types import ShardRef

_LEVEL = 0.1
"""Servers whose loads differ by this share of the larger are level."""
_GAIN = 0.1
"""A move must make the fuller server emptier by this share of what is moved."""


def place(
    shards: Sequence[ShardRef],
    servers: Sequence[str],
    current: Mapping[ShardRef, str],
    sizes: Mapping[ShardRef, int],
    pinned: frozenset[ShardRef] = frozenset(),
) -> dict[ShardRef, str]:
    """Gives every shard a server.

    A shard whose server is not one of `servers` goes to the one with the least bytes,
    large ones first. Then shards that are not pinned move from the fullest server to the
    emptiest, each time the one that levels the two most, until the two are level or no
    move is worth its bytes.

    Args:
        shards: all shards, in a fixed order.
        servers: names of the servers that should run; none leaves every shard
            where it is.
        current: where shards were placed last.
        sizes: bytes by shard; what is not there is small.
        pinned: shards that are open now: moving one would interrupt it.

    Returns:
        A server for every shard; empty without servers.
    """
    if not servers:
        return {}
    loads = _Loads(servers, sizes)
    homeless = []
    for shard in shards:
        if current.get(shard) in loads.held:
            loads.put(shard, current[shard])
        else:
            homeless.append(shard)
    for shard in sorted(homeless, key=lambda shard: -loads.size(shard)):
        loads.put(shard, loads.emptiest(shard))
    while (step := loads.levelling(pinned)) is not None:
        loads.take(*step[:2])
        loads.put(step[0], step[2])
    return {shard: server for server, group in loads.held.items() for shard in group}


class _Loads:
    """What each server holds while shards are placed."""

    def __init__(self, servers: Sequence[str], sizes: Mapping[ShardRef, int]) -> None:
        self._sizes, self._order = sizes, {name: place for place, name in enumerate(servers)}
        self._bytes = dict.fromkeys(servers, 0)
        self.held: dict[str, list[ShardRef]] = {server: [] for server in servers}

    def size(self, shard: ShardRef) -> int:
        """Bytes, at least 1: shards without documents are spread by their number."""
        return max(1, self._sizes.get(shard, 1))

    def put(self, shard: ShardRef, server: str) -> None:
        """Places a shard."""
        self.held[server].append(shard)
        self._bytes[server] += self.size(shard)

    def take(self, shard: ShardRef, server: str) -> None:
        """Undoes `put`."""
        self.held[server].remove(shard)
        self._bytes[server] -= self.size(shard)

    def emptiest(self, shard: ShardRef) -> str:
        """The server with the least bytes; of equal ones that with the fewest siblings, since
        the shards of one collection are asked together.
        """
        return min(
            self.held,
            key=lambda name: (self._bytes[name], self._siblings(name, shard), self._order[name]),
        )

    def _siblings(self, server: str, shard: ShardRef) -> int:
        return sum(other.collection == shard.collection for other in self.held[server])

    def levelling(self, pinned: frozenset[ShardRef]) -> tuple[ShardRef, str, str] | None:
        """The shard that moves next, from where and to where; None when nothing is gained."""
        least = min(self.held, key=lambda name: (self._bytes[name], self._order[name]))
        movable = {
            name: [shard for shard in group if shard not in pinned]
            for name, group in self.held.items()
        }
        full = [name for name in self.held if movable[name]]
        if not full:
            return None
        most = max(full, key=lambda name: (self._bytes[name], -self._order[name]))
        gap = self._bytes[most] - self._bytes[least]
        if gap <= _LEVEL * self._bytes[most]:
            return None
        worthwhile = [s for s in reversed(movable[most]) if (1 + _GAIN) * self.size(s) <= gap]
        if not worthwhile:
            return None
        # Of those that level best, one whose siblings stay behind.
        shard = min(
            worthwhile,
            key=lambda shard: (abs(gap - 2 * self.size(shard)), -self._siblings(most, shard)),
        )
        return shard, most, least
