"""What the own logs hold behind a point: the ranges of the device that were written there.

Where histories have parted and this replica is to follow the other branch, its disk holds the common history outside
these ranges, so only they have to be synced (each by the rules 13 to 15, as in any sync).

Invariant: a range is left out only when every log from the point to the own end was verified, group by group, and
nothing went past the log there (rule 27).
"""
from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from marsx.base.errors import DamagedError
from marsx.base.position import LogPos
from marsx.log import reader
from marsx.log.chain import Point
from marsx.log.record import BARRIER, DISCARD, MARK, NO_ID, WRITE, ZERO
from marsx.volume import recovery
from marsx.volume.env import Env

MOST = 1 << 30
"""Bytes of log that are read for it: behind that, comparing all is not much slower."""
_CHANGES, _NO_CHANGES = frozenset({WRITE, DISCARD, ZERO}), frozenset({MARK, BARRIER})


@dataclass(frozen=True)
class Tail:
    """`end`: where the own logs end. `length`: bytes of log behind the point. `ranges`: (offset, length), ascending and
    apart."""

    end: LogPos
    length: int
    ranges: tuple[tuple[int, int], ...]


def behind(env: Env, point: Point, known_durable: recovery.KnownDurable, begin: LogPos | None = None) -> Tail | None:
    """The tail behind a point that the own logs must hold with that digest; `begin`: the own log that begins there,
    else the point lies in a log. None: it is too long, changes more than contents, or has a gap. DamagedError,
    NotFoundError: these logs do not lead from that point to their end."""
    if begin is None and not point.at.pos:
        return None                                         # the beginning of all: everything was written behind it
    logs = recovery.recover(env, begin or point.at, "" if begin else point.digest, known_durable)
    try:
        header = logs[0].header
        if begin is not None and (header.pred, header.pred_digest) != (point.at, point.digest):
            raise DamagedError(f"{header.name} does not begin at {point.at}", "invalidate this replica")
        length = sum(log.end - log.start for log in logs)
        if length > MOST or any(log.header.gap_id != NO_ID for log in logs):
            return None
        found: list[tuple[int, int]] = []
        for log in logs:
            for kind, offset, size in _changes(log):
                if kind not in _CHANGES:
                    return None
                found.append((offset, size))
        return Tail(logs[-1].position, length, tuple(_merged(found)))
    finally:
        recovery.close_all(logs)


def _changes(log: recovery.Recovered) -> Iterator[tuple[int, int, int]]:
    """(type, offset, length) of the records in what recovery has verified of a log."""
    result = reader.scan(log.fd, log.header, log.start, log.start_digest, log.end, group=None if log.start else 0,
                         collect=reader.COLLECT_RECORDS, look=0)
    if (result.end, result.digest) != (log.end, log.digest):
        raise AssertionError(f"{log.path} ended at {log.end}, and now at {result.end}")
    for _, (kind, _, _, _, offset, length, *_) in result.iter_records():
        if kind not in _NO_CHANGES:
            yield kind, offset, length


def _merged(ranges: list[tuple[int, int]]) -> list[tuple[int, int]]:
    found: list[tuple[int, int]] = []
    for offset, length in sorted(ranges):
        if found and offset <= sum(found[-1]):
            at = found[-1][0]
            found[-1] = (at, max(sum(found[-1]), offset + length) - at)
        else:
            found.append((offset, length))
    return found
