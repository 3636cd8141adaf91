"""What touches facts and is asked for by marsadm over the control socket (rule 26e): each command checks again, does
its work in the resource's turn, and answers when it is done.

With `dry` in its arguments (the control command `plan`) a command tells what it would do and does nothing: the links
from the same list that it would write, other effects in words."""

from __future__ import annotations

import asyncio
import os
import secrets
import time
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

from marsx.base import disk, messages
from marsx.base.errors import MarsError, NotFoundError, PreconditionError, TimeoutExpired, UsageError
from marsx.base.position import LogPos, log_name
from marsx.daemon import growth, purges, replica, shortcut
from marsx.daemon.housekeeping import deletable, delete_logs
from marsx.daemon.resource import Runner
from marsx.log.record import FileHeader
from marsx.peer import wire
from marsx.peer.link import Link
from marsx.peer.server import Peer
from marsx.peer.wire import Type
from marsx.tree import paths
from marsx.tree.view import View

if TYPE_CHECKING:
    from marsx.daemon.worker import Worker

LOG = messages.get("daemon.commands")
SWITCHES = ("attach", "connect", "sync", "allow-replay")
REUSE_STEP = 100000
Do = Callable[["Worker", str, dict[str, Any]], Awaitable[dict[str, Any]]]
Links = list[tuple[str, str]]


def told(links: Links, *effects: str) -> dict[str, Any]:
    """The answer to `plan`."""
    return {"ok": True, "changes": [list(link) for link in links], "effects": list(effects)}


def _device(worker: Worker, args: dict[str, Any]) -> str:
    path = args.get("device")
    if not isinstance(path, str) or not path.startswith("/"):
        raise UsageError("a block device is needed, with its whole path")
    view, host = worker.site.view(), worker.site.host
    owner = next((res for res in view.resources if host in view.members(res) and view.data(res, host) == path), "")
    if owner:
        raise PreconditionError(f"{path} belongs to resource {owner}", "give another device")
    return path


async def _try_disk(worker: Worker, path: str, need: int) -> tuple[int, int]:
    """(size, logical block) of a device that we could open exclusively just now; the keeper keeps it."""
    answer, fds = await worker.site.keeper.call("disk-open", path=path)
    try:
        size, block = disk.size(fds[0]), disk.logical_block(fds[0])
    finally:
        os.close(fds[0])
    if size < need:
        await worker.site.keeper.call("disk-close", path=path)
        raise PreconditionError(f"{path} has {size} bytes, {need} are needed", "give a larger device")
    return size, block


async def create_resource(worker: Worker, resource: str, args: dict[str, Any]) -> dict[str, Any]:
    site, path = worker.site, _device(worker, args)
    if not paths.is_resource(resource):
        raise UsageError(f"not a name for a resource: {resource!r}")
    view = site.view()
    if view.members(resource):
        raise PreconditionError(f"resource {resource} exists already", f"marsadm join-resource {resource} {path}")
    name, wanted = _device_name(worker, resource, args), int(args.get("size") or 0)
    have, block = await _try_disk(worker, path, wanted)
    size = wanted or have
    nr = view.maxnr(resource) + REUSE_STEP if view.maxnr(resource) else 1
    host = site.host
    links = [
        *_member_links(resource, host, path, name),
        (paths.size(resource), str(size)),
        (paths.block_size(resource), str(block)),
        (paths.maxnr(resource), str(nr)),
        (paths.syncstatus(resource, host), str(size)),
        (paths.replay(resource, host), f"{LogPos(nr, host, 0)},0"),
        (paths.actual(resource, host, "if-on"), "0"),
        (paths.actual(resource, host, "is-primary"), "0"),
        (paths.userspace("last-primary", resource), host),
    ]
    primary = (paths.primary(resource), host)
    if args.get("dry"):
        await site.keeper.call("disk-close", path=path)
        return told([*links, primary], f"make the device {site.paths.dev_dir}/{name}")
    site.store.put_many(links, durable=True)
    site.store.put(*primary, durable=True)
    runner = worker.runner(resource)
    await _until(worker, runner, lambda: runner.producer is not None and runner.producer.device, "the device")
    return {"ok": True, "size": size}


