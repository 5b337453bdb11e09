"""Which server holds which shard: balanced, deterministic, sticky."""

from collections.abc import Mapping, Sequence

from shoal.types import ShardRef


def place(
    shards: Sequence[ShardRef],
    servers: Sequence[str],
    current: Mapping[ShardRef, str],
    pinned: frozenset[ShardRef] = frozenset(),
) -> dict[ShardRef, str]:
    """Gives every shard a server.

    A shard stays where it is as long as that server is one of `servers`, except
    that shards which are not pinned move, as few as possible, until no server
    has more than one shard more than another (pinned ones allowing).

    Args:
        shards: all shards, in a fixed order.
        servers: names of the servers that should run; none leaves every shard
            where it is.
        current: where shards were placed last.
        pinned: shards that are open now: moving one would interrupt it.

    Returns:
        A server for every shard; empty without servers.
    """
    if not servers:
        return {}
    placed = {shard: current[shard] for shard in shards if current.get(shard) in servers}
    held = {server: [s for s in shards if placed.get(s) == server] for server in servers}
    for shard in shards:
        if shard not in placed:
            held[_lightest(held, servers, shard)].append(shard)
    _level(held, servers, pinned)
    return {shard: server for server, group in held.items() for shard in group}


def _lightest(held: Mapping[str, list[ShardRef]], servers: Sequence[str], shard: ShardRef) -> str:
    def load(server: str) -> tuple[int, int, int]:
        # Shards of one collection are asked together, so they spread first among equals.
        siblings = sum(other.collection == shard.collection for other in held[server])
        return len(held[server]), siblings, servers.index(server)

    return min(servers, key=load)


def _level(
    held: dict[str, list[ShardRef]], servers: Sequence[str], pinned: frozenset[ShardRef]
) -> None:
    while True:
        movable = [
            server for server in servers if any(shard not in pinned for shard in held[server])
        ]
        if not movable:
            return
        most = max(movable, key=lambda server: (len(held[server]), -servers.index(server)))
        least = min(servers, key=lambda server: (len(held[server]), servers.index(server)))
        if len(held[most]) - len(held[least]) <= 1:
            return
        shard = next(shard for shard in reversed(held[most]) if shard not in pinned)
        held[most].remove(shard)
        held[least].append(shard)
