"""Version links and how histories compare: by the table, by named scenarios, and against a model that knows all."""
from __future__ import annotations

import dataclasses
import hashlib
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from marsx.base.errors import DamagedError
from marsx.base.position import LogPos
from marsx.log import chain
from marsx.log.chain import ORIGIN, TABLE, Point, Relation, VersionLink, common_ancestor, relation, split_brain
from marsx.log.record import FileHeader

HOLE = "0" * 32


def digest(*parts: object) -> str:
    return hashlib.md5(repr(parts).encode()).hexdigest()


def history(*logs: tuple[str, int], contents: str = "", first: int = 1) -> dict[int, VersionLink]:
    """Links for logs (producer, end in blocks) from number `first` on. Digests depend on the whole past and on
    `contents`, which stands for other bytes at the same positions."""
    links: dict[int, VersionLink] = {}
    past, prev = contents, None
    for nr, (producer, blocks) in enumerate(logs, first):
        past = digest(past, producer, blocks)
        end = Point(past, LogPos(nr, producer, 4096 * blocks))
        links[nr] = VersionLink(end, prev)
        prev = end
    return links


def pos(nr: int, producer: str, blocks: int) -> LogPos:
    return LogPos(nr, producer, 4096 * blocks)


def without(links: dict[int, VersionLink], *numbers: int) -> dict[int, VersionLink]:
    return {nr: link for nr, link in links.items() if nr not in numbers}


def with_hole(*logs: tuple[str, int]) -> dict[int, VersionLink]:
    """The emergency's way: version 12 is a zero link, log 13 follows it."""
    hole = Point(HOLE, LogPos(12, "a", 0))
    return {12: VersionLink(hole), 13: VersionLink(Point(digest("gap"), pos(13, "a", 2)), hole), **history(*logs)}


# One example for each row of TABLE, in its order: A, B, verdict of the comparison, common position.
EXAMPLES = (
    (history(("a", 3)), history(("a", 3)), "equal", pos(1, "a", 3)),
    (history(("a", 3), ("a", 2)), history(("a", 3)), "a_ahead", pos(1, "a", 3)),
    (history(("a", 3)), history(("a", 3), ("b", 2)), "b_ahead", pos(1, "a", 3)),
    (history(("a", 3), ("c", 4), ("a", 1)), history(("a", 3), ("c", 4), ("b", 1)), "split", pos(2, "c", 4)),
    (history(("a", 2)), history(("a", 3), ("a", 1)), "b_ahead", pos(1, "a", 2)),
    (history(("a", 2), ("b", 1)), history(("a", 3)), "split", pos(1, "a", 2)),
    (history(("a", 3)), history(("a", 1)), "a_ahead", pos(1, "a", 1)),
    (history(("a", 3)), history(("a", 1), ("b", 1)), "split", pos(1, "a", 1)),
    (history(("a", 3)), history(("a", 3), contents="other bytes"), "split", None),
    (history(("a", 1), ("a", 1), ("a", 1)), history(("a", 1)), "a_ahead", pos(1, "a", 1)),
    (history(("a", 1)), history(("a", 1), ("b", 1), ("b", 5)), "b_ahead", pos(1, "a", 1)),
    (without(history(("a", 1), ("a", 2), ("a", 3), ("a", 4)), 2, 3), history(("a", 1)), "unknown", None),
    (history(("a", 1)), without(history(("a", 1), ("a", 2), ("a", 3), ("a", 4)), 2, 3), "unknown", None),
)


def test_an_example_for_each_row():
    assert len(EXAMPLES) == len(TABLE)
    for (_, _, verdict, _), (_, _, _, row) in zip(EXAMPLES, TABLE, strict=True):
        assert row in (verdict, "split: both back", "A back", "B back")


@pytest.mark.parametrize(("row", "example"), list(zip(TABLE, EXAMPLES, strict=True)))
def test_rows(row, example, monkeypatch):
    """Each row decides its example: the row is passed, and without it there is no verdict."""
    a, b, verdict, at = example
    assert relation(a, b) == Relation(verdict, at)
    assert common_ancestor(a, b) == at
    monkeypatch.setattr(chain, "TABLE", tuple(other for other in TABLE if other != row))
    with pytest.raises(AssertionError):
        relation(a, b)


MIRROR = {"a_ahead": "b_ahead", "b_ahead": "a_ahead"}


@pytest.mark.parametrize(("a", "b", "verdict", "at"), EXAMPLES)
def test_both_sides_see_the_same(a, b, verdict, at):
    assert relation(b, a) == Relation(MIRROR.get(verdict, verdict), at)


def test_table_has_no_two_answers():
    """Every state has just one row; order of the rows does not matter."""
    for places in {row[0] for row in TABLE}:
        for more_a in (False, True):
            for more_b in (False, True):
                fitting = [row for row in TABLE if row[0] == places and row[1] in ("-", more_a)
                           and row[2] in ("-", more_b)]
                assert len(fitting) == 1


