"""Every command that changes something, from one table: it works, its dry run tells just what the real run writes and
asks for, and changes nothing; with marsd down and on a host without cluster it says so.

A command without a row here fails the test.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from marsx.admin import checks, hosts, marsadm
from marsx.tree.store import Entry, Store
from tests.unit.admin.small_tree import D1, SIZE, Admin, SmallTree

Prepare = Callable[[SmallTree], object]
RES = "resource-data"
RANDOM = re.compile(r"\b[0-9a-f]{16,32}\b")


def on_a(tree: SmallTree) -> None:
    """The test's host is the primary: roles exchanged."""
    tree.put(f"{RES}/primary", "b")
    for host, value in (("a", "0"), ("b", "1")):
        tree.put(f"{RES}/actual-{host}/is-primary", value)


def down(tree: SmallTree) -> None:
    """All switches off, nothing runs."""
    for switch in ("attach", "connect", "sync", "allow-replay"):
        tree.put(f"{RES}/todo-b/{switch}", "0")
    tree.put(f"{RES}/actual-b/is-attached", "0")


def off(*switches: str) -> Prepare:
    """These switches are off."""
    return lambda tree: [tree.put(f"{RES}/todo-b/{switch}", "0") for switch in switches]


def third(tree: SmallTree) -> None:
    """A third host with a replica, that is not heard of any more."""
    tree.put("ips/ip-c", "10.0.0.3")
    tree.put("ips/member-c", "cid")
    tree.put(f"{RES}/data-c", "/dev/vg/data")
    tree.put(f"{RES}/member-c", "cindata")


def nobody(tree: SmallTree) -> None:
    """A resource that all have left."""
    tree.put("resource-old/size", "4096")
    tree.put("resource-old/primary", "(none)")
    tree.put("resource-old/maxnr", "7")
    tree.put("resource-old/userspace/note", "x")


def left(tree: SmallTree) -> None:
    """b has no replicas."""
    tree.put(f"{RES}/data-b", ".deleted")


def fact(rel: str, value: str) -> Prepare:
    """A step: something that marsd makes true."""
    return lambda tree: tree.put(f"{RES}/{rel}", value)


@dataclass
class Row:
    """One command line; `prepare` the tree, `steps` of marsd while it waits; what is asked of marsd in the end."""

    line: str
    prepare: Prepare = lambda tree: None
    steps: tuple[Prepare, ...] = ()
    asked: tuple[str, ...] = ()
    writes: int = 0
    daemon: bool = True
    also: tuple[str, ...] = field(default=())


