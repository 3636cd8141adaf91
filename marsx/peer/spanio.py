"""What sync and verify are made of at run time: spans in memory and on devices.

The one importer of `marsx._ext.marscmp`. A buffer of `Buffers` belongs to one call in the executor at a time.
"""
from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

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

__all__ = ["KINDS", "AlignedBuffer", "Buffers", "compare", "differ", "differ_split", "digests", "read_span", "touched",
           "write_span", "zero_span"]

# What is small never waits for the large reads: a span that differs somewhere goes on while others are compared.
LARGE, SMALL = 4, 12
SMALL_SIZE = 1024 * 1024


class Buffers:
    """A few large and some small aligned buffers, made when they are needed."""

    def __init__(self, size: int) -> None:
        self._pools = [_Pool(LARGE, size)]
        if size > SMALL_SIZE:
            self._pools.insert(0, _Pool(SMALL, SMALL_SIZE))

    @contextlib.asynccontextmanager
    async def one(self, amount: int) -> AsyncIterator[memoryview]:
        """For the time of one call in the executor: at least `amount` bytes (but never more than a large one has)."""
        pool = next((pool for pool in self._pools if pool.size >= amount), self._pools[-1])
        async with pool.slots:
            buf = pool.free.pop() if pool.free else AlignedBuffer(pool.size)
            yield memoryview(buf)
            pool.free.append(buf)


class _Pool:
    """Buffers of one size."""

    def __init__(self, count: int, size: int) -> None:
        self.size = size
        self.free: list[AlignedBuffer] = []
        self.slots = asyncio.Semaphore(count)


