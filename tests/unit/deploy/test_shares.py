"""Shares of cores, and delays between attempts."""

from hypothesis import given
from hypothesis import strategies as st

from deploy.core.shares import (
    Share,
    failures_in_row,
    reservation,
    restart_delay_ns,
    retry_delay_ns,
    role_resources,
    shares,
)
from deploy.core.state import Role

SECOND_NS = 1_000_000_000


def counts(encoders: int, servers: int, routers: int) -> dict[Role, int]:
    return {
        Role.CONTROLLER: 1,
        Role.ENCODER: encoders,
        Role.SERVER: servers,
        Role.ROUTER: routers,
    }


def test_two_cores() -> None:
    given_shares = shares(counts(1, 2, 1), 2)
    assert given_shares[Role.ENCODER].threads == 2
    assert given_shares[Role.SERVER].threads == 1


@given(st.integers(0, 8), st.integers(1, 40), st.integers(1, 4), st.integers(1, 128))
def test_reservations_fit_on_the_machine(
    encoders: int, servers: int, routers: int, cores: int
) -> None:
    roles = counts(encoders, servers, routers)
    given_shares = shares(roles, cores)
    assert all(share.threads >= 1 and share.cpus > 0 for share in given_shares.values())
    assert sum(given_shares[role].cpus * count for role, count in roles.items()) <= cores


def test_the_first_death_costs_no_wait_and_later_ones_more() -> None:
    delays = [restart_delay_ns(failures, SECOND_NS) for failures in range(1, 12)]
    assert delays[0] == 0
    assert delays == sorted(delays)
    assert delays[-1] == 30 * SECOND_NS
    assert restart_delay_ns(9, 10 * SECOND_NS) == 0


def test_a_long_life_wipes_the_slate() -> None:
    assert failures_in_row(5, SECOND_NS) == 6
    assert failures_in_row(5, 10 * SECOND_NS) == 1


def test_retries_double_up_to_half_a_minute() -> None:
    assert [retry_delay_ns(n) / SECOND_NS for n in (1, 2, 3, 50)] == [0.5, 1.0, 2.0, 30.0]


def test_a_role_uses_nodes_that_are_set_aside_for_it_where_there_are_any() -> None:
    assert role_resources(Role.SERVER, {"CPU": 4.0}) == {}
    offered = {"CPU": 4.0, "shoal_server": 2.0}
    assert role_resources(Role.SERVER, offered) == {"shoal_server": 1.0}
    assert role_resources(Role.ROUTER, offered) == {}


def test_ray_reserves_what_is_free_and_else_next_to_nothing() -> None:
    share = Share(1, 0.5)
    assert reservation(share, 1.0, 2) == 0.5
    assert reservation(share, 0.9, 2) < 0.05, "both would wait for the same cores"
