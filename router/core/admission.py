"""Bounded admission: what is beyond a bound is refused at once, never queued."""

from collections.abc import Iterator
from contextlib import contextmanager

from shoal.errors import Overloaded


class Admission:
    """Counts what is under way.

    Args:
        limit: name of the bound, for errors.
        allowed: most units under way; one request is let in whatever its units
            when nothing else is.
        retry_after_s: hint for those refused.
    """

    def __init__(self, limit: str, allowed: int, retry_after_s: float) -> None:
        self._limit = limit
        self._allowed = allowed
        self._retry_after_s = retry_after_s
        self.under_way = 0

    @contextmanager
    def enter(self, units: int = 1) -> Iterator[None]:
        """Holds units for the length of a block.

        Raises:
            Overloaded: there is no room.
        """
        if self.under_way and self.under_way + units > self._allowed:
            raise Overloaded(
                f"{self.under_way} are under way, {self._limit} = {self._allowed} are allowed",
                retry_after_s=self._retry_after_s,
                limit=self._limit,
                allowed=self._allowed,
                given=self.under_way + units,
            )
        self.under_way += units
        try:
            yield
        finally:
            self.under_way -= units
