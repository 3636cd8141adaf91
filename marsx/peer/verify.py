"""Verify: a target compares its data device with the source's contents while both are written to (rule 17).

    target                                              source
    SYNC_OPEN {resource, fetched}                   ->  does this point lie in my own history?
                                                    <-  SYNC_ACCEPT {size}  or  SYNC_REFUSE {reason, text}
    VERIFY_DIGESTS {id, F, block, kind, ranges,     ->
                    [still]}
                                                    <-  VERIFY_ANSWER {id, low = La, L = Lb} digests, 16 bytes a block

The source has read somewhere within [La, Lb]: everything up to La was accepted before, what it saw is durable at Lb.
Spans are compared by digests of chunks (64 KiB), chunks that differ by digests of blocks (4 KiB). A block that differs
*differs* if no record of the own log between La and Rb touches it, where Rb is the end of the last replay window begun
when the own read had ended. Touched blocks are asked about again; after TRIES the source holds its writers back for
the time of one small read (La = Lb), and replay here stops at just that position.

Invariants (rule 17):
    source  La is a durable point taken before the read; Lb >= what had been accepted after it, and durable
    target  reads when replay has reached Lb, and Rb is taken after that read
            a still answer is compared when replay stands at just its position, with no window in flight
            the bound that this needs is in force before the request is sent, and ends with the run at the latest
    nothing is written here: repair is a sync run (`sync.repair_ranges`)

It holds for a replica that was consistent when the run began and that no sync writes to meanwhile; a repair of what
has been decided already does no harm, because such a block is asked about again only in a later request.
"""
from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, Protocol

from marsx.base.errors import MarsError
from marsx.base.position import POS_MAX, LogPos
from marsx.base.tasks import in_group, run_blocking, to_the_end
from marsx.log.chain import Point
from marsx.peer import spanio, syncparts, wire
from marsx.peer.asking import Asking, expect_digests, own_digests
from marsx.peer.limit import Bucket
from marsx.peer.link import Link
from marsx.peer.sync import Serving, SyncService
from marsx.peer.syncparts import SECTOR, Answer, Pace, Ranges, Request, Shape, SpanSource
from marsx.peer.wire import Buffer, PeerError, Reason, Type

SERVICE = "verify"
TRIES = 5
# So many blocks at most are read while the writers of the source wait.
STILL_BLOCKS = 16
HULL_MAX = 64 * 1024 * 1024

Found = Callable[[Ranges], Awaitable[None]]


class VerifySource(SpanSource, Protocol):
    """What a source of a verify can do besides."""

    def settled(self) -> Point:
        """A durable point: a read that begins now sees everything up to it."""

    def still(self) -> contextlib.AbstractAsyncContextManager[Point]:
        """No write is accepted inside; gives the point that all accepted before is durable at. Loop."""


