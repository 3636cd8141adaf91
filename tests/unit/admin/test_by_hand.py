"""Repair by hand: links of users, the address book; and words of old that are only answered."""

from __future__ import annotations

import json

import pytest

from marsx.admin import habits, marsadm
from tests.unit.admin.small_tree import Admin

RES = "resource-data"


def test_links(adm: Admin) -> None:
    """Written, read, deleted; absolute or relative."""
    root = adm.tree.paths.mars_dir
    assert adm(f"set-link alpha {root}/userspace/owner beta {RES}/userspace/where")[0] == 0
    assert adm.tree.get("userspace/owner") == "alpha" and adm.tree.get(f"{RES}/userspace/where") == "beta"
    assert adm(f"get-link userspace/owner {root}/{RES}/userspace/where {RES}/primary")[1] == "alpha\nbeta\na\n"
    assert json.loads(adm(f"get-link {RES}/primary --json")[1]) == {f"{RES}/primary": "a"}
    assert adm("delete-file userspace/owner")[0] == 0 and adm.tree.get("userspace/owner") == ".deleted"
    assert adm("get-link userspace/owner")[0] == 4


@pytest.mark.parametrize(("line", "code"), [
    (f"set-link b {RES}/primary", 2), (f"set-link 1 {RES}/replay-b", 2), ("set-link x userspace/../uuid", 2),
    ("set-link x /etc/passwd", 2), ("set-link x userspace/a/b", 2), ("set-link x userspace/a y", 2),
    ("set-link .deleted userspace/a", 2), (f"delete-file {RES}/data-b", 2), ("delete-file uuid", 2),
    ("delete-file userspace/none", 4), ("set-link x userspace/a y userspace/a", 2), ("get-link /etc/passwd", 2),
    ("get-link ../uuid", 2), ("set-link x userspace/a --force y uuid", 2),
])  # fmt: skip
def test_confined(adm: Admin, line: str, code: int) -> None:
    """Nothing outside of userspace is written, forced or not; nothing outside of the tree is read."""
    before = adm.tree.all()
    got, out, _ = adm(line)
    assert got == code and out == "" and adm.tree.all() == before


def test_control_characters_are_no_value(adm: Admin) -> None:
    """What a terminal would obey does not become a link."""
    before = adm.tree.all()
    assert marsadm.main(["set-link", "a\x1b[2J", "userspace/x"]) == 2 and adm.tree.all() == before


def test_address_book(adm: Admin, monkeypatch: pytest.MonkeyPatch) -> None:
    """Listed; changed for any host, the own address found by itself."""
    assert adm("lowlevel-ls-host-ips")[1] == "a 10.0.0.1\nb 10.0.0.2\n"
    assert json.loads(adm("lowlevel-ls-host-ips --json")[1]) == {"a": "10.0.0.1", "b": "10.0.0.2"}
    assert adm("lowlevel-set-host-ip a 10.9.9.9")[0] == 0 and adm.tree.get("ips/ip-a") == "10.9.9.9"
    assert adm("lowlevel-set-host-ip a")[0] == 3
    assert adm("lowlevel-set-host-ip a 300.1.1.1")[0] == 2
    assert adm("lowlevel-set-host-ip x 10.0.0.9")[0] == 4
    monkeypatch.setattr(marsadm.checks, "own_address", lambda: "10.0.0.7")
    assert adm("lowlevel-set-host-ip b")[0] == 0 and adm.tree.get("ips/ip-b") == "10.0.0.7"


def test_delete_host(adm: Admin) -> None:
    """Rule 26: not oneself, not who was just heard of, not who has replicas or leads, unless forced; then incarnations
    are over, in the resource first."""
    before = adm.tree.all()
    assert adm("lowlevel-delete-host b")[0] == 3 and adm("lowlevel-delete-host x")[0] == 4
    code, _, err = adm("lowlevel-delete-host a")
    assert code == 3 and "was heard of within the last 60 s" in err
    code, _, err = adm("lowlevel-delete-host a --force")
    assert code == 3 and "designated primary of data" in err and adm.tree.all() == before
    adm.tree.put("ips/ip-c", "10.0.0.3")
    adm.tree.put("ips/member-c", "cid")
    adm.tree.put(f"{RES}/data-c", "/dev/vg/data")
    adm.tree.put(f"{RES}/member-c", "cindata")
    code, _, err = adm("lowlevel-delete-host c")
    assert code == 3 and "still has replicas of data" in err
    assert adm("lowlevel-delete-host c --force")[0] == 0
    assert (adm.tree.get(f"{RES}/removed-c"), adm.tree.get("ips/removed-c")) == ("cindata", "cid")
    assert adm.tree.get("ips/ip-c") == ".deleted"


@pytest.mark.parametrize("name", habits.IGNORED)
def test_nothing_to_do(adm: Admin, name: str) -> None:
    """Status 0, says what helps; any arguments, no daemon, no cluster needed."""
    adm.control.running = False
    code, out, err = adm(f"{name} data whatever")
    assert code == 0 and out.startswith(f"{name}: ") and err == ""


@pytest.mark.parametrize("name", habits.SENSELESS)
def test_cannot_be_had(adm: Admin, name: str) -> None:
    """Status 2, says why and what instead; commands that are named exist."""
    before = adm.tree.all()
    code, out, err = adm(f"{name} data")
    assert code == 2 and out == "" and "hint: " in err and adm.tree.all() == before


def test_named_commands_exist() -> None:
    """Whatever an answer or a help text tells people to call is there."""
    import re

    from marsx.admin import view

    table = marsadm.commands()
    texts = [*habits.IGNORED.values(), *(instead for _, instead in habits.SENSELESS.values()),
             *(f"{row.needs} {row.effect} {row.example}" for row in table.values())]
    named = {name for text in texts for name in re.findall(r"marsadm ([a-z][-a-z0-9]*)", text)}
    named -= {"writes", "help", "version"}
    missing = {name for name in named if name not in table and view.primitive(name) is None}
    assert missing - {"show"} == set(), "`show` comes with the views"
