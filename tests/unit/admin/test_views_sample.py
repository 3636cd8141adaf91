"""The verified sample of facts 8.5: what the original prints for a known tree, byte for byte."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.unit.admin.small_tree import D1, D2, NOW, Admin, S, SmallTree

SIZE = 250 << 30
LOG = "log-000000728-other"
POS, END, OLDER = 172618096, 373579748, 987414


@pytest.fixture
def sample(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Admin:
    """A secondary that has fetched all of log 728 and replays it."""
    tree = SmallTree(tmp_path).cluster("me", "other").resource("data", "other", "me", size=SIZE)
    disk = tmp_path / "disk"
    disk.write_text("")
    res = "resource-data"
    for host in ("me", "other"):
        tree.put(f"{res}/data-{host}", str(disk))
        tree.put(f"{res}/version-000000001-{host}", ".deleted")
        tree.put(f"{res}/version-000000728-{host}", f"{D2},{LOG},{END}:{D1},log-000000727-other,{OLDER}", NOW)
    tree.put(f"{res}/replay-me", f"{LOG},{POS},{END - POS}", NOW)
    tree.put(f"{res}/replay-other", f"{LOG},{END},0")
    tree.put(f"{res}/actual-me/amount-file_rate", "1200")
    tree.put(f"{res}/actual-me/amount-replay_rate", "4000")
    return Admin(tree, monkeypatch, "me")


def test_1and1(sample: Admin) -> None:
    """`view-1and1 all`, and single values of the same tree."""
    assert sample("view-1and1 all")[1] == """\
--------- resource data
  data Outdated[R] Replaying -SFR- Secondary other
     replaying: [========>:::::::::]  46.44%  (164/356)MiB  logs: [728..728]
       > fetch: 0 B rate: 1200 KiB/sec  remaining: 00:00:00 hrs
       > replay: 191.652 MiB rate: 4000 KiB/sec  remaining: 00:00:49 hrs
"""
    assert sample("view-summary-vector data")[1] == "172618096:373579748:373579748\n"
    assert sample("view-work-percent data")[1] == "46.4375243595914\n"


def test_default(sample: Admin) -> None:
    """`view all` of the newer original, which also counts the log before."""
    sample.tree.put("resource-data/version-000000727-me", f"{D1},log-000000727-other,{OLDER}:")
    code, out, _ = sample("view all")
    head, _, rest = out.partition("---------")
    assert code == 0 and [line.partition("=")[0] for line in head.splitlines()] == [
        "used-log-compression", "used-net-compression", "used-log-digest", "used-net-digest"]  # fmt: skip
    assert rest == """\
 resource data 250.000 GiB [2/2]
  data [2/2] OutDated[R] Replaying dCASFr Secondary other \n\
     replaying: [========>:::::::::]  46.58%  (165/357)MiB  logs: [728]
       > fetch: 0 B rate: 1.172 MiB/s remaining: 00:00:00
       > replay: 191.652 MiB rate: 3.906 MiB/s remaining: 00:00:49
"""


def test_older_and_newer_logs_are_named(sample: Admin) -> None:
    """`[replay::fetch..known]`, only what differs; ages and lags where something is missing."""
    tree = sample.tree
    tree.put("resource-data/version-000000729-other", f"{D1},log-000000729-other,4096:{D2},{LOG},{END}", NOW - S)
    tree.put("resource-data/version-000000728-me", f"{D2},{LOG},{END}:", NOW - 61 * S)
    out = sample("view data")[1]
    assert "logs: [728..729]\n" in out
    assert "> fetch: 4.000 KiB age: 00:01:01 lag: 00:01:00 rate: 1.172 MiB/s remaining: 00:00:00\n" in out
    tree.put("resource-data/version-000000729-me", f"{D1},log-000000729-other,4096:{D2},{LOG},{END}", NOW)
    assert "logs: [728::729]\n" in sample("view data")[1]
    assert "logs: [728..729]\n" in sample("view-1and1 data")[1]


def test_sync(sample: Admin) -> None:
    """The block of a running sync; it is there only while something is missing."""
    tree = sample.tree
    tree.put("resource-data/syncstatus-me", str(SIZE // 2))
    tree.put("resource-data/actual-me/amount-sync_rate", str(100 << 10))
    wanted = (
        "     syncing: [=========>........]  50.25%  (125/250)GiB  rate: 100.00 MiB/sec  remaining: 00:21:20 hrs\n"
        "       > sync: 125/250GiB rate: 100.000 MiB/sec  remaining: 00:21:20 hrs\n"
    )
    out = sample("view data")[1]
    assert wanted in out and " InConsistent Syncing dcASFr Secondary other " not in out
    assert " InConsistent Syncing d-AsFr Secondary other " in out
    assert sample("view-syncinfo data")[1] == wanted
    assert sample("view-1and1 data")[1].splitlines()[0] == "  data Inconsistent Syncing -SFR- Secondary other"


def test_detached_shows_no_blocks(sample: Admin) -> None:
    """What is under way is shown while the disk is attached."""
    sample.tree.put("resource-data/actual-me/is-attached", "0")
    assert len(sample("view data")[1].splitlines()) == 1 == len(sample("view-1and1 data")[1].splitlines())


def test_within_the_threshold(sample: Admin) -> None:
    """The older view calls a replica up to date that lacks at most --threshold."""
    line = "view-1and1 data --threshold=192M"
    assert sample(line)[1] == "  data Uptodate Replaying -SFR- Secondary other\n"
    assert "OutDated[R]" in sample("view data --threshold=192M")[1]
    assert sample("view-replay-threshold-reached data 192M")[1] == "1\n"
    assert sample("view-replay-threshold-reached data 191M")[1] == "0\n"


@pytest.mark.parametrize(("rest", "threshold", "percent", "almost", "reached"), [
    (1, "100", "99.99", "1", "0"), (0, "100", "100", "1", "1"), (SIZE // 50, "5G", "98.49", "0", "0"),
])  # fmt: skip
def test_never_rounded_up_to_the_end(
    sample: Admin, rest: int, threshold: str, percent: str, almost: str, reached: str
) -> None:
    """100 percent stand only where nothing is missing."""
    sample.tree.put("resource-data/syncstatus-me", str(SIZE - rest))
    assert sample("view-sync-percent data")[1] == f"{percent}\n"
    assert sample("view-sync-almost-reached data")[1] == f"{almost}\n"
    assert sample("view-sync-reached data")[1] == f"{reached}\n"
    assert sample(f"view-sync-threshold-reached data {threshold}")[1] == "1\n"
    assert sample("view-sync-rest data")[1] == f"{rest}\n"
