"""Why something stands still: the table of causes row by row, the watch, and what is said in the tree."""
from __future__ import annotations

import errno
from pathlib import Path
from types import SimpleNamespace

import pytest

from marsx.base.errors import DamagedError, MarsError
from marsx.base.position import LogPos
from marsx.daemon import stall
from marsx.daemon.stall import CAUSES, NO_SLOT, Clues, Holder, Stalls, Watch, judge, meaning
from marsx.peer.wire import PeerError, Reason
from marsx.tree import paths
from marsx.tree.view import View
from marsx.volume.env import NoRoomError

D = "d" * 32
FULL = OSError(errno.ENOSPC, "No space left on device")


def failed(reason: Reason) -> PeerError:
    return PeerError(reason, f"a: {reason}")


ROWS = [
    (Clues(room="no room for positions", error=failed(Reason.MISSING)), "no-room", True),
    (Clues(error=FULL), "no-room", True),
    (Clues(error=NoRoomError("x: full")), "no-room", True),
    (Clues(missing="log 3 is gone", damage="log 3 is gone", trouble="log 3 is gone"), "log-missing", True),
    (Clues(error=failed(Reason.MISSING), why="?"), "log-missing", True),
    (Clues(damage="log 3 is damaged", trouble="log 3 is damaged"), "log-corrupt", True),
    (Clues(error=DamagedError("not a valid log")), "log-corrupt", True),
    (Clues(trouble="the data device fails"), "stopped", True),
    (Clues(error=failed(Reason.SPLIT), limits="10 KiB/s"), "split-brain", True),
    (Clues(error=failed(Reason.PROTO), why="no connected host offers this log"), "version", True),
    (Clues(error=failed(Reason.UUID)), "peer-refuses", True),
    (Clues(error=failed(Reason.SILENT), why="no connected host offers this log"), "peer-silent", True),
    (Clues(error=failed(Reason.REFUSED)), "peer-down", True),
    (Clues(error=failed(Reason.FAILED)), "peer-failed", True),
    (Clues(error=failed(Reason.BEHIND)), "source-behind", False),
    (Clues(why=NO_SLOT + " (sync limit)", limits="10 KiB/s"), "no-slot", False),
    (Clues(holders=(Holder("b", "member-paused", "b is paused"), Holder("c", "member-dead", "c is dead"))),
     "member-dead", True),
    (Clues(holders=(Holder("b", "member-stuck", "b"),)), "member-stuck", True),
    (Clues(holders=(Holder("b", "member-paused", "b"),)), "member-paused", False),
    (Clues(limits="10 KiB/s", source="a"), "rate-limit", False),
    (Clues(why="a is not primary yet", source="a"), "waits", False),
    (Clues(after="sync"), "after", False),
    (Clues(error=MarsError("no such thing")), "failed", True),
    (Clues(error=OSError(errno.EIO, "Input/output error")), "failed", True),
    (Clues(source="a"), "peer-silent", True),
    (Clues(disk="/dev/x", after="sync"), "after", False),
    (Clues(disk="/dev/x"), "device", True),
    (Clues(), "unknown", True),
]


@pytest.mark.parametrize(("clues", "code", "urgent"), ROWS)
def test_the_table(clues, code, urgent):
    """The first row that fits; the text names what is wrong."""
    cause, text = judge(clues)
    assert (cause.code, cause.urgent) == (code, urgent) and text


def test_every_row_and_every_reason_is_reached():
    """No row is dead, no reason of a connection is without a meaning, and each code is a legal fact."""
    rows = {code for _, code, _ in ROWS}
    assert rows == {cause.code for cause in CAUSES}
    assert {meaning(failed(reason)) for reason in Reason} <= rows
    for code in rows:
        rel = paths.actual("r", "a", "stalled")
        assert not paths.value_problem(paths.parse(rel), ",".join(f"{act}={code}" for act in stall.ACTIVITIES))


