"""Atomic and durable updates of small files and symlinks: with `disk.py` the only place that syncs.

What it promises

* A reader sees the old or the new value, never a part of it: temporary name in the same directory, then rename. The
  stamp (mtime, ns) is on the link before it gets its name.
* With `durable` the value, its stamp and its name are on stable storage when the call returns.
* A sync that failed is never tried again into success: the kernel reports a write-back error once and may forget the
  dirty pages. From the first failure on every sync of that file system fails here, until the process is started anew
  and has read what really is there.

What makes a symlink durable

A symlink cannot be opened, so it cannot be fsynced; one syncs its directory, and hopes that this covers the link. Tried
on 6.18 by copying the device just after the sync and mounting the copy (and repeated by a test):

| file system | target <= 59 bytes (in the inode) | longer (own block) |
|---|---|---|
| ext4, also with fast_commit or data=writeback | fsync of the directory | fsync of the directory |
| ext4 without journal | fsync of the directory | **link comes back empty**; syncfs is needed |
| xfs | fsync of the directory | fsync of the directory |

So a long target is made durable by syncfs (about 1.4 times the cost of the fsync), and so is every target on a file
system that is not in `_DIRECTORY_FSYNC_COVERS` (btrfs logs a directory without promising its new symlinks). On tmpfs
nothing is durable and both calls do nothing.

A value has at most 1023 bytes: what xfs, and ext4 with blocks of 1 KiB, take. A longer one would be an entry that some
hosts can have and others cannot.

Between several links written without `durable` and synced together only the journal's order holds: who needs "this one
first" syncs in between.
"""
from __future__ import annotations

import contextlib
import errno
import itertools
import os
import stat
from collections.abc import Iterable

VALUE_MAX = 1023
INLINE_MAX = 59
TEMP_PREFIX = ".tmp."
STAMP_MAX = 2**63 - 1

_DIRECTORY_FSYNC_COVERS = frozenset({"ext2", "ext3", "ext4", "xfs", "tmpfs", "ramfs"})

_serial = itertools.count(1)
_failed: dict[int, str] = {}
_directory_fsync_covers: dict[int, bool] = {}


def check_value(value: str) -> bytes:
    """The bytes of a legal link value; ValueError says what is wrong with it."""
    if not value:
        raise ValueError("a link value must not be empty")
    try:
        raw = value.encode("utf-8")
    except UnicodeEncodeError as err:
        raise ValueError("a link value must be valid UTF-8") from err
    if b"\0" in raw:
        raise ValueError("a link value must not contain NUL")
    if len(raw) > VALUE_MAX:
        raise ValueError(f"a link value has at most {VALUE_MAX} bytes, this one has {len(raw)}")
    return raw


def write_link(path: str, value: str, stamp_ns: int, durable: bool) -> None:
    """Put `value` with mtime `stamp_ns` at `path`, atomically. Replaces a symlink, never another kind of file."""
    raw = check_value(value)
    if not 0 < stamp_ns <= STAMP_MAX:
        raise ValueError(f"stamp out of range: {stamp_ns}")
    directory, name = os.path.split(path)
    with contextlib.suppress(FileNotFoundError):
        if not stat.S_ISLNK(os.lstat(path).st_mode):
            raise FileExistsError(errno.EEXIST, "is there and is not a symlink", path)
    temp = _temp_path(directory, name)
    os.symlink(raw, os.fsencode(temp))
    try:
        os.utime(temp, ns=(stamp_ns, stamp_ns), follow_symlinks=False)
        os.rename(temp, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temp)
        raise
    if durable:
        sync_links(directory, [value])


