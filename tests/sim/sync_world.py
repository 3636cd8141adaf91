"""A world for the search: one primary, one secondary, the real coroutines of `marsx.peer.sync` between them, and a
scheduler that chooses at random who moves next: frames, calls in the executor, records, flushes, replay, time, power.

Deterministic for a seed: one thread, a loop with a clock of its own, an executor whose calls are run by the scheduler.
It leans towards slow span writes and fast replay, because that is where the rules break.
"""
from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import random
import selectors
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from marsx.base.errors import MarsError
from marsx.peer import wire
from marsx.peer.link import Timing
from marsx.peer.server import Peer
from marsx.peer.sync import SyncService, sync_resource
from marsx.peer.syncparts import is_stale
from marsx.peer.wire import PeerError, Reason, Type
from tests.sim.sync_model import SHAPE, History, MemorySink, MemorySource, PrimaryModel, TargetModel

ROOM = 4  # frames under way
PEER = Peer("beta", "inc", (), "127.0.0.1", True)


class _NoSelector(selectors.SelectSelector):
    def select(self, timeout: float | None = None) -> list[Any]:
        return []


class SimLoop(asyncio.SelectorEventLoop):
    """Never waits for real; its time is what the scheduler says."""

    def __init__(self) -> None:
        self.now = 0.0
        super().__init__(_NoSelector())

    def time(self) -> float:
        return self.now


class SimExecutor(concurrent.futures.Executor):
    """Calls wait until the scheduler runs them."""

    def __init__(self) -> None:
        self.jobs: list[tuple[concurrent.futures.Future[Any], Callable[..., Any], tuple[Any, ...]]] = []

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> concurrent.futures.Future[Any]:
        future: concurrent.futures.Future[Any] = concurrent.futures.Future()
        future.set_running_or_notify_cancel()  # it cannot be cancelled any more, as in a busy thread
        self.jobs.append((future, fn, args))
        return future

    def run(self, place: int) -> None:
        """Run one call to its end."""
        future, fn, args = self.jobs.pop(place)
        try:
            result = fn(*args)
        except BaseException as error:
            future.set_exception(error)
        else:
            future.set_result(result)


class SimLink:
    """One end of a line that delivers when the scheduler says so."""

    def __init__(self, who: str) -> None:
        self.who = who
        self.timing = Timing()
        self.ended: PeerError | None = None
        self.other: SimLink
        self.under_way: list[bytes] = []  # towards us
        self._decoder = wire.Decoder()
        self._inbox: list[wire.Frame] = []
        self._event = asyncio.Event()
        self._drained = asyncio.Event()

    async def send(self, kind: Type, header: dict[str, Any] | None = None, body: Any = b"") -> None:
        await self.room()
        self.post(kind, header, body)

    async def room(self) -> None:
        """Answers have to wait for the line now and then."""
        while len(self.other.under_way) >= ROOM and self.ended is None:
            self._drained.clear()
            await self._drained.wait()
        if self.ended is not None:
            raise self.ended

    def post(self, kind: Type, header: dict[str, Any] | None = None, body: Any = b"") -> None:
        if self.ended is not None:
            raise self.ended
        self.other.under_way.append(wire.encode(kind, header, body))

    def line(self) -> tuple[int, bool]:
        return 0, False

    def bodies_in(self, room: Callable[[int, int], memoryview]) -> None:
        self._decoder.room = room

    def deliver(self) -> None:
        """The next frame arrives."""
        if self.under_way:
            self._inbox += self._decoder.feed(self.under_way.pop(0))
            assert self._decoder.error is None
            self._event.set()
            self.other._drained.set()

    async def recv(self, timeout: float | None = None) -> wire.Frame:
        while not self._inbox:
            if self.ended is not None:
                raise self.ended
            self._event.clear()
            await self._event.wait()
        return self._inbox.pop(0)

    def cut(self, reason: Reason = Reason.LOST) -> None:
        """The line is gone."""
        for end in (self, self.other):
            end.ended = end.ended or PeerError(reason, f"{end.who}: the line is cut")
            end._event.set()
            end._drained.set()

    async def close(self, reason: Reason = Reason.CLOSED, text: str = "") -> None:
        while self.other.under_way and reason is Reason.CLOSED and self.ended is None:
            self.other.deliver()  # what was sent before arrives before the end
        self.cut(Reason.CLOSED)


def link_pair() -> tuple[SimLink, SimLink]:
    """Source's end, target's end."""
    left, right = SimLink("source"), SimLink("target")
    left.other, right.other = right, left
    return left, right


@dataclass(frozen=True)
class Powers:
    """What may happen to a world besides writes, flushes, fetch and replay."""

    pause: bool = True
    cut_source: bool = False
    fork: bool = False
    crash_target: bool = False
    fake_sync: bool = False
    steps: int = 220


