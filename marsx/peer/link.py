"""One connection to another host: frames in, frames out, and nobody waits for ever.

Invariants:
    frames arrive in the order they were sent, whole, each once; what arrived before the end is delivered before it
    after the end (`ended` is set) nothing more is sent, and every `send` and `recv` raises that same error
    a peer that sends no byte for `dead_after` is gone; heartbeats make sure that a living one does send
    a peer that takes no byte for `io_timeout` while we have some for it is gone (TCP's acknowledgements are counted, so
    a slow line is not a dead one)
    memory is bounded: reading stops while RECV_QUEUE bytes wait for `recv`; `send` waits while SEND_HIGH bytes wait,
    before it adds to them and after

ERROR and BYE frames of the peer become the error that ends the link; heartbeats are not seen outside.
"""
from __future__ import annotations

import asyncio
import collections
import contextlib
import errno
import os
import socket
import ssl
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from marsx.base.errors import MarsError
from marsx.peer import wire
from marsx.peer.wire import Buffer, Frame, PeerError, Reason, Type

RECV_QUEUE = 16 * 1024 * 1024
SEND_HIGH = 2 * 1024 * 1024
SOCKET_BUFFER = 16 * 1024 * 1024
NOT_SENT_LOW = 1024 * 1024

_JOIN_BELOW = 64 * 1024
_FRAME_COST = 1024
_BYTES_ACKED = struct.Struct("=120xQ")  # struct tcp_info, tcpi_bytes_acked
# Not in the socket module: the forms of SO_SNDBUF and SO_RCVBUF that may exceed the limits of the machine (root).
_SO_SNDBUFFORCE, _SO_RCVBUFFORCE = 32, 33


@dataclass(frozen=True, slots=True)
class Tcp:
    """Socket options of one class of connections (tunables tcp_tuning_*)."""

    tos: int = 0
    window: int = SOCKET_BUFFER  # 0: the kernel's
    keep_count: int = 3
    keep_interval: int = 3
    keep_idle: int = 4


@dataclass(frozen=True, slots=True)
class Timing:
    """Deadlines in seconds, and what TCP is told."""

    heartbeat: float = 4.0
    dead_after: float = 14.0
    io_timeout: float = 30.0  # tunable network_io_timeout
    connect: float = 10.0  # TCP, TLS and hello, each
    close: float = 2.0
    tcp: Tcp = Tcp()


def prepare_socket(sock: socket.socket, timing: Timing, *, listener: bool = False) -> None:
    """Large buffers (before connect or listen, or TCP scales its window without them), no delay, keepalive."""
    sock.setblocking(False)
    _set_buffers(sock, timing.tcp)
    if listener:
        return
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in (
        (socket.TCP_NODELAY, 1),
        (socket.TCP_USER_TIMEOUT, int(timing.io_timeout * 1000)),
        # What is queued behind a slow line stays here, where a heartbeat or the end can still be decided.
        (socket.TCP_NOTSENT_LOWAT, NOT_SENT_LOW),
    ):
        sock.setsockopt(socket.IPPROTO_TCP, option, value)
    tune(sock, timing.tcp)


def _set_buffers(sock: socket.socket, tcp: Tcp) -> None:
    if tcp.window:
        for forced, plain in ((_SO_SNDBUFFORCE, socket.SO_SNDBUF), (_SO_RCVBUFFORCE, socket.SO_RCVBUF)):
            try:
                sock.setsockopt(socket.SOL_SOCKET, forced, tcp.window)
            except OSError:
                sock.setsockopt(socket.SOL_SOCKET, plain, tcp.window)


def tune(sock: socket.socket, tcp: Tcp) -> None:
    """What depends on the class of a connection, which its accepting end learns late."""
    _set_buffers(sock, tcp)
    level, option = ((socket.IPPROTO_IPV6, socket.IPV6_TCLASS) if sock.family == socket.AF_INET6
                     else (socket.IPPROTO_IP, socket.IP_TOS))
    sock.setsockopt(level, option, tcp.tos)
    for name, value in ((socket.TCP_KEEPIDLE, tcp.keep_idle), (socket.TCP_KEEPINTVL, tcp.keep_interval),
                        (socket.TCP_KEEPCNT, tcp.keep_count)):
        sock.setsockopt(socket.IPPROTO_TCP, name, value)


