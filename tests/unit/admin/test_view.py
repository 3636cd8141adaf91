"""view: one line per resource, and single values; every word of the line has its row."""

from __future__ import annotations

from pathlib import Path

import pytest

from marsx.tree.paths import DELETED
from tests.unit.admin.small_tree import D1, D2, D3, NOW, Admin, S, SmallTree

LOG1, LOG2 = "log-000000001-a", "log-000000002-a"


@pytest.fixture
def adm(adm: Admin, tmp_path: Path) -> Admin:
    """marsadm on b, whose data device exists."""
    disk = tmp_path / "disk"
    disk.write_text("")
    for host in ("a", "b"):
        adm.tree.put(f"resource-data/data-{host}", str(disk))
    return adm


def ahead(tree: SmallTree, fetched: int = 8192, replayed: int = 8192) -> None:
    """a is at 12288 of log 2; b has fetched and replayed so much of log 1."""
    tree.put("resource-data/version-000000001-a", f"{D1},{LOG1},8192:")
    tree.put("resource-data/version-000000002-a", f"{D2},{LOG2},12288:{D1},{LOG1},8192")
    tree.put("resource-data/version-000000001-b", f"{D1 if fetched == 8192 else D3},{LOG1},{fetched}:")
    tree.put("resource-data/replay-b", f"{LOG1},{replayed},0")
    tree.put("resource-data/replay-a", f"{LOG2},12288,0")


def test_up_to_date(adm: Admin) -> None:
    """The sample of facts 8.5.1, on the secondary and on the primary."""
    assert adm("view data") == (0, "  data [2/2] UpToDate Replaying dCASFR Secondary a \n", "")
    device = Path(adm.tree.paths.dev_dir, "data")
    device.write_text("")
    adm.host = "a"
    state = "  data [2/2] UpToDate Replicating DCASFR Primary a \n"
    assert adm("view data")[1] == f"  LocalDevice {device} [Closed]\n{state}"
    adm.tree.put("resource-data/actual-a/open-count", "2")
    adm.tree.put("resource-data/actual-a/ops-if_rate", "7")
    assert adm("view data")[1] == f"  LocalDevice {device} [Opened, 7 IOPS]\n{state}"


def test_one_line_for_each_resource(adm: Admin) -> None:
    """Without argument and with `all` every resource, also those that are not joined here."""
    adm.tree.resource("aaa", "a")
    code, out, _ = adm("view")
    assert code == 0 and out == adm("view all")[1]
    lines = [line for line in out.splitlines() if line.startswith(" ")]
    assert [line.split()[:2] for line in lines] == [["aaa", "[1/2]"], ["data", "[2/2]"]]
    assert "NotJoined NotJoined ------ None a" in out and "--------- resource aaa 1024.000 MiB [1/2]" in out


def test_changes_nothing_and_needs_nobody(adm: Admin) -> None:
    """Read-only: works without marsd, and says that."""
    before = adm.tree.all()
    adm.control.running = False
    code, out, _ = adm("view data")
    assert code == 0 and " ModuleNotLoaded " in out and adm.tree.all() == before


@pytest.mark.parametrize(
    ("rel", "value", "word"),
    [
        ("data-b", DELETED, "NotJoined"),
        ("data-b", "/dev/not-there", "NotPresent"),
        ("todo-b/attach", "0", "Detaching"),
        ("actual-b/is-attached", "0", "NoAttach"),
        ("actual-b/disk-error", "-5", "DISK_ERROR=-5,UpToDate"),
        ("actual-b/replay-code", "-85", "IncompleteLog[-85=Interrupted system call should be restarted]"),
        ("actual-b/replay-code", "-5,10", "DefectiveLog[-5,10=Input/output error]"),
        ("syncstatus-b", "4096", "InConsistent"),
        ("syncpos-b", f"{LOG1},999424,0,{D3}", "InConsistent"),
        ("replay-b", f"{LOG1},4096,0", "OutDated[R]"),
        ("version-000000001-a", f"{D2},{LOG1},12288:", "OutDated[F]"),
        ("actual-a/has-emergency", "1", "EmergencyMode"),
    ],
)
def test_diskstate(adm: Admin, rel: str, value: str, word: str) -> None:
    """The words of a secondary's disk."""
    adm.tree.put(f"resource-data/{rel}", value)
    assert adm("view-diskstate data")[1] == f"{word}\n" and f"/2] {word} " in adm("view data")[1]


def test_detached(adm: Admin) -> None:
    """The wish and the fact are both off."""
    adm.tree.put("resource-data/todo-b/attach", "0")
    adm.tree.put("resource-data/actual-b/is-attached", "0")
    assert adm("view-diskstate data")[1] == "Detached\n"


@pytest.mark.parametrize(
    ("rel", "value", "word"),
    [
        ("resource-data/syncstatus-b", "4096", "Syncing"),
        ("resource-data/todo-b/connect", "0", "PausedFetch"),
        ("resource-data/todo-b/allow-replay", "0", "PausedReplay"),
        ("resource-data/primary", "(none)", "NoPrimaryDesignated"),
        ("resource-data/primary", "b", "NotYetPrimary"),
        ("actual-a/alive", "0", "PrimaryUnreachable"),
    ],
)
def test_replstate(adm: Admin, rel: str, value: str, word: str) -> None:
    """What goes on, seen from a secondary."""
    adm.tree.put(rel, value)
    assert adm("view data")[1].split()[3] == word == adm("view-replstate data")[1].strip()


