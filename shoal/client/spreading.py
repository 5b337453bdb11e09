"""Which router a call goes to, and whether it may be repeated. Pure.

A client is given addresses and learns others from the routers themselves: each that
answers says which routers serve. Of those that it has reached, the one with the fewest
of this client's calls under way is called, in turn among equals: with the few routers of
a cluster all can be looked at, a slow one is called less, and no dice are needed. A
learned address is called only once a router answered there, since one that is right
inside a cluster may lead nowhere from here; the given ones serve until then, and again
when no learned one can be reached.

`Spreading` is told what happens, with the time as a value, and says what to do. The
shells in `sync_routers` and `async_routers` hold the channels.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from shoal.client.budget import RetryBudget
from shoal.errors import ClusterUnreachable, NotReady, Overloaded, RouterDraining, ShoalError

RETRY_PAUSE_S = 0.1
# Time between two questions to one of the reached routers which others there are.
LOOK_S = 5.0
# The same after one was lost or began to drain.
LOOK_AGAIN_S = 0.5
# Time between two questions to a router that is not reached, first and last.
ASK_FIRST_S = 0.25
ASK_LAST_S = 4.0
# A router that refuses without saying for how long is left alone for this.
REFUSED_S = 0.1

_ELSEWHERE = (ClusterUnreachable, NotReady, RouterDraining)
"""Failures of one router, which another need not have."""


@dataclass(slots=True)
class _Router:
    """A router as this client knows it.

    Attributes:
        given: named by the user.
        listed: named by the router that was asked last.
        reached: the last that was heard of it is an answer; a given one starts so.
        met: it was reached before; a given one counts as such.
        draining: it said that it is about to end.
        calls: this client's, under way there.
        rests_until: it refused; until then others are called.
        asking: the answer to a question who is there is awaited.
        ask_at: while it is not reached or drains, when to ask it.
        misses: questions in a row that it did not answer.
    """

    given: bool
    listed: bool
    reached: bool
    met: bool
    draining: bool = False
    calls: int = 0
    rests_until: float = 0.0
    asking: bool = False
    ask_at: float = 0.0
    misses: int = 0

    def rank(self, now: float) -> int:
        """The lower, the better it is to call it; below `_GOOD` nothing speaks against it."""
        if not self.reached:
            return 4 if self.met else 5
        if self.draining:
            return 3
        if self.rests_until > now:
            return 2
        return 0 if self.listed else 1


_GOOD = 2


class Spreading:
    """The routers of one client. Every `now` is seconds of one clock that only grows.

    Args:
        given: "host:port" of one router or more.
        turn: where to begin, so that clients begin at different ones.
    """

    def __init__(self, given: Sequence[str], turn: int = 0) -> None:
        self._routers = {address: _Router(True, False, True, True) for address in given}
        self._turn = turn
        self._budget = RetryBudget()
        self._look_at = self._looked_at = float("-inf")
        self._gone: list[str] = []

    @property
    def addresses(self) -> list[str]:
        """Every router that is given or listed, or still has calls."""
        return list(self._routers)

    # --- calls ---------------------------------------------------------------------

    def begin(self, now: float) -> str:
        """The router for a call; `end` must follow."""
        address = self._best(now)
        self._routers[address].calls += 1
        return address

    def end(
        self, address: str, now: float, error: ShoalError | None, draining: bool = False
    ) -> None:
        """A call has ended.

        Args:
            address: where it was made.
            now: when.
            error: why it failed; None if it was answered.
            draining: the answer or the error said that the router is about to end.
        """
        router = self._routers[address]
        router.calls -= 1
        if error is None:
            self._budget.earn(now)
            self._heard(router)
        elif isinstance(error, ClusterUnreachable) and router.reached:
            self._lost(router, now)
        elif isinstance(error, NotReady | Overloaded):
            router.rests_until = now + max(REFUSED_S, error.retry_after_s or 0.0)
        if draining or isinstance(error, RouterDraining):
            self._drains(router, now)
        self._forget_unlisted()

    def retry_pause_s(self, error: ShoalError, now: float, left_s: float) -> float | None:
        """How long to wait before a call that failed is made once more.

        Args:
            error: why it failed.
            now: when.
            left_s: what is left of the caller's time.

        Returns:
            Seconds, 0.0 where another router may do better at once; None if it may not be
            repeated: there is no time, or no budget.
        """
        pause = max(RETRY_PAUSE_S, error.retry_after_s or 0.0)
        ranks = (router.rank(now) for router in self._routers.values())
        if isinstance(error, _ELSEWHERE) and min(ranks) < _GOOD:
            pause = 0.0
        return pause if pause < left_s and self._budget.spend(now) else None

    # --- who is there ----------------------------------------------------------------

    def asks(self, now: float) -> list[str]:
        """Routers to ask now who is there; `told` or `silent` must follow for each.

        One that is reached is asked every `LOOK_S` which others there are; one that is not,
        or that drains, again and again whether it is (back).
        """
        due = [
            address
            for address, router in self._routers.items()
            if not router.asking
            and (router.draining or not router.reached)
            and now >= router.ask_at
        ]
        if now >= self._look_at:
            self._look_at, self._looked_at = now + LOOK_S, now
            if (best := self._best(now)) not in due and not self._routers[best].asking:
                due.append(best)
        for address in due:
            self._routers[address].asking = True
        return due

    def told(self, address: str, now: float, routers: Sequence[str], draining: bool) -> None:
        """A router that was asked has answered.

        Args:
            address: where it was asked.
            now: when.
            routers: that it names; none means that it does not know.
            draining: it is about to end.
        """
        if (asked := self._routers.get(address)) is None:
            return
        asked.asking = False
        self._heard(asked)
        if draining:
            self._drains(asked, now)
        if routers:
            for name, router in self._routers.items():
                router.listed = name in routers
            for name in routers:
                self._routers.setdefault(name, _Router(False, True, False, False))
            self._forget_unlisted()

    def silent(self, address: str, now: float) -> None:
        """A router that was asked has not answered."""
        if (asked := self._routers.get(address)) is not None:
            asked.asking = False
            self._lost(asked, now)

    def gone(self) -> list[str]:
        """Routers that are no more, since this was asked last: their channels may close."""
        gone, self._gone = self._gone, []
        return gone

    # --- within ------------------------------------------------------------------------

    def _best(self, now: float) -> str:
        best = min((router.rank(now), router.calls) for router in self._routers.values())
        equals = [
            address
            for address, router in self._routers.items()
            if (router.rank(now), router.calls) == best
        ]
        self._turn += 1
        return equals[self._turn % len(equals)]

    @staticmethod
    def _heard(router: _Router) -> None:
        """It has answered, and not that it drains; `_drains` follows where it has."""
        router.reached = router.met = True
        router.draining, router.misses = False, 0

    def _lost(self, router: _Router, now: float) -> None:
        if router.reached:
            router.reached = False
            self._look_soon()
        router.ask_at = now + min(ASK_LAST_S, ASK_FIRST_S * 2 ** min(router.misses, 16))
        router.misses += 1

    def _drains(self, router: _Router, now: float) -> None:
        router.draining = True
        router.ask_at = now + ASK_LAST_S
        self._look_soon()

    def _look_soon(self) -> None:
        self._look_at = min(self._look_at, self._looked_at + LOOK_AGAIN_S)

    def _forget_unlisted(self) -> None:
        for address, router in list(self._routers.items()):
            if not (router.given or router.listed or router.calls):
                del self._routers[address]
                self._gone.append(address)
