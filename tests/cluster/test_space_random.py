"""Random sequences of a full /mars on real hosts (rules 27, 28): foreign files, the log, or both fill it, on the
primary, the secondary, or both, again and again; writers on the primary never see an error, and never wait for room.

    MARSX_SPACE_SEEDS=1-50 pytest tests/cluster/test_space_random.py        a campaign
"""
from __future__ import annotations

import os
import random
import signal
import subprocess
import threading
import time
from pathlib import Path

import pytest
import write_ledger
from running_writer import RunningWriter

from tools import scenario
from tools.hosts import MIB, Cluster, Host

RESOURCE = "resource-data"
STEPS = 5
LEDGER_BLOCKS = 1024
WORD = os.environ.get("MARSX_SPACE_SEEDS", "1")
SEEDS = range(int(WORD.partition("-")[0]), int(WORD.rpartition("-")[2]) + 1)


class Pauses(threading.Thread):
    """The longest time in which no write was acknowledged."""

    def __init__(self, writer: RunningWriter) -> None:
        super().__init__(daemon=True)
        self.files = [writer.notes / f"thread-{number}" for number in range(2)]
        self.longest, self.enough = 0.0, threading.Event()

    def run(self) -> None:
        sizes, since = [0], time.monotonic()
        while not self.enough.wait(0.02):
            now = [file.stat().st_size for file in self.files if file.exists()]
            if now != sizes:
                sizes, since = now, time.monotonic()
            self.longest = max(self.longest, time.monotonic() - since)


class Story:
    """One seeded sequence. Each step is printed, so that a failure tells what led to it."""

    def __init__(self, one: Cluster, seed: int) -> None:
        self.a, self.b = one["a"], one["b"]
        self.rng = random.Random(seed)
        self.files: dict[str, list[str]] = {"a": [], "b": []}
        self.eaters: dict[str, subprocess.Popen] = {}
        self.emergencies = 0

    def step(self) -> None:
        """One change."""
        rng = self.rng
        name = rng.choice(("fill", "fill", "fill", "log", "log", "eat", "release", "release", "release", "cut", "kill"))
        hosts = rng.choice(("a", "a", "b", "ab"))
        print(name, hosts, flush=True)
        getattr(self, name)([host for host in (self.a, self.b) if host.name in hosts])

    def fill(self, hosts: list[Host]) -> None:
        """A foreign file at once; now and then to the last block."""
        for host in hosts:
            rest, name = self.rng.choice((0, 0, 0, 1000, 8000, 20_000)), f"/mars/foreign-{self.rng.getrandbits(32):08x}"
            self.files[host.name].append(name)
            host.run(["sh", "-c", f"F=$(df --output=avail -k /mars | tail -1); [ $F -le {rest + 8} ] || "
                      f"fallocate -l $((F-{rest or 4}))K {name}"], check=False)
            if not rest:
                host.run(["sh", "-c", f"cat /dev/zero >> {name}"], check=False)
        self.a.wait(lambda: self.direct() or self.has_room(), 60, "emergency mode")

    def has_room(self) -> bool:
        """/mars of the primary is not at level 4."""
        stat = os.statvfs(self.a.path("/mars"))
        return stat.f_bavail * stat.f_frsize >= stat.f_blocks * stat.f_frsize // 16

    def direct(self) -> bool:
        """The log is passed by."""
        return bool(self.a.status().get("data", {}).get("state", {}).get("direct"))

    def eat(self, hosts: list[Host]) -> None:
        """A foreign file that takes whatever becomes free."""
        for host in hosts:
            if host.name not in self.eaters:
                name = f"/mars/eater-{self.rng.getrandbits(32):08x}"
                self.files[host.name].append(name)
                self.eaters[host.name] = host.popen(["sh", "-c", f"while :; do dd if=/dev/zero bs=64k status=none "
                                                     f">> {name}; sleep 0.2; done"], stderr=subprocess.DEVNULL)
        self.a.wait(lambda: self.direct() or self.has_room(), 60, "emergency mode")

    def log(self, hosts: list[Host]) -> None:
        """The application writes much."""
        self.a.run(f"dd if=/dev/urandom of=/dev/mars/data bs=1M count={self.rng.choice((12, 24, 40))} seek=4 "
                   "oflag=direct conv=fsync,notrunc status=none", timeout=120)

    def release(self, hosts: list[Host]) -> None:
        """Room comes back; the log goes on."""
        for host in hosts:
            if host.name in self.eaters:
                eater = self.eaters.pop(host.name)
                os.killpg(eater.pid, signal.SIGKILL)
                eater.wait()
            host.run(["sh", "-c", "rm -f /mars/foreign-* /mars/eater-*"])
            self.files[host.name].clear()
        if not self.files["a"]:
            self.a.wait(self.logged, 90, "the log to go on")

    def logged(self) -> bool:
        """The log is written, and emergency mode could be entered again."""
        state = self.a.status().get("data", {}).get("state")
        return bool(state) and not state["direct"] and self.prepared()

    def cut(self, hosts: list[Host]) -> None:
        """The secondary does not fetch, or does so again."""
        self.b.run(f"marsadm {self.rng.choice(('connect', 'disconnect', 'pause-replay', 'resume-replay'))} data")

    def kill(self, hosts: list[Host]) -> None:
        """The primary's worker dies."""
        dead = self.a.kill9_worker()
        self.a.wait(lambda: self.a.worker() not in (None, dead), 60, "another worker")

    def prepared(self) -> bool:
        """What entering emergency mode needs is there."""
        folder = self.a.path(f"/mars/{RESOURCE}")
        return (folder / ".gap-map").exists() and (folder / ".gap-log").exists()

    def check(self) -> None:
        """Rule 27: a log that is written can be left."""
        def holds() -> bool:
            state = self.a.status().get("data", {}).get("state")
            return bool(state) and (state["direct"] or self.prepared())
        self.a.wait(holds, 60, "a log that can be left")
        self.emergencies += self.direct()

    def end(self) -> None:
        """Room everywhere, and everybody may go on."""
        self.release([self.a, self.b])
        for what in ("connect", "resume-replay"):
            self.b.run(f"marsadm {what} data")


