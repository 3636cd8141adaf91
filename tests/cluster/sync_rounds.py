"""Rounds of a full sync on real hosts that is harmed while it runs: a and b change the role, c is synced (rules 13 to
16, on disks, lines and processes instead of `tests/sim`).

A round: most of c's device is overwritten behind its back, `invalidate`, then harms while the sync runs: pauses, kills,
cut lines, power cuts of c or of the primary, a change of the primary. Large writes of c (those of spans) are slow,
small ones (those of replay) are not. The primary is written to all the time.
After it: c must come to its end; in the first moment in which it says that it is consistent, and again later, verify
finds nothing; when the writer has stopped, all three devices hold the same bytes.

A power cut takes what `/mars` had not synced (the file system is shut down without its journal), and of c also what
the data device was given behind the last flush that had ended: each such write is there, is not, or is there in part.

Everything random comes from `Random(f"{seed}:{round}")`; the moments of the machine are its own.
"""

import fcntl
import mmap
import os
import random
import signal
import struct
import time
from pathlib import Path

from running_writer import RunningWriter

from tests.fault import iolayer
from tools import loops, scenario
from tools.hosts import MIB, Cluster, Host

SIZE = 24 * MIB
SECTOR = 512
RATE = "traffic_tuning/client_role_traffic_ratelimit_kb"
SHUTDOWN = 0x8004587D  # FS_IOC_SHUTDOWN
WITHOUT_JOURNAL = struct.pack("I", 2)


