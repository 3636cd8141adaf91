"""The loop device on top of the FUSE file: attach, resize, exact detach, the link /dev/mars/RES.

Every function here may wait for the server of the device. Only short-lived children of the keeper call them: a worker
that touched its own device would wait for itself, and a keeper that waited could not restart the worker.

Invariants:
  * The device's size is the loop's `sizelimit`; the file behind it has a constant size.
  * A loop device is *ours* only while it is bound to the file we bound (device number, inode) under our tag. Every
    change looks first.
  * The link exists only while the loop device it names is ours and complete; it is taken away before the number becomes
    free.
  * Taking away is "AUTOCLEAR, close, look again" (rule 20): the kernel's last close decides, and writes all dirty pages
    first. LOOP_CLR_FD is never used: as the sole opener it throws away dirty pages of closed writers.
  * Numbers start at FIRST_NUMBER, so that `losetup -f` of others does not meet them; a number is removed after use.
"""
from __future__ import annotations

import contextlib
import errno
import fcntl
import mmap
import os
import re
import struct
import sys
import time
from collections.abc import Callable
from typing import NamedTuple

from marsx.base import disk
from marsx.device import fuse
from marsx.device.frontend import Attached, Channel, check_name, check_size

CONTROL = "/dev/loop-control"
FIRST_NUMBER = 4700
NUMBERS = 4096
TAG_MAX = 63
DISCARD_MAX = 256 << 20
"""Largest single discard: one synchronous request that holds the file's lock. The kernel would send 4 GiB at once."""

RO, AUTOCLEAR, DIRECT_IO = 1, 4, 16
_SET_STATUS64, _GET_STATUS64, _CONFIGURE = 0x4C04, 0x4C05, 0x4C0A
_CTL_ADD, _CTL_REMOVE = 0x4C80, 0x4C81
_BLKSSZGET, _BLKGETSIZE64 = 0x1268, 0x80081272
_INFO = struct.Struct("<QQQQQIIII64s64s32s2Q")
_CONFIG_HEAD = struct.Struct("<II")
_CONFIG_TAIL = bytes(64)
_OURS = re.compile(r"/dev/loop[0-9]+", re.ASCII)


class Status(NamedTuple):
    """What the kernel says a loop device is bound to."""

    device: int
    inode: int
    sizelimit: int
    flags: int
    tag: bytes

    def is_bound_to(self, attached: Attached, name: str) -> bool:
        return (self.device, self.inode, self.tag) == (attached.backing_dev, attached.backing_ino, tag_of(name))


def tag_of(name: str) -> bytes:
    """The name in lo_file_name by which we and `losetup` know our devices."""
    return f"mars:{name}".encode("ascii")[:TAG_MAX]


def node(number: int) -> str:
    """Path of the loop device with that number."""
    return f"/dev/loop{number}"


def _info(sizelimit: int, flags: int, tag: bytes) -> bytes:
    return _INFO.pack(0, 0, 0, 0, sizelimit, 0, 0, 0, flags, tag, b"", b"", 0, 0)


def status(fd: int) -> Status | None:
    """What the open loop device is bound to; None if to nothing."""
    try:
        fields = _INFO.unpack(fcntl.ioctl(fd, _GET_STATUS64, bytes(_INFO.size)))
    except OSError as error:
        if error.errno == errno.ENXIO:
            return None
        raise
    return Status(fields[0], fields[1], fields[4], fields[8], fields[9].rstrip(b"\0"))


def _set_status(fd: int, was: Status, *, flags: int | None = None, sizelimit: int | None = None) -> None:
    new = _info(was.sizelimit if sizelimit is None else sizelimit, was.flags if flags is None else flags, was.tag)
    fcntl.ioctl(fd, _SET_STATUS64, new)


def device_size(fd: int) -> int:
    """Size in bytes of the open block device, as the block layer has it."""
    return struct.unpack("<Q", fcntl.ioctl(fd, _BLKGETSIZE64, bytes(8)))[0]


def _logical_block(fd: int) -> int:
    return struct.unpack("<I", fcntl.ioctl(fd, _BLKSSZGET, bytes(4)))[0]


