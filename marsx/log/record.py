"""The format of a transaction log. This page is enough to write a reader from; `ext/format.h` is its machine form.

All integers are little endian. BLOCK is 4096. A log `log-NNNNNNNNN-HOST` is one header block, then groups. Positions
(POS) count from behind the header block: file offset = 4096 + POS. A group starts at a multiple of 4096; a position is
always the end of a group, 0 is the empty log.

File header block (bytes not named are zero; texts are UTF-8, padded with NUL, with at least one NUL):

  offset type  field
  0      8s    magic MARSXLOG
  8      u16   format version, 1
  10     u16   header length in blocks, 1
  12     u32   CRC-32C of the 4096 bytes with this field as zero
  16     u32   compatible feature bits: a reader that does not know one reads on
  20     u32   incompatible feature bits: a reader that does not know one stops and names it
  24     u64   log number, from 1
  32     16s   log id: random, never zero, made anew for every log, also when a file is used again; it is a secret
  48     u64   device size in bytes at the beginning of the log
  56     u64   time of creation, Lamport clock, ns
  64     u64   time of creation, real time, ns
  72     u32   logical block size of the device: power of two, 512 to 4096
  76     u32   reserved
  80     u64   predecessor: log number, 0 = this is the first log
  88     u64   predecessor: end POS. The predecessor ends there, whatever stands behind (rule 4)
  96     16s   predecessor: digest at its end
  112    16s   map id of an emergency gap between predecessor and this log; zero = none (rule 27)
  128    64s   producer: the host that writes this log
  192    64s   predecessor's producer
  256    64s   resource
  320    128s  cluster uuid

A file header may be followed when, checked in this order: 4096 bytes are there; magic; CRC; version and header length;
no unknown incompatible bit; all four texts are padded and UTF-8; the number is 1 to 10^18 - 1; the producer is a host
name (letters, digits, "_", "." and "-", at most 63, the first a letter or digit, the last no "." or "-"); resource and
uuid are not empty; the log id is not zero; the device size is 1 to 2^63 - 1; the block size is as above. There is no
predecessor when its number, its end and its producer's name are zero: then its digest is zero too. Else its number is 1
to the own number - 1, its name a host name, its end a multiple of 4096 below 2^63. Reserved bytes are written as zero
and not looked at. The header must also be the one that its file's name says, of this cluster and resource.

The digest at POS 0 is XXH3-128 of this block, so the chain is seeded by log id, names and predecessor (rule 6). Digests
are stored as 16 bytes in canonical (big endian) order and shown as 32 hex digits.

Group: header (192 bytes), record table (40 bytes a record, at most 97), zeros up to 4096; then the payloads in the
order of the table, each at a multiple of 512 from the group's start and padded with zeros to one; then zeros to 4096.

  offset type  field
  0      8s    magic MARSXGRP
  8      u16   format version, 1
  10     u16   header length in blocks, 1
  12     u32   CRC-32C of the header block (4096 bytes, with the table) with this field as zero
  16     16s   log id
  32     u64   log number
  40     u64   group number, from 0 in each log
  48     u64   POS of the group's start
  56     u64   length of the group with header and padding: 4096 + payloads, at most 4096 + 64 MiB
  64     16s   digest before this group
  80     u64   durable POS of this log when the group was written (rule 5), never behind the group's start
  88     u64   Lamport clock, ns
  96     u64   real time, ns
  104    u64   record number of the first record, from 0 in each log
  112    u32   number of records, 1 to 97
  116    u32   flags, 0; any other value must be understood
  120    72s   reserved
  192          the record table

  Record
  0      u8    type
  1      u8    flags; bit 0: must be understood
  2      u16   codec of the payload; 0 = stored as is. No other is defined in version 1, so any other stops the reader
  4      u32   CRC-32C of the stored payload, without padding; 0 without payload
  8      u64   device offset
  16     u64   device length
  24     u64   unique of the request, 0 = none (rule 11)
  32     u32   stored length of the payload
  36     u32   reserved

  Type          range on the device       payload           meaning
  1 write       offset, length > 0        length bytes      new contents
  2 discard     offset, length > 0        none              reads as zeros, on every host, for ever (rule 10)
  3 zero        offset, length > 0        none              zeros that stay allocated
  4 mark        0, 0                      text or none      a name for this point
  5 resize      0, new size > 0           none              size of the device from here on
  6 barrier     0, 0                      none              a FLUSH was completed
  7 old data    offset, length > 0        length bytes      contents before a write (local undo files only)

A record of unknown type with the must-understand bit stops the reader, which names it; without the bit it is skipped
(its payload is checked like any other). Type 0 is never valid. The size in force for a range is the header's, or that
of the last resize record before it, in the same table too. A reader that starts behind a resize record is told the
size; the writer therefore begins a new log after a resize. Ranges apply in the order of the table, the later one wins
where they overlap. Ranges are whole logical blocks of the device; a reader need not check that. Marks and barriers do
not make a group of their own: a group has at least one record of another type (rule 7).

The digest behind a group is XXH3-128 of its header block. That block holds the digest before, every range and every
payload's CRC, so equal digests mean equal history.

Validity. A reader stands at POS with log id, log number, number of the next group, number of the next record, digest
and device size. It checks in this order, and the first check that fails is the reason for the end of the scan:

  check                                                                       reason if it fails
  the file has 4096 bytes at POS                                              end if it has none, else torn
  magic                                                                       end if the block is all zeros, else torn
  CRC of the block                                                            torn
  log id                                                                      foreign: space of an older log
  version 1, header length 1                                                  unknown
  log number, POS, group number, record number, digest are those expected     gap
  flags are 0                                                                 unknown
  durable <= POS                                                              corrupt
  1 to 97 records; the record number does not wrap                            corrupt
  length = 4096 + payloads, each rounded up to 512, all together to 4096,
    and at most 4096 + 64 MiB; POS + length below 2^64                        corrupt
  each record: type not 0; CRC 0 without payload; type known, or no "must";
    codec 0 where the type is known; range and payload as in the table of
    types; range inside the device size in force                              corrupt; type and codec: unknown
  a record other than mark and barrier                                        corrupt
  the group ends at or before the caller's limit, if there is one             limit
  the file has the whole group                                                torn
  each payload's CRC holds and its padding is zero; padding to 4096 is zero   torn

A block that the disk does not give (a read error) is none of these: the reader stops with the error, names the byte,
and concludes nothing about the end of the log, also when it only looks for what stands behind a bad group.

A reader that starts at a POS other than 0 knows the digest there, not the numbers: it takes group and record number
from the group it finds, whose digest-before must be the one it knows. At a limit the scan ends before it reads.

end, torn, foreign and gap become corrupt when POS is known to be durable (rule 5): from a version link (more than POS);
or from any block behind the bad one, at a multiple of 4096 up to the end of the file, that is a group header of this
log id and number with a CRC that holds, its POS where it stands, and POS < its durable <= its POS. That block proves
something on the disk of the log's producer only: a copy is written many groups at once, and a power cut may leave the
last of them without the first. Only end, torn and foreign at the end of the newest log are normal, and only after a
crash.

The logs of a directory. Of all regular files with the name of a log from the number of the wanted position on, every
one must have a header that may be followed, else nothing is concluded. The history from (N, producer, POS) begins in
that log; if it is not there, in a log whose predecessor is exactly that position. From a log it goes on in the one that
names it as predecessor (number and producer). Where several do, those without a valid group are no history (rule 7);
two with groups are a split brain; if none has any, the own host's counts, else that of the first name. A log with a
successor ends at the position and with the digest that its successor's header says, whatever stands behind (rule 4): a
scan that does not reach just that is damage. POS behind that end is a split brain. Any other log with a valid group is
a split brain too. The last log of the chain is the newest; it ends where its scan ends, for a reason that is normal.

A digest that was handed in for POS is believed when the header of the group that begins there confirms it, else when
XXH3-128 of a sound group header that ends at POS is the same (at 0: of the file header, always). A log file that does
not reach POS is damaged: what is on the disk was durable in the log first.

What may be concluded. The primary, after a crash: everything up to the end is its history; what was flushed is there;
it cuts the file there and begins N+1 with this end and digest, at POS 0 of a new log id. A secondary: bytes count as
fetched when they were accepted by these checks and are durable in its copy; it may bring to its disk what is fetched,
whole groups in order, and nothing behind a group that was not accepted. Equal (log id, POS, digest) on two hosts means
equal history up to there.

Order of syncs (rules 1, 3, 4). Writing: groups are written at most two at a time and answered in order; `durable` moves
to P only by a fdatasync issued after all up to P was written. Making log N+1: everything of N written and fdatasynced;
header of N+1 under a temporary name; fdatasync; its name; fsync of the directory; only then its first group. Recycling:
the file gets the temporary name, fsync of the directory (the old name is gone), new header, fdatasync, new name, fsync
of the directory. Ending: N is cut to its end and fdatasynced, at a rotation when N+1 is there, after a crash before it
is made. Reading after a start: fdatasync of the log before the first byte is believed. Bytes reach the data device only
when their group is durable in the log; the data device is fdatasynced before the disk position moves. Log files have
mode 0600.
"""
from __future__ import annotations

