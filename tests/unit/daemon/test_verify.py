"""Verify with real volumes: a serving Primary that is written to, a device in a file with replay beside it as the
replica, its copy of the log. Nothing here is a stand-in but the runner."""
from __future__ import annotations

import asyncio
import os
import random
from types import SimpleNamespace

import pytest

from marsx._ext.marscmp import touched
from marsx.base.errors import DamagedError, MarsError, UsageError
from marsx.base.position import LogPos
from marsx.daemon.logsource import Stock
from marsx.daemon.spans import PrimarySpans
from marsx.daemon.verify import ReplicaSpans, Wanted
from marsx.log.chain import Point
from marsx.peer import verify
from marsx.peer.fetch import FetchService, fetch_logs
from marsx.peer.sync import SyncService, repair_ranges
from marsx.peer.syncparts import Resume
from marsx.peer.verify import VerifyService, verify_resource
from marsx.peer.wire import WireError
from tests.fix_volume import HOST, RESOURCE, read_groups
from tests.unit.daemon.test_spans import ME, SIZE, end, load, serve, stage  # noqa: F401


class Pair:
    """Host and secondary of `stage`, equal and replaying; `sink` is the replica's side of a verify."""

    def __init__(self, host, secondary) -> None:
        self.host, self.secondary = host, secondary
        self.closing: list = []

    async def __aenter__(self) -> Pair:
        host, b = self.host, self.secondary
        b.disk.path.write_bytes(host.serving.site.disk.contents())
        link, served = await serve(host, FetchService(lambda *_: host.logs(), host.executor))
        fetching = asyncio.create_task(fetch_logs(link, RESOURCE, b.copy, executor=host.executor))
        self.closing = [link, fetching, served]
        while b.copy.header is None:
            await asyncio.sleep(0.001)
        b.start_replay()
        b.replayer.on_progress = lambda at: b.loop.call_soon_threadsafe(b.bound.moved)
        self.consumer = SimpleNamespace(env=b.env, copy=b.copy, bound=b.bound, disk_fd=b.disk.fd, at=b.at,
                                        replaying=True, replayer=b.replayer)
        self.runner = SimpleNamespace(stock=Stock())
        self.sink = ReplicaSpans(self.runner, self.consumer, "verify", 20.0)
        return self

    async def __aexit__(self, *_) -> None:
        self.closing[1].cancel()
        await end(*self.closing)

    async def verify(self, **options) -> list:
        found: list = []

        async def note(ranges) -> None:
            found.extend(ranges)
        link, served = await serve(self.host, VerifyService(lambda *_: self.spans(), self.host.executor))
        try:
            await verify_resource(link, RESOURCE, self.sink, note, executor=self.host.executor, **options)
        finally:
            await end(link, served)
        return found

    def spans(self) -> PrimarySpans:
        return PrimarySpans(self.host.gate, self.host.pins)

    def damage(self, *blocks: int) -> None:
        for block in blocks:
            with open(self.secondary.disk.path, "r+b") as file:
                file.seek(block * 4096 + 7)
                file.write(os.urandom(32))
                file.flush()
                os.fsync(file.fileno())


async def writer(pair: Pair, done: asyncio.Event, seed: int, rotate: bool = True) -> None:
    """Writes to the lower half of the device without end, hot in its first blocks."""
    rng, loop = random.Random(seed), asyncio.get_running_loop()
    host = pair.host

    def some() -> None:
        for _ in range(5):
            block = rng.choice([0, 1, rng.randrange(512)])
            host.serving.injector.write(block * 4096 + 512 * rng.randrange(4), rng.randbytes(2048))
    while not done.is_set():
        await loop.run_in_executor(host.executor, some)
        if rotate and rng.random() < 0.02:
            await loop.run_in_executor(host.executor, host.primary.rotate)


