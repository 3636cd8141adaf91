"""The view: what is there is found, what is not there or does not parse is nothing, and consistency is strict."""
from __future__ import annotations

import pytest

from marsx.base.position import LogPos
from marsx.tree import paths, view
from marsx.tree.view import Grant, Mark, Replay, Version, View

D1, D2, D3 = "1" * 32, "2" * 32, "3" * 32
NOW = 1_795_000_000 * 10**9


def picture(values: dict[str, str], stamp: int = NOW, **kwargs) -> View:
    return View([(rel, value, stamp) for rel, value in values.items()], **kwargs)


def link(digest: str, nr: int, host: str, pos: int, previous: str = "") -> str:
    return f"{digest},log-{nr:09d}-{host},{pos}:{previous}"


BASE = {
    paths.uuid(): "a_1.0", paths.ip("b"): "10.0.0.2", paths.ip("a"): "10.0.0.1", paths.size("r"): "8192",
    paths.data("r", "a"): "/dev/a", paths.data("r", "b"): "/dev/b", paths.device("r", "a"): "r",
    paths.device("r", "b"): "(none)", paths.primary("r"): "a", paths.actual("r", "a", "is-primary"): "1",
    paths.todo("r", "b", "sync"): "1", paths.todo("r", "b", "attach"): "0", paths.want_primary("r", "b"): "0",
    paths.syncstatus("r", "b"): "4096", paths.replay("r", "b"): "log-000000001-a,4096,512",
    paths.actual("r", "b", "open-count"): "2", paths.host_actual("a", "emergency"): "3", paths.maxnr("old"): "4",
    paths.connect_pref("r", "b"): "c,a", paths.host_default("b", "sync-limit"): "2",
    paths.message("r", "b", "err-x"): "broken", paths.message("r", "b", "inf-y"): "OK",
    paths.message("", "b", "wrn-z"): "slow", paths.block_size("r"): "4096", paths.actsize("r", "b"): "9000",
    paths.granted("r", "a"): f"b,log-000000001-a,4096,{D1}", paths.maxnr("r"): "000000001",
}


def test_what_is_there_is_found():
    v = picture(BASE)
    assert (v.uuid, v.ips, v.hosts) == ("a_1.0", {"a": "10.0.0.1", "b": "10.0.0.2"}, ("a", "b"))
    assert v.resources == ("r",) and v.members("r") == ("a", "b")
    assert (v.size("r"), v.block_size("r"), v.actsize("r", "b"), v.syncstatus("r", "b")) == (8192, 4096, 9000, 4096)
    assert (v.data("r", "a"), v.device("r", "a"), v.device("r", "b")) == ("/dev/a", "r", "")
    assert (v.designated("r"), v.actual_primaries("r")) == ("a", ("a",))
    assert v.todo("r", "b", "sync") and not v.todo("r", "b", "attach") and v.want_primary("r", "b") == ""
    assert v.replay("r", "b") == Replay(LogPos(1, "a", 4096), 512)
    assert (v.open_count("r", "b"), v.emergency("a"), v.sync_limit("b"), v.sync_rest("r", "b")) == (2, 3, 2, 4096)
    assert v.connect_pref("r", "b") == ("c", "a")
    assert v.messages("r", "b") == {"err-x": "broken"} and v.host_messages("b") == {"wrn-z": "slow"}
    assert v.granted("r", "a") == Grant("b", Mark(LogPos(1, "a", 4096), D1))


def test_what_is_not_there_is_nothing():
    """Unknown or impossible names never raise: planner and displays ask about everything."""
    for v in (View([]), picture(BASE)):
        for resource in ("nothing", "bad/name", "", "..", "(none)"):
            assert (v.size(resource), v.members(resource), v.designated(resource)) == (0, (), "")
            for host in ("x", "(none)", "", "a/b"):
                assert v.replay(resource, host) is None and v.syncpos(resource, host) is None
                assert v.version(resource, host, 0) is None and v.granted(resource, host) is None
                assert v.messages(resource, host) == {} and not v.todo(resource, host, "sync")
                assert not v.consistent(resource, host)
                assert v.in_history(resource, host, Mark(LogPos(1, "a", 0), "")) is None
                assert v.alive_age(host, NOW) is None and v.open_count(resource, host) == 0


