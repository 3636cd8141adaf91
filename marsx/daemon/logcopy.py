"""The local copy of a resource's logs on a secondary: what fetch writes and replay reads (implements
`peer.fetch.LogSink`).

Invariants:
    fetched is the end of a verified group, durable in the local file; nothing behind it is ever counted
    a new log is begun only from a header that names our own end and digest as its predecessor (rules 4, 6)
    the file is cut to the verified end before a stream appends to it (a torn tail of the last stream)
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable

from marsx.base import durable
from marsx.base.errors import DamagedError, MarsError
from marsx.base.position import LogPos
from marsx.log import reader, record, writer
from marsx.log.chain import Point
from marsx.log.record import BLOCK, FileHeader
from marsx.peer.fetch import Fed, Start
from marsx.volume.env import Env, point_before

VERSION_INTERVAL_S = 1.0


class GapAhead(MarsError):
    """The next log stands behind a gap: who has not been healed of what went past the log does not go there (rule
    27)."""


class LogCopy:
    """See the module. `at`, `digest`: where the verified history ends now. `header` is that log's, None when there is
    no file yet."""

    def __init__(
        self,
        env: Env,
        at: LogPos,
        digest: str,
        header: FileHeader | None,
        next_group: int | None,
        next_record: int,
        device_size: int,
        on_fetched: Callable[[LogPos, str], None],
    ) -> None:
        self.env = env
        self.at = at
        self.digest = digest
        self.header = header
        self._group = next_group
        self._record = next_record
        self._size = device_size
        self._on_fetched = on_fetched
        self._fd = -1
        self._published = 0.0
        self._lock = threading.Lock()
        self._publishing = threading.Lock()

    # ---- peer.fetch.LogSink ----

    def start(self) -> Start:
        if self.header is not None:
            self._open()
        return self.where()

    def where(self) -> Start:
        """Where a stream would begin now."""
        if self.header is None:
            return Start(self.at.nr, self.at.producer, 0)
        return Start(self.at.nr, self.at.producer, self.at.pos, self.header.log_id.hex(), self.digest)

    def begin(self, start: Start, header: bytes) -> None:
        found = FileHeader.parse(header)
        found.check(self.env.uuid, self.env.resource, start.nr, start.producer)
        self._create(found)

    def feed(self, nr: int, producer: str, pos: int, data: bytes | memoryview) -> Fed:
        assert self.header is not None
        if (nr, producer, pos) != (self.at.nr, self.at.producer, self.at.pos):
            raise MarsError(f"log bytes of {nr},{producer},{pos} came while the copy ends at {self.at}")
        group, number = self._numbers(data)
        checked = reader.check_buffer(data, self.header, pos, self.digest, group, number, self._size)
        if checked.state == "bad":
            raise DamagedError(
                f"{self.header.name}: what came from the peer is not a valid log, {checked.detail}",
                "if this repeats, look at the peer's log and memory: marsadm log-rotate there, or invalidate here",
            )
        if checked.used:
            self._append(memoryview(data)[: checked.used], pos)
            self._group, self._record, self._size = checked.next_group, checked.next_record, checked.device_size
            self._move(LogPos(nr, producer, checked.pos), checked.digest)
        return Fed(checked.pos, max(checked.need, BLOCK))

    def _numbers(self, data: bytes | memoryview) -> tuple[int, int]:
        """Numbers of the next group and record. Not known after a start at the very end of the log: then those that the
        next group says itself, which is believed because its header continues the chain."""
        if self._group is not None:
            return self._group, self._record
        if len(data) < BLOCK:
            return 0, 0  # too little to be looked at
        return record.group_numbers(data)

    def next(self, nr: int, producer: str, end: int, header: bytes) -> None:
        found = FileHeader.parse(header)
        found.check(self.env.uuid, self.env.resource, nr, producer)
        if found.pred != self.at or found.pred_digest != self.digest:
            raise DamagedError(
                f"{found.name} follows {found.pred}, but our history ends at {self.at}", "split brain: see mars-status"
            )
        if found.gap_id != record.NO_ID:
            raise GapAhead(f"{found.name} stands behind a gap of the log", "it is healed by itself")
        self._publish(force=True)
        self._create(found)

    # ---- inside ----

    def _open(self) -> None:
        if self._fd >= 0:
            return
        assert self.header is not None
        path = os.path.join(self.env.directory, self.header.name)
        self._fd = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
        writer.end_log(self._fd, self.at.pos, self.header.name)

    def _create(self, header: FileHeader) -> None:
        self.close()
        path = os.path.join(self.env.directory, header.name)
        if os.path.lexists(path):
            self._reuse(path, header)
        else:
            os.close(writer.create_log(self.env.directory, header))
        self._group = self._record = 0
        self._size = header.device_size
        self._fd = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
        self._move(header.start, header.digest0, header)

    def _reuse(self, path: str, header: FileHeader) -> None:
        """The file is there from an earlier try: fine if it is the same log; then it starts again from its
        beginning."""
        with reader.open_log(path, self.env.uuid, self.env.resource) as log:
            if log.header.log_id != header.log_id:
                raise DamagedError(f"{path} is another log of the same name", "split brain: see mars-status")
        fd = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            writer.end_log(fd, 0, path)
        finally:
            os.close(fd)

    def _append(self, data: memoryview, pos: int) -> None:
        done = 0
        while done < len(data):
            done += os.pwrite(self._fd, data[done:], BLOCK + pos + done)
        durable.overwrite(self._fd, b"", 0, str(self.at.log))

    def _move(self, at: LogPos, digest: str, header: FileHeader | None = None) -> None:
        with self._lock:
            self.at, self.digest, self.header = at, digest, header or self.header
        self._publish(force=header is not None)
        self._on_fetched(at, digest)

    def _publish(self, force: bool = False, wait: bool = True) -> bool:
        """The version link; not for every feed. One at a time, so that an older one never comes after a newer one; the
        loop must not wait for that, because the others wait for the loop. True when it says what is here now."""
        now = time.monotonic()
        if not force and now - self._published < VERSION_INTERVAL_S:
            return False
        if not self._publishing.acquire(blocking=wait):
            return False
        try:
            with self._lock:
                at, digest, header = self.at, self.digest, self.header
            self._published = now
            if header is not None:
                self.env.facts.version(at, digest, point_before(header))
            return True
        finally:
            self._publishing.release()

    @property
    def point(self) -> Point:
        """Where the verified history ends, with the digest there (zeros: nothing of that log is here yet)."""
        with self._lock:
            return Point(self.digest, self.at)

    def publish(self, wait: bool = True) -> bool:
        """The version link as it is now. On the loop `wait` must be False: False then means that somebody is just
        publishing, perhaps something older."""
        return self._publish(force=True, wait=wait)

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def from_recovered(env: Env, logs: list, on_fetched: Callable[[LogPos, str], None]) -> LogCopy:
    """The copy whose end recovery found (`volume.recovery`)."""
    last = logs[-1]
    scan = last.scan
    group: int | None = scan.next_group if scan.groups or not last.start else None
    rec, size = scan.next_record, scan.device_size
    return LogCopy(
        env, last.position, last.digest, last.header, group, rec, size or last.header.device_size, on_fetched
    )


def nothing_yet(env: Env, at: LogPos, on_fetched: Callable[[LogPos, str], None]) -> LogCopy:
    """Nothing fetched: begin with the log of `at` (its POS 0)."""
    return LogCopy(env, LogPos(at.nr, at.producer, 0), record.NO_DIGEST, None, 0, 0, env.device_size, on_fetched)
