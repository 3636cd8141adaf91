"""Full sync: a target compares its data device with the source's contents and takes over what differs, while the log
goes on being fetched and replayed.

    target                                            source
    SYNC_OPEN {resource, fetched, [syncpos]}      ->  do these points lie in my own history?
                                                  <-  SYNC_ACCEPT {size}  or  SYNC_REFUSE {reason, text, restart}
    SYNC_DIGESTS {id, F, block, ranges}           ->
                                                  <-  SYNC_ANSWER {id, L} digests, 16 bytes a block
    SYNC_DATA {id, F, ranges}                     ->
                                                  <-  SYNC_ANSWER {id, L, [zero]} contents but for the zero runs

F is what the target had fetched when it sent the request; L is a durable position of the source, with its digest, at
which everything seen in the answer is part of the history. A span is compared by digests of chunks (64 KiB), what
differs by digests of blocks (4 KiB), and only differing blocks travel; zeros never do. Where many chunks differ, the
blocks are compared at once; where nearly all differs, the digests are left out.

Invariants (rules 13 to 16):
    source  L >= what had been accepted after the contents were read; an answer leaves only when L is durable
            an answer with L < F is never given
    target  replay stays at or below the smallest F of all requests whose contents may still be written ("bound"); a
            bound is in force before its request is sent, and ends only when its writes have ended, or with the run
            syncpos >= L, durable, before anything of that answer is written or counted as equal
            syncstatus: the contiguous prefix that is counted, published after a flush that was begun behind it
            an answer is matched by id and link; a run that ends with questions open ends the link
    neither coroutine returns, also when cancelled, while a call of its source or sink still runs

What the source and the sink must be: SpanSource and SpanSink in `peer.syncparts`.
"""
from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from typing import Any, TypeVar

from marsx.base.errors import MarsError
from marsx.base.position import NAME_MAX, POS_MAX, LogPos
from marsx.base.tasks import in_group, run_blocking, to_the_end
from marsx.log.chain import Point
from marsx.peer import spanio, syncparts, wire
from marsx.peer.asking import Asked, Asking, expect_digests, own_digests
from marsx.peer.limit import Bucket
from marsx.peer.link import Link
from marsx.peer.server import Peer
from marsx.peer.spanio import BodyRoom, Buffers
from marsx.peer.squeeze import CODEC, Squeeze, plain
from marsx.peer.syncparts import (
    SECTOR,
    SPAN_MAX,
    ZERO_CHUNK,
    Answer,
    Detail,
    HighWater,
    Pace,
    Prefix,
    Progress,
    Ranges,
    Request,
    Shape,
    SpanSink,
    SpanSource,
    SyncRestart,
)
from marsx.peer.wire import Buffer, PeerError, Reason, Type

Due = Callable[[int, int], Ranges]

SERVICE = "sync"
ANSWER_TIMEOUT = 180.0  # tunable copy_timeout
SAVE_SECONDS, SAVE_SECONDS_MAX, SAVE_SHARE = 1.0, 20.0, 10
SAVE_BYTES = 1024 * 1024 * 1024
# So many requests of one link are in work at the source; the rest waits in the line.
SLOTS = 32
# Contents that are asked for at once, at most: they may all wait in memory for the device.
COPY_MAX = 64 * 1024 * 1024
PIECES = 16
# Asked for at first; on a far line, where to double it costs a round trip each time, as much as FAR_SPANS.
FIRST_SPANS = 4
FAR_SPANS = 16
FAR_S = 0.02

_ZEROS = memoryview(bytes(SPAN_MAX))
_T = TypeVar("_T")


# -- source -----------------------------------------------------------------------------------------------------------

