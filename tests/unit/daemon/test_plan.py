"""What should run now: one table for each decision; a row is a tree, what the host knows, and the plan."""
from __future__ import annotations

from dataclasses import replace

import pytest

from marsx.base.position import LogPos
from marsx.daemon.plan import Local, Plan, cannot_follow, may_produce, plan, waiting_hosts
from marsx.tree import paths
from marsx.tree.view import View

R, SIZE = "r", 1 << 20
END, D, D0 = LogPos(1, "a", 8192), "d" * 32, "0" * 31 + "1"
AT_END = Local(attached=True, recovered=True, at=END, digest=D, fetched=END, fetched_digest=D,
               connected=frozenset("abc"))
BEHIND = replace(AT_END, at=LogPos(1, "a", 4096), digest=D0)
PRIMARY = replace(AT_END, primary=True)
GRANT_B = {"granted a": f"b,{END},{D}"}


def tree(**changes: str) -> View:
    """Hosts a, b, c; a has produced log 1 up to END, all have it, all switches are on, a is designated. Keys are
    words with `_` for blanks (`todo_b_sync`) or names; a value of "" removes an entry. Later keys have later stamps."""
    entries = {"size": str(SIZE), "primary": "a", "want a": "0", "want b": "0", "want c": "0"}
    for host in "abc":
        entries |= {f"data {host}": "/dev/x", f"replay {host}": f"{END},0", f"version {host} 1": f"{D},{END}:",
                    f"syncstatus {host}": str(SIZE), f"actual {host} is-primary": "1" if host == "a" else "0"}
        entries |= {f"todo {host} {switch}": "1" for switch in ("attach", "connect", "sync", "allow-replay")}
    for key, value in changes.items():
        entries.pop(key.replace("_", " "), None)
        entries[key.replace("_", " ")] = value
    return View([(name(key), value, 10 + at) for at, (key, value) in enumerate(entries.items()) if value])


def name(key: str) -> str:
    kind, *rest = key.split()
    if kind == "version":
        return paths.version(R, int(rest[1]), rest[0])
    if kind == "todo":
        return paths.todo(R, *rest)
    if kind == "actual":
        return paths.actual(R, *rest)
    if kind == "connect":
        return paths.connect_pref(R, *rest)
    if kind == "want":
        return paths.want_primary(R, *rest)
    return getattr(paths, kind)(R, *rest)


def shown(found: Plan) -> dict:
    """What is wanted, without what is not."""
    return {key: value for key, value in vars(found).items() if value and key != "why"}


SECOND = {"attach": True, "fetch_from": "a", "replay": True}
NOBODY = {"primary": "(none)", "actual_a_is-primary": "0"}