class Wrong(AssertionError):
    """The checker's verdict."""


class Stuck(AssertionError):
    """A world that has calmed down, and yet does not come to its end."""


class World:
    """See the module. `source`, `sink`: classes, so that a test can put broken ones in."""

    def __init__(self, seed: int, powers: Powers, source: type[MemorySource] = MemorySource,
                 sink: type[MemorySink] = MemorySink, fast: bool = True) -> None:
        self.random = r = random.Random(seed)
        self.powers = powers
        self.fast = fast
        blocks = r.choice([2, 4, 7, 14, 20])
        history = History(blocks)
        self.value = 1
        for _ in range(r.randrange(4)):
            self._record(history)
        self.primary = PrimaryModel(history)
        # A faked sync is honest only where both began with the same contents.
        begin = [0] * blocks if powers.fake_sync else [r.choice([0, 0, 10_000 + block]) for block in range(blocks)]
        self.target = TargetModel(history, begin)
        self.source_type, self.sink = source, sink(self.target)
        self.executor = SimExecutor()
        self.links: tuple[SimLink, SimLink] | None = None
        self.serving: asyncio.Task[None] | None = None
        self.syncing: asyncio.Task[None] | None = None
        self.switched_on = True
        self.claims = self.finished = self.restarts = 0

    # -- what moves ---------------------------------------------------------------------------------------------------

    def _record(self, history: History) -> None:
        self.value += 1
        history.write(self.random.randrange(history.blocks), self.value if self.random.random() < 0.75 else 0)

    def write(self) -> None:
        if self.primary.alive:
            self._record(self.primary.history)

    def _write_meanwhile(self) -> None:
        if self.random.random() < 0.2:
            self.write()

    def flush(self) -> None:
        primary = self.primary
        primary.flush(self.random.choice([None, self.random.randint(primary.durable, len(primary.history.records))]))

    def rotate(self) -> None:
        if self.primary.durable == len(self.primary.history.records) and len(self.primary.history.logs) < 6:
            self.primary.history.begin_log(self.primary.history.logs[-1][1])

    def fetch(self) -> None:
        """Log arrives, all of it that is durable or a part."""
        t = self.target
        if t.fetched < self.primary.durable and not (self.powers.fork and self.random.random() < 0.7):
            t.fetched = self.random.choice([self.primary.durable, self.random.randint(t.fetched, self.primary.durable)])

    def replay(self) -> None:
        """Fast: often a whole window at once."""
        t, r = self.target, self.random
        if t.window is None:
            limit = t.window_limit()
            if limit > t.replayed:
                t.begin_window(r.choice([limit, r.randint(t.replayed + 1, limit)]))
        for _ in range(r.choice([1, 1, 2, 20])):
            if t.window is not None:
                t.step_window(r.randrange)

    def call(self) -> None:
        """One call of the executor; writes of spans have to wait."""
        jobs = self.executor.jobs
        if jobs:
            place = self.random.randrange(len(jobs))
            if jobs[place][1].__name__ != "_write_ranges" or self.random.random() < 0.25:
                self.executor.run(place)

    def deliver(self) -> None:
        if self.links is not None:
            self.random.choice(self.links).deliver()

    def time(self) -> None:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, SimLoop)
        loop.now += 1.1

    # -- what happens to them -----------------------------------------------------------------------------------------

    def start(self) -> None:
        """A run, if none is on and it is wanted."""
        t = self.target
        if is_on(self.syncing) or is_on(self.serving) or not self.switched_on:
            return
        if t.status >= t.size:
            if not is_stale(t.syncpos, t.history.point(t.fetched), t.syncpos and t.in_history(t.syncpos)):
                return
            self.sink.restart("the history has forked below syncpos")
        self.links = left, right = link_pair()
        service = SyncService(lambda resource, peer: self.source_type(self.primary, self._write_meanwhile),
                              self.executor)
        self.serving = asyncio.ensure_future(self._serve(service, left))
        self.syncing = asyncio.ensure_future(self._sync(right))

    async def _serve(self, service: SyncService, link: SimLink) -> None:
        with contextlib.suppress(MarsError):
            await service(link, PEER)  # type: ignore[arg-type]
        await link.close()

    async def _sync(self, link: SimLink) -> None:
        try:
            with contextlib.suppress(PeerError):
                await sync_resource(link, "data", self.sink, executor=self.executor,  # type: ignore[arg-type]
                                    fast=lambda: self.fast, shape=SHAPE)
                self.finished += 1
        finally:
            await link.close(Reason.LOST)

    async def pause(self) -> None:
        if self.syncing is not None and self.links is not None:
            self.syncing.cancel()
            await self.wait_for(self.syncing)
            self.links[1].cut()  # a run that had not even begun closes nothing
        await self.wait_for(self.serving)

    async def wait_for(self, task: asyncio.Task[None] | None) -> None:
        """Things go on until the task has ended."""
        if task is None:
            return
        for _ in range(2000):
            if task.done():
                break
            self.random.choice([self.call, self.replay, self.replay, self.fetch, self.deliver, self.flush])()
            await settle()
            self.check()
        assert task.done(), "does not end"
        if not task.cancelled() and task.exception() is not None:
            raise task.exception()  # type: ignore[misc]

    async def cut_source(self, fork: bool = False) -> None:
        """Power cut of the source: what was not durable is gone, but for luck. fork: it stays away, and another host is
        forced that has less, but no less than the target."""
        old, r = self.primary, self.random
        old.alive = False
        if self.links is not None:
            self.links[1].cut()
        low = self.target.fetched if fork else old.durable
        keep = r.randint(low, r.choice([low, old.durable]) if fork else len(old.history.records))
        last = old.history.logs[-1][1]
        self.primary = PrimaryModel(old.history.fork(keep, {"alpha": "gamma"}.get(last, "alpha") if fork else last))
        self.target.history = self.primary.history
        old.flush()  # nobody waits any more for what will never be
        await self.wait_for(self.syncing)
        await self.wait_for(self.serving)

    async def crash_target(self) -> None:
        """Power cut of the target. What was in flight may be on the disk or not."""
        if self.links is not None:
            self.links[1].cut()
        await self.wait_for(self.syncing)
        await self.wait_for(self.serving)
        self.target.crash(lambda: self.random.random() < 0.5)

    async def fake_sync(self) -> None:
        self.switched_on = False
        await self.pause()
        if not self.sink.restarts:
            self.target.status = self.target.size

    # -- the run ------------------------------------------------------------------------------------------------------

    def check(self) -> None:
        """Rule of the view against the truth."""
        t = self.target
        if t.claims_consistent():
            self.claims += 1
            if not t.is_consistent():
                raise Wrong(f"consistent is claimed at {t.replayed}, syncpos {t.syncpos and t.syncpos.at}: disk "
                            f"{t.disk}, truth {t.history.state(t.replayed)}")

    def rare(self) -> list[Callable[[], Any]]:
        p = self.powers
        forks = p.fork and self.target.status > 0 and len(self.primary.history.logs) < 8
        return ([self.pause] * p.pause + [self.cut_source] * p.cut_source + [lambda: self.cut_source(fork=True)] * forks
                + [self.crash_target] * p.crash_target + [self.fake_sync] * p.fake_sync)

    async def run(self) -> None:
        """All of it; Wrong when the checker objects."""
        usual = [self.write, self.write, self.flush, self.fetch, self.fetch, self.time, self.time, *[self.replay] * 4,
                 *[self.call] * 7, *[self.deliver] * 7]
        for _ in range(self.powers.steps):
            self.start()
            rare = self.rare()
            # Half way is where it matters.
            if rare and self.random.random() < (0.1 if 0 < self.target.status < self.target.size else 0.015):
                await self.random.choice(rare)()
            elif self.random.random() < 0.01:
                self.rotate()
            else:
                self.random.choice(usual)()
            await settle()
            self.check()
        await self.calm_down()

    async def calm_down(self) -> None:
        """No more writes: everything must come to its end, and be equal."""
        self.switched_on = True
        t = self.target
        for _ in range(6000):
            self.primary.flush()
            self.start()
            self.random.choice([self.call, self.call, self.deliver, self.deliver, self.replay, self.fetch])()
            await settle()
            self.check()
            if not is_on(self.syncing) and t.claims_consistent() and t.replayed == len(t.history.records):
                break
        else:
            raise Stuck(f"does not come to an end: status {t.status} of {t.size}, syncpos {t.syncpos}, "
                        f"replayed {t.replayed}, history {t.history.logs}")
        await self.pause()
        if t.disk != self.primary.history.state(len(self.primary.history.records)):
            raise Wrong("the end differs")


def is_on(task: asyncio.Task[None] | None) -> bool:
    """It runs. One that has failed says so here."""
    if task is not None and task.done() and not task.cancelled():
        task.result()
    return task is not None and not task.done()


async def settle() -> None:
    """Everything that can go on without the scheduler does."""
    for _ in range(12):
        await asyncio.sleep(0)


def run_world(world: Callable[[], World]) -> World:
    """One schedule in a loop of its own."""
    loop = SimLoop()
    try:
        async def main() -> World:
            made = world()
            try:
                await made.run()
            finally:
                left = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
                for task in left:
                    task.cancel()
                while any(not task.done() for task in left):
                    while made.executor.jobs:
                        made.executor.run(0)
                    await asyncio.sleep(0)
                for task in left:
                    if not task.cancelled():
                        task.exception()
            return made
        return loop.run_until_complete(main())
    finally:
        loop.close()
