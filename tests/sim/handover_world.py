"""A small world of 2 to 4 hosts for `test_handover_rules`: the real planner, right, merge rule and intake of the
exchange over disks, lines and logs in memory. One seed is one history.

Real: plan(), right_holder(), View, Store (merge, put, compare-and-swap, durability), Intake, Lamport.
Played here: the runner (the order of steps of `daemon.resource`), marsadm's `primary` (design 3.8, `admin.roles`), logs
(a log is an id and a length; what is written is durable at once), lines (units in order; a cut loses what is under way),
disks of the tree (a power cut keeps a prefix of the links since the last sync: the order of the journal).
"""
from __future__ import annotations

import contextlib
import random
from collections import defaultdict, deque
from collections.abc import Iterator
from dataclasses import dataclass, field

from marsx.base.config import Paths
from marsx.base.lamport import Lamport
from marsx.base.position import LogPos
from marsx.daemon import plan as planner
from marsx.daemon.exchange import Intake
from marsx.daemon.plan import Local
from marsx.tree import paths
from marsx.tree.paths import NONE
from marsx.tree.roles import right_holder
from marsx.tree.store import Entry, Store, order
from marsx.tree.view import View

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
        self.publish()
        self.kicked = True

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
        if theirs is None or theirs[0] is not log:
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


@dataclass
class Line:
    """From one host to another: units under way."""

    up: bool = False
    session: bool = False  # the receiver has not noticed the end yet
    full: bool = False  # the next unit is everything
    units: deque[list[Entry]] = field(default_factory=deque)


