"""Full sync between a source and a target in memory, over a real link: what travels, in which order things become true,
and what is refused. The rules under random schedules: `tests/sim/test_sync_rules.py`."""
from __future__ import annotations

import asyncio
import random
import threading

import pytest

from marsx.base.errors import MarsError
from marsx.base.position import LogPos
from marsx.log.chain import Point
from marsx.peer import sync, syncparts, wire
from marsx.peer.server import Peer
from marsx.peer.sync import SyncService, sync_resource
from marsx.peer.syncparts import Detail, Pace, Prefix, Resume, Shape, SyncRestart, is_stale, where_to_resume
from marsx.peer.wire import PeerError, Reason, Type, WireError
from tests.sim.sync_model import BLOCK, SHAPE, History, MemorySink, MemorySource, PrimaryModel, TargetModel

PEER = Peer("beta", "inc", (), "127.0.0.1", True)
MIB = 1 << 20


def at(pos: int, nr: int = 1, producer: str = "alpha") -> LogPos:
    return LogPos(nr, producer, pos * 4096)


def point(pos: int, nr: int = 1, producer: str = "alpha", digest: str = "") -> Point:
    return Point(digest or f"{nr * 1000 + pos:032x}", at(pos, nr, producer))


class ByteSource:
    """SpanSource over bytes; everything is durable at position 7."""

    def __init__(self, data: bytearray) -> None:
        self.data = data
        self.size = len(data)
        self.here = point(7)
        self.checked: list = []
        self.refuse = None
        self.reads: list[tuple[int, int]] = []
        self.closed = 0

    def check(self, fetched, syncpos):
        self.checked.append((fetched, syncpos))
        return self.refuse

    def read(self, offset, buf) -> None:
        self.reads.append((offset, len(buf)))
        buf[:] = self.data[offset:offset + len(buf)]

    def appended(self) -> int:
        return 0

    async def durable(self, appended) -> Point:
        return self.here

    async def close(self) -> None:
        self.closed += 1


class ByteSink:
    """SpanSink over bytes, with a diary."""

    def __init__(self, data: bytearray, resume: Resume | None = None) -> None:
        self.data = data
        self.capacity = len(data)
        self.begin = resume or Resume(0)
        self.diary: list = []
        self.bound = None
        self.now = point(3)
        self.gate = threading.Event()
        self.gate.set()
        self.writing = threading.Event()

    def resume(self) -> Resume:
        return self.begin

    def restart(self, why) -> None:
        self.diary.append(("restart", why))
        self.begin = Resume(0)

    def fetched(self) -> Point:
        return self.now

    def set_bound(self, bound) -> bool:
        self.diary.append(("bound", bound))
        self.bound = bound
        return True

    def read(self, offset, buf) -> None:
        buf[:] = self.data[offset:offset + len(buf)]

    def write(self, offset, data) -> None:
        self.writing.set()
        assert self.gate.wait(60)
        assert self.bound is not None, "a write without a bound"
        self.diary.append(("write", offset, len(data)))
        self.data[offset:offset + len(data)] = data

    def write_zeros(self, offset, length) -> None:
        self.diary.append(("zeros", offset, length))
        self.data[offset:offset + length] = bytes(length)

    def flush(self) -> None:
        self.diary.append(("flush",))

    def put_syncpos(self, point) -> None:
        self.diary.append(("syncpos", point))

    def put_syncstatus(self, offset, durable) -> None:
        self.diary.append(("status", offset, durable))

    def kinds(self) -> list[str]:
        return [entry[0] for entry in self.diary]


class Both:
    """Source and target over a pair of links."""

    def __init__(self, peers, source, sink, **options) -> None:
        self.peers, self.source, self.sink, self.options = peers, source, sink, options
        self.progress: list = []

    async def __aenter__(self) -> Both:
        self.left, self.right = await self.peers.link_pair()
        self.serving = asyncio.create_task(self._serve())
        self.syncing = asyncio.create_task(sync_resource(self.right, "data", self.sink, progress=self.progress.append,
                                                         **self.options))
        return self

    async def _serve(self) -> None:
        try:
            await SyncService(lambda resource, peer: self.source)(self.left, PEER)
        finally:
            await self.left.close()

    async def __aexit__(self, *_) -> None:
        self.syncing.cancel()
        await asyncio.gather(self.syncing, return_exceptions=True)
        await self.right.close()
        self.served = (await asyncio.gather(self.serving, return_exceptions=True))[0]
        assert self.source.closed == 1


