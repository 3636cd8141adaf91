"""mars-status: the report of a small tree, its text line by line, and the program."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from marsx.base.lamport import Lamport
from marsx.monitor import mars_status, render, report
from marsx.monitor.report import Local
from marsx.tree.paths import DELETED
from marsx.tree.store import Store
from marsx.tree.view import View
from tests.unit.admin.small_tree import D1, D2, D3, NOW, SIZE, S, SmallTree

LOG1, LOG2 = "log-000000001-a", "log-000000002-a"


@pytest.fixture
def tree(tmp_path: Path) -> SmallTree:
    """A cluster of a and b with the resource data, a is its primary."""
    return SmallTree(tmp_path).cluster("a", "b").resource("data", "a", "b")


def built(tree: SmallTree, host: str = "a", only: str = "", **known: object) -> report.Report:
    """The report that `host` makes of the tree."""
    store = Store(tree.paths, host, Lamport(lambda: NOW), readonly=True)
    store.load()
    here = {"program": "1.0", "kernel": "6.1", "daemon": "marsd 1.0 (running)", "disks": frozenset({"data"}), **known}
    return report.build(View(store.entries()), Local(host, **here), NOW, only)  # type: ignore[arg-type]


def shown(tree: SmallTree, host: str = "a", style: render.Style | None = None, **known: object) -> str:
    """Its text."""
    return render.text(built(tree, host, **known), style or render.Style())


WHOLE = f"""MARS Status - a, 1.0
MARS Admin  - marsadm 1.0
MARS Module - marsd 1.0 (running)
MARS Kernel - 6.1
-------------------------------------------------------------------------------
-> Cluster Diskspace: smoothly Transactions: smoothly Connects: smoothly Synclimit: smoothly
---> Resources <---

-> check resource data, with 0.001TB, Primary Node is a
   -> local Node (a [10.0.0.1]) as Primary, System alive
\tDevice  : Disk-Device /dev/vg/data, not enlarged, used as Mars-Device /dev/mars/data
\t\t---> WORK: mounted as /mnt/data
\tSync    : {SIZE} bytes (0.001TB) synced = 100.00%
\tFetch   : 8192 bytes (0.000GB) in log-000000001 active
\tReplay  : 8192 bytes (0.000GB) now replayed, Todo 0, completed 100.00%
\tActual  : Status=Primary, used Device=on, Attached=on
\tSwitches: Attach=on [masked: Connect=on Sync=on AllowReplay=on]
   -> remote Node (b [10.0.0.2]) as Secondary, System alive
\tDevice  : Disk-Device /dev/vg/data, not enlarged
\tSync    : {SIZE} bytes (0.001TB) synced = 100.00%
\tFetch   : 8192 bytes (0.000GB) in log-000000001 active
\tReplay  : 4096 bytes (0.000GB) now replayed, Todo 4096, completed 50.00%
\t\t---> WORK: Replay in progress = (50.00% < 100.00%)
\tActual  : Status=Secondary, Syncstatus=off, Logfileupdate=on, Attached=on
\tSwitches: Attach=on Connect=on Sync=on AllowReplay=on
   -> modus for resource data is clustered (2 nodes)
