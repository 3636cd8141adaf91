"""How much of the primary a sync or verify may take: as much as leaves the application its write rate.

While the application writes, one read is done at a time, and time is cut into periods: for most of a period reads may
begin at a certain rate, for the rest none may and none is under way. The application's write rates in the two parts are
compared; where it is slower beside the sync, the rate falls, else it rises. An application that does not write is not
waited for.

Promise: whatever was measured, at least LEAST bytes a second are admitted, so that no sync stands still.
"""
from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable

from marsx.peer.limit import Bucket

PERIOD_S = 0.5
PAUSE_S = 0.12
# So long after the last question nothing is measured any more.
IDLE_S = 2.0
# A read that takes longer than this is not waited for before the pause is measured.
REST_S = 1.0
LEAST = 2 << 20
FIRST = 32 << 20
MOST = 64 << 30
# Fewer writes in a part say nothing about a rate.
FEW = 3
# Steps are as large downwards as upwards, or noise alone would drive the rate to its floor; only a clear loss is
# answered at once.
AIM, LOST = 0.955, 0.75
DOWN, UP, BACK = 0.85, 1.18, 0.6
SMOOTH = 0.25


class Courtesy:
    """For one volume. `writes()`: how many writes it has answered so far. On the loop."""

    def __init__(self, writes: Callable[[], int]) -> None:
        self._writes = writes
        self.rate = FIRST
        self.quiet = True  # the application does not write
        self._bucket = Bucket(lambda: 0 if self.quiet else self.rate >> 10)
        self._may = asyncio.Event()
        self._may.set()
        self._one = asyncio.Lock()
        self._running = 0
        self._rested = asyncio.Event()
        self._asked = 0.0
        self._task: asyncio.Task[None] | None = None
        self._on = self._off = 0.0
        self._closed = False

    @contextlib.asynccontextmanager
    async def reading(self, amount: int) -> AsyncIterator[None]:
        """A read of so many bytes is done inside; waits until it may begin."""
        self._note()
        async with contextlib.nullcontext() if self.quiet else self._one:
            while not self._may.is_set() and not self._closed:
                await self._may.wait()
            await self._bucket.take(amount)
            self._running += 1
            try:
                yield
            finally:
                self._running -= 1
                if not self._running:
                    self._rested.set()

    def _note(self) -> None:
        """Somebody asks: measure."""
        self._asked = asyncio.get_running_loop().time()
        if not self._closed and (self._task is None or self._task.done()):
            self._task = asyncio.create_task(self._watch(), name="courtesy")

    async def close(self) -> None:
        """No more measuring; nobody waits any more."""
        self._closed = True
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.wait([task])
        self.quiet = True
        self._may.set()

    async def _watch(self) -> None:
        """As long as somebody asks."""
        loop = asyncio.get_running_loop()
        try:
            while loop.time() - self._asked < IDLE_S:
                on = await self._part(PERIOD_S - PAUSE_S)
                self.quiet = on is None
                if on is None:
                    continue
                self._may.clear()
                await self._rest()
                off = await self._part(PAUSE_S)
                self._may.set()
                if off is not None:
                    self._compare(on, off)
        finally:
            self.quiet = True
            self._may.set()

    async def _rest(self) -> None:
        """Returns when no read is under way."""
        self._rested.clear()
        if self._running:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(REST_S):
                    await self._rested.wait()

    async def _part(self, seconds: float) -> float | None:
        """Writes a second over a part; None: too few to tell."""
        loop = asyncio.get_running_loop()
        begin, before = loop.time(), self._writes()
        await asyncio.sleep(seconds)
        count = self._writes() - before
        return count / (loop.time() - begin) if count >= FEW else None

    def _compare(self, on: float, off: float) -> None:
        self._on = on if not self._on else self._on + SMOOTH * (on - self._on)
        self._off = off if not self._off else self._off + SMOOTH * (off - self._off)
        ratio = self._on / self._off
        step = UP if ratio > AIM else DOWN if ratio > LOST else BACK
        self.rate = max(LEAST, min(MOST, int(self.rate * step)))