def test_watch():
    """Stands still since the mark changed last; what has nothing to do any more is forgotten; 0 = never."""
    now = [100.0]
    watch = Watch(lambda: now[0])
    assert watch.stuck({"fetch": 1, "sync": 1}, 60) == {}
    now[0] = 130.0
    assert watch.stuck({"fetch": 2, "sync": 1}, 60) == {}
    now[0] = 160.0
    assert watch.stuck({"fetch": 2, "sync": 1}, 60) == {"sync": 60.0}
    assert watch.stuck({"fetch": 2, "sync": 1}, 0) == {}
    now[0] = 190.0
    assert watch.stuck({"fetch": 2}, 60) == {"fetch": 60.0}
    assert watch.stuck({"sync": 1, "fetch": 2}, 60) == {"fetch": 60.0}, "sync had nothing to do meanwhile"


# ---- a secondary b of a, c ----

class Tree(dict):
    """Names and values; b's logs 1 to 3 are here, all have replayed up to the end of 3."""

    def __init__(self, **changes: str) -> None:
        super().__init__({"resource-r/size": "1000", "resource-r/primary": "a"})
        for host in "abc":
            self |= {f"resource-r/data-{host}": "/dev/x", f"resource-r/syncstatus-{host}": "1000",
                     f"resource-r/replay-{host}": f"{LogPos(3, 'a', 8192)},0",
                     f"resource-r/version-000000003-{host}": f"{D},{LogPos(3, 'a', 8192)}:{D},{LogPos(2, 'a', 4096)}"}
            self |= {paths.todo("r", host, switch): "1" for switch in paths.SWITCHES}
        self |= {key: value for key, value in changes.items()}

    def put(self, rel: str, value: str) -> None:
        assert not paths.value_problem(paths.parse(rel), value)
        self[rel] = value

    def get(self, rel: str) -> str:
        return super().get(rel, "")

    def log_files(self, resource):
        return [SimpleNamespace(nr=nr, producer="a") for nr in (1, 2, 3)]


class Lab:
    """Stalls of one runner of host b, made of plain values."""

    def __init__(self) -> None:
        self.now, self.tree, self.said = 1000.0, Tree(), {}
        self.settings = {"stuck_seconds": 60, "traffic_tuning/client_role_traffic_ratelimit_kb": 0,
                         "traffic_tuning/server_role_traffic_ratelimit_kb": 0}
        self.reachable, self.heard = {"a", "c"}, {"a": 0.1, "c": 0.1}
        site = SimpleNamespace(
            host="b", store=self.tree, view=lambda: View([(k, v, 1) for k, v in self.tree.items()]), say=self.say,
            reachable=lambda: self.reachable, heard=lambda: self.heard,
            settings=SimpleNamespace(get=self.settings.__getitem__))
        at = LogPos(3, "a", 8192)
        activity = lambda: SimpleNamespace(running=True, error=None, key="a")  # noqa: E731
        self.consumer = SimpleNamespace(at=at, copy=SimpleNamespace(at=at), fetch=activity(), sync=activity(),
                                        count=SimpleNamespace(total={}), trouble="")
        self.runner = SimpleNamespace(
            site=site, resource="r", trouble="", replay_trouble="", disk_fd=5, device_path="/dev/x",
            producer=None, consumer=self.consumer, why={},
            publisher=SimpleNamespace(lacking=""), back=SimpleNamespace(damage=None))
        self.errors: dict[str, Exception] = {}
        self.stalls = Stalls(SimpleNamespace(
            settings=site.settings, runners={"r": self.runner}, exchange=SimpleNamespace(errors=self.errors),
            store=self.tree, host="b", site=site), lambda: self.now)

    def say(self, resource, key, text):
        rel = paths.message(resource, "b", key)
        if text or rel in self.tree:
            self.tree[rel] = f"1.0 1.0 {text}" if text else "OK"

    def after(self, seconds: float) -> str:
        """`stalled` after so much time in which nothing moved."""
        end, step = self.now + seconds, max(1.0, seconds / 100)
        self.stalls.tick()
        while self.now < end:
            self.now += step
            self.stalls.tick()
        return self.tree.get(paths.actual("r", "b", "stalled"))

    def message(self, key: str, resource: str = "r") -> str:
        return self.tree.get(paths.message(resource, "b", key)).removeprefix("1.0 1.0 ")