def test_rule_7_empty_logs_are_no_history():
    """Rule 7: A restarts cut off and starts an empty N+1-A, B is forced and starts N+1-B: nothing has parted."""
    a, b = history(("a", 5), ("a", 0)), history(("a", 5), ("b", 0))
    assert relation(a, b) == Relation("equal", pos(1, "a", 5))
    assert relation(a, history(("a", 5), ("b", 2))) == Relation("b_ahead", pos(1, "a", 5))
    assert relation(a, history(("a", 5))) == Relation("equal", pos(1, "a", 5))
    assert relation(history(("a", 5), ("a", 0), ("a", 0)), history(("a", 5))).verdict == "equal"
    assert relation(history(("a", 6), ("a", 0)), history(("a", 5), ("b", 2))) == Relation("split", pos(1, "a", 5))
    in_between = history(("a", 5), ("a", 0), ("a", 2))
    assert relation(in_between, history(("a", 5))) == Relation("a_ahead", pos(1, "a", 5))
    assert relation(in_between, history(("a", 5), ("b", 1))) == Relation("split", pos(1, "a", 5))


def test_rule_7_no_tolerance():
    """Rule 7: one block more on the side that was left behind is a real tail."""
    for blocks in (1, 2, 1000):
        tail = history(("a", 1000 + blocks))
        assert relation(tail, history(("a", 1000), ("b", 1))).verdict == "split"
    assert relation(history(("a", 1000)), history(("a", 1000), ("b", 1))).verdict == "b_ahead"


def test_rule_6_equal_position_other_bytes():
    """Rule 6: a host comes back with the same names and positions but other contents."""
    a, b = history(("a", 4), ("a", 2)), history(("a", 4), ("a", 2), contents="restored")
    assert relation(a, b).verdict == "split"
    assert relation(a, history(("a", 4), ("a", 1), contents="restored")).verdict == "split"
    late = dict(history(("a", 4), ("a", 2)))
    late[2] = VersionLink(Point(digest("late"), pos(2, "a", 2)), late[2].prev)
    assert relation(a, late) == Relation("split", pos(1, "a", 4))


def test_nothing_written_yet():
    nothing = history(("a", 0))
    assert relation(nothing, history(("a", 0), ("b", 0))) == Relation("equal")
    assert relation(nothing, history(("a", 1))) == Relation("b_ahead")
    assert relation(history(("a", 0), ("a", 2)), history(("b", 3))) == Relation("split")
    assert relation({}, history(("a", 1))) == Relation("unknown")
    assert relation({}, {}) == Relation("unknown")
    assert chain.tip(nothing) is ORIGIN and chain.tip({}) is None


def test_hole_of_an_emergency():
    """Rule 27: who has a hole wrote on behind what he has below it: he is ahead of who stands there, however empty the
    log behind the hole is, and has parted from who went on there."""
    old, empty = history(("a", 5)), with_hole(("a", 5))
    empty[13] = VersionLink(Point(digest("empty gap"), pos(13, "a", 0)), empty[13].prev)
    for gap in (with_hole(("a", 5)), empty):
        assert relation(gap, old) == Relation("a_ahead", pos(1, "a", 5))
        assert relation(gap, history(("a", 4))) == Relation("a_ahead", pos(1, "a", 4))
        assert relation(gap, history(("a", 5), ("b", 2))) == Relation("split", pos(1, "a", 5))
        assert relation(gap, history(("a", 6))) == Relation("split", pos(1, "a", 5))
        assert relation(gap, without(gap, 1, 12)).verdict == "equal"
        assert relation(without(gap, 1, 12), old) == Relation("unknown")
    assert relation(with_hole(("a", 5)), with_hole(("a", 5))).verdict == "equal"
    assert chain.tip({12: VersionLink(Point(HOLE, LogPos(12, "a", 0)))}) is None
    assert split_brain({"a": with_hole(("a", 5)), "b": old}) is None


def test_links_of_two_times_prove_nothing():
    a = history(("a", 5), ("a", 2))
    torn = {**a, 1: history(("a", 4))[1]}
    assert relation(torn, history(("a", 5))) == Relation("unknown")
    assert relation(a, history(("a", 5))).verdict == "a_ahead"


def test_deleted_links_below():
    """Only the newest link is left; the predecessor's end in it is enough for one step."""
    a = history(("a", 1), ("a", 2), ("a", 3))
    assert relation(without(a, 1, 2), without(history(("a", 1), ("a", 2)), 1)) == Relation("a_ahead", pos(2, "a", 2))
    b = history(("a", 1), ("a", 2), ("b", 3))
    assert relation(without(a, 1, 2), without(b, 1, 2)) == Relation("split", pos(2, "a", 2))
    far = history(("a", 1), ("b", 2), ("b", 3))
    assert relation(without(a, 1, 2), without(far, 1, 2)) == Relation("split")


