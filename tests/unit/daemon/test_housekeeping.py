"""Which logs may go, and when (rules 9, 14, 16, 26d; facts 6.1, 6.2). The store is the real one, in a directory."""
from __future__ import annotations

import os
from collections.abc import Callable
from types import SimpleNamespace

import pytest

from marsx.base.config import Paths
from marsx.base.errors import MarsError
from marsx.base.lamport import Lamport
from marsx.daemon import housekeeping
from marsx.daemon.emergency import Watch
from marsx.daemon.housekeeping import delete_logs, follow_up, lowest_needed, make_room, scarce
from marsx.log import writer
from marsx.tree import paths
from marsx.tree.store import Store
from marsx.tree.view import View

R, D = "r", "d" * 32
GIB = 1 << 30
SETTINGS = {"logrot_auto_gb": 1, "mars_reset_emergency": 1,
            **{f"required_free_space_{level}_gb": 2 for level in (1, 2, 3, 4)},
            **{f"required_free_space_{level}_percent": 0 for level in (1, 2, 3, 4)}}


class Place:
    """Worker and runner of host `a`, as far as housekeeping asks them; b and c are the other members."""

    def __init__(self, root: str) -> None:
        self.store = Store(Paths(mars_dir=root), "a", Lamport())
        self.store.load()
        self.site = SimpleNamespace(store=self.store, host="a", settings=SimpleNamespace(get=SETTINGS.__getitem__),
                                    view=lambda: View(self.store.entries()))
        self.promised: int | None = None
        self.start_service = SimpleNamespace(lowest=lambda resource: self.promised)
        self.pins: int | None = None
        self.site.promised, self.site.level = (lambda resource: self.promised), 0
        self.runner = SimpleNamespace(resource=R, pinned=lambda: self.pins, producer=None, site=self.site,
                                      dropping=None, directory=lambda: os.path.join(root, "resource-r"))
        for host in "abc":
            self.put(paths.data(R, host), "/dev/x")

    def put(self, rel: str, value: str) -> None:
        """Any entry, also another host's."""
        name = paths.parse(rel)
        assert name is not None
        if name.writer == "fact" and name.host != "a":
            assert self.store.merge([(rel, value, self.store.lamport.now())], name.host).accepted == [rel]
        else:
            self.store.put(rel, value)

    def replays(self, a: int, b: int, c: int) -> None:
        for host, nr in zip("abc", (a, b, c), strict=True):
            self.put(paths.replay(R, host), f"log-{nr:09d}-a,0,0")

    def logs(self, *numbers: int) -> None:
        """Log files with the own version links."""
        for nr in numbers:
            with open(os.path.join(self.store.root, paths.log(R, nr, "a")), "wb") as file:
                file.write(bytes(4096))
            self.put(paths.version(R, nr, "a"), f"{D},log-{nr:09d}-a,4096:")

    @property
    def left(self) -> list[int]:
        return [log.nr for log in self.store.log_files(R)]

    @property
    def links(self) -> list[int]:
        return list(self.site.view().version_numbers(R, "a"))


@pytest.fixture
def place(tmp_path) -> Place:
    return Place(str(tmp_path))


@pytest.mark.parametrize(("replay", "link", "lowest"), [
    ("log-000000004-a,4096,0", f"{D},log-000000005-a,0:{D},log-000000004-a,4096", 5),
    ("log-000000004-a,4096,4096", f"{D},log-000000005-a,0:{D},log-000000004-a,4096", 4),
    ("log-000000004-a,4096,0", "", 4),
    ("log-000000004-a,4096,0", f"{D},log-000000005-a,0:{D},log-000000004-a,8192", 4),
])
def test_the_end_of_a_log_is_the_beginning_of_the_next(place: Place, replay: str, link: str, lowest: int) -> None:
    """Rule 7: nothing need be written to N+1 before N can go; but the member must have N+1, and N's end must be where
    that says."""
    place.replays(5, 5, 5)
    place.logs(4, 5)
    place.put(paths.replay(R, "b"), replay)
    if link:
        place.put(paths.version(R, 5, "b"), link)
    assert lowest_needed(place, place.runner) == lowest