# ---- numbers ---------------------------------------------------------------------------------------------------------

def _control() -> int:
    try:
        return os.open(CONTROL, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        text = f"no {CONTROL}: this kernel has no loop devices, or the module is not loaded"
        raise OSError(errno.ENOENT, text) from None


def reserve_number(after: int = FIRST_NUMBER - 1) -> int:
    """A loop number > `after` that did not exist before; now its (unbound) device exists."""
    control = _control()
    try:
        for number in range(after + 1, FIRST_NUMBER + NUMBERS):
            try:
                fcntl.ioctl(control, _CTL_ADD, number)
                return number
            except OSError as error:
                if error.errno != errno.EEXIST:
                    raise
    finally:
        os.close(control)
    raise OSError(errno.ENOSPC, f"all loop devices {FIRST_NUMBER} to {FIRST_NUMBER + NUMBERS - 1} exist already")


def remove_number(number: int, patience: float = 1.0) -> bool:
    """The unbound loop device is gone. False if somebody keeps it open or bound: it then stays, unbound by us."""
    control = _control()
    deadline = time.monotonic() + patience
    try:
        while True:
            try:
                fcntl.ioctl(control, _CTL_REMOVE, number)
                return True
            except OSError as error:
                if error.errno in (errno.ENODEV, errno.EINVAL, errno.ENOENT):
                    return True
                if error.errno != errno.EBUSY:
                    raise
            if time.monotonic() >= deadline:
                return False
            time.sleep(0.02)
    finally:
        os.close(control)


# ---- the link in /dev/mars -------------------------------------------------------------------------------------------

def make_link(dev_dir: str, name: str, target: str) -> None:
    """dev_dir/name -> target, atomically. Replaces only a link to a loop device; anything else is left and named."""
    path = os.path.join(dev_dir, name)
    try:
        there = os.readlink(path)
    except FileNotFoundError:
        there = target
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        raise OSError(errno.EEXIST, f"{path} is in the way: it is not a symbolic link; remove it") from None
    if not _OURS.fullmatch(there):
        raise OSError(errno.EEXIST, f"{path} is in the way: it points to {there[:200]!r}; remove it")
    temporary = os.path.join(dev_dir, f".tmp.{os.getpid()}.{name}")
    with contextlib.suppress(FileNotFoundError):
        os.unlink(temporary)
    os.symlink(target, temporary)
    try:
        os.rename(temporary, path)
    except OSError:
        os.unlink(temporary)
        raise


def remove_link(dev_dir: str, name: str, target: str) -> bool:
    """True if dev_dir/name pointed to target and is gone now; a link to anything else is not ours and stays."""
    path = os.path.join(dev_dir, name)
    try:
        if os.readlink(path) != target:
            return False
        os.unlink(path)
    except OSError:
        return False
    return True


def link_target(dev_dir: str, name: str) -> int | None:
    """Number of the loop device that the link of a device points to; None if it is not such a link."""
    try:
        target = os.readlink(os.path.join(dev_dir, check_name(name)))
    except OSError:
        return None
    return int(target.removeprefix("/dev/loop")) if _OURS.fullmatch(target) else None


# ---- exact removal ---------------------------------------------------------------------------------------------------

def _open_status(number: int) -> tuple[int, Status | None]:
    """(descriptor or -1, status). Read-only, so that closing it does not make udev look at the device again."""
    try:
        fd = os.open(node(number), os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        if error.errno in (errno.ENXIO, errno.ENOENT, errno.ENODEV):
            return -1, None
        raise
    try:
        return fd, status(fd)
    except OSError:
        os.close(fd)
        raise


def release(number: int, is_ours: Callable[[Status], bool], keep_autoclear: bool = False) -> bool:
    """One round of "AUTOCLEAR, close, look again". True: gone, and all dirty pages were written before it went.

    False: somebody else has it open, and nothing has changed (with `keep_autoclear` it goes when that last user closes
    it).
    """
    fd, now = _open_status(number)
    if fd < 0:
        return True
    try:
        if now is None or not is_ours(now):
            return True
        _set_status(fd, now, flags=now.flags | AUTOCLEAR)
    finally:
        os.close(fd)
    fd, now = _open_status(number)
    if fd < 0:
        return True
    try:
        if now is None or not is_ours(now):
            return True
        if not keep_autoclear:
            _set_status(fd, now, flags=now.flags & ~AUTOCLEAR)
        return False
    finally:
        os.close(fd)


def _is_claimed(number: int) -> bool:
    """Mounted (in any name space), swap, or part of another device: surely in use. The opposite proves nothing."""
    try:
        os.close(os.open(node(number), os.O_RDONLY | os.O_EXCL | os.O_CLOEXEC))
    except OSError as error:
        return error.errno == errno.EBUSY
    return False


def users(number: int) -> list[str]:
    """Who has the device, for messages only: racy, and blind for a lazily unmounted file system."""
    return [str(who) for who in disk.who_uses(node(number))]


# ---- the front end ---------------------------------------------------------------------------------------------------

class FuseLoop:
    """The default front end: own FUSE server behind a loop device with direct I/O."""

    name = "fuse"

    def __init__(self, dev_dir: str) -> None:
        self.dev_dir = dev_dir

    def create(self, device: str, clones: int) -> Channel:
        return Channel(*fuse.create(f"mars:{device}", clones))

    def attach(self, device: str, mount: int, size: int, block_size: int, announce: Callable[[int], None]) -> Attached:
        backing = fuse.open_file(mount, device)
        try:
            facts = os.fstat(backing)
            number, fd = _bind(backing, device, size, block_size, announce)
        finally:
            os.close(backing)
        attached = Attached(number, facts.st_dev, facts.st_ino)
        try:
            try:
                _check_bound(fd, attached, device, size, block_size)
                _limit_discard(number)
            finally:
                os.close(fd)
            make_link(self.dev_dir, device, attached.path)
        except OSError:
            _release_patiently(attached, device, 2.0)
            remove_number(number)
            raise
        return attached

    def detach(self, device: str, attached: Attached, patience: float) -> list[str]:
        number, path = attached.number, attached.path
        if _is_claimed(number):
            return users(number) or [f"{path} is claimed by the kernel (mount, swap, or a device on top)"]
        had_link = remove_link(self.dev_dir, device, path)
        if not _release_patiently(attached, device, patience):
            if had_link:
                make_link(self.dev_dir, device, path)
            return users(number) or [f"somebody has {path} open (not found in /proc)"]
        remove_number(number)
        return []

    def forget(self, device: str, number: int) -> None:
        fd, now = _open_status(number)
        if fd < 0:
            return
        os.close(fd)
        if now is not None:
            if now.tag != tag_of(device):
                return
            left = Attached(number, now.device, now.inode)
            remove_link(self.dev_dir, device, left.path)
            if not _release_patiently(left, device, 3.0):
                raise OSError(errno.EBUSY, f"{left.path}, left by an interrupted attach of {device}, is in use")
        remove_number(number)

    def resize(self, device: str, attached: Attached, size: int) -> None:
        check_size(size)
        fd, now = _open_status(attached.number)
        if fd < 0:
            raise OSError(errno.ENODEV, f"{attached.path} is gone")
        try:
            if now is None or not now.is_bound_to(attached, device):
                raise OSError(errno.ENODEV, f"{attached.path} is not our device {device} any more")
            if size < device_size(fd):
                text = f"{device} has {device_size(fd)} bytes; a live device is never made smaller"
                raise OSError(errno.EINVAL, text)
            _set_status(fd, now, sizelimit=size)
            if device_size(fd) != size:
                raise OSError(errno.EIO, f"{attached.path} has {device_size(fd)} bytes after resizing to {size}")
        finally:
            os.close(fd)

    def users(self, device: str, attached: Attached) -> list[str]:
        return users(attached.number)


def _release_patiently(attached: Attached, device: str, patience: float) -> bool:
    """`release` again and again for `patience` seconds: udev and blkid look into a device for a moment, then let go."""
    deadline, pause = time.monotonic() + patience, 0.02
    while not release(attached.number, lambda now: now.is_bound_to(attached, device)):
        if time.monotonic() >= deadline:
            return False
        time.sleep(pause)
        pause = min(pause * 2, 0.25)
    return True


def _bind(backing: int, device: str, size: int, block_size: int, announce: Callable[[int], None]) -> tuple[int, int]:
    """(number, open descriptor) of a fresh loop device bound to the file. EBUSY: somebody was faster."""
    config = _CONFIG_HEAD.pack(backing, block_size) + _info(size, DIRECT_IO, tag_of(device)) + _CONFIG_TAIL
    number = FIRST_NUMBER - 1
    while True:
        number = reserve_number(number)
        announce(number)
        fd = -1
        try:
            fd = os.open(node(number), os.O_RDWR | os.O_CLOEXEC)
            fcntl.ioctl(fd, _CONFIGURE, config)
            return number, fd
        except OSError as error:
            if fd >= 0:
                os.close(fd)
            vanished = fd < 0 and error.errno == errno.ENOENT
            if error.errno == errno.EBUSY or vanished and not os.path.exists(f"/sys/block/loop{number}"):
                continue
            remove_number(number)
            if vanished:
                raise OSError(errno.ENOENT, f"no {node(number)}: /dev is not a devtmpfs of this kernel") from None
            raise


def _check_bound(fd: int, attached: Attached, device: str, size: int, block_size: int) -> None:
    """The kernel really made what was asked for; a device that differs is worse than none."""
    now = status(fd)
    if now is None or not now.is_bound_to(attached, device):
        raise OSError(errno.EIO, f"{attached.path} was bound to something else at once")
    if not now.flags & DIRECT_IO:
        raise OSError(errno.EOPNOTSUPP, f"the kernel refused direct I/O for {attached.path}")
    found = device_size(fd), _logical_block(fd)
    if found != (size, block_size):
        raise OSError(errno.EIO, f"{attached.path} came out with (size, block) {found} instead of {(size, block_size)}")


def _limit_discard(number: int) -> None:
    """Bound the time one discard holds up everything else. Without it the device works, less evenly: so only said."""
    path = f"/sys/block/loop{number}/queue/discard_max_bytes"
    try:
        with open(path, "r+", encoding="ascii") as limit:
            if int(limit.read()) > DISCARD_MAX:
                limit.seek(0)
                limit.write(str(DISCARD_MAX))
    except (OSError, ValueError) as error:
        print(f"marsd: cannot limit {path}: {error}; large discards will hold up other requests", file=sys.stderr)


# ---- leftovers of a dead keeper --------------------------------------------------------------------------------------

def _is_dead(number: int) -> bool:
    """Reading past the page cache fails: nobody serves the device. Hangs while somebody could still come to serve."""
    buffer = mmap.mmap(-1, mmap.PAGESIZE)
    try:
        fd = os.open(node(number), os.O_RDONLY | os.O_DIRECT | os.O_CLOEXEC)
        try:
            os.preadv(fd, [buffer], 0)
        finally:
            os.close(fd)
    except OSError as error:
        return error.errno in (errno.EIO, errno.ENOTCONN, errno.ENXIO)
    finally:
        buffer.close()
    return False


def clear_leftover(dev_dir: str, name: str, number: int) -> str:
    """Take away what a dead keeper left of device `name`. Empty when nothing is left; else a sentence for people.

    The caller has made sure that no keeper and no worker of its own lives.
    """
    path, tag = node(number), tag_of(name)
    fd, now = _open_status(number)
    if fd >= 0:
        os.close(fd)
    if now is None or now.tag != tag:
        remove_link(dev_dir, name, path)
        if fd >= 0 and now is None:
            remove_number(number)
        return ""
    remove_link(dev_dir, name, path)
    if not _is_dead(number):
        return f"{path} ({name}) is served by somebody else: left alone"
    who = users(number)
    if release(number, lambda found: found.tag == tag, keep_autoclear=True):
        remove_number(number)
        return ""
    by = f" ({', '.join(who)})" if who else ""
    return (f"{path} is what is left of device {name} of a dead marsd and still in use{by}: "
            "all its I/O fails; unmount it, then it goes away")
