"""Older words for looking: show, show-errors, show-state, show-info, role, cat; and dump-macros."""

from __future__ import annotations

import os
import sys

from marsx.admin.context import Context, require_cluster, require_resource, resource_list
from marsx.admin.views.look import Look
from marsx.base.errors import MarsError, NotFoundError
from marsx.base.text import printable

_OF_HOST = ("alive", "emergency", "rest-space")


def show(ctx: Context, args: tuple[str, ...]) -> None:
    """`PATH=VALUE` of the cluster's hosts and of the resources that are meant."""
    tree = ctx.view()
    require_cluster(tree, ctx.host)
    names = resource_list(tree, args[0] if args else "all", ctx.host, False)
    for resource in names:
        require_resource(tree, resource)
    rels = []
    for host in tree.hosts:
        rels += [f"ips/ip-{host}", *(f"actual-{host}/{key}" for key in _OF_HOST)]
    known = ctx.store.names("resource-")
    for resource in names:
        rels += _entries(known, resource)
    found = [f"{rel}={tree.get(rel)}" for rel in rels if tree.get(rel)]
    if found:
        ctx.say("\n".join(found))


def _entries(known: list[str], resource: str) -> list[str]:
    """What `show` prints of a resource: its wishes and facts, not its history."""
    prefix = f"resource-{resource}/"
    inside = [rel.removeprefix(prefix) for rel in known if rel.startswith(prefix) and "/msg-" not in rel]
    heads = ("device-", "primary", "size", "actsize-", "syncstatus-", "replay-", "actual-", "todo-")
    return [prefix + leaf for head in heads for leaf in inside if leaf.startswith(head)]


def show_errors(ctx: Context, resource: str, args: tuple[str, ...]) -> None:
    """Standing errors and warnings, and the lines about it in marsd's messages; an error if there are any."""
    from marsx.admin.views import messages

    look = Look(ctx, ctx.view())
    require_resource(look.tree, resource)
    found = [
        line for kind in ("err", "wrn")
        for line in messages.lines(look, resource, which="the", is_pretty=True, about="", kind=kind)
    ]  # fmt: skip
    found += messages.log_status(look, resource)
    if found:
        ctx.say("\n".join(found))
        raise MarsError(f"resource {resource} has some (old) problems", "the lines above; marsadm view-diskstate")


def show_state(ctx: Context, resource: str, args: tuple[str, ...]) -> None:
    """One of is_primary, becoming_primary, secondary inconsistent, uptodate, outdated."""
    look = Look(ctx, ctx.view())
    require_resource(look.tree, resource)
    ctx.say(state_words(look, resource))


def state_words(look: Look, resource: str) -> str:
    """The words of show-state."""
    tree = look.tree
    if look.is_actual(resource, "is-primary"):
        return "is_primary"
    if tree.designated(resource) == look.host:
        return "becoming_primary"
    if not look.is_member(resource):
        return "not joined"
    if not tree.sync_done(resource, look.host):
        return f"secondary inconsistent ({tree.syncstatus(resource, look.host)} bytes of {tree.size(resource)})"
    if not tree.consistent(resource, look.host):
        return "secondary inconsistent (replay has not passed the end of the sync)"
    found = look.amounts(resource)
    if found.replayed >= found.known:
        return "secondary uptodate"
    return f"secondary outdated ({found.replayed} instead of {found.known})"


def show_info(ctx: Context, resource: str, args: tuple[str, ...]) -> None:
    """The last lines about the resource in marsd's messages."""
    from marsx.admin.views import messages

    look = Look(ctx, ctx.view())
    require_resource(look.tree, resource)
    found = [line for _, _, line in messages.said(look, resource)]
    if found:
        ctx.say("\n".join(map(printable, found)))


def role(ctx: Context, resource: str, args: tuple[str, ...]) -> None:
    """`I am actually primary|secondary [and P is primary] [and P should be primary]`"""
    tree = ctx.view()
    require_resource(tree, resource)
    primaries, designated = tree.actual_primaries(resource), tree.designated(resource)
    words = [f"I am actually {'primary' if ctx.host in primaries else 'secondary'}"]
    others = [host for host in primaries if host != ctx.host]
    if others:
        words.append(f"{', '.join(others)} {'is' if len(others) == 1 else 'are'} primary")
    if designated and designated not in primaries:
        words.append(f"{'I' if designated == ctx.host else designated} should be primary")
    ctx.say(" and ".join(words))


def cat(ctx: Context, args: tuple[str, ...]) -> None:
    """Files, with stamps as dates; a file that cannot be read does not stop the others."""
    from marsx.admin.views.messages import pretty

    failed: list[MarsError] = []
    for path in args:
        try:
            with open(path, encoding="utf-8", errors="replace") as file:
                for line in file:
                    sys.stdout.write(pretty(line))
        except OSError as error:
            failed.append(NotFoundError(f"{printable(path)}: {error.strerror}"))
            if len(args) > 1:
                ctx.warn(failed[-1].text)
    sys.stdout.flush()
    if failed:
        raise failed[-1]


def dump_macros(ctx: Context, args: tuple[str, ...], values: bool = False) -> None:
    """Write NAME.tpl of each built-in macro to the current directory."""
    from marsx.admin.views.macros import MACROS, SHORT
    from marsx.admin.views.table import all_values

    texts = {name: (SHORT[name], text) for name, text in MACROS.items()}
    if values:
        texts.update((name, (row.short, f"%{name}{{}}")) for name, row in all_values().items())
    there = [name for name in texts if os.path.lexists(f"{name}.tpl")]
    if there:
        raise MarsError(
            f"{there[0]}.tpl is there already, so nothing was written", "go to an empty directory, or remove it"
        )
    for name, (short, text) in texts.items():
        fd = os.open(f"{name}.tpl", os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
        with open(fd, "w", encoding="utf-8") as file:
            file.write(f"# {short}\n{text}\n")
    ctx.say(f"{len(texts)} macros written to {os.getcwd()}")


def dump_all_macros(ctx: Context, args: tuple[str, ...]) -> None:
    """The same, and one for each value."""
    dump_macros(ctx, args, values=True)