@pytest.mark.parametrize(("replays", "pins", "promised", "lowest"), [
    ((5, 5, 5), None, None, 5), ((5, 3, 4), None, None, 3), ((2, 5, 5), None, None, 2), ((9, 9, 9), None, None, 6),
    ((5, 5, 5), 2, None, 2), ((5, 5, 5), None, 3, 3), ((5, 5, 5), 7, 8, 5),
])
def test_lowest_needed(place: Place, replays: tuple[int, int, int], pins: int | None, promised: int | None,
                       lowest: int) -> None:
    """Members, the own disk, streams (rule 9), promises (rule 16), and the newest log itself."""
    place.logs(1, 2, 3, 4, 5, 6)
    place.replays(*replays)
    place.pins, place.promised = pins, promised
    assert lowest_needed(place, place.runner) == lowest
    delete_logs(place, place.runner, None)
    assert place.left == [nr for nr in (1, 2, 3, 4, 5, 6) if nr >= lowest]


@pytest.mark.parametrize(("producer", "pos", "stays"), [("b", 0, [4, 5]), ("b", 4096, [5]), ("a", 0, [5])])
def test_the_log_before_an_empty_one_of_another_host_stays(place: Place, producer: str, pos: int,
                                                           stays: list[int]) -> None:
    """Rule 7: its producer may withdraw it, and then this replica has to step back to the end of the log before."""
    place.logs(3, 4)
    with open(os.path.join(place.store.root, paths.log(R, 5, producer)), "wb") as file:
        file.write(bytes(4096))
    place.put(paths.version(R, 5, "a"), f"{D},log-000000005-{producer},{pos}:{D},log-000000004-a,4096")
    for host in "abc":
        place.put(paths.replay(R, host), f"log-000000005-{producer},0,0")
    delete_logs(place, place.runner, None)  # type: ignore[arg-type]
    assert place.left == stays


def test_a_member_without_replay_link_blocks(place: Place) -> None:
    """Rule 16: it is about to begin somewhere. One that was removed does not count."""
    place.logs(1, 2, 3)
    for host in "ab":
        place.put(paths.replay(R, host), "log-000000003-a,0,0")
    assert delete_logs(place, place.runner, None) == [] and place.left == [1, 2, 3]
    place.put(paths.removed(R, "c"), "0123456789abcdef")
    assert delete_logs(place, place.runner, None) == ["log-000000001-a", "log-000000002-a"]


def test_one_at_a_time(place: Place) -> None:
    """The oldest goes first; version links stay from the log before the oldest one on."""
    place.logs(1, 2, 3, 4, 5)
    place.replays(5, 5, 5)
    assert delete_logs(place, place.runner, 1) == ["log-000000001-a"]
    assert (place.left, place.links) == ([2, 3, 4, 5], [1, 2, 3, 4, 5])
    assert delete_logs(place, place.runner, 1) == ["log-000000002-a"]
    assert (place.left, place.links) == ([3, 4, 5], [2, 3, 4, 5])
    delete_logs(place, place.runner, None)
    assert (place.left, place.links) == ([5], [4, 5])


def test_links_of_syncpos_stay(place: Place) -> None:
    """Rule 14: a replica whose syncpos is in log 2 stays consistent after log 2 is deleted."""
    place.logs(1, 2, 3, 4, 5, 6)
    place.replays(6, 6, 6)
    place.put(paths.size(R), "4096")
    place.put(paths.syncstatus(R, "a"), "4096")
    place.put(paths.syncpos(R, "a"), f"log-000000002-a,4096,0,{D}")
    assert place.site.view().consistent(R, "a")
    delete_logs(place, place.runner, None)
    assert place.left == [6] and place.links == [2, 3, 5, 6]
    assert place.site.view().consistent(R, "a")


