"""Full sync between a source and a target in memory, over a real link: what travels, in which order things become true,
where a run begins. Hostile peers: `test_sync_hostile.py`; the rules under random schedules: `tests/sim`."""
from __future__ import annotations

import asyncio
import random

import pytest

from marsx.base.errors import MarsError
from marsx.peer import sync, syncparts
from marsx.peer.syncparts import Resume, SyncRestart
from marsx.peer.wire import PeerError, Reason
from tests.sim.sync_model import BLOCK, SHAPE, History, MemorySink, MemorySource, PrimaryModel, TargetModel
from tests.unit.peer.memory_spans import MIB, Both, ByteSink, ByteSource, at, point, whole

# -- what travels -----------------------------------------------------------------------------------------------------

def test_equal_contents_cost_almost_nothing_on_the_wire(run, peers):
    """At most 0.03 % of the size, both directions."""
    data = random.Random(1).randbytes(48 * MIB)
    sink = ByteSink(bytearray(data))
    both = run(whole(peers, ByteSource(bytearray(data)), sink))
    assert both.right.bytes_in + both.right.bytes_out <= 0.0003 * len(data)
    assert both.progress[-1].received == both.progress[-1].written == 0
    assert sink.diary[-1] == ("status", len(data), True) and "write" not in sink.kinds()


def test_one_changed_block_moves_one_block(run, peers):
    data = random.Random(2).randbytes(8 * MIB)
    mine = bytearray(data)
    mine[3 * MIB + 40960] ^= 1
    both = run(whole(peers, ByteSource(bytearray(data)), ByteSink(mine)))
    assert mine == data and both.progress[-1].received == 4096
    assert both.right.bytes_in < 4096 + 12 * 1024


def test_zeros_do_not_travel(run, peers):
    """Neither when compared nor when copied."""
    mine = bytearray(random.Random(3).randbytes(6 * MIB))
    other = bytearray(mine)
    for sink, fast in ((ByteSink(mine), True), (ByteSink(other), False)):
        both = run(whole(peers, ByteSource(bytearray(6 * MIB)), sink, fast=lambda fast=fast: fast))
        assert sink.data == bytes(6 * MIB) and both.progress[-1].received == 0
        assert both.progress[-1].written == 6 * MIB and both.right.bytes_in < 20_000


@pytest.mark.parametrize("seed", range(12))
def test_whatever_differs_becomes_equal(run, peers, seed):
    """Any mixture, sizes that end within a block, compared or copied; only what differs is written."""
    rng = random.Random(seed)
    size = rng.choice([512, 4096, 65536 * 3 + 512 * 5, 9 * MIB + 1536])
    theirs = bytearray(rng.randbytes(size) if rng.random() < 0.8 else size)
    mine = bytearray(theirs)
    share = rng.choice([0.01, 0.3, 1.0])
    for offset in range(0, size, 512):
        kind = rng.random()
        if kind < share * 0.7:
            mine[offset:offset + 512] = rng.randbytes(min(512, size - offset))
        elif kind < share:
            theirs[offset:offset + 512] = bytes(min(512, size - offset))
    fast = seed % 3 != 0
    equal_blocks = [o for o in range(0, size, 4096) if mine[o:o + 4096] == theirs[o:o + 4096]]
    sink = ByteSink(mine)
    both = run(whole(peers, ByteSource(theirs), sink, fast=lambda: fast))
    assert mine == theirs and both.progress[-1].done == size
    assert sink.diary[-1] == ("status", size, True)
    if fast and share < 0.1:
        written = [(e[1], e[1] + e[2]) for e in sink.diary if e[0] in ("write", "zeros")]
        assert not [o for o in equal_blocks if any(a <= o < b for a, b in written)]


def test_where_all_differs_the_digests_are_left_out(run, peers):
    rng = random.Random(5)
    theirs = bytearray(rng.randbytes(64 * MIB))
    source, sink = ByteSource(theirs), ByteSink(bytearray(rng.randbytes(64 * MIB)))
    both = run(whole(peers, source, sink, fly=2))
    assert sink.data == theirs
    assert sum(length for _, length in source.reads) < 2.2 * len(theirs), "three times without learning"
    assert both.progress[-1].requests < 16 * (1 + 1 + 4)


