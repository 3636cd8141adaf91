"""What must stand on a data device at which nobody but MARS writes (manual 8.6): two witnesses, looked at when a device
is attached.

    samples      of the disk itself, taken when it was let go cleanly: first and last MiB, where file systems keep their
                 superblocks, what was written last, and pieces anywhere. They hold until the next attach, whatever
                 happens to /mars
    last writes  what the log says was brought to the disk just before the disk position. They hold after a crash too

Invariants (no false alarm ever):
    of the last writes only those count that no newer record before the position covers, and none that a window covers
        which may be on the disk in part (LEN of the replay link, rule 12); what lies behind that is not on the disk
    a gap ends the search: what went past the log is in no record (rule 27); so does everything that is not understood
    who asks knows that the replica is consistent: else a sync may have written newer bytes
    a piece that cannot be read, on the disk or in the log, says nothing
"""
from __future__ import annotations

import bisect
import json
import mmap
import os
import random
from collections.abc import Iterator
from dataclasses import dataclass

from marsx._ext import marssum
from marsx.base import disk
from marsx.base.errors import DamagedError, MarsError
from marsx.base.position import LogPos
from marsx.log import reader, record
from marsx.log.record import BLOCK, DISCARD, GROUP_FIELDS, GROUP_MAGIC, NO_ID, PAYLOAD_ALIGN, RECORD_FIELDS, WRITE, ZERO
from marsx.volume import gap
from marsx.volume.env import Env

EDGE, EDGE_PIECE = 1 << 20, 256 << 10
SCATTERED, RECENT = 32, 128         # pieces anywhere; pieces of what was written last
LOG_BYTES, GROUPS = 8 << 20, 64     # of log that is read for the last writes
_BACKWARDS = 64 * BLOCK
_QUIET = frozenset({record.MARK, record.BARRIER})


@dataclass(frozen=True)
class Known:
    """What stands at `offset` of the device."""

    offset: int
    data: bytes


@dataclass(frozen=True)
class Samples:
    """Of a disk that was let go at position `at` by the membership `member`: (offset, length, XXH3-128 in hex)."""

    member: str
    at: str
    pieces: tuple[tuple[int, int, str], ...]

    def pack(self) -> bytes:
        """As a file."""
        return json.dumps({"member": self.member, "at": self.at, "pieces": self.pieces}).encode()

    @classmethod
    def parse(cls, raw: bytes) -> Samples:
        """Inverse of pack; DamagedError for anything else."""
        try:
            found = json.loads(raw)
            pieces = tuple((int(offset), int(length), str(digest)) for offset, length, digest in found["pieces"])
            if all(offset >= 0 and 0 < length <= EDGE for offset, length, _ in pieces):
                return cls(str(found["member"]), str(found["at"]), pieces)
        except (ValueError, KeyError, TypeError, RecursionError):
            pass
        raise DamagedError("no samples of a disk")


def take(fd: int, size: int, recent: list[Known], seed: int | None = None) -> tuple[tuple[int, int, str], ...]:
    """Pieces of a disk of `size` bytes that nobody writes to; flushed first, so that a power cut changes nothing."""
    disk.flush(fd)
    found = {}
    last = {(one.offset, len(one.data)) for one in recent}
    for offset, length in sorted({*_places(size, random.Random(seed)), *last}):
        data = _read(fd, offset, length)
        if data is not None:
            found[offset, length] = _digest(data)
    return tuple((offset, length, digest) for (offset, length), digest in found.items())


