"""The picture as text: the manual's layout line by line, amounts, layout for terminals, bars."""

from __future__ import annotations

import re
from typing import Any

import pytest

from marsx.base.errors import UsageError
from marsx.monitor import bars, layout, notes
from marsx.monitor.limits import EXAMPLES, Limit, parse
from marsx.monitor.render import Style, lines
from tests.unit.admin.small_tree import D1, D2, NOW, SIZE, S, SmallTree
from tests.unit.monitor.test_picture import LOG1, LOG2, pictured, tree  # noqa: F401

WHOLE = f"""MARS Status - a, 1.0: WARNING: data on b: this replica is 90 sec behind
MARS Admin  - marsadm 1.0
MARS Module - marsd 1.0 (running)
MARS Kernel - 6.1
-------------------------------------------------------------------------------
-> Cluster Diskspace: smoothly Transactions: smoothly Connects: smoothly Synclimit: smoothly
---> Resources <---

-> check resource data, with 1.000 GiB, Primary Node is a
   -> local Node (a [10.0.0.1]) as Primary, System alive
\tDevice  : Disk-Device /dev/vg/data, not enlarged, used as Mars-Device /dev/mars/data
\t\t---> WORK: mounted as /mnt/data
\tSync    : {SIZE} bytes (1.000 GiB) synced = 100.00%
\tFetch   : 8192 bytes (8.000 KiB) in log-000000001 active
\tReplay  : 8192 bytes (8.000 KiB) now replayed, Todo 0, completed 100.00%
\tActual  : Status=Primary, used Device=on, Attached=on
\tSwitches: Attach=on [masked: Connect=on Sync=on AllowReplay=on]
   -> remote Node (b [10.0.0.2]) as Secondary, System alive
\tDevice  : Disk-Device /dev/vg/data, not enlarged
\tSync    : {SIZE} bytes (1.000 GiB) synced = 100.00%
\tFetch   : 8192 bytes (8.000 KiB) in log-000000001 active
\tReplay  : 4096 bytes (4.000 KiB) now replayed, Todo 4096 (4.000 KiB), completed 50.00%, lag 90 sec
\t\t---> WORK: Replay in progress = (50.00% < 100.00%)
\t\t---> TODO: this replica is 90 sec behind
\tActual  : Status=Secondary, Syncstatus=off, Logfileupdate=on, Attached=on
\tSwitches: Attach=on Connect=on Sync=on AllowReplay=on
   -> modus for resource data is clustered (2 nodes)"""


def shown(tree: SmallTree, style: Style | None = None, **known: Any) -> str:  # noqa: F811
    """The text that a shows."""
    found = pictured(tree, **{"program": "1.0", "kernel": "6.1", **known})
    return "\n".join(lines(found, style or Style()))


def test_the_manuals_sample(tree: SmallTree) -> None:  # noqa: F811
    """The layout of chapter 4.3: head, cluster line, local node first, summary."""
    tree.put("resource-data/replay-b", f"{LOG1},4096,0")
    text = shown(tree, mounts={"data": ("/mnt/data",)}, when=lambda *at: NOW - 90 * S)
    assert text == WHOLE