GRANT = fact("actual-a/granted", f"b,log-000000001-a,8192,{D1}")
BECOMES = fact("actual-b/is-primary", "1")
ROWS = [
    Row("up data", down, (fact("actual-b/is-attached", "1"),), writes=4),
    Row("down data", steps=(fact("actual-b/is-attached", "0"),), writes=4),
    Row("attach data", off("attach"), writes=1),
    Row("detach data", steps=(fact("actual-b/is-attached", "0"),), writes=1),
    *(Row(f"{name}{end} data", off("connect"), writes=1) for name in ("connect", "resume-fetch")
      for end in ("", "-local", "-global")),
    *(Row(f"{name}{end} data", writes=2 if end == "-global" else 1) for name in ("disconnect", "pause-fetch")
      for end in ("", "-local", "-global")),
    *(Row(f"pause-{name}{end} data", writes=2 if end == "-global" else 1) for name in ("sync", "replay")
      for end in ("", "-local", "-global")),
    *(Row(f"resume-sync{end} data", off("sync"), writes=1) for end in ("", "-local", "-global")),
    *(Row(f"resume-replay{end} data", off("allow-replay"), writes=1) for end in ("", "-local", "-global")),
    Row("primary data", steps=(GRANT, BECOMES), writes=4),
    Row("primary data --force", off("connect"), (BECOMES,), writes=3),
    Row("secondary data", on_a, (fact("actual-b/is-primary", "0"),), writes=1),
    Row("create-resource new /dev/vg/new", asked=("create-resource",)),
    Row("join-resource other /dev/vg/new", lambda tree: tree.resource("other", "a"), asked=("join-resource",)),
    Row("leave-resource data", down, asked=("leave-resource",)),
    Row("leave-resource data --host=c --force", third, writes=1),
    Row("delete-resource old", nobody, writes=3),
    Row("invalidate data", asked=("invalidate",)),
    Row("fake-sync data", asked=("fake-sync",)),
    Row("set-replay data 1", off("allow-replay"), asked=("set-replay",)),
    Row("resize data 2G", on_a, asked=("resize",)),
    Row("log-rotate data", on_a, asked=("log-rotate",)),
    *(Row(f"{name} data", asked=(name,))
      for name in ("log-delete", "log-delete-all", "log-purge-all", "err-purge-all")),
    Row("log-delete-one data", asked=("log-delete",)),
    Row("log-delete-all-replayed data", asked=("log-delete-all",)),
    Row("link-purge-all", asked=("link-purge-all",)),
    Row("cron", on_a, asked=("log-rotate", "log-delete-all", "link-purge-all")),
    Row("leave-cluster", left, writes=2),
    Row("lowlevel-set-host-ip a 10.9.9.9", writes=1, daemon=False),
    Row("lowlevel-delete-host c --force", third, writes=3, daemon=False),
    Row("set-link x userspace/one y /mars/userspace/two", writes=2, daemon=False),
    Row("delete-file userspace/one", lambda tree: tree.put("userspace/one", "x"), writes=1, daemon=False),
    Row("set-connect-pref-list data a", writes=1, daemon=False),
    Row("set-emergency-limit data 80", writes=1, daemon=False),
    Row("emergency-limit data 70%", writes=1, daemon=False),
    Row("set-sync-limit-value 3", writes=1, daemon=False),
    Row("set-global-sync-limit-value 3", writes=2, daemon=False),
    Row("set-sync-pref-list data", writes=1, daemon=False),
    Row("set-global-enabled-net-compressions none", writes=1, daemon=False),
]
APART = {
    "merge-cluster": "needs a member; test_merge.py", "create-cluster": "no tree before it; test_cluster.py",
    "join-cluster": "needs a member; test_cluster.py",
    "create-token": "writes no link; below",
    "set-tunable": "writes no link; test_settings.py", "verify": "no dry run; test_verify.py",
}  # fmt: skip


@pytest.fixture(autouse=True)
def devices(monkeypatch: pytest.MonkeyPatch) -> None:
    """A free device, and no look at the real network."""
    monkeypatch.setattr(checks, "block_device", lambda path, taken: SIZE)
    monkeypatch.setattr(hosts.checks, "own_address", lambda: "10.0.0.9")


def admin(folder: Path, monkeypatch: pytest.MonkeyPatch, row: Row) -> Admin:
    """marsadm on b of a fresh copy of the tree."""
    folder.mkdir()
    tree = SmallTree(folder).cluster("a", "b").resource("data", "a", "b")
    row.prepare(tree)
    return Admin(tree, monkeypatch)


@contextmanager
def written(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Entry]]:
    """What really goes to the disk, in order."""
    found: list[Entry] = []
    real = Store._write

    def write(self: Store, entry: Entry) -> None:
        found.append(entry)
        real(self, entry)

    with monkeypatch.context() as patch:
        patch.setattr(Store, "_write", write)
        yield found


def line_of(adm: Admin, row: Row) -> str:
    """The command line; paths below /mars are those of the test's tree."""
    return row.line.replace("/mars/", adm.tree.paths.mars_dir + "/")


def identity(row: Row) -> str:
    return row.line