class Disk:
    """What a data device holds for sure, and what it may hold: fed with the record of the I/O layer."""

    def __init__(self, device: str, record: Path) -> None:
        self.device, self.record = device, record
        self.sure = bytearray(SIZE)
        self.open: dict[tuple[int, int], tuple[int, bytes]] = {}  # not known to be flushed, in the order of their issue
        self.ended: set[tuple[int, int]] = set()
        self.flushes: dict[tuple[int, int], list[tuple[int, int]]] = {}

    def begin(self, contents: bytes) -> None:
        """Nothing but this is on the device; while no process writes to it."""
        self.sure[:] = contents
        self.open, self.ended, self.flushes = {}, set(), {}
        if self.record.exists():
            os.truncate(self.record, 0)

    def read_record(self) -> None:
        """Take in all of it."""
        for entry in iolayer.read_record(self.record):
            if entry.end:
                self._ended(entry)
            elif entry.op in ("write", "zero", "fallocate"):
                self.open[entry.key] = (entry.off or 0, entry.data if entry.op == "write" else bytes(entry.len))
            elif entry.op in ("fdatasync", "fsync"):
                self.flushes[entry.key] = [key for key in self.open if key in self.ended]

    def _ended(self, entry: iolayer.Entry) -> None:
        if entry.key in self.open:
            if entry.result < 0:
                del self.open[entry.key]  # a way to make zeros that this device does not know
            self.ended.add(entry.key)
        elif entry.key in self.flushes:
            keys = self.flushes.pop(entry.key)
            for key in keys if entry.result >= 0 else ():
                if key in self.open:
                    offset, data = self.open.pop(key)
                    self.sure[offset:offset + len(data)] = data

    def cut(self, rng: random.Random) -> int:
        """After the last process is dead: put on the device what a power cut may leave. Returns bytes lost."""
        self.read_record()
        left, lost = bytearray(self.sure), 0
        for offset, data in self.open.values():
            keep = rng.choice((0, len(data), rng.randrange(len(data) // SECTOR + 1) * SECTOR))
            left[offset:offset + keep] = data[:keep]
            lost += len(data) - keep
        write_device(self.device, left)
        self.begin(bytes(left))
        return lost


def write_device(device: str, contents: bytes | bytearray) -> None:
    """All of it, past the page cache, durably."""
    fd, page = os.open(device, os.O_WRONLY | os.O_DIRECT), mmap.mmap(-1, MIB)
    try:
        for at in range(0, len(contents), MIB):
            page[:] = contents[at:at + MIB]
            os.pwrite(fd, page, at)
        os.fsync(fd)
    finally:
        os.close(fd)


def to_all(host: Host, number: int) -> None:
    """A signal to each of the host's processes."""
    for pid in host.pids():
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            continue


def die(host: Host) -> None:
    """SIGKILL all of the host's processes, and wait until they are gone."""
    to_all(host, signal.SIGKILL)
    host.wait(lambda: not host.pids(), 60, "the end of all processes")


def power_cut(host: Host) -> None:
    """No process lives on, and what `/mars` had not synced is gone; its file system is mounted again."""
    to_all(host, signal.SIGSTOP)
    fd = os.open(host.path("/mars"), os.O_RDONLY)
    try:
        fcntl.ioctl(fd, SHUTDOWN, WITHOUT_JOURNAL)
    finally:
        os.close(fd)
    die(host)
    host.wait(lambda: host.run("umount /mars", check=False).returncode == 0, 30, "the last use of /mars to end")
    host.run(["mount", "-t", "ext4", host._loops[0].path, "/mars"])


class SyncRounds:
    """Three hosts, in sync."""

    def __init__(self, hosts: Cluster, top: Path, seed: int) -> None:
        self.hosts, self.top, self.seed = hosts, top, seed
        self.a, self.b, self.c = hosts
        self.primary, self.other = self.a, self.b
        self.starts = 0
        self.done: list[str] = []
        library = iolayer.build()
        self.rules = iolayer.Rules(self.c.folder / "rules")
        self.disk = Disk(self.c.data_device, self.c.folder / "record")
        scenario.form_cluster(hosts)
        scenario.create_resource(self.a, "data")
        for host in (self.b, self.c):
            scenario.join_resource(host, "data")
            scenario.wait_caught_up(self.a, host, "data")
        self.c.run("marsd stop")
        self.c.marsd_environment = iolayer.environment(
            library, rules=self.rules.path, record=self.disk.record, roots=[self.c.data_device], seed=seed)
        top.mkdir(parents=True)
        self._write()

    def _write(self) -> None:
        self.starts += 1
        self.writer = RunningWriter(self.primary, "/dev/mars/data", self._notes(), SIZE // 4096, 1,
                                    self.seed + self.starts, 1500)

    def _notes(self) -> Path:
        notes = self.top / f"notes-{self.starts}"
        notes.mkdir()
        return notes

    # -- a round

    def play(self, number: int) -> str:
        """Round `number`; returns what was done."""
        rng = random.Random(f"{self.seed}:{number}")
        self.done = []
        try:
            self._begin(rng)
            for _ in range(rng.randint(2, 4)):
                time.sleep(rng.uniform(0.1, 0.7))
                if scenario.fully_synced(self.c, "data"):
                    break
                harm = rng.choice(HARMS)
                self.done.append(harm.__name__)
                harm(self, rng)
            self._end()
        except AssertionError as problem:
            raise AssertionError(f"round {number} of seed {self.seed}, {self.done}: {problem}") from problem
        return f"round {number} of seed {self.seed}: {', '.join(self.done) or 'nothing'}"

    def _begin(self, rng: random.Random) -> None:
        """c loses most of what it had, and syncs again, slowly."""
        c = self.c
        die(c)
        contents = bytearray(loops.read_device(c.data_device, 0, SIZE))
        for at in range(0, SIZE, MIB // 4):
            if rng.random() < 0.6:
                contents[at:at + MIB // 4] = rng.randbytes(MIB // 4)
        write_device(c.data_device, contents)
        self.disk.begin(bytes(contents))
        self.rules.set(f"write {c.data_device} least=16384 p=0.4 delay=0..150",
                       f"zero {c.data_device} p=0.4 delay=0..150")
        c.marsd_start()
        self._tune(rng)
        self._insist("marsadm invalidate data")

    def _tune(self, rng: random.Random) -> None:
        self.c.path(f"/run/mars/sys/{RATE}").write_text(f"{rng.choice((3000, 6000, 12000))}\n")

    def _end(self) -> None:
        """c is right in the first moment in which it says so, and stays so."""
        c = self.c
        c.path(f"/run/mars/sys/{RATE}").write_text("0\n")
        c.wait(lambda: c.run("marsadm view-is-consistent data", check=False).stdout.strip() == "1"
               and scenario.fully_synced(c, "data"), 120, "the end of the sync")
        self._verify()
        self.writer.go_on(50)
        self.rules.set()
        self._verify()
        assert self.writer.stop() == 0, "the writer met an error"
        for host in (self.other, c):
            scenario.wait_equal(self.primary, host, "data", 120)
        self._write()

    def _verify(self) -> None:
        found = self.c.run("marsadm verify data", check=False, timeout=120)
        if found.returncode != 0:
            raise AssertionError(f"verify: exit {found.returncode}\n{found.stdout[:2000]}{found.stderr}\n"
                                 f"{self.hosts.dump()}")

    def close(self) -> None:
        """The writer ends."""
        self.writer.stop()

    # -- harms

    def pause(self, rng: random.Random) -> None:
        """pause-sync, resume-sync."""
        self._insist("marsadm pause-sync data")
        time.sleep(rng.uniform(0, 0.5))
        self._insist("marsadm resume-sync data")

    def _insist(self, command: str) -> None:
        """On c, as soon as its worker, which may just have been killed, serves again."""
        self.c.wait(lambda: self.c.run(command, check=False).returncode == 0, 60, command)

    def kill_target(self, rng: random.Random) -> None:
        """kill -9 of c's worker."""
        self.c.wait(self.c.worker, 60, "a worker")
        self.c.kill9_worker()

    def cut_target(self, rng: random.Random) -> None:
        """Power cut of c."""
        power_cut(self.c)
        lost = self.disk.cut(rng)
        self.done[-1] += f" ({lost} bytes lost)"
        self.c.marsd_start()
        self._tune(rng)

    def kill_source(self, rng: random.Random) -> None:
        """kill -9 of the primary's worker."""
        self.primary.wait(self.primary.worker, 60, "a worker")
        self.primary.kill9_worker()

    def cut_source(self, rng: random.Random) -> None:
        """Power cut of the primary, which is primary again afterwards."""
        power_cut(self.primary)
        self.writer.__exit__()
        self.primary.marsd_start()
        scenario.wait_device(self.primary, "data")
        self._write()

    def cut_line(self, rng: random.Random) -> None:
        """No packet between c and the primary for a while."""
        self.hosts.net.cut(self.primary.name, "c")
        time.sleep(rng.uniform(0.2, 2.0))
        self.hosts.net.heal_all()

    def change_primary(self, rng: random.Random) -> None:
        """The role goes over; c goes on from the new primary."""
        assert self.writer.stop() == 0, "the writer met an error"
        self.other.run("marsadm primary data --ignore-sync", timeout=180)
        scenario.wait_device(self.other, "data")
        self.primary, self.other = self.other, self.primary
        self._write()


HARMS = (SyncRounds.pause, SyncRounds.kill_target, SyncRounds.cut_target, SyncRounds.cut_target,
         SyncRounds.kill_source, SyncRounds.cut_source, SyncRounds.cut_line, SyncRounds.change_primary)
