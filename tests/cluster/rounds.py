"""Kill rounds: two replicated file systems under writers that keep a ledger, and what is done to the daemons below.

A `Field` is one resource with a file system mounted on the primary, an SQLite writer per journal mode, and a writer of
blocks with O_DIRECT into a file. `Rounds` plays harms on a pair of hosts. After each round: a writer that was not
allowed to see an error has seen none, `integrity_check` is ok, everything acknowledged is there (read from the device,
not from the page cache), and all writers go on. After a harm that takes the device away (the keeper died) the file
systems are unmounted, marsd is started, they are mounted again (which recovers their journals), and the same is true.

Everything random comes from `Random(f"{seed}:{round}")`; the moments of the machine are its own.
"""

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import sqlite_ledger
import write_ledger
from running_writer import RunningWriter

from tools import loops, scenario
from tools.hosts import MIB, Cluster, Host, HostError

BLOCKS = 512
PAUSE_US = 1000
MODES = ("wal", "delete")
SIZES = {"ext4": 64 * MIB, "xfs": 384 * MIB}


class Transactions:
    """A running SQLite writer; its notes outlive it, so the next one goes on."""

    def __init__(self, host: Host, database: str, notes: Path, seed: int, mode: str) -> None:
        self.host, self.database, self.notes, self.seed = host, database, notes, seed
        words = [sys.executable, sqlite_ledger.__file__, "write", database, str(notes), str(seed), mode]
        self.child = host.popen(words, stdin=subprocess.PIPE, stderr=subprocess.PIPE)

    def acknowledged(self) -> int:
        """Committed transactions, over all writers."""
        return sqlite_ledger.noted(self.notes)[0]

    def failed(self) -> str:
        """The error that ended the writer, "" while it runs."""
        return "" if self.child.poll() is None else sqlite_ledger.noted(self.notes)[2] or "it ended without a word"

    def stop(self, timeout: float = 180) -> int:
        """End the writer, return its exit status."""
        if self.child.returncode is None or not self.child.stdin.closed:
            _, err = self.child.communicate(timeout=timeout)
            if self.child.returncode not in (0, 1) or err:
                raise AssertionError(f"the writer of {self.database} itself failed: {err}")
        return self.child.returncode


