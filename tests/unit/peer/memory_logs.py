"""Logs in memory for the tests of the log stream: a source, a sink, and a stream between them.

The groups are of a simple form of their own (length, check sum, payload, padding to a block): the stream knows no more
of a group than that it has an end.
"""
from __future__ import annotations

import asyncio
import hashlib
import random
import threading
import zlib

from marsx.base.errors import DamagedError
from marsx.base.position import LogPos
from marsx.peer.fetch import Fed, FetchService, NextLog, Offer, Start, Verdict, fetch_logs
from marsx.peer.server import Peer
from marsx.peer.wire import Reason

BLOCK = 4096
PEER = Peer("beta", "inc", (), "127.0.0.1", True)
RESOURCE = "data"


def group(rng: random.Random, size: int) -> bytes:
    payload = rng.randbytes(size)
    raw = (size + 12).to_bytes(8, "little") + zlib.crc32(payload).to_bytes(4, "little") + payload
    return raw + bytes(-len(raw) % BLOCK)


def group_length(raw) -> int:
    size = int.from_bytes(raw[:8], "little")
    return size + -size % BLOCK


def check_group(raw) -> bool:
    size = int.from_bytes(raw[:8], "little")
    return zlib.crc32(raw[12:size]) == int.from_bytes(raw[8:12], "little")


class Log:
    def __init__(self, nr: int, producer: str, before: str = "") -> None:
        self.nr, self.producer = nr, producer
        self.header = hashlib.sha512(f"{nr} {producer} {before}".encode()).digest() * (BLOCK // 64)
        self.id = self.header[:16].hex()
        self.data = bytearray()
        self.durable = 0
        self.ended = False

    def digest(self, pos: int) -> str:
        return hashlib.md5(self.header + self.data[:pos]).hexdigest()


class Source:
    """A LogSource; also the primary: `append` and `flush` by hand."""

    def __init__(self) -> None:
        self.logs = [Log(1, "alpha")]
        self.changed = asyncio.Event()
        self.acks: list = []
        self.reads = 0
        self.pinned = False
        self.busy = threading.Lock()
        self.closed = 0

    def append(self, raw: bytes, durable: bool = True) -> None:
        self.logs[-1].data += raw
        if durable:
            self.flush()

    def flush(self) -> None:
        self.logs[-1].durable = len(self.logs[-1].data)
        self.changed.set()

    def rotate(self, producer: str = "alpha") -> None:
        last = self.logs[-1]
        last.durable, last.ended = len(last.data), True
        self.logs.append(Log(last.nr + 1, producer, last.digest(last.durable)))
        self.changed.set()

    def find(self, nr, producer):
        return next((log for log in self.logs if (log.nr, log.producer) == (nr, producer)), None)

    def check(self, start: Start) -> Verdict:
        log = self.find(start.nr, start.producer)
        if log is None:
            return Verdict(Reason.MISSING, f"log {start.nr} is not here")
        if start.pos > log.durable:
            return Verdict(Reason.BEHIND, "I have less")
        if start.log_id and (start.log_id, start.digest) != (log.id, log.digest(start.pos)):
            return Verdict(Reason.SPLIT, "history differs")
        self.pinned = True
        newest = self.logs[-1]
        offer = Offer(log.durable, LogPos(newest.nr, newest.producer, newest.durable))
        return Verdict(header=log.header, offer=offer)

    def read(self, nr, producer, pos, limit) -> bytes:
        with self.busy:
            self.reads += 1
            assert self.pinned
            log = self.find(nr, producer)
            return bytes(log.data[pos:min(pos + limit, log.durable)])

    def following(self, nr, producer, pos):
        log = self.find(nr, producer)
        if not log.ended or pos != log.durable:
            return None
        after = self.logs[self.logs.index(log) + 1]
        return NextLog(after.nr, after.producer, after.header)

    async def wait(self, nr, producer, pos) -> None:
        while True:
            self.changed.clear()
            log = self.find(nr, producer)
            if log.durable > pos or log.ended:
                return
            await self.changed.wait()

    def acked(self, nr, producer, pos) -> None:
        self.acks.append((nr, producer, pos))

    def close(self) -> None:
        assert self.busy.acquire(blocking=False), "a read is still running"
        self.pinned = False
        self.closed += 1
        self.busy.release()


class Sink:
    """A LogSink with what it would have on its disk."""

    def __init__(self, source: Source | None = None) -> None:
        self.logs: list[Log] = []
        self.feeds: list[int] = []
        self.gate = threading.Event()
        self.gate.set()
        self.inside = False
        if source is not None:
            self._make(source.logs[0].nr, source.logs[0].producer, source.logs[0].header)

    def _make(self, nr, producer, header) -> None:
        log = Log(nr, producer)
        log.header, log.id = header, header[:16].hex()
        self.logs.append(log)

    def start(self) -> Start:
        if not self.logs:
            return Start(1, "alpha", 0)
        log = self.logs[-1]
        return Start(log.nr, log.producer, log.durable, log.id, log.digest(log.durable))

    def begin(self, start, header) -> None:
        self._make(start.nr, start.producer, header)

    def feed(self, nr, producer, pos, data) -> Fed:
        self.inside = True
        assert self.gate.wait(60)
        log, raw = self.logs[-1], bytes(data)
        assert (nr, producer, pos) == (log.nr, log.producer, log.durable)
        self.feeds.append(len(raw))
        at, need = 0, BLOCK
        while len(raw) - at >= BLOCK:
            need = group_length(raw[at:at + 12])
            if need > len(raw) - at:
                break
            if not check_group(raw[at:at + need]):
                raise DamagedError(f"log {nr} is damaged at {pos + at}")
            at, need = at + need, BLOCK
        log.data += raw[:at]
        log.durable = len(log.data)
        self.inside = False
        return Fed(pos + at, need)

    def next(self, nr, producer, end, header) -> None:
        assert end == self.logs[-1].durable
        self._make(nr, producer, header)

    def same(self, source: Source) -> bool:
        return [(log.nr, log.producer, log.header, bytes(log.data)) for log in self.logs] \
            == [(log.nr, log.producer, log.header, bytes(log.data[:log.durable])) for log in source.logs]


class Stream:
    """Source and sink coroutines running over a pair of links."""

    def __init__(self, peers, source, sink, limit=None, **options) -> None:
        self.peers, self.source, self.sink, self.options = peers, source, sink, options
        self.limit = limit
        self.fetched: list = []

    async def __aenter__(self) -> Stream:
        self.left, self.right = await self.peers.link_pair()
        service = FetchService(lambda resource, peer: self.source, **self.options)
        self.serving = asyncio.create_task(self._serve(service))
        self.fetching = asyncio.create_task(fetch_logs(self.right, RESOURCE, self.sink, bucket=self.limit,
                                                       fetched=lambda *at: self.fetched.append(at)))
        return self

    async def _serve(self, service) -> None:
        try:
            await service(self.left, PEER)
        finally:
            await self.left.close()

    async def caught_up(self) -> None:
        await self.peers.until(lambda: self.sink.same(self.source) or self.fetching.done())
        if self.fetching.done():
            self.fetching.result()

    async def __aexit__(self, *_) -> None:
        self.fetching.cancel()
        await asyncio.gather(self.fetching, return_exceptions=True)
        await self.right.close()
        await asyncio.gather(self.serving, return_exceptions=True)
