"""Calls of one event loop to a store, gathered: what is asked while the store is busy goes to it together.

One batch is on its way at a time, so that calls happen in the order in which they were made.
"""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from leitstand.errors import TransientBackendError

__all__ = ["Batcher"]

MOST = 64  # calls per batch: a store works on one batch without interruption


class Batcher:
    """Hands calls to `execute` in the order they came, several at once when they wait.

    Args:
        execute: Takes calls and returns one result each, in order, or raises for all of them; a
            `TransientBackendError` is also raised for those that wait.
    """

    def __init__(self, execute: Callable[[Sequence[Any]], Awaitable[Sequence[Any]]]) -> None:
        self._execute = execute
        self._waiting: deque[tuple[Any, asyncio.Future[Any]]] = deque()
        self._task: asyncio.Task[None] | None = None
        self._working = False

    async def call(self, call: Any) -> Any:
        """The call's result. A caller that is cancelled does not take its call back."""
        result = asyncio.get_running_loop().create_future()
        self._waiting.append((call, result))
        if not self._working:
            self._working = True
            self._task = asyncio.create_task(self._work())
        return await result

    async def close(self) -> None:
        """Returns when every call has its result."""
        while self._working and self._task is not None:
            await asyncio.gather(self._task, return_exceptions=True)

    async def _work(self) -> None:
        try:
            while self._waiting:
                await self._next()
        finally:
            self._working = False

    async def _next(self) -> None:
        batch = [self._waiting.popleft() for _ in range(min(MOST, len(self._waiting)))]
        try:
            results = await self._execute([call for call, _ in batch])
        except BaseException as error:
            if isinstance(error, TransientBackendError):  # what waits would only wait for the next time-out
                batch += self._waiting
                self._waiting.clear()
            for _, result in batch:
                if not result.done():
                    result.set_exception(error)
            if not isinstance(error, Exception):
                raise
            return
        for (_, waiting), result in zip(batch, results, strict=True):
            if not waiting.done():
                waiting.set_result(result)
