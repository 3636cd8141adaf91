"""One connection: order, bounds, signs of life. Time is pushed by hand."""
from __future__ import annotations

import asyncio
import socket

import pytest

from marsx.peer import link as link_module
from marsx.peer import wire
from marsx.peer.link import Link, Timing
from marsx.peer.wire import PeerError, Reason, Type


def test_frames_go_both_ways_in_order(run, peers):
    async def work():
        left, right = await peers.link_pair()
        for n in range(50):
            await left.send(Type.FETCH_DATA, {"n": n}, bytes([n]) * (n * 4000))
            await right.send(Type.FETCH_ACK, {"n": n})
        for n in range(50):
            frame = await right.recv()
            assert frame.header == {"n": n} and frame.body == bytes([n]) * (n * 4000)
            assert (await left.recv()).header == {"n": n}
        assert right.recv_nowait() is None
        await left.close()
        await right.close()
    run(work())


def test_what_was_sent_before_the_end_arrives_and_the_reason_too(run, peers):
    async def work():
        left, right = await peers.link_pair()
        for n in range(20):
            await left.send(Type.FETCH_DATA, {"n": n}, bytes(100_000))
        await left.close(Reason.SPLIT, "history differs\nhere")
        for n in range(20):
            assert (await right.recv()).header == {"n": n}
        for _ in range(2):
            with pytest.raises(PeerError, match="history differs") as caught:
                await right.recv()
            assert caught.value.reason is Reason.SPLIT
        with pytest.raises(PeerError) as caught:
            await right.send(Type.FETCH_ACK)
        assert caught.value.reason is Reason.SPLIT
        with pytest.raises(PeerError):
            await left.recv()
        await right.close()
    run(work())


def test_a_good_end_is_called_closed_and_a_cut_one_lost(run, peers):
    async def work():
        left, right = await peers.link_pair()
        await left.close()
        with pytest.raises(PeerError) as caught:
            await right.recv()
        assert caught.value.reason is Reason.CLOSED
        await right.close()
        for sent, reason in ((b"", Reason.LOST), (wire.encode(Type.FETCH_ACK, {"n": 1})[:-1], Reason.LOST)):
            link, _, peer = await peers.half_link()
            await asyncio.get_running_loop().sock_sendall(peer, sent)
            peer.close()
            with pytest.raises(PeerError) as caught:
                await link.recv()
            assert caught.value.reason is reason
            assert ("inside a frame" in caught.value.text) == bool(sent)
            await link.close()
    run(work())


def test_a_silent_peer_is_given_up_after_its_time_and_not_before(run, peers):
    async def work():
        clock = peers.Clock()
        link, _, peer = await peers.half_link()
        reader = asyncio.create_task(link.recv())
        await clock.advance(13)
        assert link.ended is None
        await clock.advance(3.5)
        with pytest.raises(PeerError, match="no sign of life") as caught:
            await reader
        assert caught.value.reason is Reason.SILENT
        with pytest.raises(PeerError):
            await link.send(Type.FETCH_ACK)
        await link.close()
        peer.close()
    run(work())


def test_heartbeats_keep_an_idle_link_alive_and_are_not_seen(run, peers):
    async def work():
        clock = peers.Clock()
        left, right = await peers.link_pair()
        await clock.advance(300)
        assert left.ended is None and right.ended is None
        assert left.recv_nowait() is None
        assert 0 < left.bytes_in < 100 * 20
        await left.close()
        await right.close()
    run(work())


def test_one_byte_at_a_time_is_a_sign_of_life(run, peers):
    async def work():
        clock, loop = peers.Clock(), asyncio.get_running_loop()
        link, _, peer = await peers.half_link()
        for byte in wire.encode(Type.FETCH_ACK, {"n": 1}):
            before = link.bytes_in
            await loop.sock_sendall(peer, bytes([byte]))
            await peers.until(lambda before=before: link.bytes_in > before)
            await clock.advance(10)
        assert (await link.recv()).header == {"n": 1}
        await link.close()
        peer.close()
    run(work())


def test_a_process_that_slept_does_not_blame_its_peer(run, peers):
    async def work():
        clock = peers.Clock()
        left, right = await peers.link_pair()
        clock.jump(3600)
        await peers.turn()
        await clock.advance(20)
        assert left.ended is None and right.ended is None
        await left.close()
        await right.close()
    run(work())


def test_a_peer_that_takes_nothing_is_given_up(run, peers):
    async def work():
        clock, loop = peers.Clock(), asyncio.get_running_loop()
        link, _, peer = await peers.half_link(buffer=20_000)
        sender = asyncio.create_task(link.send(Type.FETCH_DATA, {}, bytes(wire.MAX_BODY)))
        await peers.turn()
        for _ in range(28):  # it lives: it sends; but it takes nothing
            await loop.sock_sendall(peer, wire.encode(Type.HEARTBEAT))
            await clock.advance(1)
        assert not sender.done()
        await clock.advance(6)
        with pytest.raises(PeerError, match="takes no data") as caught:
            await sender
        assert caught.value.reason is Reason.STALLED
        await link.close()
        peer.close()
    run(work())


