"""The picture: its keys are a contract, it is pure, and each state has its note, level and advice."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from marsx.base.lamport import Lamport
from marsx.base.position import LogPos
from marsx.monitor.limits import Limit, Limits
from marsx.monitor.picture import picture
from marsx.monitor.seen import DOWN, RUNNING, SILENT, UNASKED, Daemon, LogFile, Seen
from marsx.tree.paths import DELETED
from marsx.tree.store import Store
from marsx.tree.view import View
from tests.unit.admin.small_tree import D1, D2, D3, NOW, SIZE, S, SmallTree

KEYS = Path(__file__).with_name("picture-keys.txt")
LOG1, LOG2 = "log-000000001-a", "log-000000002-a"


@pytest.fixture
def tree(tmp_path: Path) -> SmallTree:
    """A cluster of a and b with the resource data, a is its primary; all runs."""
    tree = SmallTree(tmp_path).cluster("a", "b").resource("data", "a", "b")
    tree.put("resource-data/actual-b/is-copying", "1")
    tree.put("resource-data/actual-b/is-replaying", "1")
    return tree


def view_of(tree: SmallTree, host: str = "a", heard: dict[str, float] | None = None) -> View:
    """What a display of the host reads."""
    store = Store(tree.paths, host, Lamport(lambda: NOW), readonly=True)
    store.load()
    return View(store.entries(), heard)


def pictured(tree: SmallTree, host: str = "a", limits: Limits | None = None, only: str = "", **known: Any) -> Any:
    """The picture that `host` makes of the tree."""
    here: dict[str, Any] = {"daemon": Daemon(RUNNING, "1.0"), "devices": frozenset({"data"}), **known}
    return picture(view_of(tree, host), NOW, Seen(host, **here), limits, only)


def codes(found: Any, low: int = 1) -> dict[str, int]:
    """code -> level of the reasons."""
    return {note["code"]: note["level"] for note in found["reasons"] if note["level"] >= low}


def flat(value: Any, name: str = "") -> dict[str, set[str]]:
    """PATH -> types, with HOST, RES for names and [] for members of lists."""
    found: dict[str, set[str]] = {}
    named = {"hosts": "HOST", "nodes": "HOST", "resources": "RES", "why": "WHY"}
    if isinstance(value, dict):
        for key, inner in value.items():
            free = named.get(name.rpartition(".")[2], key)
            for path, types in flat(inner, f"{name}.{free}" if name else key).items():
                found.setdefault(path, set()).update(types)
    elif isinstance(value, list):
        found[name] = {"list"}
        for inner in value:
            for path, types in flat(inner, name + "[]").items():
                found.setdefault(path, set()).update(types)
    else:
        found[name] = {type(value).__name__}
    return found


def test_keys_are_a_contract(tree: SmallTree) -> None:
    """All keys with their types: while the version is 1, lines only come in addition."""
    tree.put("resource-data/version-000000001-b", f"{D2},{LOG1},8192:")  # parted
    tree.put("resource-data/actual-b/msg-err-fetch", "1.5 2.5 no route")
    tree.put("resource-data/actual-b/msg-inf-why", "1.5 2.5 fetch: x; sync: y")
    tree.put("actual-b/msg-wrn-clock", "1.5 2.5 ahead")
    tree.put("resource-data/actual-b/stalled", "fetch=peer-down,sync=no-slot")
    tree.put("actual-b/unreachable", "a=refused")
    tree.put("ips/ip-c", "10.0.0.3")
    for key, value in {"state": "differs", "source": "a", "pos": "4096", "differs": "512", "repaired": "0",
                       "time": f"{NOW // S - 60}.000000000"}.items():
        tree.put(f"resource-data/actual-b/verify-{key}", value)
    rich = pictured(tree, mounts={"data": ("/mnt",)}, disks=frozenset({"data"}), free_bytes=1, total_bytes=2,
                    logs={"data": (LogFile(1, "a", 8192, 1.0),)})
    tree.put("resource-data/actual-a/is-emergency", "1")
    bare = picture(view_of(tree), NOW, Seen("z"))
    lines = [f"{path}: {' | '.join(sorted(types))}" for path, types in sorted(flat([rich, bare]).items())]
    assert "\n".join(line.removeprefix("[].") for line in lines[1:]) + "\n" == KEYS.read_text()


def test_pure_and_well(tree: SmallTree) -> None:
    """The same tree gives the same picture; where all is well there is no reason, and no exit status."""
    found = pictured(tree)
    assert found == pictured(tree) and (found["level"], found["word"], found["reasons"]) == (0, "OK", [])
    node = found["resources"]["data"]["nodes"]["b"]
    assert (node["role"], node["fetch"]["state"], node["replay"]["state"], node["lag"]) == (
        "secondary", "done", "done", {"seconds": 0.0, "exact": True})


@pytest.mark.parametrize(
    ("rel", "value", "code", "level"),
    [
        ("todo-b/connect", "0", "fetch-paused", 2),
        ("todo-b/allow-replay", "0", "replay-paused", 2),
        ("todo-b/attach", "0", "detached", 2),
        ("actual-b/is-attached", "0", "not-attached", 1),
        ("actual-b/is-copying", "0", "fetch-waits", 1),
        ("actual-a/has-emergency", "1", "emergency", 2),
        ("actual-a/is-primary", "0", "primary-not-yet", 1),
        ("actual-b/is-primary", "1", "more-primaries", 2),
        ("actsize-b", "4096", "disk-small", 2),
        ("primary", "(none)", "no-primary", 1),
        ("version-000000001-b", f"{D2},{LOG1},8192:", "split-brain", 2),
        ("actual-b/msg-err-resource", "1.0 2.0 bad", "message", 2),
        ("actual-b/msg-err-fetch", "1.0 2.0 no route", "message", 1),
        ("actual-b/msg-wrn-x", "1.0 2.0 odd", "message", 1),
    ],
)
def test_each_state_has_its_level(tree: SmallTree, rel: str, value: str, code: str, level: int) -> None:
    """One entry changes, and the reason is named with its level; where a switch is off, the command is."""
    tree.put(f"resource-data/{rel}", value)
    found = pictured(tree)
    assert codes(found)[code] == level and found["level"] >= level
    if value == "0" and rel.startswith("todo-"):
        assert "on b: marsadm " in next(note["do"] for note in found["reasons"] if note["code"] == code)


def test_marsd_down_and_silent(tree: SmallTree) -> None:
    """Not known comes before all else; nobody has listened, so nobody is called dead."""
    tree.put("actual-b/alive", "1", NOW - 1000 * S)
    for state, code in ((DOWN, "daemon-down"), (SILENT, "daemon-silent")):
        found = pictured(tree, daemon=Daemon(state))
        assert found["level"] == 3 and found["reasons"][0]["code"] == code and "peer-silent" not in codes(found)
        assert found["cluster"]["hosts"]["b"]["alive"] is None
    assert pictured(tree, daemon=Daemon(UNASKED))["level"] == 2  # a says that it lives
    tree.put("actual-a/alive", "0")
    assert pictured(tree, daemon=Daemon(UNASKED))["reasons"][0]["code"] == "daemon-down"
    assert pictured(SmallTree(Path(tree.paths.mars_dir).parent / "none"))["reasons"][0]["code"] == "no-cluster"


@pytest.mark.parametrize(("age", "level"), [(20, 0), (40, 1), (200, 2)])
def test_a_silent_host(tree: SmallTree, age: int, level: int) -> None:
    """--peer decides; what it did last is called silent, its rates are none, and is said once."""
    tree.put("actual-b/alive", "1", NOW - age * S)
    tree.put("resource-data/actual-b/amount-file_rate", "100")
    tree.put("resource-data/replay-b", f"{LOG1},4096,0")
    found = pictured(tree, limits=Limits(lag=Limit()))
    assert codes(found).get("peer-silent", 0) == level == found["level"]
    node = found["resources"]["data"]["nodes"]["b"]
    states = (node["replay"]["state"], node["fetch"]["state"], node["fetch"]["rate"])
    assert states == (("silent", "silent", 0) if level else ("running", "done", 102400))


def test_lag_and_rest(tree: SmallTree) -> None:
    """Seconds since the missing log was written, read from the log where that can be; limits make levels."""
    tree.put("resource-data/replay-b", f"{LOG1},4096,0")
    asked = []

    def when(resource: str, at: LogPos, end: int) -> int:
        asked.append((resource, str(at), end))
        return NOW - 90 * S

    found = pictured(tree, when=when)
    node = found["resources"]["data"]["nodes"]["b"]
    assert asked == [("data", f"{LOG1},4096", 8192)] and node["lag"] == {"seconds": 90.0, "exact": True}
    assert (node["replay"]["rest"], node["replay"]["ready"], node["fetch"]["rest"]) == (4096, 4096, 0)
    assert codes(found) == {"lag": 1}
    assert codes(pictured(tree, when=when, limits=Limits(lag=Limit(10, 80)))) == {"lag": 2}
    assert codes(pictured(tree, when=when, limits=Limits(lag=Limit(), rest=Limit(1000, 4096)))) == {"replay": 2}
    assert not pictured(tree)["resources"]["data"]["nodes"]["b"]["lag"]["exact"]
    tree.put("resource-data/actual-a/is-emergency", "1")  # the primary writes no log: nobody knows how far b is behind
    assert pictured(tree)["resources"]["data"]["nodes"]["b"]["lag"] == {"seconds": None, "exact": False}


def test_lag_is_unknown_while_the_primary_is_not_heard(tree: SmallTree) -> None:
    """b has all that is known of; what a may have written since nobody here knows. What is known to be missing counts
    all the same."""
    tree.put("resource-data/replay-b", f"{LOG1},8192,0")

    def lag(since: float | None, **known: Any) -> Any:
        seen = Seen("b", daemon=Daemon(RUNNING, "1.0"), devices=frozenset(), **known)
        heard = {} if since is None else {"a": since}
        return picture(view_of(tree, "b", heard), NOW, seen)["resources"]["data"]["nodes"]["b"]["lag"]

    assert lag(1.0) == {"seconds": 0.0, "exact": True}
    assert lag(None) == lag(300.0) == {"seconds": None, "exact": False}
    tree.put("resource-data/replay-b", f"{LOG1},4096,0")
    assert lag(300.0, when=lambda *where: NOW - 90 * S) == {"seconds": 90.0, "exact": True}


def test_amounts_across_logs(tree: SmallTree) -> None:
    """b replays log 1, log 2 is there: what is missing is the rest of 1 and all of 2."""
    for host in ("a", "b"):
        tree.put(f"resource-data/version-000000002-{host}", f"{D2},{LOG2},12288:{D1},{LOG1},8192")
    tree.put("resource-data/replay-a", f"{LOG2},12288,0")
    tree.put("resource-data/replay-b", f"{LOG1},4096,512")
    found = pictured(tree, logs={"data": (LogFile(1, "a", 9000, 1.0), LogFile(2, "a", 13000, 1.0))})
    resource = found["resources"]["data"]
    replay, fetch = resource["nodes"]["b"]["replay"], resource["nodes"]["b"]["fetch"]
    assert (replay["done"], replay["total"], replay["rest"], replay["percent"]) == (4096, 20480, 16384, 20.0)
    assert (replay["log"], fetch["log"], replay["dirty"]) == (1, 2, 512)
    assert resource["newest"] == {"log": 2, "producer": "a", "pos": 12288}
    assert resource["logs"] == {"count": 2, "bytes": 22000, "deletable_bytes": 0, "needed_from": 1, "held_by": ["b"]}
    tree.put("resource-data/replay-b", f"{LOG2},0,0")
    found = pictured(tree, logs={"data": (LogFile(1, "a", 9000, 1.0), LogFile(2, "a", 13000, 1.0))})
    assert found["resources"]["data"]["logs"]["deletable_bytes"] == 9000


def test_sync(tree: SmallTree) -> None:
    """How far, how fast, how long; paused; waiting with the reason; not consistent yet."""
    tree.put("resource-data/syncstatus-b", str(SIZE // 4))
    tree.put("resource-data/actual-b/is-syncing", "1")
    tree.put("resource-data/actual-b/amount-sync_rate", str(1 << 10))
    tree.put("resource-data/actual-b/msg-inf-sync", "1.0 1.0 syncing 'data' from a")
    sync = pictured(tree)["resources"]["data"]["nodes"]["b"]["sync"]
    assert (sync["state"], sync["percent"], sync["seconds"], sync["source"]) == ("running", 25.0, 768, "a")
    tree.put("resource-data/todo-b/sync", "0")
    assert codes(pictured(tree)) == {"sync-paused": 1}
    tree.put("resource-data/todo-b/sync", "1")
    tree.put("resource-data/actual-b/is-syncing", "0")
    tree.put("resource-data/actual-b/msg-inf-why", "1.0 1.0 replay: r; sync: waits for a free slot (sync limit)")
    found = pictured(tree)
    assert codes(found) == {"sync-waits": 1} and "free slot" in found["reasons"][0]["text"]
    tree.put("resource-data/syncstatus-b", str(SIZE))
    tree.put("resource-data/syncpos-b", f"{LOG1},999424,0,{D3}")
    node = pictured(tree)["resources"]["data"]["nodes"]["b"]
    assert not node["consistent"] and [note["code"] for note in node["notes"]] == ["not-consistent"]


def test_one_resource(tree: SmallTree) -> None:
    """With --resource only its members and this host are judged; a host without replica is remote."""
    tree.put("ips/ip-c", "10.0.0.3")
    tree.put("resource-more/size", "4096")
    tree.put("resource-more/primary", "(none)")
    found = pictured(tree, only="data")
    assert list(found["resources"]) == ["data"] and found["level"] == 0
    assert codes(pictured(tree)) == {"peer-silent": 2, "no-primary": 1}
    assert pictured(tree, "c")["resources"]["data"]["modus"] == "remote"
    tree.put("resource-data/data-b", DELETED)
    assert pictured(tree)["resources"]["data"]["modus"] == "standalone"


@pytest.mark.parametrize(
    ("level", "free", "expected"), [("0", 50, 0), ("1", 50, 1), ("2", 50, 2), ("0", 15, 1), ("0", 5, 2)]
)
def test_space(tree: SmallTree, level: str, free: int, expected: int) -> None:
    """By the emergency level, and by percent where --space says so."""
    tree.put("actual-a/emergency", level)
    found = pictured(tree, free_bytes=free, total_bytes=100, limits=Limits(space=Limit(20, 10)))
    assert codes(found).get("space", 0) == expected


def test_a_dead_host_is_told_once(tree: SmallTree) -> None:
    """c is down: it is critical as itself; what a and b say about their lines to it is no alarm. A line that is broken
    between two that are heard of is a warning at who says so, never critical."""
    tree.put("ips/ip-c", "10.0.0.3")
    tree.put("actual-c/alive", "1", NOW - 600 * S)
    for host in "ab":
        tree.put(f"actual-{host}/unreachable", "c=refused")
        tree.put(f"actual-{host}/msg-err-stall-connect", "1.0 1.0 c (10.0.0.3:7777): nobody listens there")

    def levels() -> dict[str, list[int]]:
        found = pictured(tree)["cluster"]["hosts"]
        return {host: [note["level"] for note in one["notes"]] for host, one in found.items()}

    assert levels() == {"a": [0], "b": [0], "c": [2]}
    tree.put("actual-b/unreachable", "a=timeout,c=refused")
    assert levels() == {"a": [0], "b": [1], "c": [2]}
    tree.put("actual-c/alive", "1", NOW - S)
    assert levels() == {"a": [1], "b": [1], "c": []}
