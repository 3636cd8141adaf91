"""How much log lies between two positions, and how far each replica of a resource is: bytes counted along the logs.

Log N ends where the version links say, so the distance from (5, 1000) to (7, 200) is the rest of 5, all of 6 and 200
bytes of 7; (5, end) and (6, 0) are the same place (rule 7). One `LogMap` belongs to one picture of the tree and one
resource; it reads the version links once.

    replayed <= fetched <= newest     of each host, as far as its own words go; nothing here is ever negative
"""

from __future__ import annotations

from functools import cached_property
from typing import NamedTuple

from marsx.base.position import LogPos
from marsx.tree.view import View, parse_version


class Amounts(NamedTuple):
    """Bytes of log from the beginning of the oldest log that counts (`LogMap.base`)."""

    replayed: int
    fetched: int
    known: int


class LogMap:
    """The logs of one resource, as its members know them."""

    def __init__(self, view: View, resource: str) -> None:
        self._view, self._resource = view, resource
        self.members = view.members(resource)
        self.ends: dict[int, int] = {}
        """Where each log ends, as far as any member knows it."""
        self._tips: dict[str, LogPos] = {}
        self._numbers: dict[str, set[int]] = {}
        self._replayed: dict[str, LogPos | None] = {}
        self._fetched: dict[str, LogPos | None] = {}
        texts = view.version_texts(resource)
        for host in self.members:
            for nr, text in texts.get(host, {}).items():
                self._note(host, nr, text)

    def _note(self, host: str, nr: int, text: str) -> None:
        self._numbers.setdefault(host, set()).add(nr)
        link = parse_version(text)
        if link is None:
            return
        end = link.end.pos
        self.ends[nr] = max(self.ends.get(nr, 0), end.pos)
        if host not in self._tips or nr > self._tips[host].nr:
            self._tips[host] = end

    def tip(self, host: str) -> LogPos | None:
        """The end of the newest log that `host` has a link for."""
        return self._tips.get(host)

    @cached_property
    def newest(self) -> LogPos | None:
        """The newest position that any member has."""
        return max(self._tips.values(), default=None)

    def replayed(self, host: str) -> LogPos | None:
        """Everything before it is on the disk of `host`."""
        if host not in self._replayed:
            found = self._view.replay(self._resource, host)
            self._replayed[host] = found.pos if found else None
        return self._replayed[host]

    def fetched(self, host: str) -> LogPos | None:
        """How far `host` has the log: what it says, what its links and its replay show, whichever is most."""
        if host not in self._fetched:
            self._fetched[host] = self._look_fetched(host)
        return self._fetched[host]

    def _look_fetched(self, host: str) -> LogPos | None:
        said = self._view.fetched(self._resource, host)
        places = (said.pos if said else None, self.tip(host), self.replayed(host))
        return max((pos for pos in places if pos), default=None)

    def distance(self, start: LogPos | None, end: LogPos | None) -> int:
        """Bytes of log from `start` to `end`; 0 when there is nothing between them or one is not known."""
        if start is None or end is None or start >= end:
            return 0
        if start.nr == end.nr:
            return end.pos - start.pos
        between = sum(pos for nr, pos in self.ends.items() if start.nr < nr < end.nr)
        return max(0, self.ends.get(start.nr, start.pos) - start.pos) + between + end.pos

    def fetch_rest(self, host: str) -> int:
        """Bytes of log that are known in the cluster and not at `host`."""
        return self.distance(self.fetched(host), self.newest)

    def replay_rest(self, host: str) -> int:
        """Bytes of log that `host` has and that are not yet on its disk."""
        return self.distance(self.replayed(host), self.fetched(host))

    def base(self, host: str) -> int:
        """The oldest log that leads without a hole to the one being replayed, by the links of `host`; 0: not known."""
        start = self.replayed(host)
        if start is None:
            return 0
        nr, own = start.nr, self._numbers.get(host, set())
        while nr - 1 in own:
            nr -= 1
        return nr

    def amounts(self, host: str) -> Amounts:
        """How far `host` is, counted from the beginning of log `base`."""
        start, base = self.replayed(host), self.base(host)
        older = sum(pos for nr, pos in self.ends.items() if base <= nr < start.nr) if start else 0
        replayed = older + (start.pos if start else 0)
        fetched = replayed + self.replay_rest(host)
        return Amounts(replayed, fetched, fetched + self.fetch_rest(host))
