"""Two clusters become one: what may not be merged. On real hosts: tests/cluster/test_manual_clusters.py."""

from __future__ import annotations

from pathlib import Path

import pytest

from marsx.admin import cluster, merge
from marsx.peer.join import Joined
from marsx.tree import guard
from marsx.tree.store import Entry, Store
from marsx.tree.view import View
from tests.unit.admin.small_tree import Admin, SmallTree


def view_of(tree: SmallTree) -> View:
    """The picture of a tree."""
    return View([(rel, value, stamp) for rel, (value, stamp) in tree.all().items()])


@pytest.fixture
def other(tmp_path: Path) -> SmallTree:
    """The other cluster: x and y with the resource mail."""
    tree = SmallTree(tmp_path / "other").cluster("x", "y")
    tree.put("uuid", "x_1.000000001")
    return tree.resource("mail", "x", "y")


@pytest.fixture
def met(adm: Admin, other: SmallTree, monkeypatch: pytest.MonkeyPatch) -> Admin:
    """marsadm on b, for which x is a member of the other cluster that says what its tree is."""
    def joined(*args: object) -> Joined:
        return Joined("x_1.000000001", "x", [[rel, *pair] for rel, pair in other.all().items()])

    monkeypatch.setattr(cluster, "look", joined)
    monkeypatch.setattr(cluster, "ask_to_join", joined)
    monkeypatch.setattr(cluster, "peer_address", lambda ctx, peer, ip: "10.0.0.99")
    adm.control.running = False
    return adm


def test_disjoint_clusters(adm: Admin, other: SmallTree) -> None:
    """Other names everywhere: nothing against it."""
    assert merge.conflicts(view_of(adm.tree), view_of(other), "b") == []


def test_one_name_for_two_things(adm: Admin, other: SmallTree) -> None:
    """A resource or a host that is another one there is named; this host's own name does not count."""
    other.resource("data", "x")
    other.put("ips/ip-a", "10.9.9.9")
    other.put("ips/member-a", "stranger")
    other.put("ips/ip-b", "10.0.0.2")
    assert merge.conflicts(view_of(adm.tree), view_of(other), "b") == ["resource data", "host a"]


def test_what_went_over_before_is_the_same(adm: Admin, other: SmallTree) -> None:
    """Rule 26: a is there already, as a new incarnation in the cluster, with the same one in the resource."""
    other.put("ips/ip-a", "10.0.0.1")
    other.put("ips/member-a", "anew")
    for rel, (value, stamp) in adm.tree.all().items():
        if rel.startswith("resource-data/"):
            other.put(rel, value, stamp)
    assert merge.conflicts(view_of(adm.tree), view_of(other), "b") == []


def test_check_and_list_change_nothing(met: Admin) -> None:
    """Only text."""
    before = met.tree.all()
    code, out, _ = met("merge-cluster-check x --token=T")
    assert code == 0 and "1 resources here and 1 in x_1.000000001 can be merged" in out
    code, out, _ = met("merge-cluster-list x --token=T")
    assert code == 0 and out == "here data a,b\nthere mail x,y\n"
    code, out, _ = met("merge-cluster-list x --token=T --json")
    assert code == 0 and '{"where": "there", "resource": "mail", "members": ["x", "y"]}' in out
    assert met.tree.all() == before


def test_merge(met: Admin, other: SmallTree) -> None:
    """The union; logs keep their uuid; what this host says of itself is said anew; the old links are kept."""
    before = met.tree.all()
    code, out, err = met("merge-cluster x --token=T")
    assert code == 0 and "to be done on: a" in out, err
    after = met.tree.all()
    assert after["uuid"][0] == "x_1.000000001"
    assert after["resource-data/log-uuid"][0] == before["uuid"][0] and "resource-mail/log-uuid" not in after
    assert after["resource-mail/primary"][0] == "x" and after["resource-data/primary"][0] == "a"
    newest = max(stamp for _, stamp in before.values())
    assert after["resource-data/replay-b"] != before["resource-data/replay-b"]
    assert after["resource-data/replay-b"][0] == before["resource-data/replay-b"][0]
    assert after["resource-data/replay-b"][1] > newest and after["resource-data/replay-a"][1] <= newest
    backup, = (path for path in Path(met.tree.paths.mars_dir).iterdir() if path.name.startswith("backup-"))
    kept = {str(path.relative_to(backup)): str(path.readlink()) for path in backup.rglob("*") if path.is_symlink()}
    assert kept == {rel: value for rel, (value, _) in before.items()}


class Killed(BaseException):
    """As when the process is killed."""


def admits(other: SmallTree, monkeypatch: pytest.MonkeyPatch) -> None:
    """x lets b in as its marsd does: a new incarnation, an address, then the tree."""
    def joined(*args: object) -> Joined:
        other.put("ips/member-b", f"life{len(other.all())}-{len(lives)}")
        other.put("ips/ip-b", "10.0.0.2")
        lives.append(1)
        return Joined("x_1.000000001", "x", [[rel, *pair] for rel, pair in other.all().items()])

    lives: list[int] = []
    monkeypatch.setattr(cluster, "ask_to_join", joined)


