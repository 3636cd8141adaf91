"""Waiting: conditions, time-out, and that a real change of the tree wakes a real wait."""

from __future__ import annotations

import threading

import pytest

from marsx.admin import cli, waits
from marsx.admin.context import Context
from marsx.base.errors import PreconditionError, UsageError
from tests.unit.admin.small_tree import D1, NOW, Admin, FakeControl, SmallTree


@pytest.mark.parametrize(
    ("word", "found"),
    [
        ("attach", ("todo", "attach", True)), ("todo-fetch-off", ("todo", "connect", False)),
        ("is-fetch", ("is", "is-copying", True)), ("is-primary-off", ("is", "is-primary", False)),
        ("has-device-0", ("is", "is-primary", False)), ("todo-replay-1", ("todo", "allow-replay", True)),
        ("is-consistent", ("view", "consistent", True)), ("is-uptodate-off", ("view", "uptodate", False)),
    ],
)  # fmt: skip
def test_conditions(word: str, found: tuple[str, str, bool]) -> None:
    """[is-|has-|todo-]NAME[-on|-off|-1|-0]."""
    assert waits.condition(word) == found


@pytest.mark.parametrize("word", ["", "is-", "nonsense", "todo-primary", "is-attach-maybe", "consistent"])
def test_no_conditions(word: str) -> None:
    """Unknown ones are refused."""
    with pytest.raises(UsageError):
        waits.condition(word)


def test_wait_resource(adm: Admin) -> None:
    """Shows what is missing, returns when it is there, and times out with status 5."""
    adm.tree.put("resource-data/replay-b", "log-000000001-a,4096,0")
    step = (lambda: adm.tree.put("resource-data/replay-b", "log-000000001-a,8192,0"),)
    code, _, err = adm("wait-resource data is-uptodate", *step)
    assert code == 0 and "uptodate is off" in err
    code, _, err = adm("wait-resource data is-primary --timeout=2")
    assert code == 5 and "timed out after 2 s" in err and "is-primary is off" in err
    assert adm("wait-resource data nonsense")[0] == 2 and adm("wait-resource nodata is-primary")[0] == 4
    assert adm("wait-resource data sync")[0] == 0


def test_consistent_after_the_sync_bound(adm: Admin) -> None:
    """Rule 14: not before replay has passed syncpos."""
    adm.tree.put("resource-data/syncpos-b", f"log-000000001-a,8192,0,{D1}")
    adm.tree.put("resource-data/replay-b", "log-000000001-a,4096,0")
    step = (lambda: adm.tree.put("resource-data/replay-b", "log-000000001-a,8192,0"),)
    code, _, err = adm("wait-resource data is-consistent", *step)
    assert code == 0 and "consistent is off" in err


def test_wait_umount(adm: Admin) -> None:
    """Until nobody in the cluster has the device open."""
    adm.tree.put("resource-data/actual-a/open-count", "1")
    code, _, err = adm("wait-umount data", lambda: adm.tree.put("resource-data/actual-a/open-count", "0"))
    assert code == 0 and "in use on a" in err


def test_wait_cluster_is_asked_of_marsd(adm: Admin) -> None:
    """It knows the peers; the time-out goes along."""
    assert adm("wait-cluster --timeout=7")[0] == 0
    assert adm.control.asked == [{"cmd": "wait", "resource": "", "condition": "cluster", "timeout": 7.0}]
    assert adm("wait-resource data")[0] == 0 and adm.control.asked[-1]["resource"] == "data"


def real(tree: SmallTree, timeout: float) -> Context:
    """A context with the real clock and inotify."""
    options, control = cli.Options(timeout=timeout), FakeControl()
    return Context(tree.paths, "b", options, control=control, clock_ns=lambda: NOW)  # type: ignore[arg-type]


def test_a_change_wakes_the_wait(tree: SmallTree) -> None:
    """inotify, not polling: another process writes a link while we wait (the time-out is a minute away)."""
    waiting = threading.Event()

    def probe(view: waits.View) -> str:
        waiting.set()
        return "" if view.actual("data", "b", "is-primary") == "1" else "not yet"

    def write() -> None:
        waiting.wait(30)
        tree.put("resource-data/actual-b/is-primary", "1")

    thread = threading.Thread(target=write)
    thread.start()
    view = waits.until(real(tree, 60), probe, "test")
    thread.join()
    assert view.actual("data", "b", "is-primary") == "1"


def test_a_probe_may_give_up(tree: SmallTree) -> None:
    """An error of the probe ends the wait at once."""

    def probe(view: waits.View) -> str:
        raise PreconditionError("never")

    with pytest.raises(PreconditionError, match="never"):
        waits.until(real(tree, 60), probe, "test")