def _device_name(worker: Worker, resource: str, args: dict[str, Any]) -> str:
    """Name of the new device below /dev/mars; no two resources of a host may share one."""
    name, view, host = args.get("name") or resource, worker.site.view(), worker.site.host
    if not isinstance(name, str) or not paths.is_resource(name):
        raise UsageError(f"not a name for a device: {name!r}"[:120])
    for other in view.resources:
        if other != resource and host in view.members(other) and worker.site.device_name(other) == name:
            raise PreconditionError(f"{other} has the device {name} here already", "give another NAME behind DEV")
    return name


def _member_links(resource: str, host: str, path: str, name: str) -> list[tuple[str, str]]:
    return [
        (paths.member(resource, host), secrets.token_hex(8)),
        (paths.data(resource, host), path),
        (paths.device(resource, host), name),
        *[(paths.todo(resource, host, switch), "1") for switch in SWITCHES],
    ]


async def _until(worker: Worker, runner: Runner, done: Callable[[], bool], what: str, timeout: float = 60.0) -> None:
    """Wait for the runner; its trouble ends the wait with its text."""
    end = time.monotonic() + timeout
    runner.kick()
    while not done():
        if trouble := runner.trouble or runner.replay_trouble:
            raise PreconditionError(f"{runner.resource}: {trouble}")
        if time.monotonic() > end:
            messages = worker.site.view().messages(runner.resource, worker.site.host)
            why = "; ".join(text for key, text in messages.items() if key.startswith("err")) or "see marsd.log"
            raise TimeoutExpired(f"{runner.resource}: {what} does not come: {why}")
        await asyncio.sleep(0.02)


class StartService:
    """The `start` service: the beginning of the newest log, pinned until the asker's replay link shows that it has
    it."""

    LEASE_S = 600.0

    def __init__(self, worker: Worker) -> None:
        self._worker = worker
        self._leases: dict[tuple[str, str], tuple[int, float, int]] = {}  # log number, end of the lease, stamp

    async def __call__(self, link: Link, peer: Peer) -> None:
        asked = wire.expect(await link.recv(link.timing.io_timeout), Type.START_ASK)
        header = self.grant(wire.take_text(asked.header, "resource", 63), peer.host)
        await link.send(Type.START_GRANT, {"nr": header.nr, "producer": header.producer})

    def grant(self, resource: str, host: str) -> FileHeader:
        """The log with which `host` begins. It is not withdrawn any more, however empty it stays (rule 7): that is
        durable before the host hears of it."""
        runner = self._worker.runners.get(resource)
        if runner is None or runner.producer is None or runner.producer.primary.header is None:
            raise PreconditionError(f"{self._worker.site.host} is not primary of {resource}", "marsadm primary there")
        header = runner.producer.primary.header
        self.promise(resource, host, header.nr)
        store = self._worker.site.store
        store.put(paths.begun(resource, store.host), header.name, durable=True)
        return header

    def promise(self, resource: str, host: str, nr: int) -> None:
        """Logs from `nr` on stay for this host."""
        self._leases[(resource, host)] = (nr, time.monotonic() + self.LEASE_S, self._worker.site.lamport.now())

    def lowest(self, resource: str) -> int | None:
        """The lowest log number that is promised to somebody."""
        view, now = self._worker.site.view(), time.monotonic()
        for (res, host), (nr, until, stamp) in list(self._leases.items()):
            replay = view.replay(res, host)
            left = view.stamp(paths.removed(res, host)) > stamp
            if left or now > until or (replay is not None and replay.pos.nr >= nr and host in view.members(res)):
                del self._leases[(res, host)]
        return min((nr for (res, _), (nr, *_) in self._leases.items() if res == resource), default=None)


