"""Resources of this host: create, join, leave, invalidate, fake-sync.

All of them touch facts (positions, logs, sync state), so marsd carries them out in one request and checks again; the
checks here make the common mistakes cheap to understand.
"""

from __future__ import annotations

import os

from marsx.admin import checks
from marsx.admin.cli import parse_size
from marsx.admin.context import Context, require_cluster, require_member, require_resource
from marsx.admin.table import Command
from marsx.base import disk
from marsx.base.errors import NotFoundError, PreconditionError, UsageError
from marsx.tree import paths
from marsx.tree.view import View

RUNNING = ("is-attached", "is-copying", "is-replaying", "is-syncing", "is-primary")
KEPT = ("maxnr", "removed")  # of a deleted resource: numbers of logs, and who is out (rule 26)
SWITCHES = ("attach", "connect", "sync", "allow-replay")


def _devices_here(view: View, host: str) -> dict[str, str]:
    """Devices of this host that belong to resources."""
    found = {view.data(resource, host): resource for resource in view.resources if host in view.members(resource)}
    found.pop("", None)
    return found


def create_resource(ctx: Context, resource: str, args: tuple[str, ...]) -> None:
    """create-resource RES DEV [SIZE]."""
    view = ctx.view()
    require_cluster(view, ctx.host)
    checks.identifier(resource, "resource")
    if view.members(resource):
        raise PreconditionError(
            f"resource {resource} exists already, on {', '.join(view.members(resource))}",
            f"to have a replica here: marsadm join-resource {resource} {args[0]}",
        )
    device = args[0]
    name, wanted = _name_and_size(view, ctx.host, resource, args[1:])
    size = checks.fits(device, checks.block_device(device, _devices_here(view, ctx.host)), wanted)
    ctx.control.do("create-resource", resource, ctx.options.timeout, device=device, size=size, **name)
    ctx.say(f"{resource}: created with {size} bytes on {device}, {ctx.host} is its primary")


def _name_and_size(view: View, host: str, resource: str, words: tuple[str, ...]) -> tuple[dict[str, str], int | None]:
    """[NAME] [SIZE]: one word alone is a size if it looks like one."""
    sizes = [word for word in words if word[:1].isdigit() and (len(words) == 1 or word is words[-1])]
    names = [word for word in words if word not in sizes]
    if len(names) > 1 or len(sizes) > 1:
        raise UsageError(f"'{words[-1][:40]}' is not a size", "usage: marsadm create-resource RES DEV [NAME [SIZE]]")
    name = checks.identifier(names[0], "device") if names else ""
    for other in view.resources:
        taken = view.device(other, host) or other
        if other != resource and host in view.members(other) and taken == (name or resource):
            raise PreconditionError(f"{other} has the device {taken} here already", "give another NAME behind DEV")
    return {"name": name} if name else {}, parse_size(sizes[0]) if sizes else None


def join_resource(ctx: Context, resource: str, args: tuple[str, ...]) -> None:
    """join-resource RES DEV."""
    view = ctx.view()
    require_cluster(view, ctx.host)
    require_resource(view, resource)
    members = view.members(resource)
    if ctx.host in members:
        raise PreconditionError(f"resource {resource} is joined on this host already", f"see: marsadm view {resource}")
    if not members:
        raise PreconditionError(f"resource {resource} has no members", f"marsadm create-resource {resource} {args[0]}")
    primary = view.designated(resource)
    if not primary:
        raise PreconditionError(
            f"resource {resource} has no primary to sync from", f"on a member: marsadm primary {resource}"
        )
    if view.has_emergency(resource, primary):
        raise PreconditionError(
            f"the primary {primary} of {resource} is in emergency mode", f"make room in /mars on {primary}"
        )
    device = args[0]
    name, size = _name_and_size(view, ctx.host, resource, args[1:])
    if size is not None and size != view.size(resource):
        raise PreconditionError(f"resource {resource} has {view.size(resource)} bytes, not {size}", "leave SIZE out")
    offered = checks.block_device(device, _devices_here(view, ctx.host))
    checks.fits(device, offered, view.size(resource) or None)
    ctx.control.do("join-resource", resource, ctx.options.timeout, device=device, **name)
    ctx.say(f"{resource}: joined with {device}, the sync from {primary} begins")


