"""How the cores of a machine are shared out among processes, and when to start one again."""

from collections.abc import Mapping
from dataclasses import dataclass

from deploy.core.state import Role

ENCODER_THREADS_MAX = 8
SEARCH_THREADS_MAX = 16
_RESERVED_SHARE = 0.95
_CPUS_MIN = 0.01
_STEADY_NS = 10_000_000_000
_FIRST_DELAY_NS = 500_000_000
_DELAY_MAX_NS = 30_000_000_000


@dataclass(frozen=True, slots=True)
class Share:
    """What a process gets.

    Attributes:
        threads: torch threads of an encoder, search threads of a server, else 1.
        cpus: cores that Ray reserves for it, above 0.
        gpus: part of every GPU there is that Ray reserves for it.
    """

    threads: int
    cpus: float
    gpus: float = 0.0


def shares(counts: Mapping[Role, int], cores: int) -> dict[Role, Share]:
    """Shares by role.

    Encoders together get every core, and so do servers: encoding and searching
    take turns in a query. Beyond 8 threads a small model gains little, so many
    cores call for more encoders. What is reserved is scaled down until all
    processes fit on the cores.
    """
    encoders, servers = max(1, counts[Role.ENCODER]), max(1, counts[Role.SERVER])
    threads = {
        Role.CONTROLLER: 1,
        Role.ROUTER: 1,
        Role.ENCODER: min(ENCODER_THREADS_MAX, max(1, cores // encoders)),
        Role.SERVER: min(SEARCH_THREADS_MAX, max(1, cores // servers)),
    }
    total = sum(threads[role] * count for role, count in counts.items())
    scale = min(1.0, _RESERVED_SHARE * cores / max(1, total))
    return {
        role: Share(
            count,
            max(_CPUS_MIN, int(count * scale * 100) / 100),
            1.0 / encoders if role is Role.ENCODER else 0.0,
        )
        for role, count in threads.items()
    }


def reservation(share: Share, free_cpus: float, starting: int) -> float:
    """Cores that Ray is to reserve for a process that starts now.

    What was reserved at the start fills the machine, so that a process which is added later
    would wait for ever for its share: it then runs beside the others.

    Args:
        share: its share.
        free_cpus: cores that nobody reserved.
        starting: processes that start now, this one included, and may take of them.
    """
    return share.cpus if share.cpus * starting <= free_cpus else _CPUS_MIN


def role_resources(role: Role, cluster: Mapping[str, float]) -> dict[str, float]:
    """What a process asks of Ray besides cores and GPUs.

    Nodes that offer the resource `shoal_<role>` are set aside for that role, one unit
    for each process; where none offers it, a process may go anywhere.

    Args:
        role: of the process.
        cluster: the resources of the whole Ray cluster.
    """
    name = f"shoal_{role.value}"
    return {name: 1.0} if name in cluster else {}


def restart_delay_ns(failures: int, lived_ns: int) -> int:
    """How long to wait before starting a dead process again.

    Args:
        failures: deaths in a row, each soon after its start, this one included.
        lived_ns: how long it lived this time.

    Returns:
        0 for one that lived 10 seconds or failed once; then 0.5 s, 1 s, 2 s, ...
        up to 30 s.
    """
    if lived_ns >= _STEADY_NS or failures <= 1:
        return 0
    return min(_DELAY_MAX_NS, _FIRST_DELAY_NS << min(failures - 2, 16))


def failures_in_row(before: int, lived_ns: int) -> int:
    """Deaths in a row after one more: a process that lived long begins anew."""
    return 1 if lived_ns >= _STEADY_NS else before + 1


def retry_delay_ns(failures: int) -> int:
    """How long to wait before asking again what failed `failures` times: 0.5 s doubling to 30 s."""
    return min(_DELAY_MAX_NS, _FIRST_DELAY_NS << min(max(0, failures - 1), 16))
