"""How fast sync, fetch, replay and the device go: `actual-H/amount-KIND_rate` (KiB/s) and `ops-KIND_rate` (1/s).

Smoothed over about ten seconds, so that what is left divided by the rate is a time that people can use. Said when it
has changed by a twentieth; what rests is said once, as 0, and costs nothing after that.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from marsx.base.position import LogPos
from marsx.tree import paths
from marsx.tree.store import Store

if TYPE_CHECKING:
    from marsx.daemon.resource import Runner

KINDS = ("sync", "file", "replay", "if")
SMOOTH_S = 10.0
WORTH = 0.05
# Two ticks in a row without any progress: it rests.
RESTS = 2

Counts = Mapping[str, tuple[int, int]]


class Count:
    """Bytes and operations of each kind so far."""

    def __init__(self) -> None:
        self.total: dict[str, tuple[int, int]] = {}

    def add(self, kind: str, amount: int, operations: int = 1) -> None:
        """So much more."""
        before = self.total.get(kind, (0, 0))
        self.total[kind] = (before[0] + max(0, amount), before[1] + operations)

    def moved(self, kind: str, before: LogPos | None, after: LogPos) -> None:
        """A position in the logs has moved."""
        if before is not None and after > before:
            self.add(kind, after.pos - before.pos if after.nr == before.nr else after.pos)


class _Meter:
    """One smoothed rate."""

    def __init__(self) -> None:
        self.rate = 0.0
        self._still = 0

    def step(self, amount: int, seconds: float) -> int:
        """The rate, after so much more."""
        self._still = 0 if amount else self._still + 1
        if self._still >= RESTS:
            self.rate = 0.0
        elif not self.rate:
            self.rate = amount / seconds
        else:
            self.rate += (1 - math.exp(-seconds / SMOOTH_S)) * (amount / seconds - self.rate)
        return math.ceil(self.rate)


class Rates:
    """Of one resource on this host."""

    def __init__(self, store: Store, resource: str, host: str, clock: Callable[[], float]) -> None:
        self._store = store
        self._names = {(kind, which): paths.actual(resource, host, f"{which}-{kind}_rate")
                       for kind in KINDS for which in ("amount", "ops")}
        self._clock = clock
        self._meters = {key: _Meter() for key in self._names}
        self._last: dict[str, tuple[int, int]] = {}
        self._at: float | None = None

    def tick(self, counts: Counts) -> None:
        """What was counted so far; a count that has gone back began anew."""
        now = self._clock()
        before, self._at = self._at, now
        steps = {kind: counts.get(kind, (0, 0)) for kind in KINDS}
        last, self._last = self._last, steps
        if before is None or now <= before:
            return
        said = []
        for kind, (amount, operations) in steps.items():
            was = last.get(kind, (0, 0))
            if amount < was[0] or operations < was[1]:
                was = (0, 0)
            for which, more, unit in (("amount", amount - was[0], 1024), ("ops", operations - was[1], 1)):
                rate = self._meters[kind, which].step(more, now - before)
                said += self._worth(self._names[kind, which], -(-rate // unit))
        if said:
            self._store.put_many(said)

    def _worth(self, name: str, rate: int) -> list[tuple[str, str]]:
        """What to say, if anything."""
        text = self._store.get(name)
        old = int(text) if text.isascii() and text.isdigit() else 0
        changed = abs(rate - old) > WORTH * old or bool(rate) != bool(old)
        return [(name, str(rate))] if changed else []


def counted(runner: Runner) -> Counts:
    """What a resource has done so far."""
    if runner.producer is not None:
        volume = runner.producer.primary.volume
        found = volume.counters if volume is not None else {}
        return {"if": (found.get("write_bytes", 0) + found.get("read_bytes", 0),
                       found.get("writes", 0) + found.get("reads", 0))}
    return runner.consumer.count.total if runner.consumer is not None else {}
