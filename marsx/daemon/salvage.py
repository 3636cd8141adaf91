"""`primary --force` over logs that do not hold (facts 5.4): the host takes over up to the last valid group.

    damage found -> `sound` (up to where the logs hold) and what would be lost are in the tree; it is healed from others
    force        -> what is lost is said, durably -> own facts end there, durably -> the logs end there
                    (`volume.salvage`), what lies behind is kept aside -> recovery, primary

Invariants:
    nothing is given up without force, and only what lies behind the last valid group that the disk position leads to;
        what force gives up is in the tree before it is gone: up to where, how many bytes, since when
    where the logs end inside a window that was being written, the disk is a mixture (rule 12): that needs --ignore-sync
    a device that outlived its worker is never put over a shorter history: who uses it has seen more
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from marsx.base import messages
from marsx.base.errors import MarsError
from marsx.base.position import LogPos, log_name
from marsx.daemon.plan import forced, ignores_sync
from marsx.log.chain import Point
from marsx.log.record import NO_DIGEST, FileHeader
from marsx.tree import paths
from marsx.tree.distance import LogMap
from marsx.tree.paths import DELETED
from marsx.tree.view import Mark, View
from marsx.volume import salvage
from marsx.volume.env import Env, point_before
from marsx.volume.recovery import Damage
from marsx.volume.salvage import Sound

if TYPE_CHECKING:
    from marsx.daemon.resource import Runner

LOG = messages.get("daemon.salvage")
LOST, WOULD_LOSE, REFUSED = "wrn-log-lost", "inf-log-sound", "err-force"
LOST_MEMORY = "lost memory"  # in place of a damage: all that is here holds, but others know of more
KEYS = (LOST, WOULD_LOSE, REFUSED)


class Salvage:
    """Of one resource on a host. See the module."""

    def __init__(self, runner: Runner) -> None:
        self._runner = runner
        self._looked: Damage | str | None = None
        self._refused: tuple[Damage | str, str] | None = None  # what, and by which wish it was to be taken over
        self._bridge = ""  # the empty log that was begun behind damaged ones

    async def follow(self, env: Env, position: Callable[[], tuple[LogPos, str]]) -> bool:
        """In the resource's turn. True: the logs hold now, plan again."""
        runner, site = self._runner, self._runner.site
        what = runner.back.damage or (LOST_MEMORY if runner.back.lost_memory else "")
        if not what:
            self._looked = None  # it may come again
        if runner.producer is not None or not runner.trouble or not what:
            return False
        view = site.view()
        is_forced, wish = forced(view, runner.resource, site.host), view.want_primary(runner.resource, site.host)
        if self._refused == (what, wish) if is_forced else what is self._looked:
            return False
        if is_forced:
            await runner.stop_consumer()
            await runner.back.stop()
        self._looked = what
        try:
            sound = await site.blocking(salvage.find, env, *self._start(view, *position()))
            why = self._why_not(view, sound) if is_forced else ""
        except MarsError as err:
            sound, why = None, err.text
        if is_forced and (why or sound is None):
            self._refused = what, wish
            site.say(runner.resource, REFUSED, f"force cannot take over: {why}")
        elif sound is not None and not is_forced:
            self._tell(view, sound)
        elif sound is not None:
            await self._take_over(view, env, sound)
            return True
        return False

    def begun(self, header: FileHeader) -> None:
        """This host is primary, with this log. A replica that is not consistent was made a device by --ignore-sync: it
        stays one after a restart. The first log behind the empty one of `cut` is not withdrawn either: else that would
        be the newest, beside another one with its number."""
        site, resource = self._runner.site, self._runner.resource
        view, name = site.view(), header.name
        if ignores_sync(view, resource, site.host) and not view.disk_consistent(resource, site.host):
            site.store.put(paths.actual(resource, site.host, "taken"), name, durable=True)
        if self._bridge and header.pred is not None and header.pred.log == self._bridge:
            site.store.put(paths.begun(resource, site.host), name, durable=True)
        self._bridge = ""

    def _start(self, view: View, at: LogPos, digest: str) -> tuple[LogPos, str, Point | None]:
        """The disk position, the digest there as far as anybody knows it, the end of the log before it."""
        resource, host = self._runner.resource, self._runner.site.host
        own, lower = view.version(resource, host, at.nr), view.version(resource, host, at.nr - 1)
        before = own.previous if own is not None and own.previous is not None else lower.end if lower else None
        known = None if before is None or before.digest in ("", NO_DIGEST) else Point(before.digest, before.pos)
        return at, digest or known_digest(view, resource, host, at), known

    def _why_not(self, view: View, sound: Sound) -> str:
        resource, host = self._runner.resource, self._runner.site.host
        if resource in self._runner.site.kept:
            return ("who uses its device has seen more than its logs hold: end what uses it, marsd stop --force, "
                    "marsd start; then again")
        until = view.mixed_until(resource, host)
        if until is not None and sound.end.order < until.order and not ignores_sync(view, resource, host):
            return (f"the disk is a mixture of states up to {until}, and the logs hold only up to {sound.end}; "
                    f"to use it all the same: marsadm primary --force --ignore-sync {resource}")
        return ""

    def _lost(self, view: View, sound: Sound) -> str:
        """How much, since when."""
        resource, host, damage = self._runner.resource, self._runner.site.host, self._runner.back.damage
        logs = LogMap(view, resource)
        amount = logs.distance(sound.end, logs.fetched(host))
        if damage is not None and (damage.nr, damage.producer) == (sound.end.nr, sound.end.producer):
            amount = max(amount, damage.due - sound.end.pos)
        since = sound.since or view.stamp(paths.replay(resource, host))
        when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(since / 1e9))
        return f"{amount or 'an unknown number of'} bytes of log behind it, written since {when}"

    def _tell(self, view: View, sound: Sound) -> None:
        site, resource = self._runner.site, self._runner.resource
        site.store.put(paths.actual(resource, site.host, "sound"), f"{sound.end},0,{sound.digest}")
        site.say(resource, WOULD_LOSE, f"the logs here hold up to {sound.end}; "
                                       f"primary --force would give up {self._lost(view, sound)}")

    async def _take_over(self, view: View, env: Env, sound: Sound) -> None:
        runner, site, resource = self._runner, self._runner.site, self._runner.resource
        done = f"primary --force took over up to {sound.end}:"
        text = (f"{done} {self._lost(view, sound)}, are lost here. What is left of them is kept aside (marsadm "
                f"log-export {resource}; log-purge-all removes it and this message)")
        if not view.messages(resource, site.host).get(LOST, "").startswith(done):  # else cut off: facts say less now
            LOG.info("%s: %s", resource, text)
            site.say(resource, LOST, text)
        links = ending(view, resource, site.host, sound)
        site.store.put_many(links, restamp=True)
        runner.publisher.replayed(sound.at, sound.at_digest)
        site.store.make_durable([paths.message(resource, site.host, LOST), paths.replay(resource, site.host),
                                 *(rel for rel, _ in links)])
        aside = os.path.join(site.store.root, paths.local_dir(site.host), f"aside-{resource}", str(time.time_ns()))
        damage = runner.back.damage
        same = damage is not None and (damage.nr, damage.producer) == (sound.end.nr, sound.end.producer)
        kept = await site.blocking(salvage.cut, env, sound, aside, damage.due if damage is not None and same else 0)
        LOG.info("%s: kept in %s: %s", resource, aside, ", ".join(kept) or "nothing")
        self._looked = self._refused = None
        self._bridge = log_name(sound.end.nr + 1, site.host)
        forget(runner)
        await runner.back.forget()
        runner.forget_trouble()
        site.forget_view()


