"""A world for rule 27: a primary that goes without log for a while, its member, power cuts at every step.

A model of the rule, in regions and numbers: each write is a number that only grows, a disk is a list of numbers. The
primary has a disk with a volatile cache, a log, a durable disk position, a map of changed regions, the gap log behind
it; the member fetches, replays, syncs and crosses the gap. Each step is one that a power cut may follow. `broken` names
what is done in the wrong order; checks raise `Wrong`.
"""
from __future__ import annotations

import random

REGIONS = 6
BROKEN = (
    "direct before the drain", "position after the direct writes", "bit after the data", "gap after the direct writes",
    "flush of the log only", "no flush on leaving", "map read before it is closed", "crossed before it is marked",
    "sync before crossing", "spans read in between", "dropped without its regions",
    "set from what was fetched, restart from what was replayed",
)


class Wrong(AssertionError):
    """The rule broke."""


class Disk:
    """Regions with a cache that a power cut may lose in part."""

    def __init__(self) -> None:
        self.now = [0] * REGIONS
        self.safe = [0] * REGIONS

    def sync(self) -> None:
        self.safe = list(self.now)

    def cut(self, rng: random.Random) -> None:
        self.now = [rng.choice(pair) for pair in zip(self.now, self.safe, strict=True)]
        self.safe = list(self.now)


