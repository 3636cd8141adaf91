"""What happens in `cluster_world`: the application, people with marsadm, kills, power cuts, cut lines, clocks."""
from __future__ import annotations

import asyncio
import os
from types import SimpleNamespace
from typing import Any

from marsx.admin import roles as admin_roles
from marsx.base.errors import MarsError
from marsx.base.position import log_name
from marsx.log import record
from marsx.log.record import BLOCK
from marsx.tree import paths
from marsx.tree.paths import NONE
from marsx.tree.roles import right_holder
from marsx.tree.store import Entry
from marsx.tree.view import View
from tests.sim.cluster_base import SECOND, START_NS, Base
from tests.sim.cluster_host import PRIMARY, RES, SWITCHES, Host
from tests.sim.cluster_volume import BLOCKS, SIZE, Volume

FLUSH_S = 0.02
EVENTS = (("write", 30), ("write_back", 8), ("tick", 8), ("rotate", 4), ("delete", 3), ("housekeep", 2), ("planned", 8),
          ("forced", 9), ("secondary", 1), ("switch", 2), ("invalidate", 1.5), ("use", 2), ("cut", 5), ("join", 5),
          ("kill", 4), ("power", 3), ("die_soon", 5), ("boot", 10), ("clock", 2), ("damage", 4))


