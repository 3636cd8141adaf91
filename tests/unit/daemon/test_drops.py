"""Logs that are dropped although a member needs them, and what the member is told when it comes back (rules 9, 16,
27)."""
from __future__ import annotations

import random

import pytest

from marsx.base.errors import DamagedError, MarsError
from marsx.base.position import LogPos
from marsx.daemon import drops, gaps, regions
from marsx.daemon.regions import Regions
from marsx.log import reader, record
from marsx.log.chain import Point
from marsx.tree import paths
from marsx.tree.view import View
from marsx.volume import emergency, gap
from tests.fix_volume import HOST, MIB, RESOURCE, UUID, Serving

SIZE, D = 4 * MIB, "d" * 32


class Tree:
    """Facts of members a (this host), b, c."""

    def __init__(self, **replay: str) -> None:
        self.entries = [(paths.data(RESOURCE, host), "/dev/x", 1) for host in "abc"]
        for host, value in replay.items():
            self.entries.append((paths.replay(RESOURCE, host), value, 1))

    def fetched(self, **values: str) -> Tree:
        """How far the copies of the members reach."""
        for host, value in values.items():
            self.entries.append((paths.actual(RESOURCE, host, "fetched"), f"{value},0,{D}", 1))
        return self

    @property
    def view(self) -> View:
        return View(self.entries)


def log(nr: int, pos: int = 4096) -> str:
    return f"log-{nr:09d}-a,{pos}"


LOGS = [(1, "a"), (2, "a"), (3, "a")]
NEW, OLD = f"{log(3)},0", f"{log(1)},0"


@pytest.mark.parametrize(("tree", "logs", "others", "found"), [
    (Tree(a=NEW, b=NEW, c=OLD), LOGS, [None, None], (1, "a", ["c"])),
    (Tree(a=NEW, b=OLD, c=OLD), LOGS, [None, None], (1, "a", ["b", "c"])),
    (Tree(a=NEW, b=NEW, c=NEW), LOGS, [None, None], (1, "a", [])),
    (Tree(a=NEW, b=NEW, c=OLD).fetched(c=log(2)), LOGS, [None, None], (1, "a", [])),
    (Tree(a=NEW, b=NEW, c=OLD).fetched(c=log(1, 8192)), LOGS, [None, None], (1, "a", ["c"])),
    (Tree(a=OLD, b=NEW, c=OLD), LOGS, [None, None], None),        # the own needs
    (Tree(a=NEW, b=NEW, c=OLD), LOGS, [1, None], None),           # a stream reads it (rule 9)
    (Tree(a=NEW, b=NEW, c=OLD), LOGS, [2, 2], (1, "a", ["c"])),
    (Tree(a=NEW, b=NEW, c=OLD), LOGS, [None, 1], None),           # promised (rule 16)
    (Tree(a=NEW, b=NEW), LOGS, [None, None], None),               # c's position is not known (rule 16)
    (Tree(a=NEW, b=NEW, c=OLD), LOGS[2:], [None, None], None),    # the newest
])
def test_which_log_goes_next(tree, logs, others, found):
    """Rules 9, 16, 27: what may go, and who would miss it."""
    assert drops.oldest_wanted(tree.view, RESOURCE, "a", logs, others) == found


@pytest.mark.parametrize(("full", "holds"), [("", True), ("b", True), ("c", False), ("bc", False)])
def test_a_member_that_is_full_itself_holds_no_log(full: str, holds: bool) -> None:
    """Rules 9, 27: it asks for the log again and again, and takes nothing; one that has room holds what it reads."""
    tree = Tree(a=NEW, b=NEW, c=OLD)
    tree.entries += [(paths.host_actual(host, "emergency"), "4", 1) for host in full]
    assert drops.takes_nothing(tree.view, RESOURCE, "a", LOGS) != holds


