"""The log stream between a source and a sink in memory, over a real link: order, resuming, windows, cancelling."""
from __future__ import annotations

import asyncio
import random

import pytest

from marsx.base.errors import DamagedError
from marsx.base.position import LogPos
from marsx.peer import fetch, wire
from marsx.peer.fetch import CHUNK, FetchService, Offer, Start, fetch_logs
from marsx.peer.limit import Bucket
from marsx.peer.wire import PeerError, Reason, Type
from tests.unit.peer.memory_logs import BLOCK, PEER, RESOURCE, Sink, Source, Stream, group


async def outcome(stream: Stream) -> PeerError:
    with pytest.raises(PeerError) as caught:
        await stream.fetching
    return caught.value


@pytest.mark.parametrize("seed", range(5))
def test_the_sink_gets_just_the_durable_bytes_over_many_logs(run, peers, seed):
    async def work():
        rng = random.Random(seed)
        source, sink = Source(), Sink()
        async with Stream(peers, source, sink) as stream:
            for _ in range(60):
                source.append(group(rng, rng.choice([1, 100, 4000, 60_000, 900_000])), durable=rng.random() < 0.7)
                if rng.random() < 0.1:
                    source.rotate(rng.choice(["alpha", "beta"]))
                if rng.random() < 0.3:
                    await asyncio.sleep(0)
            source.flush()
            await stream.caught_up()
            await peers.until(lambda: source.acks and source.acks[-1][::2] == (source.logs[-1].nr,
                                                                             source.logs[-1].durable))
            assert [a[::2] for a in source.acks] == sorted(a[::2] for a in source.acks)
            assert stream.fetched[-1] == source.acks[-1]
        assert not source.pinned and source.closed == 1
    run(work())


def test_nothing_is_sent_before_it_is_durable_at_the_source(run, peers):
    async def work():
        source, sink = Source(), Sink()
        async with Stream(peers, source, sink) as stream:
            source.append(group(random.Random(1), 5000))
            await stream.caught_up()
            source.append(group(random.Random(2), 5000), durable=False)
            source.changed.set()
            got = stream.right.bytes_in
            await asyncio.sleep(0.05)
            assert stream.right.bytes_in == got
            source.flush()
            await stream.caught_up()
            assert len(sink.logs[-1].data) == 16384
    run(work())


def test_a_new_stream_goes_on_at_the_last_group_that_is_held(run, peers):
    """Rule 6: the start is (log id, position, digest), and it is a group's end."""
    async def work():
        rng = random.Random(7)
        source, sink = Source(), Sink()
        for turn in range(4):
            for _ in range(5):
                source.append(group(rng, 70_000))
            already = sum(len(log.data) for log in sink.logs)
            async with Stream(peers, source, sink) as stream:
                await stream.caught_up()
                sent = stream.right.bytes_in
            new = sum(len(log.data) for log in sink.logs) - already
            assert new <= sent < new + 3 * BLOCK, "only what was missing has travelled"
            if turn == 1:
                source.rotate()
    run(work())


@pytest.mark.parametrize(("change", "reason"), [
    (lambda source, sink: sink.logs[0].data.__setitem__(100, sink.logs[0].data[100] ^ 1), Reason.SPLIT),
    (lambda source, sink: setattr(sink.logs[0], "id", "0" * 32), Reason.SPLIT),
    (lambda source, sink: setattr(source.logs[0], "durable", 0), Reason.BEHIND),
    (lambda source, sink: source.logs.pop(0), Reason.MISSING),
])
def test_a_start_that_is_no_prefix_is_refused_by_name(run, peers, change, reason):
    """Rule 6: what is not a prefix of the source's own log is a split brain, not a place to go on."""
    async def work():
        source = Source()
        source.append(group(random.Random(1), 9000))
        sink = Sink()
        async with Stream(peers, source, sink) as stream:
            await stream.caught_up()
        source.rotate()
        before = bytes(sink.logs[0].data)
        change(source, sink)
        kept = bytes(sink.logs[0].data)
        async with Stream(peers, source, sink) as stream:
            error = await outcome(stream)
            assert error.reason is reason and error.text.startswith("left")
        assert len(sink.logs) == 1 and bytes(sink.logs[0].data) == kept and len(before) == len(kept)
        assert not source.pinned
    run(work())


def test_after_no_another_start_may_be_asked_on_the_same_link(run, peers):
    async def work():
        source, sink = Source(), Sink()
        source.append(group(random.Random(1), 9000))
        starts = [Start(5, "alpha", 0), Start(1, "alpha", 0)]
        sink.start = lambda: starts.pop(0)
        left, right = await peers.link_pair()
        serving = asyncio.create_task(FetchService(lambda *_: source)(left, PEER))
        with pytest.raises(PeerError) as caught:
            await fetch_logs(right, RESOURCE, sink)
        assert caught.value.reason is Reason.MISSING and right.ended is None
        fetching = asyncio.create_task(fetch_logs(right, RESOURCE, sink))
        await peers.until(lambda: sink.same(source))
        fetching.cancel()
        await asyncio.gather(fetching, return_exceptions=True)
        await right.close()
        await serving
        await left.close()
    run(work())


