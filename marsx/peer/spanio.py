"""What sync and verify are made of at run time: spans in memory and on devices.

The one importer of `marsx._ext.marscmp`.
"""
from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

from marsx._ext.marscmp import (
    KINDS,
    AlignedBuffer,
    BufferPool,
    compare,
    differ,
    differ_split,
    digests,
    is_aligned,
    read_span,
    touched,
    write_span,
    zero_span,
)

__all__ = ["KINDS", "AlignedBuffer", "BufferPool", "Buffers", "compare", "differ", "differ_split", "digests",
           "is_aligned", "read_span", "touched", "write_span", "zero_span", "BodyRoom"]

# What is small never waits for the large reads: a span that differs somewhere goes on while others are compared.
LARGE, SMALL = 4, 12
SMALL_SIZE = 1024 * 1024
PAGE = 4096


class Buffers:
    """A few large and some small aligned buffers, made when they are needed."""

    def __init__(self, size: int) -> None:
        self._pools = [_Pool(LARGE, size)]
        if size > SMALL_SIZE:
            self._pools.insert(0, _Pool(SMALL, SMALL_SIZE))

    @contextlib.asynccontextmanager
    async def one(self, amount: int) -> AsyncIterator[memoryview]:
        """At least `amount` bytes (but never more than a large one has), whatever they hold. So many as there may be
        are in use at a time; the memory itself is used again only when nobody refers to it any more."""
        pool = next((pool for pool in self._pools if pool.memory.size >= amount), self._pools[-1])
        async with pool.slots:
            yield memoryview(pool.memory.take())


class _Pool:
    """Buffers of one size."""

    def __init__(self, count: int, size: int) -> None:
        self.memory = BufferPool(size)
        self.slots = asyncio.Semaphore(count)


class BodyRoom:
    """Where the frames of a link are put together (`wire.Decoder`): large bodies begin at a page, so that they can be
    written to a device as they came. Each belongs to whoever refers to it; then its memory serves the next."""

    LEAST = 256 * 1024

    def __init__(self, most: int) -> None:
        self._pools: list[BufferPool] = []
        while most >= self.LEAST:
            self._pools.insert(0, BufferPool(PAGE + most))
            most //= 2

    def __call__(self, header: int, body: int) -> memoryview:
        """Room for a header and its body."""
        pool = next((pool for pool in self._pools if pool.size >= PAGE + body), None)
        if body < self.LEAST or header > PAGE or pool is None:
            return memoryview(bytearray(header + body))
        return memoryview(pool.take())[PAGE - header:PAGE + body]