def test_a_slow_line_is_not_a_stalled_peer(run, peers):
    async def work():
        clock, loop = peers.Clock(), asyncio.get_running_loop()
        link, _, peer = await peers.half_link(buffer=20_000)
        sender = asyncio.create_task(link.send(Type.FETCH_DATA, {}, bytes(wire.MAX_BODY)))
        await peers.turn()
        taken = 0
        for _ in range(12):  # six minutes for a part of one frame
            for _ in range(20):
                taken += len(await loop.sock_recv(peer, 20_000))
            await loop.sock_sendall(peer, wire.encode(Type.HEARTBEAT))
            await peers.turn()
            await clock.advance(13)
            await loop.sock_sendall(peer, wire.encode(Type.HEARTBEAT))
            await peers.turn()
            await clock.advance(13)
        assert taken < wire.MAX_BODY and link.ended is None and not sender.done()
        link.abort(Reason.CLOSED, "enough")
        with pytest.raises(PeerError):
            await sender
        await link.close()
        peer.close()
    run(work())


def test_memory_is_bounded_at_both_ends_when_nobody_reads(run, peers, monkeypatch):
    monkeypatch.setattr(link_module, "RECV_QUEUE", 1024 * 1024)
    monkeypatch.setattr(link_module, "SOCKET_BUFFER", 64 * 1024)

    async def work():
        left, right = await peers.link_pair()
        count = 0

        async def send():
            nonlocal count
            while count < 400:
                await left.send(Type.FETCH_DATA, {"n": count}, bytes(100_000))
                count += 1
        sender = asyncio.create_task(send())
        last = -1
        while last != count:
            last = count
            await asyncio.sleep(0.05)
        assert right._queued <= 1024 * 1024 + 200_000
        assert count < 300
        for n in range(400):
            assert (await right.recv()).header == {"n": n}
        await sender
        await left.close()
        await right.close()
    run(work())


def test_a_reader_who_is_slow_does_not_take_the_peer_for_dead(run, peers, monkeypatch):
    monkeypatch.setattr(link_module, "RECV_QUEUE", 10_000)

    async def work():
        clock, loop = peers.Clock(), asyncio.get_running_loop()
        link, _, peer = await peers.half_link()
        await loop.sock_sendall(peer, wire.encode(Type.FETCH_DATA, {}, bytes(20_000)))
        await peers.until(lambda: link._queued)
        await clock.advance(60)
        assert link.ended is None
        await link.recv()
        await clock.advance(17)
        assert link.ended is not None and link.ended.reason is Reason.SILENT
        await link.close()
        peer.close()
    run(work())


def test_garbage_ends_the_link_after_what_was_good(run, peers):
    async def work():
        loop = asyncio.get_running_loop()
        link, _, peer = await peers.half_link()
        await loop.sock_sendall(peer, wire.encode(Type.FETCH_ACK, {"n": 1}) + b"GET / HTTP/1.0\r\n\r\n" + bytes(70_000))
        assert (await link.recv()).header == {"n": 1}
        with pytest.raises(PeerError) as caught:
            await link.recv()
        assert caught.value.reason is Reason.GARBAGE
        said = wire.Decoder().feed(await loop.sock_recv(peer, 1000))
        assert said[-1].type is Type.ERROR and said[-1].header["reason"] == "garbage"
        await link.close()
        peer.close()
    run(work())


def test_the_transport_never_keeps_memory_that_somebody_can_write_to(run, peers, monkeypatch):
    async def work():
        left, right = await peers.link_pair()
        kept = []
        monkeypatch.setattr(left, "_transport", type("T", (), {"write": lambda self, data: kept.append(data)})())
        buffer = bytearray(b"\1" * 4_000_000)
        frozen = bytes(100_000)
        for body in (buffer, memoryview(buffer), memoryview(buffer)[:1000], frozen, memoryview(frozen)):
            left.post(Type.FETCH_DATA, {}, body)
        buffer[:] = b"\2" * len(buffer)
        monkeypatch.undo()
        found = wire.Decoder().feed(b"".join(bytes(data) for data in kept))
        assert [bytes(frame.body[:3]) for frame in found] == [b"\1\1\1"] * 3 + [bytes(3)] * 2
        assert any(data is frozen for data in kept), "what nobody can change is not copied"
        await left.close()
        await right.close()
    run(work())


def test_recv_with_a_deadline_leaves_the_link_usable(run, peers):
    async def work():
        left, right = await peers.link_pair()
        with pytest.raises(PeerError) as caught:
            await right.recv(timeout=0.01)
        assert caught.value.reason is Reason.TIMEOUT
        await left.send(Type.FETCH_ACK, {"n": 1})
        assert (await right.recv(timeout=10)).header == {"n": 1}
        await left.close()
        await right.close()
    run(work())


def test_close_does_not_wait_for_a_peer_that_takes_nothing(run, peers):
    async def work():
        clock = peers.Clock()
        link, _, peer = await peers.half_link(Timing(close=2), buffer=20_000)
        link.post(Type.FETCH_DATA, {}, bytes(wire.MAX_BODY))
        closing = asyncio.create_task(link.close())
        await clock.advance(1)
        assert not closing.done()
        await clock.advance(2)
        await closing
        peer.close()
    run(work())


def test_socket_options(run, peers):
    async def work():
        link, own, peer = await peers.half_link()
        assert own.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        assert own.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        assert own.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 30_000
        assert link._bytes_acked() >= 0
        before = link._bytes_acked()
        await link.send(Type.FETCH_DATA, {}, bytes(10_000))
        await peers.until(lambda: link._bytes_acked() >= before + 10_000)
        link.abort(Reason.CLOSED, "done")
        await link.close()
        peer.close()
    run(work())


def test_a_link_never_opened_can_be_closed(run):
    async def work():
        await Link("nobody", Timing()).close()
    run(work())
