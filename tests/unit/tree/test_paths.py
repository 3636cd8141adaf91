"""The grammar of the tree: what is built parses back, and nothing else is a name."""
from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from marsx.base.lamport import Lamport
from marsx.tree import guard, paths

DIGEST = "0123456789abcdef" * 2

ROWS = [
    # name, kind, resource, host, key, writer, a legal value, an illegal value
    (paths.uuid(), "uuid", "", "", "uuid", "wish", "alpha_1742465728.123456789", "a\nb"),
    (paths.ip("a-1"), "host-ip", "", "a-1", "ip", "wish", "10.0.0.1", "10.0.0.1;reboot"),
    (paths.host_member("a"), "host-member", "", "a", "member", "wish", "3f2a", "3f/2a"),
    (paths.host_removed("a"), "host-removed", "", "a", "removed", "wish", "3f2a", ""),
    (paths.host_actual("a", "alive"), "host-actual", "", "a", "alive", "fact", "1", "2"),
    (paths.host_actual("a", "time"), "host-actual", "", "a", "time", "fact", "1742465728.123456789", "now"),
    (paths.host_actual("a", "emergency"), "host-actual", "", "a", "emergency", "fact", "4", "-1"),
    (paths.host_actual("a", "features"), "host-actual", "", "a", "features", "fact", "4,5,0x071f0000", "\x1b[2J"),
    (paths.message("", "a", "wrn-clock"), "message", "", "a", "wrn-clock", "fact", "the clock is wrong", "a\x07b"),
    (paths.host_default("a", "sync-limit"), "host-default", "", "a", "sync-limit", "wish", "0", "no"),
    (paths.default("disabled-log-digests"), "default", "", "", "disabled-log-digests", "wish", "0x00010000", "0xZ"),
    ("todo-global/systemd-global-trigger", "todo-global", "", "", "systemd-global-trigger", "wish", "a", "a b"),
    (paths.userspace("my-key"), "userspace", "", "", "my-key", "wish", "any text", "\x00"),
    (paths.userspace("last-primary", "r"), "userspace", "r", "", "last-primary", "wish", "a", "\x9b"),
    (paths.data("r", "a"), "data", "r", "a", "data", "wish", "/dev/vg/lv", "dev/vg"),
    (paths.device("r", "a"), "device", "r", "a", "device", "wish", "r", "../r"),
    (paths.size("r"), "size", "r", "", "size", "wish", "1073741824", "1G"),
    (paths.block_size("r"), "block-size", "r", "", "block-size", "wish", "512", "-512"),
    (paths.actsize("r", "a"), "actsize", "r", "a", "actsize", "fact", "4096", "4096 "),
    (paths.primary("r"), "primary", "r", "", "primary", "wish", "(none)", "(any)"),
    (paths.maxnr("r"), "maxnr", "r", "", "maxnr", "wish", "000000003", "x"),
    (paths.version("r", 7, "a"), "version", "r", "a", "version", "fact",
     f"{DIGEST},log-000000007-a,0:{DIGEST},log-000000006-b,8192", f"{DIGEST},log-7-a,0:"),
    (paths.replay("r", "a"), "replay", "r", "a", "replay", "fact", "log-000000728-istore1,373579748,0",
     "log-000000728-istore1,373579748"),
    (paths.syncstatus("r", "a"), "syncstatus", "r", "a", "syncstatus", "fact", "0", "0x0"),
    (paths.syncpos("r", "a"), "syncpos", "r", "a", "syncpos", "fact", f"log-000000001-b,4096,0,{DIGEST}",
     f"log-000000001-b,4096,{DIGEST},0"),
    (paths.verifystatus("r", "a"), "verifystatus", "r", "a", "verifystatus", "fact", "12,0", "12;0"),
    (paths.skip_check("r", "a"), "skip-check", "r", "a", "skip-check", "fact", "12 by join", "\t"),
    (paths.connect_pref("r", "a"), "connect", "r", "a", "connect", "wish", "b,c", "b,,c"),
    (paths.syncfrom("r", "a"), "syncfrom", "r", "a", "syncfrom", "wish", "b", "b,c"),
    (paths.member("r", "a"), "member", "r", "a", "member", "wish", "77aa", "77 aa"),
    (paths.removed("r", "a"), "removed", "r", "a", "removed", "wish", "77aa", "77\naa"),
    (paths.todo("r", "a", "allow-replay"), "todo", "r", "a", "allow-replay", "wish", "1", "on"),
    (paths.todo("r", "a", "emergency-limit"), "todo", "r", "a", "emergency-limit", "wish", "20", "20%"),
    (paths.want_primary("r", "a"), "todo", "r", "a", "want-primary", "wish", "9f3c-1", "a/b"),
    (paths.actual("r", "a", "is-primary"), "actual", "r", "a", "is-primary", "fact", "1", "yes"),
    (paths.actual("r", "a", "replay-code"), "actual", "r", "a", "replay-code", "fact", "-5,10013", "--5"),
    (paths.actual("r", "a", "amount-replay_rate"), "actual", "r", "a", "amount-replay_rate", "fact", "4000", "4e3"),
    (paths.granted("r", "a"), "actual", "r", "a", "granted", "fact", f"b,log-000000001-a,4096,{DIGEST}",
     "b,log-000000001-a,4096"),
    (paths.incarnation("r", "a"), "actual", "r", "a", "incarnation", "fact", "77aa", "77/aa"),
    (paths.message("r", "a", "err-replay-stop"), "message", "r", "a", "err-replay-stop", "fact", "OK", "\x1b]0;"),
]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[0])
def test_every_builder_parses_back(row):
    """The whole grammar as a table: builder, meaning, and the form of the value (hostile values are refused)."""
    rel, kind, resource, host, key, writer, legal, illegal = row
    name = paths.parse(rel)
    assert name is not None
    assert (name.rel, name.kind, name.resource, name.host, name.key, name.writer) == (rel, kind, resource, host, key,
                                                                                       writer)
    assert name.propagated
    assert paths.is_directory(rel.rpartition("/")[0])
    assert paths.value_problem(name, legal) == ""
    assert paths.value_problem(name, paths.DELETED) == ""
    assert paths.value_problem(name, illegal)
    assert guard.entry_problem(rel, illegal, 1, Lamport(lambda: 1))