class Field:
    """One resource, its file system, its writers."""

    def __init__(self, hosts: Cluster, resource: str, kind: str, files: tuple[Path, Path], top: Path,
                 seed: int) -> None:
        self.hosts, self.resource, self.kind, self.files, self.top, self.seed = hosts, resource, kind, files, top, seed
        self.folder = f"/mnt/{resource}"
        self.device = f"/dev/mars/{resource}"
        self.transactions: list[Transactions] = []
        self.blocks: RunningWriter | None = None
        self.starts = 0
        top.mkdir(parents=True)

    # -- file system

    def make(self, host: Host) -> None:
        """mkfs and mount."""
        host.run(["mkdir", self.folder])
        scenario.make_file_system(host, self.resource, self.kind, self.folder)

    def mount(self, host: Host) -> None:
        """Mount; the file system's journal does what it has to."""
        host.run(["mount", "-t", self.kind, self.device, self.folder])

    def check_file_system(self, host: Host) -> None:
        """While it is not mounted: nothing that a journal could not repair."""
        tool = ["xfs_repair", "-n"] if self.kind == "xfs" else ["e2fsck", "-fn"]
        done = host.run([*tool, self.device], check=False)
        if done.returncode:
            raise AssertionError(f"{' '.join(tool)} {self.device}: {done.returncode}\n{done.stdout}{done.stderr}")

    # -- writers

    def start(self, host: Host) -> None:
        """All writers; a new file of zeros for the blocks."""
        self.starts += 1
        file = f"{self.folder}/blocks"
        host.run(["dd", "if=/dev/zero", f"of={file}", "bs=4096", f"count={BLOCKS}", "conv=fsync,notrunc",
                  "status=none"])
        self.blocks = RunningWriter(host, file, self.top / f"blocks-{self.starts}", BLOCKS, 2, self.seed + self.starts,
                                    PAUSE_US)
        self.transactions = [Transactions(host, f"{self.folder}/{mode}.db", self.top / mode, self.seed, mode)
                             for mode in MODES]

    def writers(self) -> list[Transactions | RunningWriter]:
        """All of them."""
        assert self.blocks is not None
        return [*self.transactions, self.blocks]

    def errors(self) -> list[str]:
        """What writers have met."""
        assert self.blocks is not None
        return [*(one.failed() for one in self.transactions if one.failed()),
                *(book.error for book in self.blocks.ledgers() if book.error)]

    def all_ended(self) -> bool:
        """Every writer has met its error."""
        assert self.blocks is not None
        return all(one.failed() for one in self.transactions) and all(book.error for book in self.blocks.ledgers())

    def stop(self) -> list[int]:
        """End all writers."""
        return [one.stop() for one in self.writers()]

    # -- checks

    def check(self, host: Host) -> int:
        """The ledgers against the file system as it is on the device now; writers may run. Returns transactions."""
        total = 0
        for mode in MODES:
            done = host.run([sys.executable, sqlite_ledger.__file__, "check", f"{self.folder}/{mode}.db",
                             str(self.top / mode), str(self.seed)], check=False, timeout=150)
            if done.returncode:
                raise AssertionError(f"{self.kind} on {host.name}: {done.stdout}{done.stderr}")
            total += int(done.stdout)
        self._check_blocks(host)
        return total

    def _check_blocks(self, host: Host) -> None:
        assert self.blocks is not None
        before = self.blocks.ledgers()
        data = loops.read_device(host.path(f"{self.folder}/blocks"), 0, BLOCKS * write_ledger.BLOCK)
        after = self.blocks.ledgers()
        for old, new in zip(before, after, strict=False):
            new.acknowledged, new.flushed = old.acknowledged, old.flushed
        write_ledger.check_nothing_lost(data, after)

    def equal(self, primary: Host, secondary: Host) -> bool:
        """Both data devices hold the same bytes."""
        return scenario.caught_up(primary, secondary, self.resource) and scenario.settled(primary, self.resource) \
            and loops.first_difference(*self.files) is None


class Daemon:
    """Signals to the daemon of one host, by the parts of it."""

    def __init__(self, host: Host) -> None:
        self.host = host

    def worker(self) -> int:
        """The worker, also one that does not serve yet (0: none)."""
        return next((pid for pid, words in self.host.pids().items()
                     if any(word.startswith("--keeper-fd=") for word in words)), 0)

    def keeper(self) -> int:
        """The worker's parent."""
        self.host.wait(self.worker, 30, "a worker")
        return self.host._parent(self.worker())

    def send(self, pid: int, number: int) -> None:
        """A signal; who is dead already does not mind."""
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            return

    def kill_worker(self, number: int = signal.SIGKILL) -> None:
        """End the worker that is there."""
        self.host.wait(self.worker, 30, "a worker")
        self.send(self.worker(), number)

    def serves(self) -> bool:
        """A worker answers at the control socket."""
        return self.host.worker() is not None and bool(self.host.status())


def between(rng: random.Random, low: float, high: float) -> None:
    """A random moment."""
    time.sleep(rng.uniform(low, high))


# ---- harms: (primary, secondary, random). True: the devices are gone. -----------------------------------------------

def worker_killed(a: Daemon, b: Daemon, rng: random.Random) -> bool:
    """kill -9 of the primary's worker."""
    a.kill_worker()
    return False


def worker_killed_again(a: Daemon, b: Daemon, rng: random.Random) -> bool:
    """kill -9 of the primary's worker and of the next ones while they recover."""
    for _ in range(rng.randint(2, 4)):
        a.kill_worker()
        between(rng, 0.0, 0.5)
    return False


