"""Emergency mode's files: the map of regions that changed past the log, and the log that goes on behind the gap
(rule 27).

Both are made, with all their blocks written, while there is room (`prepare`), because there is none when they are
needed; so is the file of the log with which a primary begins when it comes up and /mars is full. A map is one header
block and sectors of 512 bytes: u32 CRC-32C of the rest, u32 number, the map's id, bits.

    header  magic `MARSXMAP`, u16 version, u16 state (0 spare, 1 open, 2 closed), u32 CRC-32C of the block with this
            field as zero, id, u64 device size, u64 number of the gap log, u32 shift, u32 sectors, resource

Invariants:
    a log that is written has a spare map and a spare gap log beside it, durable, with all their blocks, for the size of
    the device: made before the first write is accepted, and before the log goes on behind a gap. What a try to enter
    does not use stays as it was
    a map is open before its gap log exists; a gap log without a sound map of its id means: all may have changed
    open and the gap log empty: writes may go past the log at any time, its bits are not all there yet
    closed is for ever: only then may members be healed with it
"""
from __future__ import annotations

import contextlib
import os
import stat
import struct
from dataclasses import dataclass, replace

from marsx._ext import marssum
from marsx.base import durable
from marsx.base.errors import DamagedError, PreconditionError
from marsx.log import reader, record
from marsx.log.record import BLOCK, FileHeader

SPARE_MAP, SPARE_LOG, NEXT_LOG = ".gap-map", ".gap-log", ".next-log"
MAP_PREFIX = ".map-"
LOG_BYTES = 1 << 20  # of the gap log, and of the next one, so that it can go on at once
STEP = 11  # numbers that a gap takes (facts 6.2)
SPARE, OPEN, CLOSED = range(3)
SECTOR_BYTES, SECTOR_HEAD = 512, 24  # ext/direct.h
SHIFT_LEAST, REGIONS_MOST = 16, 1 << 20
MAGIC = b"MARSXMAP"
HEAD = struct.Struct("<8sHHI16sQQII64s")
SECTOR = struct.Struct("<II16s")
_CRC_AT = 12
_BITS = (SECTOR_BYTES - SECTOR_HEAD) * 8


def shift_for(size: int) -> int:
    """Regions of 64 KiB, larger ones where there would be too many."""
    shift = SHIFT_LEAST
    while size >> shift > REGIONS_MOST:
        shift += 1
    return shift


@dataclass(frozen=True)
class MapHeader:
    """What the header block of a map says."""

    map_id: bytes
    resource: str
    size: int
    shift: int
    sectors: int
    state: int = SPARE
    nr: int = 0

    def pack(self) -> bytes:
        """The block."""
        block = bytearray(BLOCK)
        HEAD.pack_into(block, 0, MAGIC, 1, self.state, 0, self.map_id, self.size, self.nr, self.shift, self.sectors,
                       self.resource.encode())
        struct.pack_into("<I", block, _CRC_AT, marssum.crc32c(bytes(block)))
        return bytes(block)

    @classmethod
    def parse(cls, block: bytes, path: str) -> MapHeader:
        """Inverse of pack; DamagedError for anything else."""
        plain = bytearray(block)
        plain[_CRC_AT:_CRC_AT + 4] = bytes(4)
        magic, version, state, crc, map_id, size, nr, shift, sectors, resource = HEAD.unpack_from(block.ljust(BLOCK))
        if (len(block) != BLOCK or magic != MAGIC or version != 1 or crc != marssum.crc32c(bytes(plain))
                or state > CLOSED or not SHIFT_LEAST <= shift < 63 or sectors * _BITS << shift < size):
            raise DamagedError(f"{path} is no sound map of changed regions", "members are healed by a full sync")
        return cls(map_id, resource.rstrip(b"\0").decode("ascii", "replace"), size, shift, sectors, state, nr)


@dataclass(frozen=True)
class Map:
    """A map that was read and found sound."""

    path: str
    header: MapHeader
    sectors: bytes

    def bits(self) -> bytes:
        """One bit a region, lowest bit first."""
        step, head = SECTOR_BYTES, SECTOR_HEAD
        return b"".join(self.sectors[at + head:at + step] for at in range(0, len(self.sectors), step))


def prepare(directory: str, resource: str, size: int) -> None:
    """See that the spare map and the spare logs are there, durably, and fit the device. OSError: no room."""
    if not _has_spare_log(directory, SPARE_LOG):
        durable.write_file(os.path.join(directory, SPARE_LOG), bytes(LOG_BYTES))
    if not _has_spare_map(directory, size):
        _make_map(os.path.join(directory, SPARE_MAP), resource, size)
    if not _has_spare_log(directory, NEXT_LOG):
        durable.write_file(os.path.join(directory, NEXT_LOG), bytes(LOG_BYTES))


def _make_map(path: str, resource: str, size: int) -> None:
    shift = shift_for(size)
    regions = (size + (1 << shift) - 1) >> shift
    sectors = (regions + 8 * _BITS - 1) // (8 * _BITS) * 8  # whole blocks
    map_id = record.new_log_id()
    header = MapHeader(map_id, resource, size, shift, sectors)
    body = b"".join(_sector(number, map_id) for number in range(sectors))
    durable.write_file(path, header.pack() + body)


def _sector(number: int, map_id: bytes) -> bytes:
    plain = struct.pack("<I16s", number, map_id).ljust(SECTOR_BYTES - 4, b"\0")
    return struct.pack("<I", marssum.crc32c(plain)) + plain