def test_numbers_of_versions_and_logs():
    version = paths.parse(paths.version("r", 7, "a-b"))
    assert version is not None and (version.nr, version.host) == (7, "a-b")
    log = paths.parse("resource-r/log-1234567890-x")
    assert log is not None and (log.kind, log.nr, log.host, log.propagated) == ("log", 1234567890, "x", False)


@pytest.mark.parametrize("rel", [
    "", "/", "/uuid", "uuid/", "./uuid", "../uuid", "uuid\n", "UUID", "..", ".tmp.1.2.primary",
    "resource-r/.tmp.1.2.primary", "resource-r/.deleted-primary", "resource-/primary", "resource-r", "resource-r/",
    "resource-r//primary", "resource-../primary", "resource-a.b/primary", "resource-all/size", "resource-None/size",
    "resource-r/primary/x", "resource-r/todo-a/attach/x", "resource-r/todo-a/", "resource-r/todo-a/Attach",
    "resource-r/todo-a/is-primary", "resource-r/actual-a/attach", "resource-r/actual-local/is-primary",
    "resource-r/replay-", "resource-r/replay-a.b", "resource-r/replay-localhost", "resource-r/version-1-a",
    "resource-r/version-0000000001-a", "resource-r/version-000000001-", "resource-r/log-x-a", "resource-r/foo-a",
    "resource-" + "r" * 64 + "/primary", "ips/ip-", "ips/ip-a/b", "ips/foo-a", "ips/ip-" + "a" * 64, "ips", "actual-a",
    "actual-a/msg-", "actual-a/msg-X", "actual-a/msg-a.b", "actual-a/unknown", "actual-a/read-stamp",
    "defaults/sync-limit", "backup/uuid", "backups-1/uuid", "probe-a.b/x", "resource-r/userspace/.x", "userspace/a/b",
    "resource-r/replay-ä", "resource-r/primary\0", "lost+found", "5.total.log", "resource-r/data-a/x",
    "resource-r/msg-err", "resource-r/actual-a/msg-" + "a" * 300,
])
def test_everything_else_is_no_name(rel):
    assert paths.parse(rel) is None


def test_local_things_are_names_but_never_travel():
    for rel in ("local-a/lamport", "cache-a/x", "probe-a/resource-r/primary", paths.lamport_file("a")):
        name = paths.parse(rel)
        assert name is not None and name.writer == "local" and not name.propagated
        assert guard.entry_problem(rel, "x", 1, Lamport(lambda: 1)) == "not a name of the tree"
        assert not paths.is_directory(rel.rpartition("/")[0])


@pytest.mark.parametrize("bad", ["", "a/b", "..", "a.b", "all", "none", "x" * 64, "ä", "a b", "-a", "a\n"])
def test_builders_refuse_bad_names(bad):
    for build in (paths.ip, paths.primary, paths.local_dir, paths.resource_dir):
        with pytest.raises(ValueError):
            build(bad)
    with pytest.raises(ValueError):
        paths.todo("r", "a", bad)


IDENT = st.from_regex(r"[A-Za-z0-9][-A-Za-z0-9_]{0,61}[A-Za-z0-9_]", fullmatch=True).filter(paths.is_host)


@given(IDENT, IDENT, st.integers(1, 10**18 - 1))
def test_no_two_names_mean_the_same(resource, host, nr):
    """Hosts and resources with dashes and keywords in them are never taken for another key."""
    builders = (paths.data, paths.device, paths.replay, paths.syncstatus, paths.syncpos, paths.skip_check,
                paths.connect_pref, paths.member, paths.removed, paths.actsize, paths.verifystatus)
    rels = [build(resource, host) for build in builders] + [paths.version(resource, nr, host)]
    for rel in rels:
        name = paths.parse(rel)
        assert name is not None and (name.resource, name.host) == (resource, host)
    assert len(set(rels)) == len(rels)


@given(st.text(max_size=80) | st.from_regex(r"(resource-[a.]{1,3}/)?(todo-a|actual-a|[a-z-]{1,9}-a)?/?[a-z./-]{0,12}"))
def test_parse_never_leaves_the_tree(rel):
    """Whatever comes in: no exception, and what is accepted is a plain relative path of at most three parts."""
    name = paths.parse(rel)
    if name is not None:
        parts = rel.split("/")
        assert name.rel == rel and len(parts) <= 3
        assert all(part and not part.startswith(".") and "\0" not in part for part in parts)
    paths.is_directory(rel)