class World:
    """See the module."""

    def __init__(self, seed: int, rules: Rules | None = None, size: int = 0) -> None:
        self.rng = random.Random(seed)
        self.rules = rules or Rules()
        self.now = 1_000_000_000_000_000_000
        self.logs: dict[int, Log] = {}
        self.started = self.grants = 0
        self.history: dict[str, dict[str, list[int]]] = defaultdict(lambda: defaultdict(list))
        self.genuine: list[Entry] = []
        self.rollbacks: list[tuple[Entry, Entry]] = []
        self.acted: dict[str, Entry] = {}
        self.lines: dict[tuple[str, str], Line] = defaultdict(Line)
        self.hosts: dict[str, Host] = {}
        names = "abcd"[: size or self.rng.randint(2, 4)]
        self.hosts = {name: Host(self, name) for name in names}
        self._begin(names)

    def _begin(self, names: str) -> None:
        """A cluster at rest: `a` is primary of log 1, all have all of it."""
        log = Log(1, "a", 1, None, "")
        self.logs[1], self.started = log, 1
        wishes = [(paths.ip(n), "10.0.0.1") for n in names] + [(paths.size(RES), str(SIZE)), (PRIMARY, "a")]
        for name in names:
            wishes += [(paths.data(RES, name), "/dev/x"), *((paths.todo(RES, name, s), "1") for s in SWITCHES)]
        first = self.hosts["a"]
        first.store.put_many(wishes)
        for host in self.hosts.values():
            host.store.merge([] if host is first else first.store.wishes(), "a")
            host.logs[1] = (log, 0)
            host.store.put_many([(paths.syncstatus(RES, host.name), str(SIZE)),
                                 (paths.replay(RES, host.name), f"{log.at(0)},0"),
                                 (paths.actual(RES, host.name, "is-primary"), "1" if host is first else "0")])
            host.publish()
            host.store.make_durable(host.store.names())
        first.producer, first.at, first.fetched = log, log.at(0), log.at(0)
        for a in names:
            for b in names:
                if a != b:
                    self.connect(a, b)
        self.settle()
        self.now += 10_000_000_000

    # ---- what the checkers see ----

    def start_log(self, host: Host, pred: LogPos, digest: str) -> Log:
        """Rule 18: log N+1 is begun by one host only, and just at the end of N; nobody else has a device."""
        self.started += 1
        log = Log(pred.nr + 1, host.name, self.started, pred, digest)
        if not self.rules.force:
            others = [h.name for h in self.hosts.values() if h is not host and h.up and h.producer is not None]
            if others:
                raise Violation(f"{host.name} becomes primary beside {others}")
            if log.nr in self.logs:
                raise Violation(f"log {log.nr} is begun by {self.logs[log.nr].producer} and by {host.name}")
            end = self.logs[pred.nr].length
            if pred.pos != end:
                raise Violation(f"{host.name} begins log {log.nr} at {pred}, but log {pred.nr} ends at {end}")
        self.logs.setdefault(log.nr, log)
        return log

    def check_order(self, host: Host) -> None:
        """Rule 19: what a host sees of another one is a state that was there: no newer fact without the older ones.
        (A power cut may tear the picture on the host's own disk; then the other host's next full exchange heals it.)"""
        for other, facts in self.history.items():
            if other == host.name or other in host.torn:
                continue
            seen = {rel: host.store.stamp(rel) for rel in facts}
            newest = max(seen.values(), default=0)
            for rel, stamps in facts.items():
                due = max((stamp for stamp in stamps if stamp < newest), default=0)
                if seen[rel] < due:
                    raise Violation(f"{host.name} sees a fact of {other} written at {newest}, but not {rel} of {due}")

    def check_roles_kept(self) -> None:
        """Rule 21: the role that a host has acted upon is not forgotten by a power cut."""
        for name, entry in self.acted.items():
            if order(self.hosts[name].tree.links.get(PRIMARY)) < order(entry):
                raise Violation(f"{name} was primary by {entry}, but its disk says {self.hosts[name].tree.links[PRIMARY]}")

    def check_rollback(self) -> None:
        """Rule 24: no decision for a primary is lost to the way back of a `primary` that timed out."""
        winner = max((host.store.entry(PRIMARY) for host in self.hosts.values()), key=order)
        for none, back in self.rollbacks:
            for taken in self.genuine:
                if winner == back and taken.stamp > none.stamp + 1 and order(taken) < order(back):
                    raise Violation(f"{back} was taken back over {taken}")

    def forget(self, name: str, entry: Entry) -> None:
        """A power cut took this."""
        stamps = self.history[name].get(entry.rel, [])
        if entry.stamp in stamps:
            stamps.remove(entry.stamp)

    # ---- lines ----

    def reachable(self, name: str) -> set[str]:
        """Hosts that can hear `name`."""
        return {b for (a, b), line in self.lines.items() if a == name and line.up}

    def changed(self, host: Host, rels: list[str]) -> None:
        """Push it on, as the exchange does; note own facts."""
        for rel in rels:
            name, entry = paths.parse(rel), host.store.entry(rel)
            if name is not None and entry is not None and name.writer == "fact" and name.host == host.name:
                stamps = self.history[host.name][rel]
                if entry.stamp not in stamps:
                    stamps.append(entry.stamp)
        for other in self.reachable(host.name):
            news = [host.store.entry(rel) for rel in rels if not host.intake.is_echo(other, rel)]
            unit = sorted((e for e in news if e is not None), key=lambda entry: entry.stamp)
            if unit:
                self.lines[host.name, other].units.append(unit)

    def connect(self, a: str, b: str) -> None:
        """A new line begins with everything."""
        line, host, other = self.lines[a, b], self.hosts[a], self.hosts[b]
        if line.up or not host.up or not other.up:
            return
        self.notice(a, b)
        line.up = line.session = line.full = True
        line.units = deque([host.store.entries()])
        other.intake.begin(a)
        host.kicked = True

    def cut(self, a: str, b: str) -> None:
        """What is under way is lost; the receiver notices later."""
        line = self.lines[a, b]
        line.up = False
        line.units.clear()
        self.hosts[a].kicked = True

    def notice(self, a: str, b: str) -> None:
        """The receiver sees that the session is over."""
        line = self.lines[a, b]
        if line.session and not line.up:
            line.session = False
            if self.hosts[b].up:
                self.hosts[b].intake.end(a)
                self.check_order(self.hosts[b])

    def deliver(self, a: str, b: str) -> None:
        """One unit (or, with rule 19 taken out, any of the entries under way, alone)."""
        line, host = self.lines[a, b], self.hosts[b]
        if not line.units or not host.up:
            return
        if self.rules.ordered:
            unit = line.units.popleft()
        else:
            loose = [entry for unit in line.units for entry in unit]
            unit = [loose.pop(self.rng.randrange(len(loose)))]
            line.units = deque([[entry] for entry in loose])
        host.torn |= self.hosts[a].torn - {b}
        if line.full:
            host.torn.discard(a)
            line.full = False
        host.intake.take(a, unit)
        self.check_order(host)

    # ---- what happens ----

    def crash(self, host: Host, power: bool) -> None:
        """Host down, with all its lines."""
        for a, b in [pair for pair in self.lines if host.name in pair]:
            self.cut(a, b)
            if b == host.name:
                self.lines[a, b].session = False
        host.crash(power)
        if power:
            self.check_roles_kept()

    def settle(self, rounds: int = 60) -> None:
        """Everything goes on, in turn, for a while."""
        for _ in range(rounds):
            self.now += 50_000_000
            for pair in list(self.lines):
                self.notice(*pair)
                while self.lines[pair].units:
                    self.deliver(*pair)
            for host in self.hosts.values():
                for _ in range(4):
                    next(host.runner)
                host.fetch()
                host.replay()
                self.step_admin(host)

    def heal(self) -> None:
        """All hosts up, all lines up."""
        for host in self.hosts.values():
            if not host.up:
                host.boot()
        for a in self.hosts:
            for b in self.hosts:
                if a != b:
                    self.connect(a, b)

    def must_get_it(self, name: str) -> None:
        """Liveness: with all hosts and lines up, who asks for the role gets it, whoever holds the right."""
        host = self.hosts[name]
        for _ in range(3):  # people ask again when somebody else asked at the same time
            host.admin = planned(host, self.now + 20_000_000_000)
            self.settle(120)
            if host.producer is not None and host.view().designated(RES) == name:
                return
        right = right_holder(host.view(), RES)
        raise Violation(f"{name} does not become primary: primary is {host.store.get(PRIMARY)}, the right {right}, "
                        f"{planner.plan(host.view(), RES, name, host.local())}")

    def check_equal(self) -> None:
        """All hosts have the same tree, as far as it decides about roles."""
        trees = [[e for e in host.store.entries() if e.rel == PRIMARY or "granted" in e.rel or "version" in e.rel]
                 for host in self.hosts.values()]
        if any(tree != trees[0] for tree in trees):
            raise Violation("the trees differ although all is quiet")

    def step_admin(self, host: Host) -> None:
        """marsadm looks again."""
        if host.admin is not None and next(host.admin, True):
            host.admin = None

    def chaos(self, events: int = 220) -> None:
        """Any order of anything."""
        rng, names = self.rng, list(self.hosts)
        pairs = [(a, b) for a in names for b in names if a != b]
        for _ in range(events):
            self.now += rng.randint(1, 150_000_000)
            host, pair = self.hosts[rng.choice(names)], rng.choice(pairs)
            dice = rng.random()
            if dice < 0.30:
                self.deliver(*pair)
            elif dice < 0.55:
                if host.up:
                    next(host.runner)
            elif dice < 0.80:
                if host.up:
                    rng.choice((host.fetch, host.fetch, host.replay, host.replay, host.write, host.publish))()
            else:
                self._rare(host, pair)

    def _rare(self, host: Host, pair: tuple[str, str]) -> None:
        dice = self.rng.random()
        if dice < 0.40:
            if host.up and host.admin is None and dice < 0.12:
                force = self.rules.force and self.rng.random() < 0.5
                host.admin = forced(host) if force else planned(host, self.now + self.rng.randint(1, 4_000_000_000))
            elif host.up:
                self.step_admin(host)
        elif dice < 0.52:
            self.cut(*pair)
            if self.rng.random() < 0.5:
                self.cut(*reversed(pair))
        elif dice < 0.65:
            self.notice(*pair)
        elif dice < 0.80:
            self.connect(*pair)
        elif dice < 0.86:
            if host.up:
                self.crash(host, power=self.rng.random() < 0.6)
        elif dice < 0.88:
            for one in self.hosts.values():
                if one.up:
                    self.crash(one, power=True)
        elif not host.up:
            host.boot()


