"""A small world of 2 to 4 hosts for `test_handover_rules`: the real planner, right, merge rule and intake of the
exchange over disks, lines and logs in memory. One seed is one history.

Real: plan(), right_holder(), View, Store (merge, put, compare-and-swap, durability), Intake, Lamport.
Played here: the runner (the order of steps of `daemon.resource`), marsadm's `primary` (design 3.8, `admin.roles`),
logs (a log is an id and a length; what is written is durable at once), lines (units in order; a cut loses what is under
way), disks of the tree (a power cut keeps a prefix of the links since the last sync: the order of the journal).
"""
from __future__ import annotations

import random
from collections import defaultdict, deque
from collections.abc import Iterator
from dataclasses import dataclass, field

from marsx.base.position import LogPos
from marsx.daemon import plan as planner
from marsx.tree import paths
from marsx.tree.paths import NONE
from marsx.tree.roles import right_holder
from marsx.tree.store import Entry, order
from tests.sim.handover_host import PRIMARY, RES, SIZE, SWITCHES, Host, Log, Rules, Violation


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
        self.withdrawn: set[int] = set()
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
            if log.nr in self.logs and log.nr not in self.withdrawn:
                raise Violation(f"log {log.nr} is begun by {self.logs[log.nr].producer} and by {host.name}")
            if self.logs[pred.nr].producer != pred.producer:
                raise Violation(f"{host.name} begins log {log.nr} beside the history, after {pred}")
            end = self.logs[pred.nr].length
            if pred.pos != end:
                raise Violation(f"{host.name} begins log {log.nr} at {pred}, but log {pred.nr} ends at {end}")
        self.logs[log.nr] = log
        self.withdrawn.discard(log.nr)
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
            left = self.hosts[name].tree.links.get(PRIMARY)
            if order(left) < order(entry):
                raise Violation(f"{name} was primary by {entry}, but its disk says {left}")

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
