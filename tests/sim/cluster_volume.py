"""The volume of a primary in `cluster_world`, and what all logs of that world hold (the oracle).

Played: how groups get into the newest log (no threads, no ring; each write is a group, or a part of one). Real:
everything around it (`volume.primary.Primary`, `daemon.producer.Producer`): recovery, the next log, rotation, the end,
write-back by the window engine.

The oracle knows each log by its random id: which point it follows, and what each of its groups writes. A point of any
history is found by its chain digest. What a host's disk must hold at a point follows from that alone.
"""
from __future__ import annotations

import os
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

from marsx._ext import marsreplay, marssum
from marsx.base.position import LogPos
from marsx.daemon.producer import Producer
from marsx.log.record import BLOCK, GROUP_FIELDS, GROUP_MAGIC, NO_DIGEST, RECORD_FIELDS, TABLE_OFFSET, WRITE, FileHeader
from marsx.volume import recovery
from marsx.volume.primary import Primary
from marsx.volume.replay import apply_windows

BLOCKS = 8
SIZE = BLOCKS * BLOCK
WINDOWS: list[marsreplay.Window] = []  # to be used again: to make one takes longer than a whole history
Image = tuple[int, ...]
Point = tuple[bytes, int]  # (log id, POS)


@dataclass
class LogTruth:
    """What one log holds: `groups` are (start, end, block, value); `pred` is the point it follows."""

    header: FileHeader
    pred: Point | None
    groups: list[tuple[int, int, int, int]] = field(default_factory=list)
    images: dict[int, Image] = field(default_factory=dict)


class Truth:
    """See the module."""

    def __init__(self) -> None:
        self.logs: dict[bytes, LogTruth] = {}
        self.points: dict[str, Point] = {}
        self.values = 0

    def begin(self, header: FileHeader) -> None:
        """A log begins; its predecessor's end must be a point that was."""
        pred = None
        if header.pred is not None:
            assert header.pred_digest in self.points, f"{header.name} follows a point that never was"
            pred = self.points[header.pred_digest]
            old = self.logs[pred[0]].header
            assert (old.nr, old.producer, pred[1]) == (header.pred.nr, header.pred.producer, header.pred.pos)
        self.logs[header.log_id] = LogTruth(header, pred)
        self.points[header.digest0] = header.log_id, 0

    def invent(self, header: FileHeader, disk: Image) -> None:
        """The log behind a disk position whose digest nobody knows: of that log nothing is proved but this disk."""
        if header.pred is None or header.pred_digest in self.points:
            return
        past = replace(header, nr=header.pred.nr, producer=header.pred.producer, log_id=header.log_id[::-1])
        pred = next((one.pred for one in self.logs.values() if (one.header.nr, one.header.producer) ==
                     (past.nr, past.producer)), None)
        self.logs[past.log_id] = LogTruth(past, pred, [(0, header.pred.pos, 0, disk[0])], {header.pred.pos: disk})
        self.points[header.pred_digest] = past.log_id, header.pred.pos

    def canonical(self, point: Point | None) -> Point | None:
        """Without empty logs on top (rule 7)."""
        while point is not None and point[1] == 0:
            point = self.logs[point[0]].pred
        return point

    def path(self, point: Point | None) -> list[Point]:
        """The points where the logs of this history end, its own first."""
        found, point = [], self.canonical(point)
        while point is not None:
            found.append(point)
            point = self.canonical(self.logs[point[0]].pred)
        return found

    def holds(self, point: Point | None, other: Point | None) -> bool:
        """Does the history up to `point` go through `other`?"""
        other = self.canonical(other)
        return other is None or any(log == other[0] and pos >= other[1] for log, pos in self.path(point))

    def parted(self, a: Point | None, b: Point | None) -> bool:
        """Is neither a part of the other?"""
        return not self.holds(a, b) and not self.holds(b, a)

    def image(self, point: Point | None) -> Image:
        """What a disk holds at this point."""
        if point is None:
            return (0,) * BLOCKS
        log = self.logs[point[0]]
        if point[1] not in log.images:
            blocks = list(self.image(log.pred))
            for _, end, block, value in log.groups:
                if end <= point[1]:
                    blocks[block] = value
            log.images[point[1]] = tuple(blocks)
        return log.images[point[1]]


