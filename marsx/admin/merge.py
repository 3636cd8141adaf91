"""merge-cluster: this host takes its resources along into another cluster.

    token of a member there -> look at its tree -> no resource and no host of the same name that is another one
    -> backup of the own links and certificates -> join with the token -> both trees in one, the other's uuid

Done on each host of the old cluster in turn, while marsd is stopped there. The members of the old cluster cannot talk
to each other in between; nothing is lost by that, logs are kept for who has not fetched them. Their state is not
touched: who comes later finds his own resources in the other cluster already, and knows them by their incarnations.

Invariants:
    two resources are the same if and only if a host is a member of both with the same incarnation (rule 26)
    logs keep the uuid of the cluster in which the resource was made: `log-uuid` says so before the uuid changes; what
        the other cluster knows has there what it needs, and is here already when the command is given again
    `uuid` is written last: who is stopped half way gives the command again, with a new token, and it comes to the same
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from marsx.admin import checks, cluster
from marsx.admin.context import Context, require_cluster
from marsx.admin.table import Command
from marsx.base import durable
from marsx.base.errors import DaemonDownError, PreconditionError, UsageError
from marsx.tree import paths
from marsx.tree.view import View

if TYPE_CHECKING:
    from marsx.admin.cluster import Joined


def conflicts(mine: View, theirs: View, host: str) -> list[str]:
    """What the two clusters have under one name though it is not the same, in words."""
    found = []
    for resource in sorted(set(mine.resources) & set(theirs.resources)):
        ids = [(mine.member_id(resource, one), theirs.member_id(resource, one)) for one in mine.members(resource)]
        if not any(own and own == other for own, other in ids):
            found.append(f"resource {resource}")
    for one in sorted((set(mine.ips) & set(theirs.ips)) - {host}):
        ids_of = [view.get(paths.host_member(one)) for view in (mine, theirs)]
        shared = any(one in mine.members(res) and mine.member_id(res, one) == theirs.member_id(res, one)
                     for res in mine.resources)  # fmt: skip
        if ids_of[0] != ids_of[1] and not shared:
            found.append(f"host {one}")
    return found


def begun(ctx: Context, theirs: View, joined: Joined) -> set[str]:
    """What is here because a merge was stopped half way, in the words of `conflicts`: nothing of it is newer here than
    there, or unknown there, and no incarnation is another one."""
    there = {str(rel): int(stamp) for rel, _, stamp in _items(joined)}
    mine, own = ctx.view(), set[str]()
    for entry in ctx.store.snapshot():
        name = paths.parse(entry.rel)
        if name is None or entry.value == paths.DELETED:
            continue
        is_other = name.kind in ("member", "host-member") and theirs.get(entry.rel) != entry.value
        if is_other or there.get(entry.rel, 0) < entry.stamp:
            own.add(f"resource {name.resource}" if name.resource else f"host {name.host}")
    return {*(f"resource {res}" for res in mine.resources), *(f"host {host}" for host in mine.ips)} - own


def merge_check(ctx: Context, args: tuple[str, ...]) -> None:
    """merge-cluster-check HOST: would it work?"""
    joined = cluster.look(ctx, *_whom(ctx, args))
    theirs = _view_of(joined)
    _refuse(ctx, theirs, joined)
    ctx.say(f"{len(ctx.view().resources)} resources here and {len(theirs.resources)} in {joined.uuid} can be merged")


def merge_list(ctx: Context, args: tuple[str, ...]) -> None:
    """merge-cluster-list HOST: the resources of both, `WHERE RESOURCE MEMBERS`."""
    theirs = _view_of(cluster.look(ctx, *_whom(ctx, args)))
    rows = [(where, res, list(view.members(res))) for where, view in (("here", ctx.view()), ("there", theirs))
            for res in view.resources]  # fmt: skip
    value = [{"where": where, "resource": resource, "members": members} for where, resource, members in rows]
    ctx.show(value, "\n".join(f"{where} {resource} {','.join(members)}".rstrip() for where, resource, members in rows))


def merge(ctx: Context, args: tuple[str, ...]) -> None:
    """merge-cluster HOST."""
    peer, peer_ip, token = _whom(ctx, args)
    try:
        ctx.control.ping()
    except DaemonDownError:
        pass
    else:
        raise PreconditionError("marsd runs here", "umount the devices of mars, then: marsd stop")
    joined = cluster.look(ctx, peer, peer_ip, token)
    theirs = _view_of(joined)
    _refuse(ctx, theirs, joined)
    view = ctx.view()
    ip = checks.address(ctx.options.ip) if ctx.options.ip else view.ips[ctx.host]
    mine = [res for res in view.resources if res not in theirs.resources and not view.get(paths.log_uuid(res))]
    origins = [(paths.log_uuid(res), view.uuid) for res in mine]
    if ctx.would(f"ask {peer} at {peer_ip} for certificates, the tree and the uuid of its cluster"):
        ctx.wish(*origins, (paths.uuid(), joined.uuid))
        return
    kept = _backup(ctx)
    ctx.wish(*origins)
    taken = cluster.ask_to_join(ctx, peer, peer_ip, ip, token)
    cluster.take_tree(ctx, taken, ip)
    # The incarnation of this host is a new one: what it says of itself counts from now on only (rule 26).
    facts = [(entry.rel, entry.value) for entry in ctx.store.facts_of(ctx.host)]
    ctx.store.put_many(facts, durable=True, restamp=True)
    cluster.take_uuid(ctx, taken)
    ctx.say(f"this host is {ctx.host} in cluster {taken.uuid}, with all its resources; start the daemon: marsd start")
    ctx.say(f"links and certificates from before are kept in {kept}")
    left = [host for host in view.hosts if host != ctx.host and host not in _view_of(taken).hosts]
    if left:
        ctx.say(f"the same has to be done on: {', '.join(left)}")


def _whom(ctx: Context, args: tuple[str, ...]) -> tuple[str, str, str]:
    """(host, address, token) of a member of the other cluster."""
    peer = args[0]
    require_cluster(ctx.view(), ctx.host)
    checks.identifier(peer, "host")
    if peer == ctx.host:
        raise UsageError(f"{peer} is this host", "give a host of the other cluster")
    return peer, cluster.peer_address(ctx, peer, args[1:]), ctx.options.token or cluster.token_by_ssh(peer)


def _items(joined: Joined) -> list[Any]:
    return [item for item in joined.tree if isinstance(item, list | tuple) and len(item) == 3]


def _view_of(joined: Joined) -> View:
    return View((str(rel), str(value), int(stamp)) for rel, value, stamp in _items(joined))


def _refuse(ctx: Context, theirs: View, joined: Joined) -> None:
    if joined.uuid == ctx.view().uuid:
        raise PreconditionError(f"{joined.host} is in the same cluster already ({joined.uuid})", "nothing to do")
    found = conflicts(ctx.view(), theirs, ctx.host)
    if found:
        copied = begun(ctx, theirs, joined)
        found = [what for what in found if what not in copied]
    if found:
        raise PreconditionError(
            f"both clusters have a {', a '.join(found)}",
            "give it up in one of the clusters: leave-resource, delete-resource, leave-cluster",
        )


def _backup(ctx: Context) -> Path:
    """A copy of all links and of the certificates; logs stay where they are."""
    root = Path(ctx.paths.mars_dir)
    second = ctx.lamport.now() // 10**9
    while (backup := root / f"backup-{second}").exists():
        second += 1
    backup.mkdir(mode=0o700)
    values: dict[Path, list[str]] = {}
    for entry in ctx.store.entries():
        path = backup / entry.rel
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        durable.write_link(str(path), entry.value, entry.stamp, False)
        values.setdefault(path.parent, []).append(entry.value)
    for directory, texts in values.items():
        durable.sync_links(str(directory), texts)
    certificates = Path(ctx.paths.etc_dir) / "tls"
    for file in sorted(certificates.iterdir()) if certificates.is_dir() else ():
        durable.write_file(str(backup / f"tls-{file.name}"), file.read_bytes())
    return backup


_NEEDS = """HOST is a member of the other cluster, where marsd runs. Without --token it is fetched by ssh root@HOST.
        No resource and no host has the same name in both, unless it is the same one."""

COMMANDS = (
    Command(
        "merge-cluster", "HOST [IP] [--token=T]", merge,
        "go over into the cluster of HOST, with all resources", "cluster",
        needs="marsd is stopped here.\n" + _NEEDS,
        effect="""The tree becomes the union of both, the uuid that of HOST's cluster; a backup of the links and
        certificates from before lies in /mars/backup-TIME. To be done on each host of the old cluster in turn;
        until the last one is done they do not see each other, and catch up afterwards. Data are not touched.""",
        example="marsadm merge-cluster alpha --token=TOKEN", scope="none", extra=(1, 2), daemon=False,
        options="--ip=A",
    ),
    Command(
        "merge-cluster-check", "HOST [IP] [--token=T]", merge_check,
        "would merge-cluster work? nothing is changed", "cluster", needs=_NEEDS,
        effect="The token stays good for the merge.", example="marsadm merge-cluster-check alpha --token=TOKEN",
        scope="none", extra=(1, 2), daemon=False, writes=False,
    ),
    Command(
        "merge-cluster-list", "HOST [IP] [--token=T]", merge_list,
        "print the resources of both clusters and their members", "cluster", needs=_NEEDS,
        effect="A line for each resource: here or there, name, members.",
        example="marsadm merge-cluster-list alpha --token=TOKEN",
        scope="none", extra=(1, 2), daemon=False, writes=False, options="--json",
    ),
)  # fmt: skip
