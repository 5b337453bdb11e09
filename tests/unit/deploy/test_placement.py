"""Placement is total, level by bytes, deterministic, and moves little."""

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
sizes = st.dictionaries(st.sampled_from(SHARDS), st.integers(0, 1_000))


def loads(placed: dict[ShardRef, str], names: list[str], of: dict[ShardRef, int]) -> list[int]:
    found = dict.fromkeys(names, 0)
    for shard, server in placed.items():
        found[server] += max(1, of.get(shard, 1))
    return sorted(found.values())


@given(servers, current, sizes)
def test_every_shard_has_a_server_and_bytes_are_level(
    names: list[str], before: dict[ShardRef, str], of: dict[ShardRef, int]
) -> None:
    placed = place(SHARDS, names, before, of)
    assert placed.keys() == set(SHARDS)
    found = loads(placed, names, of)
    largest = max([1, *of.values()])
    assert found[-1] - found[0] <= max(1.1 * largest, found[-1] / 10)


@given(servers, current)
def test_shards_without_bytes_are_spread_by_number(
    names: list[str], before: dict[ShardRef, str]
) -> None:
    found = loads(place(SHARDS, names, before, {}), names, {})
    assert found[-1] - found[0] <= 1


@given(servers, current, sizes)
def test_placing_again_moves_nothing(
    names: list[str], before: dict[ShardRef, str], of: dict[ShardRef, int]
) -> None:
    placed = place(SHARDS, names, before, of)
    assert place(SHARDS, names, placed, of) == placed


@given(servers, current, sizes, st.frozensets(st.sampled_from(SHARDS)))
def test_open_shards_stay(
    names: list[str],
    before: dict[ShardRef, str],
    of: dict[ShardRef, int],
    pinned: frozenset[ShardRef],
) -> None:
    placed = place(SHARDS, names, before, of, pinned)
    for shard in pinned:
        if before.get(shard) in names:
            assert placed[shard] == before[shard]


@given(servers, current)
def test_no_more_moves_than_level_servers_need(
    names: list[str], before: dict[ShardRef, str]
) -> None:
    kept = Counter(server for server in before.values() if server in names)
    ceiling = -(-len(SHARDS) // len(names))
    floor = len(SHARDS) // len(names)
    placed = place(SHARDS, names, before, {})
    moves = sum(before.get(shard) in names and placed[shard] != before[shard] for shard in SHARDS)
    over = sum(max(0, kept[name] - ceiling) for name in names)
    spare = sum(max(0, kept[name] - floor) for name in names)
    assert over <= moves <= spare


def test_one_large_shard_moves_rather_than_many_small_ones() -> None:
    of = {SHARDS[0]: 60, SHARDS[1]: 20, SHARDS[2]: 20, SHARDS[3]: 20}
    before = dict.fromkeys(SHARDS[:4], "server-0")
    placed = place(SHARDS[:4], ["server-0", "server-1"], before, of)
    assert [shard for shard in SHARDS[:4] if placed[shard] == "server-1"] == [SHARDS[0]]


def test_what_is_nearly_level_stays() -> None:
    of = {SHARDS[0]: 100, SHARDS[1]: 3, SHARDS[2]: 97}
    before = {SHARDS[0]: "server-0", SHARDS[1]: "server-0", SHARDS[2]: "server-1"}
    assert place(SHARDS[:3], ["server-0", "server-1"], before, of) == before


def test_a_large_shard_does_not_move_for_a_small_ones_sake() -> None:
    of = {SHARDS[0]: 1_000, SHARDS[1]: 5}
    before = dict.fromkeys(SHARDS[:2], "server-0")
    placed = place(SHARDS[:2], ["server-0", "server-1"], before, of)
    assert placed == {SHARDS[0]: "server-0", SHARDS[1]: "server-1"}


def test_shards_of_one_collection_spread() -> None:
    placed = place(SHARDS[:4], ["server-0", "server-1"], {}, {})
    assert Counter(placed.values()) == {"server-0": 2, "server-1": 2}


def test_without_servers_nothing_is_placed() -> None:
    assert place(SHARDS, [], {}, {}) == {}