async def whole(peers, source, sink, **options) -> Both:
    """A run to its end."""
    async with Both(peers, source, sink, **options) as both:
        await both.syncing
    return both


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
    """Many requests are out at once: a far line costs its latency about once."""
    async def work():
        source, sink = ByteSource(bytearray(64 * MIB)), ByteSink(bytearray(64 * MIB))
        out: list[int] = []
        held = asyncio.Event()

        async def durable(appended):
            out.append(1)
            await held.wait()
            return source.here
        source.durable = durable
        async with Both(peers, source, sink) as both:
            await peers.until(lambda: len(out) == 4)
            held.set()
            await both.syncing
        assert len(out) == 16
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


TIP = point(10)
RESUME = [
    # status, syncpos, tip, in_history, logs_there -> offset, proven, why
    (0, point(5), TIP, False, False, 0, False, ""),
    (100, point(5), TIP, True, True, 100, True, ""),
    (100, point(5), TIP, None, True, 100, False, ""),
    (100, point(5), TIP, False, True, 0, False, "not in the history"),
    (100, point(12), TIP, False, True, 100, False, ""),  # links that end before it say nothing
    (100, point(12), None, None, True, 100, False, ""),
    (100, point(5, nr=2), TIP, False, True, 100, False, ""),
    (100, None, TIP, None, True, 0, False, "no syncpos"),
    (100, point(5), TIP, True, False, 0, False, "gone"),
]


@pytest.mark.parametrize("row", RESUME)
def test_where_to_resume(row):
    """Rules 14 and 16, as a table."""
    *given, offset, proven, why = row
    found = where_to_resume(*given)
    assert (found.offset, found.proven) == (offset, proven) and bool(found.why) == bool(why) and why in found.why


def test_a_finished_sync_can_become_stale():
    """Rule 14: only links that reach syncpos and do not lead through it prove that."""
    assert is_stale(point(5), TIP, False) and is_stale(point(9, nr=1), point(0, nr=2, producer="beta"), False)
    assert not is_stale(point(12), TIP, False) and not is_stale(point(5), TIP, None)
    assert not is_stale(None, TIP, False) and not is_stale(point(5), None, False)


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


# -- hostile and broken peers -----------------------------------------------------------------------------------------

FIELDS = {"nr": 1, "producer": "alpha", "pos": 3 * 4096}
OPEN = {"resource": "data", "fetched": {**FIELDS, "digest": "1" * 32}}


@pytest.mark.parametrize(("kind", "header"), [
    (Type.SYNC_DIGESTS, {"block": 4096, "ranges": [0, 4096, 0, 4096]}),
    (Type.SYNC_DIGESTS, {"block": 4096, "ranges": [0, 2 * MIB]}),
    (Type.SYNC_DIGESTS, {"block": 4096, "ranges": [MIB, 512]}),
    (Type.SYNC_DIGESTS, {"block": 4096, "ranges": [0, 512, 4096, 4096]}),
    (Type.SYNC_DIGESTS, {"block": 4096, "ranges": [100, 4096]}),
    (Type.SYNC_DIGESTS, {"block": 1, "ranges": [0, 4096]}),
    (Type.SYNC_DIGESTS, {"ranges": [0, 4096]}),
    (Type.SYNC_DATA, {"ranges": []}),
    (Type.SYNC_DATA, {}),
    (Type.SYNC_DATA, {"ranges": [0, 0]}),
    (Type.SYNC_DATA, {"ranges": [0, 4096, 8192]}),
    (Type.SYNC_DATA, {"ranges": [-512, 512]}),
    (Type.SYNC_DATA, {"ranges": [0.0, 512]}),
    (Type.SYNC_DATA, {"ranges": [2**62, 2**62]}),
    (Type.SYNC_DATA, {"ranges": [v for i in range(1025) for v in (i * 512, 512)]}),
    (Type.SYNC_DATA, {"ranges": [0, 512], "id": 0}),
    (Type.SYNC_DATA, {"ranges": [0, 512], "pos": -1}),
    (Type.SYNC_ANSWER, {"ranges": [0, 512]}),
])
def test_requests_that_make_no_sense_end_the_link(run, peers, kind, header):
    async def work():
        source = ByteSource(bytearray(MIB))
        left, right = await peers.link_pair()
        serving = asyncio.create_task(SyncService(lambda *_: source)(left, PEER))
        await right.send(Type.SYNC_OPEN, OPEN)
        assert (await right.recv()).type is Type.SYNC_ACCEPT
        await right.send(kind, {"id": 1, **FIELDS, **header})
        with pytest.raises(WireError):
            await serving
        assert source.closed == 1 and source.reads == []
        await left.close()
        await right.close()
    run(work())


def test_a_source_that_is_behind_the_request_says_so(run, peers):
    """Rule 15: contents older than what the target has fetched are never given."""
    async def work():
        source, sink = ByteSource(bytearray(MIB)), ByteSink(bytearray(MIB))
        sink.now = point(8)
        async with Both(peers, source, sink) as both:
            with pytest.raises(PeerError):
                await both.syncing
        assert isinstance(both.served, PeerError) and both.served.reason is Reason.BEHIND
        assert "syncpos" not in sink.kinds()
    run(work())