def test_paused_sync(adm: Admin) -> None:
    """A sync that is switched off is paused; the flags show it."""
    adm.tree.put("resource-data/syncstatus-b", "4096")
    adm.tree.put("resource-data/todo-b/sync", "0")
    assert adm("view-replstate data")[1] == "PausedSync\n" and adm("view-flags data")[1] == "d-A-FR\n"


@pytest.mark.parametrize(
    ("a", "b", "primary", "roles"),
    [
        ("1", "0", "a", ("Primary", "Secondary")),
        ("0", "0", "a", ("NotYetPrimary", "Secondary")),
        ("1", "0", "b", ("RemainsPrimary", "NotYetPrimary")),
        ("1", "1", "b", ("ForcedPrimary", "ForcedPrimary")),
        ("0", "0", "(none)", ("Secondary", "Secondary")),
    ],
)
def test_role(adm: Admin, a: str, b: str, primary: str, roles: tuple[str, str]) -> None:
    """By wish and by fact."""
    adm.tree.put("resource-data/actual-a/is-primary", a)
    adm.tree.put("resource-data/actual-b/is-primary", b)
    adm.tree.put("resource-data/primary", primary)
    for adm.host, word in zip("ab", roles, strict=True):
        assert adm("view-role data")[1] == f"{word}\n"


def test_amounts_are_counted_across_logs(adm: Admin) -> None:
    """b has 6000.. of log 1; log 1 ends at 8192 and log 2 at 12288."""
    ahead(adm.tree, fetched=8192, replayed=4096)
    values = {
        "replay-pos": 4096, "replay-size": 8192, "replay-rest": 4096, "fetch-pos": 8192, "fetch-size": 20480,
        "fetch-rest": 12288, "work-rest": 16384, "work-reached": 0, "sync-rest": 0, "sync-reached": 1,
        "summary-vector": "4096:8192:20480", "work-percent": "20.1", "sync-percent": "100",
    }  # fmt: skip
    for name, value in values.items():
        assert adm(f"view-{name} data")[1] == f"{value}\n", name
    assert " OutDated[FR] " in adm("view data")[1]


def test_the_end_of_a_log_is_the_start_of_the_next(adm: Admin) -> None:
    """Rule 7: (1, end) and (2, 0) are the same place; an empty next log leaves nothing to do."""
    adm.tree.put("resource-data/version-000000002-a", f"{D2},{LOG2},0:{D1},{LOG1},8192")
    assert adm("view-work-rest data")[1] == "0\n" and " UpToDate " in adm("view data")[1]


def test_write_back(adm: Admin) -> None:
    """On the primary replay is write-back, with its amount."""
    adm.host = "a"
    adm.tree.put("resource-data/replay-a", f"{LOG1},4096,4096")
    assert adm("view-diskstate data")[1] == "WriteBack[4.000KiB]\n"


def test_rates(adm: Admin) -> None:
    """KiB/s in the tree, bytes/s here; unknown is -1, done is 0."""
    ahead(adm.tree, replayed=4096)
    assert adm("view-replay-remain data")[1] == "-1\n" and adm("view-sync-remain data")[1] == "0\n"
    adm.tree.put("resource-data/actual-b/amount-replay_rate", "1")
    assert adm("view-replay-rate data")[1] == "1024\n" and adm("view-replay-remain data")[1] == "4\n"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("is-primary", "0"), ("is-secondary", "1"), ("is-attach", "1"), ("is-replay", "0"), ("is-consistent", "1"),
        ("is-split-brain", "0"), ("is-alive", "1"), ("todo-attach", "1"), ("todo-fetch", "1"), ("get-primary", "a"),
        ("actual-primary", "a"), ("resource-members", "a\nb"), ("todo-primary", ""), ("device-opened", "0"),
        ("is-member", "1"), ("is-orphan", "0"),
    ],
)  # fmt: skip
def test_values_for_scripts(adm: Admin, name: str, value: str) -> None:
    """Facts 8.6; exactly one newline if there is anything at all."""
    assert adm(f"view-{name} data") == (0, f"{value}\n" if value else "", "")


def test_values_of_the_host(adm: Admin) -> None:
    """Without resource."""
    adm.tree.resource("other", "a")
    assert adm("view-my-resources")[1] == "data\n" and adm("view-all-resources")[1] == "data\nother\n"
    assert adm("view-cluster-members")[1] == "a\nb\n" and adm("view-is-module-loaded")[1] == "1\n"
    assert adm("view-uuid")[1] == "a_1790000000.000000001\n"


def test_split_brain(adm: Admin) -> None:
    """Equal positions, other contents (rule 6)."""
    adm.tree.put("resource-data/version-000000001-b", f"{D2},{LOG1},8192:")
    assert adm("view-is-split-brain data")[1] == "1\n"


def test_alive_is_not_for_ever(adm: Admin) -> None:
    """A primary that was last heard of long ago is not reachable."""
    adm.tree.put("actual-a/alive", "1", NOW - 600 * S)
    assert adm("view-is-alive data")[1] == "0\n" and " PrimaryUnreachable " in adm("view data")[1]


def test_unknown(adm: Admin) -> None:
    """Unknown resources and values."""
    assert adm("view nodata")[0] == 4 and adm("view-role nodata")[0] == 4 and adm("view-nonsense data")[0] == 2
