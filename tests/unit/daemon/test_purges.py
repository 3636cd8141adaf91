"""Forgetting what is over: only what everybody has seen, what nobody needs, what is mended."""
from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from marsx.base.config import Paths
from marsx.base.errors import NotFoundError, PreconditionError
from marsx.base.lamport import Lamport
from marsx.daemon import purges
from marsx.tree import paths
from marsx.tree.store import Store
from marsx.tree.view import View

R, S, NOW = "r", 10**9, 1_800_000_000 * 10**9


@pytest.fixture
def worker(tmp_path: Path) -> Any:
    """Host a in a cluster with b, which is connected and acknowledges everything at once."""
    lamport = Lamport(lambda: NOW)
    store = Store(Paths(mars_dir=str(tmp_path)), "a", lamport)
    store.load()
    for host in "ab":
        store.put(paths.ip(host), "10.0.0.1", stamp=NOW - 900 * S)
    store.put(paths.userspace("old"), paths.DELETED, stamp=NOW - 500 * S)
    store.put(paths.userspace("young"), paths.DELETED, stamp=NOW - 5 * S)
    exchange = SimpleNamespace(acked={"b": float("inf")}, reachable={"b"}, answered={"b"})

    @contextlib.asynccontextmanager
    async def exclusive() -> Any:
        yield

    async def blocking(call: Any, *args: Any) -> Any:
        return call(*args)

    runner = SimpleNamespace(resource=R, trouble="", exclusive=exclusive, kick=lambda: None, producer=None)
    site = SimpleNamespace(host="a", store=store, lamport=lamport, blocking=blocking,
                           view=lambda: View(store.entries()), say=lambda resource, key, text: None)
    return SimpleNamespace(site=site, exchange=exchange, runner=runner, runners={R: runner})


def links(worker: Any, **args: Any) -> dict[str, Any]:
    return asyncio.run(purges.link_purge_all(worker, "", args))


def test_old_tombstones_go(worker: Any) -> None:
    """Rule 26: those older than the window; younger ones stay; a plan changes nothing."""
    store = worker.site.store
    assert links(worker, dry=True)["effects"] == ["remove the tombstone userspace/old"]
    assert store.entry(paths.userspace("old")) is not None
    assert links(worker)["purged"] == 1
    assert store.entry(paths.userspace("old")) is None and store.entry(paths.userspace("young")) is not None
    assert links(worker, window=1.0)["purged"] == 0, "never younger than a minute"


@pytest.mark.parametrize("lacking", ["reachable", "answered"])
def test_not_while_somebody_is_away(worker: Any, lacking: str) -> None:
    """Rule 26: who has not seen the tombstone would bring the link back."""
    getattr(worker.exchange, lacking).clear()
    for dry in (True, False):
        with pytest.raises(PreconditionError, match="b cannot be reached"):
            links(worker, dry=dry)
    assert worker.site.store.entry(paths.userspace("old")) is not None


def test_not_without_a_fresh_acknowledgement(worker: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rule 26: what was acknowledged before the command came is not enough."""
    monkeypatch.setattr(purges, "ACK_PATIENCE_S", 0.05)
    worker.exchange.acked = {"b": 0.0}
    with pytest.raises(PreconditionError, match="acknowledged"):
        links(worker)
    assert worker.site.store.entry(paths.userspace("old")) is not None


def test_messages(worker: Any) -> None:
    """Errors that are over go; that of a resource that still is stopped stays; other messages too."""
    store = worker.site.store
    for key in ("err-resource", "err-sync", "inf-why"):
        store.put(paths.message(R, "a", key), "1.000000000 1.000000000 text")
    worker.runner.trouble = "stopped"
    plan = asyncio.run(purges.err_purge_all(worker, R, {"dry": True}))
    assert plan["changes"] == [[paths.message(R, "a", "err-sync"), "OK"]]
    assert store.get(paths.message(R, "a", "err-sync")) != "OK"
    assert asyncio.run(purges.err_purge_all(worker, R, {}))["deleted"] == ["err-sync"]
    assert store.get(paths.message(R, "a", "err-sync")) == "OK"
    assert "OK" not in [store.get(paths.message(R, "a", key)) for key in ("err-resource", "inf-why")]
    worker.runner.trouble = ""
    assert asyncio.run(purges.err_purge_all(worker, R, {}))["deleted"] == ["err-resource"]


def test_logs_set_aside(worker: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """What invalidate has kept goes, and what nobody needs; a plan deletes nothing."""
    root = Path(worker.site.store.root)
    aside = root / f"local-a/aside-{R}/17"
    aside.mkdir(parents=True)
    (aside / "log-000000003-a").write_bytes(b"x")
    other = root / "local-a/aside-other/log-000000001-a"
    other.parent.mkdir()
    other.write_bytes(b"x")
    monkeypatch.setattr(purges, "deletable", lambda worker, runner, count: ["log-000000001-a"])
    monkeypatch.setattr(purges, "delete_logs", lambda worker, runner, count: ["log-000000001-a"])
    names = [f"local-a/aside-{R}/17/log-000000003-a", "log-000000001-a"]
    plan = asyncio.run(purges.log_purge_all(worker, R, {"dry": True}))
    assert plan["effects"] == [f"delete {name}" for name in names] and aside.exists()
    assert asyncio.run(purges.log_purge_all(worker, R, {}))["deleted"] == names
    assert not aside.exists() and other.exists()


def test_unknown_resource(worker: Any) -> None:
    """Named."""
    for command in (purges.log_purge_all, purges.err_purge_all):
        with pytest.raises(NotFoundError):
            asyncio.run(command(worker, "other", {}))