def as_peer_error(error: BaseException | None, who: str) -> PeerError:
    """What the operating system or TLS says about a connection, as one of our reasons."""
    if isinstance(error, PeerError):
        return error
    if isinstance(error, ssl.SSLCertVerificationError):
        return PeerError(Reason.TLS, f"{who}: certificate not accepted: {error.verify_message}",
                         "the other host belongs to another cluster, was joined anew, or one of the clocks is wrong")
    if isinstance(error, ssl.SSLError):
        return PeerError(Reason.TLS, f"{who}: TLS: {error.reason or error}",
                         "one side runs with --insecure-no-tls, or has no certificate of this cluster")
    if isinstance(error, ConnectionRefusedError):
        return PeerError(Reason.REFUSED, f"{who}: nobody listens there", "is marsd running there?")
    if isinstance(error, TimeoutError) or (isinstance(error, ConnectionAbortedError) and error.errno is None):
        return PeerError(Reason.TIMEOUT, f"{who}: no answer in time")
    if isinstance(error, OSError) and error.errno in (errno.EHOSTUNREACH, errno.ENETUNREACH, errno.EADDRNOTAVAIL):
        return PeerError(Reason.UNREACHABLE, f"{who}: {os.strerror(error.errno)}")
    if isinstance(error, OSError) and error.errno:
        return PeerError(Reason.LOST, f"{who}: {os.strerror(error.errno)}")
    return PeerError(Reason.LOST, f"{who}: connection lost" + (f": {error}" if error else ""))