def leave_resource(ctx: Context, resource: str, args: tuple[str, ...]) -> None:
    """leave-resource RES, of this host, or with --host=P --force of one that is gone."""
    view = ctx.view()
    gone = ctx.options.host
    if gone and gone != ctx.host:
        return _remove_member(ctx, view, resource, gone)
    require_member(view, resource, ctx.host)
    if view.actual(resource, ctx.host, "is-primary") == "1" or view.designated(resource) == ctx.host:
        raise PreconditionError(
            f"{resource}: {ctx.host} is the primary",
            f"on another member: marsadm primary {resource}; for the last replica: marsadm secondary {resource}",
        )
    on = [name for name in SWITCHES if view.todo(resource, ctx.host, name)]
    busy = [name for name in RUNNING if view.actual(resource, ctx.host, name) == "1"]
    if (on or busy) and not ctx.options.force:
        what = f"{', '.join(on)} switched on" if on else f"still {', '.join(busy)}"
        raise PreconditionError(f"{resource}: {what}", f"first: marsadm down {resource}")
    ctx.control.do("leave-resource", resource, ctx.options.timeout, force=ctx.options.force)
    ctx.say(f"{resource}: {ctx.host} has left it")
    return None


def _remove_member(ctx: Context, view: View, resource: str, gone: str) -> None:
    """Wish a dead host's membership away (rule 26): its incarnation id is written down as removed."""
    require_resource(view, resource)
    if gone not in view.members(resource):
        raise PreconditionError(f"{resource}: {gone} is not a member", f"members: {', '.join(view.members(resource))}")
    if not ctx.options.force:
        raise PreconditionError(
            f"{resource}: {gone} would lose its replica",
            f"if {gone} is gone for good: marsadm leave-resource {resource} --host={gone} --force",
        )
    if view.designated(resource) == gone:
        raise PreconditionError(
            f"{resource}: {gone} is the designated primary", f"first: marsadm primary {resource} --force"
        )
    incarnation = ctx.store.get(paths.member(resource, gone))
    if not incarnation:
        raise PreconditionError(
            f"{resource}: the membership of {gone} has no id", "wait until its state has arrived here"
        )
    ctx.wish((paths.removed(resource, gone), incarnation))
    ctx.say(f"{resource}: {gone} is removed; if it comes back it has to join again")


def invalidate(ctx: Context, resource: str, args: tuple[str, ...]) -> None:
    """invalidate RES: throw this host's replica away and sync it anew."""
    view = ctx.view()
    require_member(view, resource, ctx.host)
    primary = view.designated(resource)
    if primary == ctx.host or view.actual(resource, ctx.host, "is-primary") == "1":
        raise PreconditionError(
            f"{resource}: {ctx.host} is the primary, its data cannot be invalidated",
            f"run it on a secondary, or first on another host: marsadm primary {resource}",
        )
    if not primary:
        raise PreconditionError(
            f"{resource}: there is no primary to sync from", f"on one host: marsadm primary {resource}"
        )
    done = ctx.control.do("invalidate", resource, ctx.options.timeout, force=ctx.options.force)
    short = f"; {done['text']}" if isinstance(done.get("text"), str) and done["text"] else ""
    ctx.say(f"{resource}: the replica on {ctx.host} is synced anew from {primary}{short}")


