"""One host of `cluster_world`: real runner, planner, logs, copies, replay and recovery on a tree in memory, logs and a
data device in small files, a loop whose time is played.

A kill may come at each write to the tree and at each blocking call; what it leaves is judged by the next start. Played:
keeper, threads (replay runs as a task, one window at a time), the wire (the fetch source is called directly, after the
line's delay), the blocks of a sync.
"""
from __future__ import annotations

import asyncio
import os
import shutil
from collections.abc import Callable
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from marsx.base.config import TUNABLES, Paths
from marsx.base.errors import MarsError, PreconditionError
from marsx.base.lamport import Lamport
from marsx.base.position import LogPos
from marsx.daemon import commands, housekeeping
from marsx.daemon.consumer import Consumer
from marsx.daemon.exchange import Intake
from marsx.daemon.facts import Items, Publisher
from marsx.daemon.resource import Runner
from marsx.daemon.site import Site
from marsx.log.chain import Point
from marsx.log.record import BLOCK
from marsx.peer.fetch import GROUP_MAX, Offer, Start
from marsx.peer.syncparts import SyncRestart
from marsx.peer.wire import PeerError, Reason
from marsx.tree import paths
from marsx.tree.store import Entry
from marsx.volume.replay import Pair, Replayer
from tests.sim.cluster_volume import BLOCKS, SIZE, WINDOWS, SimProducer, Volume
from tests.sim.handover_host import MemoryStore, TreeDisk

if TYPE_CHECKING:
    from tests.sim.cluster_world import World

RES = "r"
SWITCHES = ("attach", "connect", "sync", "allow-replay")
PRIMARY = paths.primary(RES)
SETTINGS = {name: tunable.default for name, tunable in TUNABLES.items()} | {"writeback_window_mb": 1}


class Killed(asyncio.CancelledError):
    """This life of the host is over."""


class SimStore(MemoryStore):
    """The tree of a host that may be killed at any write."""

    def __init__(self, host: Host, lamport: Lamport) -> None:
        self._host = host
        super().__init__(host.name, lamport, host.tree)
        self.root = host.directory

    def _write(self, entry: Entry) -> None:
        self._host.may_die()
        super()._write(entry)

    def make_durable(self, rels: Any) -> None:
        self._host.may_die()
        super().make_durable(rels)


class SimPublisher(Publisher):
    """Durable in the tree in memory; the hint is no file."""

    def put(self, items: Items | Callable[[], Items], *, make_durable: bool = False) -> None:
        written, _ = self._store_them(items)
        self._changed()
        if make_durable:
            self._store.make_durable([rel for rel, _ in written])

    def _write_hint(self, at: LogPos, digest: str) -> None:
        self._store._host.hint = str(at), digest  # type: ignore[attr-defined]

    def digest_hint(self, at: LogPos) -> str:
        known, digest = self._store._host.hint  # type: ignore[attr-defined]
        return digest if known == str(at) else ""

    def drop_hint(self) -> None:
        self._store._host.hint = "", ""  # type: ignore[attr-defined]


