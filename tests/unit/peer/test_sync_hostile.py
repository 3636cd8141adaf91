"""What a broken or hostile peer can do to a full sync: end it, named, and nothing else."""
from __future__ import annotations

import asyncio
import random

import pytest

from marsx.peer import syncparts
from marsx.peer.sync import SyncService, sync_resource
from marsx.peer.syncparts import Shape
from marsx.peer.wire import PeerError, Reason, Type, WireError
from tests.unit.peer.memory_spans import MIB, PEER, Both, ByteSink, ByteSource, point

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
    got = syncparts.Answer(point(7), {"zero": zero}, memoryview(bytes(size)), point(3).at)
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
