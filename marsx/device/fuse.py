"""The FUSE connection of a device: made with fsopen/fsmount, attached to no directory, seen by no name space.

`create(clones)` gives `clones` descriptors of /dev/fuse, all of one connection, and the descriptor of the file system.
The connection lives as long as any of the /dev/fuse descriptors is open in any process; requests that a dead server had
read from a clone come again only if somebody else still holds that clone. So the keeper takes all of them and keeps
them. The file system lives as long as its descriptor, or a file opened in it (the loop device's), is open.

INIT is sent by the kernel at CMD_CREATE and waits in the connection until a server reads it; nothing here waits for it.
"""
from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import struct

DEVICE = "/dev/fuse"
DEV_IOC_CLONE = 0x8004E500

_SYS_FSOPEN, _SYS_FSCONFIG, _SYS_FSMOUNT = 430, 431, 432
_FSOPEN_CLOEXEC = 1
_SET_STRING, _CMD_CREATE = 1, 6
_FSMOUNT_CLOEXEC = 1
_ATTR_NOSUID, _ATTR_NODEV = 2, 4

_libc = ctypes.CDLL(None, use_errno=True)


def _syscall(what: str, number: int, *args: int | bytes | None) -> int:
    """A system call that libc may have no name for; OSError says which one failed."""
    plain = [ctypes.c_long(a) if isinstance(a, int) else ctypes.c_char_p(a) for a in args]
    result = _libc.syscall(ctypes.c_long(number), *plain)
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, f"{what}: {os.strerror(code)}")
    return result


def _set(context: int, key: bytes, value: bytes) -> None:
    _syscall(f"fsconfig {key.decode()}", _SYS_FSCONFIG, context, _SET_STRING, key, value, 0)


def mount_unseen(fuse_fd: int, source: str) -> int:
    """Descriptor of a new FUSE file system served through `fuse_fd`; no path leads to it."""
    context = _syscall("fsopen fuse", _SYS_FSOPEN, b"fuse", _FSOPEN_CLOEXEC)
    try:
        _set(context, b"source", source.encode())
        _set(context, b"fd", b"%d" % fuse_fd)
        _set(context, b"rootmode", b"40000")
        _set(context, b"user_id", b"0")
        _set(context, b"group_id", b"0")
        _syscall("fsconfig create", _SYS_FSCONFIG, context, _CMD_CREATE, None, None, 0)
        return _syscall("fsmount", _SYS_FSMOUNT, context, _FSMOUNT_CLOEXEC, _ATTR_NOSUID | _ATTR_NODEV)
    finally:
        os.close(context)


def open_clone(first: int) -> int:
    """One more descriptor of the connection of `first`, with a queue of its own for requests being served."""
    fd = os.open(DEVICE, os.O_RDWR | os.O_CLOEXEC)
    try:
        fcntl.ioctl(fd, DEV_IOC_CLONE, struct.pack("<I", first))
    except OSError:
        os.close(fd)
        raise
    return fd


def create(source: str, clones: int) -> tuple[list[int], int]:
    """([first, clone, ...], file system): `clones` descriptors in all. On failure nothing stays open."""
    fds: list[int] = []
    try:
        try:
            fds.append(os.open(DEVICE, os.O_RDWR | os.O_CLOEXEC))
        except FileNotFoundError:
            raise OSError(errno.ENOENT, f"no {DEVICE}: this kernel has no FUSE, or its module is not loaded") from None
        mount = mount_unseen(fds[0], source)
        try:
            while len(fds) < clones:
                fds.append(open_clone(fds[0]))
        except OSError:
            os.close(mount)
            raise
        return fds, mount
    except OSError:
        for fd in fds:
            os.close(fd)
        raise


def open_file(mount: int, name: str) -> int:
    """The device's file, opened in the unmounted file system. Waits until a server answers."""
    return os.open(name, os.O_RDWR | os.O_CLOEXEC, dir_fd=mount)
