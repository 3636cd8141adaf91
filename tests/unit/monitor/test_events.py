"""--events: what has changed between two pictures, and that it is told when the tree changes."""

from __future__ import annotations

import json
import queue
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from marsx.monitor.events import differences
from marsx.tree.paths import DELETED
from tests.unit.admin.small_tree import NOW, S, SmallTree
from tests.unit.monitor.live_tree import live_tree
from tests.unit.monitor.test_picture import LOG1, pictured, tree  # noqa: F401

TOP = Path(__file__).resolve().parents[3]


def test_what_there_is(tree: SmallTree) -> None:  # noqa: F811
    """At first all objects and notes, then `ready`."""
    found = list(differences(None, pictured(tree)))
    objects = {(one["what"], one["resource"], one["host"]) for one in found if one["event"] == "exists"}
    assert objects == {("cluster", "", ""), ("host", "", "a"), ("host", "", "b"), ("resource", "data", ""),
                       ("replica", "data", "a"), ("replica", "data", "b")}
    assert found[-1]["event"] == "ready" and {one["event"] for one in found} <= {"exists", "raise", "ready"}


def test_what_changes(tree: SmallTree) -> None:  # noqa: F811
    """Keys with their new values; notes that come and go; objects that do; time alone changes nothing."""
    before = pictured(tree)
    tree.put("actual-b/alive", "1", NOW - 2 * S)
    assert list(differences(before, pictured(tree))) == []
    tree.put("resource-data/replay-b", f"{LOG1},4096,0")
    after = pictured(tree, when=lambda *at: NOW - 90 * S)
    events = list(differences(before, after))
    change = next(one for one in events if one["event"] == "change" and one["what"] == "replica")
    assert (change["resource"], change["host"]) == ("data", "b")
    assert change["changed"]["replay.pos"] == 4096 and "lag.seconds" not in change["changed"]
    assert {one["note"]["code"] for one in events if one["event"] == "raise"} == {"replay", "lag"}
    assert {one["note"]["code"] for one in differences(after, before) if one["event"] == "clear"} == {"replay", "lag"}
    tree.put("resource-data/data-b", DELETED)
    gone = [one for one in differences(before, pictured(tree)) if one["event"] == "destroy"]
    assert [(one["what"], one["host"]) for one in gone] == [("replica", "b")]


@pytest.fixture
def live(tmp_path: Path) -> SmallTree:
    """One that the program reads."""
    return live_tree(tmp_path / "live")


@pytest.fixture
def told(live: SmallTree) -> Iterator[queue.Queue[dict[str, Any]]]:
    """The program's lines, as they come."""
    paths = live.paths
    command = [sys.executable, "-m", "marsx", "mars-status", "--events", f"--mars-dir={paths.mars_dir}",
               f"--run-dir={paths.run_dir}", f"--dev-dir={paths.dev_dir}", f"--etc-dir={paths.etc_dir}"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=TOP)
    lines: queue.Queue[dict[str, Any]] = queue.Queue()
    assert process.stdout is not None
    output = process.stdout
    reader = threading.Thread(target=lambda: [lines.put(json.loads(line)) for line in output])
    reader.start()
    yield lines
    process.terminate()
    process.wait(30)
    reader.join()
    output.close()


def test_told_at_once(live: SmallTree, told: queue.Queue[dict[str, Any]]) -> None:
    """A change of the tree is a line, without waiting for the next look; a new resource too."""
    while told.get(timeout=60)["event"] != "ready":
        pass
    live.put("resource-data/todo-b/allow-replay", "0")
    first = told.get(timeout=60)
    while first["event"] != "raise":
        first = told.get(timeout=60)
    assert first["note"]["code"] == "replay-paused"
    live.put("resource-new/size", "4096")
    created = told.get(timeout=60)
    while created["event"] != "create":
        created = told.get(timeout=60)
    assert (created["what"], created["resource"], created["state"]["size"]) == ("resource", "new", 4096)
