"""The log stream: a source pushes the bytes of its logs as they become durable, a sink verifies and keeps them.

    sink                                                       source
    FETCH {resource, nr, producer, log_id, pos, digest}   ->   is (pos, digest) in my own history? pin the log
                                                          <-   FETCH_OK {end, newest} [header block of the log, if
                                                               log_id is ""]: where that log ends there, and where the
                                                               source's history ends, both durable
                                                               or FETCH_NO {reason: split | missing | behind, text}
                                                          <-   FETCH_DATA {nr, pos} bytes, again and again
    FETCH_ACK {nr, pos}: durable up to a group's end      ->
                                                          <-   FETCH_NEXT {nr, producer, end} next log's header block

After FETCH_NO the sink may ask from another position on the same link. Nothing is asked for after FETCH_OK: the source
pushes, TCP slows it down, and at most WINDOW bytes are out without an ack. So the line's latency costs once, at the
start. A frame's bytes may begin and end anywhere in a group.

Invariants:
    source: a byte is sent only after it is durable there (`LogSource.read` gives no other); acked <= sent
    sink: fetched (verified and durable) <= received; only fetched is acked, and the next stream begins there (rule 6)
    neither coroutine returns, also when cancelled, while a call of its LogSource or LogSink still runs (rules 9, 15)

The methods of LogSource and LogSink that block run in the executor that is passed in.
"""
from __future__ import annotations

import asyncio
import concurrent.futures
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from marsx.base.errors import DamagedError
from marsx.base.position import NAME_MAX, LogPos
from marsx.base.tasks import ended, run_blocking
from marsx.peer import wire
from marsx.peer.limit import Bucket
from marsx.peer.link import Link
from marsx.peer.server import Peer
from marsx.peer.wire import PeerError, Reason, Type

SERVICE = "fetch"
HEADER_BLOCK = 4096
GROUP_MAX = HEADER_BLOCK + 64 * 1024 * 1024
CHUNK = 1024 * 1024
# More than a group: the sink can acknowledge nothing before it has one whole.
WINDOW = 128 * 1024 * 1024
# So much is verified, written and made durable in one go when it comes in faster than that.
FEED = 8 * 1024 * 1024

assert WINDOW > GROUP_MAX + CHUNK and CHUNK <= wire.MAX_BODY

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Start:
    """Where a stream begins: the end of a group of a log, or 0. log_id and digest are hex, 32 digits; both are "" when
    the sink has nothing of that log (then pos is 0 and the answer brings the header block)."""

    nr: int
    producer: str
    pos: int
    log_id: str = ""
    digest: str = ""

    def header(self) -> dict[str, Any]:
        """As fields of a FETCH frame."""
        return {"nr": self.nr, "producer": self.producer, "pos": self.pos, "log_id": self.log_id,
                "digest": self.digest}

    @classmethod
    def parse(cls, header: dict[str, Any]) -> Start:
        """Inverse of header(), for a hostile peer."""
        start = cls(wire.take_nr(header), wire.take_host(header, "producer"), wire.take_pos(header),
                    wire.take_hex(header, "log_id", 32, empty=True), wire.take_hex(header, "digest", 32, empty=True))
        if bool(start.log_id) != bool(start.digest) or (start.pos and not start.log_id) or start.pos % HEADER_BLOCK:
            raise wire.WireError(f"not the start of a stream: {start}")
        return start


@dataclass(frozen=True, slots=True)
class Offer:
    """What a source has behind a start: POS where that log ends there, and the end of its whole history; both durable
    there now."""

    end: int
    newest: LogPos

    def header(self) -> dict[str, Any]:
        """As fields of a FETCH_OK frame."""
        return {"end": self.end, "newest": {"nr": self.newest.nr, "producer": self.newest.producer,
                                            "pos": self.newest.pos}}

    @classmethod
    def parse(cls, header: dict[str, Any]) -> Offer:
        """Inverse of header(), for a hostile peer."""
        newest = header.get("newest")
        if not isinstance(newest, dict):
            raise wire.WireError("it is not said where the source's history ends")
        return cls(wire.take_pos(header, "end"),
                   LogPos(wire.take_nr(newest), wire.take_host(newest, "producer"), wire.take_pos(newest)))


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a source says to a start. `reason` None: yes, with `offer`; else SPLIT, MISSING or BEHIND with a text for
    people. `header` is the log's header block, wanted when the start has no log_id."""

    reason: Reason | None = None
    text: str = ""
    header: bytes = b""
    offer: Offer | None = None


