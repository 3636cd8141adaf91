"""Log files of a resource, written by the reference writer, and the two ends of a stream of them."""
from __future__ import annotations

import asyncio
import os
import socket
from dataclasses import dataclass, field
from typing import Any

from marsx.base.position import LogPos, log_name
from marsx.daemon import logcopy
from marsx.daemon.logcopy import LogCopy
from marsx.daemon.logsource import End, Pins, Source
from marsx.peer.link import Link, Timing
from marsx.volume import recovery
from marsx.volume.env import Env
from tests.ref.log_reader import BLOCK, Log, Record

UUID, RESOURCE, SIZE = "u-test", "r", 1 << 20


def make_log(nr: int, producer: str = "a", pred: Log | None = None, groups: int = 3, salt: int = 0) -> Log:
    """A log with groups of different lengths."""
    before = (pred.nr, pred.end, pred.digests[-1], pred.producer) if pred else (0, 0, bytes(16), "")
    log = Log(log_id=bytes([nr, salt, ord(producer[0])]) + b"i" * 13, nr=nr, producer=producer, resource=RESOURCE,
              uuid=UUID, size=SIZE, pred=before)
    for group in range(groups):
        add(log, group + salt)
    return log


def add(log: Log, group: int) -> None:
    """One more group: 2 to 4 blocks."""
    length = 512 * (1 + 7 * (group % 3))
    log.add([Record(1, 4096 * group, length, bytes([group + 1]) * length)])


def position(log: Log, group: int = -1) -> LogPos:
    """Behind a group; without: the end."""
    return LogPos(log.nr, log.producer, log.ends[group])


def write(directory: Any, *logs: Log) -> None:
    """The files as they are."""
    for log in logs:
        path = os.path.join(directory, log_name(log.nr, log.producer))
        with open(path, "wb") as file:
            file.write(log.data)


@dataclass
class Facts:
    """Publications, in order."""

    versions: list[tuple[LogPos, str, str]] = field(default_factory=list)

    def version(self, end: LogPos, digest: str, previous: str) -> None:
        """See env.Facts."""
        self.versions.append((end, digest, previous))


class Sink:
    """A secondary's directory and its copy."""

    def __init__(self, directory: Any) -> None:
        self.directory = str(directory)
        self.facts = Facts()
        self.env = Env(self.directory, UUID, RESOURCE, "b", SIZE, 512, self.facts, lambda: 1)
        self.fetched: list[tuple[LogPos, str]] = []

    def nothing(self, nr: int = 1, producer: str = "a") -> LogCopy:
        """Nothing of the log is here."""
        return logcopy.nothing_yet(self.env, LogPos(nr, producer, 0), self._tell)

    def recovered(self, at: LogPos | None = None) -> LogCopy:
        """As after a restart, with the disk position `at`."""
        logs = recovery.recover(self.env, at or LogPos(1, "a", 0), "", lambda nr, producer: 0)
        recovery.close_all(logs)
        return logcopy.from_recovered(self.env, logs, self._tell)

    def _tell(self, at: LogPos, digest: str) -> None:
        self.fetched.append((at, digest))

    def file(self, nr: int, producer: str = "a") -> bytes:
        """A log file."""
        with open(os.path.join(self.directory, log_name(nr, producer)), "rb") as file:
            return file.read()


class Origin:
    """The source's directory, how far its history is durable, and its pins."""

    def __init__(self, directory: Any, *logs: Log, end: LogPos | None = None) -> None:
        self.directory = str(directory)
        write(self.directory, *logs)
        self.end = End(end or position(logs[-1]))
        self.pins = Pins()

    def source(self) -> Source:
        """For one stream."""
        return Source(self.directory, UUID, RESOURCE, self.end, self.pins)


async def link_pair() -> tuple[Link, Link]:
    """A line between two ends in this process."""
    loop, ends = asyncio.get_running_loop(), []
    for sock in socket.socketpair():
        sock.setblocking(False)
        link = Link("peer", Timing())
        await loop.create_connection(lambda link=link: link, sock=sock)
        ends.append(link)
    return ends[0], ends[1]


__all__ = ["BLOCK", "Facts", "Origin", "Sink", "add", "link_pair", "make_log", "position", "write"]
