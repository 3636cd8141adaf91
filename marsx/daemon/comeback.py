"""What a host that comes back has to clear up about one resource before it goes on (rules 5, 21, 22).

    damaged logs       healed from a member that has them (`daemon.heal`); until then the resource stops. What only
                       others need, because it is on the own disk already, is healed beside all else
    the own log        who wrote the newest log first asks the others whether they have more of it than is here: a disk
                       that lost what it had flushed, or an older state of the host. That tail is fetched, then log N+1
    the own facts      what others remember of this host and is newer than here: said again as it is here, if that lies
                       within what was found here; else the host has lost memory, and stops

How long is waited: for the words of every member that can be reached or has not yet failed to answer, at most
`start_patience_s` from the start of marsd. Nothing is waited for when the device outlived the worker, when the role was
granted (then the end is known to both sides), or by force.

Invariants (once `holds` has said ""):
    no member that answered has more of the log that this host wrote last than is here
    every position that anybody remembers of this host lies within its own logs
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Awaitable, Callable, Iterable

from marsx.base import messages
from marsx.base.errors import DamagedError, MarsError, NotFoundError
from marsx.base.position import LogPos
from marsx.daemon import heal
from marsx.daemon.activity import Activity
from marsx.daemon.logcopy import LogCopy
from marsx.daemon.site import Site
from marsx.log import reader
from marsx.peer.fetch import Offer
from marsx.tree import paths
from marsx.tree.roles import newest_log, right_holder
from marsx.tree.store import Entry
from marsx.tree.view import Mark, View, parse_replay, parse_version
from marsx.volume import recovery
from marsx.volume.env import Env, point_before
from marsx.volume.primary import FAILURES, Primary
from marsx.volume.recovery import Damage, KnownDurable, LogDamaged, LogMissing

LOG = messages.get("daemon.comeback")
RETRY_MIN, RETRY_MAX = 0.2, 5.0
ASK_AGAIN_S = 2.0
READ_BACK = frozenset(where for where, what in FAILURES.items() if what == "reading the log back")

assert READ_BACK


def cannot_read_log(primary: Primary) -> bool:
    """Has write-back or a read come upon log bytes that do not hold?"""
    state = primary.volume.state if primary.volume is not None else {"failed": 0}
    return bool(primary.error) or (bool(state["failed"]) and state["fail_where"] in READ_BACK)


class Comeback:
    """See the module. `kick`: the runner looks again. Belongs to the loop."""

    def __init__(self, site: Site, resource: str, directory: str, kick: Callable[[], None]) -> None:
        self.site = site
        self.resource = resource
        self.directory = directory
        self.kick = kick
        self.damage: Damage | None = None
        self.claims: dict[str, Entry] = {}
        self.lost_memory = False  # they lie beyond the own history, and stop the resource
        self._healing = Activity()
        self._mending = Activity()
        self._asking = Activity()
        self._cleared = False
        self._ahead: tuple[str, LogPos] | None = None
        self._asked_at: LogPos | None = None
        self._ask_after = float("inf")
        self._healed = False
        self._inspected: Primary | None = None
        self._proven: Mark | None = None

    async def stop(self) -> None:
        """End what runs."""
        await self._healing.stop()
        await self._mending.stop()
        await self._asking.stop()

    async def forget(self) -> None:
        """The replica begins anew: nothing that was is of any worth. The others are told so."""
        await self.stop()
        self.damage, self.lost_memory = None, False
        self._say_again(self.claims)
        self.claims.clear()

    def known_durable(self) -> KnownDurable:
        """POS of each log here that version links call durable: everybody's for own logs, the own one for others'
        (rule 5). To be asked in a thread: it is looked up now."""
        view, own = self.site.view(), self.site.host
        table: dict[tuple[int, str], int] = {}
        for entry in reader.list_logs(self.directory):
            before = self._point_before(entry) if entry.producer == own else None
            for host in {*view.members(self.resource), own} if entry.producer == own else {own}:
                text = view.version_text(self.resource, host, entry.nr)
                version = parse_version(text)
                if version is None or version.end.pos.producer != entry.producer:
                    continue
                if host == own or before is None or before == text.partition(":")[2]:
                    key = entry.nr, entry.producer
                    table[key] = max(table.get(key, 0), version.end.pos.pos)
        replay = view.replay(self.resource, own)
        if replay is not None:  # a window is written from what is durable in the log (rule 12)
            key = replay.pos.nr, replay.pos.producer
            table[key] = max(table.get(key, 0), replay.pos.pos + replay.length)
        return lambda nr, producer: table.get((nr, producer), 0)

    def _point_before(self, entry: reader.LogEntry) -> str | None:
        """What the log follows, as a version link says it; None: its header does not hold. Another log of the same name
        (after force) follows something else."""
        try:
            with reader.open_log(entry.path, self.site.view().log_uuid(self.resource), self.resource) as log:
                return point_before(log.header)
        except MarsError:
            return None

    # ---- damaged logs ----

    def note(self, err: MarsError) -> None:
        """The resource stops with this error: can it be healed?"""
        self.damage = err.damage if isinstance(err, LogDamaged | LogMissing) else None

    async def inspect(self, primary: Primary, position: Callable[[], tuple[LogPos, str]]) -> str:
        """A primary that cannot read its log back serves on: what is wrong with the logs from its disk position on ("":
        it can, or nothing is found)? Looked for once."""
        if self._inspected is primary or not cannot_read_log(primary):
            return ""
        self._inspected = primary
        try:
            logs = await self.site.blocking(recovery.recover, primary.env, *position(), self.known_durable())
        except (DamagedError, NotFoundError) as err:
            self.note(err)
            return err.text
        recovery.close_all(logs)
        return ""

    def start_healing(self, env: Env, trouble: Callable[[str], None], healed: Callable[[], Awaitable[None]]) -> None:
        """Until it is done, or `stop`. `trouble` hears how it goes, `healed` that recovery may look again."""
        if self.damage is not None and not self._healing.running:
            self._healing.start("heal", self._heal(env, self.damage, trouble, healed), f"heal {self.resource}")

    async def _heal(self, env: Env, damage: Damage, trouble: Callable[[str], None],
                    healed: Callable[[], Awaitable[None]]) -> None:
        await self._mending.stop()
        await self._until_healed(env, damage, trouble)
        self.damage, self._healed = None, True
        await healed()

    async def _until_healed(self, env: Env, damage: Damage, tell: Callable[[str], None],
                            wanted: Callable[[], bool] = lambda: True) -> None:
        """Ask again and again, until somebody gave something of it back."""
        bad = "is damaged" if damage.unreadable < 0 else f"cannot be read at byte {damage.unreadable}: it is damaged"
        due = f", {damage.due - damage.pos} bytes behind it were durable" if damage.due > damage.pos else ""
        pause = RETRY_MIN
        while wanted() and (why := await self._ask_and_heal(env, damage)):
            tell(f"{damage.path} {bad} behind position {damage.pos}{due}: {why}")
            await asyncio.sleep(pause)
            pause = min(RETRY_MAX, pause * 2)

    async def _ask_and_heal(self, env: Env, damage: Damage) -> str:
        """Once, from who has most of it, else from the next one. Why it could not be, "" when it was."""
        others = [host for host in self.site.view().members(self.resource) if host != self.site.host]
        near = [host for host in others if host in self.site.reachable()]
        answers = await heal.ask_all(self.site, self.resource, heal.start_of(damage), near)
        whys = []
        for host, end in heal.candidates(answers, damage):
            whys.append(await self._heal_from(env, damage, host, end))
            if not whys[-1]:
                return ""
        return "; ".join(whys) or heal.nobody(answers, set(others) - set(near))

    async def _heal_from(self, env: Env, damage: Damage, host: str, end: int) -> str:
        """Why it could not be, "" when it was."""
        self.site.say(self.resource, "inf-heal", f"fetching {damage.path} from {host}, which has it up to {end}")
        try:
            done = await heal.heal(self.site, env, self.resource, damage, host, end)
        except (MarsError, OSError) as err:
            LOG.info("%s: fetching %s from %s failed: %s", self.resource, damage.path, host, err)
            return f"fetching it from {host} failed: {err}"
        if not done.replaced:
            return f"{host} has the same bytes there"
        text = f"{damage.path} was damaged behind position {damage.pos}: {done.replaced} bytes came back from {host}"
        LOG.info("%s: %s", self.resource, text)
        self.site.say(self.resource, "inf-heal", text)
        return ""

    def mend(self, env: Env, upto: LogPos) -> None:
        """A stream came upon a block that cannot be read in the log of `upto`, somewhere below. Who needs it here says
        so himself; others need it too."""
        if self.damage is None and not self._mending.running:
            self._mending.start("mend", self._mend(env, upto), f"mend {self.resource}")

    async def _mend(self, env: Env, upto: LogPos) -> None:
        path, pause = os.path.join(self.directory, upto.log), RETRY_MIN
        while damage := await self.site.blocking(recovery.examine, env, upto):
            await self._until_healed(env, damage, lambda text: self.site.say(self.resource, "err-log", text),
                                     lambda: os.path.exists(path))
            await asyncio.sleep(pause)  # a block may stay unreadable although it was written
            pause = min(RETRY_MAX, pause * 2)
        self.site.say(self.resource, "err-log", "")
        if self.damage is None:
            heal.forget_damaged(self.directory)

    def recovered(self) -> None:
        """Recovery found nothing wrong."""
        heal.forget_damaged(self.directory)
        if not self._healed:
            self.site.say(self.resource, "inf-heal", "")

    # ---- the end of the own log ----

    def holds(self, view: View, copy: LogCopy | None) -> tuple[str, str]:
        """(why this host must not write or grant yet, who has more of its own log): "" when all is clear."""
        if self._cleared or not self._is_own(view):
            return "", ""
        if copy is None:
            return "the own logs have not been looked at yet", ""
        if outcast := self.site.outcast():
            return outcast, ""
        if self._ahead is not None:
            host, until = self._ahead
            if copy.at.order < until.order and time.monotonic() <= self._ask_after:
                return f"{host} has the log of this host up to {until}: that is fetched first", host
            self._ahead = None  # it is asked for again: who had it may have withdrawn it (an empty log, rule 7)
        others = {host for host in view.members(self.resource) if host != self.site.host}
        silent = others - self.site.answered()
        if silent and time.monotonic() < self.site.started + self.site.settings.get("start_patience_s"):
            self.site.loop.call_later(RETRY_MIN, self.kick)
            return f"waits a moment for what {', '.join(sorted(silent))} knows of this host", ""
        if others and (self._asked_at != copy.at or time.monotonic() > self._ask_after):
            if not self._asking.running:
                self._asking.start("ask", self._ask(copy, others & self.site.reachable()), f"ask {self.resource}")
            return "asks the other hosts how much of the log of this host they have", ""
        return self._is_older(view), ""

    def _is_own(self, view: View) -> bool:
        """Was the newest log written here, and nobody has said where it ends?"""
        right = right_holder(view, self.resource)
        return right is not None and right.mark is None and right.producer == self.site.host

    async def _ask(self, copy: LogCopy, hosts: Iterable[str]) -> None:
        """Who has more than we? The answer is about the end that we had when we asked."""
        at = copy.at
        answers = await heal.ask_all(self.site, self.resource, copy.where(), hosts)
        for host, answer in sorted(answers.items()):
            if isinstance(answer, Offer):
                newest = answer.newest if answer.newest.producer == self.site.host else LogPos(
                    at.nr, at.producer, answer.end)
                if newest.order > max(at.order, self._ahead[1].order if self._ahead else at.order):
                    self._ahead = host, newest
        if self._ahead is not None:
            LOG.info("%s: %s has the log of this host up to %s, here it ends at %s", self.resource, *self._ahead, at)
        self._asked_at, self._ask_after = at, time.monotonic() + ASK_AGAIN_S
        self.kick()

    def _is_older(self, view: View) -> str:
        """Others have heard of a newer log of this host, and none of those who answered can give it."""
        text = self.older(view)
        self._cleared = not text
        self.site.say(self.resource, "err-memory", text)
        return text

    def older(self, view: View) -> str:
        """Why this is an older state of this host ("" = it is not): no new log may be begun then (rules 21, 22)."""
        nr, producer = newest_log(view, self.resource)
        here = {(entry.nr, entry.producer) for entry in reader.list_logs(self.directory)}
        if producer != self.site.host or (nr, producer) in here:
            return ""
        return (f"the other hosts know log {nr} of this host, but it is not here: this is an older state of the host. "
                f"Connect who has that log; or make another host primary, then here: "
                f"marsadm invalidate {self.resource}")

    # ---- the own facts ----

    def claim(self, entry: Entry) -> None:
        """Somebody remembers this position of ours, newer than what we say."""
        known = self.claims.get(entry.rel)
        if known is None or known.stamp < entry.stamp:
            self.claims[entry.rel] = entry
            self.kick()

    def judge(self, view: View, end: LogPos, serving: bool = False) -> None:
        """Say again what lies within the own history that ends at `end`. DamagedError when something does not
        (rule 22); who serves is only told, because people alone can take the device away."""
        if not self.claims or (not serving and self._is_own(view) and not self._cleared):
            return
        since = view.stamp(paths.member(self.resource, self.site.host))
        good = {rel: entry for rel, entry in self.claims.items()
                if entry.stamp < since or self._lies_within(view, entry, end)}
        for rel in good:
            del self.claims[rel]
        right = {rel: entry for rel, entry in good.items() if self._is_newer_truth(view, entry)}
        self.site.store.put_many([(rel, entry.value) for rel, entry in right.items()], restamp=True)
        self._say_again(good.keys() - right.keys())
        if self.claims:
            worst = max(self.claims.values(), key=lambda entry: entry.stamp)
            text = (f"the other hosts remember {os.path.basename(worst.rel)} = {worst.value}, but the own history ends "
                    f"at {end}: this host has lost memory (an older state, or a disk that lost what it had flushed)")
            hint = f"make another host primary if this one is, then here: marsadm invalidate {self.resource}"
            self.site.say(self.resource, "err-memory", f"{text}: {hint}")
            if not serving:
                self.lost_memory = True
                raise DamagedError(text, hint)

    def _lies_within(self, view: View, entry: Entry, end: LogPos) -> bool:
        version, replay = parse_version(entry.value), parse_replay(entry.value)
        if version is not None:
            at = version.end.pos
        elif replay is not None:
            at = LogPos(replay.pos.nr, replay.pos.producer, replay.pos.pos + replay.length)
        else:
            return True
        if at.pos == 0:
            return True                 # the end of the log before, and no history of its own (rule 7)
        if at.nr >= end.nr:
            return at.nr == end.nr and at.producer == end.producer and at.pos <= end.pos
        own = self._end_of(view, at.nr)
        return own is None or (own.pos.producer == at.producer and at.pos <= own.pos.pos)

    def _end_of(self, view: View, nr: int) -> Mark | None:
        """Where this host's history leaves log `nr`. What the next log says of it counts more than the link of the log
        itself, which a power cut may have put back."""
        after = view.version(self.resource, self.site.host, nr + 1)
        own = view.version(self.resource, self.site.host, nr)
        return after.previous if after is not None and after.previous is not None else own.end if own else None

    def _is_newer_truth(self, view: View, entry: Entry) -> bool:
        """Do others remember a version link just as the next log here proves it, while the own one says less?"""
        version = parse_version(entry.value)
        return (version is not None and self.site.store.get(entry.rel) not in ("", entry.value)
                and self._end_of(view, version.end.pos.nr) == version.end
                and view.version(self.resource, self.site.host, version.end.pos.nr + 1) is not None)

    # ---- the end of the sync ----

    async def is_of_another_history(self, mark: Mark | None, copy: LogCopy | None) -> bool:
        """Is the own log, at the position that the finished sync must be replayed to, another one than the source's
        (rule 14)? Version links show it only where a log ends; here the log itself is asked, once, when it is there."""
        if mark is None or mark == self._proven or copy is None or not mark.digest or not mark.pos.pos:
            return False
        if copy.at.order < mark.pos.order:
            return False
        path = os.path.join(self.directory, mark.pos.log)
        if os.path.exists(path) and await self.site.blocking(self._digest_at, path, mark.pos.pos) != mark.digest:
            return True
        self._proven = mark
        return False

    def _digest_at(self, path: str, pos: int) -> str | None:
        with reader.open_log(path, self.site.view().log_uuid(self.resource), self.resource, direct=True) as log:
            return reader.digest_behind(log.fd, log.header, pos)

    def _say_again(self, rels: Iterable[str]) -> None:
        """As they are here, also that they are not here, with a new stamp."""
        items = [(rel, self.site.store.get(rel) or paths.DELETED) for rel in rels]
        if items:
            self.site.store.put_many(items, restamp=True)