"""


def test_the_manuals_sample(tree: SmallTree) -> None:
    """The layout of chapter 4.3: head, cluster line, local node first, summary."""
    tree.put("resource-data/replay-b", f"{LOG1},4096,0")
    tree.put("resource-data/actual-b/is-copying", "1")
    tree.put("resource-data/actual-a/open-count", "1")
    assert shown(tree, mounts={"data": ("/mnt/data",)}, devices=frozenset({"data"})) == WHOLE


def test_local_node_comes_first(tree: SmallTree) -> None:
    """Seen from b, b is the local node; a host without replica still sees the others."""
    lines = [line for line in shown(tree, "b").splitlines() if " Node (" in line]
    assert "local Node (b" in lines[0] and "remote Node (a" in lines[1] and len(lines) == 2
    tree.put("ips/ip-c", "10.0.0.3")
    text = shown(tree, "c")
    assert "local Node (c [10.0.0.3]) as not joined\n   -> Resource is not joined to this node" in text
    assert "remote Node (a" in text and "is remote (2 nodes)" in text


def test_standalone(tree: SmallTree) -> None:
    """One replica."""
    tree.put("resource-data/data-b", DELETED)
    assert "modus for resource data is standalone (1 node)" in shown(tree)


def test_marsd_is_down(tree: SmallTree) -> None:
    """It says so, calls the local system unknown, and shows the last known state."""
    text = shown(tree, daemon="")
    assert "MARS Module - marsd does not run on this host" in text and "---> TODO: marsd does not run here" in text
    assert "local Node (a [10.0.0.1]) as Primary, System unknown" in text and "Connects: TODO (a)" in text
    assert "-> modus for resource data" in text


def test_a_silent_host(tree: SmallTree) -> None:
    """How long it was not heard of, and the cluster line."""
    tree.put("actual-b/alive", "1", NOW - 100 * S)
    text = shown(tree)
    assert "System unknown (last message before 100 sec) !!!" in text and "Connects: TODO (b)" in text


def test_amounts_across_logs(tree: SmallTree) -> None:
    """b replays log 1, log 2 is there: what is missing is the rest of 1 and all of 2."""
    for host in ("a", "b"):
        tree.put(f"resource-data/version-000000002-{host}", f"{D2},{LOG2},12288:{D1},{LOG1},8192")
    tree.put("resource-data/replay-a", f"{LOG2},12288,0")
    tree.put("resource-data/replay-b", f"{LOG1},4096,0")
    node = built(tree).resources[0].nodes[1]
    assert (node.replay.total - node.replay.done, node.fetch_rest, node.log) == (16384, 0, 2)
    text = shown(tree)
    assert "Fetch   : 12288 bytes (0.000GB) in log-000000002 active" in text
    assert "Todo 16384, completed 20.00%" in text and "WORK: Replay now log-000000001" in text


def test_never_rounded_up(tree: SmallTree) -> None:
    """100.00 stands only where nothing is missing."""
    tree.put("resource-data/syncstatus-b", str(SIZE - 1))
    text = shown(tree)
    assert "synced = 99.99%" in text and "Sync waits = (99.99% < 100.00%)" in text
    assert report.Bar(0, 0).percent == "100.00" and report.Bar(1, 3).percent == "33.33"


def test_running_sync(tree: SmallTree) -> None:
    """Rate, time left, source; a bar on a terminal only."""
    tree.put("resource-data/syncstatus-b", str(SIZE // 4))
    tree.put("resource-data/actual-b/is-syncing", "1")
    tree.put("resource-data/actual-b/amount-sync_rate", str(1 << 10))
    text = shown(tree)
    assert "synced = 25.00%, at 1.0 MB/s (done in 12 min)" in text and "[=" not in text
    assert "WORK: Sync in progress = (25.00% < 100.00%), transferred from a" in text
    assert f"\t\t[{'=' * 10}>{'.' * 29}]  25.00%" in shown(tree, style=render.Style(terminal=True))


@pytest.mark.parametrize(
    ("rel", "value", "text"),
    [
        ("todo-b/allow-replay", "0", "HINT: Replay is paused"),
        ("todo-b/attach", "0", "HINT: Replay is paused"),
        ("actsize-b", str(2 * SIZE), f"HINT: resize is possible ({SIZE} < {2 * SIZE})"),
        ("actsize-b", "4096", "TODO: Disk-Device is too small"),
        ("syncpos-b", f"{LOG1},999424,0,{D3}", "WORK: Sync is done, consistent when replay has passed its end"),
        ("actual-b/msg-err-replay-stop", "1.0 2.0 bad block", "TODO: err-replay-stop: bad block"),
        ("actual-b/msg-inf-fetch", "1.0 2.0 fetching", "WORK: inf-fetch: fetching"),
        ("version-000000001-b", f"{D2},{LOG1},8192:", "TODO: SPLIT BRAIN: a and b"),
        ("actual-b/is-primary", "1", "TODO: more than one Primary: a, b"),
        ("primary", "(none)", "HINT: nobody is designated as Primary"),
        ("primary", "b", "WORK: the Mars-Device is not there yet"),
        ("primary", "b", "HINT: Primary against the wish"),
    ],
)
def test_hints(tree: SmallTree, rel: str, value: str, text: str) -> None:
    """What needs attention has its line, and only then."""
    tree.put("resource-data/replay-b", f"{LOG1},4096,0")
    assert text not in shown(tree)
    tree.put(f"resource-data/{rel}", value)
    assert text in shown(tree)


def test_local_device(tree: SmallTree) -> None:
    """A device nobody uses, one on a secondary, and a disk that is gone."""
    assert "TODO: enable to mount" in shown(tree)
    tree.put("resource-data/actual-a/open-count", "1")
    assert "TODO: enable to mount" not in shown(tree)
    assert "HINT: Mars-Device on Secondary available" in shown(tree, "b", devices=frozenset({"data"}))
    assert "TODO: /dev/vg/data is not there" in shown(tree, disks=frozenset())


def test_emergency(tree: SmallTree) -> None:
    """Hosts that are short of space, and the stop of replication."""
    tree.put("actual-a/emergency", "4")
    text = shown(tree)
    assert "HINT: Local Partition /mars is full (emergency level 4" in text and "Replication not running !!!" in text
    assert "Remotesystem a: /mars is full" in shown(tree, "b")


def test_history(tree: SmallTree) -> None:
    """The versions with digests; same size and other digest is a split brain."""
    tree.put("resource-data/version-000000002-a", f"{D2},{LOG2},4096:{D1},{LOG1},8192")
    style = render.Style(history=True)
    text = shown(tree, style=style)
    assert "-----> Vers.000000001 -----> Logfile Size: 8192 bytes (0.000GB) by a" in text
    assert f"Primary   Node: a                    Check: {D1} Size: 8192 bytes" in text
    assert "replay OK, verify OK" in text and "only find 1)" in text
    tree.put("resource-data/version-000000001-b", f"{D3},{LOG1},8192:")
    assert "check for SPLIT-BRAIN" in shown(tree, style=style)
    assert "Vers." not in shown(tree)


def test_status_bars(tree: SmallTree) -> None:
    """All nodes on one scale: b has half of the sync and half of the log."""
    tree.put("resource-data/syncstatus-b", str(SIZE // 2))
    tree.put("resource-data/replay-b", f"{LOG1},4096,0")
    text = shown(tree, style=render.Style(status=True))
    bars = [line.split("|")[1] for line in text.splitlines() if line.startswith("      ") and "|" in line]
    assert bars == [">" * count + letter for count, letter in
                    [(60, "D"), (60, "S"), (60, "F"), (60, "R"), (60, "D"), (30, "S"), (60, "F"), (30, "R")]]


def run(tree: SmallTree, capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    """The program on the tree, as the host it runs on."""
    dirs = [f"--{name.replace('_', '-')}={getattr(tree.paths, name)}" for name in ("mars_dir", "run_dir", "dev_dir")]
    code = mars_status.main([*words, *dirs])
    got = capsys.readouterr()
    return code, got.out, got.err


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """The program's clock is that of the tree."""
    monkeypatch.setattr(mars_status, "Lamport", lambda: Lamport(lambda: NOW))
    monkeypatch.setattr(mars_status.time, "time_ns", lambda: NOW)


