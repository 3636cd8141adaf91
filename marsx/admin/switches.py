"""The switches of a replica: attach, connect, sync, allow-replay; up and down are all four.

A switch is a wish (`todo-HOST/*`), so these commands write it and, where the manual promises the effect, wait until
marsd has made it true. NAME-local is NAME; NAME-global writes the wish for every member.
With --force a switch is written although marsd does not run: it counts when marsd starts next.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

from marsx.admin.context import Context, require_member
from marsx.admin.table import Command, Phases, aliased
from marsx.admin.waits import until
from marsx.base.errors import PreconditionError, TimeoutExpired
from marsx.tree import paths
from marsx.tree.view import View

ATTACH, CONNECT, SYNC, REPLAY = "attach", "connect", "sync", "allow-replay"
UP = ((ATTACH, True), (CONNECT, True), (SYNC, True), (REPLAY, True))
DOWN = ((REPLAY, False), (SYNC, False), (CONNECT, False), (ATTACH, False))
COUNT_IS_OLD_S = 6.0  # a little longer than marsd takes to see that a device is not open any more

Setting = tuple[tuple[str, bool], ...]
Check = Callable[[Context, View, str], None]


def set_switches(ctx: Context, resource: str, setting: Setting, hosts: list[str], quiet: bool = False) -> None:
    """Write the wishes that are not there yet, with one stamp, and say which."""
    view = ctx.view()
    new = [
        (host, name, wanted) for host in hosts for name, wanted in setting if view.todo(resource, host, name) != wanted
    ]
    if new:
        ctx.wish(*((paths.todo(resource, host, name), "1" if wanted else "0") for host, name, wanted in new))
    if quiet:
        return
    for host in hosts:
        for name, wanted in setting:
            where = "" if host == ctx.host else f" on {host}"
            already = "" if (host, name, wanted) in new else "already "
            ctx.say(f"{resource}: {name} is {already}switched {'on' if wanted else 'off'}{where}")


def switch(
    ctx: Context, resource: str, args: tuple[str, ...], *, setting: Setting, everywhere: bool = False,
    check: Check | None = None,
) -> Phases:  # fmt: skip
    """One switch command: check, write, and where attach is touched wait for the effect."""
    view = ctx.view()
    require_member(view, resource, ctx.host)
    if check is not None:
        check(ctx, view, resource)
    set_switches(ctx, resource, setting, list(view.members(resource)) if everywhere else [ctx.host])
    wanted = dict(setting).get(ATTACH)
    if wanted is None:
        return None
    return _wait_attached(ctx, resource) if wanted else _wait_detached(ctx, resource)


def _wait_attached(ctx: Context, resource: str) -> Iterator[None]:
    yield
    if not ctx.daemon_runs:
        return

    def probe(view: View) -> str:
        if view.actual(resource, ctx.host, "is-attached") == "1":
            return ""
        return f"{resource}: not attached yet{reasons(view, resource, ctx.host)}"

    until(ctx, probe, f"attach {resource}", hint="mars-status shows what marsd says about it")


def _wait_detached(ctx: Context, resource: str) -> Iterator[None]:
    yield
    if not ctx.daemon_runs:
        return
    running = ("is-primary", "is-replaying", "is-syncing", "is-attached")

    def probe(view: View) -> str:
        left = [name for name in running if view.actual(resource, ctx.host, name) == "1"]
        return f"{resource}: still {', '.join(left)}{reasons(view, resource, ctx.host)}" if left else ""

    until(ctx, probe, f"detach {resource}", hint="mars-status shows what marsd says about it")


def reasons(view: View, resource: str, host: str) -> str:
    """What marsd of `host` says about the resource, to be shown behind a line."""
    texts = [text for key, text in sorted(view.messages(resource, host).items()) if not key.startswith("inf-")]
    return f" ({host} says: {'; '.join(texts)})" if texts else ""


def check_unused(ctx: Context, view: View, resource: str) -> None:
    """The device is not in use here."""
    if not ctx.options.force:
        wait_unused(ctx, resource, ctx.host, "here", "umount it first, or stop what uses it")


def wait_unused(ctx: Context, resource: str, host: str, where: str, hint: str) -> None:
    """The device is not in use on `host`. marsd looks only now and then, so who has just closed it gets a moment."""

    def probe(view: View) -> str:
        count = view.open_count(resource, host)
        return f"{resource}: the device is in use {where} ({count} times)" if count else ""

    text = probe(ctx.view())
    if text and ctx.dry:
        raise PreconditionError(text, hint)
    if text:
        try:
            until(ctx, probe, text, deadline=ctx.monotonic() + min(COUNT_IS_OLD_S, ctx.options.timeout))
        except TimeoutExpired:
            raise PreconditionError(probe(ctx.view()) or text, hint) from None


def check_sync_source(ctx: Context, view: View, resource: str) -> None:
    """There is a primary to sync from, and it is not in emergency mode."""
    primary = view.designated(resource)
    if not primary:
        raise PreconditionError(
            f"{resource}: there is no primary to sync from", f"on one host: marsadm primary {resource}"
        )
    if primary != ctx.host and view.has_emergency(resource, primary):
        raise PreconditionError(
            f"{resource}: the primary {primary} is in emergency mode", f"make room in /mars on {primary}"
        )


def _rows(name: str, setting: Setting, short: str, needs: str = "", check: Check | None = None) -> list[Command]:
    """NAME, NAME-local and NAME-global."""
    row = Command(
        name, "RES", partial(switch, setting=setting, check=check), short, "switches",
        needs=needs, example=f"marsadm {name} data",
    )  # fmt: skip
    everywhere = Command(
        f"{name}-global", "RES", partial(switch, setting=setting, check=check, everywhere=True),
        f"{name} on every member", "switches", needs=needs, example=f"marsadm {name}-global data",
    )  # fmt: skip
    return [row, aliased(row, f"{name}-local"), everywhere]


_UNUSED = "The device /dev/mars/RES is not in use here (--force: marsd decides)."

COMMANDS = (
    Command(
        "up", "RES", partial(switch, setting=UP), "attach, connect, resume-sync, resume-replay", "switches",
        example="marsadm up all",
    ),
    Command(
        "down", "RES", partial(switch, setting=DOWN, check=check_unused),
        "pause-replay, pause-sync, disconnect, detach", "switches", needs=_UNUSED, example="marsadm down all",
    ),
    Command(
        "attach", "RES", partial(switch, setting=((ATTACH, True),)), "let marsd use the data device", "switches",
        example="marsadm attach data",
    ),
    Command(
        "detach", "RES", partial(switch, setting=((ATTACH, False),), check=check_unused),
        "take the data device out of use; nothing reads or writes it any more", "switches",
        needs=_UNUSED, example="marsadm detach data",
    ),
    *_rows("connect", ((CONNECT, True),), "fetch transaction logs"),
    *_rows("disconnect", ((CONNECT, False),), "stop fetching transaction logs; state is still exchanged"),
    *[aliased(row, row.name.replace("connect", "resume-fetch"))
      for row in _rows("connect", ((CONNECT, True),), "fetch transaction logs")],
    *[aliased(row, row.name.replace("disconnect", "pause-fetch"))
      for row in _rows("disconnect", ((CONNECT, False),), "stop fetching transaction logs")],
    *_rows("pause-sync", ((SYNC, False),), "stop the sync where it is"),
    *_rows("resume-sync", ((SYNC, True),), "go on with the sync", "There is a designated primary.", check_sync_source),
    *_rows("pause-replay", ((REPLAY, False),), "stop replaying logs; they are still fetched"),
    *_rows("resume-replay", ((REPLAY, True),), "go on replaying logs"),
)  # fmt: skip
