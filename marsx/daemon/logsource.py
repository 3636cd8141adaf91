"""The logs of one resource as a peer fetches them (implements `peer.fetch.LogSource`).

Invariants:
    no byte behind the durable position of the own newest log leaves the host (design D 5)
    a start is accepted only if (log id, POS, digest) lies in the own history (rule 6); a log that lies here beside it
        (an empty one of another producer, one from before a split) is not in it
    logs that a stream reads from are pinned, and pinned before they are looked at: deletion asks `Pins` first (rule 9)
    logs are read past the page cache, as they are written: what is sent is what is on the disk
    an empty log at the end of the history goes only from its producer to others
    a block that the disk does not give ends the stream, named to the peer, and is told to who can have it healed
"""

from __future__ import annotations

import asyncio
import contextlib
import mmap
import os
import threading
from collections import Counter
from collections.abc import Callable

from marsx.base.errors import DamagedError, MarsError, NotFoundError
from marsx.base.position import NR_MAX, LogPos, log_name
from marsx.log import reader, record
from marsx.log.record import BLOCK, FileHeader
from marsx.peer.fetch import NextLog, Offer, Start, Verdict
from marsx.peer.wire import Reason

READ_MAX = 1 << 20


class Pins:
    """Which logs of a resource are being read by streams. From any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._count: Counter[int] = Counter()

    def pin(self, nr: int) -> None:
        with self._lock:
            self._count[nr] += 1

    def unpin(self, nr: int) -> None:
        with self._lock:
            self._count[nr] -= 1
            if self._count[nr] <= 0:
                del self._count[nr]

    def lowest(self) -> int | None:
        with self._lock:
            return min(self._count, default=None)


class End:
    """The durable end of the own newest history with the digest there ("": not known), and a way to wait for more.
    Belongs to the loop; `point` may be read anywhere."""

    def __init__(self, at: LogPos, digest: str = "") -> None:
        self.point = (at, digest)
        self._waiters: set[asyncio.Event] = set()

    @property
    def at(self) -> LogPos:
        return self.point[0]

    def set(self, at: LogPos, digest: str = "") -> None:
        """Without waking anybody."""
        self.point = (at, digest)

    def move(self, at: LogPos, digest: str = "") -> None:
        if (at, digest) != self.point:
            self.point = (at, digest)
            for event in self._waiters:
                event.set()

    async def wait(self, done: Callable[[], bool]) -> None:
        event = asyncio.Event()
        self._waiters.add(event)
        try:
            while not done():
                event.clear()
                await event.wait()
        finally:
            self._waiters.discard(event)


class Stock:
    """What peers may see of one resource's logs, through all changes of the role: its durable end and its pins."""

    def __init__(self) -> None:
        self.pins = Pins()
        self.end: End | None = None

    def move(self, at: LogPos, digest: str = "") -> End:
        """The durable end is `at` now. Loop only."""
        if self.end is None:
            self.end = End(at, digest)
        else:
            self.end.move(at, digest)
        return self.end


