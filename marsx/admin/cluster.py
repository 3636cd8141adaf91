"""Clusters: create, join, leave, and the token that lets a host join.

create-cluster and join-cluster work while no marsd runs; they are the only place of this room that uses `peer`
(imported late): the certificates of the cluster are made at create, and at join the new host speaks to a member itself.

The link `uuid` is written last: a host has a cluster if and only if it has one, so a command that was killed half way
can be given again. A tree that a host has left is moved into `backup-STAMP`, where nothing looks, never deleted.
"""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import TYPE_CHECKING

from marsx.admin import checks
from marsx.admin.context import Context, require_cluster
from marsx.admin.table import Command
from marsx.base import durable
from marsx.base.config import Settings
from marsx.base.errors import AuthError, DaemonDownError, MarsError, NotFoundError, PreconditionError, UsageError
from marsx.tree import paths
from marsx.tree.store import Entry

if TYPE_CHECKING:
    from marsx.peer.join import Joined as Joined

DIRECTORIES = ("ips", "userspace", "defaults", "todo-global")
SSH_TIMEOUT = 60


def create_cluster(ctx: Context, args: tuple[str, ...]) -> None:
    """create-cluster [--ip=A]: this host becomes the first of a new cluster."""
    _refuse_existing(ctx)
    ip = checks.address(ctx.options.ip) if ctx.options.ip else checks.own_address()
    from marsx.peer import tls

    files = tls.TlsFiles.of(ctx.paths)
    if not ctx.would(f"make the certificates of a new cluster in {files.directory}"):
        _keep_old_certificates(ctx, Path(files.directory))
        tls.create_cluster(files, ctx.host)
    try:
        _keep_old_tree(ctx)
        stamp = ctx.lamport.now()
        uuid = f"{ctx.host}_{stamp // 10**9}.{stamp % 10**9:09d}"
        _begin_tree(ctx, ip)
        ctx.wish((paths.uuid(), uuid))
    except BaseException:
        for path in () if ctx.dry else (files.ca_crt, files.ca_key, files.host_crt, files.host_key):
            Path(path).unlink(missing_ok=True)
        raise
    ctx.say(f"cluster {uuid} created, this host is {ctx.host} with address {ip}; start the daemon: marsd start")


def _refuse_existing(ctx: Context) -> None:
    view = ctx.view()
    if view.uuid and ctx.host in view.ips:
        raise PreconditionError(
            f"this host belongs to a cluster already ({view.uuid})",
            "to leave it: marsadm leave-cluster, then: marsd stop",
        )
    try:
        ctx.control.ping()
    except DaemonDownError:
        return
    raise PreconditionError("marsd runs here without a cluster", "first: marsd stop")


def _keep_old_tree(ctx: Context) -> None:
    """What is left of a cluster that this host has left goes to a backup directory."""
    root = Path(ctx.paths.mars_dir)
    old = [entry for entry in root.iterdir() if paths.is_directory(entry.name) or entry.name == paths.uuid()]
    if not old:
        return
    backup = root / f"backup-{ctx.lamport.now() // 10**9}"
    if ctx.would(f"move the tree of the former cluster to {backup}"):
        return
    backup.mkdir(mode=0o700)
    for entry in old:
        entry.rename(backup / entry.name)
    durable.sync_dir(str(backup))
    durable.sync_dir(str(root))
    ctx.say(f"the tree of the former cluster is kept in {backup}")
    ctx.forget()


def _keep_old_certificates(ctx: Context, directory: Path) -> None:
    """Put away the certificates of a cluster that this host has left; any others are not ours to move."""
    if ctx.view().uuid and (directory / "ca.crt").exists():
        directory.rename(directory.with_name(f"{directory.name}-backup-{ctx.lamport.now() // 10**9}"))
        durable.sync_dir(str(directory.parent))


def _begin_tree(ctx: Context, ip: str) -> None:
    """The directories and links that every host of a cluster has."""
    for name in (*DIRECTORIES, f"defaults-{ctx.host}", f"actual-{ctx.host}"):
        if not ctx.dry:
            durable.make_dir(os.path.join(ctx.paths.mars_dir, name), durable=True)
    if ctx.store.get(paths.host_member(ctx.host)) in ("", ctx.store.get(paths.host_removed(ctx.host))):
        ctx.wish((paths.host_member(ctx.host), os.urandom(16).hex()))
    ctx.wish(
        (paths.ip(ctx.host), ip),
        (paths.host_default(ctx.host, "sync-limit"), "0"),
        (paths.host_default(ctx.host, "sync-pref-list"), "(none)"),
    )