@pytest.mark.parametrize("row", ROWS, ids=identity)
def test_dry_run_is_the_real_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, row: Row) -> None:
    """The same links with the same values in the same order, the same requests; and nothing is changed by telling."""
    dry, real = (admin(tmp_path / name, monkeypatch, row) for name in ("dry", "real"))
    before = dry.tree.all()
    monkeypatch.setattr(marsadm, "make_context", dry._context)
    code, out, err = dry(f"{line_of(dry, row)} --dry-run")
    assert code == 0 and dry.tree.all() == before, err
    lines = out.splitlines()
    assert all(line.startswith("DRY_RUN: would ") for line in lines), out
    monkeypatch.setattr(marsadm, "make_context", real._context)
    with written(monkeypatch) as entries:
        code, out, err = real(line_of(real, row), *(lambda step=step: step(real.tree) for step in row.steps))
    assert code == 0 and real.script.steps == [], err
    wanted = [f"DRY_RUN: would create symlink '{dry.tree.paths.mars_dir}/{e.rel}' -> '{e.value}'" for e in entries]
    assert [RANDOM.sub("ID", line) for line in lines] == [RANDOM.sub("ID", line) for line in wanted]
    assert len(entries) == row.writes
    assert [one["what"] for one in real.control.asked] == list(row.asked)
    assert [{**one, "cmd": "do"} for one in dry.control.asked] == real.control.asked
    assert all(one["cmd"] == "plan" for one in dry.control.asked)


def test_every_command_has_a_row() -> None:
    """Nothing that changes something is left out."""
    rows = {row.line.split()[0] for row in ROWS} | set(APART)
    commands = {name for name, row in marsadm.commands().items() if row.writes}
    assert commands == rows & commands, commands - rows
    assert rows - set(marsadm.commands()) == set(), "a row for a command that is not there"


@pytest.mark.parametrize("row", ROWS, ids=identity)
def test_marsd_down(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, row: Row) -> None:
    """Without marsd: exit 6, nothing changed; what is only a wish about the cluster may be written all the same."""
    adm = admin(tmp_path / "t", monkeypatch, row)
    adm.control.running = False
    before = adm.tree.all()
    code, _, err = adm(line_of(adm, row))
    if row.daemon:
        forced = "--force" in row.line and marsadm.commands()[row.line.split()[0]].family == "switches"
        assert forced or (code == 6 and "marsd does not run" in err and "marsd start" in err)
        assert adm.tree.all() == before
    else:
        assert code == 0 and adm.tree.all() != before, err


@pytest.mark.parametrize("row", ROWS, ids=identity)
def test_no_cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, row: Row) -> None:
    """Where there is no cluster: exit 3 (or 4: the resource is not known), nothing written."""
    adm = Admin(SmallTree(tmp_path), monkeypatch)
    code, _, err = adm(line_of(adm, row))
    assert code == 3 and "belongs to no cluster" in err and adm.tree.all() == {}


LISTED = [name for name, row in marsadm.commands().items() if row.writes and row.scope == "each" and row.extra[0] == 0
          and name not in ("verify", "primary")]  # fmt: skip


@pytest.mark.parametrize("name", LISTED)
def test_lists_and_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """A comma list and `all`: an unknown resource fails with 4, the others are worked on all the same: 7."""
    adm = admin(tmp_path / "t", monkeypatch, Row(""))
    adm.tree.resource("more", "a", "b")
    for resource in ("data", "more"):
        adm.tree.put(f"resource-{resource}/actual-b/is-attached", "1" if name in ("up", "attach") else "0")
        if name == "leave-resource":
            for switch in ("attach", "connect", "sync", "allow-replay"):
                adm.tree.put(f"resource-{resource}/todo-b/{switch}", "0")
    code, _, err = adm(f"{name} data,nothere,more")
    assert code == 7 and "nothere" in err and err.count("marsadm:") == 1, err
    code, _, err = adm(f"{name} all")
    assert code == 0, err