def group_bytes(header: FileHeader, number: int, pos: int, digest: str, durable: int, block: int, value: int) -> bytes:
    """A group of one write of one block."""
    payload = struct.pack("<Q", value) * (BLOCK // 8)
    out = bytearray(BLOCK)
    GROUP_FIELDS.pack_into(out, 0, GROUP_MAGIC, 1, 1, 0, header.log_id, header.nr, number, pos, 2 * BLOCK,
                           bytes.fromhex(digest), durable, header.lamport_ns, header.real_ns, number, 1, 0)
    RECORD_FIELDS.pack_into(out, TABLE_OFFSET, WRITE, 0, 0, marssum.crc32c(payload), block * BLOCK, BLOCK, value, BLOCK,
                            0)
    struct.pack_into("<I", out, 12, marssum.crc32c(bytes(out)))
    return bytes(out) + payload


@contextmanager
def window() -> Iterator[marsreplay.Window]:
    """A window for a while."""
    one = WINDOWS.pop() if WINDOWS else marsreplay.Window(1 << 20)
    yield one
    WINDOWS.append(one)


class Volume:
    """Stands in for `marsshadow.Volume`: the newest log is appended to here; older ones are only read."""

    def __init__(self, truth: Truth, size: int) -> None:
        self.truth, self.device_size = truth, size
        self.allocate_step = self.fill_ahead = self.flush_ns = 0
        self.state: dict[str, Any] = {"failed": 0, "fail_where": 0, "stalled_ns": 0, "appended": 0, "in_flight": 0,
                                      "durable": 0, "writeback_rest": 0, "direct": 0}
        self.counters = {"writes": 0}
        self.moved: Callable[[], None] = lambda: None
        self.header: FileHeader | None = None
        self.fd = -1
        self.pos = self.durable = self.number = 0
        self.digest = self.durable_digest = NO_DIGEST

    def start(self, fd: int, header: bytes, allocated: int) -> None:
        """Append to this log from now on."""
        self.header, self.fd = FileHeader.parse(header), fd
        self.pos = self.durable = self.number = 0
        self.digest = self.durable_digest = self.header.digest0
        self.state["appended"] = 0
        os.ftruncate(fd, BLOCK)

    switch = start

    def set_lamport(self, stamp: int) -> None:
        """Not needed."""

    def thaw(self) -> None:
        """Nothing was frozen."""

    def request_stop(self) -> None:
        """No threads."""

    def write(self, block: int) -> None:
        """One group; acknowledged when this returns."""
        assert self.header is not None
        self.truth.values += 1
        value = self.truth.values
        data = group_bytes(self.header, self.number, self.pos, self.digest, self.durable, block, value)
        buffered = os.open(f"/proc/self/fd/{self.fd}", os.O_WRONLY)
        os.pwrite(buffered, data, BLOCK + self.pos)
        os.close(buffered)
        self.truth.logs[self.header.log_id].groups.append((self.pos, self.pos + len(data), block, value))
        self.pos, self.number = self.pos + len(data), self.number + 1
        self.digest = marssum.xxh3_128(data[:BLOCK]).hex()
        self.truth.points[self.digest] = self.header.log_id, self.pos
        self.state["appended"] = self.pos
        self.counters["writes"] += 1

    def flush(self) -> None:
        """What was written is durable."""
        if self.durable < self.pos:
            self.durable, self.durable_digest = self.pos, self.digest
            self.moved()

    def freeze(self) -> tuple[int, bytes]:
        """The log ends here."""
        self.flush()
        return self.pos, bytes.fromhex(self.digest)

    def durable_point(self) -> tuple[int, int, int, bytes]:
        """As marslog has it."""
        assert self.header is not None
        return self.durable, self.header.nr, self.durable, bytes.fromhex(self.durable_digest)


class SimPrimary(Primary):
    """The real one over a played volume; write-back is driven by `write_back`."""

    truth: Truth
    _todo: list[tuple[FileHeader, int, int, str]]

    def _build(self, logs: list[recovery.Recovered], at: LogPos) -> bool:
        self._fds.clear()
        self.volume = Volume(self.truth, self.env.device_size)  # type: ignore[assignment]
        self._todo = []
        for log in logs:
            self._fds[log.header.nr], self._headers[log.header.nr] = log.fd, log.header
            if log.end > log.start:
                self._todo.append((log.header, log.start, log.end, log.start_digest))
        return True

    def _start_log(self, nr: int, pred: LogPos | None, pred_digest: str, *, fresh: bool) -> None:
        played = self.volume
        super()._start_log(nr, pred, pred_digest, fresh=fresh)
        assert self.header is not None and played is not None
        self.truth.begin(self.header)
        self._todo.append((self.header, 0, 0, self.header.digest0))

    def write_back(self) -> bool:
        """The oldest log that is not on the disk, as far as it is durable; False when nothing is left."""
        played: Any = self.volume
        while self._todo:
            header, start, end, digest = self._todo[0]
            newest = header is self.header
            end = played.durable if newest else end or self._end_of(header)
            if end > start:
                cursor = marsreplay.Cursor(header.pack(), start, bytes.fromhex(digest))
                with window() as one:
                    apply_windows(self.env, one, self._fds[header.nr], header, cursor, end, self.disk_fd)
                self._todo[0] = header, end, 0 if newest else end, cursor.digest.hex()
                return True
            if newest:
                return False
            self._todo.pop(0)
        return False

    def _end_of(self, header: FileHeader) -> int:
        return self.truth.logs[header.log_id].groups[-1][1] if self.truth.logs[header.log_id].groups else 0

    def drain(self, timeout: float) -> bool:
        while self.write_back():
            pass
        return True


class SimProducer(Producer):
    """The real one; the block device is played: it may be in use."""

    def __init__(self, given: Any) -> None:
        super().__init__(given)
        self.primary = SimPrimary(given.env, given.disk_fd, self.event_fd)
        self.primary.truth = given.site.world.truth

    async def _serve_device(self, kept: bool) -> None:
        self.site.world.became_primary(self.site.sim)  # type: ignore[attr-defined]
        volume: Any = self.primary.volume
        volume.moved = lambda: self.site.world.flushed_more(self.site.sim, volume)  # type: ignore[attr-defined]
        self.device, self.size = True, self.env.device_size

    async def take_device_away(self) -> list[str]:
        if self.device and self.site.sim.in_use:  # type: ignore[attr-defined]
            return ["an application"]
        self.device = False
        return []
