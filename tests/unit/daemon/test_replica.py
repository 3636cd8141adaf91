"""What becomes of a replica's logs: empty ones that are withdrawn, branches that are given up (rules 7, 22)."""
from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from marsx.base.config import Paths
from marsx.base.lamport import Lamport
from marsx.base.position import LogPos
from marsx.daemon import replica
from marsx.log.record import FileHeader
from marsx.tree import paths
from marsx.tree.paths import DELETED
from marsx.tree.store import Store
from marsx.tree.view import View
from marsx.volume import recovery

R, D, E = "r", "d" * 32, "e" * 32
END = LogPos(1, "a", 8192)
HEADER = FileHeader(2, "a", R, "u", b"i" * 16, 1 << 20, 512, 1, 1, END, D)


@pytest.mark.parametrize("is_here", [True, False])
def test_a_log_goes_after_its_link(monkeypatch: pytest.MonkeyPatch, is_here: bool) -> None:
    """Rules 7 and 22: first the position before it, then that it has no link, both durable, then the file: a link
    without its log would be taken for lost memory after a power cut."""
    done: list[Any] = []
    publisher = SimpleNamespace(
        replayed=lambda at, digest, make_durable: done.append((str(at), digest, make_durable)),
        put=lambda items, make_durable=False: done.append((items, make_durable)))
    monkeypatch.setattr(recovery, "remove_log", lambda env, header: done.append(header.name))
    replica.withdraw(SimpleNamespace(resource=R, host="a"), publisher, HEADER, is_here)  # type: ignore[arg-type]
    position = [(str(END), D, True)] if is_here else []
    assert done == [*position, ([(paths.version(R, 2, "a"), DELETED)], True), HEADER.name]


@pytest.mark.parametrize(("theirs", "kept"), [
    (f"{D},log-000000001-c,8192:", []),                                       # b has just that
    (f"{E},log-000000001-c,16384:", []),                                      # b goes on in it
    (f"{E},log-000000001-c,8192:", ["log-000000001-c"]),                      # other contents
    (f"{E},log-000000001-c,4096:", ["log-000000001-c"]),                      # b has less of it
    (f"{E},log-000000001-b,8192:", ["log-000000001-c"]),                      # b has another log
    (f"{E},log-000000005-b,0:{D},log-000000004-b,0", []),                     # not known any more, a copy
])
def test_what_the_primary_has_not_is_kept(tmp_path: Path, theirs: str, kept: list[str]) -> None:
    """Nobody's data vanish unseen: also the copy of a dead host's log is kept, when the primary went another way."""
    store = Store(Paths(mars_dir=str(tmp_path)), "a", Lamport())
    store.load()
    for host in "abc":
        store.put(paths.data(R, host), "/dev/x")
    store.put(paths.primary(R), "b")
    store.put(paths.version(R, 1, "a"), f"{D},log-000000001-c,8192:")
    nr = int(theirs.split(",")[1].split("-")[1])
    store.merge([(paths.version(R, nr, "b"), theirs, store.lamport.now())], "b")
    directory = tmp_path / paths.resource_dir(R)
    for name, size in (("log-000000001-c", 12288), ("log-000000002-c", 4096)):
        (directory / name).write_bytes(bytes(size))
    site: Any = SimpleNamespace(store=store, host="a", view=lambda: View(store.entries()))
    keep = replica.discarded(site, R)
    replica.set_logs_aside(site, R, keep)
    found = [name for _, _, names in os.walk(tmp_path / f"local-a/aside-{R}") for name in names]
    assert keep == kept == found and not store.log_files(R)
