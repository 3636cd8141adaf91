"""Make, end and find log files. The groups inside are written by the append engine (ext/marslog.pyx).

Invariants (rule 4):
  a file has the name of a log only after its own header block is durable in it, and a name is never given twice;
  a log's end is what its successor's header says, whatever stands behind;
  the newest log is the highest one whose header is sound and whose predecessor is there (or was deleted: the oldest);
  a deleted log's file becomes a log again only when nobody has it open any more (rule 9), however it was opened.
Anything that fits into no chain stops with an error, or is given back as ignored; nothing is skipped in silence.
"""
from __future__ import annotations

import contextlib
import errno
import fcntl
import os
from dataclasses import dataclass

from marsx.base import durable
from marsx.base.errors import DamagedError, MarsError, NotFoundError, PreconditionError
from marsx.base.position import LogPos
from marsx.log.reader import LogEntry, is_empty, list_logs, open_log
from marsx.log.record import BLOCK, NO_ID, FileHeader

SPARE = ".spare-log"
SPARES = (".gap-log", ".gap-map", ".next-log")  # of emergency mode
_TWICE = "see mars-status --history; a log is never written twice"
_SPACE = "make room on the file system of the logs: marsadm log-delete-all, or a larger one"


@dataclass(frozen=True)
class LogFile:
    """One log of a chain. `end` and `end_digest` come from the successor's header; None while it is the newest."""

    path: str
    size: int
    header: FileHeader
    end: int | None = None
    end_digest: str | None = None

    @property
    def nr(self) -> int:
        """Log number."""
        return self.header.nr

    @property
    def producer(self) -> str:
        """The host that wrote it."""
        return self.header.producer


@dataclass(frozen=True)
class Newest:
    """`log` is the newest log, None if there is none. `ignored`: (path, why) of higher files that are no logs."""

    log: LogFile | None
    ignored: tuple[tuple[str, str], ...] = ()


def create_log(directory: str, header: FileHeader, preallocate_bytes: int = 0, recycle: str | None = None) -> int:
    """Make a new log and return its descriptor (O_RDWR, O_DIRECT). When this returns, header and name are durable.

    `preallocate_bytes` of group space are reserved. `recycle`: path of a deleted log's file to use again; the caller
    has made sure that nobody reads it any more (rule 9), and it is gone under its old name whatever happens.
    """
    final = os.path.join(directory, header.name)
    temp = os.path.join(directory, f"{durable.TEMP_PREFIX}{os.getpid()}.{header.log_id.hex()[:8]}.{header.name}")
    if os.path.lexists(final):
        raise PreconditionError(f"log {final} exists already", _TWICE)
    block = header.pack()
    fd = -1
    try:
        fd = _open_new(temp, recycle)
        if preallocate_bytes:
            os.posix_fallocate(fd, 0, BLOCK + preallocate_bytes)
        durable.overwrite(fd, block, 0, temp)
        fcntl.fcntl(fd, fcntl.F_SETFL, fcntl.fcntl(fd, fcntl.F_GETFL) | os.O_DIRECT)
        os.link(temp, final, follow_symlinks=False)
        os.unlink(temp)
        durable.sync_dir(directory)
    except BaseException as err:
        if fd >= 0:
            os.close(fd)
        with contextlib.suppress(OSError):
            os.unlink(temp)
        if isinstance(err, OSError):
            raise _creation_error(final, err) from err
        raise
    return fd


def end_log(fd: int, end_pos: int, name: str = "log") -> None:
    """Cut an ended log to its end, durably. The end comes from a scan or from the append engine; never a guess."""
    if end_pos % BLOCK or end_pos < 0:
        raise ValueError(f"not the end of a group: {end_pos}")
    size = os.fstat(fd).st_size
    if size < BLOCK + end_pos:
        raise DamagedError(f"{name} has {size} bytes and is to end at position {end_pos}",
                           "a part of the log is gone: invalidate this replica or fetch the log from a peer")
    os.ftruncate(fd, BLOCK + end_pos)
    # An overwrite of nothing is the fdatasync; it covers the new size (needed to read the file back).
    durable.overwrite(fd, b"", 0, name)