class Primary:
    """`log` before the gap and `after` behind it are lists of (region, number)."""

    def __init__(self, rng: random.Random, broken: str) -> None:
        self.rng, self.broken = rng, broken
        self.disk = Disk()
        self.log: list[tuple[int, int]] = []
        self.after: list[tuple[int, int]] = []
        self.durable = self.durable_after = self.at = self.at_safe = self.dropped = 0
        self.mode = "log"  # entering, direct, leaving, after
        self.gap = False
        self.is_open = True  # of the map
        self.map: set[int] = set()
        self.member_set: set[int] = set()
        self.base: list[int] = []  # contents when the map was closed
        self.todo: list[str] = []
        self.half: tuple[int, int] | None = None  # a direct write between its two steps
        self.number = 0
        self.acked = [0] * REGIONS
        self.flushed = [0] * REGIONS

    def logical(self) -> list[int]:
        """What the application reads."""
        found = list(self.disk.now)
        rest = self.log[self.at:] if self.mode in ("log", "entering") else self.after if self.mode == "after" else []
        for region, number in rest:
            found[region] = number
        return found

    def write(self) -> None:
        region = self.rng.randrange(REGIONS)
        if self.mode in ("log", "after"):
            self.number += 1
            (self.log if self.mode == "log" else self.after).append((region, self.number))
            self.acked[region] = self.number
        elif self.mode == "direct" and self.half is None:
            self.number += 1
            self.half = (region, self.number)
            self._bit_or_data("bit after the data" != self.broken)
        elif self.mode == "direct" and self.half is not None:
            self._bit_or_data("bit after the data" == self.broken)
            self.acked[self.half[0]] = self.half[1]
            self.half = None

    def _bit_or_data(self, bit: bool) -> None:
        assert self.half is not None
        if bit:
            self.map.add(self.half[0])
        else:
            self.disk.now[self.half[0]] = self.half[1]

    def flush(self) -> None:
        self.durable, self.durable_after = len(self.log), len(self.after)
        if self.mode in ("direct", "leaving") and self.broken != "flush of the log only":
            self.disk.sync()
        self.flushed = list(self.acked)

    def write_back(self) -> None:
        if self.mode in ("log", "entering") or self.broken == "direct before the drain":
            end = self.rng.randint(self.at, self.durable)
            for region, number in self.log[self.at:end]:
                self.disk.now[region] = number
            self.disk.sync()
            self.at = end
            if self.rng.random() < 0.5:
                self.at_safe = end

    def control(self) -> None:
        """One step of entering or leaving."""
        if not self.todo:
            self.todo = self._enter() if self.mode == "log" else self._leave() if self.mode == "direct" else []
        elif self.half is None or self.todo[0] == "position":
            getattr(self, "_" + self.todo[0])()
            self.todo.pop(0)

    def _enter(self) -> list[str]:
        steps = ["hold", "sync_log", "drain", "position", "make_gap", "go_direct"]
        moved = {"direct before the drain": "drain", "position after the direct writes": "position",
                 "gap after the direct writes": "make_gap"}.get(self.broken)
        if moved is not None:
            steps.remove(moved)
            steps += ["rest", "rest", "rest", moved]
        return steps

    def _leave(self) -> list[str]:
        return ["hold_direct", *([] if self.broken == "no flush on leaving" else ["sync_disk"]), "close", "go_on"]

    def _hold(self) -> None:
        self.mode = "entering"

    def _sync_log(self) -> None:
        self.durable = len(self.log)

    def _drain(self) -> None:
        for region, number in self.log[self.at:]:
            self.disk.now[region] = number
        self.disk.sync()
        self.at = len(self.log)

    def _position(self) -> None:
        self.at_safe = self.at

    def _make_gap(self) -> None:
        self.gap = True

    def _go_direct(self) -> None:
        self.mode = "direct"

    def _rest(self) -> None:
        return

    def _hold_direct(self) -> None:
        self.mode = "leaving"

    def _sync_disk(self) -> None:
        self.disk.sync()

    def _close(self) -> None:
        self.is_open = False
        self.base = list(self.disk.now)

    def _go_on(self) -> None:
        self.mode = "after"

    def drop(self, member: Member) -> None:
        """The log goes up to somewhere, whatever the member still needs of it (level 2)."""
        end = self.rng.randint(self.dropped, min(self.at_safe, len(self.log)))
        if end > max(self.dropped, member.fetched) and member.crossed is False:
            begin = member.at if self.broken != BROKEN[-1] else member.fetched
            if self.broken != "dropped without its regions":
                self.member_set |= {region for region, _ in self.log[begin:end]}
            self.dropped = end

    def cut(self) -> None:
        """Power cut and recovery."""
        self.disk.cut(self.rng)
        self.todo, self.half = [], None
        del self.log[self.rng.randint(self.durable, len(self.log)):]
        del self.after[self.rng.randint(self.durable_after, len(self.after)):]
        self.durable, self.durable_after = len(self.log), len(self.after)
        for region, number in [*self.log[self.at_safe:], *self.after]:
            self.disk.now[region] = number
        self.disk.sync()
        self.at = self.at_safe = len(self.log)
        self.mode = "log" if not self.gap else "direct" if self.is_open else "after"
        for region, (here, due) in enumerate(zip(self.logical(), self.flushed, strict=True)):
            if here < due:
                raise Wrong(f"region {region} has {here}, {due} was flushed")
        self.acked = self.logical()

    def check(self) -> None:
        if self.half is None and self.logical() != self.acked:
            raise Wrong(f"the application reads {self.logical()}, acknowledged was {self.acked}")


