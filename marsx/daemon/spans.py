"""Where a full sync meets the volumes: a primary's contents as a source, a secondary's data device as a target
(`peer.syncparts` has the contracts).

    SpanGate      one per Primary: its readers, its flush, and the end of both before the Primary is closed
    PrimarySpans  SpanSource and VerifySource, one per link
    ReplayBound   the bounds that sync and verify set on replay, also on a Replayer that begins later
    DiskSpans     SpanSink, one per run

Invariants:
    nothing reads or flushes a volume when `SpanGate.shut` has returned, and nothing begins to after it was called
    a Replayer that is attached never runs without the bound that is in force (rule 15)
    after an error of the data device nothing of it is counted any more; the resource stops, named
"""
from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import functools
import os
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

from marsx.base import durable, messages
from marsx.base.errors import DamagedError, MarsError, NotFoundError
from marsx.base.position import LogPos
from marsx.base.tasks import run_blocking
from marsx.daemon import regions
from marsx.daemon.courtesy import Courtesy
from marsx.daemon.facts import Publisher
from marsx.daemon.logsource import End, Pins, Source
from marsx.log import reader
from marsx.log.chain import Point
from marsx.log.record import NO_DIGEST, FileHeader
from marsx.peer.fetch import Start
from marsx.peer.spanio import read_span, write_span, zero_span
from marsx.peer.syncparts import Refused, Resume, is_stale, where_to_resume
from marsx.peer.wire import Reason
from marsx.tree import paths
from marsx.tree.view import View
from marsx.volume import gap
from marsx.volume.primary import Primary
from marsx.volume.replay import Replayer

LOG = messages.get("daemon.spans")
# A volume that fails while we wait for it wakes nobody: it is asked again.
ASK_AGAIN = 1.0
# Writers are held back no longer, whatever happens to the log meanwhile.
STILL_S = 2.0


class SpanGate:
    """The volume of one Primary as long as it may be read. `end` is moved on by the runner whenever more is durable."""

    def __init__(self, primary: Primary, end: End, executor: concurrent.futures.Executor | None) -> None:
        self.env = primary.env
        self._volume: Any = primary.volume
        self._end = end
        self._executor = executor
        self._flush: asyncio.Task[None] | None = None
        self.courtesy = Courtesy(self._writes)
        self._one_still = asyncio.Lock()
        self._inside = 0
        self._idle = threading.Condition()

    @contextlib.contextmanager
    def volume(self) -> Iterator[Any]:
        """The volume, which stays open meanwhile. MarsError when it is to be closed."""
        with self._idle:
            volume = self._volume
            if volume is None:
                raise MarsError(f"{self.env.resource} is not primary on {self.env.host} any more",
                                "the sync goes on when there is a primary again")
            self._inside += 1
        try:
            yield volume
        finally:
            with self._idle:
                self._inside -= 1
                self._idle.notify_all()

    def _writes(self) -> int:
        volume = self._volume
        return 0 if volume is None else volume.counters["writes"]

    async def shut(self) -> None:
        """To be called before the Primary is closed: returns when nobody reads. Links that ask again get an error."""
        with self._idle:
            self._volume = None
        await self.courtesy.close()
        await run_blocking(self._executor, self._wait_idle)

    def _wait_idle(self) -> None:
        with self._idle:
            self._idle.wait_for(lambda: not self._inside)

    def durable_point(self) -> tuple[int, Point]:
        """(address, point) of one moment."""
        with self.volume() as volume:
            address, nr, pos, digest = volume.durable_point()
        return address, Point(digest.hex(), LogPos(nr, self.env.host, pos))

    async def reach(self, address: int) -> Point:
        """Wait until so much is durable, kicking the flush of the log; the newest durable point."""
        before = -1
        while True:
            here, point = self.durable_point()
            if here >= address:
                return point
            if here == before:
                # Somebody else flushes, or the log is just being switched: that moves the end.
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(ASK_AGAIN):
                        await self._end.wait(functools.partial(self._is_beyond, here))
            before = here
            await self._kick()

    @contextlib.asynccontextmanager
    async def still(self) -> AsyncIterator[Point]:
        """The range lock of rule 17, over the whole device: no write is accepted inside, and all that was accepted
        before is durable at the point given."""
        async with self._one_still:
            with self.volume() as volume:
                volume.hold_writers(True)
                try:
                    async with asyncio.timeout(STILL_S):
                        yield await self.reach(volume.appended_point())
                except TimeoutError:
                    raise MarsError(f"{self.env.resource}: the log did not become durable within {STILL_S:g} s",
                                    "is /mars full, or its disk overloaded? try again") from None
                finally:
                    volume.hold_writers(False)

    def _is_beyond(self, address: int) -> bool:
        return self.durable_point()[0] > address

    async def _kick(self) -> None:
        """One flush at a time; who comes meanwhile waits for it, and for the next if that was begun too early."""
        if self._flush is None or self._flush.done():
            self._flush = asyncio.create_task(run_blocking(self._executor, self._sync), name="sync-flush")
        task = self._flush
        await asyncio.wait([task])
        error = None if task.cancelled() else task.exception()
        if error is not None:
            raise MarsError(f"the log of {self.env.resource} cannot be made durable: {error}",
                            "see the messages of the kernel about /mars")

    def _sync(self) -> None:
        with self.volume() as volume:
            volume.sync_now()

    async def flushed(self) -> None:
        """Returns when no flush runs."""
        if self._flush is not None:
            await asyncio.wait([self._flush])
            if not self._flush.cancelled():
                self._flush.exception()  # who waited for it has been told


