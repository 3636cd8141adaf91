"""The keeper with a front end and a worker in memory: order, time-outs, restarts, what survives, what is refused.

No root, no device: the front end below makes pipes. Jobs run in real forked children, the worker is a real child that
waits.
"""
from __future__ import annotations

import errno
import os
import signal
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from marsx.daemon import keeper as keeper_module
from marsx.daemon import keeperjobs, runfile
from marsx.daemon.keeper import Keeper, RestartPolicy, Worker
from marsx.device.frontend import Attached, Channel

PATIENCE_S = 20.0


class FakeFront:
    """Does what files in a directory say: `hold-OP` makes OP wait until it is gone, `fail-OP` makes it fail."""

    name = "fake"

    def __init__(self, top: Path) -> None:
        self.top = top

    def _obey(self, what: str) -> None:
        (self.top / f"did-{what}").touch()
        while (self.top / f"hold-{what}").exists():
            time.sleep(0.005)
        if (self.top / f"die-{what}").exists():
            os.kill(os.getpid(), signal.SIGKILL)
        if (self.top / f"fail-{what}").exists():
            raise OSError(errno.EIO, f"{what} failed")

    def create(self, device: str, clones: int) -> Channel:
        self._obey("create")
        return Channel([os.open(os.devnull, os.O_RDONLY) for _ in range(clones)], os.open(os.devnull, os.O_RDONLY))

    def attach(self, device: str, mount: int, size: int, block_size: int, announce: Callable[[int], None]) -> Attached:
        os.fstat(mount)
        announce(4700)
        (self.top / "state-at-announce").write_text(str(runfile.read_state(str(self.top))["bound"]))
        self._obey("attach")
        return Attached(4700, 39, 2)

    def detach(self, device: str, attached: Attached, patience: float) -> list[str]:
        self._obey("detach")
        return ["mounted on /x"] if (self.top / "busy").exists() else []

    def forget(self, device: str, number: int) -> None:
        (self.top / "did-forget").touch()

    def resize(self, device: str, attached: Attached, size: int) -> None:
        self._obey("resize")

    def users(self, device: str, attached: Attached) -> list[str]:
        return ["open in process 1 (init)"]


class HandKeeper(Keeper):
    """The keeper, turned by hand, whose worker is a child that only waits; the test speaks in its place."""

    line: socket.socket

    def _spawn(self) -> None:
        ours, self.line = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.setblocking(False)
        self.line.setblocking(False)
        pid = os.fork()
        if pid == 0:
            self.line.close()
            while True:
                signal.pause()
        self.generation += 1
        self.worker = Worker(pid, ours, self.generation, time.monotonic())
        self._write_state()

    def until(self, what: Callable[[], Any]) -> Any:
        deadline = time.monotonic() + PATIENCE_S
        while not (got := what()):
            assert time.monotonic() < deadline, "the keeper does not get there"
            self._turn_briefly()
        return got

    def _turn_briefly(self) -> None:
        pause = self._pause_ms
        self._pause_ms = lambda: min(pause(), 20)  # type: ignore[method-assign]
        try:
            self._turn()
        finally:
            self._pause_ms = pause  # type: ignore[method-assign]

    def say(self, op: str, id: int = 1, **args: Any) -> None:
        keeperjobs.send(self.line, {"op": op, "id": id, **args})

    def heard(self) -> tuple[dict[str, Any], list[int]] | None:
        try:
            message, fds = keeperjobs.receive(self.line)
        except BlockingIOError:
            return None
        return message or {}, fds

    def ask(self, op: str, id: int = 1, **args: Any) -> dict[str, Any]:
        """Request and answer; the descriptors are counted and closed."""
        self.say(op, id, **args)
        answer, fds = self.until(self.heard)
        assert answer.pop("id") == id
        for fd in fds:
            os.close(fd)
        return {**answer, "fds": len(fds)}

    def kill_worker(self, status: int = -9) -> None:
        assert self.worker
        old = self.worker.pid
        os.kill(old, signal.SIGKILL)
        self.until(lambda: not self.worker or self.worker.pid != old)


