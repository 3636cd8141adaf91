"""What is over and may be forgotten: logs that lead nowhere, messages about what is mended, tombstones that everybody
has seen (rule 26). Control commands; `dry` in the arguments: only tell."""

from __future__ import annotations

import asyncio
import os
import shutil
import time
from typing import TYPE_CHECKING, Any

from marsx.base.errors import NotFoundError, PreconditionError
from marsx.daemon import salvage
from marsx.daemon.housekeeping import deletable, delete_logs
from marsx.tree import paths

if TYPE_CHECKING:
    from marsx.daemon.resource import Runner
    from marsx.daemon.worker import Worker

ACK_PATIENCE_S = 10.0
WINDOW_S = 60.0
SECOND_NS = 1_000_000_000


def _member(worker: Worker, resource: str) -> Runner:
    runner = worker.runners.get(resource)
    if runner is None:
        raise NotFoundError(f"resource {resource} is not joined on this host", f"marsadm join-resource {resource} DEV")
    return runner


async def log_purge_all(worker: Worker, resource: str, args: dict[str, Any]) -> dict[str, Any]:
    """What invalidate has set aside, and the logs that nobody needs. A host that has left the resource has the first
    only."""
    store = worker.site.store
    aside = os.path.join(store.root, paths.local_dir(worker.site.host), f"aside-{resource}")
    if resource not in worker.runners and os.path.isdir(aside):
        names = sorted(os.path.relpath(os.path.join(base, name), store.root) for base, _, found in os.walk(aside)
                       for name in found)
        if args.get("dry"):
            return {"ok": True, "changes": [], "effects": [f"delete {name}" for name in names]}
        await worker.site.blocking(shutil.rmtree, aside)
        return {"ok": True, "deleted": names}
    runner = _member(worker, resource)
    async with runner.exclusive():
        found = [os.path.join(base, name) for base, _, names in os.walk(aside) for name in names]
        kept = sorted(os.path.relpath(path, store.root) for path in found)
        if args.get("dry"):
            names = [*kept, *deletable(worker, runner, None)]
            return {"ok": True, "changes": [], "effects": [f"delete {name}" for name in names]}
        if found:
            await worker.site.blocking(shutil.rmtree, aside)
        worker.site.say(resource, salvage.LOST, "")
        return {"ok": True, "deleted": [*kept, *delete_logs(worker, runner, None)]}


async def err_purge_all(worker: Worker, resource: str, args: dict[str, Any]) -> dict[str, Any]:
    """Messages `msg-err-*` of this host; the one about what still stops the resource stays."""
    runner, site = _member(worker, resource), worker.site
    standing = {"err-resource"} if runner.trouble else set()
    keys = [key for key in site.view().messages(resource, site.host) if key.startswith("err-") and key not in standing]
    links = [(paths.message(resource, site.host, key), "OK") for key in keys]
    if args.get("dry"):
        return {"ok": True, "changes": [list(link) for link in links], "effects": []}
    site.store.put_many(links)
    runner.kick()
    return {"ok": True, "deleted": keys}


async def link_purge_all(worker: Worker, resource: str, args: dict[str, Any]) -> dict[str, Any]:
    """Tombstones older than the window, after every host has acknowledged a snapshot that holds them. Younger ones
    stay, because one that arrives just now may not have gone on to everybody."""
    store, exchange = worker.site.store, worker.exchange
    others = [host for host in worker.site.view().hosts if host != worker.site.host]
    _check_reachable(worker, others)
    window = max(WINDOW_S, float(args.get("window") or 0))
    before = worker.site.lamport.real() - int(window * SECOND_NS)
    if args.get("dry"):
        old = [e.rel for e in store.entries() if e.value == paths.DELETED and e.stamp < before]
        return {"ok": True, "changes": [], "effects": [f"remove the tombstone {rel}" for rel in old]}
    asked = time.monotonic()
    while any(exchange.acked.get(host, 0.0) <= asked for host in others):
        _check_reachable(worker, others)
        if time.monotonic() > asked + ACK_PATIENCE_S:
            raise PreconditionError("not every host has acknowledged the state of the tree in time", "try again later")
        await asyncio.sleep(0.05)
    return {"ok": True, "purged": len(store.purge(before))}


def _check_reachable(worker: Worker, others: list[str]) -> None:
    exchange = worker.exchange
    gone = [host for host in others if host not in exchange.reachable or host not in exchange.answered]
    if gone:
        raise PreconditionError(
            f"{', '.join(gone)} cannot be reached: who has not seen a tombstone would bring the link back",
            "try again when all hosts are there; a host that is gone for good: marsadm lowlevel-delete-host HOST",
        )