def test_nothing_to_do_is_no_stall():
    lab = Lab()
    assert lab.after(1e6) == "" and not [rel for rel in lab.tree if "stall" in rel]


@pytest.mark.parametrize("switch", ["attach", "connect", "sync", "allow-replay"])
def test_what_is_switched_off_is_no_stall(switch):
    lab = Lab()
    lab.tree |= {"resource-r/syncstatus-b": "10", paths.todo("r", "b", switch): "0"}
    lab.consumer.copy.at, lab.reachable = LogPos(3, "a", 4096 * 5), set()
    found = lab.after(61)
    what = {"connect": "fetch", "sync": "sync", "allow-replay": "replay"}.get(switch, "")
    assert what + "=" not in found and (found == "") == (switch == "attach")


def test_fetch_stands_still_and_goes_on():
    """Said after the time, with the cause; taken back when it moves."""
    lab = Lab()
    lab.tree["resource-r/version-000000003-a"] = f"{D},{LogPos(3, 'a', 40960)}:"
    assert lab.after(59) == ""
    assert lab.after(6) == "fetch=peer-silent" and "a is connected but sends nothing" in lab.message("err-stall-fetch")
    lab.settings["traffic_tuning/client_role_traffic_ratelimit_kb"] = 1
    assert lab.after(6) == "fetch=rate-limit" and lab.message("err-stall-fetch") == "OK"
    assert "1 KiB/s" in lab.message("wrn-stall-fetch")
    lab.consumer.copy.at = lab.consumer.at = LogPos(3, "a", 12288)
    assert lab.after(6) == "-" and lab.message("wrn-stall-fetch") == "OK"


def test_the_limit_of_the_source_is_known_here():
    lab = Lab()
    lab.tree |= {"resource-r/syncstatus-b": "10", "actual-a/msg-inf-rate-limit": "1.0 1.0 lets 3 KiB/s out"}
    assert lab.after(61) == "sync=rate-limit" and "a: lets 3 KiB/s out" in lab.message("wrn-stall-sync")


def test_more_log_at_a_host_that_cannot_be_reached_is_no_stall_of_the_fetch():
    """It is named as what it is: a host that cannot be reached."""
    lab = Lab()
    lab.tree["resource-r/version-000000003-c"] = f"{D},{LogPos(3, 'a', 40960)}:"
    lab.reachable, lab.errors["c"] = {"a"}, failed(Reason.REFUSED)
    assert lab.after(61) == "" and lab.tree.get("actual-b/unreachable") == "c=refused"
    assert lab.message("err-stall-connect", "") == "a: refused"
    lab.reachable.add("c")
    assert lab.after(70) == "fetch=peer-silent"
    lab.errors.clear()
    lab.after(6)
    assert lab.tree.get("actual-b/unreachable") == "-" and lab.message("err-stall-connect", "") == "OK"


def test_nobody_can_be_reached():
    lab = Lab()
    lab.reachable, lab.runner.why = set(), {"fetch": "no connected host offers this log"}
    lab.consumer.fetch.running = False
    lab.errors |= {"a": failed(Reason.SILENT), "c": failed(Reason.REFUSED)}
    assert lab.after(61) == "fetch=peer-silent"


def test_sync_waits_for_a_slot():
    lab = Lab()
    lab.tree["resource-r/syncstatus-b"] = "10"
    lab.consumer.sync.running, lab.runner.why = False, {"sync": NO_SLOT + " (sync limit)"}
    assert lab.after(61) == "sync=no-slot" and "set-sync-limit" in lab.message("wrn-stall-sync")
    lab.consumer.count.total["sync"] = (4096, 1)
    assert lab.after(6) == "-"