def create_token(ctx: Context, args: tuple[str, ...]) -> None:
    """create-token: the token is the only line on stdout."""
    require_cluster(ctx.view(), ctx.host)
    if ctx.would("make a token"):
        return
    token = ctx.control.request({"cmd": "token"}).get("token")
    if not isinstance(token, str) or not token or not token.isprintable():
        raise MarsError("marsd has given no token", "are marsadm and marsd of the same version?")
    ctx.say(token)


def join_cluster(ctx: Context, args: tuple[str, ...]) -> None:
    """join-cluster HOST [--ip=A] [--ip-HOST=A] [--token=T]."""
    peer = checks.identifier(args[0], "host")
    if peer == ctx.host:
        raise UsageError(f"{peer} is this host", "give the name of a host that is in the cluster")
    _refuse_existing(ctx)
    ip = checks.address(ctx.options.ip) if ctx.options.ip else checks.own_address()
    peer_ip = peer_address(ctx, peer, args[1:])
    if ctx.would(f"ask {peer} at {peer_ip} for certificates, the tree and the uuid of its cluster"):
        _keep_old_tree(ctx)
        _begin_tree(ctx, ip)
        return
    joined = ask_to_join(ctx, peer, peer_ip, ip, ctx.options.token or token_by_ssh(peer))
    _keep_old_tree(ctx)
    take_tree(ctx, joined, ip)
    take_uuid(ctx, joined)
    ctx.say(f"this host is {ctx.host} with address {ip} in cluster {joined.uuid}; start the daemon: marsd start")


def _check_giver(token: str, peer: str) -> None:
    from marsx.peer.token import Token

    giver = Token.parse(token).host
    if giver != peer:
        raise AuthError(f"the token was made on {giver}, not on {peer}", f"name {giver}, or make a token on {peer}")


def look(ctx: Context, peer: str, peer_ip: str, token: str) -> Joined:
    """The uuid and the tree of the member's cluster; nothing is changed, the token is still good afterwards."""
    import asyncio

    from marsx.peer import join

    _check_giver(token, peer)
    port, own_ip = Settings(ctx.paths).get("mars_port"), ctx.view().ips[ctx.host]
    return asyncio.run(join.look_at_cluster(token, peer_ip, port, host=ctx.host, own_ip=own_ip))


def ask_to_join(ctx: Context, peer: str, peer_ip: str, ip: str, token: str) -> Joined:
    """Show the token to the member; certificates are installed when this returns."""
    import asyncio

    from marsx.peer import join, tls

    _check_giver(token, peer)
    port = Settings(ctx.paths).get("mars_port")
    files = tls.TlsFiles.of(ctx.paths)
    try:
        return asyncio.run(join.join_cluster(token, peer_ip, port, host=ctx.host, own_ip=ip, files=files))
    except MarsError as err:
        err.hint = err.hint or (f"nothing was changed. Does marsd run on {peer} (marsd status), and is {peer_ip} its "
                                f"address (--ip-{peer}=A.B.C.D)?")
        raise


def _entries(joined: Joined) -> list[Entry]:
    return [Entry(*item) for item in joined.tree if isinstance(item, list | tuple) and len(item) == 3]


def take_tree(ctx: Context, joined: Joined, ip: str) -> None:
    """The member's tree becomes ours, all but the uuid; what it says about absent hosts is taken from it, once."""
    entries = [entry for entry in _entries(joined) if entry.rel != paths.uuid()]
    hosts = {name.host for name in (paths.parse(str(entry.rel)) for entry in entries) if name and name.host}
    merged = ctx.store.merge(entries, joined.host, hosts - {ctx.host})
    if merged.refused:
        rel, reason = merged.refused[0]
        ctx.warn(f"{len(merged.refused)} entries of {joined.host} were not taken; the first: {rel}: {reason}")
    ctx.store.make_durable(merged.accepted)
    _begin_tree(ctx, ip)


def take_uuid(ctx: Context, joined: Joined) -> None:
    """The last thing: from now on this host belongs to the cluster."""
    ctx.store.merge([entry for entry in _entries(joined) if entry.rel == paths.uuid()], joined.host)
    ctx.wish((paths.uuid(), joined.uuid))


