"""What both ends of a full sync share: what they are given (SpanSource, SpanSink), their frames, and the small pieces
of a run that decide: where it begins, how much is asked for at a time, how finely, what counts, how far syncpos is.

No I/O here, and nothing that touches contents; `peer.sync` says what the whole keeps. What is parsed here comes from a
peer and is hostile until then. In the protocols "loop" marks what is called on the loop and must not block; all else
may block and runs in an executor.
"""
from __future__ import annotations

import asyncio
import collections
import itertools
from collections.abc import Awaitable, Callable, Iterator
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

from marsx.base.position import POS_MAX, LogPos
from marsx.log.chain import Point
from marsx.peer import wire
from marsx.peer.spanio import KINDS
from marsx.peer.wire import PeerError, Reason, Type

SECTOR = 512
SPAN_MAX = 4 * 1024 * 1024
# Zeros in contents are left out in units of this size.
ZERO_CHUNK = 64 * 1024
RANGES_MAX = 1024

assert SPAN_MAX <= wire.MAX_BODY

Ranges = list[tuple[int, int]]


@dataclass(frozen=True, slots=True)
class Shape:
    """Sizes in bytes: what one request compares, its chunks, their blocks, and what one request fetches."""

    span: int = SPAN_MAX
    chunk: int = 64 * 1024
    block: int = 4096
    piece: int = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a run is, in bytes. `done`: contiguous from 0; `received`: contents; `written`: those and zeros."""

    size: int
    done: int
    received: int = 0
    written: int = 0
    requests: int = 0


@dataclass(frozen=True, slots=True)
class Resume:
    """Where a run begins. `proven`: syncpos is known to lie in the own history up to fetched. `why`: set when progress
    has to be thrown away; syncstatus must be 0, durably, before the run."""

    offset: int
    syncpos: Point | None = None
    proven: bool = False
    why: str = ""


@dataclass(frozen=True, slots=True)
class Refused:
    """A source says no. `restart`: it is the target's syncpos that is not in the source's history (rule 14)."""

    reason: Reason
    text: str
    restart: bool = False


class SyncRestart(PeerError):
    """The source's history does not contain syncpos: what was synced counts no more. The sink has been told: the next
    run begins at 0."""


class SpanSource(Protocol):
    """The logical contents of one resource's device, for one link."""

    @property
    def size(self) -> int:
        """Bytes."""

    def check(self, fetched: Point, syncpos: Point | None) -> Refused | None:
        """Do both lie in the own, durable history, and are the own contents consistent? An empty digest (zeros) at
        POS 0: the target has nothing of that log."""

    def reading(self, amount: int) -> AbstractAsyncContextManager[None]:
        """A read of so many bytes is done inside; waits until it does no harm to those who use the device. Loop."""

    def read(self, offset: int, buf: memoryview) -> None:
        """Fill buf (page aligned, whole sectors) with the newest contents."""

    def appended(self) -> int:
        """A number that covers everything a read that has ended could have seen."""

    async def durable(self, appended: int) -> Point:
        """Wait until that is durable, and see to it; the newest durable point (never one older than before). Loop."""

    async def close(self) -> None:
        """The link has ended; returns when nothing of this source runs any more. Loop."""


class SpanSink(Protocol):
    """The data device of a target, and what is published about it. One run at a time."""

    @property
    def capacity(self) -> int:
        """Bytes of the device."""

    def resume(self) -> Resume:
        """Where to go on. Loop."""

    def restart(self, why: str) -> None:
        """What was synced counts no more: syncstatus = 0, durably; `resume` says 0 now."""

    def fetched(self) -> Point:
        """End of the verified, durable local log; never behind what replay has been told. Loop."""

    def set_bound(self, bound: LogPos | None) -> bool:
        """Replay must not pass `bound` from now on (None: no bound). False: not in force, replay has passed it or is
        writing a window that reaches beyond. Loop."""

    def read(self, offset: int, buf: memoryview) -> None:
        """Fill buf (page aligned) from the device."""

    def write(self, offset: int, data: memoryview) -> None:
        """Write to the device (page aligned)."""

    def write_zeros(self, offset: int, length: int) -> None:
        """Make the range read as zeros."""

    def flush(self) -> None:
        """Everything written before the call is durable. An error is for good."""

    def put_syncpos(self, point: Point) -> None:
        """Publish, durably."""

    def put_syncstatus(self, offset: int, durable: bool) -> None:
        """Publish; durably when asked to."""