def write_file(path: str, data: bytes, mode: int = 0o600) -> None:
    """Put a regular file with just these bytes and this mode at `path`, atomically and durably."""
    directory, name = os.path.split(path)
    temp = _temp_path(directory, name)
    fd = os.open(temp, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        try:
            os.fchmod(fd, mode)
            _write_all(fd, data)
            _sync(fd, os.fsync, "fsync", temp)
        finally:
            os.close(fd)
        os.rename(temp, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temp)
        raise
    sync_dir(directory)


def overwrite(fd: int, data: bytes, offset: int, name: str) -> None:
    """Replace bytes inside an existing file, durably, without needing new space."""
    done = 0
    while done < len(data):
        done += os.pwrite(fd, data[done:], offset + done)
    _sync(fd, os.fdatasync, "fdatasync", name)


def make_dir(path: str, mode: int = 0o755, durable: bool = False) -> bool:
    """Make one directory; True if it was not there. Something else under that name is an error."""
    try:
        os.mkdir(path, mode)
    except FileExistsError:
        if not stat.S_ISDIR(os.lstat(path).st_mode):
            raise NotADirectoryError(errno.ENOTDIR, "is there and is not a directory", path) from None
        return False
    if durable:
        sync_dir(os.path.dirname(path))
    return True


def sync_dir(path: str) -> None:
    """Make the names in a directory durable."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        _sync(fd, os.fsync, "fsync", path)
    finally:
        os.close(fd)


def sync_links(directory: str, values: Iterable[str]) -> None:
    """Make links in one directory durable whose targets are `values` (by the cheaper way that is enough)."""
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        if _fsync_is_enough(fd) and all(len(value.encode("utf-8")) <= INLINE_MAX for value in values):
            _sync(fd, os.fsync, "fsync", directory)
        else:
            _sync(fd, _syncfs, "syncfs", directory)
    finally:
        os.close(fd)


def sync_fs(path: str) -> None:
    """Make everything on the file system of `path` durable."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        _sync(fd, _syncfs, "syncfs", path)
    finally:
        os.close(fd)


def is_temp(name: str) -> bool:
    """True for names that a reader of a directory has to pass over (also the original's)."""
    return name.startswith((TEMP_PREFIX, ".tmp-"))


def _temp_path(directory: str, name: str) -> str:
    if not name:
        raise ValueError("no file name")
    return os.path.join(directory, f"{TEMP_PREFIX}{os.getpid()}.{next(_serial)}.{name}")


def _write_all(fd: int, data: bytes) -> None:
    done = 0
    while done < len(data):
        done += os.write(fd, data[done:])


def _sync(fd: int, call, what: str, path: str) -> None:
    """Every sync of this module: a failure is remembered for the file system and never becomes a success."""
    device = os.fstat(fd).st_dev
    before = _failed.get(device)
    if before is not None:
        raise OSError(errno.EIO, f"an earlier sync of this file system failed ({before}); nothing after it counts "
                                 "as durable until the process is started anew", path)
    try:
        call(fd)
    except OSError as err:
        _failed[device] = f"{what} of {path}: {os.strerror(err.errno or errno.EIO)}"
        raise OSError(err.errno or errno.EIO, f"{what} failed: {os.strerror(err.errno or errno.EIO)}", path) from err


def _syncfs(fd: int) -> None:
    # Python has os.sync() only, which syncs every disk of the machine and reports no error.
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)
    if libc.syncfs(ctypes.c_int(fd)) != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))


def _fsync_is_enough(fd: int) -> bool:
    """True where a fsync of the directory is known to cover a short symlink; decided once per file system."""
    device = os.fstat(fd).st_dev
    if device not in _directory_fsync_covers:
        _directory_fsync_covers[device] = _file_system_type(device) in _DIRECTORY_FSYNC_COVERS
    return _directory_fsync_covers[device]


def _file_system_type(device: int) -> str:
    wanted = f"{os.major(device)}:{os.minor(device)}"
    with open("/proc/self/mountinfo", encoding="utf-8", errors="replace") as lines:
        for line in lines:
            fields = line.split(" ")
            if fields[2] == wanted and "-" in fields:
                return fields[fields.index("-") + 1]
    return ""
