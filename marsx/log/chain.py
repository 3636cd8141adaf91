"""Version links: what they say, and how the histories of two hosts compare.

A version link `version-NNNNNNNNN-HOST` says where log N ends for HOST, and where log N-1 ended before it:

    DIGEST,log-NNNNNNNNN-PRODUCER,POS:PREVDIGEST,log-NNNNNNNNN-PRODUCER,POS          (nothing behind ":" if none)

The digests are chain digests of the contents (rule 6), so equal strings mean equal bytes. Positions are compared in
canonical form (rule 7): an empty log is no history, (N+1, 0) is the end of N. There is no tolerance anywhere.
32 zeros stand for the hole an emergency leaves: no digest connects what lies before and behind it. But the host whose
links these are wrote on, past the log, behind the end that it has below the hole. So its history goes on there, and the
log behind the hole is history even when it is empty (rule 27).

What links cannot show: two hosts in the same log of the same producer at different positions. The shorter one is taken
for a prefix, and each fetch proves it or refuses (it begins with log id, position and digest).
"""
from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import combinations

from marsx.base.errors import DamagedError
from marsx.base.position import LogPos
from marsx.log.record import BLOCK, NO_DIGEST, FileHeader

_DIGEST = re.compile(r"[0-9a-f]{32}", re.ASCII)


@dataclass(frozen=True)
class Point:
    """A position with the digest there: a point in a history. Equal points have equal pasts."""

    digest: str
    at: LogPos

    def __post_init__(self) -> None:
        if not _DIGEST.fullmatch(self.digest):
            raise ValueError(f"not a digest: {self.digest!r}")
        if self.at.pos % BLOCK:
            raise ValueError(f"not the end of a group: {self.at}")

    @classmethod
    def parse(cls, text: str) -> Point:
        """Inverse of str(): `DIGEST,log-000000001-alpha,4096`."""
        digest, comma, at = text.partition(",")
        if not comma:
            raise DamagedError(f"not a point of a history: {text[:120]!r}")
        try:
            return cls(digest, LogPos.parse(at))
        except ValueError as err:
            raise DamagedError(f"not a point of a history: {text[:120]!r} ({err})") from err

    @property
    def is_hole(self) -> bool:
        """The mark of an emergency: no digest."""
        return self.digest == NO_DIGEST

    def __str__(self) -> str:
        return f"{self.digest},{self.at}"


@dataclass(frozen=True)
class VersionLink:
    """Value of a version link."""

    end: Point
    prev: Point | None = None

    def __post_init__(self) -> None:
        if self.prev is not None and self.prev.at.nr + 1 != self.end.at.nr:
            raise ValueError(f"{self.prev.at} is not of the log before {self.end.at}")

    @classmethod
    def parse(cls, text: str) -> VersionLink:
        """Inverse of str(); DamagedError for anything else."""
        end, colon, prev = text.partition(":")
        if not colon:
            raise DamagedError(f"not a version link: {text[:160]!r}")
        try:
            return cls(Point.parse(end), Point.parse(prev) if prev else None)
        except ValueError as err:
            raise DamagedError(f"not a version link: {err}") from err

    def __str__(self) -> str:
        return f"{self.end}:{self.prev or ''}"


def link_of(header: FileHeader, end: int, digest: str) -> VersionLink:
    """The link of a log that ends at POS `end` with `digest`; behind a gap in the numbers stands the hole (rule 27)."""
    prev = None
    if header.pred is not None:
        prev = Point(header.pred_digest, header.pred)
        if header.pred.nr + 1 != header.nr:
            prev = Point(NO_DIGEST, LogPos(header.nr - 1, header.producer, 0))
    return VersionLink(Point(digest, LogPos(header.nr, header.producer, end)), prev)


History = Mapping[int, VersionLink]
"""The version links of one host, by log number."""

