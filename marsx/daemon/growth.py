"""A resource gets larger while it is in use (facts 5.7).

    every member's device was enlarged -> `resize` on the primary: own syncstatus and `size` durable ->
    a new log begins, whose header says the new size -> requests may lie there -> the block device grows

The other members see syncstatus < size and sync what is new; nothing has to be paused. What a crash leaves unfinished
is finished by `follow`, which looks once a second whether the device is as large as `size` says.

Invariants:
    no log has a record that lies behind the size that its header says (rule 1: a reader would refuse it)
    `size` is never larger than the device of any member, as far as is known, and never becomes smaller
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from marsx.base import disk
from marsx.base.errors import NotFoundError, PreconditionError, UsageError
from marsx.tree import paths
from marsx.tree.view import View

if TYPE_CHECKING:
    from marsx.daemon.resource import Runner
    from marsx.daemon.worker import Worker

BLOCK = 4096


async def resize(worker: Worker, resource: str, args: dict[str, Any]) -> dict[str, Any]:
    """The control command: `size` in bytes, 0 = as much as every member's device has."""
    runner = worker.runners.get(resource)
    if runner is None:
        raise NotFoundError(f"resource {resource} is not joined on this host", f"marsadm join-resource {resource} DEV")
    _publish_device(worker, runner)
    links, size = _links(worker, runner, resource, args)
    if args.get("dry"):
        device = f"{worker.site.paths.dev_dir}/{worker.site.device_name(resource)}"
        return {"ok": True, "changes": [list(link) for link in links],
                "effects": ["begin a new log", f"let {device} grow to {size} bytes"] if links else []}
    async with runner.exclusive():
        links, size = _links(worker, runner, resource, args)
        worker.site.store.put_many(links, durable=True)
        assert runner.producer is not None
        await runner.producer.grow(size)
    return {"ok": True, "size": size, "grown": bool(links)}


def _links(worker: Worker, runner: Runner, resource: str, args: dict[str, Any]) -> tuple[list[tuple[str, str]], int]:
    """What is written, in this order, and the new size; PreconditionError when it cannot be."""
    view, host = worker.site.view(), worker.site.host
    if runner.producer is None or view.designated(resource) != host:
        raise PreconditionError(f"{resource}: {host} is not its primary", "run it on the primary")
    possible = possible_size(view, resource)
    wanted, now = args.get("size") or possible, view.size(resource)
    if not isinstance(wanted, int) or wanted < 0 or wanted % BLOCK:
        raise UsageError(f"{resource}: a size is a multiple of {BLOCK} bytes")
    if wanted < now:
        raise PreconditionError(f"{resource} has {now} bytes, it cannot become smaller ({wanted})", "give more")
    if wanted > possible:
        small = min(view.members(resource), key=lambda member: view.actsize(resource, member))
        raise PreconditionError(
            f"{resource}: {wanted} bytes are more than the device on {small} has ({view.actsize(resource, small)})",
            f"enlarge {view.data(resource, small)} on {small}; marsd has to run there and be attached to see it",
        )
    if wanted == now:
        return [], now
    return [(paths.syncstatus(resource, host), str(wanted)), (paths.size(resource), str(wanted))], wanted


def possible_size(view: View, resource: str) -> int:
    """How large the resource could be: as the smallest device of all members, in whole blocks."""
    return min((view.actsize(resource, host) for host in view.members(resource)), default=0) // BLOCK * BLOCK


async def follow(worker: Worker, runner: Runner) -> None:
    """Publish a device that was enlarged; finish a growth that a crash has cut off; tell a secondary the new size."""
    if runner.disk_fd < 0:
        return
    have, wanted = _publish_device(worker, runner), worker.site.view().size(runner.resource)
    producer, consumer = runner.producer, runner.consumer
    if consumer is not None and consumer.env.device_size < wanted <= have:
        consumer.env.device_size = wanted
    if producer is not None and producer.device and producer.size < wanted <= have:
        async with runner.exclusive():
            if runner.producer is producer and producer.device:
                await producer.grow(wanted)


def _publish_device(worker: Worker, runner: Runner) -> int:
    """The size of the data device, told when it has changed."""
    if runner.disk_fd < 0:
        return 0
    have, site = disk.size(runner.disk_fd), worker.site
    if site.view().actsize(runner.resource, site.host) != have:
        site.store.put(paths.actsize(runner.resource, site.host), str(have))
    return have