def test_split_brain_names_hosts_and_place():
    a = history(("a", 3), ("a", 2))
    histories = {"a": a, "b": history(("a", 3), ("b", 2)), "c": history(("a", 3)), "d": a, "e": {}}
    found = split_brain(histories)
    assert found is not None
    assert [(x, y) for x, y, _ in found.pairs] == [("a", "b"), ("b", "d")]
    assert found.hosts == ("a", "b", "d") and found.at == pos(1, "a", 3)
    assert str(found) == ("a and b parted at log-000000001-a,12288; b and d parted at log-000000001-a,12288")
    assert split_brain({"a": a, "c": histories["c"], "e": {}}) is None
    unknown = split_brain({"a": history(("a", 1)), "b": history(("b", 1)), "c": history(("a", 1), ("b", 1))})
    assert unknown is not None and unknown.at is None and "unknown position" in str(unknown)


def test_points_go_down_to_the_origin():
    links = history(("a", 3), ("a", 0), ("b", 2))
    assert [str(p.at) for p in chain.points(links)] == ["log-000000003-b,8192", "log-000000001-a,12288"]


# ---- the text ----

EXAMPLE = ("acce54016b9ece7bb2129ed706ee19b2,log-000000002-hostA,4096:"
           "9559349ab4fcc87045f31827c75f7c3c,log-000000001-hostA,8192")


def test_text_round_trip():
    link = VersionLink.parse(EXAMPLE)
    assert str(link) == EXAMPLE
    assert link.end.at == LogPos(2, "hostA", 4096) and link.prev is not None and link.prev.at.pos == 8192
    first = EXAMPLE.split(":")[1] + ":"
    assert str(VersionLink.parse(first)) == first and VersionLink.parse(first).prev is None
    zero = f"{HOLE},log-000000012-a,0:"
    assert VersionLink.parse(zero).end.is_hole and str(VersionLink.parse(zero)) == zero


@pytest.mark.parametrize("text", [
    "", ":", EXAMPLE.replace(":", ""), EXAMPLE + ":", EXAMPLE + "\n", " " + EXAMPLE, EXAMPLE.upper(),
    EXAMPLE.replace("acce", "acc"), EXAMPLE.replace("acce", "acceacce"), EXAMPLE.replace("4096", "04096"),
    EXAMPLE.replace("4096", "4097"), EXAMPLE.replace("4096", "-4096"), EXAMPLE.replace("4096", "9" * 25),
    EXAMPLE.replace("4096", "4096,0"), EXAMPLE.replace("000000002", "2"), EXAMPLE.replace("000000002", "000000003"),
    EXAMPLE.replace("000000001", "000000000"), EXAMPLE.replace("hostA", "../x"), EXAMPLE.replace("log-", "lag-"),
    EXAMPLE.replace("hostA", "hostA\0"), EXAMPLE.replace("acce", "ａcce"), EXAMPLE.replace("4096", "٤٠٩٦"), "a" * 5000])
def test_other_texts_are_refused(text):
    with pytest.raises(DamagedError):
        VersionLink.parse(text)


@given(st.text(alphabet="0123456789abcdef,:-log" + "\n \0Aé", max_size=200))
def test_any_text_is_refused_or_comes_back(text):
    try:
        assert str(VersionLink.parse(text)) == text
    except DamagedError:
        pass


def test_link_of_a_log():
    first = FileHeader(nr=1, producer="a", resource="res", uuid="u", log_id=b"i" * 16, device_size=4096, block_size=512,
                       lamport_ns=0, real_ns=0)
    one = chain.link_of(first, 8192, "ab" * 16)
    assert str(one) == "ab" * 16 + ",log-000000001-a,8192:"
    second = dataclasses.replace(first, nr=2, producer="b", pred=one.end.at, pred_digest=one.end.digest)
    two = chain.link_of(second, 0, second.digest0)
    assert str(two) == f"{second.digest0},log-000000002-b,0:{one.end}"
    assert relation({1: one, 2: two}, {1: one}) == Relation("equal", one.end.at)
    gap = chain.link_of(dataclasses.replace(second, nr=12), 4096, "cd" * 16)
    assert str(gap) == f"{'cd' * 16},log-000000012-b,4096:{HOLE},log-000000011-b,0"
    assert relation({1: one, 12: gap}, {1: one}) == Relation("a_ahead", one.end.at)


# ---- a model that knows everything ----

