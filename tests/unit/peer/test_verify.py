"""Verify in memory over a real link: what travels, in which order it is told, what a hostile source can do. The rule
itself under random schedules: `tests/sim/test_verify_rules.py`."""
from __future__ import annotations

import asyncio
import contextlib
import random

import pytest

from marsx.base.errors import MarsError
from marsx.peer import spanio, syncparts
from marsx.peer.limit import BURST_S, Bucket
from marsx.peer.syncparts import Shape
from marsx.peer.verify import HULL_MAX, Merge, VerifyService, small_units, verify_resource, whole_units
from marsx.peer.wire import PeerError, Reason, Type, WireError
from tests.unit.peer.memory_spans import MIB, PEER, ByteSource, at, point


class Source(ByteSource):
    """VerifySource over bytes; everything is durable at position 7."""

    stills = 0
    low = 7

    def settled(self):
        return point(self.low)

    @contextlib.asynccontextmanager
    async def still(self):
        self.stills += 1
        yield self.here


class Sink:
    """VerifySink over bytes that has replayed everything. `hot`: offsets of blocks that records touch."""

    def __init__(self, data: bytearray, hot: set[int] = frozenset()) -> None:
        self.data = data
        self.capacity = len(data)
        self.hot = hot
        self.bounds: list = []

    def fetched(self):
        return point(3)

    async def reached(self, at):
        pass

    def begun(self):
        return self.bounds[-1] if self.bounds and self.bounds[-1] else at(9)

    def set_bound(self, bound) -> bool:
        self.bounds.append(bound)
        return True

    def read(self, offset, buf) -> None:
        buf[:] = self.data[offset:offset + len(buf)]

    def logs(self):
        return contextlib.nullcontext()

    def touched(self, low, upto, offset, length, block) -> bytes:
        assert (low, upto) == (point(7), at(9))
        return bytes(offset + i * block in self.hot for i in range(-(-length // block)))


async def verified(peers, source, sink, **options):
    """(ranges found, the target's link) of one run."""
    left, right = await peers.link_pair()
    found: list = []

    async def note(ranges) -> None:
        found.extend(ranges)

    async def serve() -> None:
        try:
            await VerifyService(lambda *_: source)(left, PEER)
        finally:
            await left.close()
    serving = asyncio.create_task(serve())
    try:
        progress = await verify_resource(right, "data", sink, note, **options)
    finally:
        await right.close()
        await asyncio.gather(serving, return_exceptions=True)
        assert source.closed == 1
    return found, progress, right


def changed(data: bytes, blocks, rng: random.Random) -> bytearray:
    mine = bytearray(data)
    for block in blocks:
        mine[block * 4096 + rng.randrange(1500)] ^= 1 + rng.randrange(255)
    return mine


@pytest.mark.parametrize("kind", spanio.KINDS)
def test_equal_contents_cost_almost_nothing_on_the_wire(run, peers, kind):
    """At most 0.1 % of the size, both directions (issue 4)."""
    data = random.Random(1).randbytes(16 * MIB)
    found, progress, link = run(verified(peers, Source(bytearray(data)), Sink(bytearray(data)), kind=kind))
    assert found == [] and progress.done == progress.size == len(data)
    assert link.bytes_in + link.bytes_out <= 0.001 * len(data)


def test_one_percent_of_changed_blocks(run, peers):
    """Every block exactly, neighbours merged, in order; at most 1 % of the size over the wire (issue 4 allows 3 %,
    with the contents)."""
    rng = random.Random(2)
    data = rng.randbytes(32 * MIB)
    blocks = sorted(rng.sample(range(len(data) // 4096), len(data) // 4096 // 100)) + [8190, 8191]
    blocks = sorted(set(blocks) | {1023, 1024, 1025})  # over the border of two spans
    found, progress, link = run(verified(peers, Source(bytearray(data)), Sink(changed(data, blocks, rng))))
    expected: list = []
    for block in blocks:
        if expected and sum(expected[-1]) == block * 4096:
            expected[-1] = (expected[-1][0], expected[-1][1] + 4096)
        else:
            expected.append((block * 4096, 4096))
    assert found == expected and progress.differs == 4096 * len(blocks)
    assert link.bytes_in + link.bytes_out <= 0.01 * len(data)


def test_touched_blocks_are_asked_again_and_then_at_a_standstill(run, peers):
    """Rule 17: a hot block that differs is decided with La = Lb, its bound is in force before and gone after."""
    rng = random.Random(3)
    data = rng.randbytes(MIB)
    sink, source = Sink(changed(data, [5, 9, 77], rng), hot={5 * 4096, 77 * 4096}), Source(bytearray(data))
    found, progress, _ = run(verified(peers, source, sink))
    assert found == [(5 * 4096, 4096), (9 * 4096, 4096), (77 * 4096, 4096)]
    assert source.stills == 1 and progress.again == 4 * 2
    assert sink.bounds[0] == at(3) and sink.bounds[1] == at(7) and sink.bounds[-1] is None


def test_only_chosen_ranges(run, peers):
    """What a repair asks about again: nothing else is read, a short last block too."""
    size = 2 * MIB + 1536
    data = random.Random(4).randbytes(size)
    mine = changed(data, [0, 3, 500, 512], random.Random(5))
    source = Source(bytearray(data))
    ranges = [(0, 4096), (12288, 8192), (2 * MIB, 1536)]
    found, progress, _ = run(verified(peers, source, Sink(mine), ranges=ranges))
    assert found == [(0, 4096), (12288, 4096), (2 * MIB, 1536)]
    assert progress.size == progress.done == 4096 + 8192 + 1536
    assert not any(offset == 500 * 4096 for offset, _ in source.reads)


def test_another_size_is_named(run, peers):
    with pytest.raises(MarsError, match="this replica"):
        run(verified(peers, Source(bytearray(MIB)), Sink(bytearray(2 * MIB))))


# -- units and order --------------------------------------------------------------------------------------------------

def test_units_cover_everything_once():
    assert list(whole_units(10, 4)) == [[(0, 4)], [(4, 4)], [(8, 2)]]
    rng = random.Random(1)
    ranges, offset = [], 0
    for _ in range(3000):
        offset += 4096 * rng.choice([1, 2, 50, 100_000])
        length = 4096 * rng.choice([1, 1, 3, 2000])
        ranges.append((offset, length))
        offset += length
    units = list(small_units(ranges, 4 * MIB))
    flat = [(o, n) for unit in units for o, n in unit]
    assert sum(n for _, n in flat) == sum(n for _, n in ranges) and flat == sorted(flat)
    for unit in units:
        assert syncparts.total_of(unit) <= 4 * MIB and len(unit) <= syncparts.RANGES_MAX
        assert sum(unit[-1]) - unit[0][0] <= HULL_MAX


def test_what_is_found_comes_in_order_and_merged():
    merge = Merge()
    assert merge.add(1, [(8, 8)], [(8, 2), (12, 4)]) == (0, [])
    assert merge.add(0, [(0, 8)], [(2, 2), (6, 2)]) == (16, [(2, 2), (6, 4)])
    assert merge.add(2, [(16, 8)], [(16, 1)]) == (8, [(12, 5)])
    assert merge.rest() == []


# -- a hostile source -------------------------------------------------------------------------------------------------

@pytest.mark.parametrize(("name", "source"), [
    ("la behind lb", {"low": 8}), ("la before what was fetched", {"low": 2}),
])
def test_an_interval_that_is_none(run, peers, name, source):
    """Rule 17: La lies between what was fetched and Lb, else the record tables here would not cover it."""
    sick = Source(bytearray(random.Random(1).randbytes(MIB)))
    sick.low = source["low"]
    with pytest.raises(PeerError) as caught:
        run(verified(peers, sick, Sink(bytearray(MIB))))
    assert caught.value.reason in (Reason.GARBAGE, Reason.BEHIND, Reason.CLOSED)


@pytest.mark.parametrize("header", [
    {"kind": "md5"}, {"kind": 5}, {"block": 0}, {"still": True, "ranges": [0, MIB]}, {"ranges": [0, 2 * MIB]},
])
def test_requests_that_make_no_sense_end_the_link(run, peers, header):
    async def work():
        source = Source(bytearray(MIB))
        left, right = await peers.link_pair()
        serving = asyncio.create_task(VerifyService(lambda *_: source)(left, PEER))
        fields = syncparts.at_fields(at(3))
        await right.send(Type.SYNC_OPEN, {"resource": "data", "fetched": syncparts.point_fields(point(3))})
        assert (await right.recv()).type is Type.SYNC_ACCEPT
        request = {"id": 1, **fields, "block": 4096, "kind": "xxh3", "ranges": [0, 4096], **header}
        await right.send(Type.VERIFY_DIGESTS, request)
        with pytest.raises(WireError):
            await serving
        assert source.stills == 0 and source.reads == []
        await left.close()
        await right.close()
    run(work())


def test_a_cancelled_run_ends_its_link_and_its_bound(run, peers):
    async def work():
        source, sink = Source(bytearray(MIB)), Sink(bytearray(MIB))
        asked = asyncio.Event()

        async def durable(appended):
            asked.set()
            await asyncio.Event().wait()
        source.durable = durable
        running = asyncio.create_task(verified(peers, source, sink))
        await asked.wait()
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        assert sink.bounds[-1] is None
    run(work())


# -- limits -----------------------------------------------------------------------------------------------------------

def test_a_bucket_keeps_its_rate(run, peers):
    """Over any time no more than a burst and the rate passes; 0 is no limit; a change counts at once."""
    async def work():
        clock = peers.Clock()
        rate, taken = [100], []
        bucket = Bucket(lambda: rate[0])
        loop = asyncio.get_running_loop()

        async def user() -> None:
            for _ in range(40):
                await bucket.take(10 * 1024)
                taken.append(loop.time())
        start = loop.time()
        task = asyncio.create_task(user())
        await clock.advance(2.0, 0.02)
        assert 18 <= len(taken) <= 2.0 * 10 + BURST_S * 10 + 2, len(taken)
        rate[0] = 0
        await clock.advance(1.0, 0.1)
        await task
        assert len(taken) == 40 and loop.time() >= start
    run(work())


def test_shape_of_the_digests():
    """The arithmetic of the goals: 16 bytes for 64 KiB are 0.024 % of equal data; the shape must stay that coarse."""
    assert 16 / Shape().chunk < 0.0005 and Shape().block == 4096


def test_a_run_that_begins_behind_0_looks_at_the_rest_alone(run, peers):
    data = random.Random(5).randbytes(12 * MIB)
    mine = changed(data, [3, 2500], random.Random(6))
    source = Source(bytearray(data))
    found, progress, _ = run(verified(peers, source, Sink(mine), start=4 * MIB + 5000))
    assert found == [(2500 * 4096, 4096)] and min(offset for offset, _ in source.reads) == 4 * MIB
    assert (progress.done, progress.equal, progress.differs) == (12 * MIB, 8 * MIB, 4096)


@pytest.mark.parametrize("block", [1023, 1024, 2047])
def test_what_counts_as_equal_ends_before_the_first_difference(run, peers, block):
    """Also while a difference at the end of a span still waits for its neighbour."""
    data = random.Random(5).randbytes(12 * MIB)
    told = []
    run(verified(peers, Source(bytearray(data)), Sink(changed(data, [block], random.Random(6))), progress=told.append))
    assert max(one.equal for one in told) == block // 1024 * 4 * MIB and told[-1].done == 12 * MIB
