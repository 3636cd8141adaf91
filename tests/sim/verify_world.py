"""A world for verify: a primary that is written to without end, a secondary that replays fast and reads slowly, damage
on its disk, and the real coroutines of `marsx.peer.verify` and `marsx.peer.sync` between them.

A digest block is two sectors, so that a read can be torn on both sides. The checker knows what was damaged and when: a
block reported that was never damaged during the run is a false difference, one that was damaged all the time and is
not reported was missed. Deterministic for a seed.
"""
from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass

from marsx.base.errors import MarsError
from marsx.base.position import LogPos
from marsx.log.chain import Point
from marsx.peer.server import Peer
from marsx.peer.sync import SyncService, repair_ranges
from marsx.peer.syncparts import Ranges, Resume, Shape
from marsx.peer.verify import VerifyService, verify_resource
from marsx.peer.wire import PeerError
from tests.sim.sync_model import BLOCK, GROUP, History, MemorySink, MemorySource, PrimaryModel, TargetModel, contents
from tests.sim.sync_world import SimExecutor, SimLink, SimLoop, Stuck, Wrong, link_pair, settle

PEER = Peer("beta", "inc", (), "127.0.0.1", True)
DIGEST_BLOCK = 2 * BLOCK
SHAPE = Shape(span=4 * DIGEST_BLOCK, chunk=2 * DIGEST_BLOCK, block=DIGEST_BLOCK, piece=3 * DIGEST_BLOCK)
DAMAGE = 9_000_000


def index_of(history: History, at: LogPos) -> int:
    """How many records lie before a position; (N, end) and (N+1, 0) are the same."""
    return next(first for nr, _, first in history.logs if nr == at.nr) + at.pos // GROUP


class VerifyPrimary(PrimaryModel):
    """A primary that can hold its writers back."""

    def __init__(self, history: History) -> None:
        super().__init__(history)
        self.held = False
        self.stills = 0
        self.now = history.state(len(history.records))