def test_the_window_is_wide(run, peers):
    """Many requests are out at once as soon as the first answers have come quickly: a far line costs its latency a few
    times."""
    async def work():
        source, sink = ByteSource(bytearray(64 * MIB)), ByteSink(bytearray(64 * MIB))
        out: list[int] = []
        held = asyncio.Event()

        async def durable(appended):
            out.append(1)
            if len(out) > 4:
                await held.wait()
            return source.here
        source.durable = durable
        async with Both(peers, source, sink) as both:
            await peers.until(lambda: len(out) == 4 + 8)
            held.set()
            await both.syncing
        assert len(out) == 16
    run(work())


def test_a_far_line_is_filled_at_once(run, peers):
    """Where the first answer takes its time, the window is wide from the beginning: nothing is answered here."""
    async def work():
        source, sink = ByteSource(bytearray(128 * MIB)), ByteSink(bytearray(128 * MIB))
        out: list[int] = []
        held = asyncio.Event()
        clock = peers.Clock()
        check = source.check

        async def durable(appended):
            out.append(1)
            await held.wait()
            return source.here

        def slowly(*points):
            clock.jump(0.05)
            return check(*points)
        source.check, source.durable = slowly, durable
        async with Both(peers, source, sink, fly=64) as both:
            await peers.until(lambda: len(out) == 16)
            held.set()
            await both.syncing
    run(work())


# -- the order in which things become true ---------------------------------------------------------------------------

def test_order_of_a_run(run, peers):
    """Rules 14 and 15: bound before request; syncpos before the first write; flush before syncstatus; the last status
    durable; then no bound."""
    mine = bytearray(random.Random(1).randbytes(2 * MIB))
    sink = ByteSink(mine)
    source = ByteSource(bytearray(random.Random(2).randbytes(2 * MIB)))
    run(whole(peers, source, sink))
    kinds = sink.kinds()
    assert kinds[0] == "bound" and sink.diary[0][1] == at(3)
    assert kinds.count("syncpos") == 1 and sink.diary[kinds.index("syncpos")][1] == point(7)
    assert kinds.index("syncpos") < kinds.index("write")
    last_write = len(kinds) - 1 - kinds[::-1].index("write")
    assert last_write < kinds.index("flush") < kinds.index("status")
    assert sink.diary[-2:] == [("flush",), ("status", 2 * MIB, True)] and sink.bound is None


def test_an_equal_span_raises_syncpos_too(run, peers):
    """Rule 14: an equal digest is counted only when its L is durable here."""
    sink = ByteSink(bytearray(MIB))
    run(whole(peers, ByteSource(bytearray(MIB)), sink))
    kinds = sink.kinds()
    assert kinds.index("syncpos") < kinds.index("status")


def test_syncpos_that_cannot_be_made_durable_stops_all(run, peers):
    """Rule 14: nothing is written, nothing counted."""
    async def work():
        sink = ByteSink(bytearray(MIB))

        def fails(point):
            raise OSError(5, "no")
        sink.put_syncpos = fails
        async with Both(peers, ByteSource(bytearray(random.Random(1).randbytes(MIB))), sink) as both:
            with pytest.raises(OSError, match="no"):
                await both.syncing
        assert not {"write", "zeros", "status"} & set(sink.kinds()) and sink.bound is None
    run(work())


def test_a_flush_that_fails_counts_nothing(run, peers):
    """Rule 15: no status after it, and it is not tried again."""
    async def work():
        sink, flushes = ByteSink(bytearray(MIB)), []

        def fails():
            flushes.append(1)
            raise MarsError("flush failed")
        sink.flush = fails
        async with Both(peers, ByteSource(bytearray(MIB)), sink) as both:
            with pytest.raises(MarsError, match="flush failed"):
                await both.syncing
        assert flushes == [1] and "status" not in sink.kinds()
    run(work())


def test_progress_is_saved_now_and_then_after_a_flush(run, peers):
    """Rule 15: what is saved is a prefix whose flush was begun after it was written."""
    async def work():
        clock = peers.Clock()
        size = 32 * MIB
        theirs = bytearray(random.Random(4).randbytes(size))
        source, sink = ByteSource(theirs), ByteSink(bytearray(size))
        go = asyncio.Semaphore(5)

        async def durable(appended):
            await go.acquire()
            return source.here
        source.durable = durable
        async with Both(peers, source, sink, fast=lambda: False) as both:
            await peers.until(lambda: both.progress and both.progress[-1].done >= 4 * MIB)
            await clock.advance(1.5)
            await peers.until(lambda: "status" in sink.kinds())
            saved = next(entry for entry in sink.diary if entry[0] == "status")
            assert 4 * MIB <= saved[1] < size and sink.kinds()[sink.kinds().index("status") - 1] == "flush"
            for _ in range(100):
                go.release()
            await both.syncing
        assert sink.data == theirs
    run(work())


