"""What a volume is told about its resource, and how it publishes positions (both given by `daemon`)."""
from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from marsx.base.errors import MarsError
from marsx.base.position import LogPos
from marsx.log.chain import link_of
from marsx.log.record import NO_DIGEST, FileHeader

NO_ROOM_PAUSE_S = 0.5


class NoRoomError(MarsError):
    """A position cannot be made durable because /mars is full. It is kept and written as soon as there is room."""


class Facts(Protocol):
    """Publication of positions; callable from any thread, returns when the entry is in the tree (`dirty`: durable
    there)."""

    def dirty(self, at: LogPos, length: int) -> None:
        """[at, at + length) is about to be written to the disk: durable before the first byte (rule 12). NoRoomError:
        it is not yet, try again."""

    def replayed(self, at: LogPos, digest: str) -> None:
        """Everything before `at` is durable on the disk."""

    def version(self, end: LogPos, digest: str, previous: str) -> None:
        """The log is known, verified and durable up to `end`; `previous` = end point of the log before ("" = none)."""


@dataclass
class Env:
    """One resource on this host. Sizes in bytes."""

    directory: str
    uuid: str
    resource: str
    host: str
    device_size: int
    block_size: int
    facts: Facts
    stamp: Callable[[], int]                    # Lamport ns for new logs
    window_bytes: int = 32 << 20                # of replay, which has two; write-back has 3/4 of one
    fly: int = 32                               # writes to the disk at once
    ring_bytes: int = 64 << 20
    index_bytes: int = 32 << 20
    flush_ms: int = 20
    fill_bytes: int = 256 << 20                 # zeros ahead of the log at most (ext/space.h)
    reserve_bytes: int = 0                      # of /mars that logs never take: facts and a gap need them (rule 27)
    low_bytes: int = 0                          # of /mars: what waits for write-back shall not take them (ext/pace.h)
    writeback_bytes: int = 1 << 30              # write-back lets a burst pass (ext/backlog.h): it begins with so much,
    writeback_idle_ms: int = 100                # or when nothing was written for so long,
    writeback_ms: int = 10_000                  # or when the oldest has waited for so long
    on_trouble: Callable[[str], None] = field(default=lambda text: None)
    begun: Callable[[], str] = field(default=str)   # name of the newest log with which another replica began ("": none)


def announce(env: Env, at: LogPos, length: int, pause: Callable[[float], bool]) -> bool:
    """`dirty`, tried until /mars has room for it. False: `pause` (which waits so many seconds) said to stop, and
    nothing may be written to the disk."""
    while True:
        try:
            env.facts.dirty(at, length)
            return True
        except NoRoomError:
            if pause(NO_ROOM_PAUSE_S):
                return False


def point_before(header: FileHeader) -> str:
    """The part of the version link of this log behind the colon: the end of the log before, or the hole (rule 27)."""
    return str(link_of(header, 0, NO_DIGEST)).partition(":")[2]