@pytest.mark.parametrize("tries", [5, 0])
def test_no_false_difference_and_none_missed(stage, monkeypatch, tries):  # noqa: F811
    """Rule 17 with all real parts, over rotations; with no tries every block that differs goes through the
    standstill (La = Lb, replay stopped just there)."""
    monkeypatch.setattr(verify, "TRIES", tries)

    async def play(host, secondary):
        async with Pair(host, secondary) as pair:
            done = asyncio.Event()
            writing = asyncio.create_task(writer(pair, done, tries))
            for _ in range(6 if tries else 2):
                assert await pair.verify() == []
            # Below 512 it may be written over meanwhile, from there on it stays.
            pair.damage(512, 513, 700, 1023)
            assert await pair.verify() == [(512 * 4096, 8192), (700 * 4096, 4096), (1023 * 4096, 4096)]
            assert secondary.bound.bound is None and pair.runner.stock.pins.lowest() is None
            done.set()
            await writing
    stage(play)


def test_repair_by_the_sync_rule(stage):  # noqa: F811
    """Rule 17: what differs is fetched with bound and syncpos, while the primary is written to; then all is equal."""
    async def play(host, secondary):
        async with Pair(host, secondary) as pair:
            done = asyncio.Event()
            writing = asyncio.create_task(writer(pair, done, 1))
            pair.damage(5, 600, 601, 1023)
            found = await pair.verify()
            assert {(600 * 4096, 8192), (1023 * 4096, 4096)} <= set(found)
            told = []
            sink = secondary.sink(Resume(SIZE, None, proven=True))
            put = sink.put_syncpos
            sink.put_syncpos = lambda at: (told.append(at), put(at))
            write = sink.write
            sink.write = lambda *a: (told.append("write"), write(*a))
            link, served = await serve(host, SyncService(lambda *_: pair.spans(), host.executor))
            await repair_ranges(link, RESOURCE, sink, found, executor=host.executor)
            await end(link, served)
            assert isinstance(told[0], Point) and "write" in told
            assert await pair.verify() == []
            assert secondary.store.get("resource-data/syncstatus-b") == "0", "a repair counts nothing"
            done.set()
            await writing
            host.primary.volume.sync_now()
            while secondary.replayer.at != host.gate.durable_point()[1].at:
                await asyncio.sleep(0.002)
            assert secondary.disk.contents() == host.serving.logical()
    stage(play)


def test_a_replica_that_is_not_synced_is_not_repaired(stage):  # noqa: F811
    async def play(host, secondary):
        async with Pair(host, secondary) as pair:
            link, served = await serve(host, SyncService(lambda *_: pair.spans(), host.executor))
            with pytest.raises(MarsError, match="not synced"):
                await repair_ranges(link, RESOURCE, secondary.sink(Resume(4096)), [(0, 4096)])
            await end(link, served)
    stage(play)


def test_writers_wait_only_for_the_standstill(stage):  # noqa: F811
    """Nothing is accepted inside, everything before is durable at its point, and writers go on behind it."""
    async def play(host, secondary):
        load(host, random.Random(1), 10)
        loop = asyncio.get_running_loop()
        async with host.gate.still() as point:
            assert host.gate.durable_point()[0] == host.primary.volume.appended_point()
            write = loop.run_in_executor(host.executor, host.serving.injector.write, 0, bytes(512))
            await asyncio.sleep(0.1)
            assert not write.done() and host.gate.durable_point()[1] == point
        await write
        host.primary.volume.sync_now()
        assert host.gate.durable_point()[1].at > point.at
    stage(play)


def test_replay_that_does_not_run_is_named(stage):  # noqa: F811
    async def play(host, secondary):
        async with Pair(host, secondary) as pair:
            pair.consumer.replaying = False
            with pytest.raises(MarsError, match="replay does not run"):
                await pair.sink.reached(LogPos(9, HOST, 0))
            pair.consumer.replaying = True
            pair.sink._patience = 0.5
            with pytest.raises(MarsError, match="replay stands at"):
                await pair.sink.reached(LogPos(9, HOST, 0))
    stage(play)


# -- the record tables ------------------------------------------------------------------------------------------------

