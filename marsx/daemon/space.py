"""Free space on /mars: levels, and what each one makes a host do (facts 6.2; rules 9, 27, 28). Pure: tables and
functions of numbers, without tree, clock or disk.

Thresholds are cumulative: below the sum of all four limits is level 1, below the last one level 4. A limit is in GiB,
or a percentage of the file system where one is given. On a small file system all four shrink together, so that they
never take more than a quarter of it.

A level rises at once and falls one step at a time, and only if `mars_reset_emergency` says so. A resource that went
into emergency mode stays there until its host is back at level 0 (hysteresis).
"""
from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

LEVELS = (1, 2, 3, 4)
STOP_SYNC = 3  # from this level on
SHARE = 4  # the limits take a quarter of the file system at most

# (from this level on, on this role, what is done). In this order: what costs nobody anything goes first, then what only
# the member farthest behind needs, then what several still need; the log stops last.
MEASURES = (
    (0, "both", "restore-ballast"),  # at level 0 only
    (1, "both", "delete-unneeded"),
    (2, "secondary", "drop-replayed"),
    (2, "primary", "drop-fetched"),
    (2, "primary", "drop-of-one"),
    (3, "primary", "drop-of-several"),
    (3, "secondary", "stop-sync"),
    (4, "both", "free-ballast"),
    (4, "primary", "cease-logging"),
)


class Room(NamedTuple):
    """Of the file system of /mars, in bytes."""

    free: int
    total: int


def thresholds(total: int, gib: Sequence[int], percent: Sequence[int] = (0, 0, 0, 0)) -> tuple[int, ...]:
    """Bytes below which levels 1 to 4 begin."""
    limits = [total * share // 100 if share else size << 30 for size, share in zip(gib, percent, strict=True)]
    whole = sum(limits)
    if whole > total // SHARE:
        limits = [limit * (total // SHARE) // whole for limit in limits]
    return tuple(sum(limits[place:]) for place in range(len(limits)))


def level_now(free: int, below: Sequence[int]) -> int:
    """The level that these numbers alone mean."""
    return sum(free < limit for limit in below)


def next_level(before: int, free: int, below: Sequence[int], reset: bool) -> int:
    """The level of the next round."""
    now = level_now(free, below)
    if now >= before:
        return now
    return before - 1 if reset else before


def wants_emergency(had: bool, level: int, now: int, room: Room, percent: int, *, resume: bool,
                    stalled: bool) -> bool:
    """Has this resource to do without log? `level`: of the host; `now`: what the room alone means; `percent`: its own
    limit (0: none); `stalled`: its log finds no room."""
    tight = now == LEVELS[-1] or stalled or room.free * 100 < room.total * percent
    if not had:
        return tight
    return tight or level > 0 or not resume


def measures(level: int, role: str) -> tuple[str, ...]:
    """What is due at a level ("primary" or "secondary"), in this order."""
    if level == 0:
        return tuple(what for begin, _, what in MEASURES if begin == 0)
    return tuple(what for begin, who, what in MEASURES if 0 < begin <= level and who in ("both", role))


def rest(room: Room, below: Sequence[int]) -> Room:
    """What is left above the limits."""
    return Room(max(0, room.free - below[0]), max(0, room.total - below[0]))
