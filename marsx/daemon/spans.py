"""Where a full sync meets the volumes: a primary's contents as a source, a secondary's data device as a target
(`peer.syncparts` has the contracts).

    PrimarySpans  SpanSource, one per link
    ReplayBound   the bound that a running sync sets on replay, also on a Replayer that begins later
    DiskSpans     SpanSink, one per run

Invariants:
    no answer is made from a read or a flush that overlapped the Primary's close
    a Replayer that is attached never runs without the bound that is in force (rule 15)
    after an error of the data device nothing of it is counted any more; the resource stops, named
"""
from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import os
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from marsx.base import disk, durable, messages
from marsx.base.errors import DamagedError, MarsError, NotFoundError
from marsx.base.position import LogPos
from marsx.daemon.facts import Publisher
from marsx.daemon.logsource import End, Source
from marsx.daemon.site import Site
from marsx.log import reader
from marsx.log.chain import Point
from marsx.log.record import NO_DIGEST
from marsx.peer.fetch import Start, run_blocking
from marsx.peer.sync import AlignedBuffer, read_span, write_span
from marsx.peer.syncparts import Refused, Resume, where_to_resume
from marsx.tree import paths
from marsx.tree.view import View
from marsx.volume.primary import Primary
from marsx.volume.replay import Replayer

if TYPE_CHECKING:
    from marsx.daemon.consumer import Consumer

LOG = messages.get("daemon.spans")
ZEROS = 1 << 20
# A volume that fails while we wait for it wakes nobody: it is asked again.
ASK_AGAIN = 1.0


class PrimarySpans:
    """SpanSource over a serving Primary. `end`: moved on by the runner whenever more is durable; `logs`: this link's
    own view of the logs, with the same end. Made on the loop."""

    def __init__(self, primary: Primary, end: End, logs: Source,
                 executor: concurrent.futures.Executor | None = None) -> None:
        self._primary = primary
        self._volume: Any = primary.volume
        self._env = primary.env
        self._end = end
        self._logs = logs
        self._executor = executor
        self._flush: asyncio.Task[None] | None = None
        self._loop = asyncio.get_running_loop()

    @property
    def size(self) -> int:
        return self._env.device_size

    @contextlib.contextmanager
    def _open(self) -> Iterator[Any]:
        """The volume; what was done with it counts only if the Primary is still open afterwards."""
        for _ in range(2):
            if self._volume is None or self._primary.volume is not self._volume:
                raise MarsError(f"{self._env.resource} is not primary on {self._env.host} any more",
                                "the sync goes on when there is a primary again")
            if _ == 0:
                yield self._volume

    def check(self, fetched: Point, syncpos: Point | None) -> Refused | None:
        """The log of `fetched` is pinned as long as the link lives, so that it can be fetched from there (rule 16)."""
        refused = self._lies_in_history(fetched)
        if refused is None and syncpos is not None:
            refused = self._lies_in_history(syncpos)
            if refused is not None:
                text = f"what was synced came from another history: {refused.text}"
                return Refused(refused.reason, text, restart=True)
        return refused

    def _lies_in_history(self, point: Point) -> Refused | None:
        _, newest = self._durable_point()
        if point == newest:
            return None
        if self._end.at < newest.at:
            # What we have answered with may be newer than what the streams have been told.
            asyncio.run_coroutine_threadsafe(self._tell_streams(newest.at), self._loop).result()
        at = point.at
        start = Start(at.nr, at.producer, at.pos)
        if not (point.is_hole and at.pos == 0):
            start = Start(at.nr, at.producer, at.pos, self._log_id(at) or NO_DIGEST, point.digest)
        verdict = self._logs.check(start)
        return None if verdict.reason is None else Refused(verdict.reason, verdict.text)

    async def _tell_streams(self, at: LogPos) -> None:
        self._end.move(max(self._end.at, at))

    def _log_id(self, at: LogPos) -> str:
        """Of our log of that name: the digest is the proof, it covers the id."""
        env = self._env
        try:
            with reader.open_log(os.path.join(env.directory, at.log), env.uuid, env.resource) as log:
                return log.header.log_id.hex()
        except (NotFoundError, DamagedError):
            return ""

    def read(self, offset: int, buf: memoryview) -> None:
        with self._open() as volume:
            try:
                volume.read_into(buf, offset, len(buf))
            except OSError as error:
                raise MarsError(f"{self._env.resource} cannot be read at {offset}: {error.strerror}",
                                "see the messages of the kernel about the data device") from error

    def appended(self) -> int:
        with self._open() as volume:
            return volume.appended_point()

    def _durable_point(self) -> tuple[int, Point]:
        """(address, point) of one moment."""
        with self._open() as volume:
            address, nr, pos, digest = volume.durable_point()
        return address, Point(digest.hex(), LogPos(nr, self._env.host, pos))

    async def durable(self, appended: int) -> Point:
        before = -1
        while True:
            here, point = self._durable_point()
            if here >= appended:
                return point
            if here == before:
                # Somebody else flushes, or the log is just being switched: that moves the end.
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(ASK_AGAIN):
                        await self._end.wait(lambda seen=here: self._durable_point()[0] > seen)
            before = here
            await self._kick()

    async def _kick(self) -> None:
        """One flush at a time; who comes meanwhile waits for it, and for the next if that was begun too early."""
        if self._flush is None:
            self._flush = asyncio.create_task(run_blocking(self._executor, self._sync), name="sync-flush")
        task = self._flush
        await asyncio.wait([task])
        if self._flush is task:
            self._flush = None
        error = None if task.cancelled() else task.exception()
        if error is not None:
            raise MarsError(f"the log of {self._env.resource} cannot be made durable: {error}",
                            "see the messages of the kernel about /mars")

    def _sync(self) -> None:
        with self._open() as volume:
            volume.sync_now()

    async def close(self) -> None:
        if self._flush is not None:
            await asyncio.wait([self._flush])
            if not self._flush.cancelled():
                self._flush.exception()  # nobody waits for it any more
        self._logs.close()