def _places(size: int, chance: random.Random) -> Iterator[tuple[int, int]]:
    for edge, end in ((0, min(size, EDGE)), (max(0, size - EDGE) // BLOCK * BLOCK, size)):
        for offset in range(edge, end, EDGE_PIECE):
            yield offset, min(EDGE_PIECE, size - offset)
    for _ in range(SCATTERED):
        offset = chance.randrange(max(1, size // BLOCK)) * BLOCK
        yield offset, min(BLOCK, size - offset)


def changed(fd: int, pieces: tuple[tuple[int, int, str], ...]) -> list[int]:
    """Offsets of the pieces that are not as they were."""
    found = []
    for offset, length, digest in pieces:
        data = _read(fd, offset, length)
        if data is not None and _digest(data) != digest:
            found.append(offset)
    return found


def contradicted(fd: int, known: list[Known]) -> list[int]:
    """Offsets at which the disk does not hold what it must."""
    found = []
    for one in known:
        data = _read(fd, one.offset, len(one.data))
        if data is not None and data != one.data:
            found.append(one.offset)
    return found


def _digest(data: bytes) -> str:
    return marssum.xxh3_128(data).hex()


def _read(fd: int, offset: int, length: int) -> bytes | None:
    """Bytes of a file that may be O_DIRECT; None: it does not give them, or ends before."""
    start = offset // BLOCK * BLOCK
    with mmap.mmap(-1, -(-(offset + length - start) // BLOCK) * BLOCK) as page:
        try:
            got = os.preadv(fd, [page], start)
        except OSError:
            return None
        return page[offset - start:offset - start + length] if got >= offset - start + length else None


# ---- the last writes ----

class Covered:
    """Ranges that count no more."""

    def __init__(self) -> None:
        self._starts: list[int] = []
        self._ends: list[int] = []

    def free(self, start: int, end: int) -> list[tuple[int, int]]:
        """What of [start, end) is not covered yet."""
        found, i = [], max(0, bisect.bisect_right(self._starts, start) - 1)
        while start < end:
            while i < len(self._ends) and self._ends[i] <= start:
                i += 1
            if i == len(self._ends) or self._starts[i] >= end:
                found.append((start, end))
                break
            if self._starts[i] > start:
                found.append((start, self._starts[i]))
            start = self._ends[i]
        return found

    def add(self, start: int, end: int) -> None:
        """[start, end) counts no more."""
        low, high = bisect.bisect_left(self._ends, start), bisect.bisect_right(self._starts, end)
        if low < high:
            start, end = min(start, self._starts[low]), max(end, self._ends[high - 1])
        self._starts[low:high], self._ends[low:high] = [start], [end]


def last_writes(env: Env, at: LogPos, length: int) -> list[Known]:
    """What the disk at position `at`, of which `length` bytes of log behind may be there in part, must hold. [] where
    that is not known. Blocks."""
    try:
        if any(header.nr > at.nr for header in gap.headers(env.directory, env.uuid, env.resource)):
            return []
        with _open(env, at) as log:
            if at.pos:
                return _known(log, at, log, at.pos, length)
            header = log.header
            if header.pred is None or header.gap_id != NO_ID:
                return []
            with _open(env, header.pred) as before:
                return _known(log, at, before, header.pred.pos, length)
    except (MarsError, OSError):
        return []


def _open(env: Env, at: LogPos) -> reader.OpenLog:
    return reader.open_log(os.path.join(env.directory, at.log), env.uuid, env.resource)


def _known(log: reader.OpenLog, at: LogPos, before: reader.OpenLog, end: int, length: int) -> list[Known]:
    """`before`, `end`: the log that leads to `at`, and where."""
    digest = reader.digest_behind(log.fd, log.header, at.pos)
    wanted = digest if before is log else log.header.pred_digest
    covered = None if digest is None else _dirty(log, at.pos, digest, length)
    if covered is None:
        return []
    found: list[Known] = []
    for block, start in _groups_before(before, end, wanted or ""):
        if not _take_group(before, block, start, covered, found):
            break
    return found[:RECENT]


def _dirty(log: reader.OpenLog, pos: int, digest: str, length: int) -> Covered | None:
    """What a window behind `pos` may have changed. None: that is not known."""
    covered = Covered()
    if length:
        result = reader.scan(log.fd, log.header, pos, digest, pos + length, group=None if pos else 0,
                             collect=reader.COLLECT_RECORDS, look=0)
        if result.end != pos + length:
            return None
        for _, (kind, _, _, _, offset, size, *_) in result.iter_records():
            if kind not in _QUIET:
                covered.add(offset, offset + size)
    return covered


def _groups_before(log: reader.OpenLog, end: int, digest: str) -> Iterator[tuple[bytes, int]]:
    """(header block, POS) of the groups that end at `end`, newest first, each proved by the digest behind it."""
    low = max(0, end - LOG_BYTES)
    for _ in range(GROUPS):
        found = _group_that_ends_at(log, end, low)
        if found is None or _digest(found[0]) != digest:
            return
        yield found
        end = found[1]
        digest = record.group_digest_before(found[0], log.header, end) or ""


def _group_that_ends_at(log: reader.OpenLog, end: int, low: int) -> tuple[bytes, int] | None:
    high = end
    while high > low:
        start = max(low, high - _BACKWARDS)
        data = os.pread(log.fd, high - start, BLOCK + start)
        for at in range(len(data) // BLOCK * BLOCK - BLOCK, -1, -BLOCK):
            block = data[at:at + BLOCK]
            if block[:8] == GROUP_MAGIC and record.group_digest_after(block, log.header, start + at, end) is not None:
                return block, start + at
        high = start
    return None


def _take_group(log: reader.OpenLog, block: bytes, start: int, covered: Covered, found: list[Known]) -> bool:
    """The records of a group, newest first. False: that is enough, or something is not understood."""
    records, payload = [], BLOCK + start + BLOCK
    for number in range(GROUP_FIELDS.unpack_from(block)[14]):
        one = RECORD_FIELDS.unpack_from(block, record.TABLE_OFFSET + number * RECORD_FIELDS.size)
        records.append((one, payload))
        payload += -(-one[7] // PAYLOAD_ALIGN) * PAYLOAD_ALIGN
    for (kind, _, codec, crc, offset, length, _, stored, _), place in reversed(records):
        if kind in _QUIET:
            continue
        if kind not in (WRITE, DISCARD, ZERO) or codec:
            return False
        data = os.pread(log.fd, stored, place) if kind == WRITE else b""
        sound = kind != WRITE or (len(data) == length and marssum.crc32c(data) == crc)
        for begin, end in covered.free(offset, offset + length) if sound else ():
            size = min(BLOCK, end - begin)
            found.append(Known(begin, data[begin - offset:begin - offset + size] if kind == WRITE else bytes(size)))
        covered.add(offset, offset + length)
        if len(found) >= RECENT:
            return False
    return True