import os
import struct
from dataclasses import dataclass, field
from typing import Any

from marsx.base.errors import DamagedError
from marsx.base.position import NR_MAX, LogPos, is_host_name, log_name

BLOCK = 4096
PAYLOAD_ALIGN = 512
TABLE_OFFSET = 192
MAX_RECORDS = 97
MAX_PAYLOAD = 64 << 20
FORMAT_VERSION = 1
FILE_MAGIC = b"MARSXLOG"
GROUP_MAGIC = b"MARSXGRP"
INCOMPAT_KNOWN = 0
RECORD_MUST = 1
WRITE, DISCARD, ZERO, MARK, RESIZE, BARRIER, OLD_DATA = range(1, 8)
NO_DIGEST = "0" * 32
NO_ID = bytes(16)

GROUP_FIELDS = struct.Struct("<8sHHI16sQQQQ16sQQQQII72x")
RECORD_FIELDS = struct.Struct("<BBHIQQQII")
FILE_FIELDS = struct.Struct("<8sHHIIIQ16sQQQI4xQQ16s16s64s64s64s128s")
_CRC_AT = 12


def _sums() -> Any:
    """Imported when something is to be summed up: displays only need the numbers of this page."""
    from marsx._ext import marssum

    return marssum


def new_log_id() -> bytes:
    """A random id for a new log."""
    log_id = NO_ID
    while log_id == NO_ID:
        log_id = os.urandom(16)
    return log_id