def test_rates_and_what_is_left(tree: SmallTree) -> None:  # noqa: F811
    """Rate, rest, time left; a bar on a terminal only, never full before the end."""
    tree.put("resource-data/syncstatus-b", str(SIZE // 4))
    tree.put("resource-data/actual-b/is-syncing", "1")
    tree.put("resource-data/actual-b/amount-sync_rate", str(1 << 10))
    text = shown(tree)
    assert "synced = 25.00%, rest 768.000 MiB, at 1.000 MiB/s (done in 12 min)" in text and "[=" not in text
    assert f"\t\t[{'=' * 10}>{'.' * 29}]  25.00%" in shown(tree, Style(terminal=True))
    tree.put("resource-data/syncstatus-b", str(SIZE - 1))
    assert "synced = 99.99%" in shown(tree) and f"[{'=' * 39}>]  99.99%" in shown(tree, Style(terminal=True))


def test_where_it_makes_sense(tree: SmallTree) -> None:  # noqa: F811
    """`enable to mount` only on this host's primary that nobody uses."""
    assert "TODO: enable to mount ==> mount /dev/mars/data" in shown(tree)
    tree.put("resource-data/actual-a/open-count", "1")
    assert "enable to mount" not in shown(tree) and "WORK: in use, open count 1" in shown(tree)
    tree.put("resource-data/actual-a/open-count", "0")
    assert "enable to mount" not in shown(tree, host="b", devices=frozenset())


def test_history(tree: SmallTree) -> None:  # noqa: F811
    """Who has which version, what is equal, what hinders deletion and what can go."""
    from marsx.monitor.history import history, text
    from marsx.monitor.seen import LogFile, Seen
    from tests.unit.monitor.test_picture import view_of

    for host in ("a", "b"):
        tree.put(f"resource-data/version-000000002-{host}", f"{D2},{LOG2},4096:{D1},{LOG1},8192")
        tree.put(f"resource-data/replay-{host}", f"{LOG2},4096,0")
    files = (LogFile(1, "a", 8192, 0.0), LogFile(2, "a", 4096, 0.0))

    def told(files: tuple[LogFile, ...] = files) -> str:
        view, found = view_of(tree), pictured(tree, logs={"data": files})["resources"]["data"]
        return "\n".join(text(history(view, Seen("a", logs={"data": files}), "data", found), True))

    assert "Checksums, can be deleted ... ==> marsadm log-delete-all data" in told()
    assert "Vers.000000001 -----> old Version, Logfile is deleted" in told(files[1:])
    assert "Vers.000000002 -----> old Version, Logfile is missing" in told(files[:1])
    tree.put("resource-data/replay-b", f"{LOG1},4096,0")
    tree.put("resource-data/todo-b/allow-replay", "0")
    assert "Secondary Node: b Check: 111111111111 Size: 8192 bytes (8.000 KiB) ---> replay incomplete" in told()
    assert "WORK: Version is actual and used. Replay in progress" in told()
    tree.put("resource-data/version-000000001-b", f"{D2},{LOG1},8192:")
    assert "verify failed" in told() and "check for SPLIT-BRAIN" in told()


@pytest.mark.parametrize(("amount", "text"), [
    (0, "0 bytes"), (999, "999 bytes"), (1000, "0.977 KiB"), (256 << 20, "256.000 MiB"), (250 << 30, "250.000 GiB"),
    (3 << 50, "3.000 PiB"), (5000 << 50, "5000.000 PiB")])
def test_sizes(amount: int, text: str) -> None:
    """The unit that leaves digits to read."""
    assert notes.size(amount) == text


@pytest.mark.parametrize(("seconds", "text"), [
    (0, "0 sec"), (119.9, "119 sec"), (120, "2 min"), (7200, "2 h 0 min"), (49 * 3600, "2 days 1 h")])
def test_durations(seconds: float, text: str) -> None:
    """As people say it."""
    assert notes.duration(seconds) == text


def test_limits() -> None:
    """Units, one or two, off; worse is more, or less."""
    assert parse("lag", "5m,1h") == Limit(300, 3600) and parse("rest", "1.5G") == Limit(1.5 * (1 << 30), None)
    assert parse("space", "20%,10") == Limit(20, 10) and parse("peer", "off") == Limit()
    assert parse("rest", ",1T") == Limit(None, 1 << 40)
    assert [parse("lag", "1,2").level(value) for value in (None, 0.5, 1, 2)] == [0, 0, 1, 2]
    assert [parse("space", "20,10").level_below(value) for value in (None, 20, 15, 9)] == [0, 0, 1, 2]
    for name in EXAMPLES:
        for text in ("x", "1,2,3", "-1", "9,x", "nan"):
            with pytest.raises(UsageError):
                parse(name, text)
    for name, text in (("lag", "10,5"), ("space", "5,10")):
        with pytest.raises(UsageError, match="less bad"):
            parse(name, text)


@pytest.mark.parametrize("width", [20, 40, 80, 200])
def test_fits(tree: SmallTree, width: int) -> None:  # noqa: F811
    """No line is wider than the terminal, no word is lost, colours add nothing that is seen."""
    tree.put("resource-data/todo-b/attach", "0")
    tree.put("resource-data/actual-b/msg-err-resource", "1.0 2.0 " + "long words " * 30)
    plain = shown(tree).splitlines()
    fitted = list(layout.fitted(plain, width))
    assert max(map(len, fitted)) <= width
    kept, words = (re.sub(r"[\s║|]", "", "".join(lines)) for lines in (fitted, plain))
    assert kept == words
    painted = list(layout.painted(fitted))
    assert [re.sub(r"\x1b\[[0-9;]*m", "", line) for line in painted] == fitted
    if width == 200:
        assert any("\x1b[1;31mCRITICAL" in line for line in painted)


def test_status_bars(tree: SmallTree) -> None:  # noqa: F811
    """One scale for all; what is missing is drawn; full only when it is done; names of any length."""
    tree.put("resource-data/syncstatus-b", str(SIZE - 1))
    tree.put("resource-data/replay-b", f"{LOG1},0,0")
    found = pictured(tree)["resources"]["data"]
    text = list(bars.status("data", found, Style(ascii=True, width=80)))
    assert max(map(len, text)) <= 80
    full, almost = next(line for line in text if "|D" in line), next(line for line in text if "99.99%" in line)
    assert full.count(">") == almost.count(">") + 1 and "!|S 99.99%" in almost
    assert any(">" not in line and line.count("!") > 20 and "|R 0.00%" in line for line in text)
    found["nodes"]["b" * 63] = found["nodes"].pop("b")
    wide = list(bars.status("data", found, Style(width=80)))
    assert any("~" in line for line in wide) and max(map(len, wide)) <= 100


def test_nagios(tree: SmallTree) -> None:  # noqa: F811
    """One line of state and data by the guidelines: limits as ranges, what is not known is U, the bar only divides."""
    from marsx.monitor.limits import Limits
    from marsx.monitor.nagios import text

    limits = Limits(space=Limit(20, 10), rest=Limit(1 << 30, None))
    tree.put("resource-data/todo-b/allow-replay", "0")
    tree.put("resource-data/actual-a/is-emergency", "1")
    tree.put("resource-data/actual-b/msg-wrn-odd", "1.0 2.0 a | bar")
    first, *rest = text(pictured(tree, limits=limits, free_bytes=50, total_bytes=200), limits).splitlines()
    said, _, data = first.partition(" | ")
    assert said == "MARS CRITICAL - data on b: Replay is paused (and 1 more)" and "|" not in data
    assert data.split() == ["'a.free'=25%;20:;10:;0;100", "'b.age'=1s;30;120;0", "'data.b.lag'=U;60;600;0",
                            "'data.b.rest'=0B;1073741824;;0", "'data.b.sync'=100%;;;0;100"]
    assert rest == ["CRITICAL: data on b: Replay is paused ==> on b: marsadm resume-replay data",
                    "WARNING: data on b: wrn-odd: a / bar"]
