"""After a start: what do the own logs really hold from the disk position on? (rules 3, 4, 5)

    1. every log from the disk position on is fdatasynced before it is read: what a scan accepts is on the disk, not
       only in a cache
    2. a log with a successor ends where the successor's header says, with that digest; anything else is damage
    3. the newest log ends at its last valid group; a torn tail is normal, but not below a position that was known
       durable. Version links know it, and in an own log the groups behind: their headers tell what was durable when
       they were written. In a copy of another host's log these headers speak of that host's disk: here a piece of many
       groups is written at once, and a power cut may leave the last of them without the first
    4. a digest that was handed in is believed only when the log confirms it: the group behind the position, the group
       before it, or the successor's header. At POS 0 the file header alone counts: a log that was empty may have been
       withdrawn and made again since the digest was noted (rule 7)

What is not as it has to be, or cannot be read, is told as a Damage when others may have the same log whole: up to where
it is sound here, and how far it is known to go on. Nothing is changed then.
"""
from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from dataclasses import dataclass

from marsx.base import durable
from marsx.base.errors import DamagedError, NotFoundError
from marsx.base.position import LogPos, log_name
from marsx.log import reader, record, writer
from marsx.log.reader import COLLECT_NOTHING, COLLECT_UNIQUES, NORMAL_AFTER_CRASH, ScanResult
from marsx.log.record import BLOCK, FileHeader
from marsx.volume.env import Env

HINT = "fetch the log from a peer that has it, or invalidate this replica"


@dataclass
class Recovered:
    """One log of the chain, opened O_RDWR | O_DIRECT. [start, end) was verified; digests belong to these positions."""

    fd: int
    path: str
    header: FileHeader
    start: int
    start_digest: str
    end: int
    digest: str
    is_last: bool
    scan: ScanResult

    @property
    def position(self) -> LogPos:
        return LogPos(self.header.nr, self.header.producer, self.end)


KnownDurable = Callable[[int, str], int]


@dataclass(frozen=True)
class Damage:
    """A log that is not whole here. `header` None: not even that (or no file at all), then pos = 0. `digest` and the
    numbers belong to `pos`, up to which it is sound (group None: not known). `due`: POS that it is known to have
    reached. `unreadable`: byte of the file where the disk gives no block (-1: it gives all that was asked for)."""

    path: str
    nr: int
    producer: str
    header: FileHeader | None = None
    pos: int = 0
    digest: str = ""
    group: int | None = 0
    record: int = 0
    device_size: int = 0
    due: int = 0
    unreadable: int = -1

    @property
    def good(self) -> LogPos:
        return LogPos(self.nr, self.producer, self.pos)


class LogDamaged(DamagedError):
    """A log that others may have whole."""

    def __init__(self, text: str, hint: str, damage: Damage) -> None:
        super().__init__(text, hint)
        self.damage = damage


class LogMissing(NotFoundError):
    """A log of the history is not here; others may have it."""

    def __init__(self, text: str, hint: str, damage: Damage) -> None:
        super().__init__(text, hint)
        self.damage = damage


def recover(env: Env, at: LogPos, at_digest: str, known_durable: KnownDurable, *,
            uniques: bool = False) -> list[Recovered]:
    """The logs that hold the history from `at` on, oldest first. `at_digest` may be "" (then it is found by reading
    the log from its beginning). known_durable(nr, producer): POS that version links call durable. DamagedError,
    NotFoundError name what is wrong."""
    chain = _chain(env, at)
    done: list[Recovered] = []
    try:
        for log in chain:
            first = (log.nr, log.producer) == (at.nr, at.producer)
            done.append(_recover_one(env, log, at.pos if first else 0, at_digest if first else "", known_durable,
                                     COLLECT_UNIQUES if uniques else COLLECT_NOTHING))
    except BaseException:
        close_all(done)
        raise
    return done


def close_all(logs: list[Recovered]) -> None:
    for log in logs:
        os.close(log.fd)


