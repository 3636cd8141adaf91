"""Compression of bodies by measurement (design D 6): only where the line is slower than the compressor, and only what
shrinks.

The line is measured while something waits for it: bytes that the peer's TCP acknowledged, by time. A line on which
nothing ever waits, or that takes more than FAST bytes a second, is left alone. What does not shrink is left out for a
while that doubles each time.
"""
from __future__ import annotations

import concurrent.futures
import time
from collections.abc import Callable
from typing import Protocol

from marsx._ext import marssum
from marsx.base.tasks import run_blocking
from marsx.peer import wire
from marsx.peer.wire import Buffer

CODEC = "blosc2"
FAST = 150_000_000
LEAST = 32 * 1024
WORTH = 0.9
SKIP_MAX = 64
MEASURE_S = 0.05
SMOOTH = 0.3


class Line(Protocol):
    """What is asked of a link."""

    def line(self) -> tuple[int, bool]:
        """(bytes acknowledged by the peer so far, something waits for the line)."""


class Squeeze:
    """For one link. `level`: tunable compress_level, 0 = never."""

    def __init__(self, link: Line, level: Callable[[], int], clock: Callable[[], float] = time.monotonic) -> None:
        self._link = link
        self._level = level
        self._clock = clock
        self._at = 0.0
        self._acked = -1
        self._skip = 0
        self._next_skip = 1
        self.line_rate = 0.0  # bytes a second, 0 = not known
        self.own_rate = 2.0 * FAST  # of the compressor

    def look(self) -> None:
        """Measure; to be called whenever something is about to be sent."""
        now, (acked, waits) = self._clock(), self._link.line()
        if not waits or self._acked < 0:
            self._at, self._acked = now, acked if waits else -1
            return
        if now - self._at >= MEASURE_S:
            rate = (acked - self._acked) / (now - self._at)
            self.line_rate = rate if not self.line_rate else self.line_rate + SMOOTH * (rate - self.line_rate)
            self._at, self._acked = now, acked

    def wanted(self, length: int) -> bool:
        """Is it worth to try?"""
        if length < LEAST or not self._level() or not 0 < self.line_rate < min(FAST, self.own_rate / 2):
            return False
        if self._skip:
            self._skip -= 1
            return False
        return True

    async def body(self, executor: concurrent.futures.Executor | None, data: Buffer) -> tuple[Buffer, dict[str, str]]:
        """(what to send, fields for its header)."""
        self.look()
        if not self.wanted(len(data)):
            return data, {}
        short, took = await run_blocking(executor, self._compress, data, self._level())
        if took > 0:
            self.own_rate += SMOOTH * (len(data) / took - self.own_rate)
        if short is None or len(short) > WORTH * len(data):
            self._skip, self._next_skip = self._next_skip, min(SKIP_MAX, 2 * self._next_skip)
            return data, {}
        self._next_skip = 1
        return short, {"codec": CODEC}

    def _compress(self, data: Buffer, level: int) -> tuple[bytes | None, float]:
        begin = self._clock()
        return marssum.compress(data, "lz4", level), self._clock() - begin


async def plain(executor: concurrent.futures.Executor | None, header: dict[str, object], body: memoryview,
                limit: int) -> memoryview:
    """The body as it was before; at most `limit` bytes. Hostile until here."""
    codec = header.get("codec")
    if codec is None:
        return body
    if codec != CODEC:
        raise wire.WireError(f"a body in the codec {str(codec)[:40]!r}, which is unknown here")
    try:
        return memoryview(await run_blocking(executor, marssum.decompress, body, limit))
    except ValueError as error:
        raise wire.WireError(f"a compressed body that is none: {error}") from None