@pytest.mark.parametrize(("host", "changes", "local", "wanted", "why"), [
    # facts 5.1: roles
    pytest.param("a", {}, PRIMARY, {"attach": True, "primary": True}, {}, id="designated and primary: goes on"),
    pytest.param("a", {}, AT_END, {"attach": True, "primary": True}, {}, id="designated, last producer: becomes"),
    pytest.param("a", {"todo_a_attach": "0"}, PRIMARY, {}, {"attach": "switched off"}, id="attach off: role goes"),
    pytest.param("a", {}, replace(PRIMARY, shutdown=True), {}, {"attach": "shutting down"}, id="shutting down"),
    pytest.param("b", {}, AT_END, SECOND, {}, id="secondary: fetches and replays"),
    pytest.param("z", {}, AT_END, {}, {"member": "not a member"}, id="no member"),
    pytest.param("b", {}, Local(), {"attach": True}, {"replay": "not attached"}, id="not attached yet"),
    pytest.param("b", {"todo_b_attach": "0"}, Local(), {}, {"attach": "switched off"}, id="detached"),
    pytest.param("a", {"primary": "b"}, PRIMARY, {"attach": True}, {}, id="another one is designated: role goes"),
    pytest.param("a", {"primary": "(none)"}, PRIMARY, {"attach": True}, {"primary": "no primary"}, id="nobody is"),
    # rule 21
    pytest.param("a", {}, replace(AT_END, role_durable=False), {**SECOND, "fetch_from": "b"},
                 {"primary": "durable"}, id="rule 21: does not become by a role that is not durable"),
    pytest.param("a", {"primary": "b"}, replace(PRIMARY, role_durable=False), {"attach": True, "primary": True},
                 {"primary": "durable"}, id="rule 21: does not cease either"),
    pytest.param("a", {**NOBODY, "want_b": "x"}, replace(AT_END, role_durable=False), {**SECOND, "fetch_from": "b"},
                 {"primary": "durable"}, id="rule 21: does not grant either"),
    # rule 22: what has to be cleared up after a start
    pytest.param("a", {}, replace(AT_END, hold="b has more"), {**SECOND, "fetch_from": "b"},
                 {"primary": "b has more"}, id="rule 22: does not become before that"),
    pytest.param("a", {}, replace(AT_END, hold="c has more", ahead="c"), {**SECOND, "fetch_from": "c"},
                 {"primary": "c has more"}, id="rule 22: fetches from who has more"),
    pytest.param("a", {**NOBODY, "want_b": "x"}, replace(AT_END, hold="b has more"), {**SECOND, "fetch_from": "b"},
                 {}, id="rule 22: does not grant either"),
    pytest.param("a", {"todo_a_connect": "0", "want_a": "force-1"}, replace(AT_END, hold="b has more"),
                 {"attach": True, "primary": True}, {}, id="rule 22: by force it does"),
    pytest.param("a", {}, replace(PRIMARY, hold="b has more"), {"attach": True, "primary": True}, {},
                 id="rule 22: who serves goes on"),
    # trouble, clock, consistency
    pytest.param("b", {}, replace(AT_END, trouble="log damaged"), {"attach": True}, {"trouble": "log damaged"},
                 id="trouble stops a secondary"),
    pytest.param("b", {"syncstatus_b": "5"}, replace(AT_END, replay_trouble="EIO"),
                 {"attach": True, "fetch_from": "a"}, {"replay": "EIO"}, id="a bad data device: only the log goes on"),
    pytest.param("b", {"primary": "b", **GRANT_B}, replace(AT_END, replay_trouble="EIO"),
                 {"attach": True, "fetch_from": "a"}, {"replay": "EIO"}, id="a bad data device: no role"),
    pytest.param("b", {"primary": "b", "todo_b_connect": "0"}, replace(AT_END, replay_trouble="EIO"),
                 {"attach": True}, {"fetch": "switched off"}, id="a bad data device: no role by force"),
    pytest.param("b", {}, replace(AT_END, replay_trouble="EIO", trouble="x"), {"attach": True}, {"trouble": "x"},
                 id="a bad data device and a bad log"),
    pytest.param("a", {}, replace(PRIMARY, trouble="x"), {"attach": True, "primary": True}, {"trouble": "x"},
                 id="trouble takes no device away"),
    pytest.param("a", {"primary": "b"}, replace(PRIMARY, trouble="x"), {"attach": True}, {"trouble": "x"},
                 id="but the role can go"),
    pytest.param("a", {}, replace(AT_END, trouble="x"), {"attach": True}, {"trouble": "x"},
                 id="and trouble does not become primary"),
    pytest.param("a", {}, replace(AT_END, clock_problem="year 2000"), {**SECOND, "fetch_from": "b"},
                 {"primary": "2000"}, id="rule 25: a wrong clock begins no role"),
    pytest.param("a", {}, replace(PRIMARY, clock_problem="year 2000"), {"attach": True, "primary": True}, {},
                 id="but what serves goes on"),
    pytest.param("a", {"syncstatus_a": "5"}, AT_END, {**SECOND, "fetch_from": "b"}, {"primary": "not consistent"},
                 id="inconsistent replica"),
    pytest.param("a", {"syncstatus_a": "5", "todo_a_connect": "0", "want_a": "force-1"}, AT_END,
                 {"attach": True, "replay": True},
                 {"primary": "not consistent"}, id="inconsistent replica, forced: half a disk is no device"),
    pytest.param("a", {"syncstatus_a": "5", "todo_a_connect": "0", "want_a": "ignore-sync-1"}, AT_END,
                 {"attach": True, "primary": True}, {}, id="inconsistent replica, forced, and said so"),
    pytest.param("a", {"syncstatus_a": "5", "want_a": "ignore-sync-1"}, AT_END, {**SECOND, "fetch_from": "b"},
                 {"primary": "not consistent"}, id="inconsistent replica, said so without force"),
    # handover
    pytest.param("b", {"primary": "b", **GRANT_B}, AT_END, {"attach": True, "primary": True}, {},
                 id="granted, and at the end"),
    pytest.param("b", {"primary": "b", **GRANT_B}, BEHIND, SECOND, {"primary": "not replayed yet"},
                 id="granted, not there yet"),
    pytest.param("b", {"primary": "b"}, AT_END, SECOND, {"primary": "a has not granted"}, id="not granted"),
    pytest.param("b", {"primary": "b", "todo_b_connect": "0", "want_b": "force-1"}, AT_END,
                 {"attach": True, "primary": True}, {}, id="forced"),
    pytest.param("b", {"primary": "b", "todo_b_connect": "0", "want_b": "force-1", **GRANT_B}, BEHIND,
                 {"attach": True, "primary": True}, {}, id="forced while the granted end can never be reached"),
    pytest.param("b", {"primary": "b", "todo_b_connect": "0", **GRANT_B}, BEHIND, {"attach": True, "replay": True},
                 {"primary": "not replayed yet"}, id="rule 18: disconnected while it waits is not forced"),
    pytest.param("b", {"primary": "b", "want_b": "force-1"}, AT_END, SECOND, {"primary": "a has not granted"},
                 id="force is over when it is connected again"),
    pytest.param("a", {**NOBODY, "want_b": "x"}, AT_END, {**SECOND, "fetch_from": "b", "grant_to": "b"}, {},
                 id="one host wants: granted"),
    pytest.param("a", {"primary": "(none)", "want_b": "x"}, PRIMARY, {"attach": True}, {},
                 id="not before the device is gone"),
    pytest.param("a", NOBODY, AT_END, {**SECOND, "fetch_from": "b"}, {"primary": "no primary"},
                 id="after secondary: the right stays"),
    pytest.param("a", {**NOBODY, "want_b": "x"}, replace(AT_END, recovered=False), {"attach": True},
                 {"replay": "not attached"}, id="not before it is known where the log ends"),
    pytest.param("a", {**NOBODY, "want_b": "x"}, BEHIND, {**SECOND, "fetch_from": "b"}, {},
                 id="not while the disk is behind the own log"),
    pytest.param("a", {**NOBODY, "want_b": "x"}, replace(AT_END, fetched=None), {**SECOND, "fetch_from": "b"}, {},
                 id="not while the own log was not read"),
    pytest.param("a", {**NOBODY, "want_b": "x"}, replace(AT_END, fetched_digest=D0), {**SECOND, "fetch_from": "b"}, {},
                 id="not from a position with other contents"),
    pytest.param("a", {**NOBODY, "want_b": "x", "version_b_2": f"{D},log-000000002-a,4096:"}, AT_END,
                 {**SECOND, "fetch_from": "b"}, {}, id="not from the end of an older log"),
    pytest.param("a", {**NOBODY, "want_b": "x"}, replace(AT_END, connected=frozenset("c")),
                 {**SECOND, "fetch_from": "c"}, {}, id="not to a host that does not hear it"),
    pytest.param("a", {**NOBODY, "want_b": "x", "want_c": "y"}, AT_END,
                 {**SECOND, "fetch_from": "b", "grant_to": "c"}, {}, id="two want: the newest wish"),
    pytest.param("a", {**NOBODY, "want_c": "y", "want_b": "x"}, replace(AT_END, connected=frozenset("c")),
                 {**SECOND, "fetch_from": "c", "grant_to": "c"}, {}, id="of those that can be reached"),
    pytest.param("a", {"primary": "b", "want_c": "y"}, AT_END, {**SECOND, "fetch_from": "b", "grant_to": "b"}, {},
                 id="the designated primary comes first"),
    pytest.param("b", {"primary": "a", **GRANT_B}, BEHIND, {**SECOND, "grant_to": "a"}, {},
                 id="a grant that was taken back returns, as it came"),
    pytest.param("b", {**NOBODY, "want_c": "y", **GRANT_B}, AT_END, {**SECOND, "grant_to": "c"}, {},
                 id="a grant that nobody uses is passed on"),
    pytest.param("b", {**NOBODY, "want_c": "y", "want_b": "x", **GRANT_B}, AT_END, SECOND, {},
                 id="two wanting hosts do not hand it to and fro"),
    pytest.param("b", {**NOBODY, "want_b": "x", **GRANT_B, "want_c": "y"}, AT_END, {**SECOND, "grant_to": "c"}, {},
                 id="but who asks anew gets it (the marsadm of the other was killed)"),
    pytest.param("b", {**NOBODY, "want_c": "x"}, AT_END, SECOND, {}, id="who has no right grants nothing"),
    # rule 12: the disk is a mixture; and a half disk that was made a device once
    pytest.param("b", {"primary": "b", "todo_b_connect": "0", "want_b": "force-1", "replay_b": f"{BEHIND.at},8192"},
                 replace(BEHIND, fetched=END), {"attach": True, "replay": True}, {"primary": "a mixture"},
                 id="rule 12: the logs end inside the window that was being written"),
    pytest.param("b", {"primary": "b", "todo_b_connect": "0", "want_b": "force-1", "replay_b": f"{BEHIND.at},4096"},
                 replace(BEHIND, fetched=END), {"attach": True, "primary": True}, {},
                 id="rule 12: the logs lead over that window"),
    pytest.param("b", {"primary": "b", "todo_b_connect": "0", "want_b": "ignore-sync-1",
                       "replay_b": f"{BEHIND.at},8192"},
                 replace(BEHIND, fetched=END), {"attach": True, "primary": True}, {}, id="a mixture, and said so"),
    pytest.param("a", {"syncstatus_a": "5", "actual_a_taken": "log-000000001-a"}, AT_END,
                 {"attach": True, "primary": True}, {}, id="half a disk that was taken goes on after a restart"),
    pytest.param("a", {"syncstatus_a": "5", "actual_a_taken": "log-000000001-a",
                       "version_b_2": f"{D},log-000000002-b,4096:"}, AT_END, {**SECOND, "fetch_from": "b"},
                 {"primary": "granted"}, id="but not when others wrote since"),
    # facts 5.1, 7.5: fetch
    pytest.param("b", {"todo_b_connect": "0"}, AT_END, {"attach": True, "replay": True}, {"fetch": "switched off"},
                 id="connect off"),
    pytest.param("b", {"todo_b_allow-replay": "0"}, AT_END, {"attach": True, "fetch_from": "a"},
                 {"replay": "switched off"}, id="replay off"),
    pytest.param("b", {"connect_b": "c,a"}, AT_END, {**SECOND, "fetch_from": "c"}, {}, id="preferred host"),
    pytest.param("b", {"connect_b": "c,a"}, replace(AT_END, connected=frozenset("a")), SECOND, {},
                 id="preferred host is away: the next of the list"),
    pytest.param("b", {"connect_b": "c"}, replace(AT_END, connected=frozenset("a")), SECOND, {},
                 id="nobody of the list is here: anybody"),
    pytest.param("b", {"connect_b": "b"}, AT_END, SECOND, {}, id="never from itself"),
    pytest.param("b", {}, replace(AT_END, connected=frozenset("c")), {**SECOND, "fetch_from": "c"}, {},
                 id="the primary is away: from whom is here"),
    pytest.param("c", {"primary": "b", **GRANT_B, "actual_a_is-primary": "0"},
                 replace(AT_END, connected=frozenset("a")), SECOND, {},
                 id="the designated primary is away: the last producer"),
    pytest.param("b", {"primary": "b"}, AT_END, SECOND, {"primary": "granted"}, id="waits for its role: the producer"),
    pytest.param("b", {}, replace(AT_END, connected=frozenset()), {"attach": True, "replay": True},
                 {"fetch": "no connected host"}, id="nobody is connected"),
    # facts 4.1, 5.6: sync
    pytest.param("b", {"syncstatus_b": "5"}, AT_END, {**SECOND, "sync_from": "a"}, {}, id="sync from the primary"),
    pytest.param("b", {"syncstatus_b": "5", "connect_b": "c"}, AT_END,
                 {**SECOND, "fetch_from": "c", "sync_from": "a"}, {}, id="sync is not ruled by connect-H"),
    pytest.param("b", {"syncstatus_b": "5", "todo_b_sync": "0"}, AT_END, SECOND, {"sync": "switched off"}, id="off"),
    pytest.param("b", {"syncstatus_b": "5", "primary": "(none)"}, AT_END, SECOND, {"sync": "no primary"}, id="none"),
    pytest.param("b", {"syncstatus_b": "5", "primary": "b"}, AT_END, SECOND, {"sync": "no primary"}, id="itself"),
    pytest.param("b", {"syncstatus_b": "5", "actual_a_is-primary": "0"}, AT_END, SECOND, {"sync": "not primary yet"},
                 id="designated only"),
    pytest.param("b", {"syncstatus_b": "5"}, replace(AT_END, connected=frozenset("c")), {**SECOND, "fetch_from": "c"},
                 {"sync": "not connected"}, id="primary away"),
    pytest.param("b", {"syncstatus_b": "5"}, replace(AT_END, sync_slots=0), SECOND, {"sync": "slot"}, id="no slot"),
    pytest.param("b", {"syncstatus_b": "5", "todo_b_connect": "0"}, AT_END, {"attach": True, "replay": True},
                 {"sync": "fetch is switched off", "fetch": "switched off"}, id="sync needs the log"),
])
def test_plan(host: str, changes: dict[str, str], local: Local, wanted: dict, why: dict[str, str]) -> None:
    """Rules 12, 18, 21, 22, 25: one row of the table; `why` holds a part of each reason that must be given."""
    found = plan(tree(**changes), R, host, local)
    assert shown(found) == wanted
    for key, text in why.items():
        assert text in found.why.get(key, ""), found.why
    for key, activity in (("primary", found.primary), ("fetch", found.fetch_from), ("sync", found.sync_from)):
        assert not (activity and key in found.why and local.role_durable), "a reason against what is wanted"