def test_program(tree: SmallTree, capsys: pytest.CaptureFixture[str], clock: None) -> None:
    """Shows everything with status 0 while marsd is down, changes nothing; --resource, --json, --version."""
    before = tree.all()
    code, out, err = run(tree, capsys)
    assert code == 0 and err == "" and "check resource data" in out and "marsd does not run" in out
    code, out, _ = run(tree, capsys, "--json")
    found = json.loads(out)
    assert found["resources"][0]["nodes"][1]["replay"] == {"done": 8192, "total": 8192} and found["daemon"] == ""
    code, out, _ = run(tree, capsys, "--version")
    assert code == 0 and len(out.splitlines()) == 5
    tree.resource("other", "a")
    code, out, _ = run(tree, capsys, "--resource=other")
    assert code == 0 and "Resource: other" in out and "check resource data" not in out
    assert {rel: value for rel, value in tree.all().items() if rel in before} == before


@pytest.mark.parametrize(
    ("words", "code", "text"),
    [
        (["--resource=none-such"], 4, "unknown resource"),
        (["--nonsense"], 2, "unknown option '--nonsense'"),
        (["--inter=1"], 2, "unknown option '--inter'"),
        (["--interval=x"], 2, "number of seconds"),
        (["--interval=0"], 2, "number of seconds"),
        (["word"], 2, "not understood"),
    ],
)
def test_refused(
    tree: SmallTree, capsys: pytest.CaptureFixture[str], clock: None, words: list[str], code: int, text: str
) -> None:
    """One line on stderr and the status of its class."""
    got, out, err = run(tree, capsys, *words)
    assert got == code and text in err and out == ""


def test_no_cluster(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Nothing to show, or nothing to read."""
    empty = SmallTree(tmp_path / "x")
    assert run(empty, capsys)[0] == 3
    assert mars_status.main(["--mars-dir=/nonexistent/mars"]) == 3


def test_help(capsys: pytest.CaptureFixture[str]) -> None:
    """Names every option."""
    assert mars_status.main(["--help"]) == 0
    out = capsys.readouterr().out
    assert all(option in out for option in ("--resource", "--interval", "--history", "--status", "--json", "--version"))


def test_no_resources(tmp_path: Path) -> None:
    """A cluster without resources."""
    assert "HINT: no resources found" in shown(SmallTree(tmp_path).cluster("a"))


def test_the_last_verify(tree: SmallTree) -> None:
    """Result and age of the last verify, and what to do; nothing where there was none."""
    assert "Verify" not in shown(tree)
    facts = {"state": "differs", "source": "a", "pos": str(SIZE), "differs": "8192", "repaired": "4096",
             "time": f"{NOW // 10**9 - 65}.000000000"}
    for key, value in facts.items():
        tree.put(f"resource-data/actual-b/verify-{key}", value)
    text = shown(tree)
    assert f"\tVerify  : {SIZE} bytes (0.001TB) compared, 8192 bytes differ, 4096 bytes repaired, differs bef" in text
    assert "4096 bytes differ from a: marsadm verify data --host=b --repair" in text
    tree.put("resource-data/actual-b/verify-state", "failed")
    assert "did not come to its end" in shown(tree)
    verified = next(node.verified for node in built(tree).resources[0].nodes if node.host == "b")
    assert verified is not None and (verified.differs, verified.age_s) == (8192, 65)
