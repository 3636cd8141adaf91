"""Transaction logs: rotate and delete. Deletion is each marsd's own decision (rule 26d); here it is only asked for."""

from __future__ import annotations

import os
from functools import partial

from marsx.admin.context import Context, require_cluster, require_member
from marsx.admin.table import Command, Phases, aliased
from marsx.base.errors import PreconditionError
from marsx.tree import paths


def log_rotate(ctx: Context, resource: str, args: tuple[str, ...]) -> None:
    """Begin a new log, on the primary. Elsewhere there is nothing to do, and scripts call it for `all`."""
    view = ctx.view()
    require_member(view, resource, ctx.host)
    if view.actual(resource, ctx.host, "is-primary") != "1" and not ctx.options.force:
        ctx.say(f"{resource}: nothing to rotate, {ctx.host} is not primary")
        return
    damped = too_soon(ctx, resource)
    if damped and not ctx.options.force:
        ctx.say(f"{resource}: {damped}")
        return
    answer = ctx.control.do("log-rotate", resource, ctx.options.timeout, force=ctx.options.force)
    ctx.say(f"{resource}: {answer.get('text') or 'the log is rotated'}")


def too_soon(ctx: Context, resource: str) -> str:
    """Why no new log is begun though it could be: there are many logs, and the newest is short."""
    mine = [log for log in ctx.store.log_files(resource) if log.producer == ctx.host]
    if len(mine) < ctx.options.thresh_logfiles or not mine:
        return ""
    end = ctx.view().version(resource, ctx.host, mine[-1].nr)
    newest = end.end.pos.pos if end is not None else 0
    if newest >= ctx.options.thresh_logsize:
        return ""
    return (f"not rotated, there are {len(mine)} logs and the newest has only {newest} bytes "
            "(--thresh-logfiles, --thresh-logsize, --force)")  # fmt: skip


def log_delete(ctx: Context, resource: str, args: tuple[str, ...], what: str) -> None:
    """Delete the oldest log, or all logs, that no member needs any more."""
    require_member(ctx.view(), resource, ctx.host)
    answer = ctx.control.do(what, resource, ctx.options.timeout, force=ctx.options.force)
    _say_deleted(ctx, resource, answer.get("deleted"), "no log can be deleted")


def _say_deleted(ctx: Context, resource: str, deleted: object, nothing: str) -> None:
    names = [str(name) for name in deleted] if isinstance(deleted, list) else []
    ctx.say(f"{resource}: deleted {', '.join(names)}" if names else f"{resource}: {nothing}")


def list_aside(ctx: Context, resource: str) -> list[str]:
    """The logs of discarded branches that are kept here, oldest first."""
    top = os.path.join(ctx.paths.mars_dir, paths.local_dir(ctx.host), f"aside-{resource}")
    return sorted(os.path.join(base, name) for base, _, names in os.walk(top) for name in names)


def purge(ctx: Context, resource: str, args: tuple[str, ...], what: str, nothing: str) -> None:
    """Have marsd remove what nobody needs any more. Logs may be kept aside here of a resource that was left."""
    if what != "log-purge-all" or not list_aside(ctx, resource):
        require_member(ctx.view(), resource, ctx.host)
    answer = ctx.control.do(what, resource, ctx.options.timeout, force=ctx.options.force)
    _say_deleted(ctx, resource, answer.get("deleted"), nothing)


def purge_links(ctx: Context, args: tuple[str, ...]) -> None:
    """link-purge-all: tombstones that every host of the cluster has seen."""
    require_cluster(ctx.view(), ctx.host)
    answer = ctx.control.do("link-purge-all", "", ctx.options.timeout, window=ctx.options.window)
    ctx.say(f"{answer.get('purged') or 0} tombstones are removed")


def cron(ctx: Context, args: tuple[str, ...]) -> Phases:
    """What is due, at once: log-rotate, log-delete-all, link-purge-all."""
    view = ctx.view()
    require_cluster(view, ctx.host)
    mine = [resource for resource in view.resources if ctx.host in view.members(resource)]
    for resource in mine:
        log_rotate(ctx, resource, ())
    for resource in mine:
        log_delete(ctx, resource, (), "log-delete-all")
    try:
        purge_links(ctx, ())
    except PreconditionError as error:
        ctx.note(f"tombstones are kept: {error.text}")
    return None


_DELETE_ONE = Command(
    "log-delete", "RES", partial(log_delete, what="log-delete"), "delete the oldest log that nobody needs", "logs",
    needs="Every member has replayed it, and it is not the newest; a member that is down or paused holds it.",
    example="marsadm log-delete data",
)  # fmt: skip
_DELETE_ALL = Command(
    "log-delete-all", "RES", partial(log_delete, what="log-delete-all"), "delete all logs that nobody needs", "logs",
    needs="Every member has replayed them; the newest stays; a member that is down or paused holds what it needs.",
    example="marsadm log-delete-all all",
)  # fmt: skip

COMMANDS = (
    Command(
        "log-rotate", "RES", log_rotate, "begin a new transaction log", "logs",
        needs="This host is the actual primary; elsewhere it does nothing and says so, with status 0.",
        effect="""Nothing is done when the newest log is empty, or when there are --thresh-logfiles logs of this host
        and the newest is smaller than --thresh-logsize (--force: all the same).""",
        example="marsadm log-rotate all", options="--force --thresh-logfiles=N --thresh-logsize=SIZE",
    ),
    _DELETE_ONE,
    aliased(_DELETE_ONE, "log-delete-one"),
    _DELETE_ALL,
    aliased(_DELETE_ALL, "log-delete-all-replayed"),
    Command(
        "log-purge-all", "RES", partial(purge, what="log-purge-all", nothing="nothing to purge"),
        "delete logs that lead nowhere any more", "logs",
        effect="""What `invalidate` and `leave-resource` have set aside of a discarded branch (in /mars/local-HOST) is
        lost, and all that log-delete-all would delete. `marsadm log-export` copies the first before.""",
        example="marsadm log-purge-all data",
    ),
    Command(
        "err-purge-all", "RES", partial(purge, what="err-purge-all", nothing="no message is to be removed"),
        "remove error messages of this host that are over", "logs",
        needs="What still is wrong keeps its message.", example="marsadm err-purge-all all",
    ),
    Command(
        "link-purge-all", "[RES]", lambda ctx, args: purge_links(ctx, ()), "remove tombstones of deleted links", "logs",
        needs="All hosts of the cluster can be reached now: who has not seen a tombstone would bring the link back.",
        effect="Tombstones younger than --window seconds stay. RES is ignored: it is done for the whole tree.",
        example="marsadm link-purge-all", scope="none", extra=(0, 1), options="--window=SECONDS",
    ),
    Command(
        "cron", "[all]", cron, "do at once what is due: log-rotate all, log-delete-all all, link-purge-all", "logs",
        effect="""marsd does its housekeeping by itself, so no cron job is needed; an old one does no harm.""",
        example="marsadm cron", scope="none", extra=(0, 1), options="--thresh-logfiles=N --thresh-logsize=SIZE",
    ),
)  # fmt: skip