def set_aside(path: str, limit: int) -> bool:
    """Delete a log, but keep its file, cut to `limit` bytes, for the next one (one such file a directory, the larger
    one stays). The caller has made sure that nobody needs the log. False: it was just deleted."""
    spare = os.path.join(os.path.dirname(path), SPARE)
    size = min(os.stat(path, follow_symlinks=False).st_size, limit) // BLOCK * BLOCK
    try:
        keep = size > os.stat(spare, follow_symlinks=False).st_size
    except FileNotFoundError:
        keep = size > 0
    if not keep:
        os.unlink(path)
        return False
    os.rename(path, spare)
    os.truncate(spare, size)
    return True


def take_spare(directory: str) -> str | None:
    """The file to recycle, if there is one that nobody reads any more: proved by a lease, which the kernel gives only
    for a file that is open nowhere else (rule 9). A file that cannot be proved free is deleted."""
    spare = os.path.join(directory, SPARE)
    try:
        fd = os.open(spare, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    except FileNotFoundError:
        return None
    except OSError:
        drop_spare(directory)
        return None
    try:
        fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_WRLCK)
        fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_UNLCK)
    except OSError:
        drop_spare(directory)
        return None
    finally:
        os.close(fd)
    return spare


def drop_spare(directory: str) -> None:
    """Nothing is kept for the next log."""
    with contextlib.suppress(FileNotFoundError):
        os.unlink(os.path.join(directory, SPARE))


def remove_leftovers(directory: str) -> list[str]:
    """Remove files that creations left behind when they were cut off; returns their paths. Not while one is running."""
    gone = []
    for name in os.listdir(directory):
        if name.startswith(durable.TEMP_PREFIX) and (".log-" in name or name.endswith(SPARES)):
            path = os.path.join(directory, name)
            os.unlink(path)
            gone.append(path)
    return sorted(gone)


def find_newest(directory: str, uuid: str, resource: str, host: str = "") -> Newest:
    """The newest log (rule 4). Of several empty logs with one number that of `host` is taken; an empty log beside one
    with contents is no history (rule 7); two with contents have parted: DamagedError. Who wants to begin the next log
    has to stop when `ignored` names a file: it may be a log with a bad header (rule 21)."""
    entries = list_logs(directory)
    ignored = []
    for nr in sorted({entry.nr for entry in entries}, reverse=True):
        sound = []
        for entry in (e for e in entries if e.nr == nr):
            found = _head(entry, uuid, resource)
            why = found if isinstance(found, str) else _unchained(found, entries, uuid, resource)
            if why:
                ignored.append((entry.path, why))
            elif isinstance(found, LogFile):
                sound.append(found)
        if sound:
            return Newest(_only_one(sound, uuid, resource, host), tuple(ignored))
    return Newest(None, tuple(ignored))


def chain_from(directory: str, at: LogPos, uuid: str, resource: str, host: str = "") -> list[LogFile]:
    """The logs that hold the history from `at` on, in order, each with its end; the last one is the newest.

    (N, its end) is also found when N is deleted and N+1 begins there (rule 7). NotFoundError names a missing log,
    DamagedError a fork or a log that belongs to no chain.
    """
    logs = [_sound(entry, uuid, resource) for entry in list_logs(directory) if entry.nr >= at.nr]
    first = next((log for log in logs if (log.nr, log.producer) == (at.nr, at.producer)), None)
    if first is None:
        later = [log for log in logs if log.header.pred == at]
        if not later:
            raise NotFoundError(f"log {at.log} is missing in {directory}",
                                "connect and fetch it from a peer that has it; if none has, invalidate this replica")
        first = _only_one(later, uuid, resource, host)
    chain = _follow(first, logs, uuid, resource, host)
    end = chain[0].end
    if chain[0].nr == at.nr and end is not None and at.pos > end:
        raise DamagedError(f"{at} lies behind the end of its log ({end}): the history has parted there",
                           "keep the branch that is wanted and invalidate the other replica")
    _no_strangers(chain, logs, uuid, resource)
    return chain


def _open_new(temp: str, recycle: str | None) -> int:
    """The file for a new log under its temporary name, not yet O_DIRECT."""
    flags = os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW
    if recycle is None:
        return os.open(temp, flags | os.O_CREAT | os.O_EXCL, 0o600)
    os.rename(recycle, temp)
    # The old name must be durably gone before the old header is: else a crash leaves a deleted log with a new header.
    durable.sync_dir(os.path.dirname(temp))
    fd = os.open(temp, flags)
    os.fchmod(fd, 0o600)
    return fd