def test_a_pause_returns_only_when_no_write_is_in_flight(run, peers):
    """Rule 15: the bound outlives the cancelled request until its write has ended; the link ends before the bound."""
    async def work():
        sink = ByteSink(bytearray(MIB))
        sink.gate.clear()
        async with Both(peers, ByteSource(bytearray(random.Random(1).randbytes(MIB))), sink) as both:
            await asyncio.get_running_loop().run_in_executor(None, sink.writing.wait)
            both.syncing.cancel()
            await peers.turn(50)
            both.syncing.cancel()  # impatience changes nothing
            await peers.turn(50)
            assert not both.syncing.done() and sink.bound == at(3)
            sink.gate.set()
            with pytest.raises(asyncio.CancelledError):
                await both.syncing
            assert sink.bound is None and sink.diary[-1] == ("bound", None)
            assert "write" in sink.kinds() and "status" not in sink.kinds()
    run(work())


def test_a_run_that_ends_early_ends_its_link(run, peers):
    """Rule 15: a late answer must not find anybody who asked under the same number."""
    async def work():
        source = ByteSource(bytearray(MIB))
        asked = asyncio.Event()

        async def durable(appended):
            asked.set()
            await asyncio.Event().wait()
        source.durable = durable
        async with Both(peers, source, ByteSink(bytearray(MIB))) as both:
            await asked.wait()
            both.syncing.cancel()
            await asyncio.gather(both.syncing, return_exceptions=True)
            assert both.right.ended is not None and both.sink.bound is None
    run(work())


def test_replay_that_is_ahead_makes_the_request_later(run, peers):
    """Rule 15: a bound that is not in force is taken anew from what is fetched by now."""
    sink = ByteSink(bytearray(MIB))
    real, sent = sink.set_bound, []

    def set_bound(bound):
        real(bound)
        if bound == at(3):
            sink.now = point(5)
            return False
        sent.append(bound)
        return True
    sink.set_bound = set_bound
    run(whole(peers, ByteSource(bytearray(MIB)), sink))
    assert sent[0] == at(5)


def test_replay_that_stays_ahead_is_an_error(run, peers):
    async def work():
        sink = ByteSink(bytearray(MIB))
        sink.set_bound = lambda bound: bound is None
        async with Both(peers, ByteSource(bytearray(MIB)), sink) as both:
            with pytest.raises(MarsError, match="replay is beyond"):
                await both.syncing
    run(work())


def test_the_bound_is_the_lowest_of_all_that_is_out(run, peers):
    """Rule 15: it rises with the oldest open request, never above it."""
    async def work():
        source, sink = ByteSource(bytearray(16 * MIB)), ByteSink(bytearray(16 * MIB))
        waiting: list[asyncio.Future] = []

        async def durable(appended):
            waiting.append(asyncio.get_running_loop().create_future())
            await waiting[-1]
            return point(100)
        source.durable = durable
        fetched = iter(range(3, 100))
        sink.fetched = lambda: point(next(fetched))
        async with Both(peers, source, sink) as both:
            await peers.until(lambda: len(waiting) == 4)
            assert sink.bound == at(4)  # position 3 went into SYNC_OPEN
            for future in waiting[1:]:
                future.set_result(None)
            await peers.turn(100)
            assert sink.bound == at(4)
            waiting[0].set_result(None)
            await both.syncing
        assert sink.bound is None
    run(work())


# -- where it begins --------------------------------------------------------------------------------------------------

def test_it_goes_on_where_it_was(run, peers):
    theirs = bytearray(random.Random(1).randbytes(12 * MIB))
    mine = bytearray(12 * MIB)
    source = ByteSource(theirs)
    sink = ByteSink(mine, Resume(8 * MIB, point(6)))
    run(whole(peers, source, sink))
    assert mine == bytes(8 * MIB) + theirs[8 * MIB:] and min(offset for offset, _ in source.reads) == 8 * MIB
    assert source.checked == [(point(3), point(6))]


