"""An event loop on virtual time: when nothing is ready, the clock goes on to the next timer.

Real code runs on it unchanged, in the same order for the same seed. Whose code runs is known by
`OWNER`, so that a process of the simulation can be killed with all of its tasks.
"""

import asyncio
import contextvars
from collections.abc import Callable, Coroutine
from typing import Any

BEGIN_S = 1_000.0
"""What the clock shows at first."""


class Killed(BaseException):
    """The process whose code runs ends here."""


class Owner:
    """A process of the simulation, and its tasks.

    Attributes:
        name: for the trace.
        dead: it was killed: nothing that it does takes effect any more.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, name: str) -> None:
        self._loop, self.name, self.dead = loop, name, False
        self.tasks: dict[asyncio.Task[Any], None] = {}

    def run(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        """Starts work of this process."""
        context = contextvars.copy_context()
        context.run(OWNER.set, self)
        return context.run(self._loop.create_task, work)

    def kill(self) -> None:
        """Like kill -9: handlers of the tasks run, but reach nobody."""
        self.dead = True
        self._loop.call_soon(self._reap)

    def _reap(self) -> None:
        for task in list(self.tasks):
            task.cancel()
        if self.tasks:
            self._loop.call_later(1.0, self._reap)


OWNER: contextvars.ContextVar[Owner | None] = contextvars.ContextVar("OWNER", default=None)


def check_alive() -> None:
    """Raises if the process whose code runs was killed."""
    owner = OWNER.get()
    if owner is not None and owner.dead:
        raise asyncio.CancelledError


class _Task(asyncio.Task[Any]):
    """A task that sets order by its number, not by its address."""

    number = 0

    def __hash__(self) -> int:
        return self.number

    def __eq__(self, other: object) -> bool:
        return self is other


class VirtualLoop(asyncio.BaseEventLoop):
    """Runs whatever is ready; without that, time goes on.

    Args:
        disk_s: gives how long work on a thread takes.
    """

    def __init__(self, disk_s: Callable[[], float]) -> None:
        super().__init__()
        self._now, self._disk_s, self._tasks_made = BEGIN_S, disk_s, 0
        self._selector = self
        self.set_task_factory(self._make_task)
        self.set_exception_handler(self._failed)
        self.failures: list[BaseException] = []

    def time(self) -> float:
        """Virtual seconds."""
        return self._now

    def select(self, timeout: float | None) -> list[Any]:
        """What a selector does; here it is time that comes."""
        if timeout is None:
            raise RuntimeError("nothing is ready and no timer is set: everybody waits")
        self._now += timeout
        return []

    def run_in_executor(self, executor: Any, func: Callable[..., Any], *args: Any) -> Any:
        """Work on a thread: it happens at once, some time from now, whoever waits for it."""
        done, owner = self.create_future(), OWNER.get()

        def work() -> None:
            if owner is not None and owner.dead:
                return
            try:
                result = func(*args)
            except Killed:
                return
            except BaseException as error:
                if not done.done():
                    done.set_exception(error)
            else:
                if not done.done():
                    done.set_result(result)

        self.call_later(self._disk_s(), work)
        return done

    def _make_task(
        self, loop: asyncio.AbstractEventLoop, work: Any, **options: Any
    ) -> asyncio.Task[Any]:
        task = _Task.__new__(_Task)
        self._tasks_made += 1
        task.number = self._tasks_made
        task.__init__(work, loop=loop, **options)  # type: ignore[misc]
        owner = OWNER.get()
        if owner is not None:
            owner.tasks[task] = None
            task.add_done_callback(lambda ended: owner.tasks.pop(ended, None))
        return task

    def _failed(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        error = context.get("exception")
        if error is not None and not isinstance(error, Killed):
            self.failures.append(error)

    def _process_events(self, events: list[Any]) -> None:
        """There are none."""

    def _write_to_self(self) -> None:
        """Nobody sleeps in a selector."""