def memberless(tree: SmallTree) -> None:
    """A resource that nobody has a replica of."""
    tree.put("resource-other/size", "4096")
    tree.put("resource-other/primary", "a")


def nameless(tree: SmallTree) -> None:
    """The membership of c has not arrived here whole."""
    third(tree)
    tree.put(f"{RES}/member-c", ".deleted")


@pytest.mark.parametrize(("line", "prepare", "code", "text"), [
    ("join-resource other /dev/vg/new", memberless, 3, "resource other has no members"),
    ("leave-resource data --host=c --force", nameless, 3, "has no id"),
    ("resize data", off(), 3, "b is not its primary, a is"),
    ("resize data 1000001", on_a, 2, "not a multiple of 4096"),
    ("resize data /dev/not-there", on_a, 4, "/dev/not-there cannot be opened"),
    ("set-replay data seven", off("allow-replay"), 2, "'seven' is not the number of a log"),
    ("set-replay data 0x7", off("allow-replay"), 2, "is not the number of a log"),
    ("set-replay data 1", off(), 3, "replay is switched on"),
    ("delete-resource data", off(), 3, "b has a replica of it"),
    ("delete-resource data", left, 3, "a still has a replica"),
    ("delete-resource data --force", left, 3, "a still has a replica"),
    ("delete-resource nothere", off(), 4, "unknown resource 'nothere'"),
])  # fmt: skip
def test_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, line: str, prepare: Prepare, code: int,
                 text: str) -> None:
    """What cannot be done is said with the reason and a hint; nothing is written, marsd is not asked for it."""
    adm = admin(tmp_path / "t", monkeypatch, Row(line, prepare))
    before = adm.tree.all()
    got, _, err = adm(line)
    assert got == code and text in err and "hint: " in err, err
    assert adm.tree.all() == before and adm.control.asked == []


def test_dry_run_of_a_command_without(adm: Admin) -> None:
    """What cannot be told before says so; what only shows takes the option and shows."""
    assert adm("verify data --dry-run")[0] == 2
    assert adm("get-sync-limit-value --dry-run")[:2] == (0, "0\n")


def test_dry_run_refuses_as_the_real_run(adm: Admin) -> None:
    """A dry run of what would be refused is refused, also by what is waited for otherwise."""
    for rel, value, line in (("actual-a/open-count", "1", "primary data"), ("actual-b/open-count", "1", "down data"),
                             ("primary", "(none)", "resume-sync data")):  # fmt: skip
        before = adm.tree.get(f"{RES}/{rel}")
        adm.tree.put(f"{RES}/{rel}", value)
        assert adm(f"{line} --dry-run")[0] == 3, line
        adm.tree.put(f"{RES}/{rel}", before)


def test_plans_of_marsd_are_shown(adm: Admin) -> None:
    """Links and other effects of a request, a line each."""
    adm.control.answers["invalidate"] = {"ok": True, "changes": [[f"{RES}/syncstatus-b", "0"]], "effects": ["sync"]}
    code, out, _ = adm("invalidate data -d")
    root = adm.tree.paths.mars_dir
    assert code == 0
    assert out == f"DRY_RUN: would create symlink '{root}/{RES}/syncstatus-b' -> '0'\nDRY_RUN: would sync\n"


def test_dry_create_token(adm: Admin) -> None:
    """No token is made."""
    code, out, _ = adm("create-token --dry-run")
    assert code == 0 and "DRY_RUN: would make a token" in out and adm.control.asked == []


def test_primary_times_out_and_takes_back(adm: Admin) -> None:
    """Rule 24: nothing granted in time: exit 5, the old designated primary stands again, nobody waits."""
    code, _, err = adm("primary data --timeout=3")
    assert code == 5 and "taken back" in err and adm.tree.get(f"{RES}/primary") == "a"
    assert adm.tree.get(f"{RES}/todo-b/want-primary") == "0"