# Two places, one in each history; a side may already have been followed back, then it "has more" behind its place. The
# first row that fits counts; "-" fits both. The rows are also the parameters of the test. The places are to each other:
#   equal        same log, POS and digest, or the origin of all logs
#   a-short      same log and the same beginning of it, A's POS is lower            (b-short: B's)
#   clash        same log and POS, other digest; or same log, other beginning; or same number, other producer
#   a-higher     A's log number is higher                                           (b-higher: B's)
#   a-missing    A's history is not known further down, or has a hole there         (b-missing: B's)
TABLE = (
    # places      A has more  B has more  verdict
    ("equal",     False,      False,      "equal"),
    ("equal",     True,       False,      "a_ahead"),
    ("equal",     False,      True,       "b_ahead"),
    ("equal",     True,       True,       "split"),
    ("a-short",   False,      "-",        "b_ahead"),
    ("a-short",   True,       "-",        "split"),
    ("b-short",   "-",        False,      "a_ahead"),
    ("b-short",   "-",        True,       "split"),
    ("clash",     "-",        "-",        "split: both back"),
    ("a-higher",  "-",        "-",        "A back"),
    ("b-higher",  "-",        "-",        "B back"),
    ("a-missing", "-",        "-",        "unknown"),
    ("b-missing", "-",        "-",        "unknown"),
)
FINAL = frozenset({"equal", "a_ahead", "b_ahead", "split", "unknown"})


@dataclass(frozen=True)
class Relation:
    """How history A stands to history B: equal, a_ahead, b_ahead, split or unknown. `at` is the last position known to
    be common, `digest` the digest there; None and "" when the links do not reach back that far, or nothing is common.
    Where one side is shorter in the same log that is its end: the other side's log has to prove it."""

    verdict: str
    at: LogPos | None = None
    digest: str = field(default="", compare=False)


@dataclass(frozen=True)
class SplitBrain:
    """Hosts whose histories have parted: each pair with the last common position, None where it is not known."""

    pairs: tuple[tuple[str, str, LogPos | None], ...]

    @property
    def hosts(self) -> tuple[str, ...]:
        """All hosts that are part of it."""
        return tuple(sorted({host for a, b, _ in self.pairs for host in (a, b)}))

    @property
    def at(self) -> LogPos | None:
        """The earliest place where histories parted, None if any is not known."""
        places = [at for _, _, at in self.pairs]
        return None if None in places else min(place for place in places if place is not None)

    def __str__(self) -> str:
        return "; ".join(f"{a} and {b} parted at {at or 'an unknown position'}" for a, b, at in self.pairs)


class _Origin:
    """What lies before log 1: nothing, and that is common to all."""

    nr = 0


ORIGIN = _Origin()
Place = Point | _Origin | None
"""A point of a history, its origin, or None: not known, or a hole."""


def canonical(history: History, place: Place) -> Place:
    """The place without the empty logs on top of it (rule 7)."""
    while isinstance(place, Point) and not place.is_hole and place.at.pos == 0 and not _behind_hole(history, place):
        place = _below(history, place)
    return None if isinstance(place, Point) and place.is_hole else place


def tip(history: History) -> Place:
    """The newest point of a history, canonical."""
    return canonical(history, history[max(history)].end) if history else None


def ending_at(history: History, end: Point) -> dict[int, VersionLink]:
    """The history as far as this point of its own."""
    links = {nr: link for nr, link in history.items() if nr < end.at.nr}
    here = history.get(end.at.nr)
    return {**links, end.at.nr: VersionLink(end, here.prev if here is not None else None)}


def end_of(history: History) -> LogPos | None:
    """The end of its newest log."""
    return history[max(history)].end.at if history else None


def points(history: History) -> Iterator[Point]:
    """The canonical points of a history from its tip down, as far as they are known."""
    place = tip(history)
    while isinstance(place, Point):
        yield place
        place = canonical(history, _below(history, place))


