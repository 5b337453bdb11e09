"""Both clients behind one synchronous face, so that one test covers both."""

import asyncio
import inspect
from collections.abc import Callable, Iterator
from typing import Any

import shoal


class AsyncTwin:
    """An `AsyncClient` whose calls run in an event loop of their own."""

    def __init__(self, target: str) -> None:
        self._loop = asyncio.new_event_loop()
        self.client = shoal.aio.connect(target)

    def __getattr__(self, name: str) -> Callable[..., Any]:
        method = getattr(self.client, name)

        def call(*arguments: Any, **options: Any) -> Any:
            return self._loop.run_until_complete(method(*arguments, **options))

        return call if inspect.iscoroutinefunction(method) else method

    def shut(self) -> None:
        self._loop.run_until_complete(self.client.close())
        self._loop.close()


def connected(kind: str, target: str) -> Iterator[Any]:
    """Body of a fixture: a client of this kind ("sync" or "aio"), closed afterwards."""
    if kind == "sync":
        with shoal.connect(target) as client:
            yield client
        return
    twin = AsyncTwin(target)
    yield twin
    twin.shut()