class SimReplayer(Replayer):
    """Steps of the real one, in a task."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.told = asyncio.Event()
        self.alive = True

    def advance(self, fetched: LogPos) -> None:
        super().advance(fetched)
        self.told.set()

    def set_bound(self, bound: LogPos | None) -> LogPos:
        self.told.set()
        return super().set_bound(bound)

    def request_stop(self) -> None:
        self._stop = True
        self.told.set()

    async def steps(self, consumer: Consumer, site: SimSite) -> None:
        """As `body`."""
        pair: Pair | None = None
        try:
            while not self._stop:
                if self._limit() > self.at:
                    pair = pair or new_pair()
                    self._step(pair)
                    await site.pause()
                else:
                    self.told.clear()
                    await self.told.wait()
        except (OSError, MarsError, ValueError) as err:
            self.error, self.damaged = f"replay stopped: {err}", type(err).__name__ == "DamagedError"
        finally:
            self.alive = False
            if self._log is not None:
                self._log.close()
            if pair is not None and pair.cursor is None:
                WINDOWS.extend((pair.now, pair.next))
        consumer._replay_ended()


def new_pair() -> Pair:
    """With windows that were used before."""
    if len(WINDOWS) < 2:
        return Pair(1 << 20)
    pair = Pair.__new__(Pair)
    pair.now, pair.next, pair.cursor = WINDOWS.pop(), WINDOWS.pop(), None
    return pair


class SimKeeper:
    """Opens the data device; has no device to serve."""

    def __init__(self, host: Host) -> None:
        self._host = host

    async def call(self, op: str, **args: Any) -> tuple[dict[str, Any], list[int]]:
        """As KeeperLink."""
        self._host.may_die()
        if op == "disk-open":
            return {}, [os.open(self._host.disk, os.O_RDWR | os.O_DIRECT)]
        return {"users": [], "count": 0}, []


class SimSite(Site):
    """What a Runner is given."""

    world: World
    sim: Host

    async def pause(self) -> None:
        """Something takes its time."""
        await asyncio.sleep(self.world.rng.choice((0, 0, 0.004, 0.015)))
        self.sim.may_die()

    async def blocking(self, call: Callable[..., Any], *args: Any) -> Any:
        result = call(*args)
        if getattr(call, "__self__", None) is not self.sim.runner.seal:  # a short look: it takes no time
            await self.pause()
        return result

    def thread(self, name: str, body: Callable[[], object]) -> Any:
        consumer = getattr(body, "__self__", None)
        if isinstance(consumer, Consumer):
            replayer = consumer.replayer
            assert isinstance(replayer, SimReplayer)
            asyncio.create_task(replayer.steps(consumer, self))
            return SimpleNamespace(is_alive=lambda: replayer.alive)
        return SimpleNamespace(is_alive=lambda: False)

    async def join(self, threads: list[Any], timeout: float = 0.0) -> bool:
        while any(thread.is_alive() for thread in threads):
            await asyncio.sleep(0.001)
        return True


class Link:
    """To the service of another host."""

    timing = SimpleNamespace(io_timeout=10.0)

    def __init__(self, world: World, host: str, other: str) -> None:
        self.world, self.host, self.other = world, host, other
        self.life = world.hosts[other].life

    def check(self) -> Host:
        """The other host, or an error."""
        there = self.world.dial(self.host, self.other)
        if there.life != self.life:
            raise PeerError(Reason.LOST, f"{self.other} has ended the connection")
        return there

    async def way(self) -> None:
        """There and back."""
        await asyncio.sleep(self.world.rng.choice((0.001, 0.005, 0.02)))
        self.check()

    async def close(self) -> None:
        """Nothing to do."""


class Host:
    """One host: tree, files, and while it is up a runner."""

    def __init__(self, world: World, name: str) -> None:
        self.world, self.name = world, name
        self.directory = os.path.join(world.directory, name)
        self.logs = os.path.join(self.directory, paths.resource_dir(RES))
        self.disk = os.path.join(self.directory, "disk")
        self.tree = TreeDisk()
        self.hint = "", ""
        self.floor = self.skew = 0
        self.up = self.in_use = False
        self.life = 0
        self.life_to_come = 1
        self.dies_in = -1
        os.makedirs(self.logs)
        with open(self.disk, "wb") as file:
            file.truncate(SIZE)

    # ---- life ----

    def boot(self) -> None:
        """Start marsd on what the disks hold."""
        self.up, self.life = True, self.life_to_come
        self.life_to_come += 1
        self.lamport = Lamport(lambda: self.world.now + self.skew, self.floor)
        self.store = SimStore(self, self.lamport)
        self.intake = Intake(self.store, self._foreign_own)
        self.told: set[str] = set()
        self.failed: set[str] = set()
        world, loop = self.world, asyncio.get_running_loop()
        settings = SimpleNamespace(get=SETTINGS.__getitem__)
        unused: Any = None
        self.site = SimSite(
            paths=Paths(mars_dir=self.directory), host=self.name, store=self.store, lamport=self.lamport,
            settings=settings, keeper=SimKeeper(self), loop=loop,  # type: ignore[arg-type]
            executor=unused, dial=self._dial, heard=dict, reachable=lambda: world.reachable(self.name),
            kick=self.kick, sync_slots=lambda resource: 1, answered=lambda: self.told | self.failed,
            restart=self._restart, started=loop.time())
        self.site.world, self.site.sim = world, self
        self.store.on_change(self._changed)
        self.runner = Runner(self.site, RES)
        self.starts = commands.StartService(self.worker)
        self.runner.start()
        self.failed = {other for other in world.hosts if other != self.name and not world.hosts[other].up}

    def crash(self, power: bool) -> None:
        """kill -9 of everything, or a power cut."""
        self.up, self.dies_in = False, -1
        self.floor = self.lamport.high_water
        volume = self.volume
        self.world.end_tasks(self.name, self.life)
        if power:
            self.tree.power_cut(self.world.rng)
            if self.world.rng.random() < 0.5:
                self.hint = "", ""
            if volume is not None:
                self.world.tear(volume, os.path.join(self.logs, volume.header.name))

    def may_die(self) -> None:
        """A point where this life may end."""
        if not self.up or self.world.life.get() != (self.name, self.life):
            if self.world.life.get() is not None:
                raise Killed
            return
        self.dies_in -= self.dies_in > 0
        if self.dies_in == 0:
            self.world.dies(self)
            raise Killed

    def view_designated(self) -> str:
        """Who is to be primary, as seen here."""
        return self.site.view().designated(RES)

    @property
    def volume(self) -> Volume | None:
        """Of the primary that runs here."""
        producer = self.runner.producer
        return producer.primary.volume if producer is not None else None  # type: ignore[return-value]

    def _restart(self, why: str) -> None:
        self.world.dies(self)
        raise Killed

    def kick(self) -> None:
        self.site.forget_view()
        self.runner.kick()

    def _changed(self, rels: list[str]) -> None:
        self.kick()
        self.world.changed(self, rels)

    def _foreign_own(self, sender: str, entries: list[Entry]) -> None:
        """As the worker does it."""
        again = []
        for entry in entries:
            name = paths.parse(entry.rel)
            if name is not None and name.kind in ("version", "replay"):
                self.runner.back.claim(entry)
            elif value := self.store.get(entry.rel):
                again.append((entry.rel, value))
        if again:
            self.store.put_many(again, restamp=True)

    async def _dial(self, host: str, service: str) -> tuple[Any, Any]:
        link = Link(self.world, self.name, host)
        await link.way()
        return link, None

    # ---- commands ----

    @property
    def worker(self) -> Any:
        """What commands and housekeeping want of one."""
        return SimpleNamespace(site=self.site, runners={RES: self.runner}, start_service=getattr(self, "starts", None))

    async def command(self, what: str, **args: Any) -> str:
        """A control command; why not, or ""."""
        try:
            await commands.do(self.worker, {"what": what, "resource": RES, "args": args})
            return ""
        except MarsError as err:
            return f"{what} on {self.name}: {err.text}"

    def housekeep(self) -> None:
        """As the worker does now and then."""
        housekeeping.follow_up(self.worker, self.runner)

    # ---- as seen by others ----

    def offer(self, start: Start) -> Offer | str:
        """The answer to who asks what is here from `start` on."""
        try:
            source = self.runner.log_source()
        except MarsError as err:
            return err.text
        try:
            verdict = source.check(start)
            return verdict.offer if verdict.offer is not None else verdict.text
        finally:
            source.close()

    def blocks(self) -> list[int]:
        """The values on the data device."""
        with open(self.disk, "rb") as file:
            data = file.read()
        return [int.from_bytes(data[at:at + 8], "little") for at in range(0, SIZE, BLOCK)]


# ---- the services of peers, without a wire ----

async def fetch_logs(link: Link, resource: str, sink: Any, *, fetched: Any = None, enough: Any = lambda: False,
                     **others: Any) -> None:
    """As `peer.fetch.fetch_logs`, over the real source of the other host and the real sink."""
    source = link.check().runner.log_source()
    try:
        start = sink.start()
        verdict = source.check(start)
        if verdict.reason is not None:
            raise PeerError(verdict.reason, f"{link.other}: {verdict.text}")
        if not start.log_id:
            sink.begin(start, verdict.header)
        nr, producer, pos = start.nr, start.producer, start.pos
        while not enough():
            data = source.read(nr, producer, pos, 2 * BLOCK * link.world.rng.randint(1, 4))
            following = source.following(nr, producer, pos)
            if data:
                fed = sink.feed(nr, producer, pos, data)
                assert fed.end > pos and fed.need <= GROUP_MAX
                pos = fed.end
                source.acked(nr, producer, pos)
            elif following is not None:
                sink.next(following.nr, following.producer, pos, following.header)
                nr, producer, pos = following.nr, following.producer, 0
            else:
                await link.world.news(link.other)
                link.check()
                continue
            if fetched is not None:
                fetched(nr, producer, pos)
            await link.way()
    finally:
        source.close()


async def never(*of: Any) -> bool:
    """As `emergency.follow` while there is room, and `gaps.cross` where there is no gap: regions have a world of their
    own."""
    return False


async def ask_all(site: SimSite, resource: str, start: Start, hosts: Any) -> dict[str, Offer | str]:
    """As `daemon.heal.ask_all`."""
    found: dict[str, Offer | str] = {}
    for host in sorted(hosts):
        try:
            link = Link(site.world, site.host, host)
            await link.way()
            found[host] = link.check().offer(start)
        except PeerError as err:
            found[host] = str(err)
    return found


async def start_position(site: SimSite, resource: str) -> LogPos:
    """As `daemon.replica.start_position`."""
    primary = site.view().designated(resource)
    if not primary or primary == site.host:
        raise PreconditionError("no other host is designated primary")
    link = Link(site.world, site.host, primary)
    await link.way()
    there = link.check()
    return site.world.on(there, lambda: there.starts.grant(RES, site.host)).start


async def sync_resource(link: Link, resource: str, sink: Any, **others: Any) -> None:
    """The rules of `peer.sync` for one block after the other: bound, answer held until durable, syncpos first."""
    truth, resume = link.world.truth, sink.resume()
    at = resume.offset // BLOCK
    try:
        while at < BLOCKS:
            while not sink.set_bound(sink.fetched().at):
                await asyncio.sleep(0.002)
            asked = sink.fetched()
            await link.way()
            volume = link.check().volume
            if volume is None or volume.header is None:
                raise PeerError(Reason.LOST, f"{link.other} is not primary")
            volume.flush()
            here = volume.header.log_id, volume.pos
            if resume.syncpos is not None and not truth.holds(here, truth.points.get(resume.syncpos.digest)):
                raise SyncRestart("syncpos is not in the history of the source")
            if asked.digest in truth.points and not truth.holds(here, truth.points[asked.digest]):
                raise PeerError(Reason.SPLIT, f"{asked.at} is not in the history of {link.other}")
            image = truth.image(here)
            point = Point(volume.digest, LogPos(volume.header.nr, volume.header.producer, volume.pos))
            await link.way()
            sink.put_syncpos(point)
            with memoryview(bytearray(image[at].to_bytes(8, "little") * (BLOCK // 8))) as data:
                sink.write(at * BLOCK, data)
            sink.flush()
            at += 1
            sink.put_syncstatus(at * BLOCK, True)
    finally:
        sink.set_bound(None)


def wipe(directory: str) -> None:
    """All files of a world."""
    shutil.rmtree(directory, ignore_errors=True)


__all__ = ["RES", "Host", "Killed", "SimProducer"]