@pytest.fixture
def keeper(tmp_path: Path) -> Iterator[HandKeeper]:
    handlers = {number: signal.getsignal(number) for number in keeper_module._SIGNALS}
    told: list[str] = []
    (tmp_path / "dev").mkdir()
    one = HandKeeper(str(tmp_path), str(tmp_path / "dev"), ["worker"], FakeFront(tmp_path), tell=told.append)
    one.told = told  # type: ignore[attr-defined]
    one._watch_signals()
    one._clear_leftovers()
    try:
        one.until(lambda: one.worker)
        yield one
    finally:
        for hold in tmp_path.glob("hold-*"):
            hold.unlink()
        if one.worker:
            os.kill(one.worker.pid, signal.SIGKILL)
            os.waitpid(one.worker.pid, 0)
            one.worker.close()
        one.line.close()
        for job in one.jobs.values():
            os.waitpid(job.pid, 0)
            job.on_readable()
            close_job(job)
        one.held.close_devices()
        for fd in (signal.set_wakeup_fd(-1), one._wakeup):
            os.close(fd)
        for number, handler in handlers.items():
            signal.signal(number, handler)


def close_job(job: keeperjobs.Job) -> None:
    """End what a test left at work."""
    if job.sock:
        job.sock.close()
    for fd in job.fds:
        os.close(fd)


def attach(keeper: HandKeeper, name: str = "data") -> None:
    assert keeper.ask("dev-create", name=name, clones=3) == {"ok": True, "fds": 3}
    assert keeper.ask("dev-attach", name=name, size=1 << 20, block_size=512)["loop"] == "/dev/loop4700"


# ---- restart policy --------------------------------------------------------------------------------------------------

def test_delays_double_up_to_the_longest() -> None:
    policy = RestartPolicy()
    delays = [policy.died(now * 100.0, 1.0) for now in range(9)]
    assert delays == [0.05, 0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 5.0, 5.0]


def test_a_long_life_starts_anew() -> None:
    policy = RestartPolicy()
    for now in range(5):
        policy.died(now * 100.0, 1.0)
    assert policy.died(1000.0, RestartPolicy.LONG_LIFE_S) == 0.05


def test_a_worker_that_dies_at_once_each_time_is_given_up() -> None:
    """With the delays the policy itself gives, and no life in between, the end is reached."""
    policy, now, deaths = RestartPolicy(), 0.0, 0
    while (delay := policy.died(now, 0.0)) is not None:
        now, deaths = now + delay, deaths + 1
        assert deaths < 100, "an endless crash loop"
    assert deaths == RestartPolicy.DEATHS - 1
    policy.forget()
    assert policy.died(now, 0.0) == 0.05


def test_rare_deaths_are_never_too_many() -> None:
    policy = RestartPolicy()
    assert all(policy.died(now * 10.0, 9.0) is not None for now in range(200))


# ---- requests --------------------------------------------------------------------------------------------------------

def test_a_device_from_create_to_drop(keeper: HandKeeper) -> None:
    hello = keeper.ask("hello")
    assert (hello["devices"], hello["disks"], hello["first"]) == ([], [], True)
    attach(keeper)
    (device,) = keeper.ask("hello")["devices"]
    assert (device["size"], device["block_size"], device["clones"], device["restart"]) == (1 << 20, 512, 3, 0)
    assert keeper.ask("dev-fds", name="data")["fds"] == 3
    assert keeper.ask("dev-resize", name="data", size=2 << 20)["ok"]
    assert keeper.ask("dev-users", name="data")["count"] == 1
    assert keeper.ask("dev-drop", name="data")["errno"] == errno.EBUSY
    assert keeper.ask("dev-detach", name="data")["ok"]
    assert keeper.ask("dev-drop", name="data")["ok"]
    assert keeper.ask("dev-fds", name="data")["errno"] == errno.ENODEV


def test_number_is_on_record_before_anything_is_bound(keeper: HandKeeper, tmp_path: Path) -> None:
    """A keeper killed right after LOOP_CONFIGURE: the next one must know where to look."""
    attach(keeper)
    assert (tmp_path / "state-at-announce").read_text() == "{'4700': 'data'}"