def test_no_round_trip_is_needed_for_anything_but_the_start(run, peers):
    """A line of any latency: not one ack comes through, and the source sends its whole window all the same."""
    async def work():
        rng = random.Random(3)
        source, total = Source(), 0
        for _ in range(5):
            for _ in range(8):
                source.append(group(rng, 1_000_000))
            source.rotate()
        total = sum(len(log.data) for log in source.logs)
        left, right = await peers.link_pair()
        serving = asyncio.create_task(FetchService(lambda *_: source)(left, PEER))
        await right.send(Type.FETCH, {"resource": RESOURCE, **Start(1, "alpha", 0).header()})
        wire.expect(await right.recv(), Type.FETCH_OK)
        got = logs = 0
        while got < total or logs < 5:
            frame = await right.recv(20)
            got += len(frame.body) if frame.type is Type.FETCH_DATA else 0
            logs += frame.type is Type.FETCH_NEXT
        assert source.acks == []
        await right.close()
        await serving
        await left.close()
    run(work())


def test_no_more_than_the_window_is_out_without_an_ack(run, peers):
    async def work():
        source, window = Source(), 3 * CHUNK + 12345
        source.append(group(random.Random(1), 20 * CHUNK))
        left, right = await peers.link_pair()
        serving = asyncio.create_task(FetchService(lambda *_: source, window=window)(left, PEER))
        await right.send(Type.FETCH, {"resource": RESOURCE, **Start(1, "alpha", 0).header()})
        wire.expect(await right.recv(), Type.FETCH_OK)

        async def take(limit):
            got = 0
            while got < limit:
                got += len((await right.recv(20)).body)
            with pytest.raises(PeerError):
                await right.recv(0.05)
            return got
        assert await take(window) == window
        await right.send(Type.FETCH_ACK, {"nr": 1, "pos": 2 * CHUNK})
        assert await take(2 * CHUNK) == 2 * CHUNK
        await right.close()
        await serving
        await left.close()
    run(work())


def test_a_group_longer_than_one_feed_and_many_short_ones(run, peers, monkeypatch):
    monkeypatch.setattr(fetch, "FEED", 256 * 1024)

    async def work():
        rng = random.Random(5)
        source, sink = Source(), Sink()
        sink.gate.clear()
        source.append(group(rng, 12_000_000))
        for _ in range(400):
            source.append(group(rng, 500))
        async with Stream(peers, source, sink) as stream:
            await peers.until(lambda: sink.inside)
            await asyncio.sleep(0.05)
            sink.gate.set()
            await stream.caught_up()
            assert len(sink.feeds) < 80, "small groups share a flush"
            assert sum(sink.feeds) < 2 * len(sink.logs[0].data), "a long group is not verified again and again"
    run(work())


def test_a_damaged_group_is_never_kept_nor_acknowledged(run, peers):
    async def work():
        rng = random.Random(5)
        source, sink = Source(), Sink()
        for _ in range(3):
            source.append(group(rng, 10_000))
        good = len(source.logs[0].data)
        source.append(group(rng, 10_000))
        source.logs[0].data[good + 5000] ^= 1
        async with Stream(peers, source, sink) as stream:
            with pytest.raises(DamagedError, match="damaged"):
                await stream.fetching
        assert all(pos <= good for _, _, pos in source.acks)
        assert len(sink.logs[0].data) <= good
    run(work())


def test_cancelling_waits_for_the_write_that_is_running(run, peers):
    """Rule 15: when the activity has ended, no write of it is in flight."""
    async def work():
        source, sink = Source(), Sink()
        source.append(group(random.Random(1), 9000))
        sink.gate.clear()
        async with Stream(peers, source, sink) as stream:
            await peers.until(lambda: sink.inside)
            stream.fetching.cancel()
            await peers.turn()
            stream.fetching.cancel()
            await peers.turn()
            assert not stream.fetching.done()
            sink.gate.set()
            with pytest.raises(asyncio.CancelledError):
                await stream.fetching
            assert not sink.inside
    run(work())


def test_the_log_stays_pinned_until_the_last_read_of_it_has_ended(run, peers):
    """Rule 9: unpinned only after the read that runs in a thread is over (Source.close checks it)."""
    async def work():
        source, sink = Source(), Sink()
        source.append(group(random.Random(1), 9000))
        left, right = await peers.link_pair()
        serving = asyncio.create_task(FetchService(lambda *_: source)(left, PEER))
        source.busy.acquire()
        fetching = asyncio.create_task(fetch_logs(right, RESOURCE, sink))
        await peers.until(lambda: source.pinned)
        await peers.turn()
        serving.cancel()
        await asyncio.sleep(0.02)
        assert not serving.done() and source.pinned
        source.busy.release()
        await asyncio.gather(serving, return_exceptions=True)
        assert source.closed == 1 and not source.pinned
        await left.close()
        with pytest.raises(PeerError):
            await fetching
        await right.close()
    run(work())