def load(one: Serving, rng: random.Random, n: int) -> set[int]:
    """n writes; the regions they touched."""
    found = set()
    for _ in range(n):
        at = 512 * rng.randrange(SIZE // 512 - 8)
        one.injector.write(at, rng.randbytes(4096))
        found |= {at >> 16, at + 4095 >> 16}
    one.injector.wait()
    return found


def as_set(found: Regions) -> set[int]:
    return {at >> 16 for start, length in found.runs() for at in range(start, start + length, 1 << 16)}


def point(site, pos: LogPos) -> tuple[Point, str]:
    """A position of the history with its digest, and the id of its log."""
    with reader.open_log(str(site.path(pos.nr)), UUID, RESOURCE) as opened:
        digest = reader.digest_at(opened.fd, opened.header, pos.pos) or ""
        return Point(digest, pos), opened.header.log_id.hex()


@pytest.fixture
def history(make_site):
    """Logs 1 to 3 of a primary; the regions that each changed, a position inside of log 1, and those behind it."""
    site, rng = make_site(SIZE), random.Random(1)
    with Serving(site, first=True) as one:
        changed = [load(one, rng, 6)]
        inside = LogPos(1, HOST, one.primary.volume.state["written"])
        behind = load(one, rng, 6)
        changed[0] |= behind
        for _ in range(2):
            one.primary.rotate()
            changed.append(load(one, rng, 6))
        one.injector.flush()
        assert one.primary.drain(20)
    return site, changed, inside, behind


def answer(site, asked: tuple[Point, str], host: str = "c"):
    """Verdict, number of the log, and regions."""
    fields, bits = gaps.answer_for(str(site.directory), UUID, RESOURCE, asked[0], host, asked[1])
    found = Regions(fields["size"], fields["shift"], bits) if "size" in fields else None
    return fields["verdict"], fields.get("nr"), found and as_set(found)


def test_a_member_comes_back(history):
    """Rule 27: it begins behind what was dropped, with the regions of what it had not fetched, and of nothing else."""
    site, changed, inside, behind = history
    here = str(site.directory)
    mark, later = point(site, inside), point(site, LogPos(1, HOST, inside.pos))
    early = point(site, LogPos(1, HOST, 0))
    drops.add_log(here, UUID, RESOURCE, "c", str(site.path(1)), mark[0], SIZE)
    site.path(1).unlink()
    assert answer(site, later) == ("regions", 2, behind)
    assert answer(site, early)[0] == "full"                    # an older state of c
    assert answer(site, (mark[0], "ab" * 16))[0] == "full"     # another log of that name (rule 6)
    assert answer(site, mark, "b")[0] == "none"                # nothing was dropped for b
    drops.add_log(here, UUID, RESOURCE, "c", str(site.path(2)), mark[0], SIZE)
    site.path(2).unlink()
    assert answer(site, later) == ("regions", 3, behind | changed[1])
    with open(site.directory / ".drop-c", "r+b") as file:
        file.seek(-1, 2)
        file.write(b"\1")
    assert answer(site, later)[0] == "none"                    # as if nobody had noted anything: people decide


def test_a_mark_that_is_not_of_this_history(history):
    """Rules 6, 27: the set counts only from a proved point."""
    site, _, inside, _ = history
    with pytest.raises((DamagedError, MarsError)):
        drops.add_log(str(site.directory), UUID, RESOURCE, "c", str(site.path(1)), Point(D, inside), SIZE)
    assert drops.load(str(site.directory), RESOURCE, "c") is None


def test_the_newest_log_is_never_dropped(history):
    site, *_ = history
    with pytest.raises(MarsError, match="nothing follows"):
        drops.add_log(str(site.directory), UUID, RESOURCE, "c", str(site.path(3)), None, SIZE)


def test_across_a_gap(make_site):
    """Rule 27: a member at the end of the log gets the map, closed; one that is elsewhere gets nothing by it; the map
    joins the set of one for whom the log before the gap was dropped; a lost map means all."""
    site, rng = make_site(SIZE), random.Random(2)
    here = str(site.directory)
    gap.prepare(here, RESOURCE, SIZE)
    with Serving(site, first=True) as one:
        logged = load(one, rng, 5)
        end = emergency.enter(one.primary)
        past = load(one, rng, 5)
        at = point(site, end)
        assert answer(site, at)[0] == "full"                   # the map is open: nobody may be healed with it
        emergency.leave(one.primary)
        load(one, rng, 5)
        one.injector.flush()
    assert answer(site, at) == ("regions", end.nr + 11, past)
    assert answer(site, point(site, LogPos(1, HOST, 0)))[0] == "none"
    drops.add_log(here, UUID, RESOURCE, "c", str(site.path(1)), None, SIZE)
    start = point(site, LogPos(1, HOST, 0))
    site.path(1).unlink()
    assert answer(site, start) == ("regions", end.nr + 11, logged | past)
    gap_id = gap.headers(here, UUID, RESOURCE)[0].gap_id
    (site.directory / f".map-{gap_id.hex()}").unlink()
    assert answer(site, at)[:2] == answer(site, start)[:2] == ("full", end.nr + 11)
    assert record.NO_ID != gap_id


def test_sets_are_forgotten(history):
    """When the member has got over it, or is no member any more."""
    site, _, inside, _ = history
    here = str(site.directory)
    for host in ("b", "c", "x"):
        drops.add_log(here, UUID, RESOURCE, host, str(site.path(1)), point(site, inside)[0], SIZE)
    assert not drops.forget_old(here, Tree(a=NEW, b=NEW, c=OLD).view, RESOURCE)
    assert sorted(path.name for path in site.directory.glob(".drop-*")) == [".drop-c"]
    assert drops.forget_old(here, Tree(a=NEW, b=NEW, c=f"{log(2, 0)},0").view, RESOURCE)


def tree_of_member(sync: int, syncpos: str = "") -> View:
    entries = [(paths.data(RESOURCE, "c"), "/dev/x", 1), (paths.size(RESOURCE), str(SIZE), 1),
               (paths.replay(RESOURCE, "c"), OLD, 1), (paths.syncstatus(RESOURCE, "c"), str(sync), 1)]
    if syncpos:
        entries.append((paths.syncpos(RESOURCE, "c"), syncpos, 1))
    return View(entries)


@pytest.mark.parametrize(("view", "before", "due"), [
    (tree_of_member(SIZE), None, {5}),                                  # consistent: just what changed
    (tree_of_member(SIZE, f"{log(9)},0,{D}"), None, None),              # synced, but not consistent yet: all
    (tree_of_member(3 << 20), None, {5, *range(48, 64)}),               # a full sync that was under way
    (tree_of_member(3 << 20), {1, 50}, {5, 50}),                        # a healing that was under way
    (tree_of_member(0), {1, 50}, {1, 5, 50}),
])
def test_what_is_still_due(view, before, due, tmp_path):
    """Rule 27: what had not been synced before the gap stays in the set."""
    found = Regions(SIZE, 16)
    found.add(5 << 16, 1)
    if before is not None:
        old = Regions(SIZE, 16)
        for region in before:
            old.add(region << 16, 1)
        regions.save(str(tmp_path), RESOURCE, old)
    result = gaps.what_is_due(view, "c", RESOURCE, str(tmp_path), found)
    assert (result and as_set(result)) == due