def peer_address(ctx: Context, peer: str, given_ip: tuple[str, ...] = ()) -> str:
    """Of HOST [IP], or by --ip-HOST, or by its name."""
    if given_ip:
        return checks.address(given_ip[0])
    given = {name: text for name, text in ctx.options.peer_ips.items() if name != peer}
    if given:
        raise UsageError(f"--ip-{next(iter(given))}: only the address of {peer} is asked for here")
    if peer in ctx.options.peer_ips:
        return checks.address(ctx.options.peer_ips[peer])
    try:
        found = socket.getaddrinfo(peer, None, socket.AF_INET, socket.SOCK_STREAM)
    except OSError as exc:
        raise NotFoundError(f"unknown host '{peer}': {exc.strerror}", f"give its address: --ip-{peer}=ADDRESS") from exc
    return str(found[0][4][0])


def token_by_ssh(peer: str) -> str:
    """As the manual has it: root's ssh makes the token on the member."""
    import subprocess

    hint = f"on {peer}: marsadm create-token; then here: marsadm join-cluster {peer} --token=TOKEN"
    try:
        done = subprocess.run(
            ["ssh", "-o", "ConnectTimeout=10", f"root@{peer}", "marsadm", "create-token"],
            stdout=subprocess.PIPE, text=True, timeout=SSH_TIMEOUT,
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired) as exc:
        raise AuthError(f"no --token given, and ssh {peer} did not work: {exc}", hint) from exc
    token = done.stdout.strip()
    if done.returncode or not token or any(char.isspace() for char in token):
        raise AuthError(f"no --token given, and ssh {peer} marsadm create-token failed", hint)
    return token


def leave_cluster(ctx: Context, args: tuple[str, ...]) -> None:
    """leave-cluster, of this host, or with --host=P --force of one that is gone."""
    view = ctx.view()
    require_cluster(view, ctx.host)
    gone = ctx.options.host or ctx.host
    if gone not in view.ips:
        raise NotFoundError(f"unknown host '{gone[:80]}'", f"known hosts: {', '.join(sorted(view.ips))}")
    joined = sorted(resource for resource in view.resources if gone in view.members(resource))
    if joined:
        raise PreconditionError(
            f"{gone} still has replicas of: {', '.join(joined)}",
            f"first on {gone}: marsadm down, then marsadm leave-resource",
        )
    if gone != ctx.host and not ctx.options.force:
        raise PreconditionError(f"{gone} would be removed from the cluster", "if it is gone for good, add --force")
    # The removal comes last: who has heard of it takes nothing from this host any more.
    wishes = [(paths.ip(gone), paths.DELETED)]
    incarnation = ctx.store.get(paths.host_member(gone))
    if incarnation:
        wishes.append((paths.host_removed(gone), incarnation))
    ctx.wish(*wishes)
    ctx.say(f"{gone} has left the cluster" + ("; stop the daemon: marsd stop" if gone == ctx.host else ""))


COMMANDS = (
    Command(
        "create-cluster", "[--ip=A]", create_cluster, "make this host the first of a new cluster", "cluster",
        needs="""This host belongs to no cluster, and marsd does not run here.
        Exactly once in a cluster, on one host.""",
        example="marsadm create-cluster --ip=10.0.0.1", scope="none", daemon=False,
    ),
    Command(
        "create-token", "", create_token, "print a token with which one host may join, for an hour", "cluster",
        example="marsadm create-token", scope="none",
    ),
    Command(
        "join-cluster", "HOST [IP] [--ip=A] [--ip-HOST=A] [--token=T]", join_cluster,
        "make this host a member of the cluster of HOST", "cluster",
        needs="""This host belongs to no cluster, and marsd does not run here, but on HOST.
        Without --token the token is fetched by ssh root@HOST. IP (or --ip-HOST) is the address of HOST, --ip that of
        this host.""",
        example="marsadm join-cluster alpha --token=TOKEN", scope="none", extra=(1, 2), daemon=False,
    ),
    Command(
        "leave-cluster", "", leave_cluster, "take this host out of the cluster", "cluster",
        needs="""This host has left all resources (leave-resource).
        With --host=H --force another host that is gone for good.""",
        example="marsadm leave-cluster", scope="none", extra=(0, 1), for_host=True,
    ),
)  # fmt: skip
