"""Plain-Python twin of the log format: a writer and a reader written from the page in marsx/log/record.py.

It shares no code with the product: own CRC table, own offsets, own order of checks. XXH3-128 comes from tests/ref/sums.
The writer can also lie (`lie=` on a group), to make sound headers with impossible contents.
"""
from __future__ import annotations

import functools
import re
import struct
from dataclasses import dataclass, field

from tests.ref import sums

# Blocks come back again and again in the tests, and the twin is slow.
xxh3_128 = functools.lru_cache(4096)(sums.xxh3_128)

BLOCK = 4096
KNOWN_TYPES = {1, 2, 3, 4, 5, 6, 7}
RANGE_TYPES = {1, 2, 3, 7}


def _make_crc_table() -> list[int]:
    table = []
    for byte in range(256):
        for _ in range(8):
            byte = byte >> 1 ^ (0x82F63B78 if byte & 1 else 0)
        table.append(byte)
    return table


_CRC = _make_crc_table()


@functools.lru_cache(4096)
def crc32c(data: bytes) -> int:
    """CRC-32C, one byte at a time."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc = crc >> 8 ^ _CRC[(crc ^ byte) & 0xFF]
    return crc ^ 0xFFFFFFFF


def _u(block: bytes, at: int, size: int) -> int:
    return int.from_bytes(block[at:at + size], "little")


def block_crc(block: bytes) -> int:
    """CRC of a header block with its CRC field as zero."""
    return crc32c(block[:12] + bytes(4) + block[16:4096])


def seal(block: bytearray) -> bytes:
    """The block with its CRC."""
    block[12:16] = block_crc(bytes(block)).to_bytes(4, "little")
    return bytes(block)


def round_up(n: int, to: int) -> int:
    """n rounded up to a multiple."""
    return -(-n // to) * to


@dataclass
class Record:
    """A record to write."""

    type: int
    offset: int = 0
    length: int = 0
    payload: bytes = b""
    flags: int = 0
    codec: int = 0
    unique: int = 0
    crc: int | None = None


@dataclass
class Log:
    """A log being written, with the positions and digests after each group."""

    log_id: bytes = b"i" * 16
    nr: int = 1
    producer: str = "alpha"
    resource: str = "res"
    uuid: str = "cluster"
    size: int = 1 << 30
    pred: tuple[int, int, bytes, str] = (0, 0, bytes(16), "")
    data: bytearray = field(default_factory=bytearray)
    ends: list[int] = field(default_factory=lambda: [0])
    digests: list[bytes] = field(default_factory=list)
    records: int = 0

    def __post_init__(self) -> None:
        block = bytearray(BLOCK)
        block[0:12] = b"MARSXLOG" + b"\x01\x00\x01\x00"
        block[24:32] = self.nr.to_bytes(8, "little")
        block[32:48] = self.log_id
        block[48:56] = self.size.to_bytes(8, "little")
        block[72:76] = (512).to_bytes(4, "little")
        block[80:96] = struct.pack("<QQ", *self.pred[:2])
        block[96:112] = self.pred[2]
        for at, text in ((128, self.producer), (192, self.pred[3]), (256, self.resource), (320, self.uuid)):
            block[at:at + len(text)] = text.encode()
        self.header = seal(block)
        self.data += self.header
        self.digests.append(xxh3_128(self.header))

    @property
    def end(self) -> int:
        """Position behind the last group."""
        return self.ends[-1]

    def add(self, records: list[Record], durable: int = 0, lie: dict[int, bytes] | None = None) -> bytes:
        """Append a group; `lie` maps header offsets to bytes that replace the true ones before the CRC is made."""
        payloads = b"".join(r.payload + bytes(-len(r.payload) % 512) for r in records)
        payloads += bytes(-len(payloads) % BLOCK)
        block = bytearray(BLOCK)
        block[0:12] = b"MARSXGRP" + b"\x01\x00\x01\x00"
        block[16:32] = self.log_id
        block[32:64] = struct.pack("<QQQQ", self.nr, len(self.ends) - 1, self.end, BLOCK + len(payloads))
        block[64:80] = self.digests[-1]
        block[80:120] = struct.pack("<QQQQII", durable, 1000 + self.end, 2000 + self.end, self.records, len(records), 0)
        for i, r in enumerate(records):
            crc = r.crc if r.crc is not None else crc32c(r.payload) if r.payload else 0
            block[192 + 40 * i:232 + 40 * i] = struct.pack(
                "<BBHIQQQII", r.type, r.flags, r.codec, crc, r.offset, r.length, r.unique, len(r.payload), 0)
        for at, new in (lie or {}).items():
            block[at:at + len(new)] = new
        group = seal(block) + payloads
        self.data += group
        self.ends.append(self.end + len(group))
        self.digests.append(xxh3_128(group[:BLOCK]))
        self.records += len(records)
        return group


def _table_problem(block: bytes, n: int, size: int) -> tuple[str, int]:
    """(code, device size behind the table)."""
    changes = 0
    for i in range(n):
        kind, flags, codec, crc, offset, length, _, stored, _ = struct.unpack_from("<BBHIQQQII", block, 192 + 40 * i)
        if kind == 0 or (not stored and crc):
            return "table", size
        if kind not in KNOWN_TYPES:
            if flags & 1:
                return "unknown", size
            changes += 1
            continue
        if codec:
            return "unknown", size
        if kind in (4, 6):
            if offset or length or (kind == 6 and stored):
                return "table", size
            continue
        changes += 1
        if kind == 5:
            if offset or stored or not length:
                return "table", size
            size = length
            continue
        if length == 0 or stored != (length if kind in (1, 7) else 0):
            return "table", size
        if offset + length > size:
            return "range", size
    return ("ok" if changes else "table"), size


@dataclass
class Walk:
    """What a reader may believe. `kept`: (type, offset, length, payload) of the records that change the device."""

    end: int
    digest: bytes
    groups: int
    records: int
    code: str
    reason: str
    durable: int
    size: int
    kept: list[tuple[int, int, int, bytes]] = field(default_factory=list)


@dataclass
class Table:
    """A record table whose header is sound and expected."""

    length: int
    n: int
    size: int
    stored: list[int]


def _header_code(block: bytes, log: dict, walk: Walk) -> tuple[str, Table | None]:
    """Header and table of the group at walk.end, by the order of the page."""
    if len(block) < BLOCK:
        return "short", None
    if block[:8] != b"MARSXGRP":
        return ("magic" if any(block) else "zero"), None
    if block_crc(block) != _u(block, 12, 4):
        return "crc", None
    if block[16:32] != log["id"]:
        return "foreign", None
    if block[8:12] != b"\x01\x00\x01\x00":
        return "version", None
    numbers = (_u(block, 32, 8), _u(block, 40, 8), _u(block, 48, 8), _u(block, 104, 8), block[64:80])
    if numbers != (log["nr"], log["group"] + walk.groups, walk.end, log["record"] + walk.records, walk.digest):
        return "chain", None
    if _u(block, 116, 4):
        return "unknown", None
    if _u(block, 80, 8) > walk.end:
        return "durable", None
    n, length = _u(block, 112, 4), _u(block, 56, 8)
    if not 1 <= n <= 97 or _u(block, 104, 8) + n >= 1 << 64:
        return "table", None
    stored = [_u(block, 192 + 40 * i + 32, 4) for i in range(n)]
    if length > BLOCK + (64 << 20) or length != BLOCK + round_up(sum(round_up(s, 512) for s in stored), BLOCK):
        return "length", None
    code, size = _table_problem(block, n, walk.size)
    return code, Table(length, n, size, stored) if code == "ok" else None


def _payload_code(group: bytes, table: Table) -> str:
    if len(group) < table.length:
        return "short"
    at = BLOCK
    for i, size in enumerate(table.stored):
        if size and crc32c(group[at:at + size]) != _u(group, 192 + 40 * i + 4, 4):
            return "payload"
        if any(group[at + size:at + round_up(size, 512)]):
            return "padding"
        at += round_up(size, 512)
    return "padding" if any(group[at:]) else "ok"


def _changes(group: bytes, table: Table) -> list[tuple[int, int, int, bytes]]:
    """What the records of an accepted group do to the device."""
    found, at = [], BLOCK
    for i, size in enumerate(table.stored):
        kind, _, _, _, offset, length, *_ = struct.unpack_from("<BBHIQQQII", group, 192 + 40 * i)
        if kind in (1, 2, 3):
            found.append((kind, offset, length, group[at:at + size]))
        at += round_up(size, 512)
    return found


REASON = {"zero": "end", "foreign": "foreign", "chain": "gap", "version": "unknown", "unknown": "unknown",
          "length": "corrupt", "table": "corrupt", "range": "corrupt", "durable": "corrupt"}


def _proof_beyond(data: bytes, at: int, log: dict, end: int) -> bool:
    """Rule 5: a later sound header of this log that knew more than `end` to be durable."""
    for later in range(at + BLOCK, len(data) - BLOCK + 1, BLOCK):
        block = data[later:later + BLOCK]
        if (block[:8] == b"MARSXGRP" and block[16:32] == log["id"] and _u(block, 32, 8) == log["nr"]
                and _u(block, 48, 8) == later - BLOCK and end < _u(block, 80, 8) <= later - BLOCK
                and block_crc(block) == _u(block, 12, 4)):
            return True
    return False


def walk(data: bytes, known_durable: int = 0, start: int = 0, digest: bytes = b"", limit: int | None = None,
         size: int = 0, proof: bool = True) -> Walk:
    """Read a log file whose header parse_header() accepts, from POS `start` (with the digest there) at most to `limit`.
    proof: groups behind a bad one may prove that it was durable (not so in a copy of another host's log).

    Behind POS 0 the numbers are those of the first group: only its chain digest commits to them."""
    log = {"id": data[32:48], "nr": _u(data, 24, 8), "group": 0, "record": 0}
    result = Walk(start, digest or xxh3_128(data[:BLOCK]), 0, 0, "", "", 0, size or _u(data, 48, 8))
    if start:
        first = data[BLOCK + start:2 * BLOCK + start]
        log["group"], log["record"] = _u(first, 40, 8), _u(first, 104, 8)
    code = "ok"
    while code == "ok" and (limit is None or result.end < limit):
        at = BLOCK + result.end
        code, table = _header_code(data[at:at + BLOCK], log, result)
        if table is None:
            break
        if limit is not None and table.length > limit - result.end:
            break
        group = data[at:at + table.length]
        code = _payload_code(group, table)
        if code == "ok":
            _accept(result, group, table)
    result.code = code
    result.reason = _reason(data, log, result, known_durable, proof)
    return result


def _accept(result: Walk, group: bytes, table: Table) -> None:
    result.durable = max(result.durable, _u(group, 80, 8))
    result.digest = xxh3_128(group[:BLOCK])
    result.end += table.length
    result.groups += 1
    result.records += table.n
    result.size = table.size
    result.kept += _changes(group, table)


def _reason(data: bytes, log: dict, result: Walk, known_durable: int, proof: bool) -> str:
    """Why the walk ended."""
    if result.code == "ok":
        return "limit"
    at = BLOCK + result.end
    reason = "end" if result.code == "short" and at >= len(data) else REASON.get(result.code, "torn")
    if reason in ("end", "torn", "foreign", "gap") and (
            known_durable > result.end or proof and _proof_beyond(data, at, log, result.end)):
        return "corrupt"
    return reason


def apply(image: bytearray, kept: list[tuple[int, int, int, bytes]]) -> bytearray:
    """What a device holds after these records, one after the other. A range outside of it is an error here."""
    for kind, offset, length, payload in kept:
        if offset + length > len(image):
            raise ValueError("a record outside the device was accepted")
        image[offset:offset + length] = payload if kind == 1 else bytes(length)
    return image


HOST = re.compile(rb"[A-Za-z0-9](?:[A-Za-z0-9_.-]{0,61}[A-Za-z0-9_])?")


@dataclass(frozen=True)
class Head:
    """A file header that may be followed."""

    nr: int
    producer: str
    resource: str
    uuid: str
    size: int
    pred: tuple[int, str, int] | None
    pred_digest: bytes
    block: bytes

    @property
    def name(self) -> str:
        return f"log-{self.nr:09d}-{self.producer}"


def _texts(block: bytes) -> list[bytes] | None:
    """producer, predecessor's producer, resource, uuid; None when one is not padded with zeros or not UTF-8."""
    found = []
    for at, room in ((128, 64), (192, 64), (256, 64), (320, 128)):
        text, nul, rest = block[at:at + room].partition(b"\0")
        if not nul or any(rest):
            return None
        try:
            text.decode("utf-8")
        except UnicodeDecodeError:
            return None
        found.append(text)
    return found


def parse_header(data: bytes) -> Head | None:
    """The file header at the beginning of these bytes, None when it may not be followed."""
    block = data[:BLOCK]
    if len(block) < BLOCK or block[:8] != b"MARSXLOG" or block_crc(block) != _u(block, 12, 4):
        return None
    if block[8:12] != b"\x01\x00\x01\x00" or _u(block, 20, 4):
        return None
    texts = _texts(block)
    if texts is None or not texts[0] or not texts[2] or not texts[3] or not HOST.fullmatch(texts[0]):
        return None
    nr, size, logical = _u(block, 24, 8), _u(block, 48, 8), _u(block, 72, 4)
    if not 1 <= nr < 10**18 or not 1 <= size < 1 << 63 or logical not in (512, 1024, 2048, 4096):
        return None
    if not any(block[32:48]):
        return None
    pred_nr, pred_end, pred = _u(block, 80, 8), _u(block, 88, 8), None
    if pred_nr or pred_end or texts[1]:
        if not 1 <= pred_nr < nr or pred_end >= 1 << 63 or pred_end % BLOCK or not HOST.fullmatch(texts[1]):
            return None
        pred = (pred_nr, texts[1].decode(), pred_end)
    elif any(block[96:112]):
        return None
    return Head(nr, texts[0].decode(), texts[2].decode(), texts[3].decode(), size, pred, block[96:112], block)