def _chain(env: Env, at: LogPos) -> list[writer.LogFile]:
    """`writer.chain_from`, with the log named that is in the way."""
    try:
        return writer.chain_from(env.directory, at, env.uuid, env.resource, env.host)
    except NotFoundError as err:
        nr, producer = _missing(env, at)
        path = os.path.join(env.directory, log_name(nr, producer))
        raise LogMissing(err.text, err.hint, Damage(path, nr, producer)) from err
    except DamagedError as err:
        for entry in reader.list_logs(env.directory):
            if entry.nr >= at.nr and (why := _no_header(entry.path)):
                text = f"{entry.path} is damaged at its beginning: {why}"
                raise LogDamaged(text, HINT, Damage(entry.path, entry.nr, entry.producer, unreadable=0)) from err
        raise


def _missing(env: Env, at: LogPos) -> tuple[int, str]:
    """The log from `at` on that is not here although it is there or leads to one that is."""
    entries = [entry for entry in reader.list_logs(env.directory) if entry.nr >= at.nr]
    here = {(entry.nr, entry.producer) for entry in entries}
    if (at.nr, at.producer) in here:
        for entry in entries:
            with reader.open_log(entry.path, env.uuid, env.resource) as log:
                pred = log.header.pred
            if pred is not None and pred.nr >= at.nr and (pred.nr, pred.producer) not in here:
                return pred.nr, pred.producer
    return at.nr, at.producer


def _no_header(path: str) -> str:
    """Why there is no header block to be checked; "" if there is one."""
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        return "the header block is gone" if record.is_rotten(reader.read_block(fd, 0)) else ""
    except OSError as err:
        return f"the header block cannot be read: {err.strerror}"
    finally:
        os.close(fd)