class Chaos(Base):
    """Any order of anything."""

    async def _begin(self) -> None:
        """A cluster at rest: a has created the resource, all the others are in sync."""
        names = "abcde"[:self.rng.choices((2, 3, 4, 5), (9, 9, 1, 1))[0]]
        wishes = [(paths.uuid(), "u"), (paths.ip(names[0]), "10.0.0.1"), (PRIMARY, "a"), (paths.size(RES), str(SIZE)),
                  (paths.block_size(RES), str(BLOCK)), (paths.maxnr(RES), "0")]
        for name in names:
            wishes += [(paths.ip(name), "10.0.0.1"), (paths.data(RES, name), "/dev/x")]
            wishes += [(paths.todo(RES, name, switch), "1") for switch in SWITCHES]
        for name in names:
            self.hosts[name] = host = Host(self, name)
            stamp = START_NS - SECOND
            for number, (rel, value) in enumerate(wishes):
                host.tree.links[rel] = Entry(rel, value, stamp + number)
            first = (paths.syncstatus(RES, name), str(SIZE)), (paths.replay(RES, name), "log-000000001-a,0,0")
            for rel, value in first:
                host.tree.links[rel] = Entry(rel, value, stamp + 1000)
        for host in self.hosts.values():
            self.boot(host)
        await asyncio.sleep(0.5)
        self._write(self.hosts["a"])
        await asyncio.sleep(self.rng.random() * 0.3)

    async def _chaos(self) -> None:
        rng = self.rng
        for _ in range(rng.randint(10, 30)):
            await asyncio.sleep(rng.random() ** 3 * 0.8)
            self.look()
            host = rng.choice(list(self.hosts.values()))
            names, weights = zip(*EVENTS, strict=True)
            getattr(self, f"_do_{rng.choices(names, weights)[0]}")(host)
            self.network()

    # ---- events ----

    def _primary(self) -> Host | None:
        serving = [host for host in self.hosts.values() if host.up and host.volume is not None]
        return self.rng.choice(serving) if serving else None

    def _do_write(self, _: Host) -> None:
        host = self._primary()
        if host is not None:
            self._write(host, flush=self.rng.random() < 0.7)

    def _write(self, host: Host, flush: bool = True) -> None:
        volume, producer = host.volume, host.runner.producer
        if volume is None or producer is None or not producer.device or volume.header is None:
            return
        for _ in range(self.rng.randint(1, 3)):
            volume.write(self.rng.randrange(BLOCKS))
        if flush:
            volume.flush()
        else:
            self.loop.call_later(FLUSH_S, self._flush, host, volume, context=self.neutral)

    def _flush(self, host: Host, volume: Volume) -> None:
        """By itself, soon after a write."""
        if host.volume is volume and host.up:
            volume.flush()

    def flushed_more(self, host: Host, volume: Volume) -> None:
        """What was promised."""
        assert volume.header is not None
        self.flushed[volume.header.log_id] = volume.durable
        producer = host.runner.producer
        if producer is not None and producer.primary.volume is volume:  # type: ignore[comparison-overlap]
            self.on(host, producer._moved)
        self.wake(host.name)

    def _do_write_back(self, _: Host) -> None:
        host = self._primary()
        if host is not None and host.runner.producer is not None:
            self.spawn(host, self._write_back(host))

    async def _write_back(self, host: Host) -> None:
        producer = host.runner.producer
        if producer is not None and producer.device:
            producer.primary.write_back()  # type: ignore[attr-defined]

    def _do_tick(self, host: Host) -> None:
        if host.up:
            self.spawn(host, host.runner.tick())

    def _do_rotate(self, _: Host) -> None:
        host = self._primary()
        if host is not None:
            self.spawn(host, host.command("log-rotate"))

    def _do_delete(self, host: Host) -> None:
        if host.up:
            self.spawn(host, host.command("log-delete-all"))

    def _do_housekeep(self, host: Host) -> None:
        if host.up:
            self.on(host, host.housekeep) if host.dies_in < 0 else None

    def _do_planned(self, host: Host) -> None:
        if host.up:
            self.spawn(host, self.planned(host, self.rng.random() * 4))

    def _do_forced(self, host: Host) -> None:
        if host.up and self.force:
            self.spawn(host, self.forcing(host))

    def _do_secondary(self, host: Host) -> None:
        if host.up and host.view_designated() == host.name:
            self.note(f"secondary on {host.name}")
            host.store.put_weak(PRIMARY, NONE, durable=True)

    def _do_switch(self, host: Host) -> None:
        if host.up:
            rel = paths.todo(RES, host.name, self.rng.choice(SWITCHES))
            host.store.put(rel, "0" if host.store.get(rel) == "1" else "1")
            self.note(f"{rel} = {host.store.get(rel)}")

    def _do_invalidate(self, host: Host) -> None:
        if host.up:
            self.note(f"invalidate on {host.name}")
            self.spawn(host, host.command("invalidate"))

    def _do_use(self, host: Host) -> None:
        host.in_use = not host.in_use

    def _do_cut(self, host: Host) -> None:
        others = [other for other in self.hosts if other != host.name]
        chosen = others if self.rng.random() < 0.4 else [self.rng.choice(others)]
        self.note(f"{host.name} is cut off from {chosen}")
        for other in chosen:
            pairs = [(host.name, other), (other, host.name)]
            for pair in pairs if self.rng.random() < 0.8 else pairs[:1]:
                self.lines[pair].blocked = True
                self.cut(*pair)

    def _do_join(self, host: Host) -> None:
        self.note(f"lines of {host.name} are back")
        for pair, line in self.lines.items():
            if host.name in pair:
                line.blocked = False

    def _do_kill(self, host: Host) -> None:
        if host.up:
            self.crash(host, power=False)

    def _do_power(self, host: Host) -> None:
        for one in list(self.hosts.values()) if self.rng.random() < 0.2 else [host]:
            if one.up:
                self.crash(one, power=True)

    def _do_die_soon(self, host: Host) -> None:
        if host.up:
            host.dies_in = self.rng.randint(1, 25)

    def _do_damage(self, host: Host) -> None:
        """A log of a host is not what it was, when the host starts the next time. Only where somebody may use force."""
        logs = host.store.log_files(RES) if self.force else []
        if not logs:
            return
        if host.up:
            self.crash(host, power=False)
        at = int(host.store.get(paths.replay(RES, host.name))[4:13] or 0)
        due = [log for log in logs if log.nr >= at]
        one = self.rng.choice(due if due and self.rng.random() < 0.8 else logs)
        path = os.path.join(host.logs, log_name(one.nr, one.producer))
        what = self.rng.choice(("bit", "bit", "header", "gone", "short"))
        if not self._is_known(host, one.nr, path):
            return
        size = os.path.getsize(path)
        if what == "gone":
            os.unlink(path)
        elif what == "short":
            os.truncate(path, self.rng.randrange(0, size + 1, BLOCK))
        else:
            with open(path, "r+b") as file:
                file.seek(0 if what == "header" or size <= BLOCK else self.rng.randrange(BLOCK, size))
                file.write(bytes([self.rng.randrange(256)]))
        if self.rng.random() < 0.5:
            host.hint = "", ""
        self.damaged += 1
        self.note(f"{what} in {os.path.basename(path)} of {host.name}")
        if self.rng.random() < 0.5:
            asyncio.ensure_future(self._force_alone(host))

    def _is_known(self, host: Host, nr: int, path: str) -> bool:
        """Does the own tree tell how far this log goes? What nobody knows of may be gone like a torn tail."""
        if not os.path.exists(path):
            return False
        with open(path, "rb") as file:
            block = file.read(BLOCK)
        log = self.truth.logs[record.FileHeader.parse(block).log_id] if not record.is_rotten(block) else None
        said = View(host.tree.links.values()).version(RES, host.name, nr)
        if log is None or said is None or said.end.pos.producer != log.header.producer:
            return False
        host.tree.sync()
        return all(end <= said.end.pos.pos or BLOCK + end > os.path.getsize(path) for _, end, _, _ in log.groups)

    async def _force_alone(self, host: Host) -> None:
        """Nobody else can be reached: what holds of its logs is all there is."""
        if self.peaceful:
            return
        for pair, line in self.lines.items():
            if host.name in pair:
                line.blocked = True
                self.cut(*pair)
        if not host.up:
            self.boot(host)
        await asyncio.sleep(0.5)
        if host.up and not self.peaceful:
            self.spawn(host, self.forcing(host))

    def _do_boot(self, _: Host) -> None:
        for one in self.hosts.values():
            if not one.up and self.rng.random() < 0.7:
                self.boot(one)

    def _do_clock(self, host: Host) -> None:
        host.skew = self.rng.choice((-1, 1)) * int(10 ** self.rng.uniform(8, 13.3))
        self.skewed = True
        self.note(f"the clock of {host.name} is {host.skew / SECOND:.1f} s off")

    # ---- marsadm ----

    async def planned(self, host: Host, patience: float) -> bool:
        """`marsadm primary` (design 3.8)."""
        store, deadline = host.store, self.loop.seconds + patience
        if host.view_designated() == host.name:
            return True
        try:
            admin_roles.check_planned(self.admin(host), self.view(host), RES)
        except MarsError as err:
            self.note(f"primary on {host.name}: {err.text}")
            return False
        self.note(f"primary on {host.name}")
        store.put(paths.want_primary(RES, host.name), f"{self.rng.getrandbits(32):08x}")
        given = admin_roles._Given(SimpleNamespace(store=store, note=self.note), RES)  # type: ignore[arg-type]
        given.give()
        try:
            while True:
                await asyncio.sleep(0.02)
                view = self.view(host)
                right, taken = right_holder(view, RES), view.designated(RES)
                if right is not None and right.host == host.name:
                    self._decide(host)
                    return True
                if taken and taken != host.name or self.loop.seconds > deadline:
                    return False
        finally:
            if host.up:
                self._take_back(host, given)
                store.put(paths.want_primary(RES, host.name), "0")

    def _decide(self, host: Host, *more: tuple[str, str]) -> None:
        """This host is to be primary: somebody really wants that."""
        before = host.store.entry(PRIMARY)
        host.store.put_many([(PRIMARY, host.name), *more])
        if host.store.entry(PRIMARY) != before:
            self.decided = self.decided[-1:] + [self.loop.seconds]

    def _take_back(self, host: Host, given: Any) -> None:
        """Rule 24: never over a genuine primary, here or elsewhere."""
        none, before = given._none, host.store.entry(PRIMARY)
        given.take_back()
        after = host.store.entry(PRIMARY)
        if after == before or none is None or after is None:
            return
        if before != none:
            raise self.broken(f"rule 24: {host.name} takes back {after}, over {before}")
        self.taken_back[after.stamp] = self.loop.seconds, none.stamp

    def check_roles(self) -> None:
        """Rule 24, in peace: who was made primary while somebody waited in vain, is. Clocks have to be right for that:
        else what comes later may have the lower stamp."""
        entry = self.hosts["a"].store.entry(PRIMARY)
        when, none = self.taken_back.get(entry.stamp if entry else 0, (0.0, 0))
        later = START_NS + int(max(self.decided, default=0.0) * SECOND)
        if when and not self.skewed and none < later and max(self.decided) < when - 2.0:
            raise self.broken(f"rule 24: what was taken back at {when} won over who was made primary at {self.decided}")

    async def forcing(self, host: Host) -> bool:
        """`marsadm disconnect`, `marsadm primary --force`; then up again, as soon as the device is there."""
        host.store.put(paths.todo(RES, host.name, "connect"), "0")
        await asyncio.sleep(0.05)
        try:
            admin_roles.check_forced(self.admin(host), self.view(host), RES)
        except MarsError as err:
            self.note(f"primary --force on {host.name}: {err.text}")
            host.store.put(paths.todo(RES, host.name, "connect"), "1")
            return False
        self.note(f"primary --force on {host.name}")
        self.forced += 1
        self.check_force(host)
        self._decide(host, (paths.want_primary(RES, host.name), f"{paths.FORCE}{self.rng.getrandbits(32):08x}"))
        for _ in range(100):
            await asyncio.sleep(0.05)
            view = self.view(host)
            if view.designated(RES) != host.name:
                break
            if view.actual(RES, host.name, "is-primary") == "1":
                host.store.put_many([(paths.todo(RES, host.name, switch), "1") for switch in SWITCHES])
                return True
        host.store.put(paths.todo(RES, host.name, "connect"), "1")
        return False

    def check_force(self, host: Host) -> None:
        """Rule 23: nobody who can be reached, and of whom this host has heard that he has more of the same history, is
        passed over."""
        view = self.view(host)
        ends = {one: [self.truth.points.get(text.partition(",")[0]) for _, text in sorted(links.items())][-1]
                for one, links in view.version_texts(RES).items() if links}
        here = ends.get(host.name)
        for other in self.reachable(host.name):
            if view.sound(RES, other) or view.sound(RES, host.name) or here is None or ends.get(other) is None:
                continue
            if self.truth.holds(ends[other], here) and not self.truth.holds(here, ends[other]):
                raise self.broken(f"rule 23: {other} has more of the history than {host.name}, which is forced")

    def view(self, host: Host) -> View:
        """What marsadm sees there."""
        return View(host.store.snapshot(), dict.fromkeys(self.reachable(host.name), 0.0))

    def admin(self, host: Host) -> Any:
        """As much of a Context as the checks need."""
        options = SimpleNamespace(force=False, ignore_sync=False, accept_position="", timeout=1.0)
        return SimpleNamespace(host=host.name, options=options, dry=False, clock_ns=lambda: self.now,
                               view=lambda: self.view(host))
