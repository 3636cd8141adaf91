"""How much of damaged logs still holds, and ending them there: what `primary --force` takes over (facts 5.2, 5.4).

    find    from the disk position on, log by log, to the end of the last group that holds; reads only
    cut     the history ends there from now on; what lies behind is kept aside

Invariants:
    the end is never below the disk position: what is before that is on the data device
    nothing is cut off before it lies durably aside: later logs as they are; of the log that is cut its header and what
        is behind the end, at the same offsets (a hole before it)
    a crash anywhere leaves the damage, which is found again, or logs that are whole up to the end

The next log is begun at once, empty: its header says where the history ends (rule 4), also where not even the log of
the disk position is left. If nobody knows the digest there, a random one stands for it: then nothing is equal to this
history any more, because nothing proves that it is.
"""
from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import chain

from marsx.base import durable
from marsx.base.errors import DamagedError
from marsx.base.position import LogPos, log_name
from marsx.log import reader, record, writer
from marsx.log.chain import Point
from marsx.log.record import BLOCK, GROUP_FIELDS, GROUP_MAGIC, FileHeader
from marsx.volume.env import Env

PIECE = 1 << 20


@dataclass(frozen=True)
class Sound:
    """`at`: the disk position, from which a recovery goes on, with the digest there; up to `end` the logs hold.
    `header` is of the log of `end` (None: that log is gone, or does not prove it), `since` the real time of the last
    group that holds, ns (0: not known), `names`: the logs from `at` to `end`."""

    at: LogPos
    at_digest: str
    end: LogPos
    digest: str
    header: FileHeader | None = None
    since: int = 0
    names: tuple[str, ...] = ()


def find(env: Env, at: LogPos, digest: str, before: Point | None) -> Sound:
    """`digest`: at the disk position `at` as far as it is known ("": not); `before`: where the log before the one of
    `at` ended. DamagedError where a disk position without its log is the beginning of nothing known. Blocks."""
    headers = _headers(env)
    if at.pos == 0 and (at.nr, at.producer) not in headers:
        if before is None:
            raise DamagedError(f"{at.log} is gone, and it is not known where it began",
                               f"make another host primary, then here: marsadm invalidate {env.resource}")
        at, digest = before.at, before.digest
    header = headers.get((at.nr, at.producer))
    proved = _digest_at(env, header, at.pos, digest) if header is not None else None
    if header is None or proved is None:
        digest = digest or os.urandom(16).hex()
        return Sound(at, digest, at, digest)
    sound = Sound(at, proved, at, proved, header, names=(header.name,))
    while following := _rest_of(env, headers, sound):
        sound = following
    return sound


def _headers(env: Env) -> dict[tuple[int, str], FileHeader]:
    """Of all logs whose header block holds."""
    found = {}
    for entry in reader.list_logs(env.directory):
        try:
            with reader.open_log(entry.path, env.uuid, env.resource) as log:
                found[entry.nr, entry.producer] = log.header
        except DamagedError:
            continue
    return found


def _digest_at(env: Env, header: FileHeader, pos: int, digest: str) -> str | None:
    """As the log proves it, by the group that ends there, the one that begins there, or from its beginning; None where
    it does not."""
    if pos == 0:
        return header.digest0
    with reader.open_log(os.path.join(env.directory, header.name), env.uuid, env.resource) as log:
        if os.fstat(log.fd).st_size < BLOCK + pos:
            return None
        with contextlib.suppress(OSError):
            if found := reader.digest_behind(log.fd, header, pos):
                return found
        with contextlib.suppress(OSError):
            block = reader.read_block(log.fd, BLOCK + pos)
            if digest and len(block) == BLOCK and record.group_digest_before(block, header, pos) == digest:
                return digest
        with contextlib.suppress(OSError):
            return reader.digest_at(log.fd, header, pos)
    return None


def _rest_of(env: Env, headers: dict[tuple[int, str], FileHeader], sound: Sound) -> Sound | None:
    """On from `sound` to the end of its log, or over it into the next one; None where nothing goes on."""
    header = sound.header
    assert header is not None
    following = _follower(env, headers, header, sound.end.pos)
    limit = following.pred.pos if following is not None and following.pred is not None else None
    with reader.open_log(os.path.join(env.directory, header.name), env.uuid, env.resource) as log:
        try:
            result = reader.scan(log.fd, header, sound.end.pos, sound.digest, limit,
                                 group=None if sound.end.pos else 0, look=0)
        except reader.Unreadable as err:
            result = err.result
    since = result.real_ns if result.groups else sound.since
    end, digest = LogPos(header.nr, header.producer, result.end), result.digest
    if following is not None and (end.pos, digest) == (limit, following.pred_digest):
        return replace(sound, end=following.start, digest=following.digest0, header=following, since=since,
                       names=(*sound.names, following.name))
    return replace(sound, end=end, digest=digest, since=since) if end != sound.end else None