def _creation_error(path: str, err: OSError) -> MarsError:
    """What an operating system error means while a log is made."""
    if err.errno in (errno.ENOSPC, errno.EDQUOT):
        return PreconditionError(f"no space for log {path}", _SPACE)
    if err.errno == errno.EEXIST:
        return PreconditionError(f"log {path} exists already", _TWICE)
    if err.errno == errno.EINVAL:
        return PreconditionError(f"log {path}: its file system does not do O_DIRECT", "use ext4 or xfs for /mars")
    return MarsError(f"log {path} cannot be made: {err.strerror or err}", "see the messages of the kernel")


def _head(entry: LogEntry, uuid: str, resource: str) -> LogFile | str:
    """The log behind a name, or what is wrong with its header."""
    try:
        return _sound(entry, uuid, resource)
    except DamagedError as err:
        return err.text


def _sound(entry: LogEntry, uuid: str, resource: str) -> LogFile:
    with open_log(entry.path, uuid, resource) as log:
        return LogFile(entry.path, entry.size, log.header)


def _unchained(log: LogFile, entries: list[LogEntry], uuid: str, resource: str) -> str:
    """Why this log cannot be the newest: its predecessor is neither there nor deleted as the oldest. Empty = it can."""
    pred = log.header.pred
    lower = [entry for entry in entries if entry.nr < log.nr]
    if pred is None or not lower:
        return ""
    for entry in lower:
        if (entry.nr, entry.producer) == (pred.nr, pred.producer):
            found = _head(entry, uuid, resource)
            return found if isinstance(found, str) else ""
    return f"{log.path}: its predecessor {pred.log} is missing although older logs are there"


def _has_contents(log: LogFile, uuid: str, resource: str) -> bool:
    """A gap is history, however empty its log (rule 27)."""
    if log.header.gap_id != NO_ID:
        return True
    with open_log(log.path, uuid, resource) as opened:
        return not is_empty(opened)


def _only_one(logs: list[LogFile], uuid: str, resource: str, host: str) -> LogFile:
    """The one log of several beside each other that is history (rule 7)."""
    if len(logs) == 1:
        return logs[0]
    full = [log for log in logs if _has_contents(log, uuid, resource)]
    if len(full) > 1:
        names = ", ".join(log.header.name for log in full)
        raise DamagedError(f"the history has parted: {names} continue it differently",
                           "split brain: keep one branch, invalidate the other replicas")
    return (full or sorted(logs, key=lambda log: (log.producer != host, log.producer)))[0]


def _follow(first: LogFile, logs: list[LogFile], uuid: str, resource: str, host: str) -> list[LogFile]:
    """`first` and its successors, each with the end that its successor's header gives it."""
    chain = [first]
    while True:
        last = chain[-1]
        after = [log for log in logs if log.header.pred and
                 (log.header.pred.nr, log.header.pred.producer) == (last.nr, last.producer)]
        if not after:
            return chain
        following = _only_one(after, uuid, resource, host)
        pred = following.header.pred
        assert pred is not None
        chain[-1] = LogFile(last.path, last.size, last.header, pred.pos, following.header.pred_digest)
        chain.append(following)


def _no_strangers(chain: list[LogFile], logs: list[LogFile], uuid: str, resource: str) -> None:
    """Every log from the first one of the chain on is in it, or is empty and therefore no history."""
    known = {log.path for log in chain}
    for log in logs:
        if log.path in known or log.nr < chain[0].nr or not _has_contents(log, uuid, resource):
            continue
        pred = log.header.pred
        here = any(pred and (other.nr, other.producer) == (pred.nr, pred.producer) for other in logs)
        if pred and pred.nr >= chain[0].nr and not here:
            raise NotFoundError(f"log {pred.log} is missing: {log.header.name} follows it",
                                "connect and fetch it from a peer that has it; if none has, invalidate this replica")
        raise DamagedError(f"the history has parted: {log.header.name} does not continue {chain[0].header.name}",
                           "split brain: keep one branch, invalidate the other replicas")