@dataclass(frozen=True, slots=True)
class NextLog:
    """The log after an ended one."""

    nr: int
    producer: str
    header: bytes


@dataclass(frozen=True, slots=True)
class Fed:
    """What a sink has made of its bytes: fetched up to `end` (a group's end), and `need` bytes from there on, or more,
    are wanted before `feed` is called again (the length of the next group, or of its header block)."""

    end: int
    need: int = HEADER_BLOCK


class LogSource(Protocol):
    """The logs of one resource, for one stream. All but `wait` and `acked` may block: they run in the executor, one at
    a time."""

    def check(self, start: Start) -> Verdict:
        """Is this a prefix of the own history, and is the log still there from there on? Yes pins it (rule 9)."""

    def read(self, nr: int, producer: str, pos: int, limit: int) -> bytes:
        """Log bytes from pos on, at most `limit`, none behind the durable end; b"" there."""

    def following(self, nr: int, producer: str, pos: int) -> NextLog | None:
        """The next log, if this one has ended just at pos and the next one's header is durable; pins that too."""

    async def wait(self, nr: int, producer: str, pos: int) -> None:
        """Until `read` or `following` has something for this position; at once if it has already."""

    def acked(self, nr: int, producer: str, pos: int) -> None:
        """The sink has everything up to here durable; logs before may be unpinned. Called on the loop."""

    def close(self) -> None:
        """The stream has ended: unpin all."""


class LogSink(Protocol):
    """The own copy of one resource's logs. All methods may block: they run in the executor, one at a time. An error
    that they raise ends the stream."""

    def start(self) -> Start:
        """The end of the last group that is verified and durable here."""

    def begin(self, start: Start, header: bytes) -> None:
        """Make the local copy of a log that we had nothing of, from its header block (hostile until checked)."""

    def feed(self, nr: int, producer: str, pos: int, data: bytes | memoryview) -> Fed:
        """Verify the whole groups in `data`, write them at `pos` and make them durable."""

    def next(self, nr: int, producer: str, end: int, header: bytes) -> None:
        """The log we are at has ended at `end`, which is where we are; the next begins with this header block (checked
        against our end and digest)."""


async def _first_of(*work: Coroutine[Any, Any, None]) -> None:
    """Run all until one ends; end the others, wait for them, and raise what the first one raised."""
    tasks = [asyncio.create_task(coroutine) for coroutine in work]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        errors = await ended(tasks)
    if errors:
        raise errors[0]


# -- source -----------------------------------------------------------------------------------------------------------

class FetchService:
    """The `fetch` service for `server.Server`. `source_for(resource, peer)` gives a new LogSource, or raises MarsError
    (unknown resource, peer is no member of it). `executor` runs what blocks, `bucket` limits what is sent."""

    def __init__(self, source_for: Callable[[str, Peer], LogSource],
                 executor: concurrent.futures.Executor | None = None, window: int = WINDOW,
                 bucket: Bucket | None = None) -> None:
        self._source_for = source_for
        self._bucket = bucket or Bucket(lambda: 0)
        self._executor = executor
        self._window = window

    async def __call__(self, link: Link, peer: Peer) -> None:
        source: LogSource | None = None
        resource = ""
        try:
            while True:
                asked = wire.expect(await link.recv(link.timing.io_timeout), Type.FETCH)
                start = Start.parse(asked.header)
                wanted = wire.take_text(asked.header, "resource", NAME_MAX)
                if source is None:
                    resource, source = wanted, self._source_for(wanted, peer)
                if wanted != resource:
                    raise wire.WireError("a link is for one resource")
                verdict = await run_blocking(self._executor, source.check, start)
                if verdict.reason is None:
                    break
                await link.send(Type.FETCH_NO, {"reason": verdict.reason, "text": verdict.text[:500]})
            assert verdict.offer is not None
            await link.send(Type.FETCH_OK, verdict.offer.header(), b"" if start.log_id else verdict.header)
            stream = _Push(link, source, start, self._executor, self._window, self._bucket)
            await _first_of(stream.push(), stream.acks())
        except PeerError as error:
            if error.reason is not Reason.CLOSED:
                raise
        finally:
            if source is not None:
                await run_blocking(self._executor, source.close)