async def join_resource(worker: Worker, resource: str, args: dict[str, Any]) -> dict[str, Any]:
    site, path = worker.site, _device(worker, args)
    view = site.view()
    if resource not in view.resources or not view.members(resource):
        raise NotFoundError(f"there is no resource {resource}", f"marsadm create-resource {resource} {path}")
    if site.host in view.members(resource):
        raise PreconditionError(f"{resource} is joined here already")
    name = _device_name(worker, resource, args)
    _, block = await _try_disk(worker, path, view.size(resource))
    try:
        if view.block_size(resource) and block > view.block_size(resource):
            raise PreconditionError(
                f"{path} has logical blocks of {block} bytes, the resource of {view.block_size(resource)}",
                "take a device with the same block size",
            )
        at = await _start(worker, resource, args)
    except BaseException:
        await site.keeper.call("disk-close", path=path)
        raise
    links = [
        *_member_links(resource, site.host, path, name),
        *replica.fresh_facts(worker.site, resource, at),
        (paths.actual(resource, site.host, "is-primary"), "0"),
        (paths.actual(resource, site.host, "if-on"), "0"),
    ]
    if args.get("dry"):
        await site.keeper.call("disk-close", path=path)
        return told(links, f"sync {path} from {view.designated(resource)}")
    site.store.put_many(links, durable=True)
    runner = worker.runner(resource)
    await _until(worker, runner, lambda: runner.disk_fd >= 0, "the data device")
    return {"ok": True, "start": str(at)}


async def _start(worker: Worker, resource: str, args: dict[str, Any]) -> LogPos:
    """Where a new replica begins. Who only plans does not ask the primary, which would pin its logs."""
    if not args.get("dry"):
        return await replica.start_position(worker.site, resource)
    view = worker.site.view()
    primary = view.designated(resource)
    newest = max(view.version_numbers(resource, primary), default=0)
    if not primary or primary == worker.site.host or not newest:
        raise PreconditionError(f"{resource}: no other host is primary", f"see: marsadm view {resource}")
    return LogPos(newest, primary, 0)


async def invalidate(worker: Worker, resource: str, args: dict[str, Any]) -> dict[str, Any]:
    """Throw this replica away and sync it anew (facts 5.6). Own logs that nobody else may have are set aside, not
    deleted."""
    runner = _member(worker, resource)
    if runner.producer is not None or worker.site.view().designated(resource) == worker.site.host:
        raise PreconditionError(f"{resource}: this host is the primary", "only a secondary can be invalidated")
    at = await _start(worker, resource, args)
    store, host = worker.site.store, worker.site.host
    todo = [paths.todo(resource, host, switch) for switch in SWITCHES]
    switches = [(rel, "1") for rel in todo if store.get(rel) != "1"]
    wish = paths.want_primary(resource, host)  # may be that of a marsadm that was killed
    switches += [(wish, "0")] if store.get(wish) not in ("", "0") else []
    if args.get("dry"):
        short = await shortcut.find(runner)
        facts = replica.fresh_facts(worker.site, resource, short.at if short else at, short.point if short else None)
        links = [*facts, *switches]
        return told(links, f"set the logs of {host} aside", f"sync anew from {worker.site.view().designated(resource)}")
    async with runner.exclusive():
        short = await shortcut.find(runner)
        if short is None:
            await runner.begin_anew(at)
        else:
            LOG.info("%s: %s", resource, short.text)
            at = short.at
            await runner.begin_anew(at, short.due, short.point)
            worker.site.say(resource, "inf-sync-start", short.text)
        store.put_many(switches)
    return {"ok": True, "start": str(at), "text": short.text if short else ""}


async def fake_sync(worker: Worker, resource: str, args: dict[str, Any]) -> dict[str, Any]:
    runner = _member(worker, resource)
    if runner.producer is not None:
        raise PreconditionError(f"{resource}: this host is the primary", "fake-sync is for a secondary")
    site = worker.site
    if site.view().designated(resource) == site.host:
        return await _accept_disk(worker, runner, args)
    again = site.view().messages(resource, site.host).get("inf-sync-start", "")
    if again and not args.get("force"):
        raise PreconditionError(
            f"{resource}: {again}; bytes of what was there before may be on this disk: fake-sync would call them good",
            f"let the sync run; or, if you know that the disks are equal: marsadm fake-sync {resource} --force",
        )
    off = (paths.todo(resource, site.host, "sync"), "0")
    links = [
        (paths.actual(resource, site.host, "is-syncing"), "0"),
        (paths.syncstatus(resource, site.host), str(site.view().size(resource))),
    ]
    if args.get("dry"):
        return told([off, *links])
    site.store.put(*off)
    async with runner.exclusive():
        if runner.consumer is not None:
            await runner.consumer.sync.stop()
        if runner.seal.broken:
            runner.seal.accept(bool(args.get("force")))
        site.store.put_many(links, durable=True)
    return {"ok": True}


