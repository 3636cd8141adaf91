"""A frozen picture of the tree, and the questions everybody asks it.

`View(entries)` never changes, does no I/O and reads no clock: planner, marsadm, mars-status and metrics that look at
one view see one state (rule 19). Questions about what is not there are answered with "", 0, None or an empty tuple; a
value that does not parse counts as not there.

What is consistent (rules 12 and 14)

* `sync_done`: syncstatus has reached the size.
* `consistent`: sync is done, replay has passed `syncpos`, and syncpos lies in the host's own history. By number alone a
  replica may have passed syncpos in a history that forked below it; so the host's version links must lead through the
  very position, with the same producer, and the same digest where a link ends just there. What the links do not show
  counts as no: the link of syncpos's log, or the next one, is kept as long as `syncpos-HOST` is there.
* `disk_consistent`: consistent, and no window is being written (LEN of the replay link is 0). Only then the bytes on
  the disk alone are a state that the primary once had.

Who is alive is known to a running marsd only: it gives `heard`, the seconds since each host's last heartbeat on its own
monotonic clock (rule 25). Without it (marsd is down, another program looks) `alive` can only compare stamps with a
clock, which is good for a display and for nothing else.
"""
from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from functools import lru_cache, partial
from typing import NamedTuple

from marsx.base.errors import DamagedError
from marsx.base.position import LogPos, parse_decimal
from marsx.tree import paths
from marsx.tree.paths import DELETED, NONE, Name

_STAMPS = re.compile(r"^\d+\.\d+ \d+\.\d+ ")

DIGEST_LENGTH = 32
PARSED = 4096  # values kept parsed: a planner asks for the same ones with every view
SECOND_NS = 1_000_000_000


class Replay(NamedTuple):
    """Everything before `pos` is on the disk; `length` bytes behind it may be there in part (rule 12)."""

    pos: LogPos
    length: int


class Mark(NamedTuple):
    """A position with the chain digest of the history up to it ("" where it was not given)."""

    pos: LogPos
    digest: str


class Version(NamedTuple):
    """A version link: where the host's history stands at the end of one log, and of the log before it."""

    end: Mark
    previous: Mark | None


class Grant(NamedTuple):
    """Rule 18: the right to write the log after `mark` is with `host` ("" is nobody)."""

    host: str
    mark: Mark


@lru_cache(maxsize=PARSED)
def parse_replay(text: str) -> Replay | None:
    """`log-N-P,POS,LEN`."""
    head, _, length = text.rpartition(",")
    try:
        return Replay(LogPos.parse(head), parse_decimal(length))
    except (DamagedError, ValueError):
        return None


@lru_cache(maxsize=PARSED)
def parse_mark(text: str) -> Mark | None:
    """`log-N-P,POS[,LEN][,DIGEST]`."""
    parts = text.split(",")
    digest = parts.pop() if len(parts) > 2 and len(parts[-1]) == DIGEST_LENGTH else ""
    try:
        return Mark(LogPos.parse(",".join(parts[:2])), digest) if len(parts) <= 3 else None
    except (DamagedError, ValueError):
        return None


@lru_cache(maxsize=PARSED)
def parse_version(text: str) -> Version | None:
    """`DIGEST,log-N-P,POS:` followed by nothing or by the same for the log before."""
    end_text, colon, previous_text = text.partition(":")
    end = _leading_digest(end_text)
    previous = _leading_digest(previous_text) if previous_text else None
    if not colon or end is None or (previous_text and previous is None):
        return None
    return Version(end, previous)


@lru_cache(maxsize=PARSED)
def parse_grant(text: str) -> Grant | None:
    """`HOST,log-N-P,POS,DIGEST`; HOST may be `(none)`."""
    host, _, rest = text.partition(",")
    mark = parse_mark(rest)
    return None if mark is None or not mark.digest else Grant("" if host == NONE else host, mark)


