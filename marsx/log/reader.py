"""Open, check and scan log files. Reads only; the checks themselves are in ext/format.h, the walk in ext/marsscan.pyx.

What it promises: a header is believed only if CRC, cluster, resource, name and features are right; a scan result's
`end` is the end of a valid group whose whole past since the start was verified; a read error is an error, never a tail
(`Unreadable`).
"""
from __future__ import annotations

import mmap
import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass

from marsx._ext import marsscan
from marsx.base.errors import DamagedError, NotFoundError, PreconditionError
from marsx.base.position import LogPos, parse_log_name
from marsx.log.record import (
    BLOCK,
    DISCARD,
    GROUP_FIELDS,
    GROUP_MAGIC,
    MAX_PAYLOAD,
    MAX_RECORDS,
    RECORD_FIELDS,
    TABLE_OFFSET,
    WRITE,
    ZERO,
    FileHeader,
    group_digest_after,
    group_digest_before,
)

COLLECT_NOTHING, COLLECT_UNIQUES, COLLECT_RECORDS = range(3)
_BACKWARDS = 64 * BLOCK
_CHANGES = {WRITE: "write", DISCARD: "discard", ZERO: "zero"}
NORMAL_AFTER_CRASH = frozenset({"end", "torn", "foreign"})

# code of ext/format.h -> what is wrong with the bytes where the scan stopped
CODE_TEXT = {
    "ok": "a group reaches over the limit",
    "zero": "zeros",
    "short": "the file ends",
    "magic": "no group header",
    "crc": "the CRC of the group header is wrong",
    "foreign": "a group of an older log",
    "version": "a group of an unknown format version",
    "chain": "a group of this log that does not continue the chain",
    "length": "a group header with an impossible length",
    "table": "a record table that contradicts itself",
    "range": "record {record} lies outside the device",
    "durable": "a durable position behind the group itself",
    "unknown": "record {record} or a flag must be understood and is not known to this version",
    "payload": "the CRC of payload {record} is wrong",
    "padding": "padding behind payload {record} is not zero",
    "feature": "an unknown incompatible feature",
    "field": "a header field has an impossible value",
}


@dataclass(frozen=True)
class LogEntry:
    """A log file by its name only; nothing of it was read."""

    nr: int
    producer: str
    path: str
    size: int


@dataclass(frozen=True)
class ScanResult:
    """How far a log can be believed, and why no further (`reason`, see the format page)."""

    end: int
    digest: str
    next_group: int
    next_record: int
    groups: int
    records: int
    reason: str
    code: str
    bad_record: int
    beyond: int | None
    durable_hint: int
    lamport_ns: int
    real_ns: int
    device_size: int
    collected: bytes

    @property
    def detail(self) -> str:
        """The reason in words."""
        text = f"at position {self.end}: {CODE_TEXT[self.code].format(record=self.bad_record)}"
        if self.beyond is not None:
            text += f"; the group at {self.beyond} says that {self.durable_hint} was durable"
        return text

    @property
    def uniques(self) -> list[int]:
        """Uniques of the requests in the log, of a scan with COLLECT_UNIQUES (rule 11)."""
        return list(struct.unpack(f"<{len(self.collected) // 8}Q", self.collected))

    def iter_records(self) -> Iterator[tuple[int, tuple[int, ...]]]:
        """(POS of the payload, fields of the record), of a scan with COLLECT_RECORDS."""
        size = 8 + RECORD_FIELDS.size
        for at in range(0, len(self.collected), size):
            yield struct.unpack_from("<Q", self.collected, at)[0], RECORD_FIELDS.unpack_from(self.collected, at + 8)


class Unreadable(OSError):
    """A block of the log file, at `byte`, cannot be read; `result`: the scan as far as it came."""

    def __init__(self, err: OSError, result: ScanResult, byte: int) -> None:
        super().__init__(err.errno, err.strerror)
        self.result = result
        self.byte = byte

    @property
    def text(self) -> str:
        """Where, and why."""
        return f"cannot be read at byte {self.byte}: {self.strerror}"