class Serving:
    """One accepted link at its source."""

    due: tuple[Type, ...] = (Type.SYNC_DIGESTS, Type.SYNC_DATA)

    def __init__(self, link: Link, source: Any, executor: concurrent.futures.Executor | None,
                 bucket: Bucket | None = None, level: Callable[[], int] = lambda: 0) -> None:
        self.size = source.size
        self.source = source
        self._link = link
        self._executor = executor
        self._bucket = bucket or Bucket(lambda: 0)
        self._squeeze = Squeeze(link, level)
        self._slots = asyncio.Semaphore(SLOTS)
        self._buffers = Buffers(SPAN_MAX)
        self._line = asyncio.Lock()

    async def run(self, tasks: asyncio.TaskGroup) -> None:
        """Answer until the link ends."""
        while True:
            frame = wire.expect(await self._link.recv(), *self.due)
            request = Request.parse(frame, self.size)
            await self._slots.acquire()
            tasks.create_task(self._answer(request))

    async def _answer(self, request: Request) -> None:
        try:
            amount = syncparts.total_of(request.ranges)
            async with self._buffers.one(amount) as buf:
                async with self.source.reading(amount):
                    body, zero, seen = await run_blocking(self._executor, self._work, request, buf)
                more: dict[str, Any] = {"zero": syncparts.flatten(zero)} if zero else {}
                if not request.block:  # contents wait for the line in their buffer
                    body, codec = await self._squeeze.body(self._executor, body)
                    await self._send(Type.SYNC_ANSWER, request, seen, {**more, **codec}, body)
                    return
            await self._send(Type.SYNC_ANSWER, request, seen, more, body)
        finally:
            self._slots.release()

    async def _send(self, kind: Type, request: Request, seen: int, more: dict[str, Any], body: Buffer) -> None:
        """Answer when the line has room (one waits for it, the others for him) and `seen` is durable. Nothing is
        awaited between the two last steps: the positions of answers leave in their order."""
        await self._bucket.take(len(body))
        async with self._line:
            await self._link.room()
        point = await self.source.durable(seen)
        syncparts.check_not_before(point.at, request.fetched)
        self._link.post(kind, {"id": request.number, **syncparts.point_fields(point), **more}, body)

    def _work(self, request: Request, buf: memoryview) -> tuple[Buffer, Ranges, int]:
        """(body, runs of zero chunks, what must be durable before this may leave). In the executor."""
        view = self._contents(request.ranges, buf)
        seen = self.source.appended()  # rule 13: asked for after the read
        if request.block:
            return spanio.digests(view, request.block, request.kind), [], seen
        chunk = ZERO_CHUNK
        data = spanio.compare(view, _ZEROS[:len(view)], chunk)
        zero, at = [], 0
        for first, count in [*data, (-(-len(view) // chunk), 0)]:
            if first > at:
                zero.append((at, first - at))
            at = first + count
        if not zero:
            return view.toreadonly(), zero, seen
        return b"".join([view[first * chunk:(first + count) * chunk] for first, count in data]), zero, seen

    def _contents(self, ranges: Ranges, buf: memoryview) -> memoryview:
        """The contents of all ranges, one behind the other: with one read where they are close together."""
        first = ranges[0][0]
        hull = ranges[-1][0] + ranges[-1][1] - first
        total = syncparts.total_of(ranges)
        if len(ranges) > 1 and hull <= min(len(buf), 4 * total):
            self.source.read(first, buf[:hull])
            return memoryview(b"".join([buf[offset - first:offset - first + length] for offset, length in ranges]))
        at = 0
        for offset, length in ranges:
            self.source.read(offset, buf[at:at + length])
            at += length
        return buf[:total]


class SyncService:
    """The `sync` service for `server.Server`. `source_for(resource, peer)` gives a new SpanSource, or raises MarsError
    (unknown resource, peer is no member of it, not primary here). `executor` runs what blocks, `bucket` limits what is
    sent, `level` says whether contents are compressed where that pays (tunable compress_level)."""

    serving: type[Serving] = Serving

    def __init__(self, source_for: Callable[[str, Peer], SpanSource],
                 executor: concurrent.futures.Executor | None = None, bucket: Bucket | None = None,
                 level: Callable[[], int] = lambda: 0) -> None:
        self._source_for = source_for
        self._level = level
        self._executor = executor
        self._bucket = bucket

    async def __call__(self, link: Link, peer: Peer) -> None:
        source: SpanSource | None = None
        try:
            opened = wire.expect(await link.recv(link.timing.io_timeout), Type.SYNC_OPEN).header
            fetched = syncparts.take_point(opened, "fetched")
            syncpos = syncparts.take_point(opened, "syncpos") if "syncpos" in opened else None
            source = self._source_for(wire.take_text(opened, "resource", NAME_MAX), peer)
            refused = await run_blocking(self._executor, source.check, fetched, syncpos)
            if refused is not None:
                await link.send(Type.SYNC_REFUSE, {"reason": refused.reason, "text": refused.text[:500],
                                                   "restart": refused.restart})
                return
            serving = self.serving(link, source, self._executor, self._bucket,
                                   self._level if opened.get("codec") == CODEC else lambda: 0)
            await link.send(Type.SYNC_ACCEPT, {"size": serving.size})
            await in_group(serving.run)
        except PeerError as error:
            if error.reason is not Reason.CLOSED:
                raise
        finally:
            if source is not None:
                await to_the_end(source.close())


# -- target -----------------------------------------------------------------------------------------------------------

async def sync_resource(link: Link, resource: str, sink: SpanSink, *,
                        executor: concurrent.futures.Executor | None = None, fast: Callable[[], bool] = lambda: True,
                        progress: Callable[[Progress], None] | None = None, answer_timeout: float = ANSWER_TIMEOUT,
                        shape: Shape | None = None, fly: int = 8, kind: str = "xxh3",
                        bucket: Bucket | None = None, due: Due | None = None) -> None:
    """Sync from `sink.resume()` to the end; returns when syncstatus = size is durable. Cancel it to pause.

    Raises SyncRestart (see there), PeerError (what the source says to our points, or how the connection ended), or what
    the sink raised. `fast` False: copy without comparing (tunable do_fast_fullsync). `fly`: spans asked for at once, at
    most (tunable sync_fly). `kind`: of the digests (tunable sync_digest). `bucket`: limits the contents asked for.
    `due(offset, length)`: the parts of a span that have to be compared, the others are known to be right (rule 27).
    The link is for one run; the caller closes it, but for a run that ends with questions open."""
    run = _Sync(link, sink, executor, fast, progress, answer_timeout, shape or Shape(), fly, kind)
    run.bucket, run.due = bucket or run.bucket, due or run.due
    await run.run(resource)


class _Sync(Asking):
    """One run at its target."""

    def __init__(self, link: Link, sink: SpanSink, executor: concurrent.futures.Executor | None,
                 fast: Callable[[], bool], progress: Callable[[Progress], None] | None, answer_timeout: float,
                 shape: Shape, fly: int, kind: str = "xxh3") -> None:
        super().__init__(link, executor, shape.span)
        self._sink = sink
        self._fast = fast
        self._tell = progress
        self._answer_timeout = answer_timeout
        self._shape = shape
        self._kind = kind
        self.bucket = Bucket(lambda: 0)
        self.due: Due = lambda offset, length: [(offset, length)]
        self._bounds: dict[int, LogPos] = {}
        self._in_force: LogPos | None = None
        self._last: Point | None = None
        # Little at first: it is compared in full, and shows how the rest is to be compared.
        self._compare_pace = Pace(min(FIRST_SPANS, fly) * shape.span, shape.span, fly * shape.span)
        self._copy_pace = Pace(4 * shape.piece, shape.piece, max(4 * shape.piece, min(fly * shape.span, COPY_MAX)))
        self._detail = Detail()
        self._much = asyncio.Event()

    async def run(self, resource: str) -> None:
        """See sync_resource."""
        self._link.bodies_in(BodyRoom(self._shape.span))
        size = await self._open(resource)
        try:
            await in_group(self._all)
            await self._end(size)
        finally:
            # Rule 15: all our tasks have ended, so no write is in flight; what still comes must find nobody.
            try:
                if self._asked:
                    await to_the_end(self._link.close(Reason.CLOSED, "the sync has ended here"))
            finally:
                if self._in_force is not None:
                    self._sink.set_bound(None)

    async def _open(self, resource: str) -> int:
        resume = self._sink.resume()
        if resume.why:
            await run_blocking(self._executor, self._sink.restart, resume.why)
            resume = self._sink.resume()
        header: dict[str, Any] = {"resource": resource, "codec": CODEC,
                                  "fetched": syncparts.point_fields(self._sink.fetched())}
        if resume.offset and resume.syncpos is not None and not resume.proven:
            header["syncpos"] = syncparts.point_fields(resume.syncpos)
        began = asyncio.get_running_loop().time()
        await self._link.send(Type.SYNC_OPEN, header)
        answer = wire.expect(await self._link.recv(self._link.timing.io_timeout), Type.SYNC_ACCEPT, Type.SYNC_REFUSE)
        if asyncio.get_running_loop().time() - began > FAR_S:
            # Contents not: whether they are to be compressed is measured with the first ones.
            self._compare_pace.widen(FAR_SPANS * self._shape.span)
        if answer.type is Type.SYNC_REFUSE:
            reason, text = wire.parse_reason(answer.header)
            if answer.header.get("restart") is True and resume.offset:
                await run_blocking(self._executor, self._sink.restart, f"{self._link.who}: {text}")
                raise SyncRestart(reason, f"{self._link.who}: {text}", "the next sync begins at 0")
            raise PeerError(reason, f"{self._link.who}: {text}")
        size = wire.take_int(answer.header, "size", SECTOR, POS_MAX)
        if size > self._sink.capacity or size % SECTOR:
            raise MarsError(f"{self._link.who} has {size} bytes, the data device here only {self._sink.capacity}",
                            "give the resource a data device that is at least as large as that of the primary")
        start = min(resume.offset, size)
        self._begin(size, start - start % self._shape.chunk, resume.syncpos if resume.offset else None)
        return size

    def _begin(self, size: int, start: int, syncpos: Point | None) -> None:
        self._prefix = Prefix(start)
        self._saved = start
        self._high = HighWater(syncpos, lambda point: run_blocking(self._executor, self._sink.put_syncpos, point))
        self._progress = Progress(size, start)

    async def _all(self, tasks: asyncio.TaskGroup) -> None:
        """All spans, beside those who take the answers and save the progress."""
        helpers = [tasks.create_task(self._take_answers()), tasks.create_task(self._save_now_and_then())]
        await in_group(self._walk)
        for helper in helpers:
            helper.cancel()

    async def _walk(self, tasks: asyncio.TaskGroup) -> None:
        for offset in range(self._prefix.end, self._progress.size, self._shape.span):
            length = min(self._shape.span, self._progress.size - offset)
            ranges = self.due(offset, length)
            if not ranges:
                self._count(offset, length)
                await asyncio.sleep(0)
                continue
            await self._compare_pace.enter(length)
            tasks.create_task(self._span(offset, length, ranges))

    # One span: compared, what differs fetched and written, counted

    async def _span(self, offset: int, length: int, ranges: Ranges) -> None:
        wanted = syncparts.total_of(ranges)
        level = self._detail.choose() if self._fast() else Detail.COPY
        if level == Detail.FINE:
            ranges = await self._compare(ranges, self._shape.block, pace=self._compare_pace)
            self._detail.saw(wanted, syncparts.in_units(ranges, self._shape.chunk), syncparts.total_of(ranges))
        elif level != Detail.COPY:
            ranges = await self._compare(ranges, self._shape.chunk, pace=self._compare_pace)
            in_chunks = syncparts.total_of(ranges)
            if ranges and level == Detail.BLOCKS:
                ranges = await self._compare(ranges, self._shape.block)
            self._detail.saw(wanted, in_chunks, syncparts.total_of(ranges) if level == Detail.BLOCKS else None)
        pieces = list(syncparts.cut_ranges(ranges, self._piece()))
        if len(pieces) == 1:
            await self._copy(pieces[0])
        elif pieces:
            await in_group(lambda tasks: self._copy_all(pieces, tasks))
        self._compare_pace.leave(length)
        self._count(offset, length)

    def _count(self, offset: int, length: int) -> None:
        """This span is right now."""
        self._prefix.add(offset, length)
        if self._prefix.end - self._saved >= SAVE_BYTES:
            self._much.set()
        self._report(done=self._prefix.end)

    async def _compare(self, ranges: Ranges, block: int, pace: Pace | None = None) -> Ranges:
        """Ranges whose contents must be fetched. Zeros need not: they are written at once."""
        async with self._ask(Type.SYNC_DIGESTS, ranges, {"block": block, "kind": self._kind}) as asked:
            mine = await self._call(syncparts.total_of(ranges), own_digests, self._sink.read, ranges, block, self._kind)
            answer = await asked.answer(self._answer_timeout)
            expect_digests(answer, mine)
            await self._high.reach(answer.point)
            data, zero = spanio.differ_split(mine, answer.body)
            if zero:
                await self._write([], syncparts.place_runs(ranges, block, zero), answer.body)
        if pace is not None:
            pace.answered(syncparts.total_of(ranges), asked.took)
        return syncparts.place_runs(ranges, block, data)

    def _piece(self) -> int:
        """Contents asked for at once: large where they come quickly, because each request costs processor time."""
        return max(self._shape.piece, min(self._shape.span, self._copy_pace.limit // PIECES))

    async def _copy_all(self, pieces: list[Ranges], tasks: asyncio.TaskGroup) -> None:
        for piece in pieces:
            tasks.create_task(self._copy(piece))

    async def _copy(self, ranges: Ranges, entered: bool = False) -> None:
        """Fetch and write, whatever is here."""
        amount = syncparts.total_of(ranges)
        if not entered:
            await self._copy_pace.enter(amount)
        await self.bucket.take(amount)
        async with self._ask(Type.SYNC_DATA, ranges, {}) as asked:
            answer = await asked.answer(self._answer_timeout)
            body = await plain(self._executor, answer.header, answer.body, amount)
            data, zero = syncparts.split_zeros(ranges, answer._replace(body=body))
            await self._high.reach(answer.point)
            await self._write(data, zero, body)
        self._copy_pace.leave(amount)
        for pace in (self._copy_pace, self._compare_pace):
            pace.answered(amount, asked.took)
        self._report(received=self._progress.received + len(answer.body))

    async def _write(self, data: Ranges, zero: Ranges, body: memoryview) -> None:
        await self._call(len(body), self._write_ranges, data, zero, body)
        self._report(written=self._progress.written + syncparts.total_of(data) + syncparts.total_of(zero))

    # In the executor

    def _write_ranges(self, data: Ranges, zero: Ranges, body: memoryview, buf: memoryview) -> None:
        for offset, length in zero:
            self._sink.write_zeros(offset, length)
        if data and not spanio.is_aligned(body):
            buf[:len(body)] = body
            body = buf
        at = 0
        for offset, length in data:
            self._sink.write(offset, body[at:at + length])
            at += length

    # Requests, their bounds, and their answers

    @contextlib.asynccontextmanager
    async def _ask(self, kind: Type, ranges: Ranges, more: dict[str, Any]) -> AsyncIterator[Asked]:
        """A request; its bound is in force until the block is left in good order, else until the run has ended."""
        number = next(self._numbers)
        fetched = self._hold(number)
        self._report(requests=number)
        yield await self._send(number, kind, fetched, ranges, more)
        self._release(number)

    def _hold(self, number: int) -> LogPos:
        """What is fetched now, as a bound that is in force. Nothing is awaited between here and the sending."""
        fetched = self._sink.fetched().at
        if self._in_force is None:
            while not self._sink.set_bound(fetched):
                before, fetched = fetched, self._sink.fetched().at
                if fetched <= before:
                    raise MarsError(f"replay is beyond {fetched}, up to which the log is fetched",
                                    "this is an error in marsd; the sync stops, no data were changed")
            self._in_force = fetched
        if fetched < self._in_force:
            raise MarsError(f"the local log has gone back from {self._in_force} to {fetched}",
                            "the sync begins anew when the log is sound again")
        self._bounds[number] = fetched
        return fetched

    def _release(self, number: int) -> None:
        del self._bounds[number]
        lowest = min(self._bounds.values(), default=None)
        if lowest is None or lowest != self._in_force:
            self._in_force = lowest
            self._sink.set_bound(lowest)

    def _check_answer(self, answer: Answer) -> None:
        """The positions of one source are points of one history, in its order."""
        last, point = self._last, answer.point
        self._last = point
        if point.is_hole or (last is not None and (
                point.at < last.at or (point.at.nr == last.at.nr and point.at.producer != last.at.producer)
                or (point.at == last.at and point.digest != last.digest))):
            raise wire.WireError(f"position {point.at} cannot follow {last.at if last else 'nothing'}")

    # Progress

    async def _save_now_and_then(self) -> None:
        """Every second; less often where a flush takes so long that the sync would feel it."""
        loop, pause = asyncio.get_running_loop(), SAVE_SECONDS
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause):
                    await self._much.wait()
            self._much.clear()
            if self._prefix.end > self._saved:
                began = loop.time()
                await self._save()
                pause = min(SAVE_SECONDS_MAX, max(SAVE_SECONDS, SAVE_SHARE * (loop.time() - began)))

    async def _save(self, last: bool = False) -> None:
        """syncstatus := what is counted now, after a flush. Equal spans need the flush as well: an earlier run may have
        written them and died, and reading shows what is in the device's cache."""
        end = self._prefix.end
        await run_blocking(self._executor, self._sink.flush)
        await run_blocking(self._executor, self._sink.put_syncstatus, end, last)
        self._saved = end

    async def _end(self, size: int) -> None:
        if self._prefix.end != size:
            raise AssertionError(f"sync ended at {self._prefix.end} of {size}")
        await self._save(last=True)

    def _report(self, **changed: int) -> None:
        self._progress = replace(self._progress, **changed)
        if self._tell is not None:
            self._tell(self._progress)


async def repair_ranges(link: Link, resource: str, sink: SpanSink, ranges: Ranges, *,
                        executor: concurrent.futures.Executor | None = None, answer_timeout: float = ANSWER_TIMEOUT,
                        shape: Shape | None = None, fly: int = 8, bucket: Bucket | None = None) -> None:
    """Fetch and write just these ranges (ascending) of a replica that is synced, by the rule of the sync: with bound,
    and with syncpos before each write (rules 14, 15, 17). syncstatus stays; the replica is consistent again when replay
    has passed syncpos. Returns when all is durable on the device."""
    repair = _Repair(link, sink, executor, lambda: False, None, answer_timeout, shape or Shape(), fly)
    repair.ranges, repair.bucket = ranges, bucket or repair.bucket
    await repair.run(resource)


class _Repair(_Sync):
    """One run of repair_ranges: a sync that copies chosen ranges and counts nothing."""

    ranges: Ranges

    async def _open(self, resource: str) -> int:
        resume = self._sink.resume()
        size = 0 if resume.why else await super()._open(resource)
        if resume.why or resume.offset < size:
            raise MarsError(f"{resource} is not synced: nothing can be repaired", "wait for the end of the sync")
        self._begin(size, size, resume.syncpos)
        return size

    async def _walk(self, tasks: asyncio.TaskGroup) -> None:
        for piece in syncparts.cut_ranges(self.ranges, self._shape.piece):
            await self._copy_pace.enter(syncparts.total_of(piece))
            tasks.create_task(self._copy(piece, entered=True))

    async def _end(self, size: int) -> None:
        await run_blocking(self._executor, self._sink.flush)