class _Push:
    """One stream at its source. Positions of all its logs are mapped to one count of bytes: `_base[nr]` is the count at
    POS 0 of that log."""

    def __init__(self, link: Link, source: LogSource, start: Start, executor: concurrent.futures.Executor | None,
                 window: int, bucket: Bucket) -> None:
        self._link = link
        self._bucket = bucket
        self._source = source
        self._executor = executor
        self._window = window
        self._nr, self._producer, self._pos = start.nr, start.producer, start.pos
        self._base: dict[int, tuple[int, str]] = {start.nr: (-start.pos, start.producer)}
        self._ends: dict[int, int] = {}
        self._sent = 0
        self._acked = 0
        self._room = asyncio.Event()

    async def push(self) -> None:
        """Send for ever what is durable and has room in the window."""
        while True:
            room = min(CHUNK, self._window - (self._sent - self._acked))
            if room <= 0:
                self._room.clear()
                await self._room.wait()
                continue
            here = self._nr, self._producer, self._pos
            data = await run_blocking(self._executor, self._source.read, *here, room)
            if data:
                assert len(data) <= room
                await self._bucket.take(len(data))
                await self._link.send(Type.FETCH_DATA, {"nr": self._nr, "pos": self._pos}, data)
                self._pos += len(data)
                self._sent += len(data)
                continue
            following = await run_blocking(self._executor, self._source.following, *here)
            if following is not None:
                await self._go_on_with(following)
            else:
                await self._source.wait(*here)

    async def _go_on_with(self, log: NextLog) -> None:
        assert log.nr > self._nr and len(log.header) == HEADER_BLOCK
        await self._link.send(Type.FETCH_NEXT, {"nr": log.nr, "producer": log.producer, "end": self._pos}, log.header)
        self._ends[self._nr] = self._pos
        self._nr, self._producer, self._pos = log.nr, log.producer, 0
        self._base[log.nr] = (self._sent, log.producer)

    async def acks(self) -> None:
        """Take what the sink has fetched. An ack behind what was sent, or going back, is a lie."""
        while True:
            frame = wire.expect(await self._link.recv(), Type.FETCH_ACK)
            nr, pos = wire.take_nr(frame.header), wire.take_pos(frame.header)
            if nr not in self._base or pos > self._ends.get(nr, self._pos):
                raise wire.WireError(f"acknowledges what was never sent: log {nr}, {pos}")
            base, producer = self._base[nr]
            if base + pos < self._acked:
                raise wire.WireError(f"acknowledges backwards: log {nr}, {pos}")
            self._acked = base + pos
            for old in [n for n in self._base if n < nr]:
                del self._base[old]
                self._ends.pop(old, None)
            self._source.acked(nr, producer, pos)
            self._room.set()


# -- sink -------------------------------------------------------------------------------------------------------------

async def ask(link: Link, resource: str, start: Start) -> tuple[Offer, bytes]:
    """Ask for a stream: what the source has from `start` on, and the header block when it was asked for. The stream has
    begun then; who only wanted to know closes the link. Raises PeerError: SPLIT, MISSING, BEHIND."""
    await link.send(Type.FETCH, {"resource": resource, **start.header()})
    answer = wire.expect(await link.recv(link.timing.io_timeout), Type.FETCH_OK, Type.FETCH_NO)
    if answer.type is Type.FETCH_NO:
        reason, text = wire.parse_reason(answer.header)
        raise PeerError(reason, f"{link.who}: {text}")
    offer = Offer.parse(answer.header)
    if offer.end < start.pos or offer.newest.nr < start.nr:
        raise wire.WireError(f"offers less than was asked for: {offer}")
    if not start.log_id and len(answer.body) != HEADER_BLOCK:
        raise wire.WireError("the header block of the log is missing")
    return offer, bytes(answer.body)