def forget(runner: Runner) -> None:
    """The logs hold."""
    site, rel = runner.site, paths.actual(runner.resource, runner.site.host, "sound")
    if site.store.get(rel):
        site.store.put(rel, DELETED)
    for key in (WOULD_LOSE, REFUSED):
        site.say(runner.resource, key, "")


def known_digest(view: View, resource: str, host: str, at: LogPos) -> str:
    """The digest at a position as this host's own facts say it, else as all the others that say one do; "" if nobody
    does, or they differ."""
    for hosts in ((host,), tuple(other for other in view.members(resource) if other != host)):
        found = {mark.digest for one in hosts for mark in _marks(view, resource, one, at)
                 if mark is not None and mark.pos == at and mark.digest}
        if len(found) == 1:
            return found.pop()
    return ""


def _marks(view: View, resource: str, host: str, at: LogPos) -> list[Mark | None]:
    here, after = view.version(resource, host, at.nr), view.version(resource, host, at.nr + 1)
    grant = view.granted(resource, host)
    return [view.fetched(resource, host), view.syncpos(resource, host), here.end if here else None,
            after.previous if after else None, grant.mark if grant else None]


def ending(view: View, resource: str, host: str, sound: Sound) -> list[tuple[str, str]]:
    """Own facts of a history that ends there. The empty log behind it is not withdrawn (`begun`): its name, and that of
    a log that was cut to nothing, may be known to others with contents, and must not come back as those of history."""
    end = sound.end
    before = point_before(sound.header) if sound.header is not None else (
        view.version_text(resource, host, end.nr).partition(":")[2])
    links = [(paths.version(resource, nr, host), DELETED)
             for nr in view.version_numbers(resource, host) if nr > end.nr]
    links.append((paths.version(resource, end.nr, host), f"{sound.digest},{end}:{before}"))
    links.append((paths.begun(resource, host), log_name(end.nr + 1, host)))
    return [*links, (paths.actual(resource, host, "fetched"), DELETED)]
