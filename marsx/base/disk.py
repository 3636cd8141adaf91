"""Facts about block devices, and flushing them. Knows no resource.

`open_exclusive` is how marsd takes a data device: O_EXCL keeps mounts, swap, md, dm and other O_EXCL openers out, but
not plain openers. `who_uses` looks for all of them, for messages only: no decision about data may rest on an empty
answer, because a process can come and go unseen (rule 20).

Promise: a failed flush is raised and never tried again: the kernel forgets what it could not write, so a second call
that succeeds proves nothing.
"""
from __future__ import annotations

import errno
import fcntl
import os
import stat
import struct
from collections.abc import Iterator

from marsx.base.errors import MarsError, NotFoundError, PermissionDeniedError, PreconditionError

BLKGETSIZE64 = 0x80081272
BLKSSZGET = 0x1268
_FD_SCAN_MAX = 1_000_000


def size(fd: int) -> int:
    """Size in bytes of an open block device or plain file."""
    mode = os.fstat(fd).st_mode
    if stat.S_ISREG(mode):
        return os.fstat(fd).st_size
    return int(struct.unpack("=Q", fcntl.ioctl(fd, BLKGETSIZE64, bytes(8)))[0])


def logical_block(fd: int) -> int:
    """Smallest unit of I/O in bytes; 512 for a plain file."""
    if stat.S_ISREG(os.fstat(fd).st_mode):
        return 512
    return int(struct.unpack("=i", fcntl.ioctl(fd, BLKSSZGET, bytes(4)))[0])


def is_block_device(path: str) -> bool:
    """True when `path` leads to a block device."""
    try:
        return stat.S_ISBLK(os.stat(path).st_mode)
    except OSError:
        return False


def flush(fd: int) -> None:
    """Everything written to `fd` before is on stable storage, or OSError."""
    os.fdatasync(fd)


def open_exclusive(path: str) -> int:
    """Descriptor of a block device for direct I/O that nobody else holds exclusively."""
    try:
        fd = os.open(path, os.O_RDWR | os.O_EXCL | os.O_DIRECT | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        raise _open_error(path, error) from error
    if not stat.S_ISBLK(os.fstat(fd).st_mode):
        os.close(fd)
        raise PreconditionError(f"{path} is not a block device", "give the path of a disk, partition or volume")
    return fd


def _open_error(path: str, error: OSError) -> MarsError:
    if error.errno == errno.EBUSY:
        users = who_uses(path)
        hint = "; ".join(users) if users else "nobody was found who uses it; another kernel user may hold it"
        return PreconditionError(f"{path} is in use", hint)
    if error.errno in (errno.ENOENT, errno.ENXIO, errno.ENODEV, errno.ENOTDIR):
        return NotFoundError(f"{path}: {error.strerror}", "check the name with lsblk")
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return PermissionDeniedError(f"cannot open {path} for writing: {error.strerror}", "run as root")
    return MarsError(f"cannot open {path}: {error.strerror}", "look at the kernel's messages (dmesg)")


def who_uses(path: str, *, without_pid: int | None = None) -> list[str]:
    """Who was seen using the device, a line each: mounts, swap, other devices, loop devices, processes."""
    device = os.stat(path).st_rdev
    devices = {device: os.path.basename(path), **_partitions(device)}
    names = {"/dev/" + name for name in devices.values()} | {path}
    found = [f"mounted on {place}" for place in _mounts(set(devices))]
    found += ["used as swap" for _ in _swaps(set(devices))]
    found += [f"held by /dev/{name}" for name in _holders(set(devices))]
    found += [f"backs /dev/{name}" for name in _loops(set(devices))]
    found += [f"open in process {pid} ({name})" for pid, name in _openers(set(devices), names, without_pid)]
    return list(dict.fromkeys(found))


def _read(path: str) -> str:
    try:
        with open(path, encoding="utf-8", errors="backslashreplace") as file:
            return file.read()
    except OSError:
        return ""


def _list(path: str) -> list[str]:
    try:
        return os.listdir(path)
    except OSError:
        return []


def _sys(device: int) -> str:
    return f"/sys/dev/block/{os.major(device)}:{os.minor(device)}"


def _parse_device(text: str) -> int:
    major, _, minor = text.strip().partition(":")
    return os.makedev(int(major), int(minor)) if major.isdigit() and minor.isdigit() else -1


def _partitions(device: int) -> dict[int, str]:
    """Partitions of a whole disk: whoever uses one uses the disk."""
    result = {}
    for name in _list(_sys(device)):
        if os.path.exists(f"{_sys(device)}/{name}/partition"):
            result[_parse_device(_read(f"{_sys(device)}/{name}/dev"))] = name
    result.pop(-1, None)
    return result


def _pids() -> list[int]:
    return sorted(int(name) for name in _list("/proc") if name.isdigit())


def _unescape(field: str) -> str:
    """mountinfo and swaps write blanks and the like as \\ooo."""
    for code, char in (("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")):
        field = field.replace(code, char)
    return field


def _mounts(devices: set[int]) -> Iterator[str]:
    """Mount points in every mount name space that a process lives in."""
    seen = set()
    for pid in _pids():
        try:
            space = os.readlink(f"/proc/{pid}/ns/mnt")
        except OSError:
            space = str(pid)
        if space in seen:
            continue
        lines = _read(f"/proc/{pid}/mountinfo").splitlines()
        if lines:
            seen.add(space)
        for line in lines:
            fields = line.split(" ")
            if len(fields) > 4 and _parse_device(fields[2]) in devices:
                yield _unescape(fields[4])


def _rdev(path: str) -> int:
    """Device number of a device node, -1 for anything else."""
    try:
        status = os.stat(path)
    except OSError:
        return -1
    return status.st_rdev if stat.S_ISBLK(status.st_mode) else -1


def _swaps(devices: set[int]) -> Iterator[str]:
    for line in _read("/proc/swaps").splitlines()[1:]:
        name = _unescape(line.split()[0]) if line.split() else ""
        if name.startswith("/dev/") and _rdev(name) in devices:
            yield name


def _holders(devices: set[int]) -> Iterator[str]:
    """Devices built on top: dm, md, bcache."""
    for device in sorted(devices):
        yield from sorted(_list(f"{_sys(device)}/holders"))


def _loops(devices: set[int]) -> Iterator[str]:
    """Loop devices attached to the device; they open it inside the kernel, without any process."""
    for name in sorted(_list("/sys/block")):
        if name.startswith("loop"):
            backing = _read(f"/sys/block/{name}/loop/backing_file").rstrip("\n")
            if backing.startswith("/dev/") and _rdev(backing) in devices:
                yield name


def _openers(devices: set[int], names: set[str], without_pid: int | None) -> Iterator[tuple[int, str]]:
    """Processes with an open descriptor. Looks only at descriptors whose link may be a device node: asking each open
    file for its status could hang on a dead network file system.
    """
    looked = 0
    for pid in _pids():
        if pid == without_pid:
            continue
        for fd in _list(f"/proc/{pid}/fd"):
            looked += 1
            if looked > _FD_SCAN_MAX:
                return
            link = f"/proc/{pid}/fd/{fd}"
            try:
                target = os.readlink(link)
            except OSError:
                continue
            if ("/dev/" in target or target in names) and _rdev(link) in devices:
                yield pid, _read(f"/proc/{pid}/comm").strip() or "?"
                break
