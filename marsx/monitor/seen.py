"""What can be seen of this host beside the tree: its marsd, devices, mounts, log files, and when log was written.

`look` opens nothing for writing, and leaves out what this user may not see: the picture then says less, never a guess.
"""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from marsx import __version__
from marsx.base.config import Paths
from marsx.base.errors import DamagedError
from marsx.base.mounts import device_number, mounts_of
from marsx.base.position import LogPos, log_name, parse_log_name
from marsx.base.text import printable
from marsx.log.record import BLOCK, GROUP_FIELDS, GROUP_MAGIC
from marsx.tree.view import View

PING_TIMEOUT = 2.0
ANSWER_MAX = 16 << 20
BEFORE_MAX = 1 << 20
"""How far back the header of a group is looked for."""

RUNNING, SILENT, DOWN, UNASKED = "running", "silent", "down", "unasked"


@dataclass(frozen=True)
class Daemon:
    """What marsd of this host says. `state`: running, silent (runs, answers nothing), down, unasked (not allowed)."""

    state: str = DOWN
    version: str = ""
    heard: Mapping[str, float] | None = None
    """host -> seconds since it was last heard of"""
    live: Mapping[str, Any] = field(default_factory=dict)
    """resource -> counters and positions of its device at this moment (`status` of the control socket)"""

    def __str__(self) -> str:
        version = f"marsd {self.version}".strip()
        return {
            RUNNING: f"{version} (running)",
            SILENT: "marsd runs but does not answer",
            UNASKED: "marsd (only root may ask it)",
        }.get(self.state, "marsd does not run on this host")


@dataclass(frozen=True)
class LogFile:
    """A log file that lies here."""

    nr: int
    producer: str
    size: int
    changed: float
    """When it was last written to, in seconds since the epoch."""


@dataclass(frozen=True)
class Seen:
    """What was seen of one host at one moment. All of it may be left out."""

    host: str
    program: str = __version__
    kernel: str = ""
    daemon: Daemon = Daemon()
    mounts: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """resource -> mount points of its device"""
    devices: frozenset[str] = frozenset()
    """Resources whose device exists here."""
    disks: frozenset[str] | None = None
    """Resources whose data device exists here; None: not looked."""
    logs: Mapping[str, tuple[LogFile, ...]] | None = None
    """resource -> its log files here, by number; None: not looked."""
    when: Callable[[str, LogPos, int], int] = lambda resource, pos, end: 0
    """(resource, position, end of its log) -> real time in ns at which the group behind it was written, 0: not known"""
    before: Callable[[str, LogPos], int] = lambda resource, pos: 0
    """(resource, position) -> the same of the group in front of it"""
    sync_limit: int = 0
    free_bytes: int | None = None
    total_bytes: int | None = None


def look(view: View, paths: Paths, host: str, daemon: Daemon, only: str = "") -> Seen:
    """See the module."""
    names = [name for name in view.resources if not only or name == only]
    here = [name for name in names if view.data(name, host)]
    numbers = {name: device_number(f"{paths.dev_dir}/{view.device(name, host) or name}") for name in here}
    mounts = mounts_of({number for number in numbers.values() if number})
    points = {number: tuple(mount.point for mount in found) for number, found in mounts.items()}
    free, total = space(paths.mars_dir)
    return Seen(
        host=host,
        kernel=os.uname().release,
        daemon=daemon,
        mounts={name: points[number] for name, number in numbers.items() if number in points},
        devices=frozenset(name for name, number in numbers.items() if number),
        disks=frozenset(name for name in here if os.path.exists(view.data(name, host))),
        logs={name: log_files(paths.mars_dir, name) for name in names},
        when=partial(time_behind, paths.mars_dir),
        before=partial(time_before, paths.mars_dir),
        sync_limit=sync_limit(paths),
        free_bytes=free,
        total_bytes=total,
    )


def space(path: str) -> tuple[int | None, int | None]:
    """Bytes free and in all of the file system of a directory."""
    try:
        found = os.statvfs(path)
    except OSError:
        return None, None
    return found.f_bavail * found.f_frsize, found.f_blocks * found.f_frsize