class Source:
    """One stream's view. `end`: where the own durable history ends."""

    def __init__(self, directory: str, uuid: str, resource: str, end: End, pins: Pins,
                 on_unreadable: Callable[[LogPos], None] = lambda upto: None, host: str = "") -> None:
        self._host = host
        self._on_unreadable = on_unreadable
        self._directory = directory
        self._uuid = uuid
        self._resource = resource
        self._end = end
        self._pins = pins
        self._log: reader.OpenLog | None = None
        self._buffer = mmap.mmap(-1, READ_MAX + 2 * BLOCK)
        self._lock = threading.Lock()  # streams pin in the executor and unpin on the loop
        self._pinned: set[int] = set()

    def check(self, start: Start) -> Verdict:
        self._pin(start.nr)
        try:
            verdict = self._check(start)
        except OSError as err:
            raise self._unreadable(start.nr, start.producer, err) from err
        if verdict.reason is not None:
            self._unpin_below(start.nr + 1)
        return verdict

    def _check(self, start: Start) -> Verdict:
        end = self._end.at
        name = log_name(start.nr, start.producer)
        same = [e for e in reader.list_logs(self._directory) if e.nr == start.nr]
        if not any(e.producer == start.producer for e in same):
            if same:
                return Verdict(
                    Reason.SPLIT, f"log {start.nr} was written by {same[0].producer} here, not by {start.producer}"
                )
            return self._check_deleted(start, name)
        try:
            log = self._open(start.nr, start.producer)
        except (DamagedError, NotFoundError) as err:
            if isinstance(err.__cause__, OSError):
                raise err.__cause__ from err
            return Verdict(Reason.MISSING, err.text)
        if not self._in_history(start.nr, start.producer):
            if start.nr > end.nr:
                return Verdict(Reason.BEHIND, f"{name} has only just begun here")
            return Verdict(Reason.SPLIT, f"{name} lies here, but the history of this host goes another way")
        known = self._end_of(start.nr, start.producer)
        offer = Offer(known, self._given())
        if not start.log_id:
            return Verdict(header=log.header.pack(), offer=offer)
        if start.log_id != log.header.log_id.hex():
            return Verdict(Reason.SPLIT, f"{name} here is another log of the same name")
        if start.pos > known:
            reason = Reason.BEHIND if (start.nr, start.producer) == (end.nr, end.producer) else Reason.SPLIT
            return Verdict(reason, f"{name} ends at {known} here, asked from {start.pos}")
        if start.digest != self._digest_at(log, start.pos):
            return Verdict(Reason.SPLIT, f"{name} has other contents here before {start.pos}")
        return Verdict(offer=offer)

    def _check_deleted(self, start: Start, name: str) -> Verdict:
        """(N, its end) is (N+1, 0): who has all of log N needs the file no more (rule 7)."""
        following = self._successor(start.nr, start.producer)
        if following is None or not start.log_id or following.pred != LogPos(start.nr, start.producer, start.pos):
            reason = Reason.BEHIND if start.nr > self._end.at.nr else Reason.MISSING
            return Verdict(reason, f"{name} is not here (any more)")
        if following.pred_digest != start.digest:
            return Verdict(Reason.SPLIT, f"{following.name} follows other contents of {name} here")
        return Verdict(offer=Offer(start.pos, self._given()))

    def _digest_at(self, log: reader.OpenLog, pos: int) -> str | None:
        """What is known of the log's end; from the group that starts there, if there is one (its header is checked
        against the chain as far as CRC and log id go); else by reading the log from its beginning."""
        if pos == 0:
            return log.header.digest0
        at = LogPos(log.header.nr, log.header.producer, pos)
        newest, digest = self._end.point
        if at == newest and digest:
            return digest
        following = self._successor(log.header.nr, log.header.producer)
        if following is not None and following.pred == at:
            return following.pred_digest
        block = reader.read_block(log.fd, BLOCK + pos)
        checked = record.group_digest_before(block, log.header, pos) if len(block) == BLOCK else None
        return checked or reader.digest_at(log.fd, log.header, pos)

    def _end_of(self, nr: int, producer: str) -> int:
        """POS up to which this log may be given away."""
        end = self._end.at
        if (nr, producer) == (end.nr, end.producer):
            return end.pos
        following = self._successor(nr, producer)
        if following is None or following.pred is None:
            raise NotFoundError(f"{log_name(nr, producer)} does not lead to {end} here (any more)")
        return following.pred.pos

    def _in_history(self, nr: int, producer: str) -> bool:
        """Is this log one of those that lead to the own end?"""
        end = self._end.at
        return (nr, producer) == (end.nr, end.producer) or self._successor(nr, producer) is not None

    def _successor(self, nr: int, producer: str) -> FileHeader | None:
        """Header of the log that follows in the own history, found from the own end back; None for the newest one,
        and for logs beside the history."""
        end = self._end.at
        headers = [self._header(entry) for entry in reader.list_logs(self._directory) if nr < entry.nr <= end.nr]
        known = {(h.nr, h.producer): h for h in headers}
        found = known.get((end.nr, end.producer))
        while found is not None and found.pred is not None and found.pred.nr > nr:
            found = known.get((found.pred.nr, found.pred.producer))
        pred = None if found is None else found.pred
        follows = pred is not None and (pred.nr, pred.producer) == (nr, producer)
        return found if follows else None

    def _header(self, entry: reader.LogEntry) -> FileHeader:
        with reader.open_log(entry.path, self._uuid, self._resource) as log:
            return log.header

    def _open(self, nr: int, producer: str) -> reader.OpenLog:
        if self._log is not None and (self._log.header.nr, self._log.header.producer) == (nr, producer):
            return self._log
        if self._log is not None:
            self._log.close()
            self._log = None
        path = os.path.join(self._directory, log_name(nr, producer))
        self._log = reader.open_log(path, self._uuid, self._resource, direct=True)
        return self._log

    def _pin(self, nr: int) -> None:
        with self._lock:
            if nr in self._pinned:
                return
            self._pinned.add(nr)
        self._pins.pin(nr)

    def read(self, nr: int, producer: str, pos: int, limit: int) -> bytes:
        end = self._end.at
        stop = end.pos if (nr, producer) == (end.nr, end.producer) else self._end_of(nr, producer)
        want = min(limit, READ_MAX, stop - pos)
        if want <= 0:
            return b""
        skip = pos % BLOCK
        length = (skip + want + BLOCK - 1) // BLOCK * BLOCK
        with memoryview(self._buffer)[:length] as view:
            try:
                got = os.preadv(self._open(nr, producer).fd, [view], BLOCK + pos - skip)
            except OSError as err:
                raise self._unreadable(nr, producer, err) from err
            if got < skip + want:
                raise MarsError(f"{log_name(nr, producer)} is shorter than its durable end {stop}")
            return bytes(view[skip : skip + want])

    def _unreadable(self, nr: int, producer: str, err: OSError) -> MarsError:
        """To be raised: it is what the peer is told."""
        self._on_unreadable(LogPos(nr, producer, self._end_of(nr, producer)))
        return MarsError(f"log {log_name(nr, producer)} cannot be read there: {err.strerror}",
                         "it is healed by itself where another member has it")

    def following(self, nr: int, producer: str, pos: int) -> NextLog | None:
        if self._given().nr <= nr:
            return None
        if pos != self._end_of(nr, producer):
            return None
        found = self._successor(nr, producer)
        assert found is not None
        self._pin(found.nr)
        return NextLog(found.nr, found.producer, found.pack())

    async def wait(self, nr: int, producer: str, pos: int) -> None:
        await self._end.wait(lambda: self._given().order > (nr, pos))

    def _given(self) -> LogPos:
        """Up to where the history is passed on: not into an empty log at its end that another host has begun. He may
        have withdrawn it, and granted the right since; it must not come back to him from here (rules 7, 18)."""
        end = self._end.at
        if end.pos or end.producer == self._host or not self._host:
            return end
        with contextlib.suppress(MarsError):
            with reader.open_log(os.path.join(self._directory, end.log), self._uuid, self._resource) as log:
                if log.header.pred is not None and log.header.gap_id == record.NO_ID:
                    return log.header.pred
        return end

    def acked(self, nr: int, producer: str, pos: int) -> None:
        self._unpin_below(nr)

    def _unpin_below(self, nr: int) -> None:
        with self._lock:
            done = {old for old in self._pinned if old < nr}
            self._pinned -= done
        for old in done:
            self._pins.unpin(old)

    def close(self) -> None:
        self._unpin_below(NR_MAX + 1)
        if self._log is not None:
            self._log.close()
            self._log = None