def test_tombstones_do_not_exist_and_nobody_is_nobody():
    v = picture({**BASE, paths.data("r", "b"): ".deleted", paths.primary("r"): "(none)"})
    assert v.members("r") == ("a",) and v.designated("r") == "" and v.get(paths.data("r", "b")) == ""


def test_the_picture_is_frozen():
    """rule 19: what comes later does not show in an older view."""
    entries = [(paths.primary("r"), "a", NOW)]
    v = View(entries)
    entries.append((paths.primary("r"), "b", NOW + 1))
    assert v.designated("r") == "a"


@pytest.mark.parametrize(("member", "removed", "is_member"), [
    ("", "", True), ("m1", "", True), ("m1", "m1", False), ("m2", "m1", True), ("", "m1", False)])
def test_rule_26_members_are_those_whose_life_is_not_over(member, removed, is_member):
    """rule 26: data-P alone does not make a member."""
    v = picture({**BASE, paths.member("r", "b"): member, paths.removed("r", "b"): removed})
    assert ("b" in v.members("r")) is is_member


@pytest.mark.parametrize("text", [
    "", "x", "log-1-a,0,0", "log-000000001-a,0", "log-000000001-a,-1,0", "log-000000001-a,0,0,0", "log-000000000-a,0,0",
    "log-000000001-a,99999999999999999999,0"])
def test_bad_positions_are_nothing(text):
    assert view.parse_replay(text) is None


def test_values_parse():
    pos = LogPos(2, "a-b", 4096)
    assert view.parse_mark(f"log-000000002-a-b,4096,0,{D1}") == Mark(pos, D1)
    assert view.parse_mark("log-000000002-a-b,4096,0") == view.parse_mark("log-000000002-a-b,4096") == Mark(pos, "")
    assert view.parse_mark(f"log-000000002-a-b,4096,{D1}") == Mark(pos, D1)
    assert view.parse_version(link(D1, 2, "a-b", 4096)) == Version(Mark(pos, D1), None)
    previous = link(D2, 1, "a", 8)[:-1]
    assert view.parse_version(link(D1, 2, "a-b", 4096, previous)).previous == Mark(LogPos(1, "a", 8), D2)
    assert view.parse_grant(f"(none),log-000000002-a-b,4096,{D1}").host == ""
    for bad in ("", D1, f"{D1},log-000000002-a,1", f"{D1},log-000000002-a,1:x", "short,log-000000002-a,1:"):
        assert view.parse_version(bad) is None
    for bad in ("", "b", "b,log-000000002-a,1", "b,x"):
        assert view.parse_grant(bad) is None
    assert view.parse_mark("a,b,c,d,e") is None


P900 = link(D1, 1, "a", 900)
P1000 = link(D2, 1, "a", 1000)

# versions of b, replay of b, syncpos of b, consistent?
CONSISTENT = [
    ("no syncpos: nothing was synced", {1: P900}, (1, "a", 900), None, True),
    ("replay is just there", {1: P1000}, (1, "a", 1000), (1, "a", 1000, D2), True),
    ("replay is behind", {1: P1000}, (1, "a", 999), (1, "a", 1000, D2), False),
    ("the link is ahead of syncpos", {1: P1000}, (1, "a", 1000), (1, "a", 500, D3), True),
    ("other bytes at the same position", {1: P1000}, (1, "a", 1000), (1, "a", 1000, D3), False),
    ("digest not given", {1: P1000}, (1, "a", 1000), (1, "a", 1000, ""), True),
    ("forked below syncpos, own link of the log", {1: P900, 2: link(D3, 2, "b", 10, P900[:-1])}, (2, "b", 10),
     (1, "a", 1000, D2), False),
    ("forked below syncpos, only the later link left", {2: link(D3, 2, "b", 10, P900[:-1])}, (2, "b", 10),
     (1, "a", 1000, D2), False),
    ("the later link says where the log ended, not the stale own one", {1: P1000, 2: link(D3, 2, "b", 10, P900[:-1])},
     (2, "b", 10), (1, "a", 1000, D2), False),
    ("passed in the next log", {1: P1000, 2: link(D3, 2, "b", 10, P1000[:-1])}, (2, "b", 10), (1, "a", 1000, D2), True),
    ("passed, only the later link left", {2: link(D3, 2, "b", 10, P1000[:-1])}, (2, "b", 10), (1, "a", 1000, D2), True),
    ("other producer of that log", {1: link(D2, 1, "c", 1000)}, (1, "c", 1000), (1, "a", 1000, D2), False),
    ("links of that time are gone", {5: link(D3, 5, "a", 10)}, (5, "a", 10), (1, "a", 1000, D2), False),
    ("no links at all", {}, (5, "a", 10), (1, "a", 1000, D2), False),
]