def where_to_resume(status: int, syncpos: Point | None, tip: Point | None, in_history: bool | None,
                    logs_there: bool) -> Resume:
    """Rules 14 and 16: go on at syncstatus, or begin at 0? `tip`: newest end in the own version links, `in_history`:
    whether these links lead through syncpos (None: they do not tell), `logs_there`: replay can go on from its position.

    Links that end before syncpos say nothing about it: then the source is asked."""
    if status <= 0:
        return Resume(0)
    if not logs_there:
        return Resume(0, why="the log that replay needs next is gone")
    if syncpos is None:
        return Resume(0, why="no syncpos stands beside syncstatus")
    if is_stale(syncpos, tip, in_history):
        return Resume(0, why=f"syncpos {syncpos.at} is not in the history of this host any more")
    reached = tip is not None and tip.at >= syncpos.at
    return Resume(status, syncpos, proven=reached and in_history is True)


def is_stale(syncpos: Point | None, tip: Point | None, in_history: bool | None) -> bool:
    """Rule 14: the history has forked below syncpos, also long after a sync has ended: what was synced counts no more.
    Links that end before syncpos prove nothing yet."""
    return syncpos is not None and tip is not None and tip.at >= syncpos.at and in_history is False


# -- ranges and frames ------------------------------------------------------------------------------------------------

def total_of(ranges: Ranges) -> int:
    """Bytes."""
    return sum(length for _, length in ranges)


def place_runs(ranges: Ranges, block: int, runs: Ranges) -> Ranges:
    """Runs of blocks (first, count), counted through all ranges one behind the other, as ranges of the device."""
    found: Ranges = []
    todo = iter(ranges)
    offset, length, begin = 0, 0, 0  # the range at hand, and where it begins in the count of bytes
    for first, count in runs:
        at, end = first * block, (first + count) * block
        while at < end:
            while at >= begin + length:
                begin += length
                step = next(todo, None)
                if step is None:  # the last block is short
                    return found
                offset, length = step
            part = min(end, begin + length) - at
            found.append((offset + at - begin, part))
            at += part
    return found


