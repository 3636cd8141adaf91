"""How many resources of a host sync at once, and which of them first (facts 6.4): wishes in `defaults-HOST`."""

from __future__ import annotations

from functools import partial

from marsx.admin.context import Context, require_cluster, require_resource
from marsx.admin.table import Command
from marsx.base.errors import UsageError
from marsx.tree import paths

LIMIT_MAX = 10_000


def set_limit(ctx: Context, args: tuple[str, ...], everywhere: bool) -> None:
    """N for this host, or for all."""
    require_cluster(ctx.view(), ctx.host)
    text = args[0]
    if not (text.isascii() and text.isdigit() and int(text) <= LIMIT_MAX):
        raise UsageError(f"'{text[:40]}' is not a number of syncs", f"0 (no limit) to {LIMIT_MAX}")
    hosts = ctx.view().hosts if everywhere else (ctx.host,)
    ctx.wish(*[(paths.host_default(host, "sync-limit"), str(int(text))) for host in hosts])


def get_limit(ctx: Context, args: tuple[str, ...], everywhere: bool) -> None:
    """The limit of this host, or a line for each host."""
    require_cluster(ctx.view(), ctx.host)
    view = ctx.view()
    limits = {host: view.sync_limit(host) for host in (view.hosts if everywhere else (ctx.host,))}
    lines = [f"{host} {limit}" for host, limit in limits.items()] if everywhere else [str(limits[ctx.host])]
    ctx.show(limits, "\n".join(lines))


def set_preferred(ctx: Context, args: tuple[str, ...]) -> None:
    """A comma list of resources, or `(none)`."""
    require_cluster(ctx.view(), ctx.host)
    names = [] if args[0] in ("", paths.NONE) else [name for name in args[0].split(",") if name]
    for name in names:
        require_resource(ctx.view(), name)
    ctx.wish((paths.host_default(ctx.host, "sync-pref-list"), ",".join(dict.fromkeys(names)) or paths.NONE))


def get_preferred(ctx: Context, args: tuple[str, ...]) -> None:
    """The list as it stands."""
    require_cluster(ctx.view(), ctx.host)
    text = ctx.view().get(paths.host_default(ctx.host, "sync-pref-list")) or paths.NONE
    ctx.show([] if text == paths.NONE else text.split(","), text)


COMMANDS = (
    Command(
        "set-sync-limit-value", "N", partial(set_limit, everywhere=False),
        "how many resources may sync at once on this host; 0 = no limit", "settings",
        example="marsadm set-sync-limit-value 2", scope="none", extra=(1, 1), daemon=False,
    ),
    Command(
        "get-sync-limit-value", "", partial(get_limit, everywhere=False), "print it", "settings",
        example="marsadm get-sync-limit-value", scope="none", daemon=False, writes=False, options="--json",
    ),
    Command(
        "set-global-sync-limit-value", "N", partial(set_limit, everywhere=True),
        "how many resources may sync at once on each host of the cluster", "settings",
        example="marsadm set-global-sync-limit-value 2", scope="none", extra=(1, 1), daemon=False,
    ),
    Command(
        "get-global-sync-limit-value", "", partial(get_limit, everywhere=True), "print it for all hosts", "settings",
        example="marsadm get-global-sync-limit-value", scope="none", daemon=False, writes=False, options="--json",
    ),
    Command(
        "set-sync-pref-list", "LIST", set_preferred,
        "resources that sync first when there are too few slots, in this order; (none) = no preference", "settings",
        needs="A limit is set: marsadm set-sync-limit-value.", example="marsadm set-sync-pref-list mail,web",
        scope="none", extra=(1, 1), daemon=False,
    ),
    Command(
        "get-sync-pref-list", "", get_preferred, "print it", "settings",
        example="marsadm get-sync-pref-list", scope="none", daemon=False, writes=False, options="--json",
    ),
)  # fmt: skip