def test_mount_is_held_until_attached_and_not_longer(keeper: HandKeeper) -> None:
    """Facts 0: a descriptor of the file system that is kept would keep it alive for ever."""
    keeper.ask("dev-create", name="data", clones=1)
    assert keeper.held.devices["data"].mount >= 0
    keeper.ask("dev-attach", name="data", size=512, block_size=512)
    assert keeper.held.devices["data"].mount == -1


def test_busy_detach_changes_nothing(keeper: HandKeeper, tmp_path: Path) -> None:
    """Rule 20: refused, named, and the device stays attached."""
    attach(keeper)
    (tmp_path / "busy").touch()
    assert keeper.ask("dev-detach", name="data")["busy"] == ["mounted on /x"]
    assert keeper.held.attached() == ["data"]


@pytest.mark.parametrize(("op", "args", "code"), [
    ("dev-create", {"name": "../etc", "clones": 1}, errno.EINVAL),
    ("dev-create", {"name": "data", "clones": 0}, errno.EINVAL),
    ("dev-create", {"clones": 1}, errno.EINVAL),
    ("dev-attach", {"name": "other", "size": 512}, errno.ENODEV),
    ("disk-open", {"path": "x"}, errno.EINVAL),
    ("disk-open", {"path": "/dev/null"}, errno.ENOTBLK),
    ("disk-close", {"path": "/dev/null"}, errno.EBADF),
    ("format-everything", {}, errno.ENOSYS),
    ([1], {}, errno.ENOSYS),
])
def test_bad_requests_are_refused(keeper: HandKeeper, op: Any, args: dict[str, Any], code: int) -> None:
    assert keeper.ask(op, **args)["errno"] == code


def test_failed_create_and_attach_can_be_tried_again(keeper: HandKeeper, tmp_path: Path) -> None:
    (tmp_path / "fail-create").touch()
    assert keeper.ask("dev-create", name="data", clones=1)["errno"] == errno.EIO
    (tmp_path / "fail-create").unlink()
    keeper.ask("dev-create", name="data", clones=1)
    assert keeper.ask("dev-create", name="data", clones=1)["errno"] == errno.EEXIST
    (tmp_path / "fail-attach").touch()
    assert keeper.ask("dev-attach", name="data", size=512, block_size=512)["errno"] == errno.EIO
    (tmp_path / "fail-attach").unlink()
    assert keeper.ask("dev-attach", name="data", size=512, block_size=512)["ok"]


def test_attach_killed_half_way_is_cleared_before_the_next(keeper: HandKeeper, tmp_path: Path) -> None:
    """The child died after it announced a number: a loop device may be bound, so detach clears it before a drop."""
    keeper.ask("dev-create", name="data", clones=1)
    (tmp_path / "die-attach").touch()
    assert "signal 9" in keeper.ask("dev-attach", name="data", size=512, block_size=512)["error"]
    assert keeper.ask("dev-drop", name="data")["errno"] == errno.EBUSY
    assert not (tmp_path / "did-forget").exists()
    assert keeper.ask("dev-detach", name="data")["ok"]
    assert (tmp_path / "did-forget").exists()
    assert keeper.ask("dev-drop", name="data")["ok"]


def test_one_child_per_device_in_order_others_go_on(keeper: HandKeeper, tmp_path: Path) -> None:
    """A hanging attach holds up its own device only; what was asked later for it comes later."""
    keeper.ask("dev-create", name="data", clones=1)
    hold = tmp_path / "hold-attach"
    hold.touch()
    keeper.say("dev-attach", 10, name="data", size=512, block_size=512)
    keeper.say("dev-users", 11, name="data")
    keeper.until(lambda: (tmp_path / "did-attach").exists())
    assert keeper.ask("dev-create", 12, name="other", clones=1)["ok"]
    assert keeper.ask("dev-drop", 13, name="data")["errno"] == errno.EBUSY
    hold.unlink()
    ids = [keeper.until(keeper.heard)[0]["id"] for _ in range(2)]
    assert ids == [10, 11]


