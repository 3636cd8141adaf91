"""Full sync with real volumes: a serving Primary as the source, a device in a file with replay beside it as the target.
Nothing here is a stand-in but the runner."""
from __future__ import annotations

import asyncio
import os
import random
import signal
import threading
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pytest

from marsx.base import durable
from marsx.base.config import Paths
from marsx.base.errors import MarsError
from marsx.base.lamport import Lamport
from marsx.base.position import LogPos
from marsx.daemon import logcopy
from marsx.daemon.facts import Publisher
from marsx.daemon.logsource import End, Pins, Source
from marsx.daemon.spans import DiskSpans, PrimarySpans, ReplayBound, SpanGate, resume_of, stale_sync
from marsx.log.chain import Point
from marsx.peer.fetch import FetchService, fetch_logs
from marsx.peer.link import Link, Timing
from marsx.peer.server import Peer
from marsx.peer.spanio import AlignedBuffer
from marsx.peer.sync import SyncService, sync_resource
from marsx.peer.syncparts import Resume
from marsx.peer.wire import Reason
from marsx.tree import paths
from marsx.tree.store import Store
from marsx.tree.view import View
from marsx.volume.env import Env
from marsx.volume.replay import Replayer
from tests.fix_volume import HOST, MIB, RESOURCE, UUID, Disk, Serving

ME = "b"
PEER = Peer(ME, "inc", (), "127.0.0.1", True)
SIZE = 4 * MIB


async def link_pair() -> tuple[Link, Link]:
    left, right = Link("source", Timing()), Link("target", Timing())
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: left, "127.0.0.1", 0)
    await loop.create_connection(lambda: right, *server.sockets[0].getsockname())
    server.close()
    while left._transport is None:
        await asyncio.sleep(0)
    return left, right


class Host:
    """The source: a Primary, the end that streams see, its pins, and the gate."""

    def __init__(self, serving: Serving, executor: ThreadPoolExecutor) -> None:
        self.serving, self.executor = serving, executor
        self.primary = serving.primary
        _, nr, pos, _ = self.primary.volume.durable_point()
        self.end, self.pins = End(LogPos(nr, HOST, pos)), Pins()
        self.gate = SpanGate(self.primary, self.end, executor)
        self.task = asyncio.create_task(self._watch())

    def look(self) -> None:
        """The end as it is now."""
        _, nr, pos, _ = self.primary.volume.durable_point()
        self.end.move(LogPos(nr, HOST, pos))

    async def _watch(self) -> None:
        while True:  # what the event descriptor does in the daemon
            self.look()
            await asyncio.sleep(0.001)

    def logs(self) -> Source:
        return Source(str(self.serving.site.directory), UUID, RESOURCE, self.end, self.pins)

    async def close(self) -> None:
        self.task.cancel()
        await asyncio.gather(self.task, return_exceptions=True)


class Secondary:
    """The target as the daemon's consumer has it: tree, copy of the log, replay in its thread, device in a file."""

    def __init__(self, directory, executor: ThreadPoolExecutor) -> None:
        self.executor = executor
        mars = directory / "mars"
        mars.mkdir()
        self.store = Store(Paths(mars_dir=str(mars)), ME, Lamport())
        self.store.load()
        self.store.put_many([(paths.data(RESOURCE, ME), "/dev/x"), (paths.size(RESOURCE), str(SIZE)),
                             (paths.syncstatus(RESOURCE, ME), "0")])
        self.disk = Disk(directory / "target-disk", SIZE, seed=99)
        self.publisher = Publisher(self.store, asyncio.get_running_loop(), RESOURCE, lambda: None)
        self.env = Env(str(mars / paths.resource_dir(RESOURCE)), UUID, RESOURCE, ME, SIZE, 512, self.publisher,
                       lambda: 1, window_bytes=MIB, on_trouble=lambda text: None)
        start = LogPos(1, HOST, 0)
        self.bound, self.trouble = ReplayBound(), []
        self.loop = asyncio.get_running_loop()
        self.replayer = None
        self.copy = logcopy.nothing_yet(self.env, start, self._fetched)
        self.at = start
        self.threads: list[threading.Thread] = []

    def _fetched(self, at, digest) -> None:
        self.loop.call_soon_threadsafe(lambda: self.replayer and self.replayer.advance(at))

    def start_replay(self) -> None:
        self.replayer = Replayer(self.env, self.disk.fd, self.at, "", lambda at: None)
        self.bound.attach(self.replayer)
        self.replayer.advance(self.copy.at)
        self.threads.append(threading.Thread(target=self.replayer.body, daemon=True))
        self.threads[-1].start()

    def fetched(self) -> Point:
        with self.copy._lock:
            return Point(self.copy.digest, self.copy.at)

    def sink(self, resume: Resume | None = None) -> DiskSpans:
        return DiskSpans(self.publisher, RESOURCE, ME, self.disk.fd, SIZE, bound=self.bound, fetched=self.fetched,
                         resume=resume or resume_of(self.view(), RESOURCE, ME, True),
                         replayed=lambda: self.replayer.at if self.replayer else self.at,
                         on_trouble=self.trouble.append)

    def view(self) -> View:
        return View(self.store.entries())

    async def close(self) -> None:
        if self.replayer is not None:
            self.replayer.request_stop()
        while any(thread.is_alive() for thread in self.threads):
            await asyncio.sleep(0.001)
        self.bound.detach()
        self.copy.close()
        self.store.close()
        self.disk.close()


