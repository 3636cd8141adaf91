"""What touches facts and is asked for by marsadm over the control socket (rule 26e): each command checks again, does
its work in the resource's turn, and answers when it is done."""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import shutil
import time
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

from marsx.base import disk
from marsx.base.errors import MarsError, NotFoundError, PreconditionError, TimeoutExpired, UsageError
from marsx.base.position import LogPos
from marsx.daemon import replica
from marsx.daemon.housekeeping import delete_logs
from marsx.daemon.resource import Runner
from marsx.peer import wire
from marsx.peer.link import Link
from marsx.peer.server import Peer
from marsx.peer.wire import Type
from marsx.tree import paths

if TYPE_CHECKING:
    from marsx.daemon.worker import Worker

SWITCHES = ("attach", "connect", "sync", "allow-replay")
REUSE_STEP = 100000
Do = Callable[["Worker", str, dict[str, Any]], Awaitable[dict[str, Any]]]


def _device(args: dict[str, Any]) -> str:
    path = args.get("device")
    if not isinstance(path, str) or not path.startswith("/"):
        raise UsageError("a block device is needed, with its whole path")
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
    site, path = worker.site, _device(args)
    if not paths.is_resource(resource):
        raise UsageError(f"not a name for a resource: {resource!r}")
    view = site.view()
    if view.members(resource):
        raise PreconditionError(f"resource {resource} exists already", f"marsadm join-resource {resource} {path}")
    wanted = int(args.get("size") or 0)
    have, block = await _try_disk(worker, path, wanted)
    size = wanted or have
    nr = view.maxnr(resource) + REUSE_STEP if view.maxnr(resource) else 1
    host = site.host
    site.store.put_many(
        [
            *_member_links(resource, host, path),
            (paths.size(resource), str(size)),
            (paths.block_size(resource), str(block)),
            (paths.maxnr(resource), str(nr)),
            (paths.syncstatus(resource, host), str(size)),
            (paths.replay(resource, host), f"{LogPos(nr, host, 0)},0"),
            (paths.actual(resource, host, "if-on"), "0"),
            (paths.actual(resource, host, "is-primary"), "0"),
            (paths.userspace("last-primary", resource), host),
        ],
        durable=True,
    )
    site.store.put(paths.primary(resource), host, durable=True)
    runner = worker.runner(resource)
    await _until(worker, runner, lambda: runner.producer is not None and runner.producer.device, "the device")
    return {"ok": True, "size": size}