def keeper_killed(a: Daemon, b: Daemon, rng: random.Random) -> bool:
    """kill -9 of the primary's keeper: the worker ends too, the devices die."""
    a.send(a.keeper(), signal.SIGKILL)
    return True


def both_processes_killed(a: Daemon, b: Daemon, rng: random.Random) -> bool:
    """kill -9 of the primary's worker and keeper at once."""
    for pid in (a.worker(), a.keeper()):
        a.send(pid, signal.SIGKILL)
    return True


def worker_stopped(a: Daemon, b: Daemon, rng: random.Random) -> bool:
    """SIGSTOP of the primary's worker, SIGCONT or SIGKILL a while later."""
    pid = a.worker()
    a.send(pid, signal.SIGSTOP)
    between(rng, 0.1, 3.0)
    a.send(pid, rng.choice((signal.SIGCONT, signal.SIGKILL)))
    return False


def keeper_stopped(a: Daemon, b: Daemon, rng: random.Random) -> bool:
    """SIGSTOP of the primary's keeper; its worker dies meanwhile; SIGCONT."""
    pid = a.keeper()
    a.send(pid, signal.SIGSTOP)
    if rng.random() < 0.7:
        a.kill_worker()
    between(rng, 0.1, 1.5)
    a.send(pid, signal.SIGCONT)
    return False


def terminated(a: Daemon, b: Daemon, rng: random.Random) -> bool:
    """SIGTERM of the primary's worker, or of its keeper: which must refuse, because the devices are mounted."""
    if rng.random() < 0.5:
        a.kill_worker(signal.SIGTERM)
    else:
        a.send(a.keeper(), signal.SIGTERM)
    return False


def secondary_killed(a: Daemon, b: Daemon, rng: random.Random) -> bool:
    """kill -9 of the secondary's worker, or of its keeper, which is started again."""
    if rng.random() < 0.4:
        b.kill_worker()
        return False
    b.send(b.keeper(), signal.SIGKILL)
    b.host.wait(lambda: b.host.pids() == {}, 30, "the end of both processes")
    between(rng, 0.0, 1.0)
    b.host.marsd_start()
    return False


def secondary_stopped(a: Daemon, b: Daemon, rng: random.Random) -> bool:
    """SIGSTOP of the secondary's worker and SIGCONT, or an ordinary stop and start."""
    if rng.random() < 0.5:
        pid = b.worker()
        b.send(pid, signal.SIGSTOP)
        between(rng, 0.1, 3.0)
        b.send(pid, signal.SIGCONT)
        return False
    b.send(b.keeper(), signal.SIGTERM)
    b.host.wait(lambda: b.host.pids() == {}, 60, "the end of both processes")
    b.host.marsd_start()
    return False


def both_workers_killed(a: Daemon, b: Daemon, rng: random.Random) -> bool:
    """kill -9 of both hosts' workers in the same moment."""
    for one in (a, b):
        one.kill_worker()
    return False


DECK = (worker_killed, worker_killed_again, keeper_killed, both_processes_killed, worker_stopped, keeper_stopped,
        terminated, secondary_killed, secondary_stopped, both_workers_killed)
CHORES = (("log-rotate",), ("log-rotate", "log-delete-all"), ("log-delete-all",), ())


