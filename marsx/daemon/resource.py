"""One resource on this host: makes reality match the plan, one step after the other, and says why when it cannot.

    tree changed -> plan (pure) -> the first thing that differs is done -> plan again

Steps never overlap: the runner is one task, and commands that touch the replica (`exclusive`) take its turn. A step
that fails with a named error is said in the tree and tried again later; what the resource must not go on with
(`trouble`) stays until attach or invalidate.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import os
import time
from collections.abc import AsyncIterator

from marsx.base import disk, messages
from marsx.base.errors import DamagedError, MarsError, NotFoundError, PreconditionError
from marsx.base.position import LogPos
from marsx.daemon import emergency, gaps, logsource, regions, replica, salvage
from marsx.daemon.comeback import Comeback
from marsx.daemon.consumer import Consumer
from marsx.daemon.context import Context, make_env
from marsx.daemon.facts import Publisher
from marsx.daemon.plan import Local, Plan, cannot_follow, forced, grant_to, is_force, plan, stale_force
from marsx.daemon.producer import Producer
from marsx.daemon.rates import Rates, counted
from marsx.daemon.scrub import Scrub
from marsx.daemon.seal import Seal
from marsx.daemon.site import Site
from marsx.daemon.spans import stale_sync
from marsx.daemon.syncing import Syncing
from marsx.log import reader
from marsx.log.chain import Point
from marsx.tree import paths
from marsx.tree.roles import is_there, right_holder
from marsx.tree.view import View
from marsx.volume.env import Env

LOG = messages.get("daemon.resource")
RETRY_S = 2.0
OPEN_COUNT_S = 5.0  # it costs a process, which looks at all descriptors of all processes
WHY_KEYS = ("primary", "fetch", "replay", "sync")


class Runner:
    """See the module."""

    def __init__(self, site: Site, resource: str) -> None:
        self.site = site
        self.resource = resource
        self.publisher = Publisher(site.store, site.loop, resource, self.kick)
        self.stock = logsource.Stock()
        self.rates = Rates(site.store, resource, site.host, time.monotonic)
        self.scrub = Scrub(self)
        self.disk_fd = -1
        self.device_path = ""
        self.producer: Producer | None = None
        self.consumer: Consumer | None = None
        self.trouble = ""
        self.replay_trouble = ""  # of the data device: replay and sync stop, the log is still fetched
        self.seal = Seal(self)
        self.back = Comeback(site, resource, self.directory(), self.kick)
        self.salvage = salvage.Salvage(self)
        self.syncing = Syncing(site, resource, self.publisher, self._changed, self.span_trouble)
        self.why: dict[str, str] = {}  # what the newest plan does not want to run, with the reason
        self._looked_at: LogPos | None = None  # where replay found a damaged log last
        self.busy: list[str] = []
        self.dropping: asyncio.Task[None] | None = None  # a log that members still need (daemon.drops)
        self.stopped = False
        self._wake = asyncio.Event()
        self._turn = asyncio.Lock()
        self._task: asyncio.Task[None] | None = None
        self._retry: asyncio.TimerHandle | None = None
        self._env: Env | None = None
        self._opened = 0.0

    # ---- the loop ----

    def start(self) -> None:
        self._task = asyncio.create_task(self._run(), name=f"resource {self.resource}")
        self.kick()

    def kick(self) -> None:
        self._wake.set()

    def later(self, seconds: float = RETRY_S) -> None:
        if self._retry is not None:
            self._retry.cancel()
        self._retry = self.site.loop.call_later(seconds, self.kick)

    async def _run(self) -> None:
        while True:
            await self._wake.wait()
            self._wake.clear()
            try:
                while True:
                    async with self._turn:
                        if not await self._step():
                            break
            except asyncio.CancelledError:
                raise
            except (DamagedError, NotFoundError) as err:
                self.back.note(err)
                self._set_trouble(f"{err.text}. {err.hint}" if err.hint else err.text)
            except (MarsError, OSError, ConnectionError) as err:
                LOG.info("%s: %s", self.resource, err)
                self.site.say(self.resource, "err-resource", str(err))
                self.later()
            except Exception:
                LOG.exception("%s: unexpected error", self.resource)
                self.site.say(self.resource, "err-resource", "unexpected error, see marsd.log")
                self.later(5.0)

    @contextlib.asynccontextmanager
    async def exclusive(self) -> AsyncIterator[None]:
        """A command's turn: no step runs meanwhile; plans anew afterwards."""
        async with self._turn:
            try:
                yield
            finally:
                self.site.forget_view()
                self.kick()

    def _trouble_in_thread(self, text: str) -> None:
        """A thread of the data plane has ended with an error: look at it."""
        self.site.loop.call_soon_threadsafe(self.kick)

    def span_trouble(self, text: str) -> None:
        """The data device failed under the sync, in the executor."""
        self.site.loop.call_soon_threadsafe(self._set_replay_trouble, text)

    def _set_trouble(self, text: str) -> None:
        if text != self.trouble:
            LOG.info("%s: stopped: %s", self.resource, text)
        self.trouble = text
        self._say_trouble()
        self.kick()

    def _set_replay_trouble(self, text: str) -> None:
        self.replay_trouble = f"{text}. The log is still fetched; after repair: marsadm detach, attach {self.resource}"
        LOG.info("%s: %s", self.resource, self.replay_trouble)
        self._say_trouble()
        self.kick()

    def _say_trouble(self) -> None:
        self.site.say(self.resource, "err-resource", self.trouble or self.replay_trouble)

    def forget_trouble(self) -> None:
        """The replica was detached, or begins anew."""
        self.trouble = self.replay_trouble = ""
        self._say_trouble()

    # ---- one step ----

    def local(self) -> Local:
        """What the planner has to know."""
        consumer, producer = self.consumer, self.producer
        copy = consumer.copy if consumer else None
        primary_rel = paths.primary(self.resource)
        slots = self.site.sync_slots(self.resource)
        hold, ahead = "", ""
        if producer is None and self.disk_fd >= 0 and self.resource not in self.site.kept:
            hold, ahead = self.back.holds(self.site.view(), copy)
        return Local(
            attached=self.disk_fd >= 0,
            primary=producer is not None,
            recovered=bool(consumer and consumer.at) or producer is not None,
            at=consumer.at if consumer else None,
            digest=consumer.digest if consumer else "",
            fetched=copy.at if copy else None,
            fetched_digest=copy.digest if copy else "",
            trouble=self.trouble,
            replay_trouble=self.replay_trouble or (consumer.trouble if consumer else ""),
            shutdown=self.site.shutting_down,
            connected=frozenset(self.site.reachable()),
            sync_slots=slots,
            role_durable=self.site.store.is_durable(primary_rel),
            never_had_log=self._is_first(),
            clock_problem=self.site.lamport.clock_problem(),
            hold=hold,
            ahead=ahead,
        )

    def _is_first(self) -> bool:
        """The resource was created here and has no log yet."""
        replay = self.site.view().replay(self.resource, self.site.host)
        return bool(replay and replay.pos.pos == 0 and replay.pos.producer == self.site.host and replay.length == 0
                    and not reader.list_logs(self.directory()))

    def directory(self) -> str:
        return os.path.join(self.site.store.root, paths.resource_dir(self.resource))

    async def _step(self) -> bool:
        """Do the first thing that differs from the plan; True to plan again."""
        view = self.site.view()
        host, res = self.site.host, self.resource
        primary_rel = paths.primary(res)
        if self.site.store.get(primary_rel) and not self.site.store.is_durable(primary_rel):
            self.site.store.make_durable([primary_rel])
        if stale_force(view, res, host):
            self.site.store.put(paths.want_primary(res, host), "0")
        self.seal.judge(view)
        local = self.local()
        want = plan(view, res, host, local)
        self._say_reasons(want, local)
        if self.producer is not None and not want.primary:
            return await self._give_up()
        self.site.say(res, "err-device-busy", "")
        if self.disk_fd >= 0 and not want.attach:
            return await self.detach()
        if want.attach and self.disk_fd < 0:
            return await self._attach()
        if self._env is not None and self.disk_fd >= 0 and await self.salvage.follow(self._env, self._position):
            return True
        if self.back.damage is not None and self._env is not None and self.disk_fd >= 0:
            self.back.start_healing(self._env, self._set_trouble, self._healed)
        if self.disk_fd >= 0 and self.producer is None and self.consumer is None and not self.trouble:
            return await self._recover()
        if self.producer is not None and await emergency.follow(self):
            return True
        self._judge(view)
        if self.producer is not None and (bad := await self.back.inspect(self.producer.primary, self._position)):
            self._set_trouble(bad)
        kept = self.resource in self.site.kept and self.consumer is not None
        if (want.primary or kept) and self.producer is None and self.disk_fd >= 0:
            return await self._become_primary()
        if want.grant_to and self.producer is None:
            return self._grant(want.grant_to)
        if self.consumer is not None:
            return await self._secondary(want)
        return False

    async def _healed(self) -> None:
        """The log is whole again as far as somebody had it: look again."""
        async with self._turn:
            if self.producer is not None:
                self.site.restart(f"the log of {self.resource} was healed under its device")
            self.trouble = ""
            self._say_trouble()
        self.kick()

    def _judge(self, view: View) -> None:
        """What others remember of this host must lie within what is here (rule 22)."""
        if self.producer is not None and self.stock.end is not None:
            self.back.judge(view, self.stock.end.at, serving=True)
        elif self.consumer is not None and self.consumer.copy is not None and not self.trouble:
            self.back.judge(view, self.consumer.copy.at)

    def _say_reasons(self, want: Plan, local: Local) -> None:
        self.why = want.why
        self.site.say(
            self.resource, "inf-why", "; ".join(f"{key}: {want.why[key]}" for key in WHY_KEYS if key in want.why)
        )

    # ---- attach, detach ----

    def _make_env(self) -> Env:
        return make_env(self.site, self.resource, self.directory(), self.publisher, self._trouble_in_thread)

    def _context(self) -> Context:
        assert self._env is not None
        return Context(self.site, self.resource, self._env, self.publisher, self.stock, self.disk_fd, self._changed)

    async def _attach(self) -> bool:
        view = self.site.view()
        path = view.data(self.resource, self.site.host)
        try:
            _, fds = await self.site.keeper.call("disk-open", path=path)
        except MarsError as err:
            self.site.say(self.resource, "err-attach", f"{err.text}. {err.hint}")
            self.later()
            return False
        fd = fds[0]
        have, want = disk.size(fd), view.size(self.resource)
        self.site.store.put(paths.actsize(self.resource, self.site.host), str(have))
        if have < want:
            os.close(fd)
            await self.site.keeper.call("disk-close", path=path)
            self._set_trouble(f"{path} has {have} bytes, the resource has {want}: enlarge it, "
                              "then: marsadm detach, attach")
            return False
        self.disk_fd, self.device_path = fd, path
        self._env = self._make_env()
        self.site.say(self.resource, "err-attach", "")
        self.site.store.put(paths.actual(self.resource, self.site.host, "is-attached"), "1")
        return True

    async def detach(self) -> bool:
        await self.back.stop()
        await self.stop_consumer()
        await self.seal.put(self._env)
        os.close(self.disk_fd)
        self.disk_fd = -1
        await self.site.keeper.call("disk-close", path=self.device_path)
        self.forget_trouble()
        self._facts({"is-attached": "0"})
        return True

    def _facts(self, values: dict[str, str]) -> None:
        host = self.site.host
        self.site.store.put_many([(paths.actual(self.resource, host, key), value) for key, value in values.items()])

    async def stop_consumer(self) -> None:
        consumer, self.consumer = self.consumer, None
        if consumer is not None:
            await consumer.stop()
            self._facts({"is-copying": "0", "is-replaying": "0", "is-syncing": "0"})

    def _position(self) -> tuple[LogPos, str]:
        replay = self.site.view().replay(self.resource, self.site.host)
        if replay is None:
            raise PreconditionError(
                f"{self.resource}: the replay link of this host is missing or damaged. On a secondary: marsadm "
                f"invalidate {self.resource}; on the primary: make another host primary (--force), then the same",
            )
        return replay.pos, self.publisher.digest_hint(replay.pos)

    async def _recover(self) -> bool:
        """Find out what disk and logs hold. A primary whose device is there skips this: its own recovery does it."""
        at, digest = self._position()
        await self.seal.check(self._make_env(), held=self.resource in self.site.kept)
        consumer = Consumer(self._context())
        # The device that outlived a worker is served before anything else, whoever is to be primary by now.
        if self.resource in self.site.kept or self._is_first():
            consumer.at, consumer.digest = at, digest
        else:
            gone = {"is-primary": "0", "if-on": "0", "open-count": "0"}
            try:
                await consumer.recover(at, digest, self.back.known_durable())
            except (DamagedError, NotFoundError) as err:
                self._facts(gone)
                broken = self.seal.broken or isinstance(err, DamagedError)
                if broken or self.site.view().sync_rest(self.resource, self.site.host) <= 0:
                    raise
                return await self._restart_sync(err.text)
            self._facts(gone)
            self.back.recovered()
            salvage.forget(self)
        self.consumer = consumer
        return True

    def _changed(self) -> None:
        self.site.forget_view()
        self.kick()

    # ---- primary ----

    async def _become_primary(self) -> bool:
        at, digest, first, view = *self._where(), self._is_first(), self.site.view()
        if (older := self.back.older(view)) and not forced(view, self.resource, self.site.host):
            raise DamagedError(older)
        assert self.consumer is not None
        end = self.consumer.copy.at if self.consumer.copy is not None else at
        await self.stop_consumer()
        self._env = self._make_env()
        if not first:
            known = self.back.known_durable()
            gone = end.pos == 0 and not is_there(view, self.resource, end.producer, end.nr)
            at, digest = await self.site.blocking(replica.step_back, self._env, self.publisher, at, digest, known, gone)
        producer = Producer(self._context())
        producer.primary.past = self.seal.accepted
        await producer.start(at, digest, self.back.known_durable(), first)
        self.producer = producer
        self.seal.drop()
        assert producer.primary.header is not None
        self.salvage.begun(producer.primary.header)
        self._facts({"is-primary": "1", "if-on": "1", "is-attached": "1", "is-replaying": "0", "open-count": "0"})
        nr = max(producer.primary.header.nr, self.site.view().maxnr(self.resource))
        self.site.store.put(paths.maxnr(self.resource), str(nr))
        wish = self.site.view().want_primary(self.resource, self.site.host)
        if wish and not is_force(wish):
            self.site.store.put(paths.want_primary(self.resource, self.site.host), "0")
        for key in ("err-resource", "err-splitbrain-detected", "err-fetch", "err-sync"):  # of a secondary
            self.site.say(self.resource, key, "")
        LOG.info("%s: primary here, log %s", self.resource, producer.primary.header.name)
        self.site.forget_view()
        return True

    def _where(self) -> tuple[LogPos, str]:
        assert self.consumer is not None and self.consumer.at is not None
        return self.consumer.at, self.consumer.digest

    async def _give_up(self) -> bool:
        """Device away, log ended, facts published, right granted (rules 18 to 20). In use: keep everything, say so,
        try again."""
        assert self.producer is not None
        text = cannot_follow(self.site.view(), self.resource, self.site.host)
        self.busy = [] if text else await self.producer.take_device_away()
        if self.busy:
            text = (f"the primary role is to go, but the device is in use by {', '.join(self.busy[:5])}: "
                    "close or umount it")
        self.site.say(self.resource, "err-device-busy", text)
        if text:
            self.later(1.0)
            return False
        end, digest = await self.producer.finish()
        self.producer = None
        emergency.forget(self)
        self._facts({"if-on": "0", "open-count": "0"})
        self.site.forget_view()
        LOG.info("%s: no longer primary, the log ends at %s", self.resource, end)
        if not self.site.shutting_down:
            self._pass_on(end, digest)
        self._facts({"is-primary": "0"})
        return True

    def _pass_on(self, end: LogPos, digest: str) -> None:
        """The log has ended here: who waits gets the right; if nobody does, it is kept by a grant to this host, so
        that it can also be passed on while the resource is detached (rule 18)."""
        local = dataclasses.replace(self.local(), primary=False, recovered=True, at=end, digest=digest, fetched=end,
                                    fetched_digest=digest)
        to = grant_to(self.site.view(), self.resource, self.site.host, local) or self.site.host
        self._grant(to, end, digest)

    def _grant(self, host: str, at: LogPos | None = None, digest: str = "") -> bool:
        """The right to write the next log goes to `host`, durably, before anybody hears that we are not primary
        (rule 18). A right that was granted to us and not used is passed on as it came."""
        right = right_holder(self.site.view(), self.resource)
        if at is None and right is not None and right.mark is not None:
            at, digest = right.mark.pos, right.mark.digest
        elif at is None:
            at, digest = self._where()
        rel = paths.granted(self.resource, self.site.host)
        self.site.store.put(rel, f"{host},{at},{digest}", durable=True, restamp=True)
        LOG.info("%s: the right to write after %s is granted to %s", self.resource, at, host)
        self.site.forget_view()
        return True

    # ---- secondary ----

    async def _secondary(self, want: Plan) -> bool:
        consumer = self.consumer
        assert consumer is not None
        if self.seal.accepted:
            return False
        gaps.finish(self, consumer)
        if consumer.damaged and self._looked_at != consumer.at:
            self._looked_at = consumer.at
            await self.stop_consumer()
            return True
        view, host = self.site.view(), self.site.host
        parted = view.sync_rest(self.resource, host) <= 0 and await self.back.is_of_another_history(
            view.syncpos(self.resource, host), consumer.copy)
        if parted or stale_sync(view, self.resource, host):
            self.site.say(
                self.resource, "inf-sync-start", "the history has parted below syncpos: the sync begins again"
            )
            regions.drop(regions.path_of(self.directory()))
            self.site.store.put(paths.syncstatus(self.resource, self.site.host), "0", durable=True)
            return True
        if consumer.copy is None:
            if want.primary or self.trouble:
                return False
            await consumer.recover(*self._where(), self.back.known_durable())
        if consumer.sync.running and consumer.sync.key != want.sync_from:
            await consumer.sync.stop()
            self._facts({"is-syncing": "0"})
            self.site.say(self.resource, "inf-sync", "")
        if consumer.fetch.running and consumer.fetch.key != want.fetch_from:
            await consumer.fetch.stop()
            self._facts({"is-copying": "0"})
            self.site.say(self.resource, "inf-fetch", "")
        if consumer.replaying and not want.replay or (consumer.replayer is not None and not consumer.replaying):
            await consumer.stop_replay()
            self._facts({"is-replaying": "0"})
            if consumer.damaged and self._looked_at != consumer.at:
                return True
            if consumer.trouble:
                self._set_replay_trouble(consumer.trouble)
                consumer.trouble = ""
                return True
        if want.fetch_from and not consumer.fetch.running:
            consumer.start_fetch(want.fetch_from)
            self._facts({"is-copying": "1"})
        if want.replay and consumer.replayer is None and not consumer.trouble:
            consumer.start_replay()
            self._facts({"is-replaying": "1"})
        if want.sync_from and not consumer.sync.running and consumer.replayer is not None:
            await consumer.verify.stop()  # what a sync writes is ahead of replay
            self.syncing.start(want.sync_from, consumer, self.disk_fd)
            self._facts({"is-syncing": "1"})
        if consumer.parted:
            await consumer.stop()
            await consumer.recover(*self._where(), self.back.known_durable())
            return True
        if (consumer.gap_ahead or consumer.missing_log) and await gaps.cross(self, consumer):
            return True
        if consumer.withdrawn and not self.seal.broken:
            return await self._restart_sync("the empty log with which it began was withdrawn by its producer")
        if consumer.missing_log and want.sync_from:
            return await self._restart_sync("the source has not got the log any more that was due")
        return False

    async def begin_anew(self, at: LogPos, due: regions.Regions | None = None, behind: Point | None = None) -> None:
        """This replica knows nothing any more (but that it is right outside of `due`, rule 27, once replay has passed
        `behind`): logs aside, sync from 0, replay from `at`. In the resource's turn."""
        await self.stop_consumer()
        keep = replica.discarded(self.site, self.resource)
        await self.back.forget()
        self.forget_trouble()
        self.publisher.drop_hint()
        self.seal.drop()
        if due is None:
            regions.drop(regions.path_of(self.directory()))
        else:
            regions.save(self.directory(), self.resource, due)
        # First syncstatus = 0: a crash in between leaves an unfinished sync, which begins again by itself.
        self.site.store.put(paths.syncstatus(self.resource, self.site.host), "0", durable=True)
        self.site.store.put_many(replica.fresh_facts(self.site, self.resource, at, behind), durable=True)
        replica.set_logs_aside(self.site, self.resource, keep)
        for key in ("err-splitbrain-detected", "err-fetch", "err-sync", "err-memory", "inf-heal", *salvage.KEYS):
            self.site.say(self.resource, key, "")
        self.site.forget_view()

    async def _restart_sync(self, why: str) -> bool:
        """The sync is not finished and cannot be: begin again by itself, and say so (rules 14, 16)."""
        LOG.info("%s: the sync begins again: %s", self.resource, why)
        await self.begin_anew(await replica.start_position(self.site, self.resource))
        self.site.say(self.resource, "inf-sync-start", f"the sync began again: {why}")
        return True

    # ---- for peers, control and ticks ----

    def log_source(self) -> logsource.Source:
        """A new stream's view of the own logs."""
        if self.stock.end is None or self.disk_fd < 0:
            raise PreconditionError(f"{self.resource} is not attached on {self.site.host}", "marsadm attach there")
        return logsource.Source(self.directory(), self.site.view().log_uuid(self.resource), self.resource,
                                self.stock.end, self.stock.pins, self._unreadable_in_thread, self.site.host)

    def _unreadable_in_thread(self, upto: LogPos) -> None:
        self.site.loop.call_soon_threadsafe(self._mend, upto)

    def _mend(self, upto: LogPos) -> None:
        if self._env is not None and self.disk_fd >= 0:
            self.back.mend(self._env, upto)

    def pinned(self) -> int | None:
        """The lowest log number that must stay for streams."""
        return self.stock.pins.lowest()

    async def tick(self) -> None:
        """Every logger_report_interval_s: publish what moved."""
        self.site.say(self.resource, "err-space-tree", self.publisher.lacking)
        if self.producer is not None:
            self.producer.publish()
            self.producer.check()
            if time.monotonic() - self._opened > OPEN_COUNT_S:
                await self.count_users()
        if self.consumer is not None:
            self.consumer.publish()
        self.rates.tick(counted(self))
        self.scrub.tick()

    async def users(self) -> list[str]:
        """Who uses the device now, as far as can be seen."""
        if self.producer is None or not self.producer.device:
            return []
        answer, _ = await self.site.keeper.call("dev-users", name=self.producer.name)
        return [str(user) for user in answer.get("users", ())]

    async def count_users(self) -> None:
        """Publish how many use the device: for people and for early refusals, nothing rests on it (rule 20)."""
        producer = self.producer
        if producer is None or not producer.device:
            return
        self._opened = time.monotonic()
        with contextlib.suppress(MarsError, ConnectionError):
            answer, _ = await self.site.keeper.call("dev-users", name=producer.name)
            if self.producer is producer and producer.device:
                self._facts({"open-count": str(int(answer.get("count", 0)))})

    async def shutdown(self, force: bool) -> list[str]:
        """marsd stops. Who still uses the device ([]: all is stopped)."""
        async with self._turn:
            users: list[str] = []
            if self.producer is not None:
                users = await self.producer.take_device_away()
                if users and not force:
                    return users
                await (self.producer.close() if users else self.producer.finish_if_possible())
                self.producer = None
                self._facts({"is-primary": "0", "if-on": "0", "open-count": "0"})
            await self.back.stop()
            await self.stop_consumer()
            if self.disk_fd >= 0:
                if not users:
                    await self.seal.put(self._env)
                os.close(self.disk_fd)
                self.disk_fd = -1
                with contextlib.suppress(MarsError, ConnectionError):
                    await self.site.keeper.call("disk-close", path=self.device_path)
                self._facts({"is-attached": "0"})
        self.stopped = True
        if self._task is not None:
            self._task.cancel()
        return []