@pytest.fixture
def stage(make_site, tmp_path):
    """stage(coroutine of (host, secondary)): runs it between a serving Primary and a secondary."""
    def run(play, threads=True):
        async def all_of_it():
            executor = ThreadPoolExecutor(8)
            with Serving(make_site(SIZE), first=True, threads=threads) as serving:
                host, secondary = Host(serving, executor), Secondary(tmp_path, executor)
                try:
                    return await play(host, secondary)
                finally:
                    await secondary.close()
                    await host.gate.shut()
                    await host.close()
                    executor.shutdown()
        # Not a timeout of the loop: what hangs may be the loop itself.
        before = signal.signal(signal.SIGALRM, hangs)
        signal.alarm(60)
        try:
            return asyncio.run(all_of_it())
        finally:
            signal.alarm(0)
            signal.signal(signal.SIGALRM, before)
    return run


def hangs(*_: object) -> None:
    raise AssertionError("the test hangs")


def load(host: Host, rng: random.Random, n: int) -> None:
    """Random writes and discards."""
    for _ in range(n):
        length = 512 * rng.randrange(1, 33)
        at = 512 * rng.randrange((SIZE - length) // 512)
        if rng.random() < 0.2:
            host.serving.injector.zero(at, length)
        else:
            host.serving.injector.write(at, rng.randbytes(length))
    host.serving.injector.wait()


async def serve(host: Host, service) -> tuple[Link, asyncio.Task]:
    left, right = await link_pair()

    async def body() -> None:
        try:
            await service(left, PEER)
        finally:
            await left.close()
    return right, asyncio.create_task(body())


async def end(link: Link, *tasks: asyncio.Task) -> None:
    await link.close()
    await asyncio.gather(*tasks, return_exceptions=True)


@pytest.mark.parametrize("seed", range(3))
def test_sync_replay_and_writes_at_the_same_time(stage, seed):
    """Rules 13 to 15 with all real parts: when the view says "consistent", the disk is the source's contents."""
    async def play(host, secondary):
        rng, done = random.Random(seed), asyncio.Event()
        loop = asyncio.get_running_loop()
        load(host, rng, 20)

        async def writer() -> None:
            for _ in range(30):
                await loop.run_in_executor(host.executor, load, host, rng, 5)
                if rng.random() < 0.1:
                    await loop.run_in_executor(host.executor, host.primary.rotate)
                if done.is_set():
                    break
        fetch_link, fetch_served = await serve(host, FetchService(lambda *_: host.logs(), host.executor))
        fetching = asyncio.create_task(fetch_logs(fetch_link, RESOURCE, secondary.copy, executor=host.executor))
        while secondary.copy.header is None:
            await asyncio.sleep(0.001)
        secondary.start_replay()
        writing = asyncio.create_task(writer())
        link, served = await serve(host, SyncService(lambda *_: PrimarySpans(host.gate, host.pins), host.executor))
        syncing = asyncio.create_task(sync_resource(link, RESOURCE, secondary.sink(), executor=host.executor))
        await syncing
        done.set()
        await writing
        host.primary.volume.sync_now()
        host.look()
        while secondary.replayer.at != host.end.at or not secondary.view().consistent(RESOURCE, ME):
            assert not secondary.replayer.error
            secondary.copy.publish(wait=False)
            await asyncio.sleep(0.002)
        assert secondary.bound.bound is None and not secondary.trouble
        assert secondary.view().syncstatus(RESOURCE, ME) == SIZE
        assert secondary.disk.contents() == host.serving.logical()
        fetching.cancel()
        await end(link, served)
        await end(fetch_link, fetching, fetch_served)
        assert host.pins.lowest() is None
    stage(play)


def test_a_read_is_not_answered_before_it_is_durable(stage):
    """Rule 13: L is durable, covers what was accepted before the read ended, and a flush is kicked for it (no flusher
    runs here)."""
    async def play(host, secondary):
        spans = PrimarySpans(host.gate, host.pins)
        before = host.gate.durable_point()[1]
        host.serving.injector.write(8192, b"x" * 4096)
        buf = memoryview(AlignedBuffer(4096))
        await asyncio.get_running_loop().run_in_executor(host.executor, spans.read, 8192, buf)
        seen = spans.appended()
        assert bytes(buf) == b"x" * 4096 and host.gate.durable_point()[0] < seen
        reached = await asyncio.gather(*[spans.durable(seen) for _ in range(5)])
        assert host.gate.durable_point()[0] >= seen and len(set(reached)) == 1
        assert reached[0].at.pos > before.at.pos and reached[0].digest != before.digest
        await spans.close()
    stage(play, threads=False)


def test_a_log_that_cannot_be_made_durable_gives_no_answer(stage, monkeypatch):
    """Rule 13: the error comes out at once, for all who wait."""
    async def play(host, secondary):
        spans = PrimarySpans(host.gate, host.pins)
        host.serving.injector.write(0, b"x" * 4096)

        def fails() -> None:
            raise OSError(5, "broken")
        real = host.gate._volume
        host.gate._volume = SimpleNamespace(durable_point=real.durable_point, appended_point=real.appended_point,
                                            sync_now=fails)
        waits = [asyncio.create_task(spans.durable(spans.appended())) for _ in range(3)]
        for error in await asyncio.gather(*waits, return_exceptions=True):
            assert isinstance(error, MarsError) and "cannot be made durable" in error.text
        await spans.close()
    stage(play, threads=False)


def test_a_gate_that_is_shut_lets_nobody_in_and_waits_for_who_is_in(stage):
    """The Primary may be closed then."""
    async def play(host, secondary):
        spans = PrimarySpans(host.gate, host.pins)
        inside, leave = threading.Event(), threading.Event()

        def reader() -> None:
            with host.gate.volume():
                inside.set()
                leave.wait(20)
        reading = asyncio.get_running_loop().run_in_executor(host.executor, reader)
        while not inside.is_set():
            await asyncio.sleep(0.001)
        shutting = asyncio.create_task(host.gate.shut())
        await asyncio.sleep(0.01)
        assert not shutting.done()
        for call in (lambda: spans.read(0, memoryview(AlignedBuffer(512))), spans.appended, host.gate.durable_point):
            with pytest.raises(MarsError, match="not primary"):
                call()
        leave.set()
        await shutting
        await reading
        await spans.close()
    stage(play)


def test_what_lies_in_the_history_and_what_does_not(stage):
    """Rules 6 and 14: fetched and syncpos are proved by digest; an unknown syncpos asks for a restart; the log of
    `fetched` is pinned until the link ends (rule 16)."""
    async def play(host, secondary):
        old = []
        for turn in range(3):
            load(host, random.Random(turn), 5)
            host.primary.volume.sync_now()
            old.append(host.gate.durable_point()[1])
        first = host.primary.rotate()
        load(host, random.Random(9), 5)
        host.primary.volume.sync_now()
        old.append(host.gate.durable_point()[1])

        async def check(*points):
            spans = PrimarySpans(host.gate, host.pins)
            host.end.set(LogPos(1, HOST, 0))  # the streams' end may lag
            found = await asyncio.get_running_loop().run_in_executor(None, spans.check, *points)
            pinned = host.pins.lowest()
            await spans.close()
            return found, pinned
        for point in old:
            assert await check(point, None) == (None, point.at.nr)
            assert (await check(old[-1], point))[0] is None
        nothing_yet = Point("0" * 32, LogPos(1, HOST, 0))
        assert await check(nothing_yet, None) == (None, 1)
        forged = Point("1" * 32, old[1].at)
        ahead = Point("1" * 32, LogPos(2, HOST, old[-1].at.pos + 4096))
        stranger = Point("1" * 32, LogPos(2, "z", 4096))
        beyond = Point("1" * 32, LogPos(1, HOST, first.pos + 4096))
        for point, reason in ((forged, Reason.SPLIT), (ahead, Reason.BEHIND), (stranger, Reason.SPLIT),
                              (beyond, Reason.SPLIT), (Point("1" * 32, LogPos(7, HOST, 0)), Reason.BEHIND)):
            found, _ = await check(point, None)
            assert found.reason is reason and not found.restart
            found, _ = await check(old[0], point)
            assert found.reason is reason and found.restart
        assert host.pins.lowest() is None
    stage(play)


# -- the target -------------------------------------------------------------------------------------------------------

def test_publications_of_a_sink_are_in_the_tree_and_durable(stage, monkeypatch):
    """Rule 14: syncpos in its full form, synced before put_syncpos returns; syncstatus when asked for."""
    async def play(host, secondary):
        synced: list = []
        real = durable.sync_links
        monkeypatch.setattr(durable, "sync_links", lambda where, values: (synced.extend(values), real(where, values)))
        sink = secondary.sink()
        loop = asyncio.get_running_loop()
        point = Point("ab" * 16, LogPos(3, HOST, 8192))
        await loop.run_in_executor(None, sink.put_syncpos, point)
        assert secondary.store.get(paths.syncpos(RESOURCE, ME)) == f"log-000000003-a,8192,0,{'ab' * 16}" == synced[-1]
        await loop.run_in_executor(None, sink.put_syncstatus, 4096, False)
        assert secondary.view().syncstatus(RESOURCE, ME) == 4096 and len(synced) == 1
        await loop.run_in_executor(None, sink.put_syncstatus, 8192, True)
        assert synced[-1] == "8192"
        await loop.run_in_executor(None, sink.restart, "history has forked")
        assert synced[-1] == "0" and sink.resume() == Resume(0)
        assert secondary.view().syncpos(RESOURCE, ME) is not None, "what it speaks of is still on the disk"
    stage(play)


def test_device_input_and_output(stage):
    async def play(host, secondary):
        sink, buf = secondary.sink(), memoryview(AlignedBuffer(8192))
        before = secondary.disk.contents()
        sink.read(512, buf[:4096])
        assert bytes(buf[:4096]) == before[512:4608]
        buf[:] = b"y" * 8192
        sink.write(1024, buf)
        sink.write_zeros(MIB - 512, MIB + 1024)
        sink.flush()
        now = secondary.disk.contents()
        assert now[1024:1024 + 8192] == b"y" * 8192 and now[MIB - 512:2 * MIB + 512] == bytes(MIB + 1024)
        assert now[:1024] == before[:1024] and now[2 * MIB + 512:] == before[2 * MIB + 512:]
    stage(play)


@pytest.mark.parametrize("what", ["read", "written", "flushed"])
def test_after_an_error_of_the_device_nothing_works_any_more(stage, tmp_path, what):
    """Rule 15: an error is for good, and the resource is told once."""
    async def play(host, secondary):
        sink, buf = secondary.sink(), memoryview(AlignedBuffer(512))
        good = sink._fd
        sink._fd = os.open(tmp_path, os.O_RDONLY)
        try:
            with pytest.raises((MarsError, OSError)):
                if what == "flushed":
                    os.close(sink._fd)
                    sink.flush()
                elif what == "read":
                    sink.read(0, buf)
                else:
                    sink.write(0, buf)
        finally:
            if what != "flushed":
                os.close(sink._fd)
        sink._fd = good
        for call in (lambda: sink.read(0, buf), lambda: sink.write(0, buf), lambda: sink.write_zeros(0, 512),
                     sink.flush):
            with pytest.raises(MarsError, match=f"cannot be {what}"):
                call()
        assert len(secondary.trouble) == 1
    stage(play)


def test_the_bound_holds_for_replay_that_begins_later(make_site):
    """Rule 15: a Replayer that is attached while a sync runs begins with its bound."""
    class FakeReplayer:
        end = LogPos(1, HOST, 4096)
        bound = "unset"

        def set_bound(self, bound):
            self.bound = bound
            return self.end

        def upper(self):
            return self.end

    low, high = LogPos(1, HOST, 4096), LogPos(1, HOST, 8192)
    bound, replayer = ReplayBound(), FakeReplayer()
    assert bound.set(low, low) and not bound.set(low, high)
    bound.attach(replayer)
    assert replayer.bound == low
    assert bound.set(high, low) and replayer.bound == high
    replayer.end = LogPos(1, HOST, 12288)
    assert not bound.set(high, low), "a window that reaches beyond is being written"
    assert bound.set(low, low, "verify") is False and replayer.bound == low, "the lowest of all counts"
    assert bound.set(None, low, "verify") and replayer.bound == high
    assert bound.set(None, low) and replayer.bound is None
    bound.set(low, low)
    bound.detach()
    assert bound.upper() == replayer.end, "what replay had begun counts after its end too (rule 17)"
    assert bound.set(low, low) and not bound.set(low, high)


def test_replay_really_stops_at_the_bound(stage):
    """Rule 15, with the real Replayer."""
    async def play(host, secondary):
        fetch_link, fetch_served = await serve(host, FetchService(lambda *_: host.logs(), host.executor))
        fetching = asyncio.create_task(fetch_logs(fetch_link, RESOURCE, secondary.copy, executor=host.executor))
        load(host, random.Random(1), 10)
        host.primary.volume.sync_now()
        first = host.gate.durable_point()[1].at
        while secondary.copy.at != first:
            await asyncio.sleep(0.001)
        assert secondary.bound.set(first, secondary.at)
        secondary.start_replay()
        load(host, random.Random(2), 10)
        host.primary.volume.sync_now()
        last = host.gate.durable_point()[1].at
        while secondary.copy.at != last or secondary.replayer.at != first:
            await asyncio.sleep(0.001)
        await asyncio.sleep(0.05)
        assert secondary.replayer.at == first
        assert secondary.bound.set(None, secondary.at)
        while secondary.replayer.at != last:
            await asyncio.sleep(0.001)
        fetching.cancel()
        await end(fetch_link, fetching, fetch_served)
    stage(play)


def tree(**values: str) -> View:
    """A view of one resource with these entries; `v1`, `v2`: version links."""
    from marsx.tree.store import Entry
    names = {"size": paths.size("r"), "data": paths.data("r", ME), "status": paths.syncstatus("r", ME),
             "pos": paths.syncpos("r", ME), "v1": paths.version("r", 1, ME), "v2": paths.version("r", 2, ME)}
    given = {"size": "8192", "data": "/dev/x", "status": "4096", **values}
    return View([Entry(names[key], value, 1) for key, value in given.items()])


A, B, C = "a" * 32, "b" * 32, "c" * 32
V1 = f"{A},log-000000001-a,8192:"
V2 = f"{B},log-000000002-b,4096:{A},log-000000001-a,8192"
VIEWS = [
    # entries -> offset, proven, thrown away
    ({"pos": f"log-000000001-a,8192,0,{A}", "v1": V1}, 4096, True, False),
    ({"pos": f"log-000000001-a,4096,0,{C}", "v1": V1, "v2": V2}, 4096, True, False),
    ({"pos": f"log-000000001-a,12288,0,{C}", "v1": V1}, 4096, False, False),  # not fetched yet
    ({"pos": f"log-000000001-a,12288,0,{C}", "v1": V1, "v2": V2}, 0, False, True),  # forked below it
    ({"pos": f"log-000000001-a,8192,0,{C}", "v1": V1, "v2": V2}, 0, False, True),  # same place, other contents
    ({"pos": f"log-000000002-a,0,0,{C}", "v1": V1, "v2": V2}, 0, False, True),  # other producer
    ({"pos": f"log-000000001-a,8192,0,{A}"}, 4096, False, False),
    ({"v1": V1}, 0, False, True),
    ({"pos": "log-000000001-a,8192,0", "v1": V1}, 0, False, True),  # without a digest
    ({"status": "0"}, 0, False, False),
    ({"status": "9999999", "pos": f"log-000000001-a,8192,0,{A}", "v1": V1}, 8192, True, False),
]


@pytest.mark.parametrize(("entries", "offset", "proven", "lost"), VIEWS)
def test_resume_of_a_view(entries, offset, proven, lost):
    """Rule 14: by the version links, not by number."""
    found = resume_of(tree(**entries), "r", ME, True)
    assert (found.offset, found.proven, bool(found.why)) == (offset, proven, lost)


def test_resume_without_the_log_that_replay_needs():
    """Rule 16."""
    entries, *_ = VIEWS[0]
    assert resume_of(tree(**entries), "r", ME, False).why


def test_a_finished_sync_that_went_stale():
    """Rule 14: a fork below syncpos long after the sync; a resource that never had a syncpos is none."""
    forked, sound = VIEWS[3][0], VIEWS[1][0]
    assert stale_sync(tree(**forked, status="8192"), "r", ME) and not stale_sync(tree(**forked), "r", ME)
    assert not stale_sync(tree(**sound, status="8192"), "r", ME)
    assert not stale_sync(tree(v1=V1, status="8192"), "r", ME)
