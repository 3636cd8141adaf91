"""One host of `handover_world`: its tree on a disk in memory, its logs, and its runner."""
from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from marsx.base.config import Paths
from marsx.base.lamport import Lamport
from marsx.base.position import LogPos
from marsx.daemon import plan as planner
from marsx.daemon.exchange import Intake
from marsx.daemon.plan import Local
from marsx.tree import paths
from marsx.tree.paths import DELETED
from marsx.tree.roles import right_holder
from marsx.tree.store import Entry, Store
from marsx.tree.view import View

if TYPE_CHECKING:
    from tests.sim.handover_world import World

RES = "r"
GROUP = 4096
SIZE = 1 << 20
SWITCHES = ("attach", "connect", "sync", "allow-replay")
PRIMARY = paths.primary(RES)


class Violation(AssertionError):
    """A rule was broken."""


class TreeDisk:
    """The links of one host's tree, and what a power cut leaves of them."""

    def __init__(self) -> None:
        self.links: dict[str, Entry] = {}
        self._journal: list[tuple[str, Entry | None]] = []

    def write(self, entry: Entry) -> None:
        """A link that is not yet synced."""
        self._journal.append((entry.rel, self.links.get(entry.rel)))
        self.links[entry.rel] = entry

    def sync(self) -> None:
        """All is durable."""
        self._journal.clear()

    def power_cut(self, rng: random.Random) -> list[Entry]:
        """Some of the newest links are gone; which."""
        gone = []
        for _ in range(rng.randint(0, len(self._journal))):
            rel, old = self._journal.pop()
            gone.append(self.links.pop(rel))
            if old is not None:
                self.links[rel] = old
        self._journal.clear()
        return gone


class MemoryStore(Store):
    """The real store over a TreeDisk."""

    def __init__(self, host: str, lamport: Lamport, tree: TreeDisk) -> None:
        super().__init__(Paths(mars_dir="/nowhere"), host, lamport)
        self._lock = contextlib.nullcontext()  # type: ignore[assignment]
        self._tree = tree
        self._reconcile(dict(tree.links), [])

    def _read(self, rel: str) -> Entry | None:
        return self._tree.links.get(rel)

    def _write(self, entry: Entry) -> None:
        self._tree.write(entry)
        self.lamport.see(entry.stamp)
        self._cache[entry.rel] = entry

    def make_durable(self, rels) -> None:  # type: ignore[no-untyped-def]
        self._tree.sync()
        self._durable.update((rel, self._cache[rel]) for rel in rels if rel in self._cache)


@dataclass
class Log:
    """A log as its producer wrote it. `length` grows while it is produced."""

    nr: int
    producer: str
    number: int  # unique in the world
    pred: LogPos | None
    pred_digest: str
    length: int = 0

    def at(self, pos: int) -> LogPos:
        """A position in it."""
        return LogPos(self.nr, self.producer, pos)

    def digest(self, pos: int) -> str:
        """Chain digest."""
        return f"{self.number:08x}{pos:024x}"


@dataclass
class Rules:
    """What is switched on; a test of a rule takes it out."""

    grant: bool = True  # rule 18
    ordered: bool = True  # rule 19
    durable_role: bool = True  # rule 21
    weak_rollback: bool = True  # rule 24
    step_back: bool = True  # rule 7: a fetched log that is empty is dropped for another one of that number
    force: bool = False  # primary --force happens (then two hosts may write the same log number)


