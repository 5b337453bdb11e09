"""Placement is total, balanced, deterministic and sticky."""

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from deploy.core.placement import place
from shoal.types import ShardRef

SHARDS = [ShardRef(uuid * 32, 1, number) for uuid in "ab" for number in range(7)]
servers = st.integers(1, 6).map(lambda count: [f"server-{number}" for number in range(count)])
current = st.dictionaries(
    st.sampled_from(SHARDS), st.sampled_from([f"server-{number}" for number in range(8)])
)


@given(servers, current)
def test_every_shard_has_a_server_and_loads_differ_by_one(
    names: list[str], before: dict[ShardRef, str]
) -> None:
    placed = place(SHARDS, names, before)
    assert placed.keys() == set(SHARDS)
    loads = Counter(dict.fromkeys(names, 0)) + Counter(placed.values())
    assert set(loads) <= set(names)
    assert max(loads.values()) - min(loads.get(name, 0) for name in names) <= 1


@given(servers, current)
def test_placing_again_moves_nothing(names: list[str], before: dict[ShardRef, str]) -> None:
    placed = place(SHARDS, names, before)
    assert place(SHARDS, names, placed) == placed


@given(servers, current, st.frozensets(st.sampled_from(SHARDS)))
def test_open_shards_stay(
    names: list[str], before: dict[ShardRef, str], pinned: frozenset[ShardRef]
) -> None:
    placed = place(SHARDS, names, before, pinned)
    for shard in pinned:
        if before.get(shard) in names:
            assert placed[shard] == before[shard]


@given(servers, current)
def test_no_more_moves_than_balance_needs(names: list[str], before: dict[ShardRef, str]) -> None:
    kept = Counter(server for server in before.values() if server in names)
    ceiling = -(-len(SHARDS) // len(names))
    floor = len(SHARDS) // len(names)
    placed = place(SHARDS, names, before)
    moves = sum(before.get(shard) in names and placed[shard] != before[shard] for shard in SHARDS)
    over = sum(max(0, kept[name] - ceiling) for name in names)
    spare = sum(max(0, kept[name] - floor) for name in names)
    assert over <= moves <= spare


def test_shards_of_one_collection_spread() -> None:
    placed = place(SHARDS[:4], ["server-0", "server-1"], {})
    assert Counter(placed.values()) == {"server-0": 2, "server-1": 2}


def test_without_servers_nothing_is_placed() -> None:
    assert place(SHARDS, [], {}) == {}
