"""The program: table and help, arguments, exit status, several resources."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from marsx.admin import marsadm
from marsx.base.errors import MarsError, PreconditionError
from tests.unit.admin.small_tree import Admin, SmallTree

ISSUE = """create-cluster create-token join-cluster leave-cluster create-resource join-resource leave-resource
primary secondary up down attach detach connect disconnect pause-sync resume-sync pause-replay resume-replay invalidate
fake-sync log-rotate log-delete log-delete-all wait-cluster wait-resource wait-umount view delete-resource resize
update-cluster wait-connect log-delete-one log-delete-all-replayed log-purge-all link-purge-all err-purge-all cron
set-link get-link delete-file set-connect-pref-list get-connect-pref-list set-sync-pref-list get-sync-pref-list
set-sync-limit-value get-sync-limit-value set-emergency-limit get-emergency-limit emergency-limit
set-tunable get-tunable
set-global-enabled-net-compressions lowlevel-ls-host-ips lowlevel-set-host-ip lowlevel-delete-host verify""".split()


def test_every_command_is_there_and_explained(adm: Admin) -> None:
    """The help lists every command; each has a page with text and example."""
    code, out, _ = adm("help")
    assert code == 0
    for name in ISSUE:
        assert f"\n  {name} " in out or f"\n  {name}\n" in out, name
    for name, row in marsadm.commands().items():
        code, out, _ = adm(f"{name} --help")
        assert code == 0 and out.startswith(f"marsadm {name}") and row.short and "Example" in out, name
        assert row.example.startswith(f"marsadm {name}"), name


@pytest.mark.parametrize(
    ("line", "text"),
    [
        ("", "a command is missing"),
        ("pimary data", "unknown command 'pimary'"),
        ("primary", "an argument is missing"),
        ("primary data more", "too many arguments"),
        ("create-resource all /dev/x", "one resource by its name"),
        ("create-resource data", "an argument is missing"),
        ("view-nonsense data", "no value 'nonsense'"),
        ("primary data --host=a", "cannot act for another host"),
    ],
)
def test_usage_errors_have_status_2(adm: Admin, line: str, text: str) -> None:
    """Not understood: exit 2, one line and a hint, nothing changed."""
    before = adm.tree.all()
    code, out, err = adm(line)
    assert code == 2 and text in err and out == ""
    assert len(err.splitlines()) <= 2 and adm.tree.all() == before


def test_unknown_resource(adm: Admin) -> None:
    """Exit 4, and what there is."""
    code, _, err = adm("connect nodata")
    assert code == 4 and "unknown resource 'nodata'" in err and "hint: known resources: data" in err
    for number in range(100):
        adm.tree.put(f"resource-vol{number:02}/size", "1048576")
    code, _, err = adm("connect vol420")
    assert code == 4 and "vol42" in err and len(err) < 300


@pytest.mark.parametrize("name", "primary connect pause-sync invalidate log-rotate down wait-resource".split())
def test_marsd_has_to_run(adm: Admin, name: str) -> None:
    """Exit 6, says how to start it, changes nothing."""
    adm.control.running = False
    before = adm.tree.all()
    code, _, err = adm(f"{name} data")
    assert code == 6 and "marsd does not run" in err and "marsd start" in err
    assert adm.tree.all() == before


def test_not_root(adm: Admin, monkeypatch: pytest.MonkeyPatch) -> None:
    """Exit 10."""
    monkeypatch.undo()
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert marsadm.main(["primary", "data", f"--mars-dir={adm.tree.paths.mars_dir}"]) == 10


def test_no_cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Exit 3, and how to make or join one."""
    code, _, err = Admin(SmallTree(tmp_path), monkeypatch)("primary data")
    assert code == 3 and "belongs to no cluster" in err and "create-cluster" in err


def test_mars_dir_missing(adm: Admin) -> None:
    """Exit 3, named."""
    adm.tree.paths = type(adm.tree.paths)(mars_dir="/nonexistent/mars", run_dir=adm.tree.paths.run_dir)
    code, _, err = adm("connect data")
    assert code == 3 and "/nonexistent/mars" in err


def test_a_host_that_is_no_member(adm: Admin) -> None:
    """A renamed host has no business in the tree."""
    adm.host = "renamed"
    code, _, err = adm("connect data")
    assert code == 3 and "renamed is not a member of the cluster" in err


def test_all_goes_on_after_a_failure(adm: Admin) -> None:
    """A resource that fails does not stop the others: exit 7, the failing one named, the other done."""
    adm.tree.resource("aaa", "a", "b")
    adm.tree.put("resource-aaa/primary", "(none)")
    adm.tree.put("resource-aaa/todo-b/sync", "0")
    adm.tree.put("resource-data/todo-b/sync", "0")
    code, _, err = adm("resume-sync all")
    assert code == 7 and "aaa: there is no primary" in err
    assert adm.tree.get("resource-data/todo-b/sync") == "1" and adm.tree.get("resource-aaa/todo-b/sync") == "0"


def test_comma_list_and_all_failing_alike(adm: Admin) -> None:
    """If all fail for the same reason that is the status."""
    code, _, err = adm("connect x,y")
    assert code == 4 and "'x'" in err and "'y'" in err


def test_all_is_the_resources_of_this_host(adm: Admin) -> None:
    """A resource that is not joined here is not meant by `all`."""
    adm.tree.resource("other", "a")
    code, out, _ = adm("connect all")
    assert code == 0 and "data" in out and "other" not in out


def test_phases_go_together(monkeypatch: pytest.MonkeyPatch, adm: Admin) -> None:
    """One phase for all resources before the next; an early end closes what is open (rule 24 rests on it)."""
    seen: list[str] = []

    def run(ctx: object, name: str, args: object):  # type: ignore[no-untyped-def]
        try:
            seen.append(f"1{name}")
            yield
            seen.append(f"2{name}")
            if name == "x":
                raise KeyboardInterrupt
            yield
        finally:
            seen.append(f"end {name}")

    row = marsadm.Command("test", "RES", run, "", "view")
    with pytest.raises(KeyboardInterrupt):
        marsadm.run_each(None, row, ["w", "x", "y"], ())  # type: ignore[arg-type]
    assert seen[:5] == ["1w", "1x", "1y", "2w", "2x"]
    assert sorted(seen[5:]) == ["end w", "end x", "end y"] and "2y" not in seen


def test_report_is_two_lines_without_control_characters(capsys: pytest.CaptureFixture[str]) -> None:
    """What a peer wrote cannot draw on the operator's terminal."""
    assert marsadm.report(PreconditionError("bad \x1b[2J\nname", "do\r this")) == 3
    err = capsys.readouterr().err
    assert len(err.splitlines()) == 2 and "\x1b" not in err and "\r" not in err
    assert marsadm.report(MarsError("text")) == 1
    assert capsys.readouterr().err == "marsadm: text\n"