@dataclass(frozen=True)
class Checked:
    """What `check_buffer` accepted. `state`: "more" = the rest is the beginning of a group; "bad" = it is none."""

    used: int
    pos: int
    digest: str
    next_group: int
    next_record: int
    state: str
    code: str
    bad_record: int
    need: int
    groups: int
    records: int
    durable_hint: int
    lamport_ns: int
    device_size: int

    @property
    def detail(self) -> str:
        """Why `state` is what it is, in words."""
        return f"at position {self.pos}: {CODE_TEXT[self.code].format(record=self.bad_record)}"


class OpenLog:
    """A log file opened for reading, its header checked. Close it, or use it as a context."""

    def __init__(self, path: str, fd: int, header: FileHeader) -> None:
        self.path = path
        self.fd = fd
        self.header = header

    def __enter__(self) -> OpenLog:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Give the descriptor back."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


def list_logs(resource_dir: str) -> list[LogEntry]:
    """All files of a resource directory whose names are those of logs, by number and producer."""
    found = []
    with os.scandir(resource_dir) as entries:
        for entry in entries:
            if not entry.name.startswith("log-") or not entry.is_file(follow_symlinks=False):
                continue
            try:
                nr, producer = parse_log_name(entry.name)
            except DamagedError:
                continue
            found.append(LogEntry(nr, producer, entry.path, entry.stat(follow_symlinks=False).st_size))
    return sorted(found, key=lambda log: (log.nr, log.producer))


def open_log(path: str, uuid: str, resource: str, *, direct: bool = False) -> OpenLog:
    """Open a log for reading. DamagedError when it is not the log that its name says, of this cluster and resource."""
    nr, producer = parse_log_name(os.path.basename(path))
    flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | (os.O_DIRECT if direct else 0)
    try:
        fd = os.open(path, flags)
    except FileNotFoundError:
        raise NotFoundError(f"log {path} is not there", "it may have been deleted; see mars-status --history") from None
    except OSError as err:
        raise PreconditionError(f"log {path} cannot be opened: {err.strerror}") from err
    try:
        header = FileHeader.parse(read_block(fd, 0))
        header.check(uuid, resource, nr, producer)
    except OSError as err:
        os.close(fd)
        raise DamagedError(f"{path}: the header block cannot be read: {err.strerror}",
                           "fetch the log from a peer that has it, or invalidate this replica") from err
    except DamagedError as err:
        os.close(fd)
        raise DamagedError(f"{path}: {err.text}", err.hint) from err
    except BaseException:
        os.close(fd)
        raise
    return OpenLog(path, fd, header)


def read_block(fd: int, offset: int) -> bytes:
    """One block of a file, shorter only at its end; the descriptor may be O_DIRECT."""
    with mmap.mmap(-1, BLOCK) as page:
        got = os.preadv(fd, [page], offset)
        return page[:got]


def scan(
    fd: int,
    header: FileHeader,
    start: int = 0,
    digest: str = "",
    limit: int | None = None,
    *,
    group: int | None = 0,
    record: int = 0,
    known_durable: int = 0,
    device_size: int = 0,
    collect: int = COLLECT_NOTHING,
    look: int | None = None,
) -> ScanResult:
    """Verify the log from POS `start` (with the digest there) on, at most to `limit`; the GIL is free meanwhile.

    group=None when group and record number at `start` are not known. `known_durable`: from a version link or a peer; a
    scan that cannot reach it is corrupt (rule 5). `look`: how far to search for later headers, None = to the end.
    Unreadable when the disk does not give what is to be read.
    """
    try:
        row = marsscan.scan(fd, header.pack(), start, bytes.fromhex(digest), group, record, limit, collect,
                            known_durable, device_size, look)
    except OSError as err:
        raise Unreadable(err, _result(err.row), err.byte) from err  # type: ignore[attr-defined]
    return _result(row)