# ---- marsadm primary (design 3.8) ----

def planned(host: Host, deadline: int) -> Iterator[None]:
    """`marsadm primary`: ask, wait for the right, take the role; else take the asking back."""
    store, world = host.store, host.world
    if host.view().designated(RES) == host.name:
        return
    store.put(paths.want_primary(RES, host.name), f"{world.rng.getrandbits(32):08x}")
    yield
    old, none = store.get(PRIMARY), None
    if old not in ("", NONE) and store.put_weak(PRIMARY, NONE, durable=True):
        none = store.entry(PRIMARY)
    try:
        while True:
            yield
            right, taken = right_holder(host.view(), RES), host.view().designated(RES)
            may = right is not None and right.host == host.name
            if may or not world.rules.grant and not host.view().actual_primaries(RES):
                store.put(PRIMARY, host.name)
                world.genuine.append(store.entry(PRIMARY))
                return
            if taken and taken != host.name or world.now > deadline:
                return
    finally:
        if none is not None:
            stamp = none.stamp + 1 if world.rules.weak_rollback else host.lamport.now()
            if host.up and store.put(PRIMARY, old, durable=True, stamp=stamp, expect=none):
                world.rollbacks.append((none, store.entry(PRIMARY)))
        if host.up:
            store.put(paths.want_primary(RES, host.name), "0")


def forced(host: Host) -> Iterator[None]:
    """`marsadm disconnect`, then `primary --force`."""
    host.store.put(paths.todo(RES, host.name, "connect"), "0")
    yield
    host.store.put(PRIMARY, host.name)
    host.world.genuine.append(host.store.entry(PRIMARY))