def is_ready(directory: str, size: int) -> bool:
    """Can emergency mode be entered without any room in /mars?"""
    return _has_spare_log(directory, SPARE_LOG) and _has_spare_map(directory, size)


def _has_spare_map(directory: str, size: int) -> bool:
    try:
        header = read(os.path.join(directory, SPARE_MAP)).header
    except (OSError, DamagedError):
        return False
    return header.size == size and header.state == SPARE


def _has_spare_log(directory: str, name: str) -> bool:
    """Under this name alone, and as long as it was made."""
    try:
        found = os.lstat(os.path.join(directory, name))
    except FileNotFoundError:
        return False
    return stat.S_ISREG(found.st_mode) and found.st_nlink == 1 and found.st_size == LOG_BYTES


def read(path: str) -> Map:
    """DamagedError when anything in it is not as it was written; OSError when it is not there."""
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    with os.fdopen(fd, "rb") as file:
        header = MapHeader.parse(file.read(BLOCK), path)
        step = SECTOR_BYTES
        body = file.read(header.sectors * step)
    for number in range(header.sectors):
        sector = body[number * step:(number + 1) * step]
        if (len(sector) != step or SECTOR.unpack_from(sector) !=
                (marssum.crc32c(sector[4:]), number, header.map_id)):
            raise DamagedError(f"{path} is damaged in sector {number}", "members are healed by a full sync")
    return Map(path, header, body)


def map_path(directory: str, map_id: bytes) -> str:
    """Of a map in use."""
    return os.path.join(directory, f"{MAP_PREFIX}{map_id.hex()}")


def put_to_use(directory: str, nr: int) -> Map:
    """The spare map becomes the one of gap log `nr`: open, durably, under its own name."""
    spare = os.path.join(directory, SPARE_MAP)
    found = read(spare)
    header = replace(found.header, state=OPEN, nr=nr)
    path = map_path(directory, header.map_id)
    _write_header(spare, header)
    try:
        os.rename(spare, path)
        durable.sync_dir(directory)
    except OSError:
        with contextlib.suppress(FileNotFoundError):
            os.rename(path, spare)
        _write_header(spare, found.header)
        raise
    return Map(path, header, found.sectors)


def give_back(directory: str, changed: Map) -> None:
    """Undo put_to_use: no gap log was made with it, and nothing was written to it."""
    _write_header(changed.path, replace(changed.header, state=SPARE, nr=0))
    os.rename(changed.path, os.path.join(directory, SPARE_MAP))


def begin_log(directory: str, header: FileHeader) -> int | None:
    """As `make_log`, the first log of a primary that comes up while /mars is full; None: no file was kept for it."""
    return make_log(directory, header, NEXT_LOG) if _has_spare_log(directory, NEXT_LOG) else None


def make_log(directory: str, header: FileHeader, name: str = SPARE_LOG) -> int:
    """The spare file becomes a log with this header, which has to be new; its descriptor (O_RDWR, O_DIRECT). Header and
    name are durable when this returns (rule 4). An error before it has its name leaves the spare usable."""
    spare, path = os.path.join(directory, name), os.path.join(directory, header.name)
    if os.path.lexists(path):
        raise PreconditionError(f"log {path} exists already", "see mars-status --history; a log is never written twice")
    fd = os.open(spare, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        durable.overwrite(fd, header.pack(), 0, spare)
    finally:
        os.close(fd)
    os.rename(spare, path)
    durable.sync_dir(directory)
    return os.open(path, os.O_RDWR | os.O_DIRECT | os.O_NOFOLLOW | os.O_CLOEXEC)


def close(path: str) -> None:
    """No bit comes in addition any more; durable when this returns."""
    header = read(path).header
    if header.state == OPEN:
        _write_header(path, replace(header, state=CLOSED))


def _write_header(path: str, header: MapHeader) -> None:
    fd = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        durable.overwrite(fd, header.pack(), 0, path)
    finally:
        os.close(fd)


def open_for_bits(path: str) -> int:
    """Descriptor that the engine writes sectors to."""
    return os.open(path, os.O_RDWR | os.O_DIRECT | os.O_DSYNC | os.O_NOFOLLOW | os.O_CLOEXEC)


def find(directory: str, header: FileHeader) -> Map | None:
    """The sound map of a gap log; None: it is lost."""
    try:
        found = read(map_path(directory, header.gap_id))
    except (OSError, DamagedError):
        return None
    fits = found.header.map_id == header.gap_id and found.header.nr == header.nr
    return found if fits and found.header.resource == header.resource else None


def headers(directory: str, uuid: str, resource: str) -> list[FileHeader]:
    """Of the gap logs that are here, by rising number."""
    found = []
    for entry in reader.list_logs(directory):
        with contextlib.suppress(DamagedError, FileNotFoundError), reader.open_log(entry.path, uuid, resource) as log:
            if log.header.gap_id != record.NO_ID:
                found.append(log.header)
    return sorted(found, key=lambda header: header.nr)


def drop_old(directory: str, below: int) -> None:
    """Maps of gaps in front of log `below`, which nobody is behind any more."""
    for name in os.listdir(directory):
        if name.startswith(MAP_PREFIX):
            path = os.path.join(directory, name)
            try:
                nr = read(path).header.nr
            except (OSError, DamagedError):
                continue
            if nr < below:
                os.unlink(path)