def test_the_link_below_a_hole_stays(place: Place) -> None:
    """Rule 27: who was forced where this host went past its log has parted from it; without the link nobody sees
    that."""
    place.logs(1, 2, 13)
    hole = "0" * 32 + ",log-000000012-a,0"
    place.put(paths.version(R, 12, "a"), f"{hole}:")
    place.put(paths.version(R, 13, "a"), f"{D},log-000000013-a,0:{hole}")
    place.replays(13, 13, 13)
    assert delete_logs(place, place.runner, None) == ["log-000000001-a", "log-000000002-a"]
    assert place.links == [2, 12, 13]
    place.logs(14, 15)
    place.replays(15, 15, 15)
    delete_logs(place, place.runner, None)
    assert place.links == [14, 15]


def test_own_position_is_durable_first(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rule 21: a power cut must not put the own position back into a log that is gone."""
    place.logs(1, 2)
    place.replays(2, 2, 2)
    rel, unlink, seen = paths.replay(R, "a"), os.unlink, []

    def watched(path: str) -> None:
        seen.append(place.store.is_durable(rel))
        unlink(path)
    monkeypatch.setattr(housekeeping.os, "unlink", watched)
    assert not place.store.is_durable(rel)
    delete_logs(place, place.runner, None)
    assert seen == [True]


def test_nothing_goes_when_the_tree_cannot_be_synced(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """A failed sync stops the deletion before the first file."""
    place.logs(1, 2)
    place.replays(2, 2, 2)

    def fail(rels) -> None:
        raise MarsError("cannot make the tree durable")
    monkeypatch.setattr(place.store, "make_durable", fail)
    with pytest.raises(MarsError, match="durable"):
        delete_logs(place, place.runner, None)
    assert place.left == [1, 2]


@pytest.mark.parametrize(("theirs", "is_primary", "designated", "left"), [
    ((3, 4, 5), "1", "b", [4, 5]), ((1, 2, 3, 4, 5), "1", "b", [1, 2, 3, 4, 5]), ((3, 4, 5), "0", "b", [1, 2, 3, 4, 5]),
    ((3, 4, 5), "1", "(none)", [1, 2, 3, 4, 5]), ((), "1", "b", [1, 2, 3, 4, 5]), ((1, 2, 4, 5), "1", "b", [4, 5]),
])
def test_follow_up(place: Place, theirs: tuple[int, ...], is_primary: str, designated: str,
                         left: list[int]) -> None:
    """A secondary deletes after its primary, and only what nobody needs. Links that the primary keeps for its syncpos
    (rule 14) do not hold logs."""
    place.logs(1, 2, 3, 4, 5)
    place.replays(4, 5, 5)
    place.put(paths.primary(R), designated)
    place.put(paths.actual(R, "b", "is-primary"), is_primary)
    for nr in theirs:
        place.put(paths.version(R, nr, "b"), f"{D},log-{nr:09d}-a,4096:")
    follow_up(place, place.runner)
    assert place.left == left


def test_the_primary_itself_does_not_follow(place: Place) -> None:
    """While the own volume serves, only commands and lack of space delete."""
    place.logs(1, 2, 3)
    place.replays(3, 3, 3)
    place.put(paths.primary(R), "b")
    place.put(paths.actual(R, "b", "is-primary"), "1")
    place.put(paths.version(R, 3, "b"), f"{D},log-000000003-a,4096:")
    place.runner.producer = object()
    follow_up(place, place.runner)
    assert place.left == [1, 2, 3]


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Callable[[int, int], None]:
    """disk(free, total) in bytes."""
    def set_to(free: int, total: int) -> None:
        found = SimpleNamespace(f_bavail=free // 4096, f_frsize=4096, f_blocks=total // 4096)
        monkeypatch.setattr(housekeeping.os, "statvfs", lambda path: found)
    return set_to


def tick(place: Place) -> None:
    """What marsd does now and then."""
    follow_up(place, place.runner)
    if scarce(place):
        make_room(place, place.runner)


@pytest.mark.parametrize(("free", "total", "gone"), [
    (9 * GIB, 64 * GIB, False), (7 * GIB, 64 * GIB, True), (9 * GIB, 80 * GIB, True), (2 * GIB, 8 * GIB, False),
    (GIB, 8 * GIB, True),
])
def test_make_room_when_scarce(place: Place, disk, free: int, total: int, gone: bool) -> None:
    """Below the limits, or an eighth of the file system; on a small one the limits shrink to a quarter."""
    place.logs(1, 2)
    place.replays(2, 2, 2)
    disk(free, total)
    tick(place)
    assert place.left == ([2] if gone else [1, 2])


@pytest.mark.parametrize(("free", "level", "rest"), [
    (20 * GIB, 0, 12), (8 * GIB, 0, 0), (8 * GIB - 4096, 1, 0), (6 * GIB - 4096, 2, 0), (4 * GIB - 4096, 3, 0),
    (2 * GIB, 3, 0), (2 * GIB - 4096, 4, 0), (0, 4, 0),
])
def test_emergency_level(place: Place, disk, free: int, level: int, rest: int) -> None:
    """Facts 6.2: the limits add up; level 4 is the last one. It falls step by step."""
    disk(free, 64 * GIB)
    kicked: list[object] = []
    place.site.loop, place.site.kick, place.site.level = SimpleNamespace(call_soon=kicked.append), None, 0
    watch = Watch(place.site)
    found = {rel.rpartition("/")[2]: value for rel, value in watch.look()}
    assert len(kicked) == (level > 0)
    disk(20 * GIB, 64 * GIB)
    for left in range(level - 1, -1, -1):
        watch.look()
        assert place.site.level == left
    assert found == {"rest-space": str(rest), "total-space": "56", "emergency": str(level)}


@pytest.mark.parametrize(("written", "total", "rotates"), [
    (GIB - 4096, 1000 * GIB, 0), (GIB, 1000 * GIB, 1), (GIB, 4 * GIB, 1)])
def test_rotate_if_long(place: Place, disk, written: int, total: int, rotates: int) -> None:
    """logrot_auto_gb; asked again in the resource's turn."""
    import asyncio
    import contextlib
    turns: list[str] = []

    async def rotate() -> None:
        assert turns[-1] == "in"
        turns.append("rotated")

    @contextlib.asynccontextmanager
    async def exclusive():
        turns.append("in")
        yield
        turns.append("out")
    volume = SimpleNamespace(state={"durable": written, "stalled_ns": 0, "direct": False})
    place.runner.producer = SimpleNamespace(primary=SimpleNamespace(volume=volume, changed=None), rotate=rotate)
    place.runner.exclusive = exclusive
    disk(GIB, total)
    asyncio.run(housekeeping.rotate_if_long(place, place.runner))
    assert turns.count("rotated") == rotates


@pytest.mark.parametrize(("free", "total", "primary", "kept"), [
    (60 * GIB, 64 * GIB, True, True), (60 * GIB, 64 * GIB, False, False), (7 * GIB, 64 * GIB, True, False)])
def test_a_deleted_file_is_kept_for_the_next_log(place: Place, disk, free: int, total: int, primary: bool,
                                                 kept: bool) -> None:
    """Only on a primary, and only while space is not scarce."""
    place.logs(1, 2, 3)
    place.replays(3, 3, 3)
    place.runner.producer = object() if primary else None
    place.runner.dropping = SimpleNamespace(done=lambda: False)
    disk(free, total)
    assert delete_logs(place, place.runner, None) == ["log-000000001-a", "log-000000002-a"] and place.left == [3]
    assert os.path.lexists(spare_of(place)) == kept


@pytest.mark.parametrize(("free", "primary", "stays"), [(60 * GIB, True, True), (60 * GIB, False, False),
                                                        (7 * GIB, True, False)])
def test_the_kept_file_goes_first(place: Place, disk, free: int, primary: bool, stays: bool) -> None:
    """When space gets scarce, or this host is no primary any more."""
    place.logs(1)
    open(spare_of(place), "wb").close()
    place.runner.producer = object() if primary else None
    place.runner.dropping = SimpleNamespace(done=lambda: False)
    disk(free, 64 * GIB)
    tick(place)
    assert os.path.lexists(spare_of(place)) == stays and place.left == [1]


def spare_of(place: Place) -> str:
    """Where the file for the next log would be."""
    return os.path.join(place.store.root, paths.resource_dir(R), writer.SPARE)
