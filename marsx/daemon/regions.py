"""Which regions of a data device have to be synced: a set, and the file in which a member keeps its own (rule 27).

The set only leaves out what is known to be right: without its file, or with one that is damaged, all is compared. It
belongs to the sync that began when a gap was crossed. So it is dropped before syncstatus is set back for another
reason, and when the sync has come to its end.
"""
from __future__ import annotations

import contextlib
import os
import struct
import zlib

from marsx.base import durable

FILE = ".heal"
_HEAD = struct.Struct("<8sIIQ64s")
_MAGIC = b"MARSXHL1"
SHIFT_MAX = 62
BITS_MAX = 1 << 19  # bytes


class Regions:
    """A set of regions of 1 << shift bytes of a device of `size` bytes; what lies behind `size` is always in it."""

    def __init__(self, size: int, shift: int, bits: bytes | None = None) -> None:
        length = ((size + (1 << shift) - 1 >> shift) + 7) // 8
        if not 12 <= shift <= SHIFT_MAX or length > BITS_MAX or size <= 0:
            raise ValueError(f"no regions of 1 << {shift} bytes in {size}")
        self.size, self.shift = size, shift
        self._bits = bytearray((bits or b"")[:length].ljust(length, b"\0"))

    @property
    def bits(self) -> bytes:
        """One bit a region, lowest first."""
        return bytes(self._bits)

    def add(self, offset: int, length: int) -> None:
        """All regions that [offset, offset + length) touches."""
        end = min(offset + length, self.size)
        for region in range(offset >> self.shift, (end + (1 << self.shift) - 1) >> self.shift):
            self._bits[region // 8] |= 1 << region % 8

    def runs(self, offset: int = 0, length: int | None = None) -> list[tuple[int, int]]:
        """Ranges of bytes within [offset, offset + length) that are in the set, ascending."""
        end = self.size if length is None else min(offset + length, self.size)
        found: list[tuple[int, int]] = []
        step = 1 << self.shift
        first, last = offset >> self.shift, (end + step - 1) >> self.shift
        for byte in range(first // 8, (last + 7) // 8):
            if not self._bits[byte]:
                continue
            for region in range(max(first, byte * 8), min(last, byte * 8 + 8)):
                if self._bits[byte] >> region % 8 & 1:
                    at, stop = max(offset, region * step), min(end, (region + 1) * step)
                    if found and sum(found[-1]) == at:
                        found[-1] = (found[-1][0], stop - found[-1][0])
                    else:
                        found.append((at, stop - at))
        return found

    def due(self, offset: int, length: int) -> list[tuple[int, int]]:
        """What of this range has to be synced."""
        if offset + length > self.size:
            return [(offset, length)]
        return self.runs(offset, length)

    def unite(self, other: Regions, behind: int = 0) -> None:
        """Take in what the other set holds of [behind, end)."""
        for offset, length in other.runs(behind, max(0, other.size - behind)):
            if offset < self.size:
                self.add(offset, length)

    def amount(self) -> int:
        """Bytes."""
        return sum(length for _, length in self.runs())


def path_of(directory: str) -> str:
    """Of the file, in the resource's directory."""
    return os.path.join(directory, FILE)


def save(directory: str, resource: str, found: Regions) -> None:
    """Durable when this returns."""
    durable.write_file(path_of(directory), pack(resource, found))


def pack(resource: str, found: Regions) -> bytes:
    """Contents of a file."""
    body = _HEAD.pack(_MAGIC, 0, found.shift, found.size, resource.encode()) + found.bits
    return body[:8] + struct.pack("<I", zlib.crc32(body)) + body[12:]


def load(path: str, resource: str) -> Regions | None:
    """None: there is no such file, or it is not sound: all has to be synced."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return None
    with os.fdopen(fd, "rb") as file:
        return parse(file.read(_HEAD.size + BITS_MAX + 1), resource)


def parse(data: bytes, resource: str) -> Regions | None:
    """Inverse of pack; None for anything else."""
    if len(data) < _HEAD.size:
        return None
    magic, crc, shift, size, name = _HEAD.unpack_from(data)
    plain = data[:8] + bytes(4) + data[12:]
    if magic != _MAGIC or crc != zlib.crc32(plain) or name.rstrip(b"\0") != resource.encode():
        return None
    try:
        found = Regions(size, shift, data[_HEAD.size:])
    except ValueError:
        return None
    return found if len(found.bits) == len(data) - _HEAD.size else None


def drop(path: str) -> None:
    """Durably."""
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)
        durable.sync_dir(os.path.dirname(path))