def answer(number, pos=7, digest="", size=16, **more):
    l = point(pos, digest=digest)  # noqa: E741
    return {"id": number, **syncparts.point_fields(l), **more}, bytes(size)


BAD_ANSWERS = {
    "older than what is fetched": [answer(1, pos=2)],
    "nobody asked": [answer(99)],
    "twice": [answer(1), answer(1)],
    "too few digests": [answer(1, size=0)],
    "too many digests": [answer(1, size=32)],
    "no digest of the history": [answer(1, digest="0" * 32)],
    "other producer in the same log": [answer(1, producer="beta")],
    "position goes back": [answer(1, digest="5" * 32), answer(2, pos=6)],
    "same position, other history": [answer(1), answer(2, digest="5" * 32)],
    "same log, other producer later": [answer(1), answer(2, pos=8, producer="beta")],
    "not a position": [answer(1, pos=7, nr=0)],
}


@pytest.mark.parametrize("name", BAD_ANSWERS)
def test_answers_that_make_no_sense_end_the_run(run, peers, name):
    """Rule 15: nothing is written or counted by them."""
    async def work():
        left, right = await peers.link_pair()
        sink = ByteSink(bytearray(random.Random(1).randbytes(4 * 65536)))
        syncing = asyncio.create_task(sync_resource(right, "data", sink, shape=Shape(span=65536, piece=65536)))
        assert (await left.recv()).type is Type.SYNC_OPEN
        await left.send(Type.SYNC_ACCEPT, {"size": 4 * 65536})
        assert [(await left.recv()).type for _ in range(4)] == [Type.SYNC_DIGESTS] * 4
        for header, body in BAD_ANSWERS[name]:
            await left.send(Type.SYNC_ANSWER, header, body)
        with pytest.raises(PeerError):
            await syncing
        assert sink.bound is None and "status" not in sink.kinds() and "write" not in sink.kinds()
        await left.close()
        await right.close()
    run(work())


@pytest.mark.parametrize(("zero", "size"), [
    ([], 0), ([], 65536 + 512), ([0, 3], 0), ([1, 1], 65536), ([0, 1, 0, 1], 512), ([0, 0], 66048), ([0], 512),
    ([5, 1], 66048),
])
def test_zero_runs_and_contents_must_fit(zero, size):
    """For 65536 + 512 bytes: two chunks, the second a short one."""
    ranges = [(0, 65536), (MIB, 512)]
    got = syncparts.Answer(point(7), {"zero": zero}, memoryview(bytes(size)))
    if (zero, size) in (([], 66048), ([1, 1], 65536)):
        data, zeros = syncparts.split_zeros(ranges, got)
        assert sum(n for _, n in data) == size and sorted(data + zeros) == ranges
    else:
        with pytest.raises(WireError):
            syncparts.split_zeros(ranges, got)


def test_a_source_that_never_answers_is_given_up(run, peers):
    async def work():
        clock = peers.Clock()
        left, right = await peers.link_pair()
        sink = ByteSink(bytearray(MIB))
        syncing = asyncio.create_task(sync_resource(right, "data", sink, answer_timeout=5))
        await left.recv()
        await left.send(Type.SYNC_ACCEPT, {"size": MIB})
        await left.recv()
        await clock.advance(6)
        with pytest.raises(PeerError, match="within 5 s") as caught:
            await syncing
        assert caught.value.reason is Reason.TIMEOUT and sink.bound is None
        await left.close()
        await right.close()
    run(work())


@pytest.mark.parametrize("header", [
    {}, {"resource": "data"}, {**OPEN, "fetched": [1]}, {**OPEN, "fetched": {**FIELDS, "digest": "1" * 31}},
    {**OPEN, "fetched": {**FIELDS, "pos": 100, "digest": "1" * 32}}, {**OPEN, "syncpos": None}, {**OPEN, "resource": 5},
])
def test_an_open_that_makes_no_sense_is_refused(run, peers, header):
    async def work():
        left, right = await peers.link_pair()
        serving = asyncio.create_task(SyncService(lambda *_: pytest.fail("no source is due"))(left, PEER))
        await right.send(Type.SYNC_OPEN, header)
        with pytest.raises(WireError):
            await serving
        await left.close()
        await right.close()
    run(work())


# -- the small pieces -------------------------------------------------------------------------------------------------

def test_runs_are_placed_on_the_device():
    ranges = [(1000, 300), (5000, 200), (9000, 50)]
    assert syncparts.place_runs(ranges, 100, [(0, 1), (2, 2), (5, 1)]) == [
        (1000, 100), (1200, 100), (5000, 100), (9000, 50)]
    assert syncparts.place_runs(ranges, 100, [(0, 6)]) == ranges and syncparts.place_runs(ranges, 100, []) == []