async def _accept_disk(worker: Worker, runner: Runner, args: dict[str, Any]) -> dict[str, Any]:
    """The disk of the designated primary was changed directly, and just that counts."""
    if not runner.seal.broken:
        raise PreconditionError(f"{runner.resource}: this host is to be primary", "fake-sync is for a secondary")
    if args.get("dry"):
        return told([], f"make the device {worker.site.paths.dev_dir}/{worker.site.device_name(runner.resource)}",
                    "all other members compare all")
    async with runner.exclusive():
        runner.seal.accept(bool(args.get("force")))
    await _until(worker, runner, lambda: runner.producer is not None and runner.producer.device, "the device")
    return {"ok": True}


async def set_replay(worker: Worker, resource: str, args: dict[str, Any]) -> dict[str, Any]:
    """Replay again from the beginning of an older log that is here. Until the old position is reached again the disk
    holds newer data than its position says, so that position becomes the bound of consistency (syncpos, rule 14)."""
    runner, site, nr = _member(worker, resource), worker.site, args.get("nr")
    if not isinstance(nr, int) or nr < 1:
        raise UsageError(f"{resource}: the number of a log is needed")
    if site.view().todo(resource, site.host, "allow-replay"):
        raise PreconditionError(f"{resource}: replay is switched on", f"first: marsadm pause-replay {resource}")
    async with runner.exclusive():
        links = _replay_again(runner, site.view(), nr)
        if args.get("dry"):
            return told(links)
        await runner.stop_consumer()
        runner.publisher.drop_hint()
        for link in links:
            site.store.put(*link, durable=True)
    return {"ok": True}


def _replay_again(runner: Runner, view: View, nr: int) -> Links:
    """First the bound, then the position."""
    resource, host, consumer = runner.resource, runner.site.host, runner.consumer
    if runner.producer is not None or view.designated(resource) == host:
        raise PreconditionError(f"{resource}: this host is the primary", "only a secondary replays")
    if consumer is None or consumer.at is None or not consumer.digest or consumer.replaying or runner.trouble:
        raise PreconditionError(f"{resource}: the position of this replica is not known now", "try again in a moment")
    at = consumer.at
    if nr > at.nr:
        raise PreconditionError(
            f"{resource}: log {nr} is ahead of what is replayed ({at}): what is between would be left out",
            f"marsadm invalidate {resource}",
        )
    logs = [log for log in runner.site.store.log_files(resource) if nr <= log.nr <= at.nr]
    if {log.nr for log in logs} != set(range(nr, at.nr + 1)) or len(logs) != at.nr - nr + 1:
        missing = f"{resource}: not all logs from {nr} to {at.nr} are here"
        raise PreconditionError(missing, f"marsadm invalidate {resource}")
    bound = view.syncpos(resource, host)
    links = [(paths.replay(resource, host), f"{LogPos(nr, logs[0].producer, 0)},0")]
    if bound is None or bound.pos.order < at.order:
        links.insert(0, (paths.syncpos(resource, host), f"{at},0,{consumer.digest}"))
    return links


async def log_rotate(worker: Worker, resource: str, args: dict[str, Any]) -> dict[str, Any]:
    runner = _member(worker, resource)
    if runner.producer is None:
        raise PreconditionError(f"{resource}: this host is not the primary", "run it on the primary")
    empty = "the newest log is empty, there is nothing to rotate"
    if args.get("dry"):
        header = runner.producer.primary.header
        if header is None or runner.producer.is_log_empty():
            return told([])
        return told([], f"end {header.name}, begin {log_name(header.nr + 1, worker.site.host)}")
    async with runner.exclusive():
        if runner.producer is None:
            raise PreconditionError(f"{resource}: this host is not the primary any more")
        if runner.producer.is_log_empty():
            return {"ok": True, "text": empty}
        end = await runner.producer.rotate()
    return {"ok": True, "text": f"log {end.nr} ends at {end.pos}, log {end.nr + 1} begins"}


