"""How many processes of each kind a cluster is to have, and which ones."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from deploy.core.state import ProcessSpec, Role
from shoal.errors import InvalidRequest

PROCESSES_MAX = 1_000
"""Of one role; what is above is a slip of the finger."""
_LEAST = {Role.ROUTER: 1, Role.SERVER: 1, Role.ENCODER: 0}
_ROLES = tuple(_LEAST)
"""In the order in which to start them: routers first, since their ports can be taken."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """The processes that should run.

    Attributes:
        numbers: per role, those of its processes, ascending.
    """

    numbers: Mapping[Role, tuple[int, ...]]

    @staticmethod
    def of(counts: Mapping[Role, int]) -> "Wanted":
        """So many of each role, numbered from 0."""
        return Wanted({role: tuple(range(counts[role])) for role in _ROLES})

    @staticmethod
    def from_json(values: Mapping[str, Iterable[int]]) -> "Wanted":
        """As `to_json` gave it."""
        return Wanted({role: tuple(values[role.value]) for role in _ROLES})

    def to_json(self) -> dict[str, list[int]]:
        """The numbers by the names of the roles."""
        return {role.value: list(numbers) for role, numbers in self.numbers.items()}

    @property
    def specs(self) -> tuple[ProcessSpec, ...]:
        """Every process, in the order in which to start them."""
        return tuple(
            ProcessSpec(f"{role.value}-{number}", role)
            for role in _ROLES
            for number in self.numbers[role]
        )

    @property
    def counts(self) -> dict[Role, int]:
        """Processes by role."""
        return {role: len(self.numbers[role]) for role in _ROLES}

    @property
    def servers(self) -> tuple[str, ...]:
        """Names of the shard servers."""
        return tuple(spec.name for spec in self.specs if spec.role is Role.SERVER)

    def scaled(self, role: Role, count: int) -> "Wanted":
        """With another number of a role: what goes has the highest numbers, what comes takes
        the lowest free ones.

        Raises:
            InvalidRequest: so many cannot be.
        """
        if not _LEAST[role] <= count <= PROCESSES_MAX:
            raise InvalidRequest(
                f"a cluster has {_LEAST[role]} to {PROCESSES_MAX} {role.value}s, not {count}",
                field=f"{role.value}s",
            )
        kept = self.numbers[role][:count]
        free = (number for number in range(len(kept) + count) if number not in kept)
        added = [next(free) for _ in range(count - len(kept))]
        return Wanted({**self.numbers, role: tuple(sorted((*kept, *added)))})

    def without(self, server: str) -> "Wanted":
        """Without one of the shard servers.

        Raises:
            InvalidRequest: there is none of that name, or no other.
        """
        if server not in self.servers:
            raise InvalidRequest(
                f"there is no server {server[:40]!r}: see `shoal status`", field="drain"
            )
        if len(self.servers) == 1:
            raise InvalidRequest(
                f"{server} is the only server: add one first, with `shoal scale --servers 2`",
                field="drain",
            )
        number = int(server.rpartition("-")[2])
        kept = tuple(each for each in self.numbers[Role.SERVER] if each != number)
        return Wanted({**self.numbers, Role.SERVER: kept})