class VerifySink(Protocol):
    """The data device of a consistent replica, its replay and its copy of the log."""

    @property
    def capacity(self) -> int:
        """Bytes of the resource."""

    def fetched(self) -> Point:
        """End of the verified, durable local log. Loop."""

    async def reached(self, at: LogPos) -> None:
        """Returns when replay has brought everything up to `at` to the device. Loop."""

    def begun(self) -> LogPos:
        """Upper end of what replay may have written: of the last window begun."""

    def set_bound(self, bound: LogPos | None) -> bool:
        """As SpanSink.set_bound. Loop."""

    def read(self, offset: int, buf: memoryview) -> None:
        """Fill buf (page aligned) from the device."""

    def logs(self) -> contextlib.AbstractContextManager[None]:
        """Own logs from what is fetched now on are kept while inside. Loop."""

    def touched(self, low: Point, upto: LogPos, offset: int, length: int, block: int) -> bytes:
        """One byte for each block of the range: 1 if a record of the own log in (low, upto] touches it."""


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a run is, in bytes. `done`: contiguous, from 0 (a run that begins behind it counts what lies before);
    `equal`: of that, what lies before the first difference; `differs`: so far; `again`: blocks asked about again."""

    size: int
    done: int = 0
    equal: int = 0
    differs: int = 0
    again: int = 0


class Merge:
    """What differs in each unit, given out in the order of the units, neighbours merged. `equal`: bytes of all units
    before the first that differs somewhere."""

    def __init__(self) -> None:
        self.next = 0
        self.equal = 0
        self._all_equal = True
        self._later: dict[int, tuple[Ranges, Ranges]] = {}
        self._last: tuple[int, int] | None = None

    def add(self, number: int, unit: Ranges, differs: Ranges) -> tuple[int, Ranges]:
        """Unit `number` is decided. (bytes that are final by that, what differs in them)."""
        self._later[number] = (unit, differs)
        final: Ranges = []
        done = 0
        while self.next in self._later:
            unit, differs = self._later.pop(self.next)
            self.next += 1
            done += syncparts.total_of(unit)
            self._all_equal = self._all_equal and not differs
            self.equal += syncparts.total_of(unit) if self._all_equal else 0
            for one in differs:
                self._take(one, final)
            if self._last is not None and sum(self._last) < sum(unit[-1]):
                final += self.rest()
        return done, final

    def _take(self, one: tuple[int, int], final: Ranges) -> None:
        if self._last is not None and sum(self._last) == one[0]:
            self._last = (self._last[0], self._last[1] + one[1])
            return
        final += self.rest()
        self._last = one

    def rest(self) -> Ranges:
        """What waits for a neighbour."""
        last, self._last = self._last, None
        return [last] if last is not None else []


def whole_units(size: int, span: int, start: int = 0) -> Iterator[Ranges]:
    """A device from `start` on, span by span."""
    for offset in range(start, size, span):
        yield [(offset, min(span, size - offset))]


def small_units(ranges: Ranges, span: int) -> Iterator[Ranges]:
    """Scattered ranges: units of at most a span, whose hull is small enough to be marked block by block."""
    unit: Ranges = []
    for piece in syncparts.cut_ranges(ranges, span):
        for offset, length in piece:
            full = syncparts.total_of(unit) + length > span or len(unit) == syncparts.RANGES_MAX
            if unit and (full or offset + length - unit[0][0] > HULL_MAX):
                yield unit
                unit = []
            unit.append((offset, length))
    if unit:
        yield unit


# -- source -----------------------------------------------------------------------------------------------------------

class _Serving(Serving):
    due = (Type.VERIFY_DIGESTS,)
    source: VerifySource

    async def _answer(self, request: Request) -> None:
        try:
            if request.still:
                await self._answer_still(request)
                return
            amount = syncparts.total_of(request.ranges)
            async with self._buffers.one(amount) as buf, self.source.reading(amount):
                low, body, seen = await run_blocking(self._executor, self._between, request, buf)
            more = {"low": syncparts.point_fields(low)}
            syncparts.check_not_before(low.at, request.fetched)
            await self._send(Type.VERIFY_ANSWER, request, seen, more, body)
        finally:
            self._slots.release()

    def _between(self, request: Request, buf: memoryview) -> tuple[Point, Buffer, int]:
        low = self.source.settled()  # before the read
        body, _, seen = self._work(request, buf)
        return low, body, seen

    async def _answer_still(self, request: Request) -> None:
        if syncparts.total_of(request.ranges) > STILL_BLOCKS * request.block:
            raise wire.WireError("asks for too much at a standstill")
        async with self._buffers.one(syncparts.total_of(request.ranges)) as buf:
            async with self.source.still() as point:
                body, _, _ = await run_blocking(self._executor, self._work, request, buf)
        syncparts.check_not_before(point.at, request.fetched)
        fields = syncparts.point_fields(point)
        await self._link.send(Type.VERIFY_ANSWER, {"id": request.number, **fields, "low": fields}, body)


class VerifyService(SyncService):
    """The `verify` service for `server.Server`; `source_for` gives a new VerifySource."""

    serving = _Serving


# -- target -----------------------------------------------------------------------------------------------------------

async def verify_resource(link: Link, resource: str, sink: VerifySink, found: Found, *,
                          executor: concurrent.futures.Executor | None = None, ranges: Ranges | None = None,
                          rate_kb: Callable[[], int] = lambda: 0, progress: Callable[[Progress], None] | None = None,
                          answer_timeout: float = 180.0, shape: Shape | None = None, fly: int = 8,
                          kind: str = "xxh3", start: int = 0) -> Progress:
    """Compare all of the device, or what lies behind `start`, or just `ranges` (ascending). What differs goes to
    `found`, in order, merged.

    Returns when all is decided. Cancel it to stop. Raises PeerError, MarsError (replay does not get on, the log is not
    sound) or what the sink raised. `rate_kb`: KiB/s to compare at most, 0 = no limit. The link is for one run; the
    caller closes it, but for a run that ends with questions open."""
    run = Verify(link, sink, found, executor, shape or Shape(), fly, kind)
    run.tell, run.answer_timeout, run.bucket = progress, answer_timeout, Bucket(rate_kb)
    return await run.run(resource, ranges, start)


class Verify(Asking):
    """One run at its target."""

    answer_type = Type.VERIFY_ANSWER

    def __init__(self, link: Link, sink: VerifySink, found: Found, executor: concurrent.futures.Executor | None,
                 shape: Shape, fly: int, kind: str) -> None:
        super().__init__(link, executor, shape.span)
        self.tell: Callable[[Progress], None] | None = None
        self.answer_timeout = 180.0
        self.bucket = Bucket(lambda: 0)
        self._sink = sink
        self._found = found
        self._shape = shape
        self._kind = kind
        self._pace = Pace(min(16, fly) * shape.span, shape.span, fly * shape.span)
        self._slots = asyncio.Semaphore(4 * fly)
        self._progress = Progress(0)
        self._merge = Merge()
        self._one_still = asyncio.Lock()
        self._in_order = asyncio.Lock()

    async def run(self, resource: str, ranges: Ranges | None, start: int = 0) -> Progress:
        """See verify_resource."""
        size, span = await self._open(resource), self._shape.span
        if ranges is None:
            start = min(start, size) // self._shape.chunk * self._shape.chunk
            self._progress, units = Progress(size, start, start), whole_units(size, span, start)
            self._merge.equal = start
        else:
            self._progress, units = Progress(syncparts.total_of(ranges)), small_units(ranges, span)
        try:
            await in_group(lambda tasks: self._all(units, tasks))
        finally:
            # What still comes must find nobody, and replay is free again.
            try:
                if self._asked:
                    await to_the_end(self._link.close(Reason.CLOSED, "the verify has ended here"))
            finally:
                self._sink.set_bound(None)
        return self._progress

    async def _open(self, resource: str) -> int:
        header = {"resource": resource, "fetched": syncparts.point_fields(self._sink.fetched())}
        await self._link.send(Type.SYNC_OPEN, header)
        answer = wire.expect(await self._link.recv(self._link.timing.io_timeout), Type.SYNC_ACCEPT, Type.SYNC_REFUSE)
        if answer.type is Type.SYNC_REFUSE:
            reason, text = wire.parse_reason(answer.header)
            raise PeerError(reason, f"{self._link.who}: {text}")
        size = wire.take_int(answer.header, "size", SECTOR, POS_MAX)
        if size != self._sink.capacity:
            raise MarsError(f"{self._link.who} has {size} bytes, this replica {self._sink.capacity}",
                            "try again when the resource has one size everywhere")
        return size

    async def _all(self, units: Iterator[Ranges], tasks: asyncio.TaskGroup) -> None:
        taking = tasks.create_task(self._take_answers())
        await in_group(lambda spans: self._walk(units, spans))
        taking.cancel()
        await self._give(self._merge.rest())

    async def _walk(self, units: Iterator[Ranges], tasks: asyncio.TaskGroup) -> None:
        for number, unit in enumerate(units):
            length = syncparts.total_of(unit)
            await self._slots.acquire()
            await self._pace.enter(length)
            await self.bucket.take(length)
            tasks.create_task(self._unit(number, unit))

    async def _unit(self, number: int, unit: Ranges) -> None:
        differs = await self._decide(unit)
        async with self._in_order:
            done, final = self._merge.add(number, unit, differs)
            await self._give(final)
            self._report(done=self._progress.done + done, equal=self._merge.equal)
        self._pace.leave(syncparts.total_of(unit))
        self._slots.release()

    async def _give(self, ranges: Ranges) -> None:
        if ranges:
            self._report(differs=self._progress.differs + syncparts.total_of(ranges))
            await self._found(ranges)

    def _report(self, **changed: int) -> None:
        self._progress = replace(self._progress, **changed)
        if self.tell is not None:
            self.tell(self._progress)

    # One unit

    async def _decide(self, unit: Ranges) -> Ranges:
        """What differs in it."""
        open_ = await self._coarse(unit) if len(unit) == 1 else unit
        differs: Ranges = []
        for attempt in range(TRIES):
            if not open_:
                break
            if attempt:
                self._report(again=self._progress.again + syncparts.total_of(open_) // self._shape.block)
            sure, open_ = await self._look(open_)
            differs += sure
        for part in syncparts.cut_ranges(open_, STILL_BLOCKS * self._shape.block):
            differs += await self._look_still(part)
        return sorted(differs)

    async def _coarse(self, ranges: Ranges) -> Ranges:
        """Chunks that have to be looked at."""
        answer = await self._ask(ranges, self._shape.chunk, pace=self._pace)
        await self._sink.reached(answer.point.at)
        mine = await self._call(syncparts.total_of(ranges), own_digests, self._sink.read, ranges, self._shape.chunk,
                                self._kind)
        expect_digests(answer, mine)
        return syncparts.place_runs(ranges, self._shape.chunk, spanio.differ(mine, answer.body))

    async def _look(self, ranges: Ranges) -> tuple[Ranges, Ranges]:
        """(blocks that differ for sure, blocks that differ but are touched)."""
        with self._sink.logs():
            answer = await self._ask(ranges, self._shape.block)
            low = syncparts.take_point(answer.header, "low")
            self._check_low(low, answer)
            await self._sink.reached(answer.point.at)
            mine, upto = await self._call(syncparts.total_of(ranges), self._read_and_note, ranges)
            expect_digests(answer, mine)
            runs = spanio.differ(mine, answer.body)
            return await run_blocking(self._executor, self._sort, ranges, runs, low, upto)

    def _check_low(self, low: Point, answer: Answer) -> None:
        """La lies behind what was fetched when it was asked for, so the logs from there on are here."""
        syncparts.check_not_before(low.at, answer.asked_at)
        if low.is_hole or low.at > answer.point.at:
            raise wire.WireError(f"read between {low.at} and {answer.point.at}: that is no interval")

    def _read_and_note(self, ranges: Ranges, buf: memoryview) -> tuple[bytes, LogPos]:
        """(own digests, end of the last replay window begun when the read had ended). In the executor."""
        mine = own_digests(self._sink.read, ranges, self._shape.block, self._kind, buf)
        return mine, self._sink.begun()

    def _sort(self, ranges: Ranges, runs: Ranges, low: Point, upto: LogPos) -> tuple[Ranges, Ranges]:
        """Of the blocks that differ: (untouched, touched between low and upto). In the executor."""
        sure: Ranges = []
        again: Ranges = []
        found = syncparts.place_runs(ranges, self._shape.block, runs)
        if found:
            block, start = self._shape.block, found[0][0]
            marks = self._sink.touched(low, upto, start, sum(found[-1]) - start, block)
            for offset, length in found:
                for at in range(offset, offset + length, block):
                    part = (at, min(block, offset + length - at))
                    (again if marks[(at - start) // block] else sure).append(part)
        return sure, again

    async def _look_still(self, ranges: Ranges) -> Ranges:
        """Blocks that differ, decided at one position on both sides."""
        block = self._shape.block
        async with self._one_still:
            self._hold()
            answer = await self._ask(ranges, block, still=True)
            at = answer.point.at
            if syncparts.take_point(answer.header, "low") != answer.point:
                raise wire.WireError("an answer from a standstill that is an interval")
            self._sink.set_bound(at)
            await self._sink.reached(at)
            mine, upto = await self._call(syncparts.total_of(ranges), self._read_and_note, ranges)
            if upto != at:
                raise AssertionError(f"replay was to stop at {at}, but has begun a window up to {upto}")
            self._sink.set_bound(None)
        expect_digests(answer, mine)
        return syncparts.place_runs(ranges, block, spanio.differ(mine, answer.body))

    def _hold(self) -> None:
        """Replay stays at or below what is fetched now, and so below whatever the source will say."""
        fetched = self._sink.fetched().at
        while not self._sink.set_bound(fetched):
            before, fetched = fetched, self._sink.fetched().at
            if fetched <= before:
                raise MarsError(f"replay is beyond {fetched}, up to which the log is fetched",
                                "this is an error in marsd; the verify stops, no data were changed")

    async def _ask(self, ranges: Ranges, block: int, *, still: bool = False, pace: Pace | None = None) -> Answer:
        more: dict[str, Any] = {"block": block, "kind": self._kind}
        if still:
            more["still"] = True
        asked = await self._send(next(self._numbers), Type.VERIFY_DIGESTS, self._sink.fetched().at, ranges, more)
        answer = await asked.answer(self.answer_timeout)
        if pace is not None:
            pace.answered(syncparts.total_of(ranges), asked.took)
        return answer
