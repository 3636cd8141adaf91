"""Where a verify meets the volumes (`peer.verify` has the protocol): the replica's side of it, its result in the tree,
and its way from marsadm on one host to marsd of the replica on another.

    ReplicaSpans    VerifySink over the data device of a consistent secondary
    VerifyRun       one verify of one replica, with repair; what it found goes to `tell`
    VerifyAsk       service `verify-run`: another host's marsd asks for a run here
    from_marsadm    the control command `verify`

Invariants:
    only a consistent replica is looked at, and never while a sync writes to it (the runner stops the verify first)
    a log that a comparison may need is pinned from before its request on
    verify-state in the tree is `running` only while a run is on; a run that died with its worker is told at the start
"""
from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from marsx.base import messages
from marsx.base.errors import DamagedError, MarsError, PreconditionError, UsageError, from_exit_code
from marsx.base.position import NAME_MAX, LogPos
from marsx.daemon.consumer import Consumer
from marsx.daemon.spans import DiskSpans
from marsx.log import reader
from marsx.log.chain import Point
from marsx.log.record import FileHeader
from marsx.peer import wire
from marsx.peer.link import Link
from marsx.peer.server import Peer
from marsx.peer.spanio import KINDS, read_span, touched
from marsx.peer.sync import repair_ranges
from marsx.peer.syncparts import Ranges, Resume, total_of
from marsx.peer.verify import SERVICE, Progress, verify_resource
from marsx.peer.wire import PeerError, Reason, Type
from marsx.tree import paths

if TYPE_CHECKING:
    from marsx.daemon.resource import Runner
    from marsx.daemon.worker import Worker

LOG = messages.get("daemon.verify")
ASK = "verify-run"
# Repair begins when so much waits for it, else at the end.
BATCH_BYTES = 64 << 20
BATCH_RANGES = 8192
REPORT_S = 2.0
# A continuous verify without a rate must not be felt.
QUIET_KB = 10 * 1024
ROUND_PAUSE_S = 2.0

Tell = Callable[[dict[str, Any]], Awaitable[None]]


@dataclass(frozen=True)
class Wanted:
    """What marsadm asked for. `rate_kb`: KiB/s compared at most, 0 = no limit."""

    resource: str
    host: str = ""
    repair: bool = False
    continuous: bool = False
    rate_kb: int = 0

    @classmethod
    def parse(cls, fields: dict[str, Any]) -> Wanted:
        """From a control request or a peer: hostile until here."""
        rate = wire.take_int(fields, "rate_kb", 0, 2**40) if "rate_kb" in fields else 0
        wanted = cls(wire.take_text(fields, "resource", NAME_MAX), wire.take_text(fields, "host", NAME_MAX, empty=True)
                     if "host" in fields else "", fields.get("repair") is True, fields.get("continuous") is True, rate)
        if not paths.is_resource(wanted.resource) or (wanted.host and not paths.is_host(wanted.host)):
            raise UsageError("the request was not understood", "are marsadm and marsd of the same version?")
        return wanted

    def fields(self) -> dict[str, Any]:
        """For a peer."""
        return {"resource": self.resource, "repair": self.repair, "continuous": self.continuous,
                "rate_kb": self.rate_kb}


# -- the replica ------------------------------------------------------------------------------------------------------