class ReplayBound:
    """The bound of a resource's sync. Each Replayer is attached before its thread starts, and detached after its thread
    has ended; a replay that does not run is bound anyway. All on the loop."""

    def __init__(self) -> None:
        self.bound: LogPos | None = None
        self._replayer: Replayer | None = None

    def attach(self, replayer: Replayer) -> None:
        """Before its thread starts."""
        self._replayer = replayer
        replayer.set_bound(self.bound)

    def detach(self) -> None:
        """After its thread has ended."""
        self._replayer = None

    def set(self, bound: LogPos | None, at: LogPos | None) -> bool:
        """True when in force. `at`: the disk position, for a replay that does not run."""
        self.bound = bound
        upper = at if self._replayer is None else self._replayer.set_bound(bound)
        return bound is None or (upper is not None and upper <= bound)


class DiskSpans:
    """SpanSink over the data device of a secondary. Needs of the consumer: `disk_fd` (O_DIRECT, stays the consumer's),
    `copy`, `at`, `bound` (a ReplayBound that its replayers are attached to), `trouble`, `changed`. Made on the loop."""

    def __init__(self, site: Site, resource: str, consumer: Consumer, publisher: Publisher) -> None:
        self._site = site
        self._resource = resource
        self._consumer = consumer
        self._publisher = publisher
        self._fd = consumer.disk_fd
        self._resume = resume_of(site.view(), resource, site.host)
        self._bound: ReplayBound = consumer.bound
        self._failed = ""
        self._zeros = AlignedBuffer(ZEROS)

    @property
    def capacity(self) -> int:
        return disk.size(self._fd)

    def resume(self) -> Resume:
        if self._resume.why:
            self.restart(self._resume.why)
        return self._resume

    def restart(self, why: str) -> None:
        """syncpos stays until the first answer raises it: the bytes that it speaks of are still on the disk."""
        LOG.info("%s: %s: sync restarts at 0", self._resource, why)
        self.put_syncstatus(0, True)
        self._resume = Resume(0)
        self._on_loop(self._site.say, self._resource, "inf-sync-start", f"sync restarted at 0: {why}")

    def fetched(self) -> Point:
        copy = self._consumer.copy
        assert copy is not None
        with copy._lock:
            return Point(copy.digest, copy.at)

    def set_bound(self, bound: LogPos | None) -> bool:
        return self._bound.set(bound, self._consumer.at)

    def read(self, offset: int, buf: memoryview) -> None:
        with self._device("read"):
            read_span(self._fd, offset, buf)

    def write(self, offset: int, data: memoryview) -> None:
        with self._device("written"):
            write_span(self._fd, offset, data)

    def write_zeros(self, offset: int, length: int) -> None:
        zeros, end = memoryview(self._zeros), offset + length
        with self._device("written"):
            while offset < end:
                part = min(ZEROS, end - offset)
                write_span(self._fd, offset, zeros[:part])
                offset += part

    def flush(self) -> None:
        with self._device("flushed"):
            durable.overwrite(self._fd, b"", 0, f"data device of {self._resource}")  # nothing but the fdatasync

    def put_syncpos(self, point: Point) -> None:
        value = f"{point.at},0,{point.digest}"
        self._publisher.put([(paths.syncpos(self._resource, self._site.host), value)], make_durable=True)

    def put_syncstatus(self, offset: int, durable: bool) -> None:
        self._publisher.put([(paths.syncstatus(self._resource, self._site.host), str(offset))], make_durable=durable)

    @contextlib.contextmanager
    def _device(self, what: str) -> Iterator[None]:
        if self._failed:
            raise MarsError(self._failed, "nothing is synced to this device before marsd has looked at it anew")
        try:
            yield
        except OSError as error:
            self._failed = f"the data device of {self._resource} cannot be {what}: {error.strerror}"
            self._on_loop(self._trouble)
            raise MarsError(self._failed, "see the messages of the kernel about the data device") from error

    def _trouble(self) -> None:
        self._consumer.trouble = self._consumer.trouble or self._failed
        self._consumer.changed()

    def _on_loop(self, call: Any, *arguments: Any) -> None:
        with contextlib.suppress(RuntimeError):  # marsd is ending
            self._site.loop.call_soon_threadsafe(call, *arguments)


def resume_of(view: View, resource: str, host: str, logs_there: bool = True) -> Resume:
    """`where_to_resume` with what the tree says. `logs_there`: the log that replay needs next can be had."""
    mark = view.syncpos(resource, host)
    numbers = view.version_numbers(resource, host)
    newest = view.version(resource, host, numbers[-1]) if numbers else None
    known = view.in_history(resource, host, mark) if mark is not None else None
    syncpos = tip = None
    with contextlib.suppress(ValueError):  # what is no point of a history proves nothing
        syncpos = Point(mark.digest, mark.pos) if mark is not None else None
    with contextlib.suppress(ValueError):
        tip = Point(newest.end.digest, newest.end.pos) if newest is not None else None
    return where_to_resume(min(view.syncstatus(resource, host), view.size(resource)), syncpos, tip, known, logs_there)
