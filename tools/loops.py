"""Loop devices over sparse files, and comparing devices byte by byte without reading holes.

Every loop device made here has AUTOCLEAR set and is held open by its `Loop` object only (and by mounts or daemons that
use it): when the process that made it dies, by whatever means, the kernel takes the device away. Nothing stays behind.
"""

import errno
import fcntl
import mmap
import os
import struct
import time
from collections.abc import Iterator
from pathlib import Path

SET_STATUS64, GET_STATUS64, CONFIGURE, CTL_REMOVE, GET_FREE = 0x4C04, 0x4C05, 0x4C0A, 0x4C81, 0x4C82
AUTOCLEAR, DIRECT_IO = 4, 16
INFO = struct.Struct("<QQQQQIIII64s64s32s2Q")
FLAGS_AT = 52
CHUNK = 1 << 20


class Loop:
    """A sparse file, or a part of a file or block device, as a block device."""

    def __init__(self, file: Path, size: int | None = None, direct: bool = True,
                 part: tuple[int, int] = (0, 0)) -> None:
        """Attach `file` (made with `size` bytes if given) to a free loop device. part: offset and length of it."""
        self.file = file
        if size is not None:
            with open(file, "xb") as made:
                made.truncate(size)
        self.size = part[1] or file.stat().st_size
        self.fd, self.path = _attach(file, direct, part)

    def close(self) -> None:
        """Let go; the device vanishes with its last user."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def bound(self) -> bool:
        """Whether the device is still attached to our file."""
        return backing_file(self.path) == str(self.file)


def _attach(file: Path, direct: bool, part: tuple[int, int]) -> tuple[int, str]:
    flags, shown = AUTOCLEAR | (DIRECT_IO if direct else 0), str(file).encode()[:63]
    info = INFO.pack(0, 0, 0, *part, 0, 0, 0, flags, shown, b"", b"", 0, 0)
    backing = os.open(file, os.O_RDWR | os.O_CLOEXEC)
    control = os.open("/dev/loop-control", os.O_RDWR | os.O_CLOEXEC)
    try:
        for attempt in range(50):
            path = f"/dev/loop{fcntl.ioctl(control, GET_FREE)}"
            fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
            try:
                fcntl.ioctl(fd, CONFIGURE, struct.pack("<II", backing, 0) + info + bytes(64))
                return fd, path
            except OSError as problem:
                os.close(fd)
                if problem.errno != errno.EBUSY:
                    raise
            time.sleep(0.01 * attempt)
    finally:
        os.close(backing)
        os.close(control)
    raise OSError(errno.EBUSY, "no free loop device after 50 tries: other programs take them as fast as they appear")


def backing_file(device: str) -> str:
    """What a loop device is attached to ("" = nothing)."""
    try:
        return Path("/sys/block", Path(device).name, "loop/backing_file").read_text().strip()
    except OSError:
        return ""


def sequence(device: str) -> str:
    """The kernel's number of this attachment of a block device: never given twice ("" = no such device)."""
    try:
        return Path("/sys/block", Path(device).name, "diskseq").read_text().strip()
    except OSError:
        return ""


def all_backing_files() -> dict[str, str]:
    """Every bound loop device of the machine and its backing file."""
    found = {f"/dev/{entry.name}": backing_file(entry.name) for entry in Path("/sys/block").glob("loop*")}
    return {device: file for device, file in found.items() if file}


def clear_dead_mars_loop(device: str) -> bool:
    """Detach a device of a killed daemon: only if it carries the daemon's tag and nobody answers its reads any more."""
    try:
        fd = os.open(device, os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        info = bytearray(fcntl.ioctl(fd, GET_STATUS64, bytes(INFO.size)))
        if not bytes(info[56:61]) == b"mars:" or _answers(device):
            return False
        struct.pack_into("<I", info, FLAGS_AT, struct.unpack_from("<I", info, FLAGS_AT)[0] | AUTOCLEAR)
        fcntl.ioctl(fd, SET_STATUS64, bytes(info))
    except OSError:
        return False
    finally:
        os.close(fd)
    _remove(device)
    return True


def _remove(device: str) -> None:
    """Take away the node of a loop device that the daemon had added; those the machine always has stay."""
    number = int(Path(device).name.removeprefix("loop"))
    control = os.open("/dev/loop-control", os.O_RDWR | os.O_CLOEXEC)
    try:
        if number >= 64:
            fcntl.ioctl(control, CTL_REMOVE, number)
    except OSError:
        pass  # somebody opened it in this moment: the node stays, unbound, and does no harm
    finally:
        os.close(control)


def _answers(device: str) -> bool:
    try:
        read_device(device, 0, 4096)
        return True
    except OSError:
        return False


def read_device(device: str | Path, offset: int, length: int) -> bytes:
    """Bytes of a block device, past the page cache (4096-aligned offset and length)."""
    fd = os.open(device, os.O_RDONLY | os.O_DIRECT | os.O_CLOEXEC)
    try:
        parts = []
        with mmap.mmap(-1, CHUNK) as area:
            while length:
                want = min(CHUNK, length)
                with memoryview(area)[:want] as part:
                    got = os.preadv(fd, [part], offset)
                    if got == 0:
                        break
                    parts.append(bytes(part[:got]))
                offset, length = offset + got, length - got
        return b"".join(parts)
    finally:
        os.close(fd)


def data_ranges(fd: int, size: int) -> Iterator[tuple[int, int]]:
    """The parts of a sparse file that are not holes, as (start, end)."""
    at = 0
    while at < size:
        try:
            start = os.lseek(fd, at, os.SEEK_DATA)
        except OSError as problem:
            if problem.errno == errno.ENXIO:
                return
            raise
        at = min(os.lseek(fd, start, os.SEEK_HOLE), size)
        yield start, at


def first_difference(file_a: Path, file_b: Path) -> int | None:
    """Offset of the first byte in which two sparse files differ (holes are zeros); None if they are equal."""
    with open(file_a, "rb", buffering=0) as a, open(file_b, "rb", buffering=0) as b:
        size_a, size_b = os.fstat(a.fileno()).st_size, os.fstat(b.fileno()).st_size
        found: int | None = None if size_a == size_b else min(size_a, size_b)
        for one in (a.fileno(), b.fileno()):
            for start, end in data_ranges(one, min(size_a, size_b)):
                if found is not None and start >= found:
                    break
                at = _differs(a.fileno(), b.fileno(), start, end)
                if at is not None and (found is None or at < found):
                    found = at
        return found


def _differs(a: int, b: int, start: int, end: int) -> int | None:
    for offset in range(start, end, CHUNK):
        want = min(CHUNK, end - offset)
        left, right = os.pread(a, want, offset), os.pread(b, want, offset)
        if left != right:
            return offset + next(i for i in range(want) if left[i:i + 1] != right[i:i + 1])
    return None


def data_bytes(file: Path) -> int:
    """How many bytes of a sparse file are not holes."""
    with open(file, "rb", buffering=0) as opened:
        return sum(end - start for start, end in data_ranges(opened.fileno(), os.fstat(opened.fileno()).st_size))