class ReplicaSpans:
    """See the module. `who` names the bound that is set on replay; `patience`: seconds that replay may stand still."""

    def __init__(self, runner: Runner, consumer: Consumer, who: str, patience: float) -> None:
        assert consumer.copy is not None and consumer.at is not None
        self.capacity = consumer.env.device_size
        self._runner = runner
        self._consumer = consumer
        self._copy = consumer.copy
        self._at = consumer.at
        self._env = consumer.env
        self._pins = runner.stock.pins
        self._fd = consumer.disk_fd
        self._who = who
        self._patience = patience

    def fetched(self) -> Point:
        return self._copy.point

    def begun(self) -> LogPos:
        return self._consumer.bound.upper() or self._at

    def set_bound(self, bound: LogPos | None) -> bool:
        return self._consumer.bound.set(bound, self._replayed(), self._who)

    def _replayed(self) -> LogPos:
        replayer = self._consumer.replayer
        return replayer.at if replayer is not None else self._consumer.at or self._at

    async def reached(self, at: LogPos) -> None:
        loop = asyncio.get_running_loop()
        last, since = self._replayed(), loop.time()
        while last < at:
            if not self._consumer.replaying:
                raise PreconditionError(f"{self._env.resource}: replay does not run here, so nothing can be compared",
                                        f"marsadm resume-replay {self._env.resource}")
            await self._consumer.bound.wait(1.0)
            if self._replayed() != last:
                last, since = self._replayed(), loop.time()
            elif loop.time() - since > self._patience:
                raise MarsError(f"{self._env.resource}: replay stands at {last} and does not reach {at}",
                                "see mars-status: is fetch or replay switched off?")

    def read(self, offset: int, buf: memoryview) -> None:
        try:
            read_span(self._fd, offset, buf)
        except OSError as error:
            raise MarsError(f"the data device of {self._env.resource} cannot be read at {offset}: {error.strerror}",
                            "see the messages of the kernel about the data device") from error

    @contextlib.contextmanager
    def logs(self) -> Iterator[None]:
        nr = self._copy.at.nr
        self._pins.pin(nr)
        try:
            yield
        finally:
            self._pins.unpin(nr)

    def touched(self, low: Point, upto: LogPos, offset: int, length: int, block: int) -> bytes:
        marks = bytearray(-(-length // block))
        at, digest = low.at, low.digest
        while at < upto:
            path = os.path.join(self._env.directory, at.log)
            with reader.open_log(path, self._env.uuid, self._env.resource) as log:
                last = at.nr == upto.nr
                following = None if last else self._successor(log.header)
                end = upto.pos if following is None else following.pred.pos  # type: ignore[union-attr]
                try:
                    touched(log.fd, log.header.pack(), at.pos, bytes.fromhex(digest), end, marks, offset, length, block)
                except ValueError as error:
                    raise DamagedError(f"{path}: {error}", "see mars-status --history") from error
            if following is None:
                break
            at, digest = following.start, following.digest0
        return bytes(marks)

    def _successor(self, header: FileHeader) -> FileHeader:
        for entry in reader.list_logs(self._env.directory):
            if entry.nr > header.nr:
                with reader.open_log(entry.path, self._env.uuid, self._env.resource) as log:
                    pred = log.header.pred
                    if pred is not None and (pred.nr, pred.producer) == (header.nr, header.producer):
                        return log.header
        raise DamagedError(f"no log follows {header.name} although more is replayed", "see mars-status --history")


# -- one run ----------------------------------------------------------------------------------------------------------

class VerifyRun:
    """One verify of the replica on this host. `tell` gets `{"differs": ranges}`, `{"done", "size", ...}` and at the
    end nothing: the result is what `run` returns."""

    def __init__(self, runner: Runner, wanted: Wanted, tell: Tell, rate: Callable[[], int] | None = None,
                 start: int = 0, note: Callable[[Progress], None] = lambda progress: None) -> None:
        """`rate`: KiB/s at each moment, instead of that of `wanted`. `start`: everything before is known to be equal.
        `note` is told how far it is."""
        self._runner = runner
        self._site = runner.site
        self._wanted = wanted
        self._tell = tell
        self._rate = rate or (lambda: wanted.rate_kb)
        self._batch: Ranges = []
        self._size = 0
        self._differs = self._repaired = 0
        self._start = start
        self._note = note
        self._seen = Progress(0, start)
        self._told = 0.0

    async def run(self) -> dict[str, Any]:
        """To its end; `{"size", "differs", "repaired"}` in bytes."""
        consumer = self._consumer()
        if consumer.verify.running:
            raise PreconditionError(f"a verify of {self._wanted.resource} runs here already", "wait for its end")
        result: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()
        consumer.verify.start("verify", self._body(consumer, result), f"verify {self._wanted.resource}")
        try:
            return await result
        finally:
            if consumer.verify.running:
                await consumer.verify.stop()

    async def _body(self, consumer: Consumer, result: asyncio.Future[dict[str, Any]]) -> None:
        """The activity: whatever ends it, the tree says so, and who waits is told."""
        state = "failed"
        try:
            await self._walk(consumer)
            state = "equal" if not self._differs else "repaired" if self._repaired == self._differs else "differs"
        except asyncio.CancelledError:
            state = "stopped"
            self._refuse(result, MarsError(f"the verify of {self._wanted.resource} was stopped",
                                           "the replica has changed its role or is syncing: see mars-status"))
            raise
        except (MarsError, OSError) as error:
            self._refuse(result, error)
        finally:
            self._publish(state)
        if not result.done():
            result.set_result({"size": self._size, "differs": self._differs, "repaired": self._repaired})

    @staticmethod
    def _refuse(result: asyncio.Future[dict[str, Any]], error: Exception) -> None:
        if not result.done():
            result.set_exception(error)

    def _consumer(self) -> Consumer:
        """The secondary here, if it can be verified."""
        resource, host, view = self._wanted.resource, self._site.host, self._site.view()
        consumer = self._runner.consumer
        if self._runner.producer is not None or view.designated(resource) == host:
            raise PreconditionError(f"{resource}: {host} is the primary; a replica is compared with it",
                                    f"marsadm verify {resource} --host=SECONDARY")
        if consumer is None or consumer.copy is None or consumer.at is None:
            raise PreconditionError(f"{resource} is not attached on {host}", f"marsadm attach {resource}")
        if not consumer.replaying:
            raise PreconditionError(f"{resource}: replay does not run on {host}", f"marsadm resume-replay {resource}")
        if not view.consistent(resource, host):
            raise PreconditionError(f"{resource}: the replica on {host} is not consistent yet",
                                    "wait for the end of the sync: mars-status")
        return consumer

    def _source(self) -> str:
        view, resource = self._site.view(), self._wanted.resource
        source = view.designated(resource)
        if not source or view.actual(resource, source, "is-primary") != "1":
            raise PreconditionError(f"{resource} has no primary that the replica could be compared with",
                                    f"on one host: marsadm primary {resource}")
        return source

    async def _walk(self, consumer: Consumer) -> None:
        source = self._source()
        self._put(("verify-source", source))
        self._publish("running")
        async with self._link(source, SERVICE) as link:
            settings = self._site.settings
            progress = await verify_resource(
                link, self._wanted.resource, self._spans(consumer, "verify"), self._found,
                executor=self._site.executor, rate_kb=self._rate, progress=self._progress,
                answer_timeout=float(settings.get("copy_timeout")), fly=settings.get("sync_fly"),
                kind=KINDS[settings.get("sync_digest")], start=self._start)
        self._size, self._differs = progress.size, progress.differs
        await self._repair(consumer, self._batch)
        await self._say_progress()

    def _spans(self, consumer: Consumer, who: str) -> ReplicaSpans:
        return ReplicaSpans(self._runner, consumer, who, float(self._site.settings.get("copy_timeout")))

    @contextlib.asynccontextmanager
    async def _link(self, source: str, service: str) -> AsyncIterator[Link]:
        link, _ = await self._site.dial(source, service)
        try:
            yield link
        finally:
            await link.close()

    # What it finds

    def _progress(self, progress: Progress) -> None:
        self._seen = progress
        self._note(progress)
        self._size, self._differs = progress.size, progress.differs
        now = time.monotonic()
        if now - self._told >= REPORT_S:
            self._told = now
            self._publish("running")

    async def _say_progress(self) -> None:
        seen = self._seen
        await self._tell({"done": seen.done, "size": seen.size, "differs": seen.differs, "again": seen.again,
                          "repaired": self._repaired})

    async def _found(self, ranges: Ranges) -> None:
        await self._tell({"ranges": ranges})
        if not self._wanted.repair:
            return
        self._batch += ranges
        if len(self._batch) >= BATCH_RANGES or total_of(self._batch) >= BATCH_BYTES:
            consumer = self._runner.consumer
            if consumer is not None:
                batch, self._batch = self._batch, []
                await self._repair(consumer, batch)

    async def _repair(self, consumer: Consumer, ranges: Ranges) -> None:
        """Fetch by the sync rule, then look again: only what is equal then counts as repaired."""
        if not ranges:
            return
        site, resource = self._site, self._wanted.resource
        async with self._link(self._source(), "sync") as link:
            await repair_ranges(link, resource, self._repair_sink(consumer), ranges, executor=site.executor,
                                answer_timeout=float(site.settings.get("copy_timeout")),
                                fly=site.settings.get("sync_fly"), bucket=site.fetch_bucket)
        still: Ranges = []

        async def note(found: Ranges) -> None:
            still.extend(found)

        async with self._link(self._source(), SERVICE) as link:
            await verify_resource(link, resource, self._spans(consumer, "verify-again"), note, ranges=ranges,
                                  executor=site.executor, kind=KINDS[site.settings.get("sync_digest")])
        self._repaired += total_of(ranges) - total_of(still)
        if still:
            raise MarsError(f"{resource}: {total_of(still)} bytes differ again after the repair, first at "
                            f"{still[0][0]}", "the data device does not keep what is written: replace it")

    def _repair_sink(self, consumer: Consumer) -> DiskSpans:
        copy, view = consumer.copy, self._site.view()
        assert copy is not None
        resource, host = self._wanted.resource, self._site.host
        mark = view.syncpos(resource, host)
        syncpos = Point(mark.digest, mark.pos) if mark is not None and mark.digest else None
        return DiskSpans(self._runner.publisher, resource, host, consumer.disk_fd, consumer.env.device_size,
                         resume=Resume(view.size(resource), syncpos, proven=True), bound=consumer.bound,
                         fetched=lambda: copy.point, replayed=lambda: consumer.at or copy.at,
                         on_trouble=self._runner.span_trouble)

    # What the tree says

    def _put(self, *facts: tuple[str, str]) -> None:
        self._site.store.put_many([(paths.actual(self._wanted.resource, self._site.host, key), value)
                                   for key, value in facts])

    def _publish(self, state: str) -> None:
        now = time.time_ns()
        self._put(("verify-state", state), ("verify-pos", str(self._seen.done)), ("verify-differs", str(self._differs)),
                  ("verify-repaired", str(self._repaired)), ("verify-time", f"{now // 10**9}.{now % 10**9:09d}"))
        if state in ("equal", "differs", "repaired"):
            bad = -(-self._differs // 4096)
            self._site.store.put(paths.verifystatus(self._wanted.resource, self._site.host),
                                 f"{max(0, -(-self._size // 4096) - bad)},{bad}")


def tell_interrupted(runner: Runner) -> None:
    """A run that died with the last worker is no longer running."""
    rel = paths.actual(runner.resource, runner.site.host, "verify-state")
    if runner.site.store.get(rel) == "running":
        runner.site.store.put(rel, "stopped")


# -- who asks ---------------------------------------------------------------------------------------------------------

async def run_here(runner: Runner, wanted: Wanted, tell: Tell) -> dict[str, Any]:
    """One run, or round after round until cancelled. Lines of progress come by themselves."""
    while True:
        await runner.scrub.stop()
        if wanted.continuous and not wanted.rate_kb:
            wanted = Wanted(wanted.resource, wanted.host, wanted.repair, True, QUIET_KB)
        run = VerifyRun(runner, wanted, tell)
        async with _progress_lines(run):
            result = await run.run()
        if not wanted.continuous:
            return result
        await tell({"round": result})
        await asyncio.sleep(ROUND_PAUSE_S)


@contextlib.asynccontextmanager
async def _progress_lines(run: VerifyRun) -> AsyncIterator[None]:
    async def body() -> None:
        while True:
            await asyncio.sleep(0.5)
            await run._say_progress()
    task = asyncio.create_task(body(), name="verify-progress")
    try:
        yield
    finally:
        task.cancel()
        await asyncio.wait([task])


async def from_marsadm(worker: Worker, request: dict[str, Any], tell: Tell) -> dict[str, Any]:
    """The control command `verify`: here, or on another host by its marsd."""
    wanted = Wanted.parse(request)
    if wanted.host in ("", worker.host):
        return await run_here(_runner(worker, wanted.resource), wanted, tell)
    if wanted.host not in worker.site.view().members(wanted.resource):
        raise PreconditionError(f"{wanted.host} has no replica of {wanted.resource}",
                                f"members: {', '.join(worker.site.view().members(wanted.resource)) or 'none'}")
    link, _ = await worker.site.dial(wanted.host, ASK)
    try:
        await link.send(Type.VERIFY_RUN, wanted.fields())
        while True:
            frame = wire.expect(await link.recv(), Type.VERIFY_TOLD, Type.VERIFY_END)
            if frame.type is Type.VERIFY_TOLD:
                await tell(frame.header)
                continue
            if "error" in frame.header:
                raise from_exit_code(wire.take_int(frame.header, "exit", 1, 255),
                                     wire.take_text(frame.header, "error", 2000),
                                     wire.take_text(frame.header, "hint", 2000, empty=True))
            return {key: wire.take_int(frame.header, key, 0, 2**63) for key in ("size", "differs", "repaired")}
    finally:
        await link.close()


def _runner(worker: Worker, resource: str) -> Runner:
    runner = worker.runners.get(resource)
    if runner is None:
        raise PreconditionError(f"{worker.host} has no replica of {resource}", f"marsadm verify {resource} --host=HOST")
    return runner


class VerifyAsk:
    """The service `verify-run`: runs here what a member asks for, as long as its link lives."""

    def __init__(self, worker: Worker) -> None:
        self._worker = worker

    async def __call__(self, link: Link, peer: Peer) -> None:
        asked = wire.expect(await link.recv(link.timing.io_timeout), Type.VERIFY_RUN)
        wanted = Wanted.parse(asked.header)
        if peer.host not in self._worker.site.view().members(wanted.resource):
            raise PreconditionError(f"{peer.host} is not a member of {wanted.resource}")
        LOG.info("%s: %s asks for a verify%s", wanted.resource, peer.host, " with repair" if wanted.repair else "")
        running = asyncio.create_task(self._run(link, wanted), name=f"verify for {peer.host}")
        gone = asyncio.create_task(self._gone(link))
        try:
            await asyncio.wait([running, gone], return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (running, gone):
                task.cancel()
            await asyncio.wait([running, gone])
        if not running.cancelled():
            running.result()

    @staticmethod
    async def _gone(link: Link) -> None:
        """Nothing is due from there any more."""
        with contextlib.suppress(PeerError):
            await link.recv()

    async def _run(self, link: Link, wanted: Wanted) -> None:
        async def tell(told: dict[str, Any]) -> None:
            await link.send(Type.VERIFY_TOLD, told)

        try:
            result = await run_here(_runner(self._worker, wanted.resource), wanted, tell)
        except PeerError as error:
            if error.reason is Reason.CLOSED:
                return
            result = {"error": error.text, "hint": error.hint, "exit": error.exit_code}
        except MarsError as error:
            result = {"error": error.text, "hint": error.hint, "exit": error.exit_code}
        except OSError as error:
            result = {"error": str(error), "hint": "see marsd.log there", "exit": 1}
        if link.ended is None:
            await link.send(Type.VERIFY_END, result)
