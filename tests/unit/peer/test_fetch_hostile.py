"""The log stream with a peer that lies: nothing that it says is believed, kept or acknowledged."""
from __future__ import annotations

import asyncio
import random

import pytest

from marsx.base.errors import DamagedError, NotFoundError
from marsx.base.position import LogPos
from marsx.peer import wire
from marsx.peer.fetch import FetchService, Offer, Start, fetch_logs
from marsx.peer.wire import Type
from tests.unit.peer.memory_logs import BLOCK, PEER, RESOURCE, Sink, Source, Stream, group


@pytest.mark.parametrize("ack", [{"nr": 1, "pos": 10**9}, {"nr": 2, "pos": 0}, {"nr": 0, "pos": 0}, {"nr": 1}, {},
                                 {"nr": 1, "pos": -1}, {"nr": "1", "pos": 0}])
def test_an_ack_of_what_was_never_sent_ends_the_stream(run, peers, ack):
    async def work():
        source = Source()
        source.append(group(random.Random(1), 9000))
        left, right = await peers.link_pair()
        serving = asyncio.create_task(FetchService(lambda *_: source)(left, PEER))
        await right.send(Type.FETCH, {"resource": RESOURCE, **Start(1, "alpha", 0).header()})
        await right.recv()
        await right.recv()
        await right.send(Type.FETCH_ACK, {"nr": 1, "pos": 8192})
        await right.send(Type.FETCH_ACK, ack)
        with pytest.raises(wire.WireError):
            await serving
        assert source.acks == [(1, "alpha", 8192)] and not source.pinned
        await left.close()
        await right.close()
    run(work())


def test_an_ack_that_goes_back_ends_the_stream(run, peers):
    async def work():
        source = Source()
        source.append(group(random.Random(1), 9000))
        left, right = await peers.link_pair()
        serving = asyncio.create_task(FetchService(lambda *_: source)(left, PEER))
        await right.send(Type.FETCH, {"resource": RESOURCE, **Start(1, "alpha", 0).header()})
        await right.recv()
        await right.recv()
        for pos in (8192, 4096):
            await right.send(Type.FETCH_ACK, {"nr": 1, "pos": pos})
        with pytest.raises(wire.WireError, match="backwards"):
            await serving
        await left.close()
        await right.close()
    run(work())


@pytest.mark.parametrize("asked", [
    {}, {"resource": "", "nr": 1}, {"resource": RESOURCE, "nr": 1, "producer": "../x", "pos": 0, "log_id": "",
                                    "digest": ""},
    {"resource": RESOURCE, "nr": 1, "producer": "alpha", "pos": 4096, "log_id": "", "digest": ""},
    {"resource": RESOURCE, "nr": 1, "producer": "alpha", "pos": 100, "log_id": "0" * 32, "digest": "0" * 32},
    {"resource": RESOURCE, "nr": 1, "producer": "alpha", "pos": 0, "log_id": "0" * 32, "digest": ""},
    {"resource": RESOURCE, "nr": 1, "producer": "alpha", "pos": 0, "log_id": "0" * 31, "digest": "0" * 32},
    {"resource": "x" * 64, "nr": 1, "producer": "alpha", "pos": 0, "log_id": "", "digest": ""},
])
def test_a_request_that_is_none_never_reaches_a_log(run, peers, asked):
    async def work():
        left, right = await peers.link_pair()

        def nobody(*_):
            raise AssertionError("asked for a source")
        serving = asyncio.create_task(FetchService(nobody)(left, PEER))
        await right.send(Type.FETCH, asked)
        with pytest.raises(wire.WireError):
            await serving
        await left.close()
        await right.close()
    run(work())