def test_a_merge_that_was_killed_is_given_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rule 26: killed before any of its writes and given again, it comes to the same tree: only the own resource's logs
    have the old uuid, and all that the host says of itself is of its new incarnation."""
    def fresh(name: str) -> tuple[Admin, SmallTree]:
        tree = SmallTree(tmp_path / name).cluster("a", "b").resource("data", "a", "b")
        other = SmallTree(tmp_path / f"{name}-other").cluster("x", "y").resource("mail", "x", "y")
        other.put("uuid", "x_1.000000001")
        adm = Admin(tree, monkeypatch)
        adm.control.running = False
        look = [[rel, *pair] for rel, pair in other.all().items()]
        monkeypatch.setattr(cluster, "look", lambda *args: Joined("x_1.000000001", "x", look))
        monkeypatch.setattr(cluster, "peer_address", lambda ctx, peer, ip: "10.0.0.99")
        admits(other, monkeypatch)
        return adm, other

    def state(adm: Admin) -> dict[str, str]:
        tree = {rel: pair for rel, pair in adm.tree.all().items() if not rel.startswith("backup-")}
        born = tree["ips/member-b"][1]
        assert all(stamp > born for rel, (_, stamp) in tree.items() if guard.is_fact_of(rel, "b"))
        return {rel: value for rel, (value, _) in tree.items() if rel != "ips/member-b"}

    real, left = Store._write, [0]

    def write(self: Store, entry: Entry) -> None:
        if not left[0]:
            raise Killed
        left[0] -= 1
        real(self, entry)

    monkeypatch.setattr(Store, "_write", write)
    left[0] = 10**6
    adm, _ = fresh("whole")
    assert adm("merge-cluster x --token=T")[0] == 0
    expected, writes = state(adm), 10**6 - left[0]
    assert expected["uuid"] == "x_1.000000001" and "resource-mail/log-uuid" not in expected
    assert expected["resource-data/log-uuid"].startswith("a_") and writes > 40
    for at in range(writes):
        adm, _ = fresh(f"killed{at}")
        left[0] = at
        with pytest.raises(Killed):
            adm("merge-cluster x --token=T")
        left[0] = 10**6
        code, _, err = adm("merge-cluster x --token=T2")
        assert code == 0, (at, err)
        assert state(adm) == expected, at


def test_another_thing_is_no_copy(met: Admin, other: SmallTree) -> None:
    """Rule 26: a resource or a host of the same name that is another one stays a conflict, however old it is here, and
    though all that is said of it here is said there too."""
    for rel, (value, stamp) in other.all().items():
        if rel.startswith("resource-mail/") or rel in ("ips/ip-x", "ips/member-x", "actual-x/alive"):
            is_id = rel in ("resource-mail/member-x", "resource-mail/member-y", "ips/member-x")
            met.tree.put(rel, "elsewhere" if is_id else value, stamp - 10**9)
    code, _, err = met("merge-cluster x --token=T")
    assert code == 3 and "both clusters have a resource mail, a host x" in err
    for rel in ("resource-mail/member-x", "resource-mail/member-y", "ips/member-x"):
        met.tree.put(rel, *other.all()[rel])
    met.tree.put("resource-mail/userspace/own", "1")
    met.tree.put("resource-mail/member-x", ".deleted")
    met.tree.put("resource-mail/member-y", ".deleted")
    code, _, err = met("merge-cluster x --token=T")
    assert code == 3 and "both clusters have a resource mail\n" in err


def test_merge_is_refused(met: Admin, other: SmallTree) -> None:
    """marsd runs; a conflict; the same cluster: nothing is changed."""
    before = met.tree.all()
    met.control.running = True
    assert met("merge-cluster x --token=T")[0] == 3
    met.control.running = False
    assert met("merge-cluster b --token=T")[0] == 2
    other.resource("data", "x")
    code, _, err = met("merge-cluster x --token=T")
    assert code == 3 and "both clusters have a resource data" in err
    met.tree.put("uuid", "x_1.000000001")
    code, _, err = met("merge-cluster-check x --token=T")
    assert code == 3 and "in the same cluster already" in err
    met.tree.put("uuid", before["uuid"][0], before["uuid"][1])
    assert met.tree.all() == before


def test_dry_run(met: Admin, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tells, asks nobody for certificates, writes nothing."""
    monkeypatch.setattr(cluster, "ask_to_join", lambda *args: pytest.fail("asked"))
    monkeypatch.setattr(Store, "_write", lambda *args: pytest.fail("written"))
    before = met.tree.all()
    code, out, err = met("merge-cluster x --token=T --dry-run")
    assert code == 0 and "resource-data/log-uuid" in out and "would ask x at 10.0.0.99" in out, err
    assert met.tree.all() == before


def test_address_of_the_other(adm: Admin, other: SmallTree, monkeypatch: pytest.MonkeyPatch) -> None:
    """HOST IP, as the original has it, or --ip-HOST."""
    seen: list[str] = []

    def look(ctx: object, peer: str, ip: str, token: str) -> Joined:
        seen.append(ip)
        return Joined("x_1.000000001", "x", [[rel, *pair] for rel, pair in other.all().items()])

    monkeypatch.setattr(cluster, "look", look)
    assert adm("merge-cluster-check x 10.1.1.1 --token=T")[0] == 0
    assert adm("merge-cluster-check x --ip-x=10.1.1.2 --token=T")[0] == 0
    assert adm("merge-cluster-check x 10.1.1 --token=T")[0] == 2
    assert seen == ["10.1.1.1", "10.1.1.2"]