class Link(asyncio.BufferedProtocol):
    """See the module. Made by `client.connect` and by the server; one reader at a time, any number of senders."""

    def __init__(self, who: str, timing: Timing, *, stranger: bool = False) -> None:
        self.who = who  # for messages: "alpha (10.0.0.1:7777)"
        self.timing = timing
        self.ended: PeerError | None = None
        self.bytes_in = 0
        self.bytes_out = 0
        self._loop = asyncio.get_running_loop()
        self._decoder = wire.Decoder()
        if stranger:
            self._decoder.set_limits(max_header=wire.MAX_HEADER_STRANGER, max_body=wire.MAX_BODY_STRANGER)
        self._transport: asyncio.Transport | None = None
        self._queue: collections.deque[Frame] = collections.deque()
        self._queued = 0
        self._reader: asyncio.Future[None] | None = None
        self._reading_paused = False
        self._writable: asyncio.Future[None] | None = None
        self._lost: asyncio.Future[None] = self._loop.create_future()
        self._timer: asyncio.TimerHandle | None = None
        self._tick_at = self._last_in = self._last_out = self._last_acked = self._loop.time()
        self._acked = -1

    # -- for users ----------------------------------------------------------------------------------------------------

    async def send(self, kind: Type, header: Mapping[str, Any] | None = None, body: Buffer = b"") -> None:
        """Send one frame when there is room; returns when there is room for more. A body that can still be written to
        is copied."""
        await self.room()
        self.post(kind, header, body)
        await self.room()

    async def room(self) -> None:
        """Returns when less than SEND_HIGH bytes wait for the line."""
        while self._writable is not None:
            await asyncio.shield(self._writable)
            if self.ended is not None:
                raise self.ended

    def post(self, kind: Type, header: Mapping[str, Any] | None = None, body: Buffer = b"") -> None:
        """Send without waiting for room: for rare small frames, and just behind `room`."""
        if self.ended is not None:
            raise self.ended
        assert self._transport is not None
        view = memoryview(body).cast("B") if len(body) else memoryview(b"")
        head = wire.encode_head(kind, header, len(view))
        if len(view) < _JOIN_BELOW:
            self._transport.write(head + view)
        else:
            self._transport.write(head)
            # The transport may keep the memory until much later.
            self._transport.write(body if isinstance(body, bytes) else view if view.readonly else bytes(view))
        self.bytes_out += len(head) + len(view)
        self._last_out = self._loop.time()

    async def recv(self, timeout: float | None = None) -> Frame:
        """The next frame. Without a timeout the wait lasts as long as the peer shows signs of life."""
        while not self._queue:
            if self.ended is not None:
                raise self.ended
            assert self._reader is None, "two readers of one link"
            self._reader = self._loop.create_future()
            try:
                async with asyncio.timeout(timeout):
                    await self._reader
            except TimeoutError:
                raise PeerError(Reason.TIMEOUT, f"{self.who}: no answer within {timeout:g} s") from None
            finally:
                self._reader = None
        return self._take()

    def recv_nowait(self) -> Frame | None:
        """The next frame if it is already here."""
        return self._take() if self._queue else None

    async def close(self, reason: Reason = Reason.CLOSED, text: str = "") -> None:
        """Say why, and end. What was sent before is still delivered if the peer takes it within the deadline."""
        if self._transport is None:
            return
        if self.ended is None:
            kind = Type.BYE if reason is Reason.CLOSED else Type.ERROR
            self.post(kind, {"reason": reason, "text": text[:500]})
            self._end(PeerError(reason, f"{self.who}: {text or 'closed by this host'}"))
        self._transport.close()
        try:
            async with asyncio.timeout(self.timing.close):
                await asyncio.shield(self._lost)
        except TimeoutError:
            self._transport.abort()
            await self._lost

    def abort(self, reason: Reason, text: str) -> None:
        """End at once, without a word to the peer."""
        self._end(PeerError(reason, f"{self.who}: {text}"))
        if self._transport is not None:
            self._transport.abort()

    def set_limits(self, *, max_header: int = wire.MAX_HEADER, max_body: int = wire.MAX_BODY) -> None:
        """How large the frames of the peer may be from now on."""
        self._decoder.set_limits(max_header=max_header, max_body=max_body)

    def bodies_in(self, room: Callable[[int, int], memoryview]) -> None:
        """`room(length of the header, of the body)` gives the memory of each frame that comes from now on."""
        self._decoder.room = room

    def tune(self, tcp: Tcp) -> None:
        """The options of this class of connections, from now on."""
        assert self._transport is not None
        with contextlib.suppress(OSError):  # the connection has just ended: its reader will hear of it
            tune(self._transport.get_extra_info("socket"), tcp)

    def line(self) -> tuple[int, bool]:
        """(bytes that the peer's TCP has acknowledged so far, something waits here for the line)."""
        waits = self._transport is not None and self._transport.get_write_buffer_size() > 0
        return self._bytes_acked() if waits else 0, waits

    def peer_name(self) -> str:
        """Common name of the peer's verified certificate; "" without one."""
        assert self._transport is not None
        certificate = self._transport.get_extra_info("peercert") or {}
        names = [value for part in certificate.get("subject", ()) for key, value in part if key == "commonName"]
        return names[0] if len(names) == 1 else ""

    def peer_certificate(self) -> bytes:
        """The peer's certificate as it came (DER), verified or not; empty without one."""
        assert self._transport is not None
        tls = self._transport.get_extra_info("ssl_object")
        return (tls.getpeercert(binary_form=True) or b"") if tls is not None else b""

    # -- called by asyncio --------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        transport.set_write_buffer_limits(high=SEND_HIGH)
        self._tick_at = self._last_in = self._last_out = self._last_acked = self._loop.time()
        self._tick()

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._decoder.buffer()

    def buffer_updated(self, nbytes: int) -> None:
        self._last_in = self._loop.time()
        self.bytes_in += nbytes
        for frame in self._decoder.filled(nbytes):
            self._arrived(frame)
        if self._decoder.error is not None and self.ended is None:
            # Said to the peer for its messages; it may be no marsd at all.
            text = self._decoder.error.text
            self.post(Type.ERROR, {"reason": Reason.GARBAGE, "text": text})
            self._end(PeerError(Reason.GARBAGE, f"{self.who}: {text}"))
            self._close_soon()
        if self._queued >= RECV_QUEUE and not self._reading_paused and self._transport is not None:
            self._reading_paused = True
            self._transport.pause_reading()

    def eof_received(self) -> bool:
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        if exc is None and not self._decoder.between_frames:
            self._end(PeerError(Reason.LOST, f"{self.who}: connection ended inside a frame"))
        self._end(as_peer_error(exc, self.who))
        if not self._lost.done():
            self._lost.set_result(None)

    def pause_writing(self) -> None:
        if self._writable is None:
            self._writable = self._loop.create_future()
            self._last_acked = self._loop.time()

    def resume_writing(self) -> None:
        if self._writable is not None:
            self._writable.set_result(None)
            self._writable = None

    # -- inside -------------------------------------------------------------------------------------------------------

    def _arrived(self, frame: Frame) -> None:
        if self.ended is not None or frame.type is Type.HEARTBEAT:
            return
        if frame.type in (Type.BYE, Type.ERROR):
            reason, text = wire.parse_reason(frame.header)
            self._end(PeerError(reason, f"{self.who}: {text or 'closed by the other side'}"))
            self._close_soon()
            return
        self._queue.append(frame)
        self._queued += len(frame.body) + _FRAME_COST
        self._wake_reader()

    def _take(self) -> Frame:
        frame = self._queue.popleft()
        self._queued -= len(frame.body) + _FRAME_COST
        if self._reading_paused and self._queued < RECV_QUEUE // 2 and self._transport is not None:
            self._reading_paused = False
            self._last_in = self._loop.time()
            if self.ended is None:
                self._transport.resume_reading()
        return frame

    def _wake_reader(self) -> None:
        if self._reader is not None and not self._reader.done():
            self._reader.set_result(None)

    def _close_soon(self) -> None:
        """Let what is written get out, but not for long."""
        assert self._transport is not None
        self._transport.close()
        self._loop.call_later(self.timing.close, self._abort_late)

    def _abort_late(self) -> None:
        if self._transport is not None and not self._lost.done():
            self._transport.abort()

    def _end(self, error: PeerError) -> None:
        """The first error is the one that counts."""
        if self.ended is not None:
            return
        self.ended = error
        if self._timer is not None:
            self._timer.cancel()
        self._wake_reader()
        self.resume_writing()

    def _tick(self) -> None:
        """Heartbeat, and both signs of death. A tick that comes much too late says that this process slept, not
        that the peer did: its bytes may wait in the socket."""
        now = self._loop.time()
        period = self.timing.heartbeat / 2
        if now - self._tick_at > period:
            self._last_in = self._last_acked = now
        self._tick_at = now + period
        if self._silent(now) or self._stalled(now):
            return
        if self._writable is None and now - self._last_out >= self.timing.heartbeat:
            self.post(Type.HEARTBEAT)
        self._timer = self._loop.call_at(self._tick_at, self._tick)

    def _silent(self, now: float) -> bool:
        if self._reading_paused or now - self._last_in < self.timing.dead_after:
            return False
        self.abort(Reason.SILENT, f"no sign of life for {self.timing.dead_after:g} s")
        return True

    def _stalled(self, now: float) -> bool:
        if self._writable is None:
            return False
        acked = self._bytes_acked()
        if acked != self._acked:
            self._acked, self._last_acked = acked, now
        if now - self._last_acked < self.timing.io_timeout:
            return False
        self.abort(Reason.STALLED, f"takes no data for {self.timing.io_timeout:g} s")
        return True

    def _bytes_acked(self) -> int:
        """Bytes that the peer's TCP has acknowledged: progress even where one frame takes minutes."""
        assert self._transport is not None
        try:
            sock = self._transport.get_extra_info("socket")
            return _BYTES_ACKED.unpack(sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _BYTES_ACKED.size))[0]
        except (OSError, AttributeError, struct.error):
            return self._acked  # no measure: the deadline counts from the start of the wait


def reason_of(error: BaseException) -> tuple[Reason, str]:
    """What to tell the peer when a service ends with this error."""
    if isinstance(error, PeerError):
        return error.reason, error.text
    if isinstance(error, MarsError):
        return Reason.FAILED, error.text
    return Reason.FAILED, f"internal error: {type(error).__name__}"
