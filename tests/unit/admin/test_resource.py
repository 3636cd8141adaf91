"""Resources: the checks before, and the one request that marsd carries out (rule 26e: no fact is written here)."""

from __future__ import annotations

import pytest

from marsx.admin import checks
from marsx.base.errors import PreconditionError
from tests.unit.admin.small_tree import SIZE, Admin


@pytest.fixture(autouse=True)
def device(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """Devices that exist and are free, by name; the real checks have their own tests."""
    known = {"/dev/vg/new": SIZE}

    def block_device(path: str, taken: dict[str, str]) -> int:
        if path in taken:
            raise PreconditionError(f"device {path} already belongs to resource {taken[path]}")
        return known[path]

    monkeypatch.setattr(checks, "block_device", block_device)
    return known


def unchanged(adm: Admin, line: str) -> tuple[int, str]:
    """Run a command that must not change anything nor ask marsd; (status, stderr)."""
    before = adm.tree.all()
    code, _, err = adm(line)
    assert adm.tree.all() == before and adm.control.asked == []
    return code, err


def test_create(adm: Admin) -> None:
    """marsd is asked once, with device and size; marsadm writes nothing itself."""
    before = adm.tree.all()
    code, out, _ = adm("create-resource new /dev/vg/new")
    assert code == 0 and f"new: created with {SIZE} bytes" in out
    assert adm.control.asked == [
        {"cmd": "do", "what": "create-resource", "resource": "new", "args": {"device": "/dev/vg/new", "size": SIZE}}
    ]
    assert adm.tree.all() == before


def test_create_smaller(adm: Admin, device: dict[str, int]) -> None:
    """SIZE counts; without it the device in whole blocks."""
    assert adm("create-resource new /dev/vg/new 100M")[0] == 0
    assert adm.control.asked[-1]["args"] == {"device": "/dev/vg/new", "size": 100 << 20}
    device["/dev/vg/new"] = SIZE + 512
    assert adm("create-resource odd /dev/vg/new")[0] == 0
    assert adm.control.asked[-1]["args"] == {"device": "/dev/vg/new", "size": SIZE}


@pytest.mark.parametrize(
    ("line", "code", "text"),
    [
        ("create-resource data /dev/vg/new", 3, "exists already, on a, b"),
        ("create-resource none /dev/vg/new", 2, "reserved word"),
        ("create-resource a.b /dev/vg/new", 2, "cannot be the name of a resource"),
        ("create-resource ../x /dev/vg/new", 2, "cannot be the name of a resource"),
        ("create-resource new /dev/vg/new 2G", 3, "too small"),
        ("create-resource new /dev/vg/new 100001", 2, "not a multiple of 4096"),
        ("create-resource new /dev/vg/new 10X", 2, "not a size"),
        ("create-resource new /dev/vg/new a.b", 2, "cannot be the name of a device"),
        ("create-resource new /dev/vg/new disk lots", 2, "not a size"),
        ("create-resource new /dev/vg/new data", 3, "data has the device data here already"),
        ("create-resource new /dev/vg/new x 1G y", 2, "too many arguments"),
        ("create-resource new /dev/vg/new 64K", 3, "too small"),
        ("create-resource new /dev/vg/data", 3, "already belongs to resource data"),
        ("join-resource nodata /dev/vg/new", 4, "unknown resource"),
        ("join-resource data /dev/vg/new", 3, "joined on this host already"),
    ],
)
def test_refused(adm: Admin, line: str, code: int, text: str) -> None:
    """Each bad wish has its line and its status."""
    got, err = unchanged(adm, line)
    assert got == code and text in err


def test_join(adm: Admin, device: dict[str, int]) -> None:
    """The size of the resource is the least the device must have; a bigger one is fine."""
    adm.tree.resource("other", "a")
    device["/dev/vg/new"] = SIZE - 4096
    code, err = unchanged(adm, "join-resource other /dev/vg/new")
    assert code == 3 and "too small" in err
    device["/dev/vg/new"] = SIZE + (1 << 20)
    assert adm("join-resource other /dev/vg/new")[0] == 0
    assert adm.control.asked == [
        {"cmd": "do", "what": "join-resource", "resource": "other", "args": {"device": "/dev/vg/new"}}
    ]


def test_names_of_devices(adm: Admin) -> None:
    """NAME and SIZE, each alone or both; a size for a join is that of the resource; a resource's own name may be taken
    by the device of another one."""
    for words, args in (("disk", {"name": "disk"}), ("disk 100M", {"name": "disk", "size": 100 << 20}),
                        ("100M", {"size": 100 << 20})):  # fmt: skip
        assert adm(f"create-resource new /dev/vg/new {words}")[0] == 0
        assert adm.control.asked[-1]["args"] == {"device": "/dev/vg/new", "size": SIZE, **args}
    adm.tree.resource("other", "a")
    assert adm("join-resource other /dev/vg/new disk 1G")[0] == 0
    assert adm.control.asked[-1]["args"] == {"device": "/dev/vg/new", "name": "disk"}
    assert adm("join-resource other /dev/vg/new disk 2G")[0] == 3
    adm.tree.put("resource-data/device-b", "new")
    code, _, err = adm("create-resource new /dev/vg/new")
    assert code == 3 and "data has the device new here already" in err


@pytest.mark.parametrize(
    ("rel", "value", "text"),
    [
        ("resource-other/primary", "(none)", "has no primary"),
        ("resource-other/actual-a/has-emergency", "1", "emergency mode"),
    ],
)
def test_join_needs_a_source(adm: Admin, rel: str, value: str, text: str) -> None:
    """Without a primary in order there is nothing to sync from."""
    adm.tree.resource("other", "a")
    adm.tree.put(rel, value)
    code, err = unchanged(adm, "join-resource other /dev/vg/new")
    assert code == 3 and text in err


def test_leave(adm: Admin) -> None:
    """First down, then leave; --force does not insist on down."""
    code, err = unchanged(adm, "leave-resource data")
    assert code == 3 and "attach, connect, sync, allow-replay switched on" in err and "marsadm down data" in err
    for switch in ("attach", "connect", "sync", "allow-replay"):
        adm.tree.put(f"resource-data/todo-b/{switch}", "0")
    code, err = unchanged(adm, "leave-resource data")
    assert code == 3 and "still is-attached" in err
    adm.tree.put("resource-data/actual-b/is-attached", "0")
    assert adm("leave-resource data")[0] == 0
    assert adm.control.asked[-1]["what"] == "leave-resource"


def test_primary_does_not_leave_nor_sync(adm: Admin) -> None:
    """The primary's replica is the resource."""
    adm.host = "a"
    for name in ("leave-resource", "leave-resource --force", "invalidate", "fake-sync"):
        code, err = unchanged(adm, f"{name} data")
        assert code == 3 and "a is the primary" in err


def test_remove_a_dead_host(adm: Admin) -> None:
    """Rule 26: a wish with the incarnation that is out; not by accident, and not the designated primary."""
    adm.tree.cluster("a", "b", "c").resource("data", "a", "b", "c")
    assert unchanged(adm, "leave-resource data --host=c")[0] == 3
    assert unchanged(adm, "leave-resource data --host=x --force")[0] == 3
    code, err = unchanged(adm, "leave-resource data --host=a --force")
    assert code == 3 and "designated primary" in err
    assert adm("leave-resource data --host=c --force")[0] == 0
    assert adm.tree.get("resource-data/removed-c") == "cindata" and adm.control.asked == []


@pytest.mark.parametrize("name", ["invalidate", "fake-sync"])
def test_asked_of_marsd(adm: Admin, name: str) -> None:
    """One request; a refusal of marsd keeps its text, hint and status."""
    assert adm(f"{name} data")[0] == 0
    assert adm.control.asked == [{"cmd": "do", "what": name, "resource": "data", "args": {"force": False}}]
    adm.control.answers[name] = PreconditionError("marsd says no", "try later")
    code, _, err = adm(f"{name} data")
    assert code == 3 and err == "marsadm: marsd says no\n  hint: try later\n"


def test_invalidate_needs_a_primary(adm: Admin) -> None:
    """There must be somebody to sync from."""
    adm.tree.put("resource-data/primary", "(none)")
    code, err = unchanged(adm, "invalidate data")
    assert code == 3 and "no primary to sync from" in err


def test_logs(adm: Admin) -> None:
    """log-rotate is for the primary and says so elsewhere, with status 0; deletion is asked of marsd anywhere."""
    code, out, _ = adm("log-rotate all")
    assert code == 0 and "not primary" in out and adm.control.asked == []
    adm.control.answers["log-delete-all"] = {"ok": True, "deleted": ["log-000000001-a"]}
    code, out, _ = adm("log-delete-all data")
    assert code == 0 and "deleted log-000000001-a" in out
    adm.control.answers["log-delete"] = {"ok": True, "deleted": []}
    assert "no log can be deleted" in adm("log-delete data")[1]
    adm.host = "a"
    assert adm("log-rotate data")[0] == 0
    assert [request["what"] for request in adm.control.asked] == ["log-delete-all", "log-delete", "log-rotate"]