def test_a_link_is_for_one_resource_and_the_daemon_decides_which(run, peers):
    async def work():
        asked = []

        def source_for(resource, peer):
            asked.append((resource, peer.host))
            if resource != RESOURCE:
                raise NotFoundError(f"no resource {resource} for {peer.host}")
            return Source()
        for first, second, error in (("other", None, NotFoundError), (RESOURCE, "other", wire.WireError)):
            left, right = await peers.link_pair()
            serving = asyncio.create_task(FetchService(source_for)(left, PEER))
            start = Start(9, "alpha", 0).header()
            await right.send(Type.FETCH, {"resource": first, **start})
            if second:
                wire.expect(await right.recv(), Type.FETCH_NO)
                await right.send(Type.FETCH, {"resource": second, **start})
            with pytest.raises(error):
                await serving
            await left.close()
            await right.close()
        assert asked == [("other", "beta"), (RESOURCE, "beta")]
    run(work())


def _answers(*frames):
    """A source that says just this."""
    async def serve(link):
        await link.recv()
        for frame in frames:
            await link.send(*frame)
    return serve


RAW = group(random.Random(1), 9000)
OFFER = Offer(0, LogPos(1, "alpha", 0)).header()
OK = (Type.FETCH_OK, OFFER, bytes(BLOCK))


@pytest.mark.parametrize("frames", [
    [(Type.FETCH_OK, OFFER, b"")],
    [(Type.FETCH_OK, OFFER, bytes(BLOCK - 1))],
    [(Type.FETCH_OK, {}, bytes(BLOCK))],
    [(Type.FETCH_OK, {**OFFER, "end": -1}, bytes(BLOCK))],
    [(Type.FETCH_OK, {**OFFER, "newest": "log-000000001-alpha,0"}, bytes(BLOCK))],
    [(Type.FETCH_OK, {**OFFER, "newest": {"nr": 1, "producer": "../x", "pos": 0}}, bytes(BLOCK))],
    [(Type.FETCH_OK, {**OFFER, "newest": {"nr": 0, "producer": "alpha", "pos": 0}}, bytes(BLOCK))],
    [(Type.FETCH_DATA, {"nr": 1, "pos": 0}, RAW)],
    [OK, (Type.FETCH_DATA, {"nr": 1, "pos": 4096}, RAW)],
    [OK, (Type.FETCH_DATA, {"nr": 2, "pos": 0}, RAW)],
    [OK, (Type.FETCH_DATA, {"nr": 1, "pos": 0}, b"")],
    [OK, (Type.FETCH_DATA, {"nr": 1, "pos": 0}, RAW), (Type.FETCH_DATA, {"nr": 1, "pos": 0}, RAW)],
    [OK, (Type.FETCH_DATA, {"nr": 1, "pos": 0}, RAW[:5000]),
     (Type.FETCH_NEXT, {"nr": 2, "producer": "alpha", "end": 5000}, bytes(BLOCK))],
    [OK, (Type.FETCH_NEXT, {"nr": 2, "producer": "alpha", "end": 4096}, bytes(BLOCK))],
    [OK, (Type.FETCH_NEXT, {"nr": 1, "producer": "beta", "end": 0}, bytes(BLOCK))],
    [OK, (Type.FETCH_NEXT, {"nr": 2, "producer": "../b", "end": 0}, bytes(BLOCK))],
    [OK, (Type.FETCH_NEXT, {"nr": 2, "producer": "beta", "end": 0}, bytes(BLOCK - 1))],
    [OK, (Type.SYNC_DATA, {}, b"x")],
    [OK, OK],
])
def test_a_source_that_breaks_the_order_is_left(run, peers, frames):
    async def work():
        sink = Sink()
        left, right = await peers.link_pair()
        serving = asyncio.create_task(_answers(*frames)(left))
        with pytest.raises(wire.WireError):
            await fetch_logs(right, RESOURCE, sink)
        assert len(sink.logs) <= 1 and all(bytes(log.data) in (b"", RAW) for log in sink.logs)
        await serving
        await right.close()
        await left.close()
    run(work())


def test_a_group_that_claims_to_be_endless_is_refused(run, peers):
    async def work():
        source, sink = Source(), Sink()
        source.append((2**40).to_bytes(8, "little") + bytes(100_000))
        async with Stream(peers, source, sink) as stream:
            with pytest.raises(DamagedError, match="no group is longer"):
                await stream.fetching
    run(work())
