"""Limits of bandwidth: a token bucket on the clock of the loop.

Promise: over any time t at most BURST_S * rate + t * rate bytes pass, but for one request that is larger than that.
The rate is asked for at each step, so that a change counts at once; 0 = no limit.
"""
from __future__ import annotations

import asyncio
from collections.abc import Callable

BURST_S = 0.25
# A rate that is changed while we wait is noticed after this time.
STEP_S = 0.5


class Bucket:
    """`rate_kb`: KiB a second. Who comes first is served first."""

    def __init__(self, rate_kb: Callable[[], int]) -> None:
        self._rate_kb = rate_kb
        self._left = 0.0
        self._at = -1.0
        self._turn = asyncio.Lock()

    async def take(self, amount: int) -> None:
        """Wait until `amount` bytes may pass."""
        if self._rate_kb() <= 0 and not self._turn.locked():
            return
        async with self._turn:
            while (wait := self._wait(amount)) > 0:
                await asyncio.sleep(min(wait, STEP_S))

    def _wait(self, amount: int) -> float:
        """Seconds to wait; 0: taken. More than a burst may be taken at once, and is paid for before the next."""
        rate = self._rate_kb() * 1024
        if rate <= 0:
            return 0.0
        now = asyncio.get_running_loop().time()
        if self._at >= 0:
            self._left += (now - self._at) * rate
        self._at = now
        self._left = min(self._left, BURST_S * rate)
        if self._left < 0:
            return -self._left / rate
        self._left -= amount
        return 0.0
