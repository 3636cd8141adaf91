"""How much of the primary a sync or verify may take: as much as leaves the application its write rate.

While the application writes, time is cut into periods: for most of a period sync reads may begin at a certain rate,
for the rest none may. The application's write rates in the two parts are compared; where it is slower beside the sync,
the rate falls, else it rises. An application that does not write is not waited for.

Promise: whatever was measured, at least LEAST bytes a second are admitted, so that no sync stands still.
"""
from __future__ import annotations

import asyncio
from collections.abc import Callable

from marsx.peer.limit import Bucket

PERIOD_S = 0.5
PAUSE_S = 0.12
# So long after the last question nothing is measured any more.
IDLE_S = 2.0
LEAST = 2 << 20
FIRST = 64 << 20
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
        self._asked = 0.0
        self._task: asyncio.Task[None] | None = None
        self._on = self._off = 0.0
        self._closed = False

    async def admit(self, amount: int) -> None:
        """Wait until a read of so many bytes may begin."""
        if self._closed:
            return
        self._asked = asyncio.get_running_loop().time()
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._watch(), name="courtesy")
        await self._may.wait()
        await self._bucket.take(amount)

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
                off = await self._part(PAUSE_S)
                self._may.set()
                if off is not None:
                    self._compare(on, off)
        finally:
            self.quiet = True
            self._may.set()

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