class View:
    """The tree at one moment. `entries` are (name, value, stamp); tombstones may be among them."""

    __slots__ = ("_values", "_stamps", "_resources", "_heard", "_members", "memo", "ips", "uuid", "resources", "hosts")

    def __init__(self, entries: Iterable[tuple[str, str, int]], heard: Mapping[str, float] | None = None) -> None:
        self._values: dict[str, str] = {}
        self._stamps: dict[str, int] = {}
        self._resources: dict[str, dict[str, list[Name]]] = defaultdict(partial(defaultdict, list))
        self._heard = dict(heard) if heard is not None else None
        self.memo: dict[str, object] = {}  # what pure functions of this view have found
        self._members: dict[str, tuple[str, ...]] = {}
        ips: dict[str, str] = {}
        parse, values, stamps, resources = paths.parse, self._values, self._stamps, self._resources
        for rel, value, stamp in entries:
            name = parse(rel)
            if name is None or not value or value == DELETED:
                continue
            values[rel] = value
            stamps[rel] = stamp
            if name.resource or name.kind == "message":
                resources[name.resource][name.kind].append(name)
            elif name.kind == "host-ip":
                ips[name.host] = value
        self.ips: dict[str, str] = dict(sorted(ips.items()))
        self.uuid: str = self._values.get(paths.uuid(), "")
        self.hosts: tuple[str, ...] = tuple(self.ips)
        self.resources: tuple[str, ...] = tuple(sorted(
            resource for resource, kinds in self._resources.items() if kinds.keys() & {"size", "primary", "data"}))

    # Plain values

    def get(self, rel: str) -> str:
        """The value of an entry, "" if it does not exist."""
        return self._values.get(rel, "")

    def stamp(self, rel: str) -> int:
        return self._stamps.get(rel, 0)

    def size(self, resource: str) -> int:
        return self._number(paths.size, resource)

    def log_uuid(self, resource: str) -> str:
        """The uuid that the logs of the resource carry: of the cluster in which it was made."""
        return self._text(paths.log_uuid, resource) or self.uuid

    def block_size(self, resource: str) -> int:
        """Logical block size of the device, 0 if nobody said."""
        return self._number(paths.block_size, resource)

    def maxnr(self, resource: str) -> int:
        return self._number(paths.maxnr, resource)

    def data(self, resource: str, host: str) -> str:
        return self._text(paths.data, resource, host)

    def device(self, resource: str, host: str) -> str:
        """Name of the device below /dev/mars, "" if there is none for this host."""
        value = self._text(paths.device, resource, host)
        return "" if value == NONE else value

    def actsize(self, resource: str, host: str) -> int:
        return self._number(paths.actsize, resource, host)

    def syncstatus(self, resource: str, host: str) -> int:
        return self._number(paths.syncstatus, resource, host)

    def todo(self, resource: str, host: str, switch: str) -> bool:
        """A switch of `paths.SWITCHES`."""
        return self._text(paths.todo, resource, host, switch) == "1"

    def want_primary(self, resource: str, host: str) -> str:
        """Id of the host's request for the primary role, "" if it has none."""
        value = self._text(paths.want_primary, resource, host)
        return "" if value == "0" else value

    def emergency_limit(self, resource: str, host: str) -> int:
        return self._number(paths.todo, resource, host, "emergency-limit")

    def actual(self, resource: str, host: str, key: str) -> str:
        return self._text(paths.actual, resource, host, key)

    def host_actual(self, host: str, key: str) -> str:
        return self._text(paths.host_actual, host, key)

    def open_count(self, resource: str, host: str) -> int:
        return self._number(paths.actual, resource, host, "open-count")

    def has_emergency(self, resource: str, host: str) -> bool:
        return self.actual(resource, host, "has-emergency") == "1"

    def emergency(self, host: str) -> int:
        """Emergency level 0..4 of a host."""
        return self._number(paths.host_actual, host, "emergency")

    def rest_space(self, host: str) -> int:
        """GiB left for logs."""
        return self._number(paths.host_actual, host, "rest-space")

    def sync_limit(self, host: str) -> int:
        return self._number(paths.host_default, host, "sync-limit")

    def connect_pref(self, resource: str, host: str) -> tuple[str, ...]:
        """Hosts to fetch from, in this order."""
        value = self._text(paths.connect_pref, resource, host)
        return () if value in ("", NONE) else tuple(value.split(","))

    def table(self, resource: str) -> dict[str, dict[str, str]]:
        """host -> key -> value of all that is said about its replica: `data`, `replay`, ..., `todo/SWITCH`,
        `actual/KEY`. For displays, which ask for nearly all of it: one pass in place of a question each."""
        found: dict[str, dict[str, str]] = {}
        for kind, names in self._resources.get(resource, {}).items():
            prefix = f"{kind}/" if kind in ("todo", "actual") else ""
            if kind not in ("version", "message", "userspace"):
                for name in names:
                    if name.host:
                        found.setdefault(name.host, {})[prefix + name.key] = self._values[name.rel]
        return found

    def message_table(self, resource: str) -> dict[str, dict[str, str]]:
        """host -> KEY -> message as it stands, of those that stand (not `OK`); of hosts about themselves for ""."""
        found: dict[str, dict[str, str]] = {}
        for name in self._resources.get(resource, {}).get("message", ()):
            value = self._values[name.rel]
            if not value.startswith("OK"):
                found.setdefault(name.host, {})[name.key] = value
        return found

    # Who takes part, and as what

    def members(self, resource: str) -> tuple[str, ...]:
        """Hosts with a replica: `data-HOST` is there and the membership is not over."""
        if resource not in self._members:
            names = self._resources.get(resource, {}).get("data", ())
            hosts = sorted(name.host for name in names if not self.is_removed(resource, name.host))
            self._members[resource] = tuple(hosts)
        return self._members[resource]

    def member_id(self, resource: str, host: str) -> str:
        """The incarnation of a membership (rule 26)."""
        return self._text(paths.member, resource, host)

    def is_removed(self, resource: str, host: str) -> bool:
        """True if the last known incarnation of the host is out (rule 26)."""
        removed = self._text(paths.removed, resource, host)
        return bool(removed) and removed == (self.member_id(resource, host) or removed)

    def designated(self, resource: str) -> str:
        """Who shall be primary; "" for nobody."""
        value = self._text(paths.primary, resource)
        return "" if value == NONE else value

    def actual_primaries(self, resource: str) -> tuple[str, ...]:
        """Members whose device exists."""
        return tuple(host for host in self.members(resource) if self.actual(resource, host, "is-primary") == "1")

    def granted(self, resource: str, host: str) -> Grant | None:
        """To whom `host` has passed the right to write the next log."""
        return parse_grant(self._text(paths.granted, resource, host))

    def alive(self, host: str, now_ns: int, window_ns: int) -> bool:
        """True if the host was heard of within the window (see the module about what this is worth)."""
        age = self.alive_age(host, now_ns)
        return age is not None and age <= window_ns and self.host_actual(host, "alive") != "0"

    def alive_age(self, host: str, now_ns: int) -> int | None:
        """ns since the host was last heard of; None if never."""
        if self._heard is not None:
            return int(self._heard[host] * SECOND_NS) if host in self._heard else None
        stamp = max(self._stamp_of(paths.host_actual, host, "alive"), self._stamp_of(paths.host_actual, host, "time"))
        return max(0, now_ns - stamp) if stamp else None

    # Positions and history

    def replay(self, resource: str, host: str) -> Replay | None:
        return parse_replay(self._text(paths.replay, resource, host))

    def first_needed(self, resource: str, host: str) -> int:
        """Number of the first log that the host's replay still needs; 0 if that is not known. The end of a log whose
        successor the host has is the beginning of that (rule 7)."""
        replay = self.replay(resource, host)
        if replay is None:
            return 0
        after = self.version(resource, host, replay.pos.nr + 1)
        is_over = after is not None and after.previous is not None and after.previous.pos == replay.pos
        return replay.pos.nr + (is_over and not replay.length)

    def syncpos(self, resource: str, host: str) -> Mark | None:
        return parse_mark(self._text(paths.syncpos, resource, host))

    def fetched(self, resource: str, host: str) -> Mark | None:
        return parse_mark(self._text(paths.actual, resource, host, "fetched"))

    def mixed_until(self, resource: str, host: str) -> LogPos | None:
        """Up to where the disk may hold a part of what it should (rule 12); None: it is a whole state."""
        replay = self.replay(resource, host)
        if replay is None or not replay.length:
            return None
        return LogPos(replay.pos.nr, replay.pos.producer, replay.pos.pos + replay.length)

    def sound(self, resource: str, host: str) -> Mark | None:
        """Up to where its logs hold, if they are damaged."""
        return parse_mark(self._text(paths.actual, resource, host, "sound"))

    def version(self, resource: str, host: str, nr: int) -> Version | None:
        return parse_version(self.version_text(resource, host, nr))

    def version_text(self, resource: str, host: str, nr: int) -> str:
        """The version link as it stands: equal strings are equal history."""
        return self._text(paths.version, resource, nr, host)

    def version_texts(self, resource: str) -> dict[str, dict[int, str]]:
        """host -> log number -> version link, for `log.chain`."""
        found: dict[str, dict[int, str]] = {}
        for name in self._resources.get(resource, {}).get("version", ()):
            found.setdefault(name.host, {})[name.nr] = self._values[name.rel]
        return found

    def version_numbers(self, resource: str, host: str) -> tuple[int, ...]:
        names = self._resources.get(resource, {}).get("version", ())
        return tuple(sorted(name.nr for name in names if name.host == host))

    def in_history(self, resource: str, host: str, mark: Mark) -> bool | None:
        """Does `mark` lie in the history of `host`? None if its version links do not tell (any more). They show the
        digest only where a log ends: inside of one, marsd looks into the log itself (`daemon.comeback`)."""
        numbers = self.version_numbers(resource, host)
        if not numbers:
            return None
        after = self.version(resource, host, mark.pos.nr + 1)
        own = self.version(resource, host, mark.pos.nr)
        end = after.previous if after is not None and after.previous is not None else own.end if own else None
        if end is None or end.pos.nr != mark.pos.nr:
            return False if numbers[-1] < mark.pos.nr else None
        if end.pos.producer != mark.pos.producer or end.pos.pos < mark.pos.pos:
            return False
        return end.pos.pos > mark.pos.pos or not mark.digest or end.digest == mark.digest

    # Consistency

    def sync_rest(self, resource: str, host: str) -> int:
        """Bytes still to be synced."""
        return max(0, self.size(resource) - self.syncstatus(resource, host))

    def sync_done(self, resource: str, host: str) -> bool:
        return host in self.members(resource) and self.size(resource) > 0 and self.sync_rest(resource, host) == 0

    def consistent(self, resource: str, host: str) -> bool:
        """Rule 14 (see the module)."""
        replay = self.replay(resource, host)
        if replay is None or not self.sync_done(resource, host):
            return False
        if not self._text(paths.syncpos, resource, host):
            return True
        syncpos = self.syncpos(resource, host)
        return (syncpos is not None and replay.pos.order >= syncpos.pos.order
                and self.in_history(resource, host, syncpos) is True)

    def disk_consistent(self, resource: str, host: str) -> bool:
        """Rules 12 and 14 (see the module)."""
        replay = self.replay(resource, host)
        return replay is not None and replay.length == 0 and self.consistent(resource, host)

    # Messages

    def messages(self, resource: str, host: str) -> dict[str, str]:
        """KEY -> text, without its stamps, of the messages of a host about a resource that still stand (not `OK`)."""
        names = self._resources.get(resource, {}).get("message", ())
        return self._standing(name for name in names if name.host == host)

    def host_messages(self, host: str) -> dict[str, str]:
        """KEY -> text of the standing messages of a host about itself."""
        return self.messages("", host)

    def all_messages(self, resource: str, host: str) -> dict[str, str]:
        """KEY -> value as it stands, `OK` too; of a host about itself if `resource` is empty."""
        names = self._resources.get(resource, {}).get("message", ())
        return {name.key: self._values[name.rel] for name in names if name.host == host}

    # Inside

    def _standing(self, names: Iterable[Name]) -> dict[str, str]:
        texts = {name.key: self._values[name.rel] for name in names}
        return {key: _STAMPS.sub("", text) for key, text in sorted(texts.items()) if not text.startswith("OK")}

    def _rel(self, build: Callable[..., str], *parts: str | int) -> str:
        try:
            return build(*parts)
        except ValueError:
            return ""

    def _text(self, build: Callable[..., str], *parts: str | int) -> str:
        return self._values.get(self._rel(build, *parts), "")

    def _stamp_of(self, build: Callable[..., str], *parts: str | int) -> int:
        return self._stamps.get(self._rel(build, *parts), 0)

    def _number(self, build: Callable[..., str], *parts: str | int) -> int:
        try:
            return parse_decimal(self._text(build, *parts))
        except DamagedError:
            return 0


def _leading_digest(text: str) -> Mark | None:
    digest, _, pos = text.partition(",")
    try:
        return Mark(LogPos.parse(pos), digest) if len(digest) == DIGEST_LENGTH else None
    except (DamagedError, ValueError):
        return None