@pytest.mark.parametrize(("holder", "at_mark", "forced", "never", "yes"), [
    ("me, producing", False, False, False, True),
    ("me, by grant", True, False, False, True),
    ("me, by grant", False, False, False, False),
    ("me, by grant", False, True, False, True),
    ("other", True, False, False, False),
    ("other", False, True, False, True),
    ("no log", False, False, True, True),
    ("no log", False, False, False, False),
    ("no log", False, True, False, False),
])
def test_may_produce(holder: str, at_mark: bool, forced: bool, never: bool, yes: bool) -> None:
    """Rule 18, the table on top of the module. A "no" has a reason."""
    me = "a" if holder == "me, producing" else "b"
    changes = {"primary": me}
    if holder == "me, by grant":
        changes |= GRANT_B
    if holder == "no log":
        changes |= {f"version_{host}_1": "" for host in "abc"}
    if forced:
        changes |= {f"todo_{me}_connect": "0", f"want_{me}": "force-1"}
    local = replace(AT_END if at_mark else BEHIND, never_had_log=never)
    found, why = may_produce(tree(**changes), R, me, local)
    assert found is yes and bool(why) is not yes


GAP = {"version_a_12": f"{D},log-000000012-a,0:{'0' * 32},log-000000011-a,0"}


@pytest.mark.parametrize(("changes", "may"), [
    ({"primary": "(none)", "want_b": "x"}, True), ({"primary": "(none)", "want_b": "x", **GAP}, False),
    ({"primary": "(none)", "want_b": "x", **GAP, "version_b_12": GAP["version_a_12"]}, True),
    ({"primary": "(none)", **GAP}, True), ({"primary": "b", "want_b": "force-x", **GAP}, True),
    ({"primary": "b", **GAP}, True)])