RAW = group(random.Random(1), 9000)


def test_a_turn_to_the_next_log_is_made_before_what_came_right_behind_it(run, peers):
    async def work():
        source, sink = Source(), Sink()
        source.append(RAW)
        source.rotate()
        source.append(RAW)
        heads = [log.header for log in source.logs]
        left, right = await peers.link_pair()
        await _queue(right, peers, left, [
            (Type.FETCH_OK, OFFER, heads[0]), (Type.FETCH_DATA, {"nr": 1, "pos": 0}, RAW),
            (Type.FETCH_NEXT, {"nr": 2, "producer": "alpha", "end": len(RAW)}, heads[1]),
            (Type.FETCH_DATA, {"nr": 2, "pos": 0}, RAW[:4096]), (Type.FETCH_DATA, {"nr": 2, "pos": 4096}, RAW[4096:])])
        fetching = asyncio.create_task(fetch_logs(right, RESOURCE, sink))
        await peers.until(lambda: sink.same(source) or fetching.done())
        assert sink.same(source)
        fetching.cancel()
        await asyncio.gather(fetching, return_exceptions=True)
        left2, right2 = await peers.link_pair()
        sink2 = Sink(source)
        await _queue(right2, peers, left2, [
            (Type.FETCH_OK, OFFER), (Type.FETCH_NEXT, {"nr": 2, "producer": "alpha", "end": 0}, heads[1]),
            (Type.FETCH_DATA, {"nr": 2, "pos": 0}, RAW)])
        fetching = asyncio.create_task(fetch_logs(right2, RESOURCE, sink2))
        await peers.until(lambda: fetching.done() or len(sink2.logs) == 2 and sink2.logs[1].data == RAW)
        assert not fetching.done(), fetching
        fetching.cancel()
        await asyncio.gather(fetching, return_exceptions=True)
        for link in (left, right, left2, right2):
            await link.close()
    run(work())


OFFER = Offer(0, LogPos(2, "alpha", 0)).header()


async def _queue(right, peers, left, frames) -> None:
    """All these frames wait at `right` before anybody reads."""
    for frame in frames:
        await left.send(*frame)
    await peers.until(lambda: len(right._queue) == len(frames))


def test_over_tls_between_two_hosts(run, hosts, peers):
    from marsx.peer import client

    async def work():
        rng = random.Random(9)
        source, sink = Source(), Sink()
        for _ in range(30):
            source.append(group(rng, 500_000))
        async with peers.serving(hosts.alpha, {"fetch": FetchService(lambda *_: source)}) as server:
            link, _ = await client.connect("alpha", "127.0.0.1", server.port, "fetch", identity=hosts.beta.hello(),
                                           context=hosts.beta.client())
            fetching = asyncio.create_task(fetch_logs(link, RESOURCE, sink))
            await peers.until(lambda: sink.same(source))
            source.rotate()
            source.append(group(rng, 5))
            await peers.until(lambda: sink.same(source))
            fetching.cancel()
            await asyncio.gather(fetching, return_exceptions=True)
            await link.close()
        assert source.closed == 1
    run(work())


class Closed(Bucket):
    """Lets so many bytes pass until it is opened."""

    def __init__(self, passes: int) -> None:
        super().__init__(lambda: 0)
        self.passes = passes
        self.asked = 0
        self.open = asyncio.Event()

    async def take(self, amount: int) -> None:
        self.asked += amount
        if self.asked > self.passes:
            await self.open.wait()


@pytest.mark.parametrize("at_source", [True, False])
def test_both_ends_keep_their_limit(run, peers, at_source):
    """What the source may not send stays there; what the sink may not receive is not acknowledged, so that not more
    than a window of it is on its way."""
    async def work():
        source, sink, limit = Source(), Sink(), Closed(2 * CHUNK)
        for number in range(12):
            source.append(group(random.Random(number), CHUNK - 4096))
        options = {"bucket": limit} if at_source else {"limit": limit}
        async with Stream(peers, source, sink, window=4 * CHUNK, **options) as stream:
            await peers.until(lambda: limit.asked > limit.passes)
            await asyncio.sleep(0.05)
            assert not sink.same(source) and stream.right.bytes_in < 7 * CHUNK
            assert not source.acks or source.acks[-1][2] <= 2 * CHUNK
            limit.open.set()
            await stream.caught_up()
            await peers.until(lambda: limit.asked >= 12 * (CHUNK - 4096))
    run(work())