@pytest.mark.parametrize("seed", SEEDS)
def test_any_sequence(pair, tmp_path: Path, seed, record_property):
    """Rules 27, 28: see the module. In the end nothing is lost, both disks are equal, and there is no split brain."""
    one = pair(data_size=64 * MIB, mars_size=160 * MIB)
    story, a, b = Story(one, seed), one["a"], one["b"]
    a.run(["blkdiscard", "-z", "-f", "-l", str(LEDGER_BLOCKS * write_ledger.BLOCK), "/dev/mars/data"])
    scenario.wait_equal(a, b, "data")
    with RunningWriter(a, "/dev/mars/data", tmp_path / "ledger", LEDGER_BLOCKS, 2, seed, 500) as writer:
        writer.go_on(20)
        pauses = Pauses(writer)
        pauses.start()
        story.fill([a])
        for _ in range(STEPS):
            story.check()
            writer.go_on(20)
            story.step()
        writer.go_on(20)
        story.end()
        writer.go_on(20)
        pauses.enough.set()
        assert writer.stop() == 0
    record_property("longest_pause_s", round(pauses.longest, 2))
    print(f"seed {seed}: longest time without an answer {pauses.longest:.2f} s, {story.emergencies} steps past the log")
    data = a.read_bytes("/dev/mars/data", 0, LEDGER_BLOCKS * write_ledger.BLOCK)
    assert write_ledger.check_nothing_lost(data, writer.ledgers()) > 100
    scenario.wait_equal(a, b, "data", 180)
    assert not [key for key in {**a.tree(), **b.tree()} if "splitbrain" in key]