def test_time_out_answers_and_the_late_result_still_counts(keeper: HandKeeper, tmp_path: Path) -> None:
    """The keeper never waits: the worker hears ETIMEDOUT, the child goes on, and its end is applied."""
    keeper.ask("dev-create", name="data", clones=1)
    hold = tmp_path / "hold-attach"
    hold.touch()
    answer = keeper.ask("dev-attach", name="data", size=512, block_size=512, timeout=0.05)
    assert answer["errno"] == errno.ETIMEDOUT
    assert keeper.held.attached() == []
    hold.unlink()
    keeper.until(lambda: keeper.held.attached() == ["data"])
    assert keeper.heard() is None, "an answer came twice"


# ---- the worker's death ----------------------------------------------------------------------------------------------

def test_new_worker_only_after_the_old_one_is_reaped(keeper: HandKeeper) -> None:
    """Rule 3: end of the line is not the end of the process; nothing is started beside it."""
    keeper.ask("ready")
    attach(keeper)
    old = keeper.worker
    assert old
    keeper.line.close()
    for _ in range(20):
        keeper._turn_briefly()
    assert keeper.worker is old and old.sock is None
    os.kill(old.pid, signal.SIGKILL)
    keeper.until(lambda: keeper.worker and keeper.worker is not old)
    (device,) = keeper.ask("hello")["devices"]
    assert device["restart"] == 1
    assert keeper.ask("dev-fds", name="data")["fds"] == 3


def test_answers_of_a_dead_workers_requests_are_not_given_to_the_next(keeper: HandKeeper, tmp_path: Path) -> None:
    keeper.ask("ready")
    attach(keeper)
    hold = tmp_path / "hold-resize"
    hold.touch()
    keeper.say("dev-resize", 7, name="data", size=1 << 21)
    keeper.say("dev-detach", 8, name="data")
    keeper.until(lambda: (tmp_path / "did-resize").exists())
    line = keeper.line
    keeper.kill_worker()
    line.close()
    keeper.until(lambda: keeper.worker)
    hold.unlink()
    keeper.until(lambda: keeper.held.devices["data"].size == 1 << 21)
    keeper.until(lambda: not keeper._is_busy(("dev", "data")))
    assert keeper.ask("hello", 7)["devices"][0]["state"] == "attached", "a dead worker's waiting detach was carried out"
    assert keeper.heard() is None


def test_death_before_ready_is_final_unless_something_is_held(keeper: HandKeeper) -> None:
    keeper.kill_worker()
    assert keeper.exit_code == 1


