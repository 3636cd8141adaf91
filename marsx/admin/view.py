"""Looking: `view` prints the state of each resource in one line, `view-NAME` a single value for scripts.

The line is `  RES [replicas/hosts] diskstate replstate flags role primarynode`; words and flags are those scripts know
(facts 8.5.1, column [M]). All of it is a function of one picture of the tree, plus three looks at this host: is
marsd running, does the data device exist, does the device exist.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from typing import Any

from marsx.admin import state
from marsx.admin.context import Context, require_cluster, require_resource
from marsx.admin.table import Command
from marsx.base.errors import UsageError
from marsx.tree.view import View

ALIVE_WINDOW_NS = 60 * 1_000_000_000
KINDS = ("sync", "fetch", "replay", "work")
RATED = ("sync", "fetch", "replay")
LOG_DAMAGE = {"-85": "IncompleteLog", "-56": "UnInitializedLogRecord"}
UNITS = (("TiB", 1 << 40), ("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10))


def view(ctx: Context, resource: str, args: tuple[str, ...]) -> None:
    """One line for one resource."""
    ctx.say(line(ctx, ctx.view(), resource))


def line(ctx: Context, tree: View, resource: str) -> str:
    """The line of one resource as this host sees it."""
    require_resource(tree, resource)
    words = (
        f"[{len(tree.members(resource))}/{len(tree.hosts)}]",
        diskstate(ctx, tree, resource),
        replstate(ctx, tree, resource),
        flags(ctx, tree, resource),
        role(tree, resource, ctx.host),
        tree.designated(resource),
    )
    return f"  {resource} {' '.join(words)}".rstrip()


def diskstate(ctx: Context, tree: View, resource: str) -> str:
    """The replica's data in one word."""
    error = tree.actual(resource, ctx.host, "disk-error")
    prefix = f"DISK_ERROR={error}," if error not in ("", "0") else ""
    return prefix + _diskstate(ctx, tree, resource)


def _diskstate(ctx: Context, tree: View, resource: str) -> str:
    host = ctx.host
    attached = _is(tree, resource, host, "is-attached")
    if host not in tree.members(resource):
        return "NotJoined"
    if not os.path.exists(tree.data(resource, host)):
        return "NotPresent"
    if not tree.todo(resource, host, "attach"):
        return "Detaching" if attached else "Detached"
    code, _, rest = tree.actual(resource, host, "replay-code").partition(",")
    if code.startswith("-"):
        return f"{LOG_DAMAGE.get(code, 'DefectiveLog')}[{code}{',' + rest if rest else ''}]"
    if _orphan(ctx, tree, resource):
        return "Orphan"
    if not attached:
        return "NoAttach"
    if _is(tree, resource, host, "is-primary"):
        return _primary_disk(tree, resource, host)
    if not tree.consistent(resource, host):
        return "InConsistent"
    behind = ("F" if state.fetch_rest(tree, resource, host) else "") + (
        "R" if state.replay_rest(tree, resource, host) else ""
    )
    if behind:
        return f"OutDated[{behind}]"
    return "EmergencyMode" if _emergency(tree, resource) else "UpToDate"


def _primary_disk(tree: View, resource: str, host: str) -> str:
    rest = state.replay_rest(tree, resource, host)
    if rest:
        return f"WriteBack[{human(rest)}]"
    return "EmergencyMode" if _emergency(tree, resource) else "UpToDate"


def _emergency(tree: View, resource: str) -> bool:
    return any(tree.has_emergency(resource, host) for host in tree.actual_primaries(resource))


def _orphan(ctx: Context, tree: View, resource: str) -> bool:
    """A secondary whose log to replay is missing or shorter than its replay position, while more is known elsewhere."""
    replay = tree.replay(resource, ctx.host)
    if replay is None or _is(tree, resource, ctx.host, "is-primary") or not state.fetch_rest(tree, resource, ctx.host):
        return False
    oldest = min((file.nr for file in ctx.store.log_files(resource)), default=0)
    return oldest > replay.pos.nr


def replstate(ctx: Context, tree: View, resource: str) -> str:
    """What goes on with the replica, in one word."""
    host = ctx.host
    primary = tree.designated(resource)
    if host not in tree.members(resource):
        return "NotJoined"
    if not ctx.daemon_there():
        return "ModuleNotLoaded"
    if primary == host:
        if not _is(tree, resource, host, "is-primary"):
            return "NotYetPrimary"
        return "EmergencyMode" if tree.has_emergency(resource, host) else "Replicating"
    return _secondary_state(ctx, tree, resource, primary)


def _secondary_state(ctx: Context, tree: View, resource: str, primary: str) -> str:
    host = ctx.host
    if not tree.sync_done(resource, host):
        return "Syncing" if tree.todo(resource, host, "sync") else "PausedSync"
    for switch, word in (("connect", "PausedFetch"), ("allow-replay", "PausedReplay")):
        if not tree.todo(resource, host, switch):
            return word
    if not primary:
        return "NoPrimaryDesignated"
    if not tree.alive(primary, ctx.clock_ns(), ALIVE_WINDOW_NS):
        return "PrimaryUnreachable"
    return "Orphan" if _orphan(ctx, tree, resource) else "Replaying"