class Host:
    """One host: tree, log files (durable), runner."""

    def __init__(self, world: World, name: str) -> None:
        self.world, self.name = world, name
        self.tree = TreeDisk()
        self.logs: dict[int, tuple[Log, int]] = {}  # number -> (log, how much of it is here)
        self.floor = 0
        self.up = False
        self.torn: set[str] = set()  # hosts whose facts here may be a picture that a power cut has torn
        self.boot()

    # ---- life ----

    def boot(self) -> None:
        """Start marsd on what the disks hold."""
        self.up = True
        self.lamport = Lamport(lambda: self.world.now, self.floor)
        self.store = MemoryStore(self.name, self.lamport, self.tree)
        self.intake = Intake(self.store, self._foreign_own)
        self.store.on_change(self._changed)
        self.producer: Log | None = None
        self.at: LogPos | None = None
        self.fetched: LogPos | None = None
        self.fetch_from = ""
        self.replaying = False
        self.kicked = True
        self._view: View | None = None
        self.runner = self._run()
        self.admin: Iterator[None] | None = None

    def crash(self, power: bool) -> None:
        """kill -9 of everything, or a power cut."""
        self.up = False
        self.floor = self.lamport.high_water
        if power:
            self.torn = set(self.world.hosts) - {self.name}
            for entry in self.tree.power_cut(self.world.rng):
                self.world.forget(self.name, entry)

    def _foreign_own(self, sender: str, entries: list[Entry]) -> None:
        again = [(e.rel, value) for e in entries if (value := self.store.get(e.rel))]
        if again:
            self.store.put_many(again, restamp=True)

    def _changed(self, rels: list[str]) -> None:
        self._view = None
        self.kicked = True
        self.world.changed(self, rels)

    def view(self) -> View:
        """The tree at this moment."""
        if self._view is None:
            self._view = View(self.store.entries(), {})
        return self._view

    # ---- the runner: the steps of daemon.resource in their order; `yield` is where it awaits ----

    def _run(self) -> Iterator[None]:
        while True:
            if self.kicked:
                self.kicked = False
                yield from self._step()
            yield

    def local(self) -> Local:
        """As the runner tells the planner."""
        return Local(
            attached=True, primary=self.producer is not None, recovered=self.at is not None, at=self.at,
            digest=self._digest(self.at), fetched=self.fetched, fetched_digest=self._digest(self.fetched),
            connected=frozenset(self.world.reachable(self.name)),
            role_durable=not self.world.rules.durable_role or self.store.is_durable(PRIMARY))

    def _digest(self, at: LogPos | None) -> str:
        return self.logs[at.nr][0].digest(at.pos) if at is not None and at.nr in self.logs else ""

    def _step(self) -> Iterator[None]:
        if self.world.rules.durable_role and not self.store.is_durable(PRIMARY):
            self.store.make_durable([PRIMARY])
            yield
        want = planner.plan(self.view(), RES, self.name, self.local())
        self.fetch_from, self.replaying = want.fetch_from, want.replay
        if self.producer is not None and not want.primary:
            yield from self._give_up()
        elif self.producer is None and self.at is None:
            self._recover()
        elif want.primary and self.producer is None:
            yield from self._become_primary()
        elif want.grant_to and self.producer is None:
            self._grant(want.grant_to)

    def _recover(self) -> None:
        replay = self.view().replay(RES, self.name)
        assert replay is not None
        self.at, nr = replay.pos, max(self.logs)
        self.fetched = self.logs[nr][0].at(self.logs[nr][1])
        self._withdraw_own()
        self.publish()
        self.kicked = True

    def _withdraw_own(self) -> None:
        """Rule 7: the producer of an empty log takes it back when it steps down."""
        log = self.logs[max(self.logs)][0]
        if log.producer == self.name and self._drop_empty():
            self.world.withdrawn.add(log.nr)

    def _drop_empty(self) -> bool:
        """The newest log is empty: back to the end of the one before."""
        log, length = self.logs[max(self.logs)]
        if length or log.pred is None:
            return False
        if self.at is not None and self.at.nr == log.nr:
            self.at = log.pred
            # Durable first: a power cut must not put the position back into a log that is gone.
            self.store.put(paths.replay(RES, self.name), f"{log.pred},0", durable=True)
        del self.logs[log.nr]
        self.store.put_many([(paths.version(RES, log.nr, self.name), DELETED)])
        self.fetched = log.pred
        return True

    def _become_primary(self) -> Iterator[None]:
        self.fetch_from, self.replaying = "", False
        acted = self.store.entry(PRIMARY)
        assert acted is not None
        yield
        last, length = self.logs[max(self.logs)]
        log = self.world.start_log(self, last.at(length), last.digest(length))
        self.logs[log.nr] = (log, 0)
        self.producer, self.at, self.fetched = log, log.at(0), log.at(0)
        self.world.acted[self.name] = acted
        yield
        self._version(log, 0)
        self.store.put_many([(paths.replay(RES, self.name), f"{log.at(0)},0")])
        yield
        self._fact("is-primary", "1")
        self.store.put(paths.want_primary(RES, self.name), "0")
        self.kicked = True

    def _give_up(self) -> Iterator[None]:
        if self.world.rng.random() < 0.2:  # the device is in use
            self.kicked = True
            return
        yield
        log = self.producer
        assert log is not None
        self._version(log, log.length)
        self.store.put_many([(paths.replay(RES, self.name), f"{log.at(log.length)},0")])
        yield
        self.store.make_durable([paths.version(RES, log.nr, self.name), paths.replay(RES, self.name)])
        self.producer, self.at, self.fetched = None, log.at(log.length), log.at(log.length)
        self._withdraw_own()
        yield
        waiting = planner.plan(self.view(), RES, self.name, self.local()).grant_to
        if waiting:
            self._grant(waiting)
        self._fact("is-primary", "0")
        self.kicked = True

    def _grant(self, host: str) -> None:
        right = right_holder(self.view(), RES)
        at, digest = self.at, self._digest(self.at)
        if right is not None and right.mark is not None:
            at, digest = right.mark.pos, right.mark.digest
        self.world.grants += 1
        self.store.put(paths.granted(RES, self.name), f"{host},{at},{digest}", durable=True, restamp=True)

    def _fact(self, key: str, value: str) -> None:
        self.store.put_many([(paths.actual(RES, self.name, key), value)])

    def _version(self, log: Log, pos: int) -> None:
        before = f"{log.pred_digest},{log.pred}" if log.pred else ""
        self.store.put(paths.version(RES, log.nr, self.name), f"{log.digest(pos)},{log.at(pos)}:{before}")

    # ---- data ----

    def write(self) -> None:
        """The application writes."""
        if self.producer is not None:
            self.producer.length += GROUP * self.world.rng.randint(1, 3)
            self.logs[self.producer.nr] = (self.producer, self.producer.length)

    def publish(self) -> None:
        """Version link of the newest log here."""
        log, length = self.logs[max(self.logs)]
        self._version(log, length)

    def fetch(self) -> None:
        """Take what the source has, all or a part."""
        source = self.world.hosts.get(self.fetch_from)
        if source is None or self.fetched is None or not source.up or not self.world.lines[self.name, source.name].up:
            return
        nr = self.fetched.nr
        log, length = self.logs[nr]
        theirs = source.logs.get(nr)
        after = source.logs.get(nr + 1)
        if theirs is None:
            return
        if theirs[0] is not log:
            # Another log of this number: ours is no history if it is empty (rule 7), else it is a split.
            self.kicked = self.world.rules.step_back and self._drop_empty()
            return
        if theirs[1] > length:
            length += GROUP * self.world.rng.randint(1, (theirs[1] - length) // GROUP)
            self.logs[nr] = (log, length)
            self.fetched = log.at(length)
        elif after is not None and after[0].pred == log.at(length):
            self.logs[nr + 1] = (after[0], 0)
            self.fetched = after[0].at(0)
        else:
            return
        self.publish()
        self.kicked = True

    def replay(self) -> None:
        """Bring a part of what is fetched to the disk."""
        if not self.replaying or self.at is None or self.fetched is None or self.at == self.fetched:
            return
        log, length = self.logs[self.at.nr]
        if self.at.pos < length:
            self.at = log.at(self.at.pos + GROUP * self.world.rng.randint(1, (length - self.at.pos) // GROUP))
        else:
            self.at = self.logs[self.at.nr + 1][0].at(0)
        self.store.put(paths.replay(RES, self.name), f"{self.at},0")
        self.kicked = True