def test_gives_up_keeps_the_devices_and_tries_again(keeper: HandKeeper, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(RestartPolicy, "FIRST_S", 0.0)
    monkeypatch.setattr(RestartPolicy, "LONGEST_S", 0.0)
    keeper.ask("ready")
    attach(keeper)
    while keeper.phase != "given-up":
        line = keeper.line
        keeper.kill_worker()
        line.close()
        keeper.until(lambda: keeper.worker or keeper.phase == "given-up")
    assert keeper.restarts == RestartPolicy.DEATHS - 1
    assert keeper.held.attached() == ["data"] and keeper.exit_code is None
    assert keeper.held.devices["data"].fds
    os.kill(os.getpid(), signal.SIGHUP)
    keeper.until(lambda: keeper.worker)


# ---- stop ------------------------------------------------------------------------------------------------------------

def test_stop_is_asked_of_the_worker_which_may_refuse(keeper: HandKeeper) -> None:
    keeper.ask("ready")
    os.kill(os.getpid(), signal.SIGTERM)
    event, _ = keeper.until(keeper.heard)
    assert event == {"event": "stop", "force": False}
    assert keeper.ask("stop-refused", reason="data is mounted on /x")["ok"]
    state = runfile.read_state(keeper.run_dir)
    assert (state["refusals"], state["refused"]) == (1, "data is mounted on /x")
    assert keeper.exit_code is None
    os.kill(os.getpid(), signal.SIGUSR1)
    assert keeper.until(keeper.heard)[0] == {"event": "stop", "force": True}
    keeper.kill_worker()
    assert keeper.exit_code == 0


def test_forced_stop_kills_a_worker_that_does_not_end(keeper: HandKeeper, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keeper_module, "FORCED_STOP_S", 0.05)
    keeper.ask("ready")
    os.kill(os.getpid(), signal.SIGUSR1)
    keeper.until(lambda: keeper.exit_code is not None)
    assert keeper.exit_code == 0 and not keeper.worker


def test_stop_without_a_worker_is_refused_while_devices_exist(keeper: HandKeeper) -> None:
    keeper.ask("ready")
    attach(keeper)
    keeper.policy.died = lambda now, lived: None  # type: ignore[method-assign]
    keeper.kill_worker()
    assert keeper.phase == "given-up"
    os.kill(os.getpid(), signal.SIGTERM)
    keeper.until(lambda: keeper.refusals)
    assert "no worker" in keeper.refused and keeper.exit_code is None


def test_death_while_stopping_goes_on_stopping_after_the_restart(keeper: HandKeeper) -> None:
    """The devices still have to be taken away by a worker: the next one is told to stop as soon as it serves."""
    keeper.ask("ready")
    attach(keeper)
    os.kill(os.getpid(), signal.SIGTERM)
    keeper.until(keeper.heard)
    line = keeper.line
    keeper.kill_worker()
    line.close()
    keeper.until(lambda: keeper.worker)
    keeper.say("ready")
    heard = [keeper.until(keeper.heard)[0] for _ in range(2)]
    assert {"event": "stop", "force": False} in heard


def test_worker_that_ends_well_with_nothing_attached_ends_the_keeper(keeper: HandKeeper) -> None:
    keeper.ask("ready")
    keeper._after_death("ended", 1.0, 0)
    assert keeper.exit_code == 0


# ---- children --------------------------------------------------------------------------------------------------------

def test_children_hold_nothing_of_the_keeper(keeper: HandKeeper, tmp_path: Path) -> None:
    """A hanging child must not keep /dev/fuse descriptors, the worker's line or data disks alive."""
    attach(keeper)
    keeper.held.devices["data"].state = "created"
    hold = tmp_path / "hold-create"
    hold.touch()
    keeper.say("dev-create", 5, name="other", clones=1)
    (tmp_path / "did-create").unlink()
    keeper.until(lambda: (tmp_path / "did-create").exists())
    (pid,) = keeper.jobs
    fds = f"/proc/{pid}/fd"
    keeper.until(lambda: not any("did-" in os.readlink(f"{fds}/{fd}") for fd in os.listdir(fds)))
    links = [os.readlink(f"{fds}/{fd}") for fd in os.listdir(fds) if int(fd) > 2]
    assert len(links) == 1 and links[0].startswith("socket:"), links
    keeper.held.devices["data"].state = "attached"
    hold.unlink()
    keeper.until(keeper.heard)


def test_worker_that_never_reads_cannot_stop_the_keeper(keeper: HandKeeper, monkeypatch: pytest.MonkeyPatch) -> None:
    """Answers pile up to a bound, are lost beyond it, and what was kept arrives when the worker reads."""
    monkeypatch.setattr(keeper_module, "OUTBOX_MAX", 3)
    assert keeper.worker and keeper.worker.sock
    keeper.worker.sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    for number in range(200):
        keeper._send({"id": number, "pad": "x" * 500}, [])
    assert len(keeper.worker.outbox) == 3
    got = []
    while len(got) < 5 or keeper.worker.outbox:
        got.append(keeper.until(keeper.heard)[0]["id"])
    assert got == list(range(len(got)))


def test_leftovers_come_from_record_and_links(tmp_path: Path) -> None:
    from marsx.daemon import holdings

    os.symlink("/dev/loop4702", tmp_path / "linked")
    os.symlink("/dev/sda", tmp_path / "foreign")
    (tmp_path / "plain").touch()
    found = holdings.leftovers(str(tmp_path), {"4701": "data", "x": "data", "4703": "../etc", "4702": "recorded"})
    assert found == {4701: "data", 4702: "recorded"}

