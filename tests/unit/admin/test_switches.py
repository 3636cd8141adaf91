"""Switches: exactly the links written, the waits, the refusals."""

from __future__ import annotations

import pytest

from tests.unit.admin.small_tree import Admin

TODO = "resource-data/todo-b"
ACTUAL = "resource-data/actual-b"


@pytest.mark.parametrize(
    ("command", "switch", "value"),
    [
        ("connect", "connect", "1"), ("disconnect", "connect", "0"),
        ("resume-fetch", "connect", "1"), ("pause-fetch", "connect", "0"),
        ("pause-sync", "sync", "0"), ("resume-sync", "sync", "1"), ("pause-sync-local", "sync", "0"),
        ("pause-replay", "allow-replay", "0"), ("resume-replay", "allow-replay", "1"),
    ],
)  # fmt: skip
def test_one_switch(adm: Admin, command: str, switch: str, value: str) -> None:
    """One link of this host changes, no other does, and it is newer than all that was seen."""
    adm.tree.put(f"{TODO}/{switch}", "0" if value == "1" else "1")
    before = adm.tree.all()
    code, out, _ = adm(f"{command} data")
    after = adm.tree.all()
    changed = {rel for rel in after if after[rel] != before.get(rel)}
    assert code == 0 and changed == {f"{TODO}/{switch}"} and after[f"{TODO}/{switch}"][0] == value
    assert after[f"{TODO}/{switch}"][1] > max(stamp for _, stamp in before.values())
    assert f"data: {switch} is switched {'on' if value == '1' else 'off'}" in out
    assert adm.control.asked == []


def test_what_is_so_already_is_not_written(adm: Admin) -> None:
    """No new stamp for the same wish."""
    before = adm.tree.all()
    code, out, _ = adm("connect data")
    assert code == 0 and "already" in out and adm.tree.all() == before


def test_verbose_tells_the_links(adm: Admin) -> None:
    """What is written, on stderr; nothing about what was so already."""
    code, _, err = adm("pause-sync data -v")
    assert code == 0 and err == "  resource-data/todo-b/sync -> 0\n"
    assert adm("pause-sync data --verbose")[2] == ""


def test_global_is_every_member(adm: Admin) -> None:
    """-global writes the wish of all members, with one stamp."""
    code, out, _ = adm("pause-sync-global data")
    assert code == 0 and "on a" in out
    assert adm.tree.get("resource-data/todo-a/sync") == adm.tree.get(f"{TODO}/sync") == "0"
    assert adm.tree.stamp("resource-data/todo-a/sync") == adm.tree.stamp(f"{TODO}/sync")


def test_detach_waits_for_its_effect(adm: Admin) -> None:
    """It returns when marsd has let the disk go, and shows what is missing till then."""
    adm.tree.put(f"{ACTUAL}/is-replaying", "1")
    code, _, err = adm(
        "detach data",
        lambda: adm.tree.put(f"{ACTUAL}/is-replaying", "0"),
        lambda: adm.tree.put(f"{ACTUAL}/is-attached", "0"),
    )
    assert code == 0 and adm.script.steps == []
    assert "still is-replaying, is-attached" in err and "still is-attached" in err
    assert adm.tree.get(f"{TODO}/attach") == "0"


def test_detach_times_out(adm: Admin) -> None:
    """Exit 5, what is missing, and what marsd says about it."""
    adm.tree.put(f"{ACTUAL}/msg-err-replay-stop", "1.000000000 1.000000000 disk is slow")
    code, _, err = adm("detach data --timeout=3")
    assert code == 5 and "timed out after 3 s" in err and "is-attached" in err and "disk is slow" in err


@pytest.mark.parametrize("command", ["detach", "down"])
def test_device_in_use(adm: Admin, command: str) -> None:
    """Refused while somebody uses the device here; nothing changed."""
    adm.tree.put(f"{ACTUAL}/open-count", "2")
    before = adm.tree.all()
    code, _, err = adm(f"{command} data")
    assert code == 3 and "in use here" in err and "umount" in err and adm.tree.all() == before


def test_down_and_up(adm: Admin) -> None:
    """All four switches with one stamp; up waits until the disk is attached."""
    code, _, _ = adm("down data", lambda: adm.tree.put(f"{ACTUAL}/is-attached", "0"))
    names = ("attach", "connect", "sync", "allow-replay")
    assert code == 0 and [adm.tree.get(f"{TODO}/{name}") for name in names] == ["0"] * 4
    assert len({adm.tree.stamp(f"{TODO}/{name}") for name in names}) == 1
    code, _, err = adm("up data", lambda: adm.tree.put(f"{ACTUAL}/is-attached", "1"))
    assert code == 0 and "not attached yet" in err and [adm.tree.get(f"{TODO}/{name}") for name in names] == ["1"] * 4


def test_force_writes_while_marsd_is_down(adm: Admin) -> None:
    """--force: the switch counts when marsd starts; nobody waits for what cannot come."""
    adm.control.running = False
    code, _, err = adm("detach data --force")
    assert code == 0 and "warning: marsd does not run" in err and adm.tree.get(f"{TODO}/attach") == "0"


@pytest.mark.parametrize(
    ("rel", "value", "text"),
    [
        ("resource-data/primary", "(none)", "no primary to sync from"),
        ("resource-data/actual-a/has-emergency", "1", "a is in emergency mode"),
    ],
)
def test_resume_sync_needs_a_source(adm: Admin, rel: str, value: str, text: str) -> None:
    """Without a primary that can give data there is nothing to resume."""
    adm.tree.put(f"{TODO}/sync", "0")
    adm.tree.put(rel, value)
    code, _, err = adm("resume-sync data")
    assert code == 3 and text in err and adm.tree.get(f"{TODO}/sync") == "0"


def test_not_joined(adm: Admin) -> None:
    """A resource of others has no switches here."""
    adm.tree.resource("other", "a")
    code, _, err = adm("connect other")
    assert code == 3 and "not joined on this host" in err and "join-resource other" in err