def fake_sync(ctx: Context, resource: str, args: tuple[str, ...]) -> None:
    """fake-sync RES: call the sync finished without comparing anything."""
    view = ctx.view()
    require_member(view, resource, ctx.host)
    changed = "err-disk-changed" in view.message_table(resource).get(ctx.host, {})
    if view.actual(resource, ctx.host, "is-primary") == "1" or view.designated(resource) == ctx.host and not changed:
        raise PreconditionError(
            f"{resource}: {ctx.host} is the primary, there is nothing to sync", "run it on a secondary"
        )
    ctx.control.do("fake-sync", resource, ctx.options.timeout, force=ctx.options.force)
    ctx.say(f"{resource}: the replica on {ctx.host} counts as synced; to take it back: marsadm invalidate {resource}")


def resize(ctx: Context, resource: str, args: tuple[str, ...]) -> None:
    """resize RES [SIZE]: the resource gets larger while it is in use."""
    view = ctx.view()
    require_member(view, resource, ctx.host)
    if view.designated(resource) != ctx.host or view.actual(resource, ctx.host, "is-primary") != "1":
        primary = view.designated(resource) or "nobody"
        raise PreconditionError(f"{resource}: {ctx.host} is not its primary, {primary} is", "run it on the primary")
    size = _wanted_size(args[0]) if args else 0
    if size % checks.BLOCK:
        fits = size // checks.BLOCK * checks.BLOCK
        raise UsageError(f"size {size} is not a multiple of {checks.BLOCK}", f"the next smaller one: {fits}")
    answer = ctx.control.do("resize", resource, ctx.options.timeout, size=size)
    text = "has" if answer.get("grown") else "has already"
    device = f"{ctx.paths.dev_dir}/{view.device(resource, ctx.host) or resource}"
    ctx.say(f"{resource}: {device} {text} {answer.get('size')} bytes")


def set_replay(ctx: Context, resource: str, args: tuple[str, ...]) -> None:
    """set-replay RES NR: replay again from the beginning of log NR."""
    view = ctx.view()
    require_member(view, resource, ctx.host)
    if not (args[0].isascii() and args[0].isdigit() and 0 < len(args[0]) < 19):
        raise UsageError(f"'{args[0][:40]}' is not the number of a log", "example: marsadm set-replay data 7")
    if view.todo(resource, ctx.host, "allow-replay"):
        raise PreconditionError(f"{resource}: replay is switched on", f"first: marsadm pause-replay {resource}")
    ctx.control.do("set-replay", resource, ctx.options.timeout, nr=int(args[0]))
    ctx.say(f"{resource}: replay begins at log {int(args[0])} again; to let it run: marsadm resume-replay {resource}")


