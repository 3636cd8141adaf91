"""A cluster of 2 to 5 hosts in one process, by seed: what runs on each host is real (`cluster_host`), the world around
it is played: time, wire, power, people.

Chaos is any order of anything; then peace: all hosts and lines up, and people do what the manual says. What must hold
stands in the `check_*` functions:

    two primaries     no device beside another one, no log begun twice, unless somebody used force
    lost writes       without force, what was flushed (with kills only: what was acknowledged) is in the history that
                      all hosts end with
    equal bytes       who is consistent at a position has just the bytes of that position on its disk
    verdict           in peace all hosts say the same about a split brain, and it is said where histories have parted,
                      and nowhere else
    progress          after the documented repair everybody follows, anybody can become primary, and of the discarded
                      branch nothing is left in the live tree
"""
from __future__ import annotations

import asyncio

from marsx.tree import paths
from marsx.tree.roles import right_holder
from tests.sim.cluster_checks import Checks
from tests.sim.cluster_host import RES, SWITCHES, Host
from tests.sim.handover_host import Violation


class World(Checks):
    """See the module."""

    async def _main(self) -> None:
        await self._begin()
        try:
            await self._chaos()
            await self._peace()
            self.check_roles()
            self.check_verdict()
            await self._repair()
            if not self.hopeless:
                await self._progress()
        except Violation as err:
            self.note(self.picture())
            self.violation = self.violation or err

    async def _peace(self) -> None:
        """All up, all connected, all switched on, no device in use."""
        self.note("peace")
        self.peaceful = True
        for line in self.lines.values():
            line.blocked = False
        for host in self.hosts.values():
            host.in_use, host.skew, host.dies_in = False, 0, -1
            if not host.up:
                self.boot(host)
        self.network()
        await asyncio.sleep(1.0)
        for host in self.hosts.values():
            host.store.put_many([(paths.todo(RES, host.name, switch), "1") for switch in SWITCHES])
        await self.settle()
        self.note(self.picture())

    async def settle(self, seconds: int = 9) -> None:
        """Everything goes on for a while."""
        for _ in range(seconds // 3):
            self.network()
            for host in self.hosts.values():
                self._do_tick(host)
            await asyncio.sleep(3.0)
            self.look()
        for host in self.hosts.values():
            self.check_bytes(host)
            if "unexpected error" in host.site.view().messages(RES, host.name).get("err-resource", ""):
                raise self.broken(f"{host.name} had an unexpected error")

    async def _repair(self) -> None:
        """What the manual says: a primary, then `invalidate` on everybody who does not follow it."""
        winner = await self._winner()
        for _ in range(3 if winner else 0):
            assert winner is not None
            losers = [host for host in self.hosts.values() if host is not winner and not self.follows(host, winner)]
            for host in losers:
                self.note(f"{host.name} does not follow: invalidate")
                why = await self.spawn(host, host.command("invalidate"))
                if why:
                    self.note(why)
            await self.settle(6 if losers else 3)
            if all(self.follows(host, winner) for host in self.hosts.values() if host is not winner):
                return
        if winner is None:
            self.hopeless = True
            return
        raise self.broken(f"after the repair {[h.name for h in losers]} do not follow {winner.name}: "
                          + "; ".join(self.why(host) for host in losers))

    async def _winner(self) -> Host | None:
        """None: logs were damaged, and no disk is a whole state without them (--ignore-sync is not tried)."""
        for host in self.hosts.values():
            if host.volume is not None and host.view_designated() == host.name:
                return host
        named = self.hosts["a"].view_designated()
        order = sorted(self.hosts.values(), key=lambda host: (host.name != named, host.name))
        for force in (False, True):
            if force and not self.force:
                raise self.broken("without force nobody can become primary: "
                                  + "; ".join(self.why(host) for host in self.hosts.values()))
            for host in order:
                await self.spawn(host, self.forcing(host) if force else self.planned(host, 6))
                await self.settle(3)
                if host.volume is not None:
                    return host
        if self.damaged and all(self.is_half(host) for host in order):
            return None
        raise self.broken("nobody can become primary: " + "; ".join(self.why(host) for host in self.hosts.values()))

    async def _progress(self) -> None:
        """Anybody becomes primary, everybody follows; what was promised is there, nothing else is left."""
        host = self.rng.choice(list(self.hosts.values()))
        for _ in range(3):
            if await self.spawn(host, self.planned(host, 8)):
                break
        await self.settle(3)
        if host.volume is None:
            raise self.broken(f"{host.name} does not become primary: {self.why(host)}, "
                              f"{right_holder(host.site.view(), RES)}")
        self._write(host)
        await self.settle(3)
        for other in self.hosts.values() if self.damaged else ():
            if other is not host and self.point(other) != self.point(host):  # damage that is found only now
                await self.spawn(other, other.command("invalidate"))
                await self.settle(9)
        end = self.point(host)
        for other in self.hosts.values():
            if self.point(other) != end:
                raise self.broken(f"{other.name} does not follow {host.name}: {self.why(other)}")
        self.check_leftovers(end)
        if not self.forced and not self.damaged:
            self.check_writes(end)