@dataclass
class Replica:
    """What a host really has: all groups ever applied, and the logs with their ends."""

    groups: list[int] = field(default_factory=list)
    logs: list[tuple[int, str, int, int]] = field(default_factory=list)  # number, producer, birth, groups in it

    def copy(self) -> Replica:
        return Replica(list(self.groups), list(self.logs))

    def cut(self, length: int) -> Replica:
        """The replica that has only the first `length` groups of this one, and no log that begins behind them."""
        new, left = Replica(self.groups[:length]), length
        for nr, producer, birth, n in self.logs:
            new.logs.append((nr, producer, birth, min(n, left)))
            left -= min(n, left)
            if left == 0:
                break
        return new

    def links(self) -> dict[int, VersionLink]:
        links, prev, done = {}, None, 0
        for nr, producer, birth, n in self.logs:
            done += n
            end = Point(digest(birth, self.groups[:done]), pos(nr, producer, n))
            links[nr] = VersionLink(end, prev)
            prev = end
        return links


class World:
    """Hosts that write, follow each other and are forced, by a list of random numbers."""

    def __init__(self, hosts: int) -> None:
        self.names = "abcd"[:hosts]
        self.count = 0
        root = Replica([], [(1, "a", 0, 0)])
        self.replicas = {name: root.copy() for name in self.names}
        self.used = {(1, "a")}

    def step(self, what: int, who: int, whom: int, amount: int) -> None:
        name, other = self.names[who % len(self.names)], self.names[whom % len(self.names)]
        mine = self.replicas[name]
        if what == 0:
            self.write(mine, name, 1 + amount % 3)
        elif what == 1:
            self.new_log(mine, name)
        elif what == 2:
            theirs = self.replicas[other]
            if theirs.groups[:len(mine.groups)] == mine.groups:
                self.replicas[name] = theirs.cut(len(mine.groups) + amount % 4)
        else:
            self.replicas[name] = self.replicas[other].copy()

    def new_log(self, mine: Replica, name: str) -> None:
        # A number is never used twice by a host (rule 21: none begins a log while a higher number is known).
        nr = mine.logs[-1][0] + 1
        if (nr, name) not in self.used:
            self.count += 1
            self.used.add((nr, name))
            mine.logs.append((nr, name, self.count, 0))

    def write(self, mine: Replica, name: str, n: int) -> None:
        nr, producer, birth, have = mine.logs[-1]
        if producer == name and self.is_open(mine):
            for _ in range(n):
                self.count += 1
                mine.groups.append(self.count)
            mine.logs[-1] = (nr, producer, birth, have + n)

    def is_open(self, mine: Replica) -> bool:
        """Nobody has more of our newest log, or has gone on behind it: else we have come back to it from a copy."""
        key = mine.logs[-1][:3]
        return all(len(replica.groups) <= len(mine.groups) and replica.logs[-1][:3] == key
                   for replica in self.replicas.values() if key in [log[:3] for log in replica.logs])


def truth(a: Replica, b: Replica) -> str:
    common = 0
    while common < min(len(a.groups), len(b.groups)) and a.groups[common] == b.groups[common]:
        common += 1
    if common == len(a.groups) == len(b.groups):
        return "equal"
    if common == len(b.groups):
        return "a_ahead"
    return "b_ahead" if common == len(a.groups) else "split"


steps = st.lists(st.tuples(st.sampled_from([0, 0, 0, 1, 1, 2, 2, 2, 3]), st.integers(0, 3), st.integers(0, 3),
                           st.integers(0, 5)), max_size=40)


@settings(deadline=None, max_examples=400)
@given(st.integers(2, 4), steps, st.data())
def test_random_histories_against_the_model(hosts, program, data):
    """Rules 6 and 7: the verdict is that of the contents; with links deleted it may become unknown, never wrong."""
    world = World(hosts)
    for step in program:
        world.step(*step)
    links = {name: replica.links() for name, replica in world.replicas.items()}
    for a in world.names:
        for b in world.names:
            right = truth(world.replicas[a], world.replicas[b])
            found = relation(links[a], links[b])
            assert found.verdict == right
            if found.at is not None:
                assert _length(world.replicas[a], found.at) == _length(world.replicas[b], found.at)
            lowest = data.draw(st.integers(1, max(links[a])))
            fewer = {nr: link for nr, link in links[a].items() if nr >= lowest}
            assert relation(fewer, links[b]).verdict in (right, "unknown")
    found = split_brain(links)
    parted = {(a, b) for a in world.names for b in world.names
              if a < b and truth(world.replicas[a], world.replicas[b]) == "split"}
    assert {(x, y) for x, y, _ in found.pairs} == parted if found else not parted


def _length(replica: Replica, at: LogPos) -> list[int]:
    """The groups of this replica up to a position in its history."""
    done = 0
    for nr, producer, _, n in replica.logs:
        if (nr, producer) == (at.nr, at.producer):
            assert at.pos // 4096 <= n
            return replica.groups[:done + at.pos // 4096]
        done += n
    raise AssertionError(f"{at} is not in the history")