def in_units(ranges: Ranges, unit: int) -> int:
    """Bytes of all aligned units that the (ascending) ranges touch."""
    count, behind = 0, 0
    for offset, length in ranges:
        first, end = max(behind, offset // unit), -(-(offset + length) // unit)
        if end > first:
            count, behind = count + end - first, end
    return count * unit


def cut_ranges(ranges: Ranges, limit: int) -> Iterator[Ranges]:
    """Cut into lists of at most `limit` bytes and RANGES_MAX ranges."""
    piece: Ranges = []
    room = limit
    for offset, length in ranges:
        while length:
            if not room or len(piece) == RANGES_MAX:
                yield piece
                piece, room = [], limit
            part = min(length, room)
            piece.append((offset, part))
            offset, length, room = offset + part, length - part, room - part
    if piece:
        yield piece


def take_point(header: dict[str, Any], where: str) -> Point:
    """A position with digest, from a hostile peer."""
    fields = header.get(where) if where else header
    if not isinstance(fields, dict):
        raise wire.WireError(f"field {where!r} is not a position")
    try:
        return Point(wire.take_hex(fields, "digest", 32), take_at(fields))
    except ValueError as error:
        raise wire.WireError(str(error)) from None


def take_at(header: dict[str, Any]) -> LogPos:
    """A position without digest, from a hostile peer."""
    return LogPos(wire.take_nr(header), wire.take_host(header, "producer"), wire.take_pos(header))


def at_fields(at: LogPos) -> dict[str, Any]:
    """As fields of a header."""
    return {"nr": at.nr, "producer": at.producer, "pos": at.pos}


def point_fields(point: Point) -> dict[str, Any]:
    """As fields of a header."""
    return {**at_fields(point.at), "digest": point.digest}


def take_pairs(header: dict[str, Any], name: str, limit: int) -> Ranges:
    """A flat list of pairs of whole numbers."""
    flat = header.get(name, [])
    if not isinstance(flat, list) or len(flat) % 2 or len(flat) > 2 * limit \
            or not all(type(value) is int and 0 <= value <= POS_MAX for value in flat):
        raise wire.WireError(f"field {name!r} is not a list of at most {limit} pairs of numbers")
    return list(zip(flat[::2], flat[1::2], strict=True))


def flatten(pairs: Ranges) -> list[int]:
    """Inverse of take_pairs."""
    return list(itertools.chain.from_iterable(pairs))


@dataclass(frozen=True, slots=True)
class Request:
    """What a target asks; block 0 = contents, else digests of such blocks."""

    number: int
    fetched: LogPos
    block: int
    ranges: Ranges
    kind: str = "xxh3"
    still: bool = False

    @classmethod
    def parse(cls, frame: wire.Frame, size: int) -> Request:
        """Ranges ascend, lie in the device, are whole sectors, and whole blocks but for the end of the last."""
        header = frame.header
        block = 0 if frame.type is Type.SYNC_DATA else wire.take_int(header, "block", SECTOR, SPAN_MAX)
        kind = header.get("kind", KINDS[0])
        if kind not in KINDS:
            raise wire.WireError(f"asks for digests of kind {str(kind)[:40]!r}, which is unknown here")
        ranges = take_pairs(header, "ranges", RANGES_MAX)
        end = 0
        for place, (offset, length) in enumerate(ranges, 1):
            whole = length % (block or SECTOR) == 0 or (place == len(ranges) and length % SECTOR == 0)
            if offset < end or offset % SECTOR or not length or not whole or offset + length > size:
                raise wire.WireError(f"asks for {length} bytes at {offset} in blocks of {block}")
            end = offset + length
        if not 0 < total_of(ranges) <= SPAN_MAX:
            raise wire.WireError(f"asks for {total_of(ranges)} bytes at once")
        return cls(wire.take_int(header, "id", 1, 2**53), take_at(header), block, ranges, kind,
                   header.get("still") is True)


def check_not_before(at: LogPos, fetched: LogPos) -> None:
    """Rule 15: contents older than what the target has fetched must not be used."""
    if at < fetched:
        raise PeerError(Reason.BEHIND, f"the source is at {at}, the target has fetched {fetched}")
    if at.nr == fetched.nr and at.producer != fetched.producer:
        raise PeerError(Reason.SPLIT, f"the source is at {at}, the target has fetched {fetched}: other producer")


class Answer(NamedTuple):
    """What came for one request; `point` is its L, `asked_at` its F."""

    point: Point
    header: dict[str, Any]
    body: memoryview
    asked_at: LogPos


def split_zeros(ranges: Ranges, answer: Answer) -> tuple[Ranges, Ranges]:
    """(ranges whose contents are the body, ranges of zeros) of a data answer; hostile until here."""
    chunk = ZERO_CHUNK
    total = total_of(ranges)
    chunks = -(-total // chunk)
    zero = take_pairs(answer.header, "zero", RANGES_MAX)
    data, at = [], 0
    for first, count in [*zero, (chunks, 0)]:
        if first < at or first + count > chunks or (not count and first != chunks):
            raise wire.WireError(f"zero runs {zero} do not fit into {chunks} chunks")
        if first > at:
            data.append((at, first - at))
        at = first + count
    placed = place_runs(ranges, chunk, data)
    if len(answer.body) != total_of(placed):
        raise wire.WireError(f"{len(answer.body)} bytes of contents came where {total_of(placed)} are due")
    return placed, place_runs(ranges, chunk, zero)


class Pace:
    """How many bytes may be asked for at a time: more while answers come quickly, less when they have to queue, so that
    a far line is filled and a slow one keeps no request (and no bound) waiting for long. Entered in the order asked."""

    QUICK, SLOW = 0.5, 1.5  # seconds

    def __init__(self, start: int, low: int, high: int) -> None:
        self.limit = start
        self._low, self._high = low, high
        self._used = 0
        self._since_cut = 0
        # One is woken for each that leaves: hundreds may wait, and waking them all costs more than their contents.
        self._waiting: collections.deque[tuple[int, asyncio.Future[None]]] = collections.deque()

    async def enter(self, amount: int) -> None:
        """Wait for room. A single request always has room."""
        if not self._waiting and self._fits(amount):
            self._used += amount
            return
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((amount, turn))
        try:
            await turn
        except asyncio.CancelledError:
            if not turn.cancelled():
                self.leave(amount)
            raise

    def _fits(self, amount: int) -> bool:
        return not self._used or self._used + amount <= self.limit

    def _next(self) -> None:
        while self._waiting and (self._waiting[0][1].cancelled() or self._fits(self._waiting[0][0])):
            amount, turn = self._waiting.popleft()
            if not turn.cancelled():
                self._used += amount
                turn.set_result(None)

    def widen(self, limit: int) -> None:
        """Begin with so much, within the bounds."""
        self.limit = max(self.limit, min(self._high, limit))
        self._next()

    def leave(self, amount: int) -> None:
        """The request has ended."""
        self._used -= amount
        self._next()

    def answered(self, amount: int, took: float) -> None:
        """An answer came `took` seconds after its request. A cut counts once for all that was out at that time."""
        self._since_cut += amount
        if took < self.QUICK:
            self.limit = min(self._high, self.limit + amount)
            self._next()
        elif took > self.SLOW and self._since_cut > self.limit:
            self.limit = max(self._low, self.limit * 3 // 4)
            self._since_cut = 0


class Detail:
    """How finely to compare, learnt from the spans before. Where nearly all differs, digests only cost time; where many
    chunks do, their blocks are asked for at once: that costs a few digests more, and saves a round trip and a second
    reading of the chunks on both sides."""

    COPY, CHUNKS, BLOCKS, FINE = range(4)
    PROBE = 16  # every so many spans one is compared in full
    MANY = 1 / 8

    def __init__(self) -> None:
        self._spans = 0
        # Which part of the chunks differs; of those, which part of the blocks. The first span says most.
        self._chunks, self._blocks = _Share(), _Share()

    def choose(self) -> int:
        """For the next span."""
        self._spans += 1
        if self._spans % self.PROBE == 0 or self._blocks.value <= 0.5:
            return self.FINE if self._chunks.value > self.MANY else self.BLOCKS
        return self.COPY if self._chunks.value > 0.75 else self.CHUNKS

    def saw(self, length: int, in_chunks: int, in_blocks: int | None) -> None:
        """Of `length` bytes so many were in chunks that differ; of those so many in blocks that differ."""
        self._chunks.saw(in_chunks / length)
        if in_blocks is not None and in_chunks:
            self._blocks.saw(in_blocks / in_chunks)


class _Share:
    """A moving average that begins with its first value."""

    LONGEST = 4

    def __init__(self) -> None:
        self.value = 0.0
        self._seen = 0

    def saw(self, value: float) -> None:
        self._seen = min(self.LONGEST, self._seen + 1)
        self.value += (value - self.value) / self._seen


class Prefix:
    """Counted spans; `end` is where the first gap begins."""

    def __init__(self, start: int) -> None:
        self.end = start
        self._later: dict[int, int] = {}

    def add(self, offset: int, length: int) -> None:
        """This span is written, or equal."""
        self._later[offset] = length
        while self.end in self._later:
            self.end += self._later.pop(self.end)


class HighWater:
    """syncpos: raised, durably, to the newest L asked for; many who wait are served by one update."""

    def __init__(self, start: Point | None, put: Callable[[Point], Awaitable[None]]) -> None:
        self.durable = self._wanted = start
        self._put = put
        self._lock = asyncio.Lock()

    async def reach(self, point: Point) -> None:
        """Returns when syncpos is durable at or behind `point`."""
        if self._wanted is None or self._wanted.at < point.at:
            self._wanted = point
        async with self._lock:
            if self.durable is None or self.durable.at < point.at:
                newest = self._wanted
                await self._put(newest)
                self.durable = newest