@pytest.mark.parametrize("seed", range(20))
def test_placed_runs_are_what_they_count(seed):
    """Against a slow twin that counts blocks one by one."""
    rng = random.Random(seed)
    ranges, end = [], 0
    for _ in range(rng.randint(1, 6)):
        start = end + rng.randrange(4) * 8
        ranges.append((start, rng.randint(1, 5) * 8))
        end = sum(ranges[-1])
    blocks = [(offset + i) for offset, length in ranges for i in range(0, length, 8)]
    chosen = [i for i in range(len(blocks)) if rng.random() < 0.5]
    runs = [(i, 1) for i in chosen]
    flat = [b + i for b, n in syncparts.place_runs(ranges, 8, runs) for i in range(0, n, 8)]
    assert flat == [blocks[i] for i in chosen]


def test_ranges_are_cut_by_bytes_and_by_number():
    assert list(syncparts.cut_ranges([(0, 10), (20, 25)], 10)) == [[(0, 10)], [(20, 10)], [(30, 10)], [(40, 5)]]
    assert list(syncparts.cut_ranges([(0, 4), (20, 4), (30, 4)], 10)) == [[(0, 4), (20, 4), (30, 2)], [(32, 2)]]
    many = [(i * 2, 1) for i in range(2500)]
    assert [len(piece) for piece in syncparts.cut_ranges(many, 10**6)] == [1024, 1024, 452]
    assert list(syncparts.cut_ranges([], 10)) == []


def test_a_prefix_ends_at_the_first_gap():
    """Rule 15: never over a gap."""
    prefix = Prefix(100)
    prefix.add(300, 50)
    prefix.add(200, 100)
    assert prefix.end == 100
    prefix.add(100, 100)
    assert prefix.end == 350


def test_pace_grows_while_answers_are_quick_and_shrinks_when_they_queue(run):
    async def work():
        pace = Pace(100, 50, 1000)
        for _ in range(20):
            pace.answered(100, 0.1)
        assert pace.limit == 1000
        for _ in range(5):
            pace.answered(100, 9.0)
        assert pace.limit == 750, "one cut for all that was out together"
        for _ in range(200):
            pace.answered(100, 9.0)
        assert pace.limit == 50
        await pace.enter(500)  # one always may
        late = asyncio.create_task(pace.enter(10))
        await asyncio.sleep(0)
        assert not late.done()
        pace.leave(500)
        await late
    run(work())


def test_detail_learns_and_keeps_looking():
    detail = Detail()
    assert detail.choose() == Detail.BLOCKS
    for _ in range(8):
        detail.saw(100, 100, 100)
    assert {detail.choose() for _ in range(40)} == {Detail.COPY, Detail.BLOCKS}
    for _ in range(8):
        detail.saw(100, 10, 10)
    assert {detail.choose() for _ in range(40)} == {Detail.CHUNKS, Detail.BLOCKS}
    for _ in range(8):
        detail.saw(100, 100, 1)
    assert {detail.choose() for _ in range(40)} == {Detail.BLOCKS}


def test_many_answers_raise_syncpos_once(run):
    """Rule 14: and each waits until it is at or behind its own L."""
    async def work():
        put: list[Point] = []
        go = asyncio.Semaphore(0)

        async def slow(point):
            await go.acquire()
            put.append(point)
        high = syncparts.HighWater(point(2), slow)
        await high.reach(point(1))
        waits = [asyncio.create_task(high.reach(point(n))) for n in (5, 9, 3, 7)]
        await asyncio.sleep(0)
        assert not any(task.done() for task in waits)
        go.release()
        go.release()
        await asyncio.gather(*waits)
        assert put[-1] == point(9) and len(put) <= 2 and high.durable == point(9)
    run(work())


def test_a_failed_put_leaves_syncpos_where_it_was(run):
    """Rule 14: who comes next has to put it again."""
    async def work():
        tries: list[Point] = []

        async def fails(point):
            tries.append(point)
            if len(tries) == 1:
                raise OSError("no")
        high = syncparts.HighWater(None, fails)
        with pytest.raises(OSError):
            await high.reach(point(4))
        assert high.durable is None
        await high.reach(point(4))
        assert len(tries) == 2 and high.durable == point(4)
    run(work())


def test_frames_of_sync_stay_below_the_ceiling():
    """A request with the most ranges, and the largest answer."""
    ranges = [(2**62 + i * 8192, 4096) for i in range(syncparts.RANGES_MAX)]
    wire.encode_head(Type.SYNC_DATA, {"id": 2**53, **FIELDS, "ranges": syncparts.flatten(ranges)}, 0)
    wire.encode_head(Type.SYNC_ANSWER, {"id": 2**53}, syncparts.SPAN_MAX)
    assert sync.SLOTS >= 8
