"""The application keeps its write rate beside a sync: the controller against a model of a device, on a clock that is
pushed on."""
from __future__ import annotations

import asyncio
import random
import selectors

import pytest

from marsx.daemon.courtesy import LEAST, Courtesy

READ = 4 << 20
MIB = 1 << 20


class _Ready(selectors.SelectSelector):
    def select(self, timeout=None):
        return []


class Clock(asyncio.SelectorEventLoop):
    """Time is what `step` says."""

    def __init__(self) -> None:
        self.now = 0.0
        super().__init__(_Ready())

    def time(self) -> float:
        return self.now


class Machine:
    """A device that is `share` as fast for the application when sync reads `full` bytes a second from it."""

    def __init__(self, base: float, full: float, share: float, noise: float = 0.0) -> None:
        self.base, self.full, self.share, self.noise = base, full, share, noise
        self.rng = random.Random(1)
        self.writes = 0.0
        self.read = 0

    async def run(self, seconds: float, writing=lambda now: True) -> tuple[float, float]:
        """(the application's part of its rate alone, bytes a second of the sync), of the second half."""
        loop = asyncio.get_running_loop()
        courtesy = Courtesy(lambda: int(self.writes))

        async def reader() -> None:
            while True:
                async with courtesy.reading(READ):
                    self.read += READ
                    await asyncio.sleep(READ / self.full)
        readers = [asyncio.create_task(reader())]
        done = alone = 0.0
        first = 0
        before = 0
        step, slot, weather = 0.005, -1, 1.0
        while loop.time() < seconds:
            half = loop.time() > seconds / 2
            if half and not first:
                first = self.read
            used = min(1.0, (self.read - before) / step / self.full)
            before = self.read
            if writing(loop.time()):
                if int(loop.time() / 0.1) != slot:  # as the weather of a real machine: it lasts
                    slot, weather = int(loop.time() / 0.1), 1 + self.noise * self.rng.uniform(-1, 1)
                rate = self.base * (1 - (1 - self.share) * used) * weather
                self.writes += rate * step
                done, alone = done + rate * step * half, alone + self.base * step * half
            loop.now += step
            for _ in range(6):
                await asyncio.sleep(0)
        for task in readers:
            task.cancel()
        await courtesy.close()
        await asyncio.gather(*readers, return_exceptions=True)
        return done / alone if alone else 1.0, (self.read - first) / (seconds / 2)


def play(machine: Machine, seconds: float = 80.0, **more) -> tuple[float, float]:
    loop = Clock()
    try:
        return loop.run_until_complete(machine.run(seconds, **more))
    finally:
        loop.close()


@pytest.mark.parametrize("share", [0.2, 0.5, 0.8])
@pytest.mark.parametrize("noise", [0.0, 0.2])
def test_the_application_keeps_nine_tenths(share, noise):
    """Whatever the reads cost it, and the sync still gets on."""
    kept, synced = play(Machine(5000, 400 * MIB, share, noise))
    assert kept >= 0.9, kept
    assert synced >= LEAST


def test_harmless_reads_are_not_held_back():
    """A device that is fast enough for both: the sync has at least six tenths of its own rate (pauses are measured)."""
    kept, synced = play(Machine(5000, 200 * MIB, 1.0))
    assert kept > 0.99 and synced >= 0.6 * 200 * MIB


def test_noise_alone_stops_nobody():
    """An application whose rate goes up and down by itself, on a machine where reads are harmless."""
    _, synced = play(Machine(5000, 200 * MIB, 1.0, 0.8), 160)
    assert synced >= 0.25 * 200 * MIB


def test_nobody_writes_nobody_waits():
    kept, synced = play(Machine(0, 200 * MIB, 0.2), 40)
    assert kept == 1.0 and synced >= 0.9 * 200 * MIB


def test_an_application_that_stops_gives_the_rest_to_the_sync():
    """And one that crawls is left alone as well as one that runs."""
    _, beside = play(Machine(5000, 200 * MIB, 0.2), 40)
    _, after = play(Machine(5000, 200 * MIB, 0.2), 80, writing=lambda now: now < 40)
    assert after > 2 * beside
    kept, _ = play(Machine(60, 200 * MIB, 0.2))
    assert kept >= 0.85


def test_no_sync_stands_still():
    """Even where every read hurts."""
    kept, synced = play(Machine(5000, 400 * MIB, 0.0))
    assert synced >= 0.5 * LEAST