def _follower(env: Env, headers: dict[tuple[int, str], FileHeader], header: FileHeader, pos: int) -> FileHeader | None:
    """The log that goes on behind this one, not before `pos`: one with contents before an empty one (rule 7)."""
    after = [one for one in headers.values() if one.pred is not None and one.pred.pos >= pos
             and (one.pred.nr, one.pred.producer) == (header.nr, header.producer)]
    full = [one for one in after if _has_contents(env, one)]
    if len(full) > 1:
        raise DamagedError(f"the history has parted: {' and '.join(one.name for one in full)} continue {header.name}",
                           "split brain: keep one branch, invalidate the other replicas")
    found = full or sorted(after, key=lambda one: (one.producer != env.host, one.producer))
    return found[0] if found else None


def _has_contents(env: Env, header: FileHeader) -> bool:
    if header.gap_id != record.NO_ID:
        return True
    with reader.open_log(os.path.join(env.directory, header.name), env.uuid, env.resource) as log:
        try:
            return not reader.is_empty(log)
        except OSError:
            return True


def cut(env: Env, sound: Sound, aside: str, due: int) -> list[str]:
    """The history ends at `sound` from now on; names of what is kept in the directory `aside`. `due`: POS that the log
    of that end is known to have reached. Blocks."""
    behind = [entry for entry in reader.list_logs(env.directory)
              if entry.nr >= sound.at.nr and log_name(entry.nr, entry.producer) not in sound.names]
    kept = [os.path.basename(entry.path) for entry in behind]
    path, is_cut = os.path.join(env.directory, sound.end.log), False
    if sound.header is not None:
        is_cut = _keep_tail(path, sound.header, sound.end.pos, due, aside)
    for entry in behind:
        _make_room(aside)
        os.rename(entry.path, os.path.join(aside, os.path.basename(entry.path)))
    if kept or is_cut:
        durable.sync_dir(aside)
        durable.sync_dir(env.directory)
    if is_cut:
        fd = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            writer.end_log(fd, sound.end.pos, sound.end.log)
        finally:
            os.close(fd)
        kept.append(sound.end.log)
    os.close(writer.create_log(env.directory, _next_log(env, sound)))
    return kept


def _make_room(aside: str) -> None:
    if not os.path.isdir(aside):
        os.makedirs(aside, mode=0o700)
        durable.sync_dir(os.path.dirname(aside))


def _keep_tail(path: str, header: FileHeader, pos: int, due: int, aside: str) -> bool:
    """What lies behind POS in this log, if there is anything. A block that the disk does not give is left out."""
    source = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        size = os.fstat(source).st_size
        end = min(size, _tail_end(source, header, BLOCK + max(pos, due), size))
        if end <= BLOCK + pos:
            return False
        _make_room(aside)
        target = os.open(os.path.join(aside, header.name), os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            os.truncate(target, end)
            for start, data in chain([(0, header.pack())], _pieces(source, BLOCK + pos, end)):
                done = 0
                while done < len(data):
                    done += os.pwrite(target, data[done:], start + done)
            durable.overwrite(target, b"", 0, aside)
        finally:
            os.close(target)
        return True
    finally:
        os.close(source)


def _tail_end(fd: int, header: FileHeader, start: int, size: int) -> int:
    """Byte behind the last group that says it is of this log, `start` if there is none: behind it lies what the file
    held before it was this log."""
    end = start
    for at, data in _pieces(fd, start, size):
        found = data.find(GROUP_MAGIC)
        while found >= 0:
            if found % BLOCK == 0 and len(data) >= found + BLOCK:
                fields = GROUP_FIELDS.unpack_from(data, found)
                if fields[4] == header.log_id and fields[8] <= size:
                    end = max(end, at + found + fields[8])
            found = data.find(GROUP_MAGIC, found + 1)
    return end


def _pieces(fd: int, start: int, end: int) -> Iterator[tuple[int, bytes]]:
    """(byte, what is there) of all that is not zero: in large pieces, block by block where the disk does not give all
    of one."""
    for at in range(start, end, PIECE):
        length = min(PIECE, end - at)
        try:
            data = os.pread(fd, length, at)
        except OSError:
            for block in range(at, at + length, BLOCK):
                with contextlib.suppress(OSError):
                    yield block, os.pread(fd, BLOCK, block)
            continue
        if data.count(0) < len(data):
            yield at, data


def _next_log(env: Env, sound: Sound) -> FileHeader:
    return FileHeader(nr=sound.end.nr + 1, producer=env.host, resource=env.resource, uuid=env.uuid,
                      log_id=record.new_log_id(), device_size=env.device_size, block_size=env.block_size,
                      lamport_ns=env.stamp(), real_ns=time.time_ns(), pred=sound.end, pred_digest=sound.digest)