@dataclass(frozen=True)
class FileHeader:
    """What the header block of a log says. `pred` is the predecessor's end; None for the first log of a resource."""

    nr: int
    producer: str
    resource: str
    uuid: str
    log_id: bytes
    device_size: int
    block_size: int
    lamport_ns: int
    real_ns: int
    pred: LogPos | None = None
    pred_digest: str = NO_DIGEST
    gap_id: bytes = NO_ID
    compat: int = 0
    incompat: int = 0
    # The block as it was read: a compatible feature may have put more into it than we know, and the digest covers it.
    _block: bytes = field(default=b"", init=False, repr=False, compare=False)

    @property
    def name(self) -> str:
        """File name of this log."""
        return log_name(self.nr, self.producer)

    @property
    def digest0(self) -> str:
        """Digest at POS 0."""
        return _sums().xxh3_128(self.pack()).hex()

    @property
    def start(self) -> LogPos:
        """POS 0 of this log."""
        return LogPos(self.nr, self.producer, 0)

    def pack(self) -> bytes:
        """The header block, sealed. ValueError for a header that no reader would accept."""
        if self._block:
            return self._block
        problem = self._problem()
        if problem:
            raise ValueError(f"log header: {problem}")
        pred = self.pred
        block = bytearray(BLOCK)
        FILE_FIELDS.pack_into(
            block, 0, FILE_MAGIC, FORMAT_VERSION, 1, 0, self.compat, self.incompat, self.nr, self.log_id,
            self.device_size, self.lamport_ns, self.real_ns, self.block_size, pred.nr if pred else 0,
            pred.pos if pred else 0, bytes.fromhex(self.pred_digest), self.gap_id, self.producer.encode(),
            pred.producer.encode() if pred else b"", self.resource.encode(), self.uuid.encode())
        struct.pack_into("<I", block, _CRC_AT, _sums().crc32c(block))
        return bytes(block)

    @classmethod
    def parse(cls, block: bytes) -> FileHeader:
        """The header in this block; DamagedError names what is wrong with it."""
        block = bytes(block[:BLOCK])
        _check_block(block)
        (_, _, _, _, compat, incompat, nr, log_id, size, lamport_ns, real_ns, block_size, pred_nr, pred_end,
         pred_digest, gap_id, producer, pred_producer, resource, uuid) = FILE_FIELDS.unpack_from(block)
        if incompat & ~INCOMPAT_KNOWN:
            raise DamagedError(f"the log uses features that this version does not know (bits {incompat:#x})",
                               "install the version of marsx that wrote it")
        try:
            pred = None
            if pred_nr or pred_end or any(pred_producer):
                pred = LogPos(pred_nr, _text(pred_producer), pred_end)
            header = cls(nr, _text(producer), _text(resource), _text(uuid), log_id, size, block_size, lamport_ns,
                         real_ns, pred, pred_digest.hex(), gap_id, compat, incompat)
        except ValueError as err:
            raise DamagedError(f"log header: {err}", _FETCH_IT) from err
        problem = header._problem()
        if problem:
            raise DamagedError(f"log header: {problem}", _FETCH_IT)
        object.__setattr__(header, "_block", block)
        return header

    def check(self, uuid: str, resource: str, nr: int, producer: str) -> None:
        """DamagedError unless this is the header of just that log of that resource of that cluster."""
        for what, is_, wanted in (("cluster", self.uuid, uuid), ("resource", self.resource, resource),
                                  ("log", self.name, log_name(nr, producer))):
            if is_ != wanted:
                raise DamagedError(f"the log belongs to {what} {is_!r}, not to {wanted!r}",
                                   "move the file out of the resource's directory")

    def _problem(self) -> str:
        """What is impossible about the values, empty if nothing is."""
        pred = self.pred
        if not 1 <= self.nr <= NR_MAX or not is_host_name(self.producer):
            return f"log {self.nr} of {self.producer!r} cannot be"
        for what, text, size in (("resource", self.resource, 64), ("uuid", self.uuid, 128)):
            if not text or "\0" in text or len(text.encode()) >= size:
                return f"{what} {text[:40]!r} is empty or too long"
        if len(self.log_id) != 16 or self.log_id == NO_ID or len(self.gap_id) != 16:
            return "ids have 16 bytes and the log id is not zero"
        if not 0 < self.device_size < 2**63:
            return f"device size {self.device_size} cannot be"
        if not 512 <= self.block_size <= BLOCK or self.block_size & (self.block_size - 1):
            return f"block size {self.block_size} cannot be"
        if len(bytes.fromhex(self.pred_digest)) != 16 or (not pred and self.pred_digest != NO_DIGEST):
            return "digest of the predecessor cannot be"
        if pred and (pred.nr >= self.nr or pred.pos % BLOCK):
            return f"predecessor {pred} cannot be"
        return ""


