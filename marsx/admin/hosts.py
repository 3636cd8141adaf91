"""The address book of the cluster, by hand: for hosts whose address has changed, and for hosts that are gone."""

from __future__ import annotations

from marsx.admin import checks
from marsx.admin.context import Context, require_cluster
from marsx.admin.table import Command
from marsx.base.errors import NotFoundError, PreconditionError
from marsx.tree import paths


def ls_host_ips(ctx: Context, args: tuple[str, ...]) -> None:
    """HOST ADDRESS, a line each."""
    ips = ctx.view().ips
    require_cluster(ctx.view(), ctx.host)
    ctx.show(ips, "\n".join(f"{host} {ip}" for host, ip in ips.items()))


def set_host_ip(ctx: Context, args: tuple[str, ...]) -> None:
    """HOST [IP]; without IP the first address of this host."""
    view = ctx.view()
    require_cluster(view, ctx.host)
    host = _known(ctx, args[0])
    if len(args) == 1 and host != ctx.host:
        raise PreconditionError(
            f"the address of {host} is not known here", f"marsadm lowlevel-set-host-ip {host} ADDRESS"
        )
    ip = checks.address(args[1]) if len(args) > 1 else checks.own_address()
    ctx.wish((paths.ip(host), ip))
    ctx.say(f"{host} has the address {ip}; all connections to it are made anew")


def delete_host(ctx: Context, args: tuple[str, ...]) -> None:
    """HOST leaves the cluster, with all its replicas if forced (rule 26)."""
    view = ctx.view()
    require_cluster(view, ctx.host)
    host = _known(ctx, args[0])
    if host == ctx.host:
        raise PreconditionError(f"{host} is this host", "marsadm leave-cluster")
    if view.alive(host, ctx.clock_ns(), int(ctx.options.window * 1e9)) and not ctx.options.force:
        raise PreconditionError(
            f"{host} was heard of within the last {ctx.options.window:g} s",
            f"there: marsadm leave-cluster; if it must go all the same: marsadm lowlevel-delete-host {host} --force",
        )
    joined = [resource for resource in view.resources if host in view.members(resource)]
    leading = [resource for resource in joined if view.designated(resource) == host]
    if leading:
        raise PreconditionError(
            f"{host} is the designated primary of {', '.join(leading)}",
            f"on a member: marsadm disconnect {leading[0]}, marsadm primary {leading[0]} --force",
        )
    if joined and not ctx.options.force:
        raise PreconditionError(
            f"{host} still has replicas of {', '.join(joined)}",
            f"if it is gone for good: marsadm lowlevel-delete-host {host} --force",
        )
    ctx.wish(*_goodbye(ctx, host, joined))
    ctx.say(f"{host} is out of the cluster; if it comes back it has to join again")


def _goodbye(ctx: Context, host: str, joined: list[str]) -> list[tuple[str, str]]:
    """Its incarnations are over: in each resource, then in the cluster."""
    wishes = []
    for resource in joined:
        incarnation = ctx.store.get(paths.member(resource, host))
        if incarnation:
            wishes.append((paths.removed(resource, host), incarnation))
    wishes.append((paths.ip(host), paths.DELETED))
    incarnation = ctx.store.get(paths.host_member(host))
    return [*wishes, (paths.host_removed(host), incarnation)] if incarnation else wishes


def _known(ctx: Context, host: str) -> str:
    ips = ctx.view().ips
    if host not in ips:
        raise NotFoundError(f"unknown host '{host[:80]}'", f"known hosts: {', '.join(ips)}")
    return host


COMMANDS = (
    Command(
        "lowlevel-ls-host-ips", "", ls_host_ips, "print the hosts of the cluster and their addresses", "lowlevel",
        example="marsadm lowlevel-ls-host-ips", scope="none", daemon=False, writes=False, options="--json",
    ),
    Command(
        "lowlevel-set-host-ip", "HOST [IP]", set_host_ip, "change the address of a host", "lowlevel",
        needs="HOST is in the cluster; without IP it is this host, and its first address counts.",
        effect="""All hosts call HOST at the new address from then on. When two hosts cannot talk to each other any
        more because an address is wrong, give the command on both.""",
        example="marsadm lowlevel-set-host-ip beta 10.0.0.2", scope="none", extra=(1, 2), daemon=False,
    ),
    Command(
        "lowlevel-delete-host", "HOST", delete_host, "take a host that is gone for good out of the cluster", "lowlevel",
        needs="""HOST is another host and was not heard of lately (--force: may be alive).
        It has no replicas (--force: loses them), and is not the designated primary of any resource.""",
        example="marsadm lowlevel-delete-host beta", scope="none", extra=(1, 1), daemon=False,
        options="--force --window",
    ),
)  # fmt: skip
