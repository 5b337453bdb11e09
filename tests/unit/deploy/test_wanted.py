"""Which processes come and go when their number changes."""

import pytest

from deploy.core.state import Role
from deploy.core.wanted import Wanted
from shoal.errors import InvalidRequest

START = Wanted.of({Role.ROUTER: 1, Role.SERVER: 3, Role.ENCODER: 1})


def test_routers_start_first() -> None:
    names = [spec.name for spec in START.specs]
    assert names == ["router-0", "server-0", "server-1", "server-2", "encoder-0"]


def test_what_goes_is_the_highest_and_what_comes_the_lowest_free() -> None:
    assert START.scaled(Role.SERVER, 1).servers == ("server-0",)
    gap = START.without("server-1")
    assert gap.servers == ("server-0", "server-2")
    assert gap.scaled(Role.SERVER, 3) == START
    assert gap.scaled(Role.SERVER, 4).counts[Role.SERVER] == 4


def test_it_survives_being_written() -> None:
    gap = START.without("server-0")
    assert Wanted.from_json(gap.to_json()) == gap


@pytest.mark.parametrize(
    ("role", "count"), [(Role.ROUTER, 0), (Role.SERVER, 0), (Role.SERVER, 9999)]
)
def test_a_cluster_cannot_be_too_small_or_absurd(role: Role, count: int) -> None:
    with pytest.raises(InvalidRequest, match=f"{role.value}s, not {count}"):
        START.scaled(role, count)


def test_only_a_server_that_is_there_and_not_the_last_goes() -> None:
    with pytest.raises(InvalidRequest, match="no server"):
        START.without("server-7")
    with pytest.raises(InvalidRequest, match="add one first"):
        START.scaled(Role.SERVER, 1).without("server-0")
