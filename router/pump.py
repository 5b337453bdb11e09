"""Carries out what a fan-out core decides: calls, timers, cancellations.

Everybody's queries go through here, so nothing that one of them does may stop
it: every step is guarded, and a fault ends the query that caused it alone.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Generic, TypeVar

from router.core.fanout import (
    NEVER,
    Action,
    CancelCall,
    FanOut,
    Finish,
    Query,
    RefreshTopology,
    Send,
)
from router.core.options import FanOutOptions
from shoal.errors import InternalError, ShoalError

logger = logging.getLogger(__name__)

Payload = TypeVar("Payload")
Outcome = tuple[object, Mapping[int, ShoalError]]


class Pump(Generic[Payload]):
    """One lane's core, driven.

    Args:
        placement: per shard, names of the servers that hold it.
        options: the core's bounds.
        send: carries a message out; returns the reply and, by place in the
            message, the queries that failed; raises ShoalError.
        finish: answers queries that are over.
        refresh: reads the topology again; True if the lane still serves.
    """

    def __init__(
        self,
        placement: Sequence[Sequence[str]],
        options: FanOutOptions,
        *,
        send: Callable[[Send[Payload]], Awaitable[Outcome]],
        finish: Callable[[Finish[Payload]], None],
        refresh: Callable[[], Awaitable[bool]],
    ) -> None:
        self.core: FanOut[Payload] = FanOut(placement, options)
        self._send = send
        self._finish = finish
        self._refresh = refresh
        self._calls: dict[int, asyncio.Task[None]] = {}
        self._refreshes: set[asyncio.Task[None]] = set()
        self._timer: asyncio.TimerHandle | None = None
        self._timer_ns = NEVER
        self._loop = asyncio.get_running_loop()

    def admit(self, deadline_ns: int) -> None:
        """Whether one more query may be submitted.

        Raises:
            Overloaded: it may not; the error says when to try again.
        """
        now_ns = time.monotonic_ns()
        refusal = self.core.refusal(deadline_ns - now_ns, now_ns)
        if refusal is not None:
            raise refusal

    def submit(self, queries: Sequence[Query[Payload]]) -> None:
        """Takes queries; `finish` answers each by its deadline."""
        self._apply(self.core.submit(queries, time.monotonic_ns()))

    def cancel(self, query: Query[Payload]) -> None:
        """The query's caller has gone."""
        self._apply(self.core.cancel(query, time.monotonic_ns()))

    def close(self) -> None:
        """Stops every call and timer; queries still open are not answered."""
        if self._timer is not None:
            self._timer.cancel()
        for task in (*self._calls.values(), *self._refreshes):
            task.cancel()

    def _apply(self, actions: Sequence[Action[Payload]]) -> None:
        for action in actions:
            match action:
                case Send():
                    self._calls[action.attempt] = self._loop.create_task(self._call(action))
                case Finish():
                    self._answer(action)
                case CancelCall():
                    task = self._calls.pop(action.attempt, None)
                    if task is not None:
                        task.cancel()
                case RefreshTopology():
                    task = self._loop.create_task(self._read_topology())
                    self._refreshes.add(task)
                    task.add_done_callback(self._refreshes.discard)
        self._set_timer()

    def _answer(self, action: Finish[Payload]) -> None:
        try:
            self._finish(action)
        except Exception:
            logger.exception("event=finish_failed queries=%d", len(action.queries))

    async def _call(self, action: Send[Payload]) -> None:
        attempt = action.attempt
        try:
            reply, refused = await self._send(action)
        except ShoalError as error:
            self._calls.pop(attempt, None)
            self._apply(self.core.failed(attempt, error, time.monotonic_ns()))
        except Exception as error:
            logger.exception("event=send_failed shard=%d server=%s", action.shard, action.server)
            self._calls.pop(attempt, None)
            failure = InternalError(f"shard {action.shard}: {error}")
            self._apply(self.core.failed(attempt, failure, time.monotonic_ns()))
        else:
            self._calls.pop(attempt, None)
            self._apply(self.core.replied(attempt, reply, refused, time.monotonic_ns()))

    async def _read_topology(self) -> None:
        held = False
        try:
            held = await self._refresh()
        except Exception:
            logger.exception("event=topology_refresh_failed")
        self._apply(self.core.refreshed(held, time.monotonic_ns()))

    def _set_timer(self) -> None:
        wake_ns = self.core.wake_ns
        if wake_ns == self._timer_ns:
            return
        if self._timer is not None:
            # An early timer finds nothing due and sets the next: cheaper than
            # cancelling one per query.
            if self._timer_ns < wake_ns:
                return
            self._timer.cancel()
            self._timer = None
        self._timer_ns = wake_ns
        if wake_ns != NEVER:
            delay_s = max(0.001, (wake_ns - time.monotonic_ns()) / 1e9)
            self._timer = self._loop.call_later(delay_s, self._tick)

    def _tick(self) -> None:
        self._timer, self._timer_ns = None, NEVER
        self._apply(self.core.tick(time.monotonic_ns()))
