"""Positions in the history of a resource, and names of log files.

A position is (log number, producer, POS). POS counts bytes behind the log's header block, 0 is the empty log, and it
is always the end of a group. Positions are ordered by (number, POS). Order says nothing about equal history: that is
what digests are for (rule 6). (N, its end) and (N+1, 0) mean the same; only who knows the end of N can tell
(`marsx.log.chain`, rule 7).
"""
from __future__ import annotations

import re
from dataclasses import dataclass

from marsx.base.errors import DamagedError

POS_MAX = 2**63 - 1
NR_MAX = 10**18 - 1
NAME_MAX = 63

_HOST = r"[A-Za-z0-9](?:[A-Za-z0-9_.-]{0,61}[A-Za-z0-9_])?"
_NUMBER = r"[0-9]{9}|[1-9][0-9]{9,17}"
_LOG_NAME = re.compile(rf"log-({_NUMBER})-({_HOST})", re.ASCII)
_HOST_NAME = re.compile(_HOST, re.ASCII)
_DECIMAL = re.compile(r"0|[1-9][0-9]{0,18}", re.ASCII)


def is_host_name(text: str) -> bool:
    """True for a name that may stand for a host in log and tree names."""
    return _HOST_NAME.fullmatch(text) is not None


def parse_decimal(text: str, limit: int = POS_MAX) -> int:
    """A plain decimal number 0..limit without sign, blank or leading zero."""
    if not _DECIMAL.fullmatch(text) or int(text) > limit:
        raise DamagedError(f"not a number between 0 and {limit}: {text[:80]!r}")
    return int(text)


def log_name(nr: int, host: str) -> str:
    """File name of log `nr` of `host`: log-000000001-alpha."""
    if not 1 <= nr <= NR_MAX:
        raise ValueError(f"log number out of range: {nr}")
    if not is_host_name(host):
        raise ValueError(f"not a host name: {host!r}")
    return f"log-{nr:09d}-{host}"


def parse_log_name(name: str) -> tuple[int, str]:
    """(number, producer) of a log file name."""
    match = _LOG_NAME.fullmatch(name)
    if not match or int(match[1]) == 0:
        raise DamagedError(f"not the name of a log: {name[:80]!r}")
    return int(match[1]), match[2]


@dataclass(frozen=True, slots=True)
class LogPos:
    """A position; equal only if number, producer and POS are equal, ordered by (number, POS)."""

    nr: int
    producer: str
    pos: int

    def __post_init__(self) -> None:
        if not 1 <= self.nr <= NR_MAX:
            raise ValueError(f"log number out of range: {self.nr}")
        if not 0 <= self.pos <= POS_MAX:
            raise ValueError(f"position out of range: {self.pos}")
        if not is_host_name(self.producer):
            raise ValueError(f"not a host name: {self.producer!r}")

    @classmethod
    def parse(cls, text: str) -> LogPos:
        """Inverse of str(): `log-000000001-alpha,4096`."""
        name, comma, pos = text.partition(",")
        if not comma:
            raise DamagedError(f"not a log position: {text[:120]!r}")
        nr, producer = parse_log_name(name)
        return cls(nr, producer, parse_decimal(pos))

    @property
    def log(self) -> str:
        """Name of the log the position lies in."""
        return log_name(self.nr, self.producer)

    @property
    def order(self) -> tuple[int, int]:
        """What positions are ordered by."""
        return self.nr, self.pos

    def __str__(self) -> str:
        return f"{self.log},{self.pos}"

    def __lt__(self, other: LogPos) -> bool:
        return self.order < other.order

    def __le__(self, other: LogPos) -> bool:
        return self.order <= other.order

    def __gt__(self, other: LogPos) -> bool:
        return self.order > other.order

    def __ge__(self, other: LogPos) -> bool:
        return self.order >= other.order