class Member:
    """`at`, `fetched`: places in the log, behind the crossing in `after`. `todo`: regions to be synced. All is durable
    at once: the order of the steps is what is looked at."""

    def __init__(self, rng: random.Random, broken: str, source: Primary) -> None:
        self.rng, self.broken, self.source = rng, broken, source
        self.disk = [0] * REGIONS
        self.todo: set[int] = {region for region in range(REGIONS) if rng.random() < 0.2}
        for region in self.todo:
            self.disk[region] = -1
        self.at = self.fetched = 0
        self.crossed = False
        self.syncpos = (False, 0)
        self.span: tuple[int, int, tuple[bool, int], int] | None = None  # region, contents, L, bound
        self.half = False  # a crossing between its two steps

    def fetch(self) -> None:
        end = self.source.durable_after if self.crossed else self.source.durable
        if self.crossed or self.fetched >= self.source.dropped:
            self.fetched = min(end, self.fetched + self.rng.randint(0, 3))
        elif (self.at == self.fetched or self.broken == BROKEN[-1]) and self.span is None:
            self.todo |= self.source.member_set  # marked first, then the position: restart behind the drop
            self.at = self.fetched = self.source.dropped

    def replay(self) -> None:
        bound = self.fetched if self.span is None else min(self.fetched, self.span[3])
        if self.at < bound:
            region, number = (self.source.after if self.crossed else self.source.log)[self.at]
            self.disk[region] = number
            self.at += 1

    def cross(self) -> None:
        source = self.source
        done = self.at == self.fetched == len(source.log) and self.span is None
        if self.crossed or not source.gap or not done or source.dropped > self.at:
            return
        if source.is_open and self.broken != "map read before it is closed":
            return
        if self.broken == "crossed before it is marked" and not self.half:
            self.half = True
            self.at, self.fetched, self.crossed = 0, 0, True
            return
        self.todo |= source.map
        self.at, self.fetched, self.crossed = 0, 0, True

    def late_mark(self) -> None:
        if self.half:
            self.todo |= self.source.map
            self.half = False

    def sync(self) -> None:
        """Ask for a region, or write the answer."""
        source = self.source
        if self.span is not None:
            region, contents, upto, _ = self.span
            if upto[1] <= (source.durable_after if upto[0] else source.durable):
                self.syncpos = max(self.syncpos, upto)
                self.disk[region] = contents
                self.todo.discard(region)
                self.span = None
            return
        if self.broken == "sync before crossing" and source.gap and not self.crossed and not source.is_open:
            self.todo |= source.map
            source.map = set()
        elif source.mode in ("direct", "leaving") and self.broken != "spans read in between":
            return
        elif source.gap and source.mode == "after" and not self.crossed:
            return  # a source refuses who stands before the gap
        if self.todo:
            region = self.rng.choice(sorted(self.todo))
            in_after = source.mode == "after"
            upto = (in_after, len(source.after) if in_after else len(source.log))
            self.span = (region, source.logical()[region], upto, self.fetched)

    def check(self) -> None:
        """What calls itself consistent is a state that the primary had at just that position."""
        if self.todo or self.span is not None or (self.crossed, self.at) < self.syncpos:
            return
        source = self.source
        due = list(source.base) if self.crossed else [0] * REGIONS
        for region, number in (source.after if self.crossed else source.log)[:self.at]:
            due[region] = number
        if self.crossed and source.is_open:
            raise Wrong("consistent behind a gap that has not ended")
        if self.disk != due:
            raise Wrong(f"consistent at {self.at} with {self.disk}, the primary had {due}")


def run(seed: int, broken: str = "", steps: int = 160) -> Member:
    """A random run, then everything comes to rest: no fault is left, and the member has to be equal."""
    rng = random.Random(seed)
    primary = Primary(rng, broken)
    member = Member(rng, broken, primary)
    enters = rng.random() < 0.9
    for step in range(steps):
        choice = rng.random()
        if choice < 0.30:
            primary.write()
        elif choice < 0.36:
            primary.flush()
        elif choice < 0.44:
            primary.write_back()
        elif choice < 0.60:
            if enters and (primary.todo or primary.mode == "direct" or step > 30) and primary.mode != "after":
                if primary.mode != "direct" or primary.todo or rng.random() < 0.15:
                    primary.control()
        elif choice < 0.63:
            primary.cut()
            member.span = None  # its connection is gone
        elif choice < 0.65:
            primary.drop(member)
        elif choice < 0.67:
            member.late_mark()
        else:
            rng.choice((member.fetch, member.replay, member.cross, member.sync))()
        primary.check()
        member.check()
    _rest(primary, member, enters)
    return member


def _rest(primary: Primary, member: Member, enters: bool) -> None:
    for _ in range(400):
        if primary.half is not None:
            primary.write()
        if primary.mode in ("direct", "entering", "leaving") or primary.todo:
            primary.control()
        else:
            primary.flush()
        for move in (member.late_mark, member.fetch, member.replay, member.cross, member.sync):
            move()
        primary.check()
        member.check()
    if member.todo or member.disk != primary.logical():
        raise Wrong(f"at rest: {member.disk} and {primary.logical()}, todo {member.todo}")