class ModelSource(MemorySource):
    """VerifySource over a PrimaryModel."""

    primary: VerifyPrimary

    def read(self, offset: int, buf: memoryview) -> None:
        for at in range(0, len(buf), BLOCK):
            buf[at:at + BLOCK] = contents(self.primary.now[(offset + at) // BLOCK])
            self.meanwhile()

    def settled(self) -> Point:
        return self.primary.history.point(self.primary.durable)

    @contextlib.asynccontextmanager
    async def still(self) -> AsyncIterator[Point]:
        self.primary.held = True
        self.primary.stills += 1
        try:
            yield await self.durable(self.appended())
        finally:
            self.primary.held = False


class VerifyTarget(TargetModel):
    """A secondary that also knows what its disk would hold without damage, and since when a sector is damaged."""

    def __init__(self, history: History, values: list[int]) -> None:
        super().__init__(history, values)
        self.clean = list(values)
        self.ever: set[int] = set()
        self.always: set[int] | None = None
        self.moved = asyncio.Event()
        self.bounds: dict[str, LogPos | None] = {}

    def damaged(self) -> set[int]:
        return {sector for sector, value in enumerate(self.disk) if value != self.clean[sector]}

    def note(self) -> None:
        """Call after each step of a run."""
        now = self.damaged()
        self.ever |= now
        self.always = now if self.always is None else self.always & now

    def window_limit(self) -> int:
        bounds = [index_of(self.history, bound) for bound in self.bounds.values() if bound is not None]
        return min([self.fetched, *bounds])

    def step_window(self, pick: Callable[[int], int]) -> None:
        assert self.window is not None
        writes = list(self.window[1])
        super().step_window(pick)
        if self.window is None:
            self.moved.set()
            self.moved.clear()
        else:
            written = set(writes) - set(self.window[1])
            for sector, value in written:
                self.clean[sector] = value

    def upper(self) -> int:
        return self.window[0] if self.window is not None else self.replayed


class ModelSink:
    """VerifySink over a VerifyTarget. `meanwhile` is called between two sectors of a read."""

    holder = "verify"

    def __init__(self, target: VerifyTarget, meanwhile: Callable[[], None]) -> None:
        self.target = target
        self.meanwhile = meanwhile

    @property
    def capacity(self) -> int:
        return self.target.size

    def fetched(self) -> Point:
        return self.target.history.point(self.target.fetched)

    async def reached(self, at: LogPos) -> None:
        while self.target.replayed < index_of(self.target.history, at):
            await self.target.moved.wait()

    def begun(self) -> LogPos:
        t = self.target
        bound = t.bounds.get(self.holder)
        if bound is not None and index_of(t.history, bound) == t.upper():
            return bound
        return t.history.point(t.upper()).at

    def set_bound(self, bound: LogPos | None) -> bool:
        t = self.target
        t.bounds[self.holder] = bound
        return bound is None or t.upper() <= index_of(t.history, bound)

    def read(self, offset: int, buf: memoryview) -> None:
        for at in range(0, len(buf), BLOCK):
            buf[at:at + BLOCK] = contents(self.target.disk[(offset + at) // BLOCK])
            self.meanwhile()

    def logs(self) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext()

    def touched(self, low: Point, upto: LogPos, offset: int, length: int, block: int) -> bytes:
        history, marks = self.target.history, bytearray(-(-length // block))
        first = history.index_of(low)
        assert first is not None, "the interval does not begin in the own history"
        for sector, _ in history.records[first:index_of(history, upto)]:
            if offset <= sector * BLOCK < offset + length:
                marks[(sector * BLOCK - offset) // block] = 1
        return bytes(marks)


class RepairSink(MemorySink):
    """SpanSink of a repair: what it writes is clean."""

    target: VerifyTarget

    def set_bound(self, bound: LogPos | None) -> bool:
        t = self.target
        t.bounds["sync"] = bound
        return bound is None or t.upper() <= index_of(t.history, bound)

    def write(self, offset: int, data: memoryview) -> None:
        super().write(offset, data)
        for sector in range(offset // BLOCK, (offset + len(data)) // BLOCK):
            self.target.clean[sector] = self.target.disk[sector]

    def write_zeros(self, offset: int, length: int) -> None:
        super().write_zeros(offset, length)
        for sector in range(offset // BLOCK, (offset + length) // BLOCK):
            self.target.clean[sector] = 0


@dataclass(frozen=True)
class Load:
    """How a world is: writes per turn, how hot they are, whether damage comes while it runs, and is repaired."""

    hot: float = 0.5
    writes: int = 3
    late_damage: bool = True
    damage: float = 0.2
    repair: bool = False
    steps: int = 4000


class VerifyWorld:
    """One verify of one replica. `source`, `sink`, `repair`: classes, so that a test can put broken ones in."""

    def __init__(self, seed: int, load: Load, source: type[ModelSource] = ModelSource,
                 sink: type[ModelSink] = ModelSink, repair: type[RepairSink] = RepairSink) -> None:
        self.random = r = random.Random(seed)
        self.load = load
        sectors = 2 * r.choice([1, 2, 4, 7, 9])
        history = History(sectors)
        self.value = 1
        self.primary = VerifyPrimary(history)
        for _ in range(r.randrange(12)):
            self._record()
        self.primary.durable = r.randint(0, len(history.records))
        self.target = t = VerifyTarget(history, [0] * sectors)
        t.fetched = r.randint(0, self.primary.durable)
        t.replayed = r.randint(0, t.fetched)
        t.disk = history.state(t.replayed)
        t.clean, t.stable, t.status = list(t.disk), list(t.disk), t.size
        for sector in range(sectors):
            if r.random() < load.damage:
                t.disk[sector] = DAMAGE + sector
        self.source_type, self.repair_type = source, repair
        self.sink = sink(t, self._replay_meanwhile)
        self.executor = SimExecutor()
        self.links: list[SimLink] = []
        self.found: Ranges = []
        self.lasting = 0  # blocks that were damaged all the time
        self.serving: list[asyncio.Task[None]] = []

    # -- what moves ---------------------------------------------------------------------------------------------------

    def _record(self) -> None:
        self.value += 1
        history = self.primary.history
        hot = self.random.random() < self.load.hot
        # Some sectors are never written to, also beside hot ones in one block: what is damaged there stays.
        sector = 0 if hot else self.random.randrange(max(2, history.blocks * 2 // 3))
        history.write(sector, self.value)
        self.primary.now[sector] = self.value

    def write(self) -> None:
        if not self.primary.held:
            self._record()

    def _write_meanwhile(self) -> None:
        while self.random.random() < 0.3:
            self.write()

    def _replay_meanwhile(self) -> None:
        if self.random.random() < 0.4:
            self.replay()

    def flush(self) -> None:
        primary = self.primary
        primary.flush(self.random.choice([None, self.random.randint(primary.durable, len(primary.history.records))]))

    def rotate(self) -> None:
        primary = self.primary
        if primary.durable == len(primary.history.records) and len(primary.history.logs) < 6 and not primary.held:
            primary.history.begin_log("alpha")

    def fetch(self) -> None:
        t = self.target
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
        """One call of the executor; reads of the target and writes of spans have to wait."""
        jobs = self.executor.jobs
        if jobs:
            place = self.random.randrange(len(jobs))
            slow = jobs[place][1].__name__ in ("_write_ranges", "_read_and_note", "own_digests")
            if not slow or self.random.random() < 0.3:
                self.executor.run(place)

    def deliver(self) -> None:
        if self.links:
            self.random.choice(self.links).deliver()

    def damage(self) -> None:
        """A sector of the replica goes bad while the run is on."""
        if self.load.late_damage and self.random.random() < 0.02:
            sector = self.random.randrange(len(self.target.disk))
            self.target.disk[sector] = DAMAGE + 1000 + sector

    # -- the run ------------------------------------------------------------------------------------------------------

    def _serve(self, service: SyncService) -> SimLink:
        left, right = link_pair()
        self.links += [left, right]

        async def body() -> None:
            with contextlib.suppress(MarsError):
                await service(left, PEER)  # type: ignore[arg-type]
            await left.close()
        self.serving.append(asyncio.ensure_future(body()))
        return right

    def _source(self, resource: str, peer: Peer) -> ModelSource:
        return self.source_type(self.primary, self._write_meanwhile)

    async def _found(self, ranges: Ranges) -> None:
        self.found += ranges

    async def verify(self, ranges: Ranges | None = None) -> None:
        """One run of the real coroutine."""
        link = self._serve(VerifyService(self._source, self.executor))
        try:
            await verify_resource(link, "data", self.sink, self._found, ranges=ranges,  # type: ignore[arg-type]
                                  executor=self.executor, shape=SHAPE)
        finally:
            await link.close()

    async def repair(self) -> None:
        """What differs is fetched by the sync rule."""
        link = self._serve(SyncService(self._source, self.executor))  # type: ignore[arg-type]
        sink = self.repair_type(self.target)
        sink.resume = self._resume  # type: ignore[method-assign]
        try:
            await repair_ranges(link, "data", sink, list(self.found), executor=self.executor,  # type: ignore[arg-type]
                                shape=SHAPE)
        finally:
            await link.close()

    def _resume(self) -> Resume:
        return Resume(self.target.size, self.target.syncpos, proven=True)

    async def go_on(self, task: asyncio.Task[None], check: Callable[[], None] = lambda: None) -> None:
        """The world goes on until the task has ended; writers never rest."""
        usual = [*[self.write] * self.load.writes, self.flush, self.flush, self.fetch, self.fetch, *[self.replay] * 4,
                 *[self.call] * 7, *[self.deliver] * 7, self.damage, self._time]
        for _ in range(self.load.steps):
            if self.random.random() < 0.01:
                self.rotate()
            self.random.choice(usual)()
            await settle()
            self.target.note()
            check()
            if task.done():
                task.result()
                return
        raise Stuck(f"no end after {self.load.steps} steps: found {self.found}")

    def _time(self) -> None:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, SimLoop)
        loop.now += 0.1

    async def run(self) -> None:
        """Verify, judge, and if asked for repair and look again."""
        self.target.note()
        await self.go_on(asyncio.ensure_future(self.verify()))
        self.judge()
        if not self.load.repair:
            return
        await self.go_on(asyncio.ensure_future(self.repair()))
        await self._catch_up()

    def judge(self) -> None:
        """Against the truth."""
        t = self.target
        reported = {at // DIGEST_BLOCK for offset, length in self.found
                    for at in range(offset, offset + length, DIGEST_BLOCK)}
        false = reported - {sector // 2 for sector in t.ever}
        lasting = {sector // 2 for sector in t.always or ()}
        missed, self.lasting = lasting - reported, len(lasting)
        if false:
            raise Wrong(f"false differences: blocks {sorted(false)}")
        if missed:
            raise Wrong(f"missed: blocks {sorted(missed)}")
        if self.found != sorted(self.found):
            raise Wrong(f"not in order: {self.found}")

    async def _catch_up(self) -> None:
        """No more writes: when replay has passed syncpos, the disk is the source's state."""
        t = self.target
        for _ in range(3000):
            self.primary.flush()
            self.random.choice([self.fetch, self.replay])()
            await settle()
            if t.window is None and t.claims_consistent() and not t.is_consistent():
                raise Wrong(f"consistent is claimed at {t.replayed}: {t.disk}, truth {t.history.state(t.replayed)}")
            if t.replayed == len(t.history.records) and t.window is None:
                return
        raise Stuck("replay does not come to an end")


def run_verify(world: Callable[[], VerifyWorld]) -> VerifyWorld:
    """One schedule in a loop of its own."""
    loop = SimLoop()
    try:
        async def main() -> VerifyWorld:
            made = world()
            try:
                await made.run()
            finally:
                for link in made.links:
                    link.cut()
                left = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
                for task in left:
                    task.cancel()
                while any(not task.done() for task in left):
                    while made.executor.jobs:
                        with contextlib.suppress(PeerError):
                            made.executor.run(0)
                    await asyncio.sleep(0)
                for task in left:
                    if not task.cancelled():
                        task.exception()
            return made
        return loop.run_until_complete(main())
    finally:
        loop.close()