@pytest.mark.parametrize("row", CONSISTENT, ids=lambda row: row[0])
def test_rule_14_consistent_needs_syncpos_in_the_own_history(row):
    """rule 14: by number alone the forked replica would pass."""
    _, versions, replay, syncpos, expected = row
    values = {**BASE, paths.syncstatus("r", "b"): "8192", paths.replay("r", "b"): f"log-{replay[0]:09d}-{replay[1]},"
              f"{replay[2]},0"}
    for nr, text in versions.items():
        values[paths.version("r", nr, "b")] = text
    if syncpos:
        digest = "," + syncpos[3] if syncpos[3] else ""
        values[paths.syncpos("r", "b")] = f"log-{syncpos[0]:09d}-{syncpos[1]},{syncpos[2]},0{digest}"
    assert picture(values).consistent("r", "b") is expected


GOOD = {**BASE, paths.syncstatus("r", "b"): "8192", paths.replay("r", "b"): "log-000000001-a,900,0"}


@pytest.mark.parametrize(("change", "consistent", "on_disk"), [
    ({}, True, True),
    ({paths.replay("r", "b"): "log-000000001-a,900,512"}, True, False),
    ({paths.syncstatus("r", "b"): "8191"}, False, False),
    ({paths.syncstatus("r", "b"): ""}, False, False),
    ({paths.size("r"): "8193"}, False, False),
    ({paths.size("r"): ""}, False, False),
    ({paths.replay("r", "b"): ""}, False, False),
    ({paths.data("r", "b"): ""}, False, False),
    ({paths.syncpos("r", "b"): "garbage"}, False, False),
])
def test_rules_12_and_14_consistent_and_disk_consistent(change, consistent, on_disk):
    """rule 12: with LEN > 0 the disk is a mixture; rule 14: syncstatus = size, and nothing may be missing."""
    v = picture({**GOOD, **change})
    assert (v.consistent("r", "b"), v.disk_consistent("r", "b")) == (consistent, on_disk)


def test_rule_25_liveness_is_the_local_time_since_the_last_heartbeat():
    """rule 25: stamps that run ahead do not make a dead host alive, and a clock behind does not kill a living one."""
    values = {paths.host_actual("a", "alive"): "1", paths.host_actual("b", "alive"): "1",
              paths.host_actual("c", "alive"): "0"}
    window = 30 * 10**9
    v = picture(values, stamp=NOW, heard={"b": 2.0, "c": 1.0})
    assert [v.alive(host, NOW, window) for host in "abc"] == [False, True, False]
    v = picture(values, stamp=NOW - 3600 * 10**9, heard={"a": 29.0, "b": 31.0})
    assert [v.alive(host, NOW, window) for host in "abc"] == [True, False, False]
    assert v.alive_age("a", NOW) == 29 * 10**9


def test_without_marsd_stamps_are_all_there_is():
    values = {paths.host_actual("a", "time"): "1.000000000"}
    v = picture(values, stamp=NOW)
    assert v.alive("a", NOW + 10, 30) and not v.alive("a", NOW + 31, 30) and v.alive("a", NOW - 5, 30)


def test_version_texts_are_all_links_by_host_and_number():
    v = picture({paths.version("r", 1, "a"): P900, paths.version("r", 12, "a"): P1000,
                 paths.version("r", 1, "b"): P900})
    assert v.version_texts("r") == {"a": {1: P900, 12: P1000}, "b": {1: P900}}
    assert v.version_numbers("r", "a") == (1, 12)
