"""What marsadm looks at before it writes or asks: the host, the directories, a device. Every check is one clear error.

marsd checks again what it carries out; these checks are here because their messages can be better, and because a
command that cannot succeed should not start.
"""

from __future__ import annotations

import os
import stat
import time

from marsx.base import disk
from marsx.base.errors import NotFoundError, PermissionDeniedError, PreconditionError, UsageError
from marsx.tree import paths

MIN_DEVICE = 64 << 10
BLOCK = 4096
UDEV_PATIENCE_S = 0.3


def require_root() -> None:
    """Only root administrates."""
    if os.geteuid() != 0:
        raise PermissionDeniedError("marsadm has to be run by root", "run it as root")


def require_mars_dir(path: str | os.PathLike[str]) -> None:
    """The directory of state and logs is there and can be written."""
    if not os.path.isdir(path):
        raise PreconditionError(f"{path} is not a directory", f"make and mount the file system for {path} first")
    if not os.access(path, os.W_OK | os.X_OK):
        raise PermissionDeniedError(f"{path} is not writable", "is the file system mounted read-only?")
    flags = os.statvfs(path).f_flag
    if flags & os.ST_RDONLY:
        raise PermissionDeniedError(f"{path} is not writable", "its file system is mounted read-only")


def identifier(text: str, what: str) -> str:
    """A name of a host or resource that may stand in the tree."""
    if text.lower() in paths.RESERVED:
        raise UsageError(f"'{text}' is a reserved word and cannot be the name of a {what}")
    if not (paths.is_host(text) if what == "host" else paths.is_resource(text)):
        raise UsageError(f"'{text[:80]}' cannot be the name of a {what}", "letters, digits, _ and - only, at most 63")
    return text


def host_name(node: str, file: str | os.PathLike[str] = "/etc/hostname", file_is_ours: bool | None = None) -> str:
    """The name of this host, after checks that it can be one and that it will still be the same after a reboot."""
    if "." in node:
        raise PreconditionError(
            f"the host name '{node}' has dots, mars needs the short name",
            f"hostnamectl set-hostname {node.split('.')[0]}",
        )
    if not paths.is_host(node):
        raise PreconditionError(f"the host name '{node[:80]}' cannot be used by mars", "letters, digits, _ and - only")
    if _file_is_ours() if file_is_ours is None else file_is_ours:
        written = _written_name(file)
        if written and written != node:
            raise PreconditionError(
                f"{file} says '{written}' but the running host name (uname -n) is '{node}'",
                "make them equal: the name of a cluster's host must survive a reboot",
            )
    return node


def _file_is_ours() -> bool:
    """A UTS name space of its own (another one than that of process 1) has a name that no file of this root names."""
    try:
        return os.readlink("/proc/1/ns/uts") == os.readlink("/proc/self/ns/uts")
    except OSError:
        return False


def _written_name(file: str | os.PathLike[str]) -> str:
    try:
        with open(file, encoding="utf-8", errors="replace") as text:
            lines = text.read().splitlines()
    except OSError:
        return ""
    return next((line.strip() for line in lines if line.strip() and not line.startswith("#")), "")


def address(text: str) -> str:
    """An IPv4 address as the tree holds it."""
    import ipaddress

    try:
        return str(ipaddress.IPv4Address(text))
    except ValueError as exc:
        raise UsageError(f"'{text[:80]}' is not an IPv4 address", "example: --ip=10.0.0.1") from exc


def own_address(listing: str | None = None) -> str:
    """The first IPv4 address of an interface that is not the loopback, in the order of `ip addr`."""
    if listing is None:
        listing = _ip_listing()
    for line in listing.splitlines():
        words = line.split()
        if len(words) >= 4 and words[2] == "inet" and words[1].rstrip(":") != "lo":
            return address(words[3].partition("/")[0])
    raise PreconditionError("no interface of this host has an IPv4 address", "give it with --ip=ADDRESS")


def _ip_listing() -> str:
    import subprocess

    try:
        done = subprocess.run(
            ["ip", "-o", "-4", "addr", "show"], stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=10
        )
    except (OSError, subprocess.TimeoutExpired) as exc:
        raise PreconditionError(f"the own address is not found: {exc}", "give it with --ip=ADDRESS") from exc
    return done.stdout


def block_device(path: str, taken: dict[str, str]) -> int:
    """The size of a block device that nobody uses; `taken` maps devices to the resources they already belong to."""
    if not path.startswith("/"):
        raise UsageError(f"'{path[:200]}' is not an absolute path", "example: /dev/vg-test/LV-ResA")
    try:
        found = os.stat(path)
    except OSError as exc:
        raise NotFoundError(f"device {path} does not exist ({exc.strerror})", "check the name: lsblk") from exc
    if not stat.S_ISBLK(found.st_mode):
        raise PreconditionError(
            f"{path} is not a block device", "a resource needs a disk, a partition or a logical volume"
        )
    _refuse_taken(path, found.st_rdev, taken)
    users = _users(path)
    if users:
        raise PreconditionError(f"device {path} is in use: {', '.join(users[:5])}", "umount or stop its user first")
    return _probe(path)


def _users(path: str) -> list[str]:
    """Who uses a device; udev and the like look into each new one for a moment, so processes are looked for twice."""
    users = disk.who_uses(path)
    if users and all(user.startswith("open in process") for user in users):
        time.sleep(UDEV_PATIENCE_S)
        users = disk.who_uses(path)
    return users


def _refuse_taken(path: str, rdev: int, taken: dict[str, str]) -> None:
    for other, resource in taken.items():
        try:
            same = other == path or os.stat(other).st_rdev == rdev
        except OSError:
            same = False
        if same:
            raise PreconditionError(f"device {path} already belongs to resource {resource}", "use another device")


def _probe(path: str) -> int:
    fd = disk.open_exclusive(path)
    try:
        return disk.size(fd)
    finally:
        os.close(fd)


def fits(path: str, device_size: int, wanted: int | None, least: int = MIN_DEVICE) -> int:
    """The size a resource gets on a device of `device_size` bytes: `wanted`, or all of it in whole blocks."""
    size = device_size // BLOCK * BLOCK if wanted is None else wanted
    if size % BLOCK:
        raise UsageError(f"size {size} is not a multiple of {BLOCK}")
    if size > device_size:
        raise PreconditionError(f"device {path} is too small: it has {device_size} bytes, {size} are needed")
    if size <= MIN_DEVICE or size < least:
        raise PreconditionError(
            f"device {path} is too small: it offers {size} bytes, {max(least, MIN_DEVICE + 1)} are needed"
        )
    return size
