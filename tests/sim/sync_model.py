"""In-memory twins of what a full sync works on: a log with its history, a primary, a secondary with its replay.

Small on purpose: a block is one sector, a record writes one block, POS counts a group of 4096 bytes per record. The
real coroutines of `marsx.peer.sync` run over them, in unit tests and in the search of `test_sync_rules`.
"""
from __future__ import annotations

import asyncio
import contextlib
import hashlib
from collections.abc import Callable

from marsx.base.errors import MarsError
from marsx.base.position import LogPos
from marsx.log.chain import Point
from marsx.peer.syncparts import Refused, Resume, Shape, where_to_resume
from marsx.peer.wire import Reason

BLOCK = 512
GROUP = 4096
SHAPE = Shape(span=4 * BLOCK, chunk=2 * BLOCK, block=BLOCK, piece=3 * BLOCK)


def contents(value: int) -> bytes:
    """What a block holds that was written with this value; 0 = zeros."""
    return value.to_bytes(4, "big") * (BLOCK // 4)


def _hash(*parts: object) -> str:
    return hashlib.md5(repr(parts).encode()).hexdigest()


class History:
    """Records (block, value) one behind the other, and the logs that they lie in (number, producer, first record)."""

    def __init__(self, blocks: int) -> None:
        self.blocks = blocks
        self.records: list[tuple[int, int]] = []
        self.logs: list[tuple[int, str, int]] = []
        self._starts: list[str] = []  # digest at POS 0 of each log
        self._after: list[str] = [""]  # digest after each record
        self.begin_log("alpha")

    def begin_log(self, producer: str) -> None:
        """The next log begins here."""
        nr = self.logs[-1][0] + 1 if self.logs else 1
        self._starts.append(_hash(nr, producer, self._last()))
        self.logs.append((nr, producer, len(self.records)))

    def _last(self) -> str:
        if self.logs and self.logs[-1][2] == len(self.records):
            return self._starts[-1]
        return self._after[-1]

    def write(self, block: int, value: int) -> None:
        """One record more."""
        after = _hash(block, value, self._last())
        self.records.append((block, value))
        self._after.append(after)

    def fork(self, keep: int, producer: str) -> History:
        """What a host goes on with that has the first `keep` records: a new log behind them."""
        new = History(self.blocks)
        new.logs = [log for log in self.logs if log[2] <= keep]
        new._starts = self._starts[:len(new.logs)]
        new.records, new._after = self.records[:keep], self._after[:keep + 1]
        new.begin_log(producer)
        return new

    def point(self, index: int) -> Point:
        """Behind the first `index` records; in the newest log that reaches there."""
        k = max(k for k, log in enumerate(self.logs) if log[2] <= index)
        nr, producer, first = self.logs[k]
        digest = self._starts[k] if index == first else self._after[index]
        return Point(digest, LogPos(nr, producer, (index - first) * GROUP))

    def index_of(self, point: Point) -> int | None:
        """Inverse of point; None for a point of another history."""
        ends = [log[2] for log in self.logs[1:]] + [len(self.records)]
        for k, (nr, producer, first) in enumerate(self.logs):
            if (nr, producer) == (point.at.nr, point.at.producer):
                index = first + point.at.pos // GROUP
                if index > ends[k]:
                    return None
                digest = self._starts[k] if point.at.pos == 0 else self._after[index]
                return index if digest == point.digest else None
        return None

    def state(self, index: int) -> list[int]:
        """Value of each block behind the first `index` records."""
        values = [0] * self.blocks
        for block, value in self.records[:index]:
            values[block] = value
        return values


class PrimaryModel:
    """The host whose log it is: what is durable, and who waits for more."""

    def __init__(self, history: History) -> None:
        self.history = history
        self.durable = len(history.records)
        self.alive = True
        self.moved = asyncio.Event()

    def flush(self, upto: int | None = None) -> None:
        """Make records durable, all or the first `upto`."""
        self.durable = max(self.durable, len(self.history.records) if upto is None else upto)
        self.moved.set()
        self.moved.clear()


class MemorySource:
    """SpanSource over a PrimaryModel. `meanwhile` is called between two blocks of a read."""

    def __init__(self, primary: PrimaryModel, meanwhile: Callable[[], None] = lambda: None) -> None:
        self.primary = primary
        self.meanwhile = meanwhile
        self.closed = 0
        self.reads = 0
        self.size = primary.history.blocks * BLOCK

    def check(self, fetched: Point, syncpos: Point | None) -> Refused | None:
        for point, restart in ((fetched, False), (syncpos, True)):
            if point is None:
                continue
            index = self.primary.history.index_of(point)
            if index is None or index > self.primary.durable:
                return Refused(Reason.SPLIT, f"{point.at} is not in the history here", restart=restart)
        return None

    def reading(self, amount: int) -> contextlib.AbstractAsyncContextManager[None]:
        return contextlib.nullcontext()

    def read(self, offset: int, buf: memoryview) -> None:
        if not self.primary.alive:
            raise MarsError("the source is dead")
        self.reads += 1
        history = self.primary.history
        for at in range(0, len(buf), BLOCK):
            value = history.state(len(history.records))[(offset + at) // BLOCK]
            buf[at:at + BLOCK] = contents(value)
            self.meanwhile()

    def appended(self) -> int:
        return len(self.primary.history.records)

    async def durable(self, appended: int) -> Point:
        while self.primary.durable < appended:
            await self.primary.moved.wait()
        return self.primary.history.point(self.primary.durable)

    async def close(self) -> None:
        self.closed += 1


class TargetModel:
    """A secondary: its copy of the log, replay in windows that are not atomic, its disk with a volatile cache, and what
    it has published."""

    def __init__(self, history: History, values: list[int]) -> None:
        self.history = history
        self.disk = list(values)
        self.stable = list(values)
        self.fetched = 0
        self.replayed = 0
        self.window: tuple[int, list[tuple[int, int]]] | None = None
        self.dirty = 0  # POS + LEN of the replay link: below it the disk may be a mixture (rule 12)
        self.bound: LogPos | None = None
        self.status = 0
        self.syncpos: Point | None = None

    @property
    def size(self) -> int:
        return len(self.disk) * BLOCK

    def flush(self) -> None:
        """Everything on the disk is stable."""
        self.stable = list(self.disk)

    def window_limit(self) -> int:
        """How far the next window may reach."""
        limit = self.fetched
        while limit > self.replayed and self.bound is not None and self.history.point(limit).at > self.bound:
            limit -= 1
        return limit

    def begin_window(self, end: int) -> None:
        """Replay up to `end`: newest wins, in any order."""
        newest = dict(self.history.records[self.replayed:end])
        self.dirty = max(self.dirty, end)
        self.window = (end, list(newest.items()))

    def step_window(self, pick: Callable[[int], int]) -> None:
        """One write of the window, or its end: flush, then the position moves."""
        assert self.window is not None
        end, writes = self.window
        if writes:
            block, value = writes.pop(pick(len(writes)))
            self.disk[block] = value
        else:
            self.flush()
            self.replayed, self.window = end, None

    def crash(self, survives: Callable[[], bool]) -> None:
        """Power cut: of what was not flushed any part may be gone."""
        for block in range(len(self.disk)):
            if not survives():
                self.disk[block] = self.stable[block]
        self.flush()
        self.window, self.bound = None, None

    def in_history(self, point: Point) -> bool | None:
        """As the own version links tell it: no answer behind what is fetched."""
        if point.at > self.history.point(self.fetched).at:
            return None
        index = self.history.index_of(point)
        return index is not None and index <= self.fetched

    def claims_consistent(self) -> bool:
        """The rule of the view (rules 12 and 14)."""
        if self.status < self.size or self.window is not None or self.replayed < self.dirty:
            return False
        if self.syncpos is None:
            return True
        index = self.history.index_of(self.syncpos)
        return index is not None and index <= self.replayed

    def is_consistent(self) -> bool:
        """The truth."""
        return self.disk == self.history.state(self.replayed)


class MemorySink:
    """SpanSink over a TargetModel."""

    def __init__(self, target: TargetModel) -> None:
        self.target = target
        self.inside = 0
        self.restarts: list[str] = []
        self.bounds: list[LogPos | None] = []

    @property
    def capacity(self) -> int:
        return self.target.size

    def resume(self) -> Resume:
        t = self.target
        known = t.in_history(t.syncpos) if t.syncpos is not None else None
        return where_to_resume(t.status, t.syncpos, t.history.point(t.fetched), known, True)

    def restart(self, why: str) -> None:
        self.restarts.append(why)
        self.target.status = 0

    def fetched(self) -> Point:
        return self.target.history.point(self.target.fetched)

    def set_bound(self, bound: LogPos | None) -> bool:
        t = self.target
        t.bound = bound
        self.bounds.append(bound)
        upper = t.window[0] if t.window is not None else t.replayed
        return bound is None or t.history.point(upper).at <= bound

    def read(self, offset: int, buf: memoryview) -> None:
        for at in range(0, len(buf), BLOCK):
            buf[at:at + BLOCK] = contents(self.target.disk[(offset + at) // BLOCK])

    def write(self, offset: int, data: memoryview) -> None:
        for at in range(0, len(data), BLOCK):
            self.target.disk[(offset + at) // BLOCK] = int.from_bytes(data[at:at + 4], "big")

    def write_zeros(self, offset: int, length: int) -> None:
        for at in range(0, length, BLOCK):
            self.target.disk[(offset + at) // BLOCK] = 0

    def flush(self) -> None:
        self.target.flush()

    def put_syncpos(self, point: Point) -> None:
        self.target.syncpos = point

    def put_syncstatus(self, offset: int, durable: bool) -> None:
        self.target.status = offset
