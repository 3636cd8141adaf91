"""What chaos does to hosts: see chaos.py, which has the model."""

import contextlib
import random
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import chaos
from chaos import BLOCKS, DEVICE, HEAL_S, RESOURCE, History
from write_ledger import BLOCK, Ledger

from tools import loops, scenario
from tools.hosts import Cluster, Host, HostError

REFUSED = (3, 5)                            # the state does not allow it, timed out


class Chaos:
    """One cluster under chaos. `step()` does one thing and returns what; `settle()` heals all and compares."""

    def __init__(self, hosts: Cluster, top: Path, seed: int) -> None:
        self.hosts, self.top, self.seed = hosts, top, seed
        self.random = random.Random(seed)
        self.names = [host.name for host in hosts]
        self.primary = self.names[0]
        self.history, self.seq = History(), 0
        self.held = dict.fromkeys(self.names, 0)        # the last write that a host was seen to hold
        self.down: set[str] = set()
        self.left: set[str] = set()
        self.cut: set[str] = set()
        self.parted: set[str] = set()                   # was so since everybody was equal
        self.lost: set[str] = set()                     # was primary when another was forced
        self.said: list[str] = []
        top.mkdir()

    # ---- the writer ----

    def say(self, text: str) -> None:
        """One line of the story."""
        self.said.append(text)
        print(f"  {text}", flush=True)

    @contextlib.contextmanager
    def writing(self, count: int = 0) -> Iterator[None]:
        """A run of the writer on the primary beside the block, looked at afterwards."""
        host, first = self.hosts[self.primary], self.seq + 1
        count = count or self.random.randrange(20, 400)
        note = self.top / f"note-{first}"
        child = host.popen([sys.executable, chaos.__file__, DEVICE, str(note), *map(str, (first, count, self.seed))],
                           stderr=subprocess.PIPE)
        try:
            yield
        finally:
            try:
                _, err = child.communicate(timeout=120)
            except subprocess.TimeoutExpired:
                raise HostError(f"the writer on {host.name} hangs\n{self.hosts.dump()}") from None
        self.seq += count
        if child.returncode not in (0, 1) or err:
            raise AssertionError(f"the writer itself failed: {err}")
        book = Ledger.read(note)
        self.history.add(book)
        if book.error and host.name not in self.down:
            raise AssertionError(f"a write failed on {host.name}: {book.error}\n{self.hosts.dump()}")

    def check(self, least: int | None = None) -> int:
        """What the primary's device holds."""
        host = self.hosts[self.primary]
        scenario.wait_device(host, RESOURCE)
        data = loops.read_device(host.mars_device(RESOURCE), 0, BLOCKS * BLOCK)
        try:
            return self.history.check(data, self.history.acknowledged if least is None else least)
        except AssertionError as problem:
            raise AssertionError(f"{problem}\nseed {self.seed}: {self.said}\n{self.hosts.dump()}") from None

    # ---- one step ----

    def step(self) -> None:
        """One thing that may happen, with writes beside it or behind it."""
        deeds: list[tuple[int, Callable[[], None]]] = [
            (4, self.hand_over), (2, self.cut_off), (2, self.mend), (3, self.kill_worker), (2, self.kill_keeper),
            (2, self.restart), (4, self.switch), (3, self.rotate), (2, self.invalidate), (1, self.leave_and_join),
            (2, self.force),
        ]
        deed = self.random.choices([deed for _, deed in deeds], [weight for weight, _ in deeds])[0]
        deed()
        if self.primary not in self.down:
            with self.writing():
                pass
            self.check()

    def others(self) -> list[str]:
        """Secondaries whose marsd runs."""
        return [name for name in self.names if name not in self.down | self.left and name != self.primary]

    def other(self) -> Host | None:
        """One of them."""
        names = self.others()
        return self.hosts[self.random.choice(names)] if names else None

    def tell(self, host: Host, *words: str, accept: tuple[int, ...] = REFUSED) -> int:
        """A marsadm command that may be refused."""
        done = host.run(["marsadm", *words], check=False, timeout=180)
        self.say(f"{host.name}: marsadm {' '.join(words)}: {done.returncode} {done.stderr.strip()[-160:]}")
        if done.returncode and done.returncode not in accept:
            raise AssertionError(f"{host.name}: marsadm {words}: {done.returncode}\n{done.stdout}{done.stderr}"
                                 f"\n{self.hosts.dump()}")
        return done.returncode

    def hand_over(self) -> None:
        """The role goes to another host, if it can."""
        host = self.other()
        if host is None or self.primary in self.down or host.name in self.lost:
            return
        status = self.tell(host, "primary", RESOURCE, "--timeout=20")
        if status == 0:
            self.primary = host.name
        else:
            self.say(f"{self.primary} stays primary")
        scenario.wait_device(self.hosts[self.primary], RESOURCE)
        self.check()

    def cut_off(self) -> None:
        """A host loses its line to all others, or one line is cut, while the writer writes."""
        name = self.random.choice(self.names)
        with self.writing():
            if self.random.random() < 0.5:
                self.hosts.net.isolate(name)
                self.cut |= {name}
                self.say(f"{name} is cut off")
            else:
                other = self.random.choice([one for one in self.names if one != name])
                self.hosts.net.cut(name, other)
                self.cut |= {name, other}
                self.say(f"no line between {name} and {other}")

    def mend(self) -> None:
        """All lines work again."""
        self.heal()
        self.say("all lines work")

    def heal(self) -> None:
        """Who was cut off hears of everything, and says so."""
        self.hosts.net.heal_all()
        self.cut.clear()
        for name in sorted(self.lost - self.down):
            host = self.hosts[name]
            host.wait(lambda host=host: host.link(f"resource-{RESOURCE}/primary") == self.primary, HEAL_S,
                      "the news of the forced primary")
            self.lost.discard(name)

    def kill_worker(self) -> None:
        """A worker dies: only a pause."""
        name = self.random.choice([one for one in self.names if one not in self.down])
        with self.writing():
            host = self.hosts[name]
            host.wait(host.worker, what="a worker")
            host.kill9_worker()
            self.say(f"the worker of {name} was killed")
        host.wait(lambda: "serving" in host.run("marsd status", check=False).stdout, what="the next worker")

    def kill_keeper(self) -> None:
        """marsd is killed as a whole, the device with it; marsd is started again."""
        name = self.random.choice([one for one in self.names if one not in self.down])
        host = self.hosts[name]
        self.down.add(name)
        host.wait(host.keeper, what="a keeper")
        with self.writing():
            host.kill9_keeper()
            self.say(f"marsd of {name} was killed")
            host.wait(lambda: not host.worker(), what="the end of the worker")
        self.start(name)

    def restart(self) -> None:
        """A secondary's marsd is stopped, and started now or later."""
        host = self.other()
        if host is None:
            return
        with self.writing():
            host.marsd_stop()
            self.down.add(host.name)
            self.say(f"marsd of {host.name} was stopped")
        if self.random.random() < 0.6:
            self.start(host.name)

    def start(self, name: str) -> None:
        """marsd runs again."""
        self.hosts[name].marsd_start()
        self.down.discard(name)
        self.say(f"marsd of {name} was started")
        if name == self.primary:
            scenario.wait_device(self.hosts[name], RESOURCE)
            self.check()

    def switch(self) -> None:
        """A switch of a secondary is put off or on."""
        host = self.other()
        if host is None:
            return
        on, off = self.random.choice([("resume-replay", "pause-replay"), ("resume-fetch", "pause-fetch"),
                                      ("resume-sync", "pause-sync"), ("attach", "detach"), ("connect", "disconnect")])
        self.tell(host, self.random.choice([on, off]), RESOURCE)

    def rotate(self) -> None:
        """Logs are rotated, and deleted as far as nobody needs them."""
        if self.primary in self.down:
            return
        with self.writing():
            self.tell(self.hosts[self.primary], "log-rotate", RESOURCE)
            if self.random.random() < 0.5:
                self.tell(self.hosts[self.primary], "log-delete-all", RESOURCE)

    def invalidate(self) -> None:
        """A replica begins anew, though nothing is wrong with it."""
        host = self.other()
        if host is not None:
            self.tell(host, "invalidate", RESOURCE)

    def leave_and_join(self) -> None:
        """A replica is given up and made again."""
        host = self.other()
        if host is None or self.cut or self.down:
            return
        self.tell(host, "down", RESOURCE)
        if self.tell(host, "leave-resource", RESOURCE) == 0:
            self.left.add(host.name)
            self.held[host.name] = 0
            with self.writing():
                pass
            self.join(host)

    def join(self, host: Host) -> None:
        """Back after leave-resource."""
        if self.tell(host, "join-resource", RESOURCE, host.data_device) == 0:
            self.left.discard(host.name)

    def force(self) -> None:
        """The primary is lost, one way or the other; a secondary takes over with what it has."""
        host = self.other()
        if host is None or self.primary in self.down or host.name in self.parted:
            return
        lost = self.primary
        way = self.random.choice(["cut", "killed"])
        with self.writing():
            if way == "cut":
                self.hosts.net.isolate(lost)
                self.cut.add(lost)
            else:
                self.hosts[lost].wait(self.hosts[lost].keeper, what="a keeper")
                self.down.add(lost)
                self.hosts[lost].kill9_keeper()
        self.say(f"the primary {lost} is {way}")
        self.tell(host, "disconnect", RESOURCE)
        if self.tell(host, "primary", RESOURCE, "--force") != 0:
            self.tell(host, "connect", RESOURCE)
            self.heal()
            if lost in self.down:
                self.start(lost)
            return
        self.primary = host.name
        self.lost.add(lost)
        self.parted.add(lost)
        last = self.check(self.held[host.name])
        self.say(f"{host.name} was forced: it has the writes up to {last} of {self.history.acknowledged}")
        self.history.forget(last)
        self.held = {name: min(seq, last) for name, seq in self.held.items()}

    # ---- healing ----

    def settle(self) -> None:
        """Everything is put right again, by the book; then all disks are equal."""
        for name in sorted(self.down):
            self.start(name)
        self.mend()
        for name in sorted(self.left):
            self.join(self.hosts[name])
        primary = self.hosts[self.primary]
        for name in self.names:
            self.tell(self.hosts[name], "up", RESOURCE)
        scenario.wait_device(primary, RESOURCE)
        last = self.check()
        for name in self.others():
            self.catch_up(primary, self.hosts[name])
            self.held[name] = last
        self.held[self.primary] = last
        self.parted.clear()
        self.say(f"all hosts hold the writes up to {last}")

    def catch_up(self, primary: Host, host: Host) -> None:
        """By itself, or by `invalidate`, if that is what people are told."""
        try:
            host.wait(lambda: scenario.caught_up(primary, host, RESOURCE) or self.is_told(host), HEAL_S,
                      "what it needs")
        except HostError as problem:
            raise AssertionError(f"{host.name} neither catches up nor says what heals it\nseed {self.seed}: "
                                 f"{self.said}\n{problem}") from None
        if self.is_told(host) and not scenario.caught_up(primary, host, RESOURCE):
            self.tell(host, "invalidate", RESOURCE, accept=())
        scenario.wait_equal(primary, host, RESOURCE, HEAL_S)

    def is_told(self, host: Host) -> bool:
        """Whether mars-status on that host says that its replica has to be invalidated."""
        return f"marsadm invalidate {RESOURCE}" in host.run("mars-status", check=False).stdout
