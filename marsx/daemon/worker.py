"""The worker: one asyncio loop that holds tree, peers, planner, timers and control socket together; the data plane
runs in threads without the GIL. Started by the keeper, ended by it or by its end."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import ctypes
import gc
import os
import signal
import socket
import ssl
import time
from collections.abc import Coroutine
from typing import Any

import marsx
from marsx.base import messages
from marsx.base.config import Paths, Settings
from marsx.base.errors import MarsError, PreconditionError
from marsx.daemon import answers, commands, emergency, gaps, growth, housekeeping, verify
from marsx.daemon.control import Control
from marsx.daemon.exchange import HEARTBEAT_KEYS, Exchange
from marsx.daemon.identity import Identity, outcast
from marsx.daemon.keeperlink import KeeperLink
from marsx.daemon.mounts import MountWatch
from marsx.daemon.plan import sync_source
from marsx.daemon.resource import Runner
from marsx.daemon.site import Site
from marsx.daemon.slots import SyncSlots
from marsx.daemon.spans import PrimarySpans
from marsx.daemon.stall import Stalls
from marsx.daemon.web import Web
from marsx.peer import client, fetch, sync, tls
from marsx.peer.join import JoinService
from marsx.peer.limit import Bucket
from marsx.peer.link import Link, Tcp, Timing
from marsx.peer.server import Peer, Server, Service
from marsx.peer.token import TokenStore
from marsx.peer.verify import VerifyService
from marsx.peer.wire import Hello
from marsx.tree import paths
from marsx.tree.store import Entry, Store, open_lamport
from marsx.tree.watch import Watch

LOG = messages.get("daemon.worker")
TICK_S = 1.0
FAREWELL_S = 1.0
LOOK_S = 10  # a resource of which nothing is heard looks anew so often
EXECUTOR_THREADS = 32
# (mallopt option, value): M_ARENA_MAX, M_MMAP_THRESHOLD, M_TRIM_THRESHOLD. Bodies of frames come and go by the MiB: if
# they were given back to the kernel each time, a sync would spend 40 % of its processor time on page faults. Few arenas
# keep what is held back for the next one small.
MALLOC = ((-8, 2), (-3, 8 << 20), (-1, 32 << 20))
TRAFFIC = {"fetch": "1_replication", "sync": "2_sync"}  # services that have tunables of their own; else 0_meta
TCP_TUNABLES = ("ip_tos", "tcp_window_size", "tcp_keepcnt", "tcp_keepintvl", "tcp_keepidle")  # in the order of Tcp


def main(keeper_fd: int, where: Paths) -> int:
    """Serve until the keeper asks to stop (0) or is gone (1)."""
    messages.setup("marsd", file=where.messages_file, stderr=False, syslog=True)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _protect_memory()
    keeper = KeeperLink(keeper_fd)
    hello, _ = keeper.call_now("hello")
    try:
        return asyncio.run(_serve(keeper, hello, where))
    except MarsError as err:
        LOG.error("%s%s", err.text, f" ({err.hint})" if err.hint else "")
        return err.exit_code


def _protect_memory() -> None:
    """No page of ours may be waited for under memory pressure (design D 3): lock what is there, and say when that is
    not allowed."""
    libc = ctypes.CDLL(None, use_errno=True)
    for option, value in MALLOC:
        libc.mallopt(option, value)
    if libc.mlockall(1) != 0:  # MCL_CURRENT: what comes later is locked where it matters
        LOG.info("memory cannot be locked: %s", os.strerror(ctypes.get_errno()))
    if libc.prctl(57, 1, 0, 0, 0) != 0:  # PR_SET_IO_FLUSHER
        LOG.info("PR_SET_IO_FLUSHER is not permitted here: %s", os.strerror(ctypes.get_errno()))


async def _serve(keeper: KeeperLink, hello: dict[str, Any], where: Paths) -> int:
    worker = Worker(keeper, hello, where)
    try:
        await worker.start()
        return await worker.run()
    finally:
        await worker.close()


class Worker:
    """See the module."""

    def __init__(self, keeper: KeeperLink, hello: dict[str, Any], where: Paths) -> None:
        self.paths = where
        self.host = socket.gethostname()
        self.settings = Settings(where)
        self.lamport = open_lamport(
            where, self.host, max_future=self.settings.get("max_lamport_future") * 10**9
        )
        self.store = Store(where, self.host, self.lamport)
        self.executor = concurrent.futures.ThreadPoolExecutor(EXECUTOR_THREADS, thread_name_prefix="marsd")
        self.loop = asyncio.get_running_loop()
        self.files = tls.TlsFiles.of(where)
        self.runners: dict[str, Runner] = {}
        self.exchange = Exchange(self.store, self._dial, self._kick_all, self._foreign_own)
        kept = {device["name"]: device for device in hello.get("devices", ()) if device.get("state") != "gone"}
        self._gone = [device["name"] for device in hello.get("devices", ()) if device.get("state") == "gone"]
        self.site = Site(
            where,
            self.host,
            self.store,
            self.lamport,
            self.settings,
            keeper,
            self.loop,
            self.executor,
            self._dial,
            self.exchange.ages,
            lambda: self.exchange.reachable,
            self._kick_all,
            self._sync_slots,
            kept,
            lambda: self.exchange.answered,
            self._restart,
            outcast=lambda: outcast(self.exchange.errors),
        )
        self.space = emergency.Watch(self.site)
        self.start_service = commands.StartService(self)
        self.site.promised = self.start_service.lowest
        self.tokens = TokenStore.of(where)
        self.control = Control(
            where.control_socket,
            {
                "ping": answers.ping,
                "status": lambda request, progress: answers.status(self),
                "token": lambda request, progress: answers.token(self),
                "stop": self._asked_to_stop,
                "do": lambda request, progress: commands.do(self, request),
                "plan": lambda request, progress: commands.do(self, request, dry=True),
                "wait": lambda request, progress: answers.wait(self, request, progress),
                "verify": lambda request, progress: verify.from_marsadm(self, request, progress.later),
            },
            while_connected=frozenset({"verify"}),
        )
        self._server: Server | None = None
        self._watch: Watch | None = None
        self._mounts: MountWatch | None = None
        self._end: asyncio.Future[int] = self.loop.create_future()
        self._leaving = False  # the end has begun and nothing hinders it any more
        self._ticker: asyncio.Task[None] | None = None
        self._incarnation = os.urandom(8).hex()
        self._slots = SyncSlots(time.monotonic)
        self._served = Bucket(lambda: self.settings.get("traffic_tuning/server_role_traffic_ratelimit_kb"))
        self._context: ssl.SSLContext | None = None
        self._leftover: set[asyncio.Task[Any]] = set()
        self.stalls, self.web = Stalls(self), Web(self)
        self.identity = Identity(self.store, self.exchange, lambda key, text: self.site.say("", key, text))

    # ---- start ----

    async def start(self) -> None:
        self.store.heals = True
        self.store.load()
        if not self.store.get(paths.uuid()):
            lost = f"if it was lost: ln -s VALUE {self.store.root}/uuid, with what `readlink {self.store.root}/uuid` " \
                   "says on another host; else " if self.files.complete() else ""
            raise PreconditionError(
                "this host is in no cluster", f"{lost}marsadm create-cluster, or marsadm join-cluster HOST --token=T"
            )
        if not self.files.complete():
            raise PreconditionError(f"the certificates in {self.files.directory} are missing", "join the cluster again")
        problem = self.lamport.clock_problem()
        if problem:
            LOG.error("%s", problem)
        self.settings.publish()
        self._context = tls.client_context(self.files)
        tls.check_name(self.files, self.host)
        self.site.keeper.start(self.loop, self._keeper_says, self._keeper_lost)
        self._name_kept()
        for name in self._gone:
            await self.site.keeper.call("dev-drop", name=name)
        self._watch = Watch(self.store.root, self._tree_touched)
        self.loop.add_reader(self._watch.fileno(), self._watch.process)
        self._mounts = MountWatch(self.loop, self._mounted)
        self.store.load()
        self.store.on_change(self._tree_changed)
        await self._start_server()
        await self.control.start()
        self._heartbeat(first=True)
        self.exchange.update_peers()
        self._update_runners()
        self._ticker = asyncio.create_task(self._tick_for_ever(), name="ticks")
        await self._devices_back()
        await self.site.keeper.call("ready")
        gc.collect()
        gc.freeze()
        LOG.info("marsd %s serves cluster %s", marsx.__version__, self.store.get(paths.uuid()))

    def _name_kept(self) -> None:
        """The keeper knows devices, we know resources: one may be called otherwise than the other."""
        view, kept = self.site.view(), self.site.kept
        owner = {self.site.device_name(res): res for res in view.resources if self.host in view.members(res)}
        named = {owner.get(name, name): device for name, device in kept.items()}
        kept.clear()
        kept.update(named)

    async def _start_server(self) -> None:
        services: dict[str, Service] = {
            "tree": self.exchange.service,
            "fetch": fetch.FetchService(lambda res, peer: self._runner_for(res, peer).log_source(), self.executor,
                                        bucket=self._served),
            "sync": sync.SyncService(self._span_source, self.executor, self._served, self._compress_level),
            "verify": VerifyService(self._span_source, self.executor, self._served),
            verify.ASK: verify.VerifyAsk(self),
            "start": self.start_service,
            gaps.SERVICE: gaps.HealService(self),
            "join": JoinService(
                self.files,
                self.tokens,
                uuid=lambda: self.store.get(paths.uuid()),
                admit=self._admit,
                look=self._whole_tree,
                executor=self.executor,
            ),
        }
        self._server = Server(
            "0.0.0.0",
            self.settings.get("mars_port"),
            contexts=tls.server_contexts(self.files),
            identity=self._identity,
            services=services,
            is_member=self.identity.check,
            join_open=self.tokens.any,
            timing=self._timing(),
            tcp_of=lambda service: self._timing(service).tcp,
            links_max=self.settings.get("handler_limit"),
        )
        await self._server.start()

    async def _devices_back(self) -> None:
        """`ready` means: what the keeper holds is served again (marsd start may wait for that; applications do)."""
        end = time.monotonic() + 30.0
        while self.site.kept and time.monotonic() < end and any(self.runners.get(name) for name in self.site.kept):
            await asyncio.sleep(0.01)

    def _timing(self, service: str = "") -> Timing:
        kind = TRAFFIC.get(service, "0_meta")
        tcp = Tcp(*(self.settings.get(f"tcp_tuning_{kind}_traffic/{name}") for name in TCP_TUNABLES))
        return Timing(io_timeout=float(self.settings.get("network_io_timeout") or 86400), tcp=tcp)

    def _compress_level(self) -> int:
        """Of what the sync sends; 0 = as it is. The cluster may have switched compression off."""
        off = self.store.get(paths.default("enabled-net-compressions"))
        return self.settings.get("compress_level") if not off or int(off, 16) else 0

    def _identity(self) -> Hello:
        return Hello(self.store.get(paths.uuid()), self.host, self._incarnation)

    async def _dial(self, host: str, service: str) -> tuple[Link, Hello]:
        ip = self.store.get(paths.ip(host))
        if not ip:
            raise PreconditionError(f"no address of {host} is known")
        return await client.connect(
            host,
            ip,
            self.settings.get("mars_port"),
            service,
            identity=self._identity(),
            context=self._context,
            timing=self._timing(service),
        )

    # ---- who may talk to us ----

    def _admit(self, host: str, ip: str, address: str) -> list[Any]:
        """A token was proved: may `host` come in? Prepares the tree for it and hands it over."""
        if not paths.is_host(host) or host == self.host:
            raise PreconditionError(f"{host!r} cannot be the name of a new host here", "give the host another name")
        if self.store.get(paths.ip(host)) and host in self.exchange.heard and self.exchange.ages().get(host, 1e9) < 30:
            raise PreconditionError(
                f"there is a host {host} in the cluster, and it is alive", "give the new host another name"
            )
        where = ip or address.rpartition(":")[0]
        self.store.put_many([(paths.host_member(host), os.urandom(8).hex()), (paths.ip(host), where)], durable=True)
        return self._whole_tree()

    def _whole_tree(self) -> list[Any]:
        return [[e.rel, e.value, e.stamp] for e in self.store.entries()]

    def _runner_for(self, resource: str, peer: Peer) -> Runner:
        runner = self.runners.get(resource)
        if runner is None:
            raise PreconditionError(f"{self.host} has no replica of {resource}")
        if peer.host not in self.site.view().members(resource):
            raise PreconditionError(f"{peer.host} is not a member of {resource}")
        return runner

    def _span_source(self, resource: str, peer: Peer) -> PrimarySpans:
        runner = self._runner_for(resource, peer)
        if runner.producer is None or runner.producer.gate is None:
            raise PreconditionError(f"{self.host} is not primary of {resource}")
        volume = runner.producer.primary.volume
        if volume is None or volume.device_size < self.site.view().size(resource):
            raise PreconditionError(f"{resource} is just growing on {self.host}", "it goes on by itself")
        return PrimarySpans(runner.producer.gate, runner.stock.pins)

    # ---- the tree ----

    def _tree_touched(self, rels: list[str] | None) -> None:
        """inotify: another process (marsadm) wrote, or we ourselves."""
        try:
            if rels is None:
                self.store.load()
            else:
                self.store.reread(rels)
        except MarsError as err:
            LOG.error("%s", err)

    def _tree_changed(self, rels: list[str]) -> None:
        if all(self._is_heartbeat(rel) for rel in rels):
            return
        self.site.forget_view()
        touched = {name.resource for rel in rels if (name := paths.parse(rel)) is not None and name.resource}
        if touched - set(self.runners):
            self._update_runners()
        for resource in touched & set(self.runners):
            self.runners[resource].kick()

    def _is_heartbeat(self, rel: str) -> bool:
        """Every second, of every host, and nothing new: how long ago a host was heard of is not in the tree."""
        name = paths.parse(rel)
        if name is None or name.kind != "host-actual" or name.key not in HEARTBEAT_KEYS:
            return False
        return name.key == "time" or self.site.view().get(rel) == self.store.get(rel)

    def _update_runners(self) -> None:
        view = self.site.view()
        for resource in view.resources:
            if self.host in view.members(resource) and resource not in self.runners:
                self.runner(resource)

    def runner(self, resource: str) -> Runner:
        """The runner of a resource of this host, made when needed."""
        if resource not in self.runners:
            self.runners[resource] = Runner(self.site, resource)
            self.runners[resource].start()
            verify.tell_interrupted(self.runners[resource])
        return self.runners[resource]

    async def drop_runner(self, resource: str) -> None:
        runner = self.runners.pop(resource, None)
        if runner is not None:
            await runner.shutdown(force=True)

    def _kick_all(self) -> None:
        self.site.forget_view()
        for runner in self.runners.values():
            runner.kick()

    def _mounted(self) -> None:
        """Somebody mounted or unmounted something."""
        for runner in self.runners.values():
            self._background(runner.count_users(), f"users of {runner.resource}")

    def _background(self, work: Coroutine[Any, Any, None], name: str) -> None:
        """A task that nobody waits for; the set keeps it alive."""
        task = asyncio.create_task(work, name=name)
        self._leftover.add(task)
        task.add_done_callback(self._leftover.discard)

    def _foreign_own(self, sender: str, entries: list[Entry]) -> None:
        """Others hold newer facts of ours (rule 22). The clock is past them already: what we know is said again;
        positions when it is known that they lie within what is here."""
        LOG.info("%s held %d newer facts of this host", sender, len(entries))
        again = []
        for entry in entries:
            name = paths.parse(entry.rel)
            is_position = name is not None and name.kind in ("version", "replay")
            runner = self.runners.get(name.resource) if name is not None and is_position else None
            if runner is not None:
                runner.back.claim(entry)
            elif value := self.store.get(entry.rel):
                again.append((entry.rel, value))
        if again:
            self.store.put_many(again, restamp=True)

    def _restart(self, why: str) -> None:
        """A new worker takes over from the keeper: nothing acknowledged is lost, applications only wait (rule 11)."""
        LOG.error("this worker ends, another one takes over: %s", why)
        os._exit(1)

    def _sync_slots(self, resource: str) -> int:
        view, settings = self.site.view(), self.settings
        limit = settings.get("sync_limit") or view.sync_limit(self.host)
        if not limit:
            return 1
        attached = {res: r.consumer for res, r in self.runners.items() if r.consumer is not None}
        running = [res for res, consumer in attached.items() if consumer.sync.running]
        reachable = self.site.reachable()
        wanting = [res for res in attached if view.sync_rest(res, self.host) > 0
                   and sync_source(view, res, self.host, reachable)[0]]
        prefer = view.get(paths.host_default(self.host, "sync-pref-list")).split(",")
        flip = settings.get("sync_flip_interval_sec")
        return int(self._slots.may_sync(resource, wanting, running, limit, prefer, flip))

    # ---- time ----

    async def _tick_for_ever(self) -> None:
        count = 0
        while True:
            await asyncio.sleep(TICK_S)
            count += 1
            try:
                self._heartbeat()
                every = max(1, self.settings.get("logger_report_interval_s"))
                scarce = housekeeping.scarce(self)
                for runner in list(self.runners.values()):
                    await self._keep_house(runner, count % every == 0, count % 10 == 0, scarce)
                self.stalls.tick()
                self.identity.tick()
                self._say_tree()
                await self.web.tick()
                self.store.retry()
                if count % 5 == 0:
                    self.site.forget_view()  # for those who ask who is alive
                for number, runner in enumerate(self.runners.values()):
                    if (count + number) % LOOK_S == 0:
                        runner.kick()
            except asyncio.CancelledError:
                raise
            except MarsError as err:
                LOG.error("%s", err)
            except Exception:
                LOG.exception("tick failed")

    async def _keep_house(self, runner: Runner, report: bool, follow: bool, scarce: bool) -> None:
        """One resource; what fails there must not keep the others waiting."""
        try:
            if report:
                await runner.tick()
            if follow:
                housekeeping.follow_up(self, runner)
            if scarce:
                housekeeping.make_room(self, runner)
            await housekeeping.rotate_if_long(self, runner)
            await growth.follow(self, runner)
        except MarsError as err:
            LOG.error("%s: %s", runner.resource, err)
        except Exception:
            LOG.exception("%s: tick failed", runner.resource)

    def _say_tree(self) -> None:
        """What of the tree was found damaged: is it whole again?"""
        store = self.store
        bad = [f"{rel}: {why}" for rel, why in sorted(store.problems.items())]
        text = f"{len(bad)} entries of {store.root} do not count: {'; '.join(bad[:3])}"
        self.site.say("", "err-tree", text if bad else "")
        if store.healed:
            good = [f"{rel} {why}" for rel, why in sorted(store.healed.items())]
            store.healed.clear()
            text = f"{len(good)} damaged entries of {store.root} were written again: {'; '.join(good[:3])}"
            LOG.info("%s", text)
            self.site.say("", "inf-tree-healed", text)

    def _heartbeat(self, first: bool = False) -> None:
        now = self.lamport.now()
        items = [
            (paths.host_actual(self.host, "alive"), "0" if self._leaving else "1"),
            (paths.host_actual(self.host, "time"), f"{now // 10**9}.{now % 10**9:09d}"),
            *self.space.look(),
        ]
        if first:
            items += [
                (paths.host_actual(self.host, "tree"), "0.1"),
                (paths.host_actual(self.host, "features"), "4,5,0x00000000"),
                (paths.host_actual(self.host, "usable"), "4,5,0x00000000"),
                (paths.host_actual(self.host, "buildtag"), f"marsx{marsx.__version__}"),
                (paths.host_actual(self.host, "incarnation"), self._incarnation),
            ]
        self.store.put_many(items[2:])
        self.store.put_many(items[:2], restamp=True)

    # ---- control ----

    async def _asked_to_stop(self, request: dict[str, Any], progress: Any) -> dict[str, Any]:
        await self._stop(bool(request.get("force")))
        return {"ok": True}

    # ---- end ----

    def _keeper_says(self, event: dict[str, Any]) -> None:
        if event.get("event") == "stop":
            self._background(self._stop(bool(event.get("force"))), "stop")

    def _keeper_lost(self) -> None:
        LOG.error("the keeper is gone; the worker ends")
        os._exit(1)

    async def _stop(self, force: bool) -> None:
        """What hinders the end is told to who asked for it."""
        try:
            await self._take_all_away(force)
        except (MarsError, OSError) as err:
            LOG.exception("cannot stop")
            self.site.shutting_down = self._leaving = False
            await self._revive()
            await self.site.keeper.call("stop-refused", reason=str(err))

    async def _take_all_away(self, force: bool) -> None:
        """All devices first: one that is in use keeps everything running."""
        for runner in list(self.runners.values()):
            users = await runner.users()
            if users and not force:
                await self._refuse_stop(runner, users)
                return
        self.site.shutting_down = True
        for runner in list(self.runners.values()):
            users = await runner.shutdown(force)
            if users:
                self.site.shutting_down = False
                self._update_runners()
                await self._revive()
                await self._refuse_stop(runner, users)
                return
        await self._farewell()
        if not self._end.done():
            self._end.set_result(0)

    async def _farewell(self) -> None:
        """Tell the others that this was meant, and wait until they have it: they name it at once, and no heartbeat says
        the contrary any more."""
        self._leaving = True
        now = time.monotonic()
        self.store.put(paths.host_actual(self.host, "alive"), "0", restamp=True)
        await self.exchange.taken(now, FAREWELL_S)

    async def _refuse_stop(self, runner: Runner, users: list[str]) -> None:
        device = f"{self.paths.dev_dir}/{self.site.device_name(runner.resource)}"
        await self.site.keeper.call("stop-refused", reason=f"{device} is in use by {', '.join(users[:5])}")

    async def _revive(self) -> None:
        """A stop was refused half way: resources that are down come up again."""
        for name, runner in list(self.runners.items()):
            if runner.stopped:
                self.runners[name] = Runner(self.site, name)
                self.runners[name].start()
            else:
                runner.kick()

    async def run(self) -> int:
        return await self._end

    async def close(self) -> None:
        if self._ticker is not None:
            self._ticker.cancel()
        with contextlib.suppress(Exception):
            await self.web.close()
            await self.exchange.close()
        if self._server is not None:
            with contextlib.suppress(Exception):
                await self._server.close()
        await self.control.close()
        if self._watch is not None:
            self.loop.remove_reader(self._watch.fileno())
            self._watch.close()
        if self._mounts is not None:
            self._mounts.close()
        self.store.close()
        self.lamport.close()
        self.executor.shutdown(wait=False, cancel_futures=True)