def _recover_one(env: Env, log: writer.LogFile, start: int, digest: str, known_durable: KnownDurable,
                 collect: int) -> Recovered:
    fd = os.open(log.path, os.O_RDWR | os.O_DIRECT | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        durable.overwrite(fd, b"", 0, log.path)             # an overwrite of nothing is the fdatasync
        known = known_durable(log.nr, log.producer) if log.end is None else 0
        if not start:                                       # an empty log may have been made again under its name
            digest = log.header.digest0
        elif start == log.end and log.end_digest:           # nothing of it is read, and its successor confirms it
            digest = log.end_digest
        elif not digest or not _reaches(fd, start):
            digest = _digest_at(fd, log, start)
        try:
            result = reader.scan(fd, log.header, start, digest, log.end, group=None if start else 0, collect=collect,
                                 known_durable=known, look=None if log.producer == env.host else 0)
        except reader.Unreadable as err:
            raise _unreadable(log, err, start, known) from err
        _judge(log, result, start, known)
        if start and log.end is None and not result.groups:
            _confirm(fd, log, start, digest)
    except BaseException:
        os.close(fd)
        raise
    return Recovered(fd, log.path, log.header, start, digest, result.end, result.digest, log.end is None, result)


def _reaches(fd: int, start: int) -> bool:
    """The disk holds everything before `start`, and that was durable in the log first: a log that ends earlier has lost
    bytes, however well it ends."""
    return start % BLOCK == 0 and start <= os.fstat(fd).st_size - BLOCK


def _confirm(fd: int, log: writer.LogFile, start: int, digest: str) -> None:
    """A digest that no group behind `start` confirms."""
    try:
        found = reader.digest_behind(fd, log.header, start)
    except OSError:                                         # it reads more than that group
        found = _digest_at(fd, log, start)
    if digest == found:
        return
    text = f"{log.path} does not confirm the digest known at the replay position {start}"
    with contextlib.suppress(reader.Unreadable):
        result = reader.scan(fd, log.header, limit=start, look=0)
        if result.end < start:
            raise LogDamaged(f"{text}: damaged {result.detail}", HINT, _damage(log, result, 0, start))
    raise DamagedError(text, "remove local-HOST/position-RESOURCE and try again; else invalidate this replica")


def _digest_at(fd: int, log: writer.LogFile, pos: int) -> str:
    try:
        result = reader.scan(fd, log.header, limit=pos, look=0)
    except reader.Unreadable as err:
        raise _unreadable(log, err, 0, pos) from err
    if result.end == pos:
        return result.digest
    with contextlib.suppress(OSError):                      # what is damaged below is on the own disk already
        if found := reader.digest_behind(fd, log.header, pos):
            return found
    text = f"{log.path}: the replay position {pos} is not the end of a valid group"
    if result.reason == "limit":
        raise DamagedError(text, "invalidate this replica; if it is the only one, see the manual on damaged logs")
    raise LogDamaged(f"{text}: damaged {result.detail}", HINT, _damage(log, result, 0, max(pos, log.end or 0)))


def _damage(log: writer.LogFile, result: ScanResult, start: int, due: int, unreadable: int = -1) -> Damage:
    group = result.next_group if result.groups or not start else None
    return Damage(log.path, log.nr, log.producer, log.header, result.end, result.digest, group, result.next_record,
                  result.device_size, due, unreadable)


def _unreadable(log: writer.LogFile, err: reader.Unreadable, start: int, known: int) -> LogDamaged:
    """The disk does not give a block of the log."""
    due = max(known, log.end or 0, err.result.durable_hint)
    return LogDamaged(f"log {log.path} {err.text}", HINT, _damage(log, err.result, start, due, err.byte))


def _judge(log: writer.LogFile, result: ScanResult, start: int, known: int) -> None:
    """May we believe that the log ends where the scan ended?"""
    if log.end is not None:
        if result.end != log.end:
            text = f"{log.path} is damaged {result.detail} (it has to end at {log.end})"
            if result.reason in ("limit", "unknown"):
                raise DamagedError(text, HINT)
            raise LogDamaged(text, HINT, _damage(log, result, start, log.end))
        if log.end_digest and result.digest != log.end_digest:
            raise DamagedError(f"{log.path} is not the log that its successor follows: other contents", HINT)
    elif result.reason in ("corrupt", "gap"):
        due = max(known, result.durable_hint)
        behind = f"; {due - result.end} bytes behind it were durable" if due > result.end else ""
        text = f"{log.path} is damaged ({result.reason}) {result.detail}{behind}"
        raise LogDamaged(text, HINT, _damage(log, result, start, due))
    elif result.reason not in NORMAL_AFTER_CRASH:
        raise DamagedError(f"{log.path} is damaged ({result.reason}) {result.detail}", HINT)


def empty_end(env: Env, at: LogPos, known_durable: KnownDurable) -> FileHeader | None:
    """The newest log of the history from `at` on, if it is empty for sure (not damaged) and can be withdrawn."""
    newest = _chain(env, at)[-1]
    if not may_withdraw(env, newest.header):
        return None
    with reader.open_log(newest.path, env.uuid, env.resource) as log:
        try:
            if not reader.is_empty(log):
                return None
        except OSError:
            return None                                     # not known; recovery says what is wrong
    found = _recover_one(env, newest, 0, "", known_durable, COLLECT_NOTHING)
    os.close(found.fd)
    return newest.header if found.end == 0 else None


def examine(env: Env, at: LogPos) -> Damage | None:
    """What is wrong with the log of `at` below `at`, which is known to be durable; None: nothing, or it is gone.
    Reads past the page cache."""
    path = os.path.join(env.directory, at.log)
    try:
        with reader.open_log(path, env.uuid, env.resource, direct=True) as log:
            file = writer.LogFile(path, at.pos, log.header, at.pos)
            try:
                result = reader.scan(log.fd, log.header, limit=at.pos, look=0)
            except reader.Unreadable as err:
                return _unreadable(file, err, 0, at.pos).damage
            return None if result.end == at.pos else _damage(file, result, 0, at.pos)
    except NotFoundError:
        return None
    except DamagedError:
        return Damage(path, at.nr, at.producer, due=at.pos, unreadable=0)


def may_withdraw(env: Env, header: FileHeader) -> bool:
    """An empty log is no history: its producer takes it back on stepping down (rule 7). Not when its predecessor is
    gone: then its header is the only witness of where the history ends. Nor when it stands behind a gap (rule 27), or a
    replica began with it: that one has no log to step back to."""
    if header.pred is None or header.gap_id != record.NO_ID or header.name == env.begun():
        return False
    return os.path.exists(os.path.join(env.directory, header.pred.log))


def remove_log(env: Env, header: FileHeader) -> None:
    """Remove a log's file, durably."""
    os.unlink(os.path.join(env.directory, header.name))
    durable.sync_dir(env.directory)
