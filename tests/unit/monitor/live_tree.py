"""A small tree with the real clock and this host's name, for tests that run the program."""

from __future__ import annotations

import os
import time
from pathlib import Path

from tests.unit.admin.small_tree import S, SmallTree


def live_tree(root: Path) -> SmallTree:
    """This host (primary) and b with the resource data; all is well, but nobody runs marsd."""
    here = os.uname().nodename
    tree = SmallTree(root)
    now = time.time_ns()
    tree._stamp = now - 1000 * S
    tree.alive = lambda *hosts: [  # type: ignore[method-assign, assignment, func-returns-value]
        tree.put(f"actual-{host}/alive", "1", now - S) for host in hosts]
    tree.cluster(here, "b").resource("data", here, "b")
    (root / "disk").touch()
    tree.put(f"resource-data/data-{here}", str(root / "disk"))
    Path(tree.paths.dev_dir, "data").symlink_to("/dev/null")
    for fact in ("is-copying", "is-replaying"):
        tree.put(f"resource-data/actual-b/{fact}", "1")
    return tree