def sync_limit(paths: Paths) -> int:
    """How many resources may sync at once here, 0 for no limit."""
    try:
        with open(f"{paths.sys_dir}/sync_limit", encoding="ascii", errors="replace") as file:
            text = file.read(32).strip()
    except OSError:
        return 0
    return int(text) if text.isdigit() else 0


def log_files(mars_dir: str, resource: str) -> tuple[LogFile, ...]:
    """The log files of a resource that lie here, by number."""
    found = []
    try:
        with os.scandir(f"{mars_dir}/resource-{resource}") as items:
            for item in items:
                if item.name.startswith("log-") and item.is_file(follow_symlinks=False):
                    with suppress(DamagedError):
                        nr, producer = parse_log_name(item.name)
                        status = item.stat(follow_symlinks=False)
                        found.append(LogFile(nr, producer, status.st_size, status.st_mtime))
    except OSError:
        return ()
    return tuple(sorted(found, key=lambda log: (log.nr, log.producer)))


def time_behind(mars_dir: str, resource: str, pos: LogPos, end: int) -> int:
    """When the group behind a position was written: real time in ns, 0 if that cannot be read here. `end`: where the
    log ends, as far as that is known (there the next log goes on)."""
    directory = f"{mars_dir}/resource-{resource}"
    if pos.pos < end:
        return _group_time(f"{directory}/{pos.log}", pos.nr, pos.pos)
    following = [log for log in log_files(mars_dir, resource) if log.nr == pos.nr + 1]
    times = [_group_time(f"{directory}/{log_name(log.nr, log.producer)}", log.nr, 0) for log in following]
    return max(times, default=0)


def time_before(mars_dir: str, resource: str, pos: LogPos) -> int:
    """When the group in front of a position was written, 0 if that cannot be read here (or it is a very large one)."""
    start = max(0, pos.pos - BEFORE_MAX)
    data = _read(f"{mars_dir}/resource-{resource}/{pos.log}", BLOCK + start, pos.pos - start)
    for offset in range(len(data) - BLOCK, -1, -BLOCK):
        at = _header_time(data[offset : offset + GROUP_FIELDS.size], pos.nr, start + offset)
        if at:
            return at
    return 0


def _group_time(path: str, nr: int, pos: int) -> int:
    return _header_time(_read(path, BLOCK + pos, GROUP_FIELDS.size), nr, pos)


def _header_time(block: bytes, nr: int, pos: int) -> int:
    """The real time in a group header, 0 if it is none of just this log and position."""
    if len(block) < GROUP_FIELDS.size or not block.startswith(GROUP_MAGIC):
        return 0
    fields = GROUP_FIELDS.unpack(block)
    return int(fields[12]) if (fields[5], fields[7]) == (nr, pos) else 0


def _read(path: str, offset: int, length: int) -> bytes:
    """A part of a log file, empty if it cannot be read."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return b""
    try:
        return os.pread(fd, length, offset)
    except OSError:
        return b""
    finally:
        os.close(fd)


def ask_daemon(path: str) -> Daemon:
    """What marsd says of itself, and when it last heard each host."""
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
            sock.settimeout(PING_TIMEOUT)
            sock.connect(path)
            sock.sendall(b'{"cmd":"status"}\n')
            answer = _read_answer(sock)
    except PermissionError:
        return Daemon(UNASKED)
    except TimeoutError:
        return Daemon(SILENT)
    except OSError:
        return Daemon(DOWN)
    said, ages = answer.get("version"), answer.get("heard")
    version = printable(said, 40) if isinstance(said, str) else ""
    live = answer.get("resources")
    live = live if isinstance(live, dict) else {}
    if not isinstance(ages, dict):
        return Daemon(RUNNING, version, live=live)
    return Daemon(RUNNING, version, {
        str(host): float(age) for host, age in ages.items() if isinstance(age, int | float) and 0 <= age < 1e12
    }, live)  # fmt: skip


def _read_answer(sock: socket.socket) -> dict[str, object]:
    buffer = b""
    while b"\n" not in buffer and len(buffer) < ANSWER_MAX:
        data = sock.recv(1 << 16)
        if not data:
            break
        buffer += data
    try:
        answer = json.loads(buffer.partition(b"\n")[0])
    except (ValueError, RecursionError):
        return {}
    return answer if isinstance(answer, dict) else {}