def _result(row: marsscan.ScanTuple) -> ScanResult:
    end, raw, *rest = row
    return ScanResult(end, raw.hex(), *rest)  # type: ignore[arg-type]  # a row of the extension's own types


def check_buffer(data: bytes | bytearray | memoryview | mmap.mmap, header: FileHeader, pos: int, digest: str,
                 group: int, record: int, device_size: int = 0) -> Checked:
    """Verify raw log bytes that begin at `pos`, as many whole groups as there are (fetch, before it counts them)."""
    used, end, raw, *rest = marsscan.check_buffer(data, header.pack(), pos, bytes.fromhex(digest), group, record,
                                                  device_size)
    return Checked(used, end, raw.hex(), *rest)  # type: ignore[arg-type]


def digest_at(fd: int, header: FileHeader, pos: int, start: int = 0, digest: str = "", *,
              device_size: int = 0) -> str | None:
    """Digest at `pos`, found from an earlier position; None when no valid group ends there."""
    result = scan(fd, header, start, digest, pos, group=None if start else 0, device_size=device_size, look=0)
    return result.digest if result.end == pos else None


def digest_behind(fd: int, header: FileHeader, pos: int) -> str | None:
    """Digest at `pos` as the header of the group that ends there says it; None when no sound one does. Reads backwards,
    so it costs one read where a scan from the beginning costs the whole log; payloads are not looked at."""
    if pos == 0:
        return header.digest0
    low, high = max(0, pos - MAX_PAYLOAD - BLOCK), pos
    with mmap.mmap(-1, _BACKWARDS) as page:
        while high > low:
            start = max(low, high - _BACKWARDS)
            got = os.preadv(fd, [memoryview(page)[:high - start]], BLOCK + start)
            for at in range(got // BLOCK * BLOCK - BLOCK, -1, -BLOCK):
                if page[at:at + 8] != GROUP_MAGIC:
                    continue
                digest = group_digest_after(page[at:at + BLOCK], header, start + at, pos)
                if digest is not None:
                    return digest
            high = start
    return None


def is_empty(log: OpenLog) -> bool:
    """No valid group: an empty log is no history (rule 7)."""
    header = log.header
    first = check_buffer(read_block(log.fd, BLOCK), header, 0, header.digest0, 0, 0)
    if first.used:
        return False
    if first.state == "bad" or first.need == BLOCK:
        return True
    return scan(log.fd, header, limit=first.need, look=0).groups == 0


def position(header: FileHeader, result: ScanResult) -> LogPos:
    """The end of a scan as a position."""
    return LogPos(header.nr, header.producer, result.end)


@dataclass(frozen=True)
class Written:
    """A record of a log: `at` is the end of what lies before its group."""

    log: str
    at: int
    real_ns: int
    what: str
    offset: int
    length: int


def written(path: str, uuid: str, resource: str, start: int = 0) -> Iterator[Written]:
    """What the sound groups of a log from POS `start` on have written, in order."""
    with open_log(path, uuid, resource) as log:
        at, digest = start, digest_behind(log.fd, log.header, start)
        if digest is None:
            raise DamagedError(f"{path}: no group ends at {start}", "see marsadm view")
        while True:
            block = read_block(log.fd, BLOCK + at)
            if len(block) < BLOCK or group_digest_before(block, log.header, at) != digest:
                return
            fields = GROUP_FIELDS.unpack_from(block)
            length, real_ns, count = fields[8], fields[12], fields[14]
            after = group_digest_after(block, log.header, at, at + length)
            if after is None or not 0 < count <= MAX_RECORDS:
                return
            for number in range(count):
                one = RECORD_FIELDS.unpack_from(block, TABLE_OFFSET + number * RECORD_FIELDS.size)
                if one[0] in _CHANGES:
                    yield Written(log.header.name, at, real_ns, _CHANGES[one[0]], one[4], one[5])
            at, digest = at + length, after
