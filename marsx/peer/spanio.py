"""What sync and verify are made of at run time: spans in memory and on devices, and tasks that end together.

The one importer of `marsx._ext.marscmp`. A buffer of `Buffers` belongs to one call in the executor at a time.
"""
from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from typing import Any, TypeVar

from marsx._ext.marscmp import (
    KINDS,
    AlignedBuffer,
    compare,
    differ,
    differ_split,
    digests,
    read_span,
    touched,
    write_span,
    zero_span,
)

__all__ = ["KINDS", "AlignedBuffer", "Buffers", "compare", "differ", "differ_split", "digests", "in_group",
           "read_span", "to_the_end", "touched", "write_span", "zero_span"]

_T = TypeVar("_T")


class Buffers:
    """A few aligned buffers, made when they are needed."""

    def __init__(self, count: int, size: int) -> None:
        self._size = size
        self._free: list[AlignedBuffer] = []
        self._slots = asyncio.Semaphore(count)

    @contextlib.asynccontextmanager
    async def one(self) -> AsyncIterator[memoryview]:
        """For the time of one call in the executor."""
        async with self._slots:
            buf = self._free.pop() if self._free else AlignedBuffer(self._size)
            yield memoryview(buf)
            self._free.append(buf)


async def in_group(body: Callable[[asyncio.TaskGroup], Coroutine[Any, Any, _T]]) -> _T:
    """Run `body` with a group of tasks; all have ended when it returns. Of many errors the first counts."""
    try:
        async with asyncio.TaskGroup() as tasks:
            return await body(tasks)
    except BaseExceptionGroup as group:
        error: BaseException = group
        while isinstance(error, BaseExceptionGroup):
            error = error.exceptions[0]
        raise error from None


async def to_the_end(work: Awaitable[None]) -> None:
    """Wait for it, however often we are cancelled meanwhile (the caller is on his way out already)."""
    task = asyncio.ensure_future(work)
    while not task.done():
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.wait([task])
    task.result()