def flags(ctx: Context, tree: View, resource: str) -> str:
    """Six letters: device, consistent, attached, synced, fetched, replayed; small: on the way, `-`: no."""
    host = ctx.host
    if host not in tree.members(resource):
        return "------"
    device = os.path.exists(_device(ctx, tree, resource))
    disk = os.path.exists(tree.data(resource, host))
    synced = tree.sync_done(resource, host)
    attached, wanted = _is(tree, resource, host, "is-attached"), tree.todo(resource, host, "attach")
    return "".join((
        "D" if device else "d" if disk else "-",
        "C" if tree.consistent(resource, host) else "c" if synced else "-",
        "A" if attached and wanted else "a" if attached or wanted else "-",
        "S" if synced else "s" if tree.todo(resource, host, "sync") else "-",
        "F" if not state.fetch_rest(tree, resource, host) else "f" if tree.todo(resource, host, "connect") else "-",
        "R" if not state.replay_rest(tree, resource, host)
        else "r" if tree.todo(resource, host, "allow-replay") else "-",
    ))  # fmt: skip


def role(tree: View, resource: str, host: str) -> str:
    """The host's role, by wish and by fact."""
    if host not in tree.members(resource):
        return "None"
    primaries = tree.actual_primaries(resource)
    designated = tree.designated(resource) == host
    if host not in primaries:
        return "NotYetPrimary" if designated else "Secondary"
    if len(primaries) > 1:
        return "ForcedPrimary"
    return "Primary" if designated else "RemainsPrimary"


def human(amount: int) -> str:
    """1.500GiB"""
    for name, unit in UNITS:
        if amount >= unit:
            return f"{amount / unit:.3f}{name}"
    return f"{amount}B"


def _is(tree: View, resource: str, host: str, key: str) -> bool:
    return tree.actual(resource, host, key) == "1"


def _device(ctx: Context, tree: View, resource: str) -> str:
    return f"{ctx.paths.dev_dir}/{tree.device(resource, ctx.host) or resource}"


# Single values

Value = Callable[[Context, View, str], object]


def _amount(kind: str, part: str) -> Value:
    """sync, fetch, replay or work; pos, size or rest. Log amounts count from the start of the log being replayed."""

    def value(ctx: Context, tree: View, resource: str) -> int:
        pos, size = _span(tree, resource, ctx.host, kind)
        return {"pos": pos, "size": size, "rest": max(0, size - pos)}[part]

    return value


def _span(tree: View, resource: str, host: str, kind: str) -> tuple[int, int]:
    if kind == "sync":
        return tree.syncstatus(resource, host), tree.size(resource)
    replay = tree.replay(resource, host)
    replayed = replay.pos.pos if replay else 0
    fetched = replayed + state.replay_rest(tree, resource, host)
    known = fetched + state.fetch_rest(tree, resource, host)
    return {"replay": (replayed, fetched), "fetch": (fetched, known), "work": (replayed, known)}[kind]


def _rate(ctx: Context, tree: View, resource: str, kind: str) -> int:
    key = {"sync": "sync", "fetch": "file", "replay": "replay"}[kind]
    text = tree.actual(resource, ctx.host, f"amount-{key}_rate")
    return int(text) * 1024 if text.isdigit() else 0


def _remain(ctx: Context, tree: View, resource: str, kind: str) -> int:
    pos, size = _span(tree, resource, ctx.host, kind)
    rate = _rate(ctx, tree, resource, kind)
    return 0 if pos >= size else (size - pos) // rate if rate else -1


def _percent(ctx: Context, tree: View, resource: str, kind: str) -> str:
    pos, size = _span(tree, resource, ctx.host, kind)
    return "100.00" if pos >= size else f"{min(99.99, 100 * pos / size):.2f}"


def _reached(ctx: Context, tree: View, resource: str, kind: str) -> int:
    pos, size = _span(tree, resource, ctx.host, kind)
    return int(pos >= size)


def _vector(ctx: Context, tree: View, resource: str) -> str:
    return ":".join(
        str(_amount(*what)(ctx, tree, resource)) for what in (("replay", "pos"), ("fetch", "pos"), ("fetch", "size"))
    )


def _fact(key: str) -> Value:
    return lambda ctx, tree, resource: tree.actual(resource, ctx.host, key) or "0"


def _todo(key: str) -> Value:
    return lambda ctx, tree, resource: int(tree.todo(resource, ctx.host, key))


def _alive(ctx: Context, tree: View, resource: str) -> int:
    host = tree.designated(resource) or ctx.host
    return int(tree.alive(host, ctx.clock_ns(), ALIVE_WINDOW_NS))