def test_a_proven_syncpos_is_not_asked_for(run, peers):
    source = ByteSource(bytearray(2 * MIB))
    run(whole(peers, source, ByteSink(bytearray(2 * MIB), Resume(MIB, point(2), proven=True))))
    assert source.checked == [(point(3), None)]


def test_progress_that_counts_no_more_is_thrown_away_first(run, peers):
    """Rule 14: syncstatus = 0 before anything is asked for, let alone syncpos raised."""
    source = ByteSource(bytearray(random.Random(1).randbytes(2 * MIB)))
    sink = ByteSink(bytearray(2 * MIB), Resume(0, why="history has forked"))
    run(whole(peers, source, sink))
    assert sink.diary[0] == ("restart", "history has forked") and sink.data == source.data
    assert source.checked == [(point(3), None)]


def test_a_syncpos_that_the_source_does_not_know_restarts(run, peers):
    """Rule 14: history has forked below syncpos; the sink is told before the run ends."""
    async def work():
        source = ByteSource(bytearray(MIB))
        source.refuse = syncparts.Refused(Reason.SPLIT, "not here", restart=True)
        sink = ByteSink(bytearray(MIB), Resume(512 * 1024, point(9)))
        async with Both(peers, source, sink) as both:
            with pytest.raises(SyncRestart, match="not here"):
                await both.syncing
        assert sink.kinds() == ["restart"]
    run(work())


@pytest.mark.parametrize("reason", [Reason.SPLIT, Reason.MISSING, Reason.BEHIND])
def test_a_source_that_refuses_is_named(run, peers, reason):
    async def work():
        source = ByteSource(bytearray(MIB))
        source.refuse = syncparts.Refused(reason, "because")
        sink = ByteSink(bytearray(MIB))
        async with Both(peers, source, sink) as both:
            with pytest.raises(PeerError, match="left: because") as caught:
                await both.syncing
        assert caught.value.reason is reason and not isinstance(caught.value, SyncRestart) and not sink.diary
    run(work())


def test_a_device_that_is_too_small_is_refused(run, peers):
    async def work():
        async with Both(peers, ByteSource(bytearray(2 * MIB)), ByteSink(bytearray(MIB))) as both:
            with pytest.raises(MarsError, match="only 1048576"):
                await both.syncing
        assert not both.sink.diary
    run(work())


# -- rule 13, and the model with a real line --------------------------------------------------------------------------

def test_an_answer_is_held_until_what_it_shows_is_durable(run, peers):
    """Rule 13: digest answers too; L covers what was appended after the read."""
    async def work():
        history = History(4)
        for value in range(1, 5):
            history.write(value - 1, value)
        primary = PrimaryModel(history)
        history.write(0, 9)
        target = TargetModel(history, [9, 2, 3, 4])
        target.fetched = target.replayed = 4
        source, sink = MemorySource(primary), MemorySink(target)
        async with Both(peers, source, sink, shape=SHAPE) as both:
            await peers.until(lambda: source.reads)
            await peers.turn(50)
            assert target.syncpos is None and not both.syncing.done() and both.right.bytes_in < 400
            primary.flush()
            await both.syncing
        assert target.syncpos == history.point(5) and target.status == 4 * BLOCK
    run(work())


def test_appended_is_asked_for_after_the_read(run, peers):
    """Rule 13."""
    source, order = ByteSource(bytearray(MIB)), []
    read, source.appended = source.read, lambda: order.append("appended") or 0
    source.read = lambda offset, buf: (order.append("read"), read(offset, buf))
    run(whole(peers, source, ByteSink(bytearray(MIB))))
    assert order == ["read", "appended"]


def test_answers_leave_in_the_order_of_their_positions(run, peers, monkeypatch):
    """Rule 14: what is compressed takes longer than what is not, and may not arrive with an older position than what
    was answered meanwhile: the target takes that for a broken history and ends the run."""
    body = sync.Squeeze.body

    class Moving(ByteSource):
        """More is durable with each answer."""

        async def durable(self, appended):
            self.here = point(self.here.at.pos // 4096 + 1)
            return self.here

    async def slowly(self, executor, data):
        await asyncio.sleep(0.05 * (data[0] % 3))
        return await body(self, executor, data)
    monkeypatch.setattr(sync.Squeeze, "body", slowly)
    data = bytearray(random.Random(4).randbytes(24 * MIB))
    sink = ByteSink(bytearray(len(data)))
    run(whole(peers, Moving(data), sink, fast=lambda: False))
    assert sink.data == data