async def log_delete(worker: Worker, resource: str, args: dict[str, Any], everything: bool) -> dict[str, Any]:
    runner = _member(worker, resource)
    count = None if everything else 1
    if args.get("dry"):
        return told([], *(f"delete {name}" for name in deletable(worker, runner, count)))
    async with runner.exclusive():
        return {"ok": True, "deleted": delete_logs(worker, runner, count)}


def _last_words(worker: Worker, resource: str) -> Links:
    """What a host that leaves writes: its wishes and facts are gone, and its membership is over (rule 26)."""
    store, host = worker.site.store, worker.site.host
    member = store.get(paths.member(resource, host))
    wishes = [paths.todo(resource, host, key) for key in (*SWITCHES, "want-primary", "emergency-limit")]
    facts = [e.rel for e in store.facts_of(host) if e.rel.startswith(paths.resource_dir(resource) + "/")]
    links = [(rel, paths.DELETED) for rel in (*wishes, *facts, paths.data(resource, host), paths.device(resource, host),
                                              paths.connect_pref(resource, host)) if store.get(rel)]
    over = [(paths.removed(resource, host), member)] if member else []
    return [*links, *over, (paths.member(resource, host), paths.DELETED)]


async def leave_resource(worker: Worker, resource: str, args: dict[str, Any]) -> dict[str, Any]:
    runner, site = _member(worker, resource), worker.site
    if runner.producer is not None:
        raise PreconditionError(
            f"{resource}: this host is the primary", "marsadm primary on another host, or marsadm secondary here"
        )
    if args.get("dry"):
        let_go = [f"let {runner.device_path} go"] if runner.disk_fd >= 0 else []
        return told(_last_words(worker, resource), "delete the logs of this host, keep aside what no other one has",
                    *let_go)
    async with runner.exclusive():
        await runner.stop_consumer()
        if runner.disk_fd >= 0:
            await runner.detach()
        keep = replica.discarded(site, resource)
        *links, over = _last_words(worker, resource)
        site.store.put_many(links)
        site.store.put(*over, durable=True)
        runner.publisher.drop_hint()
        runner.seal.drop()
        replica.set_logs_aside(worker.site, resource, keep)
    await worker.drop_runner(resource)
    return {"ok": True}


def _member(worker: Worker, resource: str) -> Runner:
    runner = worker.runners.get(resource)
    if runner is None:
        raise NotFoundError(
            f"resource {resource} is not joined on this host", f"marsadm join-resource {resource} DEVICE"
        )
    return runner


DO: dict[str, Do] = {
    "create-resource": create_resource,
    "join-resource": join_resource,
    "leave-resource": leave_resource,
    "invalidate": invalidate,
    "fake-sync": fake_sync,
    "set-replay": set_replay,
    "resize": growth.resize,
    "log-purge-all": purges.log_purge_all,
    "err-purge-all": purges.err_purge_all,
    "link-purge-all": purges.link_purge_all,
    "log-rotate": log_rotate,
    "log-delete": lambda worker, resource, args: log_delete(worker, resource, args, False),
    "log-delete-all": lambda worker, resource, args: log_delete(worker, resource, args, True),
}


async def do(worker: Worker, request: dict[str, Any], dry: bool = False) -> dict[str, Any]:
    """The control commands `do` and, with `dry`, `plan`."""
    what, resource, args = request.get("what"), request.get("resource"), request.get("args") or {}
    if what not in DO or not isinstance(resource, str) or not isinstance(args, dict):
        raise UsageError("the request was not understood", "are marsadm and marsd of the same version?")
    if worker.site.shutting_down:
        raise MarsError("marsd is stopping")
    return await DO[what](worker, resource, {**args, "dry": dry})