class PrimarySpans:
    """SpanSource over a serving Primary. Made on the loop."""

    def __init__(self, gate: SpanGate, pins: Pins) -> None:
        self._gate = gate
        env = gate.env
        with gate.volume() as volume:
            self._epoch = volume.epoch
        self._check_epoch()
        # Its end is set at each check: the end that streams see may lag behind what we have answered with.
        self._upto = End(gate.durable_point()[1].at)
        self._logs = Source(env.directory, env.uuid, env.resource, self._upto, pins)

    @property
    def size(self) -> int:
        return self._gate.env.device_size

    def check(self, fetched: Point, syncpos: Point | None) -> Refused | None:
        """The log of `fetched` is pinned as long as the link lives, so that it can be fetched from there (rule 16)."""
        if fetched.at.nr < max((gap_log.nr for gap_log in self._gaps()), default=0):
            return Refused(Reason.BEHIND, "a gap of the log lies ahead: it has to be crossed first")
        refused = self._lies_in_history(fetched)
        if refused is None and syncpos is not None:
            refused = self._lies_in_history(syncpos)
            if refused is not None:
                text = f"what was synced came from another history: {refused.text}"
                return Refused(refused.reason, text, restart=True)
        return refused

    def _gaps(self) -> list[FileHeader]:
        env = self._gate.env
        return gap.headers(env.directory, env.uuid, env.resource)

    def _check_epoch(self) -> None:
        """Rule 27: what went past the log meanwhile has no position in it, so nobody may be given it."""
        with self._gate.volume() as volume:
            epoch = volume.epoch
        if epoch % 2 or epoch != self._epoch:
            raise MarsError(f"{self._gate.env.resource} is or was in emergency mode on {self._gate.env.host}",
                            "make room in /mars there; the sync goes on by itself")

    def _lies_in_history(self, point: Point) -> Refused | None:
        _, newest = self._gate.durable_point()
        self._upto.set(newest.at, newest.digest)
        at = point.at
        start = Start(at.nr, at.producer, at.pos)
        if not (point.is_hole and at.pos == 0):
            start = Start(at.nr, at.producer, at.pos, self._log_id(at) or NO_DIGEST, point.digest)
        if point == newest:
            # Proved without reading the log from its beginning, as the end of a log has to be; the check only pins.
            start = Start(at.nr, at.producer, 0)
        verdict = self._logs.check(start)
        return None if verdict.reason is None else Refused(verdict.reason, verdict.text)

    def _log_id(self, at: LogPos) -> str:
        """Of our log of that name: the digest is the proof, it covers the id."""
        env = self._gate.env
        try:
            with reader.open_log(os.path.join(env.directory, at.log), env.uuid, env.resource) as log:
                return log.header.log_id.hex()
        except (NotFoundError, DamagedError):
            return ""

    def reading(self, amount: int) -> contextlib.AbstractAsyncContextManager[None]:
        return self._gate.courtesy.reading(amount)

    def read(self, offset: int, buf: memoryview) -> None:
        with self._gate.volume() as volume:
            try:
                volume.read_into(buf, offset, len(buf))
            except OSError as error:
                raise MarsError(f"{self._gate.env.resource} cannot be read at {offset}: {error.strerror}",
                                "see the messages of the kernel about the data device") from error
        self._check_epoch()

    def appended(self) -> int:
        with self._gate.volume() as volume:
            return volume.appended_point()

    async def durable(self, appended: int) -> Point:
        point = await self._gate.reach(appended)
        self._check_epoch()
        return point

    def settled(self) -> Point:
        return self._gate.durable_point()[1]

    def still(self) -> contextlib.AbstractAsyncContextManager[Point]:
        self._check_epoch()
        return self._gate.still()

    async def close(self) -> None:
        await self._gate.flushed()
        self._logs.close()