def test_replay_behind_a_sync():
    lab = Lab()
    lab.tree["resource-r/syncstatus-b"] = "10"
    lab.consumer.sync.error = failed(Reason.TIMEOUT)
    lab.consumer.copy.at = LogPos(3, "a", 40960)
    assert lab.after(61) == "replay=after,sync=peer-silent"


def test_stopped_by_a_damaged_log():
    lab = Lab()
    lab.runner.trouble = "log 3 is damaged at 4096"
    assert lab.after(61) == "resource=stopped"
    lab.runner.back.damage = SimpleNamespace(header=object(), pos=4096, unreadable=-1)
    assert lab.after(6) == "resource=log-corrupt"
    lab.runner.back.damage = SimpleNamespace(header=None, pos=0, unreadable=-1)
    assert lab.after(6) == "resource=log-missing"


@pytest.mark.parametrize(("changes", "heard", "code"), [
    ({paths.todo("r", "c", "allow-replay"): "0"}, {}, "delete=member-paused"),
    ({paths.todo("r", "c", "attach"): "0"}, {}, "delete=member-paused"),
    ({}, {"c": 31.0}, "delete=member-dead"),
    ({"resource-r/actual-c/stalled": "fetch=peer-down"}, {}, "delete=member-stuck"),
])
def test_a_member_holds_logs_back(changes, heard, code):
    """c still needs log 1: named on b, which does not."""
    lab = Lab()
    lab.tree |= {"resource-r/replay-c": f"{LogPos(1, 'a', 4096)},0", **changes}
    lab.heard |= heard
    assert lab.after(61) == code
    text = lab.message("wrn-stall-delete" if code.endswith("paused") else "err-stall-delete")
    assert "c " in text and ("fetch: peer-down" in text) == ("stuck" in code)
    lab.tree["resource-r/replay-c"] = f"{LogPos(1, 'a', 8192)},0"
    assert lab.after(6) == "-", "it gets on"


def test_the_own_need_holds_nobody_back():
    """b itself needs log 1 still, or all need the same."""
    for hosts in ("b", "bc", "abc"):
        lab = Lab()
        lab.tree |= {f"resource-r/replay-{host}": f"{LogPos(1, 'a', 4096)},0" for host in hosts}
        assert "delete" not in lab.after(61), hosts


def test_a_primary_without_room_and_a_disk_that_takes_nothing():
    lab = Lab()
    state = {"stalled_ns": 77, "writeback_rest": 0, "nr": 3, "appended": 8192}
    lab.runner.consumer = None
    lab.runner.producer = SimpleNamespace(primary=SimpleNamespace(volume=SimpleNamespace(state=state)))
    assert lab.after(61) == "write=no-room"
    state |= {"stalled_ns": 0, "writeback_rest": 4096}
    assert lab.after(61 + 5) == "writeback=device"
    state |= {"writeback_rest": 8192 - 4096, "appended": 8192 * 2}
    assert lab.after(50) == "-", "the disk position has moved"


def test_designated_and_not_primary():
    lab = Lab()
    lab.tree["resource-r/primary"] = "b"
    lab.runner.why = {"primary": "a has not granted the right to write to this host"}
    assert lab.after(61) == "primary=waits" and "a has not granted" in lab.message("wrn-stall-primary")


def test_a_resource_that_cannot_be_looked_at_does_not_hide_the_others(expect_messages):
    expect_messages("nobody watches")
    lab = Lab()
    lab.stalls._worker.runners = {"bad": SimpleNamespace(resource="bad", site=None), "r": lab.runner}
    lab.tree["resource-r/syncstatus-b"] = "10"
    assert lab.after(61) == "sync=peer-silent"


def test_documented():
    """docs/monitoring.md says of each activity and cause what it means."""
    page = (Path(__file__).resolve().parents[3] / "docs/monitoring.md").read_text(encoding="utf-8")
    for word in (*stall.ACTIVITIES, *(cause.code for cause in CAUSES)):
        assert f"`{word}`" in page, word
