"""Being secondary: the local copy of the log (fetch), replay, sync; each started and stopped on its own.

recover -> [fetch] -> copy of the log -> [replay] -> data device
                                [sync] -> data device (bound by the rules of `peer.sync`)
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import threading

from marsx.base import messages
from marsx.base.errors import MarsError, NotFoundError
from marsx.base.position import LogPos
from marsx.daemon import logcopy
from marsx.daemon.activity import Activity
from marsx.daemon.context import Context
from marsx.daemon.rates import Count
from marsx.daemon.replica import step_back
from marsx.daemon.spans import ReplayBound
from marsx.log import reader
from marsx.log.record import FileHeader
from marsx.peer.fetch import fetch_logs
from marsx.peer.wire import PeerError, Reason
from marsx.tree import paths
from marsx.volume import recovery
from marsx.volume.env import Facts, point_before
from marsx.volume.replay import Replayer

LOG = messages.get("daemon.consumer")
RETRY_MIN, RETRY_MAX = 0.2, 5.0
SAY_AGAIN_S = 60  # positions that did not move: somebody may have damaged the tree


class _InOrder:
    """Implements `volume.env.Facts` for copy and replay: the version link is never behind the replay link."""

    def __init__(self, facts: Facts) -> None:
        self._facts = facts
        self._told: LogPos | None = None
        self.copy: logcopy.LogCopy | None = None

    def dirty(self, at: LogPos, length: int) -> None:
        end = LogPos(at.nr, at.producer, at.pos + length)
        if self.copy is not None and (self._told is None or self._told < end):
            self.copy.publish()
        self._facts.dirty(at, length)

    def replayed(self, at: LogPos, digest: str) -> None:
        self._facts.replayed(at, digest)

    def version(self, end: LogPos, digest: str, previous: str) -> None:
        self._facts.version(end, digest, previous)
        self._told = end


class Consumer:
    """One resource while this host is a secondary of it. `on_missing(host)`: the source has not got our log any
    more."""

    def __init__(self, given: Context) -> None:
        self.site = given.site
        self.resource = given.resource
        self._facts = _InOrder(given.env.facts)
        self.env = dataclasses.replace(given.env, facts=self._facts)
        self.publisher = given.publisher
        self.disk_fd = given.disk_fd
        self.changed = given.changed
        self.stock = given.stock
        self.fetch = Activity()
        self.sync = Activity()
        self.verify = Activity()
        self.at: LogPos | None = None
        self.digest = ""
        self.copy: logcopy.LogCopy | None = None
        self.replayer: Replayer | None = None
        self.bound = ReplayBound()
        self.trouble = ""
        self.damaged = False  # the trouble is a log that replay cannot read: recovery says what it is
        self.missing_log = False
        self.gap_ahead = False
        self.parted = False  # the source says split, and our copy is an empty log
        self.withdrawn = False  # the same, but there is no log to step back to; the histories have not parted
        self.count = Count()
        self._said = ""
        self._say_again = 0.0
        self._thread: threading.Thread | None = None

    # ---- start ----

    async def recover(self, at: LogPos, digest: str, known: recovery.KnownDurable) -> None:
        """What do the disk and the local logs hold?"""
        copy, self.at, self.digest = await self.site.blocking(self._recover, at, digest, known)
        self.copy = self._facts.copy = copy
        self.stock.move(copy.at, copy.digest)

    def _recover(self, at: LogPos, digest: str, known: recovery.KnownDurable) -> tuple[logcopy.LogCopy, LogPos, str]:
        try:
            at, digest = step_back(self.env, self.publisher, at, digest, known, self.parted)
            self.parted = False
            logs = recovery.recover(self.env, at, digest, known)
        except NotFoundError:
            if at.pos == 0 and not any(entry.nr >= at.nr for entry in reader.list_logs(self.env.directory)):
                return logcopy.nothing_yet(self.env, at, self._fetched_in_thread), at, ""
            raise
        recovery.close_all(logs)
        first = logs[0]
        for log in logs[:-1]:  # a power cut may have taken the newest words about them
            self.env.facts.version(log.position, log.digest, point_before(log.header))
        copy = logcopy.from_recovered(self.env, logs, self._fetched_in_thread)
        copy.publish()
        if (first.header.nr, first.header.producer) == (at.nr, at.producer):
            digest = first.start_digest
        else:  # that log was deleted; its end is the beginning of the next one (rule 7)
            at, digest = first.header.start, first.header.digest0
            self.env.facts.replayed(at, digest)
        return copy, at, digest

    # ---- replay ----

    @property
    def replaying(self) -> bool:
        return self._thread is not None and self._thread.is_alive()

    def start_replay(self) -> None:
        assert self.at is not None and self.copy is not None
        self.replayer = Replayer(self.env, self.disk_fd, self.at, self.digest, self._replayed_in_thread)
        self.replayer.advance(self.copy.at)
        self.bound.attach(self.replayer)
        self._thread = self.site.thread(f"replay-{self.resource}", self._replay_body)

    def _replay_body(self) -> None:
        assert self.replayer is not None
        self.replayer.body()
        with contextlib.suppress(RuntimeError):
            self.site.loop.call_soon_threadsafe(self._replay_ended)

    def _replay_ended(self) -> None:
        if self.replayer is not None and self.replayer.error:
            self.trouble, self.damaged = self.replayer.error, self.replayer.damaged
        self.changed()

    async def stop_replay(self) -> None:
        """End after the window in flight (rule 12)."""
        if self.replayer is not None and self._thread is not None:
            self.replayer.request_stop()
            await self.site.join([self._thread])
            self.bound.detach()
            self._take_position()
            self.trouble = self.replayer.error or self.trouble
            self.damaged = self.damaged or self.replayer.damaged
        self.replayer, self._thread = None, None

    def _replayed_in_thread(self, at: LogPos) -> None:
        with contextlib.suppress(RuntimeError):
            self.site.loop.call_soon_threadsafe(self._replayed)

    def _replayed(self) -> None:
        if self.replayer is not None:
            self._take_position()
        self.changed()

    def _take_position(self) -> None:
        """The disk position as replay has it. At the beginning of a log it may know no digest where fetch does."""
        assert self.replayer is not None
        at, digest = self.replayer.at, self.replayer.digest
        if digest or at != self.at:
            self.count.moved("replay", self.at, at)
            self.at, self.digest = at, digest
        self.bound.moved()

    # ---- fetch ----

    def start_fetch(self, host: str) -> None:
        self.fetch.start(host, self._fetch_loop(host), f"fetch {self.resource}")

    async def _fetch_loop(self, host: str) -> None:
        pause = RETRY_MIN
        while True:
            try:
                link, _ = await self.site.dial(host, "fetch")
                try:
                    pause = RETRY_MIN
                    self.site.say(self.resource, "inf-fetch", f"fetching '{self.resource}' from {host}")
                    assert self.copy is not None
                    await fetch_logs(
                        link, self.resource, self.copy, executor=self.site.executor, fetched=self._fetch_works,
                        bucket=self.site.fetch_bucket,
                    )
                finally:
                    await link.close()
            except logcopy.GapAhead:
                self.gap_ahead = True
                self.changed()
            except PeerError as err:
                self.fetch.error = err
                self._fetch_failed(host, err)
            except (MarsError, OSError) as err:
                self.fetch.error = err
                self.site.say(self.resource, "err-fetch", f"fetch from {host}: {err}")
            await asyncio.sleep(pause)
            pause = min(pause * 2, RETRY_MAX)

    def _fetch_works(self, nr: int, producer: str, pos: int) -> None:
        self.missing_log, self.fetch.error = False, None
        self.site.say(self.resource, "err-fetch", "")
        self.site.say(self.resource, "err-splitbrain-detected", "")

    def _is_withdrawn(self, host: str, reason: Reason) -> bool:
        """The end of our copy is an empty log that can be withdrawn, and its producer may have done so (rule 7): he
        himself has not got it (any more, as the tree says), or somebody has another one with that number."""
        header = self.copy.header if self.copy else None
        if header is None or self.copy is None or self.copy.at.pos or not recovery.may_withdraw(self.env, header):
            return False
        if reason is Reason.BEHIND:
            return host == header.producer or not self._is_still_said(header)
        return reason is Reason.SPLIT

    def _is_still_said(self, header: FileHeader) -> bool:
        """Does the producer of this log say in the tree that he has it?"""
        said = self.site.view().version(self.resource, header.producer, header.nr)
        return said is not None and said.end.pos.producer == header.producer

    def _began_elsewhere(self, host: str, reason: Reason) -> bool:
        """This replica began with an empty log that its producer has withdrawn since, and `host` goes on with another
        one after the same point (its version link says so, with the digest there): nothing has parted, but the log
        before, to which one could step back, was never here."""
        header = self.copy.header if self.copy else None
        if header is None or self.copy is None or self.copy.at.pos or reason is not Reason.SPLIT or header.pred is None:
            return False
        theirs = self.site.view().version(self.resource, host, header.nr)
        return (header.producer != self.site.host and not recovery.may_withdraw(self.env, header)
                and theirs is not None and theirs.previous == (header.pred, header.pred_digest))

    def _fetch_failed(self, host: str, err: PeerError) -> None:
        if self._is_withdrawn(host, err.reason):
            self.parted = True
            self.changed()
        elif self._began_elsewhere(host, err.reason):
            self.withdrawn = True
            self.changed()
        elif err.reason is Reason.SPLIT:
            self.site.say(
                self.resource,
                "err-splitbrain-detected",
                f"SPLIT BRAIN: {err.text}. Decide whose data count, then on the other host: "
                f"marsadm invalidate {self.resource}",
            )
        elif err.reason is Reason.MISSING:
            self.missing_log = True
            self.site.say(
                self.resource, "err-fetch", f"{host}: {err.text}. To heal: marsadm invalidate {self.resource}"
            )
            self.changed()
        elif err.reason is not Reason.BEHIND:
            self.site.say(self.resource, "err-fetch", err.text)

    def _fetched_in_thread(self, at: LogPos, digest: str) -> None:
        with contextlib.suppress(RuntimeError):
            self.site.loop.call_soon_threadsafe(self._fetched, at, digest)

    def _fetched(self, at: LogPos, digest: str) -> None:
        if at == self.at and not self.digest:
            self.digest = digest  # the header of the log that this replica begins with has come
        self.count.moved("file", self.stock.end.at if self.stock.end else None, at)
        self.stock.move(at, digest)
        if self.replayer is not None:
            self.replayer.advance(at)
        self.changed()

    def publish(self) -> None:
        """Positions that move without a durable step (called every logger_report_interval_s)."""
        if self.copy is None or self.copy.header is None:
            return
        now, text = self.site.loop.time(), f"{self.copy.at},0,{self.copy.digest}"
        if text == self._said and now < self._say_again:
            return
        said = self.copy.publish(wait=False)
        self.site.store.put(paths.actual(self.resource, self.site.host, "fetched"), text)
        self._said, self._say_again = text if said else "", now + SAY_AGAIN_S

    # ---- end ----

    async def stop(self) -> None:
        """Stop everything; positions stay known."""
        await self.verify.stop()
        await self.sync.stop()
        await self.fetch.stop()
        await self.stop_replay()
        for key in ("inf-fetch", "inf-sync"):
            self.site.say(self.resource, key, "")
        if self.copy is not None:
            await self.site.blocking(self.copy.close)
