"""Which routers clients are told of, and at which addresses."""

from deploy.core.state import Desired, Observed, Phase, Process, ProcessSpec, Role
from deploy.core.topology import Topology, next_topology


def router(name: str, **parts: object) -> Process:
    known = {"address": "10.0.0.7:50051", "serving": True, "advertised": "shoal.example:50051"}
    return Process(name, Role.ROUTER, Phase.RUNNING, 1, **known | parts)  # type: ignore[arg-type]


def told(*processes: Process) -> list[tuple[str, str]]:
    observed = Observed({process.name: process for process in processes})
    wanted = tuple(ProcessSpec(process.name, process.role) for process in processes)
    topology = next_topology(Desired(wanted), observed, Topology(), counts_due=False)
    return [(each.name, each.address) for each in (topology or Topology()).routers]


def test_clients_are_told_the_advertised_address() -> None:
    assert told(router("router-0")) == [("router-0", "shoal.example:50051")]


def test_a_router_that_does_not_serve_or_has_no_address_for_them_is_left_out() -> None:
    left_out = (
        router("router-1", serving=False, draining=True),
        router("router-2", advertised=""),
        router("router-3", serving=False),
    )
    assert told(router("router-0"), *left_out) == [("router-0", "shoal.example:50051")]
