"""The Lamport clock: the time stamps of the symlink tree, in ns since the epoch.

Invariants
    every stamp given out > every stamp given out or seen before, and >= the real time
    stamp given out < the ceiling that is durable in the high-water file (when there is one and it can be written)
    legal stamp: stamp - max(own clock, own high water, clocks of connected peers) <= `max_future`      (rule 25)

The high-water file is the memory that survives a power cut with a clock that comes back in the year 2000: after it the
clock goes on above everything it ever gave out. It is written ahead in steps, so it costs one small write per `STEP_NS`
of running clock; it is overwritten in place, two slots in turn, so it needs no free space and a torn write loses only
itself. Only marsd writes it; other programs read it.

Liveness is no business of this clock (rule 25): stamps may run ahead of time for days.
"""
from __future__ import annotations

import contextlib
import os
import struct
import time
import zlib
from collections.abc import Callable

from marsx.base import durable

STEP_NS = 10 * 1_000_000_000
MAX_FUTURE_NS = 2_592_000 * 1_000_000_000
STAMP_MAX = durable.STAMP_MAX

_SLOT = struct.Struct("<8sQQI")
_MAGIC = b"MARSXLAM"
_SLOT_SIZE = 512


class HighWater:
    """The durable ceiling below which stamps are given out. `limit` is 0 when nothing was ever written."""

    def __init__(self, path: str, writable: bool = False) -> None:
        self._path = path
        self._fd = -1
        self._serial = 0
        self.limit = 0
        if writable:
            if not os.path.lexists(path):
                durable.write_file(path, bytes(2 * _SLOT_SIZE))
            self._fd = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
        self._read()

    @property
    def writable(self) -> bool:
        return self._fd >= 0

    def write(self, limit: int) -> None:
        """Make `limit` durable. OSError if that was not possible: then the old limit still counts."""
        serial = self._serial + 1
        head = _SLOT.pack(_MAGIC, serial, limit, 0)[:-4]
        data = head + struct.pack("<I", zlib.crc32(head))
        durable.overwrite(self._fd, data, serial % 2 * _SLOT_SIZE, self._path)
        self._serial, self.limit = serial, limit

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _read(self) -> None:
        try:
            fd = os.open(self._path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except (FileNotFoundError, NotADirectoryError, PermissionError):
            return
        try:
            raw = os.pread(fd, 2 * _SLOT_SIZE, 0)
        finally:
            os.close(fd)
        for slot in (0, 1):
            part = raw[slot * _SLOT_SIZE:slot * _SLOT_SIZE + _SLOT.size]
            if len(part) < _SLOT.size:
                continue
            magic, serial, limit, crc = _SLOT.unpack(part)
            if magic == _MAGIC and crc == zlib.crc32(part[:-4]) and serial > self._serial and limit <= STAMP_MAX:
                self._serial, self.limit = serial, limit


class Lamport:
    """Stamps for the tree of one host. Not thread safe: it belongs to the control plane's one loop."""

    def __init__(self, clock: Callable[[], int] = time.time_ns, floor: int = 0, *, high_water: HighWater | None = None,
                 max_future: int = MAX_FUTURE_NS) -> None:
        self._clock = clock
        self._file = high_water
        self._last = max(floor, high_water.limit if high_water else 0)
        self._trusted = 0
        self._peers: dict[str, int] = {}
        self._writes = high_water is not None and high_water.writable
        self.max_future = max_future
        self.trouble = ""

    @property
    def high_water(self) -> int:
        """The highest stamp given out or seen, also in earlier lives."""
        return self._last

    def now(self) -> int:
        """A new stamp: above all others, never behind real time."""
        self._last = max(self._last + 1, self._clock())
        self._extend()
        return self._last

    def see(self, stamp: int) -> None:
        """Take note of a stamp that exists somewhere. Whoever reads one calls this, after `legal`."""
        if stamp > self._last:
            self._last = stamp

    def trust(self, ceiling: int) -> None:
        """Another program of this host may have given out stamps up to there. They are legal; those that exist are
        seen when they are read, so the clock need not jump (the ceiling is written ahead: it would run away)."""
        self._trusted = max(self._trusted, ceiling)

    def real(self) -> int:
        """The host's own clock, as it is."""
        return self._clock()

    def legal(self, stamp: int) -> bool:
        """Rule 25: false for a stamp that no healthy clock of this cluster can have made."""
        if not 0 < stamp <= STAMP_MAX:
            return False
        return stamp <= max(self._last, self._trusted) or stamp - self._reference() <= self.max_future

    @property
    def legal_up_to(self) -> int:
        """All stamps from 1 to this one are legal now."""
        return min(STAMP_MAX, max(self._last, self._trusted, self._reference() + self.max_future))

    def peer_clock(self, host: str, real_ns: int | None) -> None:
        """The real time that a connected peer just told (heartbeat); None when its connection ends."""
        if real_ns is None:
            self._peers.pop(host, None)
        elif 0 < real_ns <= STAMP_MAX:
            self._peers[host] = real_ns

    def far_peers(self) -> dict[str, int]:
        """Connected peers -> days by which their clock is ahead of ours, where that is more than `max_future`."""
        own, day = self._clock(), 86_400_000_000_000
        return {host: (real - own) // day for host, real in self._peers.items() if abs(real - own) > self.max_future}

    def clock_problem(self) -> str:
        """Why this host's clock cannot be trusted and it must start no role, or "" (rule 25)."""
        own = self._clock()
        days = self.max_future // 86_400_000_000_000
        if max(self._last, self._trusted, *self._peers.values(), 0) - own > self.max_future:
            return (f"the clock of this host is more than {days} days behind the stamps of the cluster: "
                    "set the clock, then start marsd anew")
        if self._peers and own - max(self._peers.values()) > self.max_future:
            return (f"the clock of this host is more than {days} days ahead of all connected hosts: "
                    "set the clock, then start marsd anew")
        return ""

    def close(self) -> None:
        """Leave the exact high water behind instead of the one written ahead."""
        if self._file is not None and self._writes:
            with contextlib.suppress(OSError):
                self._file.write(self._last + 1)
            self._file.close()
            self._writes = False

    def _reference(self) -> int:
        return max(self._clock(), self._last, self._trusted, *self._peers.values(), 0)

    def _extend(self) -> None:
        """Keep the durable ceiling above the stamps. Without it the clock goes on, and `trouble` says so: stamps
        stay unique as long as the process lives, and the tree still shows the highest of them after a restart."""
        if self._file is None or not self._writes or self._last < self._file.limit:
            return
        try:
            self._file.write(min(self._last + STEP_NS, STAMP_MAX))
            self.trouble = ""
        except OSError as err:
            self.trouble = f"the Lamport high-water mark cannot be written: {err}"