def _member_links(resource: str, host: str, path: str) -> list[tuple[str, str]]:
    return [
        (paths.member(resource, host), secrets.token_hex(8)),
        (paths.data(resource, host), path),
        (paths.device(resource, host), resource),
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
        resource = wire.take_text(asked.header, "resource", 63)
        runner = self._worker.runners.get(resource)
        if runner is None or runner.producer is None or runner.producer.primary.header is None:
            raise PreconditionError(f"{self._worker.site.host} is not primary of {resource}", "marsadm primary there")
        header = runner.producer.primary.header
        self._leases[(resource, peer.host)] = (
            header.nr,
            time.monotonic() + self.LEASE_S,
            self._worker.site.lamport.now(),
        )
        await link.send(Type.START_GRANT, {"nr": header.nr, "producer": header.producer})

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
    site, path = worker.site, _device(args)
    view = site.view()
    if resource not in view.resources or not view.members(resource):
        raise NotFoundError(f"there is no resource {resource}", f"marsadm create-resource {resource} {path}")
    if site.host in view.members(resource):
        raise PreconditionError(f"{resource} is joined here already")
    _, block = await _try_disk(worker, path, view.size(resource))
    try:
        if view.block_size(resource) and block > view.block_size(resource):
            raise PreconditionError(
                f"{path} has logical blocks of {block} bytes, the resource of {view.block_size(resource)}",
                "take a device with the same block size",
            )
        at = await replica.start_position(worker.site, resource)
    except BaseException:
        await site.keeper.call("disk-close", path=path)
        raise
    site.store.put_many(
        [
            *_member_links(resource, site.host, path),
            *replica.fresh_facts(worker.site, resource, at),
            (paths.actual(resource, site.host, "is-primary"), "0"),
            (paths.actual(resource, site.host, "if-on"), "0"),
        ],
        durable=True,
    )
    runner = worker.runner(resource)
    await _until(worker, runner, lambda: runner.disk_fd >= 0, "the data device")
    return {"ok": True, "start": str(at)}


async def invalidate(worker: Worker, resource: str, args: dict[str, Any]) -> dict[str, Any]:
    """Throw this replica away and sync it anew (facts 5.6). Own logs that nobody else may have are set aside, not
    deleted."""
    runner = _member(worker, resource)
    if runner.producer is not None or worker.site.view().designated(resource) == worker.site.host:
        raise PreconditionError(f"{resource}: this host is the primary", "only a secondary can be invalidated")
    at = await replica.start_position(worker.site, resource)
    async with runner.exclusive():
        await runner.begin_anew(at)
        for switch in SWITCHES:
            worker.site.store.put(paths.todo(resource, worker.site.host, switch), "1")
    return {"ok": True, "start": str(at)}


async def fake_sync(worker: Worker, resource: str, args: dict[str, Any]) -> dict[str, Any]:
    runner = _member(worker, resource)
    if runner.producer is not None:
        raise PreconditionError(f"{resource}: this host is the primary", "fake-sync is for a secondary")
    site = worker.site
    again = site.view().messages(resource, site.host).get("inf-sync-start", "")
    if again and not args.get("force"):
        raise PreconditionError(
            f"{resource}: {again}; bytes of what was there before may be on this disk: fake-sync would call them good",
            f"let the sync run; or, if you know that the disks are equal: marsadm fake-sync {resource} --force",
        )
    site.store.put(paths.todo(resource, site.host, "sync"), "0")
    async with runner.exclusive():
        if runner.consumer is not None:
            await runner.consumer.sync.stop()
        site.store.put_many(
            [
                (paths.actual(resource, site.host, "is-syncing"), "0"),
                (paths.syncstatus(resource, site.host), str(site.view().size(resource))),
            ],
            durable=True,
        )
    return {"ok": True}


async def log_rotate(worker: Worker, resource: str, args: dict[str, Any]) -> dict[str, Any]:
    runner = _member(worker, resource)
    if runner.producer is None:
        raise PreconditionError(f"{resource}: this host is not the primary", "run it on the primary")
    async with runner.exclusive():
        if runner.producer is None:
            raise PreconditionError(f"{resource}: this host is not the primary any more")
        if runner.producer.is_log_empty():
            return {"ok": True, "text": "the newest log is empty, there is nothing to rotate"}
        end = await runner.producer.rotate()
    return {"ok": True, "text": f"log {end.nr} ends at {end.pos}, log {end.nr + 1} begins"}


async def log_delete(worker: Worker, resource: str, args: dict[str, Any], everything: bool) -> dict[str, Any]:
    runner = _member(worker, resource)
    async with runner.exclusive():
        return {"ok": True, "deleted": delete_logs(worker, runner, None if everything else 1)}


async def leave_resource(worker: Worker, resource: str, args: dict[str, Any]) -> dict[str, Any]:
    runner, site, host = _member(worker, resource), worker.site, worker.site.host
    if runner.producer is not None:
        raise PreconditionError(
            f"{resource}: this host is the primary", "marsadm primary on another host, or marsadm secondary here"
        )
    async with runner.exclusive():
        await runner.stop_consumer()
        if runner.disk_fd >= 0:
            await runner.detach()
        member = site.store.get(paths.member(resource, host))
        for switch in (*SWITCHES, "want-primary", "emergency-limit"):
            site.store.delete(paths.todo(resource, host, switch))
        own = [e.rel for e in site.store.facts_of(host) if e.rel.startswith(paths.resource_dir(resource) + "/")]
        site.store.put_many([(rel, ".deleted") for rel in own])
        for rel in (paths.data(resource, host), paths.device(resource, host)):
            site.store.delete(rel)
        if member:
            site.store.put(paths.removed(resource, host), member)
        site.store.delete(paths.member(resource, host), durable=True)
        runner.publisher.drop_hint()
        replica.set_logs_aside(worker.site, resource)
        with contextlib.suppress(OSError):
            shutil.rmtree(os.path.join(site.store.root, paths.local_dir(host), f"aside-{resource}"))
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
    "log-rotate": log_rotate,
    "log-delete": lambda worker, resource, args: log_delete(worker, resource, args, False),
    "log-delete-all": lambda worker, resource, args: log_delete(worker, resource, args, True),
}


async def do(worker: Worker, request: dict[str, Any]) -> dict[str, Any]:
    """The control command `do`."""
    what, resource, args = request.get("what"), request.get("resource"), request.get("args") or {}
    if what not in DO or not isinstance(resource, str) or not isinstance(args, dict):
        raise UsageError("the request was not understood", "are marsadm and marsd of the same version?")
    if worker.site.shutting_down:
        raise MarsError("marsd is stopping")
    return await DO[what](worker, resource, args)