class ReplayBound:
    """The bounds that sync, verify and repair set on a resource's replay; the lowest counts. Each Replayer is attached
    before its thread starts, and detached after its thread has ended; a replay that does not run is bound anyway. All
    on the loop, but for `upper`."""

    def __init__(self) -> None:
        self._bounds: dict[str, LogPos] = {}
        self._replayer: Replayer | None = None
        self._last: LogPos | None = None
        self._moved = asyncio.Event()

    @property
    def bound(self) -> LogPos | None:
        """The one in force."""
        return min(self._bounds.values(), default=None)

    def attach(self, replayer: Replayer) -> None:
        """Before its thread starts."""
        self._replayer = replayer
        replayer.set_bound(self.bound)

    def detach(self) -> None:
        """After its thread has ended."""
        if self._replayer is not None:
            self._last = self._replayer.upper()
        self._replayer = None
        self.moved()

    def set(self, bound: LogPos | None, at: LogPos, who: str = "sync") -> bool:
        """The bound of `who` is `bound` now; True when in force. `at`: the disk position, for a replay that does not
        run."""
        self._bounds.pop(who, None)
        if bound is not None:
            self._bounds[who] = bound
        upper = at if self._replayer is None else self._replayer.set_bound(self.bound)
        return bound is None or upper <= bound

    def upper(self) -> LogPos | None:
        """Upper end of what replay may have written; None: it never ran. From any thread."""
        replayer = self._replayer
        return self._last if replayer is None else replayer.upper()

    def moved(self) -> None:
        """Replay has got on, or has ended."""
        self._moved.set()
        self._moved = asyncio.Event()

    async def wait(self, timeout: float) -> None:
        """Until the next `moved`, at most so many seconds."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout):
                await self._moved.wait()


class DiskSpans:
    """SpanSink over the data device of a secondary (`disk_fd`: O_DIRECT, stays the caller's). `fetched` and `replayed`
    give the end of the verified local log and the disk position; `fetched` is never behind what replay was told."""

    def __init__(self, publisher: Publisher, resource: str, host: str, disk_fd: int, capacity: int, *, resume: Resume,
                 bound: ReplayBound, fetched: Callable[[], Point], replayed: Callable[[], LogPos],
                 on_trouble: Callable[[str], None], regions_file: str = "") -> None:
        self._regions_file = regions_file
        self._regions = regions.load(regions_file, resource)
        self.capacity = capacity
        self.fetched = fetched
        self._publisher = publisher
        self._resource = resource
        self._host = host
        self._fd = disk_fd
        self._resume = resume
        self._bound = bound
        self._replayed = replayed
        self._on_trouble = on_trouble
        self._failed = ""

    def resume(self) -> Resume:
        return self._resume

    def restart(self, why: str) -> None:
        LOG.info("%s: %s: sync restarts at 0", self._resource, why)
        self.forget_progress()

    def forget_progress(self) -> None:
        """syncstatus := 0, durably: what has to come before a run that restarts. syncpos stays until the first answer
        raises it: the bytes that it speaks of are still on the disk. Blocks."""
        self.forget_regions()
        self.put_syncstatus(0, True)
        self._resume = Resume(0)

    def forget_regions(self) -> None:
        """All of the device is to be compared from now on. Before syncstatus is set back for any reason but a gap, and
        after the end of a sync (rule 27)."""
        self._regions = None
        regions.drop(self._regions_file)

    @property
    def compares_all(self) -> bool:
        """A run that begins now looks at all of the device."""
        return self._resume.offset == 0 and self._regions is None

    def due(self, offset: int, length: int) -> list[tuple[int, int]]:
        """What of a span has to be compared: where a gap was crossed only the regions that changed (rule 27)."""
        return [(offset, length)] if self._regions is None else self._regions.due(offset, length)

    def set_bound(self, bound: LogPos | None) -> bool:
        return self._bound.set(bound, self._replayed())

    def read(self, offset: int, buf: memoryview) -> None:
        with self._device("read"):
            read_span(self._fd, offset, buf)

    def write(self, offset: int, data: memoryview) -> None:
        with self._device("written"):
            write_span(self._fd, offset, data)

    def write_zeros(self, offset: int, length: int) -> None:
        with self._device("written"):
            zero_span(self._fd, offset, length)

    def flush(self) -> None:
        with self._device("flushed"):
            durable.overwrite(self._fd, b"", 0, f"data device of {self._resource}")  # nothing but the fdatasync

    def put_syncpos(self, point: Point) -> None:
        value = f"{point.at},0,{point.digest}"
        self._publisher.put([(paths.syncpos(self._resource, self._host), value)], make_durable=True)

    def put_syncstatus(self, offset: int, durable: bool) -> None:
        self._publisher.put([(paths.syncstatus(self._resource, self._host), str(offset))], make_durable=durable)

    @contextlib.contextmanager
    def _device(self, what: str) -> Iterator[None]:
        if self._failed:
            raise MarsError(self._failed, "nothing is synced to this device before marsd has looked at it anew")
        try:
            yield
        except OSError as error:
            self._failed = f"the data device of {self._resource} cannot be {what}: {error.strerror}"
            self._on_trouble(self._failed)
            raise MarsError(self._failed, "see the messages of the kernel about the data device") from error


def resume_of(view: View, resource: str, host: str, logs_there: bool) -> Resume:
    """`where_to_resume` with what the tree says. `logs_there`: the log that replay needs next can be had."""
    status = min(view.syncstatus(resource, host), view.size(resource))
    return where_to_resume(status, *_history_of(view, resource, host), logs_there)


def stale_sync(view: View, resource: str, host: str) -> bool:
    """Rule 14, for the planner: the sync has ended, but its syncpos is not in the own history any more. syncstatus has
    to go to 0 (`DiskSpans.forget_progress`), so that the resource syncs again."""
    return view.sync_rest(resource, host) <= 0 and is_stale(*_history_of(view, resource, host))


def _history_of(view: View, resource: str, host: str) -> tuple[Point | None, Point | None, bool | None]:
    """(syncpos, newest end in the own version links, whether these lead through syncpos)."""
    mark = view.syncpos(resource, host)
    numbers = view.version_numbers(resource, host)
    newest = view.version(resource, host, numbers[-1]) if numbers else None
    syncpos = tip = None
    with contextlib.suppress(ValueError):  # what is no point of a history proves nothing
        syncpos = Point(mark.digest, mark.pos) if mark is not None else None
    with contextlib.suppress(ValueError):
        tip = Point(newest.end.digest, newest.end.pos) if newest is not None else None
    return syncpos, tip, view.in_history(resource, host, mark) if mark is not None else None