def expected_marks(path, low: int, upto: int, offset: int, length: int, block: int) -> bytes:
    """The same out of the groups as the plain reader has them."""
    marks = bytearray(-(-length // block))
    for group in read_groups(path, upto):
        for _, at, size, _, _ in group.records if group.pos >= low else ():
            for number in range(len(marks)):
                begin = offset + number * block
                if at < min(begin + block, offset + length) and at + size > begin:
                    marks[number] = 1
    return bytes(marks)


@pytest.mark.parametrize("seed", range(4))
def test_touched_blocks(make_rig, seed):
    """Rule 17: exactly the blocks that a record between two group ends touches, discards too."""
    rng = random.Random(seed)
    rig = make_rig()
    ends = [(0, bytes.fromhex(rig.header.digest0))]
    for _ in range(30):
        for _ in range(rng.randrange(1, 4)):
            rig.step(rng)
        rig.volume.sync_now()
        _, _, pos, digest = rig.volume.durable_point()
        ends.append((pos, digest))
    fd = os.open(rig.path(), os.O_RDONLY)
    try:
        for _ in range(40):
            first, last = sorted(rng.sample(range(len(ends)), 2))
            block = rng.choice([512, 4096])
            offset, length = 4096 * rng.randrange(500), rng.choice([4096, 65536, 100 * 512])
            marks = bytearray(-(-length // block))
            (low, digest), (upto, _) = ends[first], ends[last]
            touched(fd, rig.header.pack(), low, digest, upto, marks, offset, length, block)
            assert marks == expected_marks(rig.path(), low, upto, offset, length, block)
        (low, digest), (upto, _) = ends[3], ends[9]
        args = (memoryview(bytearray(1)), 0, 4096, 4096)
        for bad in ((low, bytes(16), upto), (low, digest, upto + 512), (0, digest, upto), (low, digest[:8], upto)):
            with pytest.raises(ValueError):
                touched(fd, rig.header.pack(), *bad, *args)
        with pytest.raises(ValueError, match="too few"):
            touched(fd, rig.header.pack(), low, digest, upto, bytearray(1), 0, 8192, 4096)
    finally:
        os.close(fd)


def test_touched_over_the_end_of_a_log_and_of_a_damaged_one(stage):  # noqa: F811
    """Records on both sides of a rotation count; a log that does not hold is named, never taken for quiet."""
    async def play(host, secondary):
        async with Pair(host, secondary) as pair:
            loop = asyncio.get_running_loop()
            low = host.gate.durable_point()[1]
            await loop.run_in_executor(host.executor, host.serving.injector.write, 4096, bytes(512))
            await loop.run_in_executor(host.executor, host.serving.injector.wait)
            await loop.run_in_executor(host.executor, host.primary.rotate)
            await loop.run_in_executor(host.executor, host.serving.injector.write, 40960, bytes(512))
            await loop.run_in_executor(host.executor, host.serving.injector.wait)
            host.primary.volume.sync_now()
            upto = host.gate.durable_point()[1]
            while secondary.replayer.at != upto.at:
                await asyncio.sleep(0.002)
            marks = pair.sink.touched(low, upto.at, 0, 16 * 4096, 4096)
            assert [number for number, mark in enumerate(marks) if mark] == [1, 10]
            assert not any(pair.sink.touched(upto, upto.at, 0, 16 * 4096, 4096))
            with open(os.path.join(secondary.env.directory, low.at.log), "r+b") as file:
                file.seek(4096 + 50)
                file.write(b"\xff")
            with pytest.raises(DamagedError, match="does not hold"):
                pair.sink.touched(low, upto.at, 0, 4096, 4096)
    stage(play)


# -- what is asked for ------------------------------------------------------------------------------------------------

def test_requests_are_parsed():
    """From marsadm and from other hosts: hostile until then."""
    wanted = Wanted("data", "", True, False, 100)
    assert Wanted.parse(wanted.fields()) == wanted
    assert Wanted.parse({"resource": "data", "host": ME}).host == ME
    for bad in ({}, {"resource": "../x"}, {"resource": 5}, {"resource": "data", "host": "/"},
                {"resource": "data", "rate_kb": -1}, {"resource": "data", "rate_kb": True}):
        with pytest.raises((UsageError, WireError)):
            Wanted.parse(bad)
