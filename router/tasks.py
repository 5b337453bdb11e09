"""Several calls at once, all of which must succeed."""

import asyncio
from collections.abc import Coroutine, Iterable
from typing import Any, TypeVar

from shoal.errors import ShoalError

Result = TypeVar("Result")


async def all_of(calls: Iterable[Coroutine[Any, Any, Result]]) -> list[Result]:
    """Every result in order, or the first failure, after which nothing goes on.

    Raises:
        ShoalError: of the call that failed first.
    """
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(call) for call in calls]
    except* ShoalError as errors:
        raise _first(errors) from None
    return [task.result() for task in tasks]


def _first(errors: BaseExceptionGroup[ShoalError]) -> ShoalError:
    error = errors.exceptions[0]
    return _first(error) if isinstance(error, BaseExceptionGroup) else error
