"""--parallel: a process for each resource, a bound, output in order, one exit status."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from marsx.admin import parallel
from marsx.tree import paths
from tests.unit.admin.small_tree import SmallTree


@pytest.mark.parametrize(("codes", "status"), [
    ([0, 0, 0], 0), ([3, 0, 0], 7), ([3, 3, 3], 3), ([3, 5, 3], 7),
])  # fmt: skip
def test_exit_status(codes: list[int], status: int, capsys: pytest.CaptureFixture[str]) -> None:
    """As without --parallel; each one's output in one piece, in the order of the resources."""
    lines = [["up", f"r{nr}"] for nr in range(3)]
    assert parallel.run(lines, 0, lambda words: (codes[int(words[1][1])], f"{words[1]}\n", f"e{words[1]}\n")) == status
    shown = capsys.readouterr()
    assert (shown.out, shown.err) == ("r0\nr1\nr2\n", "er0\ner1\ner2\n")


@pytest.mark.parametrize(("most", "expected"), [(2, 2), (0, 4)])
def test_bound(most: int, expected: int) -> None:
    """At most N at once; without N all of them."""
    running: list[str] = []
    high: list[int] = []
    together, lock = threading.Barrier(expected), threading.Lock()

    def start(words: list[str]) -> parallel.Done:
        with lock:
            running.append(words[1])
            high.append(len(running))
        together.wait(20)
        with lock:
            running.remove(words[1])
        return 0, "", ""

    parallel.run([["up", str(nr)] for nr in range(4)], most, start)
    assert max(high) == expected


def test_for_real(tmp_path: Path) -> None:
    """Real processes on a real tree: what works is done, what fails is named, options go along."""
    host = os.uname().nodename
    if os.geteuid() or not paths.is_host(host):
        pytest.skip("needs root and a host name that mars takes")
    tree = SmallTree(tmp_path)
    tree._stamp = time.time_ns() - 10**12  # a real clock looks at it
    tree.cluster(host, "b")
    for name in ("one", "two", "three"):
        tree.resource(name, host, "b")
    where = [f"--{name}-dir={getattr(tree.paths, name + '_dir')}" for name in ("mars", "run", "dev", "etc")]
    done = subprocess.run(
        [sys.executable, "-m", "marsx", "marsadm", "set-emergency-limit", "one,nothere,two", "70", "--parallel=2",
         *where],
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 7 and "nothere" in done.stderr, done
    limits = [tree.get(f"resource-{name}/todo-{host}/emergency-limit") for name in ("one", "two", "three")]
    assert limits == ["70", "70", ""]