def group_digest_before(block: bytes, header: FileHeader, pos: int) -> str | None:
    """Digest at `pos` as the group that starts there says it: a sound group header of this log, else None."""
    magic, version, _, stored, log_id, nr, _, at, _, digest, *_ = GROUP_FIELDS.unpack_from(block)
    if magic != GROUP_MAGIC or version != FORMAT_VERSION or (log_id, nr, at) != (header.log_id, header.nr, pos):
        return None
    if _sums().crc32c(block[:_CRC_AT] + bytes(4) + block[_CRC_AT + 4:BLOCK]) != stored:
        return None
    return digest.hex()


def group_digest_after(block: bytes, header: FileHeader, pos: int, end: int) -> str | None:
    """Digest at `end` as the group from `pos` to `end` says it: a sound group header of this log, else None."""
    if group_digest_before(block, header, pos) is None or pos + GROUP_FIELDS.unpack_from(block)[8] != end:
        return None
    return _sums().xxh3_128(block).hex()


def names_another(block: bytes, header: FileHeader) -> bool:
    """Does a group's header block say that it belongs to another log with this number? Groups of older logs are what a
    recycled file holds. Nothing else is checked here."""
    fields = GROUP_FIELDS.unpack_from(block)
    return fields[0] == GROUP_MAGIC and fields[5] == header.nr and fields[4] != header.log_id


def group_numbers(block: bytes | memoryview) -> tuple[int, int]:
    """(group number, number of the first record) as a group's header block says them; nothing is checked here."""
    fields = GROUP_FIELDS.unpack_from(block)
    return fields[6], fields[13]


_FETCH_IT = "if a peer has this log, remove the file and let marsd fetch it; else invalidate this replica"


def is_rotten(block: bytes) -> bool:
    """No header block of any version: what stands there was never written by anybody."""
    if len(block) < BLOCK or block[:8] != FILE_MAGIC:
        return True
    stored, = struct.unpack_from("<I", block, _CRC_AT)
    return _sums().crc32c(block[:_CRC_AT] + bytes(4) + block[_CRC_AT + 4:BLOCK]) != stored


def _check_block(block: bytes) -> None:
    """Magic, CRC and version of a header block."""
    if len(block) < BLOCK:
        raise DamagedError(f"the log's header block has only {len(block)} bytes", _FETCH_IT)
    if block[:8] != FILE_MAGIC:
        raise DamagedError("not a log: no magic at its beginning", _FETCH_IT)
    stored, = struct.unpack_from("<I", block, _CRC_AT)
    if _sums().crc32c(block[:_CRC_AT] + bytes(4) + block[_CRC_AT + 4:BLOCK]) != stored:
        raise DamagedError("the CRC of the log's header block is wrong", _FETCH_IT)
    version, blocks = struct.unpack_from("<HH", block, 8)
    if version != FORMAT_VERSION or blocks != 1:
        raise DamagedError(f"log format version {version} (header of {blocks} blocks) is not known here",
                           "install the version of marsx that wrote it")


def _text(raw: bytes) -> str:
    """A NUL-padded text field."""
    text, nul, rest = raw.partition(b"\0")
    if not nul or any(rest):
        raise ValueError(f"text field {raw[:16]!r}... is not padded with zeros")
    return text.decode("utf-8")