def relation(a: History, b: History) -> Relation:
    """Compare two hosts' histories by TABLE."""
    place_a, place_b = tip(a), tip(b)
    more_a = more_b = parted = False
    while True:
        places = classify(a, place_a, b, place_b)
        verdict = decide(places, more_a, more_b)
        if verdict in FINAL:
            lower = place_b if places == "b-short" else place_a
            told = "split" if parted else verdict
            if isinstance(lower, Point) and verdict != "unknown":
                return Relation(told, lower.at, lower.digest)
            return Relation(told)
        parted = parted or verdict == "split: both back"
        if verdict in ("A back", "split: both back"):
            place_a, more_a = canonical(a, _below(a, place_a)), True
        if verdict in ("B back", "split: both back"):
            place_b, more_b = canonical(b, _below(b, place_b)), True


def classify(a: History, place_a: Place, b: History, place_b: Place) -> str:
    """First column of TABLE."""
    if place_a is None:
        return "a-missing"
    if place_b is None:
        return "b-missing"
    if place_a == place_b:
        return "equal"
    nr_a, nr_b = _nr(place_a), _nr(place_b)
    if nr_a != nr_b:
        return "a-higher" if nr_a > nr_b else "b-higher"
    assert isinstance(place_a, Point) and isinstance(place_b, Point)
    if (place_a.at.producer != place_b.at.producer or place_a.at.pos == place_b.at.pos
            or _other_beginning(a, place_a, b, place_b)):
        return "clash"
    return "a-short" if place_a.at.pos < place_b.at.pos else "b-short"


def decide(places: str, more_a: bool, more_b: bool) -> str:
    """Last column of TABLE."""
    for row_places, row_a, row_b, verdict in TABLE:
        if row_places == places and row_a in ("-", more_a) and row_b in ("-", more_b):
            return verdict
    raise AssertionError(f"no row for {places}, {more_a}, {more_b}")


def common_ancestor(a: History, b: History) -> LogPos | None:
    """The last position known to be in both histories; None if it is not known or there is none."""
    return relation(a, b).at


def split_brain(histories: Mapping[str, History]) -> SplitBrain | None:
    """The pairs of hosts whose histories have parted, or None. Hosts whose links do not reach far enough count as not
    parted; `relation` says "unknown" for them."""
    pairs = []
    for host_a, host_b in combinations(sorted(histories), 2):
        found = relation(histories[host_a], histories[host_b])
        if found.verdict == "split":
            pairs.append((host_a, host_b, found.at))
    return SplitBrain(tuple(pairs)) if pairs else None


def histories(texts: Mapping[str, Mapping[int, str]], hosts: Iterable[str]) -> dict[str, History]:
    """host -> history, out of the texts of the version links; a link that cannot be read is left out."""
    found: dict[str, History] = {}
    for host in hosts:
        links: dict[int, VersionLink] = {}
        for nr, text in texts.get(host, {}).items():
            with suppress(DamagedError):
                links[nr] = VersionLink.parse(text)
        found[host] = links
    return found


def _nr(place: Point | _Origin) -> int:
    return place.at.nr if isinstance(place, Point) else place.nr


def _below(history: History, place: Place) -> Place:
    """The end of the log before this point's log, as this host's links have it. Links that contradict each other are of
    two times: they prove nothing."""
    if not isinstance(place, Point):
        return None
    if place.at.nr == 1:
        return ORIGIN
    link = history.get(place.at.nr)
    if link is None or link.prev is None:
        return None
    if link.prev.is_hole:
        lower = [nr for nr, one in history.items() if nr < link.prev.at.nr and not one.end.is_hole]
        return history[max(lower)].end if lower else None
    own = history.get(link.prev.at.nr)
    return None if own is not None and own.end != link.prev else link.prev


def _behind_hole(history: History, place: Point) -> bool:
    """Does this point's log follow a hole?"""
    link = history.get(place.at.nr)
    return link is not None and link.prev is not None and link.prev.is_hole


def _other_beginning(a: History, point_a: Point, b: History, point_b: Point) -> bool:
    """Same log number and producer, but the two hosts' links say that it continues different points."""
    link_a, link_b = a.get(point_a.at.nr), b.get(point_b.at.nr)
    return link_a is not None and link_b is not None and link_a.prev != link_b.prev