def _wanted_size(text: str) -> int:
    """A size, or that of a block device."""
    if not text.startswith("/"):
        return parse_size(text)
    try:
        fd = os.open(text, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as exc:
        raise NotFoundError(f"device {text} cannot be opened ({exc.strerror})", "a size, or a block device") from exc
    try:
        return disk.size(fd) // checks.BLOCK * checks.BLOCK
    finally:
        os.close(fd)


def delete_resource(ctx: Context, resource: str, args: tuple[str, ...]) -> None:
    """delete-resource RES: what is left of a resource that nobody has any more. `maxnr` stays, so that the numbers of
    old logs are never used again."""
    view = ctx.view()
    names = [rel for rel in ctx.store.names(paths.resource_dir(resource) + "/") if paths.parse(rel)]
    if not names:
        require_resource(view, resource)
    members = view.members(resource)
    if ctx.host in members:
        raise PreconditionError(
            f"{resource}: {ctx.host} has a replica of it", f"first: marsadm leave-resource {resource}"
        )
    alive = [host for host in members if view.alive(host, ctx.clock_ns(), int(ctx.options.window * 1e9))]
    if alive or (members and not ctx.options.force):
        raise PreconditionError(
            f"{resource}: {', '.join(alive or members)} still has a replica",
            f"there: marsadm leave-resource {resource}; of hosts that are gone for good: --force",
        )
    over = [(paths.removed(resource, host), ctx.store.get(paths.member(resource, host)) or "0") for host in members]
    parsed = {rel: paths.parse(rel) for rel in names}
    gone = [rel for rel, name in parsed.items() if name and name.writer == "wish" and name.key not in KEPT]
    # Last what says that the resource is there: who is stopped half way can begin again.
    gone.sort(key=lambda rel: rel in (paths.size(resource), paths.primary(resource)))
    ctx.wish(*over, *((rel, paths.DELETED) for rel in gone))
    ctx.say(f"{resource}: deleted")


_DEVICE = """DEV is a block device, given by its absolute path, that nobody uses and no other resource has."""

COMMANDS = (
    Command(
        "create-resource", "RES DEV [NAME] [SIZE]", create_resource,
        "make a new resource, with this host as its primary", "resource",
        needs=_DEVICE + """
        NAME is that of the device below /dev/mars (without it RES), no other resource has it here.
        SIZE (k m g t p: powers of 1000, K M G T P: of 1024) is a multiple of 4096 and not more than DEV has.""",
        example="marsadm create-resource data /dev/vg-test/LV-ResA", scope="one", extra=(1, 3), member=False,
    ),
    Command(
        "join-resource", "RES DEV [NAME] [SIZE]", join_resource,
        "make a replica of a resource here; it is synced at once", "resource",
        needs=_DEVICE + """
        It is not smaller than the resource, which has a primary that is another host.
        NAME is that of the device below /dev/mars (without it RES); SIZE, if given, is that of the resource.""",
        example="marsadm join-resource data /dev/vg-test/LV-ResA", scope="one", extra=(1, 3), member=False,
    ),
    Command(
        "leave-resource", "RES", leave_resource, "give up this host's replica; the data on the device stay", "resource",
        needs="""This host is not primary, and the resource is down here (--force: need not be down).
        With --host=H --force the replica of another host that is gone for good.""",
        example="marsadm leave-resource data", member=False, for_host=True,
    ),
    Command(
        "invalidate", "RES", invalidate, "declare this host's replica bad and sync it anew", "resource",
        needs="This host is not primary, another host is.", example="marsadm invalidate data",
        effect="""The own logs are set aside, and all of the disk is compared with the primary's. After a split brain
        only the regions are compared that this host has written since the histories parted; given again, it compares
        all.""",
    ),
    Command(
        "fake-sync", "RES", fake_sync, "declare this host's replica synced, without looking", "resource",
        needs="""This host is not primary. For tests and for devices that are known to be equal: nothing is compared.
        marsadm invalidate takes it back. On a primary that has stopped because its data device was changed directly:
        just this disk counts, the others compare all.""", example="marsadm fake-sync data",
    ),
    Command(
        "resize", "RES [SIZE]", resize, "let the resource grow, while it is in use", "resource",
        needs="""This host is the primary, and its device is there.
        The device of every member has been enlarged before (lvresize ...), marsd runs and is attached there.
        SIZE (k m g t p: powers of 1000, K M G T P: of 1024; or a block device: its size) is a multiple of 4096, not
        less than now and not more than the smallest device; without it as much as the smallest device has.""",
        effect="""The block device grows at once, a new log begins; the other members sync what is new by themselves.
        Nothing has to be paused. Afterwards enlarge the file system: xfs_growfs, resize2fs.""",
        example="marsadm resize data", scope="one", extra=(0, 1),
    ),
    Command(
        "set-replay", "RES NR", set_replay, "replay again from the beginning of an older log", "lowlevel",
        needs="""This host is a secondary, replay is paused (pause-replay).
        All logs from NR to the one that is being replayed are here; going forward would leave out writes.""",
        effect="The replica does not count as consistent before it is again where it was.",
        example="marsadm set-replay data 7", scope="one", extra=(1, 1),
    ),
    Command(
        "delete-resource", "RES", delete_resource, "remove what is left of a resource that nobody has any more",
        "resource",
        needs="""No host has a replica of it (leave-resource everywhere).
        --force: hosts that still count as members but are gone for good lose their membership.""",
        effect="""The number of its newest log is kept, so a new resource of that name never reads old logs.""",
        example="marsadm delete-resource data", scope="one", member=False,
    ),
)  # fmt: skip