async def fetch_logs(link: Link, resource: str, sink: LogSink, *, executor: concurrent.futures.Executor | None = None,
                     fetched: Callable[[int, str, int], None] | None = None,
                     enough: Callable[[], bool] = lambda: False, patience: float | None = None,
                     bucket: Bucket | None = None) -> None:
    """Fetch until `enough()`, until cancelled, or until something is wrong; `fetched(nr, producer, pos)` is told each
    new position. `patience`: something has to come within so many seconds each time (None: the source waits for its
    writers). `bucket` limits what comes: what is fetched is acknowledged, and so more of it sent, only in its time.

    Raises PeerError: SPLIT, MISSING, BEHIND (what the source says to our start), or how the connection ended; or what
    the sink raised. The link is the caller's to close."""
    stream = _Pull(link, sink, executor, fetched, bucket or Bucket(lambda: 0))
    await stream.open(resource)
    while not enough():
        stream.take(await link.recv(patience))
        # Everything that is already here goes into the same flush.
        while stream.next_log is None and stream.held < FEED and (frame := link.recv_nowait()) is not None:
            stream.take(frame)
        await stream.work()


class _Pull:
    """One stream at its sink: `_held` are the bytes from the fetched position on."""

    def __init__(self, link: Link, sink: LogSink, executor: concurrent.futures.Executor | None,
                 fetched: Callable[[int, str, int], None] | None, bucket: Bucket) -> None:
        self._link = link
        self._bucket = bucket
        self._sink = sink
        self._executor = executor
        self._fetched = fetched
        self._nr, self._producer, self._pos = 0, "", 0
        self._held: list[memoryview] = []
        self.held = 0
        self._need = HEADER_BLOCK
        self.next_log: wire.Frame | None = None

    async def open(self, resource: str) -> None:
        """Ask, and take the answer."""
        start = await run_blocking(self._executor, self._sink.start)
        _, header = await ask(self._link, resource, start)
        if not start.log_id:
            await run_blocking(self._executor, self._sink.begin, start, header)
        self._nr, self._producer, self._pos = start.nr, start.producer, start.pos

    def take(self, frame: wire.Frame) -> None:
        """Note one frame; it must continue what we have."""
        wire.expect(frame, Type.FETCH_DATA, Type.FETCH_NEXT)
        if frame.type is Type.FETCH_NEXT:
            self.next_log = frame
            return
        at = wire.take_nr(frame.header), wire.take_pos(frame.header)
        if at != (self._nr, self._pos + self.held) or not len(frame.body):
            raise wire.WireError(f"log bytes of {at} came where {(self._nr, self._pos + self.held)} is due")
        self._held.append(frame.body)
        self.held += len(frame.body)

    async def work(self) -> None:
        """Feed what is enough, acknowledge what is durable, then go on with the next log if this one has ended."""
        if self.held >= self._need:
            await self._feed()
        if self.next_log is not None:
            await self._turn(self.next_log)

    async def _feed(self) -> None:
        data = self._held[0] if len(self._held) == 1 else memoryview(b"".join(self._held))
        fed = await run_blocking(self._executor, self._sink.feed, self._nr, self._producer, self._pos, data)
        done = fed.end - self._pos
        if not 0 <= done <= len(data) or fed.need <= len(data) - done:
            raise AssertionError(f"sink took {done} of {len(data)} bytes and wants {fed.need} more")
        if fed.need > GROUP_MAX:
            raise DamagedError(f"a group of {fed.need} bytes is announced; no group is longer than {GROUP_MAX}")
        rest = data[done:]
        self._held = [rest] if len(rest) else []
        self.held = len(rest)
        self._need = fed.need
        if done:
            self._pos = fed.end
            await self._bucket.take(done)
            await self._report()

    async def _turn(self, frame: wire.Frame) -> None:
        """The log has ended; it must be where we are."""
        self.next_log = None
        nr, producer = wire.take_nr(frame.header), wire.take_host(frame.header, "producer")
        end = wire.take_pos(frame.header, "end")
        if self.held or end != self._pos or nr <= self._nr or len(frame.body) != HEADER_BLOCK:
            raise wire.WireError(f"log {self._nr} cannot end at {end}: we have it up to {self._pos} and "
                                 f"{self.held} bytes of a group")
        await run_blocking(self._executor, self._sink.next, nr, producer, end, bytes(frame.body))
        self._nr, self._producer, self._pos, self._need = nr, producer, 0, HEADER_BLOCK
        await self._report()

    async def _report(self) -> None:
        if self._fetched is not None:
            self._fetched(self._nr, self._producer, self._pos)
        await self._link.send(Type.FETCH_ACK, {"nr": self._nr, "pos": self._pos})