def test_the_role_is_not_given_over_a_gap(changes: dict[str, str], may: bool) -> None:
    """Rule 27: only a primary gets others across a gap, so it stays one until who waits is across. `secondary`, and
    force, are something else."""
    assert (cannot_follow(tree(**changes), R, "a") == "") is may


@pytest.mark.parametrize("local", [
    replace(AT_END, digest=D0), replace(AT_END, at=LogPos(1, "z", 8192)), replace(AT_END, at=LogPos(1, "a", 12288)),
    replace(AT_END, at=None)])
def test_a_grant_is_for_just_one_end(local: Local) -> None:
    """Rule 18 and rule 6: other contents, another producer, more, or nothing: no."""
    assert may_produce(tree(primary="b", **GRANT_B), R, "b", local)[0] is False


@pytest.mark.parametrize(("before", "yes"), [
    (f"{D},{END}", True), (f"{D0},{END}", False), (f"{D},log-000000001-a,4096", False), ("", False)])
def test_the_beginning_of_an_empty_log_is_the_end_before(before: str, yes: bool) -> None:
    """Rule 7: b has fetched the header of a's empty log 2, a has withdrawn it and granted the end of log 1."""
    view = tree(primary="b", **GRANT_B, version_b_2=f"{D0},log-000000002-a,0:{before}")
    local = replace(AT_END, at=LogPos(2, "a", 0), digest=D0)
    assert may_produce(view, R, "b", local)[0] is yes


def test_a_to_b_to_a() -> None:
    """A grants to B, B gives it back unused: A may go on from just there, B may not."""
    back = {"primary": "a", **GRANT_B, "granted b": f"a,{END},{D}"}
    assert plan(tree(**back), R, "a", AT_END).primary
    assert not plan(tree(**{**back, "primary": "b"}), R, "b", AT_END).primary


def test_waiting_hosts() -> None:
    """Members with a wish, the newest first, the designated before all; `0` is no wish; never oneself."""
    assert waiting_hosts(tree(primary="(none)", want_c="x", want_b="y", want_a="z"), R, "a") == ["b", "c"]
    assert waiting_hosts(tree(primary="c", want_c="x", want_b="y"), R, "a") == ["c", "b"]
    assert waiting_hosts(tree(primary="b"), R, "a") == ["b"]
    assert waiting_hosts(tree(primary="z", want_z="x"), R, "a") == []