def _messages(ctx: Context, tree: View, resource: str) -> str:
    return "\n".join(f"{key}: {text}" for key, text in tree.messages(resource, ctx.host).items())


OF_RESOURCE: dict[str, Value] = {
    "is-attach": _fact("is-attached"),
    "is-sync": _fact("is-syncing"),
    "is-fetch": _fact("is-copying"),
    "is-replay": _fact("is-replaying"),
    "is-primary": _fact("is-primary"),
    "is-secondary": lambda ctx, tree, res: int(not _is(tree, res, ctx.host, "is-primary")),
    "is-emergency": _fact("has-emergency"),
    "is-consistent": lambda ctx, tree, res: int(tree.consistent(res, ctx.host)),
    "is-split-brain": lambda ctx, tree, res: int(bool(state.split_brain(tree, res))),
    "is-orphan": lambda ctx, tree, res: int(_orphan(ctx, tree, res)),
    "is-alive": _alive,
    "is-member": lambda ctx, tree, res: int(ctx.host in tree.members(res)),
    "todo-attach": _todo("attach"),
    "todo-sync": _todo("sync"),
    "todo-fetch": _todo("connect"),
    "todo-connect": _todo("connect"),
    "todo-replay": _todo("allow-replay"),
    "todo-primary": lambda ctx, tree, res: "1" if tree.designated(res) == ctx.host else "",
    "get-primary": lambda ctx, tree, res: tree.designated(res),
    "actual-primary": lambda ctx, tree, res: next(iter(tree.actual_primaries(res)), ""),
    "get-disk": lambda ctx, tree, res: tree.data(res, ctx.host),
    "get-device": _device,
    "device-opened": _fact("open-count"),
    "disk-error": _fact("disk-error"),
    "replay-code": _fact("replay-code"),
    "resource-members": lambda ctx, tree, res: "\n".join(tree.members(res)),
    "resource-size": lambda ctx, tree, res: tree.size(res),
    "resource-errors": _messages,
    "diskstate": diskstate,
    "replstate": replstate,
    "flags": flags,
    "role": lambda ctx, tree, res: role(tree, res, ctx.host),
    "primarynode": lambda ctx, tree, res: tree.designated(res),
    "default": line,
    "summary-vector": _vector,
    **{f"{kind}-{part}": _amount(kind, part) for kind in KINDS for part in ("pos", "size", "rest")},
    **{f"{kind}-percent": partial(_percent, kind=kind) for kind in KINDS},
    **{f"{kind}-reached": partial(_reached, kind=kind) for kind in KINDS},
    **{f"{kind}-remain": partial(_remain, kind=kind) for kind in RATED},
    **{f"{kind}-rate": partial(_rate, kind=kind) for kind in RATED},
}  # fmt: skip

OF_HOST: dict[str, Callable[[Context, View], object]] = {
    "uuid": lambda ctx, tree: tree.uuid,
    "rest-space": lambda ctx, tree: tree.rest_space(ctx.host),
    "total-space": lambda ctx, tree: tree.host_actual(ctx.host, "total-space") or "0",
    "cluster-members": lambda ctx, tree: "\n".join(tree.hosts),
    "my-resources": lambda ctx, tree: "\n".join(res for res in tree.resources if ctx.host in tree.members(res)),
    "all-resources": lambda ctx, tree: "\n".join(tree.resources),
    "is-module-loaded": lambda ctx, tree: int(ctx.daemon_there()),
}


def primitive(name: str) -> Command | None:
    """The row of `view-NAME`, if there is such a value."""
    if not name.startswith("view-"):
        return None
    key = name.removeprefix("view-")
    common: dict[str, Any] = {"family": "view", "daemon": False, "writes": False, "member": False}
    if key in OF_RESOURCE:
        return Command(name, "RES", partial(_show, key=key), "print one value", **common)
    if key in OF_HOST:
        return Command(name, "", partial(_show_host, key=key), "print one value", scope="none", extra=(0, 1), **common)
    raise UsageError(f"there is no value '{key[:80]}' to view", "marsadm view --help lists them")


def _show(ctx: Context, resource: str, args: tuple[str, ...], key: str) -> None:
    tree = ctx.view()
    require_resource(tree, resource)
    text = str(OF_RESOURCE[key](ctx, tree, resource))
    if text:
        ctx.say(text)


def _show_host(ctx: Context, args: tuple[str, ...], key: str) -> None:
    tree = ctx.view()
    require_cluster(tree, ctx.host)
    text = str(OF_HOST[key](ctx, tree))
    if text:
        ctx.say(text)


COMMANDS = (
    Command(
        "view", "[RES]", view, "print the state of each resource in one line", "view",
        needs="  RES [replicas/hosts] diskstate replstate flags role primarynode\n"
        f"view-NAME RES prints one value: {' '.join(OF_RESOURCE)}\n"
        f"view-NAME prints one value: {' '.join(OF_HOST)}",
        example="marsadm view all", scope="maybe", daemon=False, writes=False, member=False,
    ),
)  # fmt: skip