class Rounds:
    """A pair of hosts, a is primary of all fields."""

    def __init__(self, hosts: Cluster, top: Path, seed: int) -> None:
        self.hosts, self.seed = hosts, seed
        self.a, self.b = hosts
        self.daemons = Daemon(self.a), Daemon(self.b)
        self.deck = random.Random(seed).sample(DECK, len(DECK))
        self.transactions = 0
        self.fields = []
        scenario.form_cluster(hosts)
        for kind, size in SIZES.items():
            devices = [host.add_device(f"{kind}.img", size) for host in hosts]
            scenario.create_resource(self.a, kind, devices[0].path)
            scenario.join_resource(self.b, kind, devices[1].path)
            self.fields.append(Field(hosts, kind, kind, (devices[0].file, devices[1].file), top / kind, seed))
        for field in self.fields:
            field.make(self.a)
            field.start(self.a)

    def play(self, number: int) -> str:
        """Round `number`; returns what was done."""
        rng = random.Random(f"{self.seed}:{number}")
        harm: Callable[..., bool] = self.deck[number % len(self.deck)]
        chores = [(field.resource, rng.choice(CHORES)) for field in self.fields]
        told = f"round {number} of seed {self.seed}: {harm.__name__}, {chores}"
        try:
            self._go_on()
            between(rng, 0.0, 0.3)
            running = [self._chore(resource, names) for resource, names in chores if names]
            between(rng, 0.0, 0.15)
            gone = harm(*self.daemons, rng)
            self._end_chores(running)
            if gone:
                self._come_back()
            for daemon in self.daemons:
                daemon.host.wait(daemon.serves, 60, "a worker that serves")
            self._go_on()
            self.transactions = sum(field.check(self.a) for field in self.fields)
        except (AssertionError, subprocess.TimeoutExpired) as problem:
            raise AssertionError(f"{told}: {problem}") from problem
        return told

    def _go_on(self, more: int = 20) -> None:
        """Every writer acknowledges `more`: the next harm hits in the middle of writing."""
        writers = [one for field in self.fields for one in field.writers()]
        goals = [one.acknowledged() + more for one in writers]
        self.a.wait(lambda: self._errors() or all(one.acknowledged() >= goal
                                                  for one, goal in zip(writers, goals, strict=True)),
                    90, f"{more} more writes of every writer")
        if self._errors():
            raise AssertionError(f"a writer met an error where none is allowed: {self._errors()}")

    def _errors(self) -> list[str]:
        return [text for field in self.fields for text in field.errors()]

    def _chore(self, resource: str, names: tuple[str, ...]) -> subprocess.Popen:
        command = "; ".join(f"marsadm {name} {resource}" for name in names)
        return self.a.popen(["sh", "-c", command], stdout=subprocess.PIPE, stderr=subprocess.STDOUT)

    @staticmethod
    def _end_chores(running: list[subprocess.Popen]) -> None:
        """They may fail, because marsd was killed; they may not hang, nor fail without words."""
        for child in running:
            said, _ = child.communicate(timeout=90)
            if "Traceback" in said:
                raise AssertionError(f"marsadm failed without a message: {said}")

    def _come_back(self) -> None:
        """The devices died: writers end, file systems go, marsd starts, file systems come, writers go on."""
        self.a.wait(lambda: all(field.all_ended() for field in self.fields), 60, "the writers' errors")
        for field in self.fields:
            assert 0 not in field.stop(), "a device that died must be an error"
            self.a.run(["umount", field.folder])
        self.a.wait(lambda: self.a.pids() == {}, 30, "the end of the worker without its keeper")
        self.a.marsd_start()
        for field in self.fields:
            scenario.wait_device(self.a, field.resource)
            field.mount(self.a)
            field.check(self.a)
            field.start(self.a)

    def finish(self) -> None:
        """The secondary is bytewise equal; after a handover its file systems are sound and hold the same."""
        for field in self.fields:
            assert set(field.stop()) == {0}
            self.a.run(["umount", field.folder])
        for field in self.fields:
            end = time.monotonic() + 120
            while not field.equal(self.a, self.b):
                if time.monotonic() > end:
                    at = loops.first_difference(*field.files)
                    raise HostError(f"{field.kind}: not equal, first different byte: {at}\n{self.hosts.dump()}")
                time.sleep(0.2)
            scenario.hand_over(self.a, self.b, field.resource)
            field.check_file_system(self.b)
            self.b.run(["mkdir", field.folder])
            field.mount(self.b)
            field.check(self.b)
            self.b.run(["umount", field.folder])
