"""Sources and targets of a full sync over bytes in memory, and a run between them over a real link."""
from __future__ import annotations

import asyncio
import contextlib
import threading

from marsx.base.position import LogPos
from marsx.log.chain import Point
from marsx.peer.server import Peer
from marsx.peer.sync import SyncService, sync_resource
from marsx.peer.syncparts import Resume

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

    def reading(self, amount: int) -> contextlib.AbstractAsyncContextManager[None]:
        return contextlib.nullcontext()

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
