"""Transaction logs: rotate and delete. Deletion is each marsd's own decision (rule 26d); here it is only asked for."""

from __future__ import annotations

from functools import partial

from marsx.admin.context import Context, require_member
from marsx.admin.table import Command


def log_rotate(ctx: Context, resource: str, args: tuple[str, ...]) -> None:
    """Begin a new log, on the primary. Elsewhere there is nothing to do, and scripts call it for `all`."""
    view = ctx.view()
    require_member(view, resource, ctx.host)
    if view.actual(resource, ctx.host, "is-primary") != "1" and not ctx.options.force:
        ctx.say(f"{resource}: nothing to rotate, {ctx.host} is not primary")
        return
    answer = ctx.control.do("log-rotate", resource, ctx.options.timeout, force=ctx.options.force)
    ctx.say(f"{resource}: {answer.get('text') or 'the log is rotated'}")


def log_delete(ctx: Context, resource: str, args: tuple[str, ...], what: str) -> None:
    """Delete the oldest log, or all logs, that no member needs any more."""
    require_member(ctx.view(), resource, ctx.host)
    answer = ctx.control.do(what, resource, ctx.options.timeout, force=ctx.options.force)
    deleted = answer.get("deleted")
    if isinstance(deleted, list):
        ctx.say(
            f"{resource}: deleted {', '.join(map(str, deleted))}" if deleted else f"{resource}: no log can be deleted"
        )
    else:
        ctx.say(f"{resource}: {answer.get('text') or 'done'}")


COMMANDS = (
    Command(
        "log-rotate", "RES", log_rotate, "begin a new transaction log", "logs",
        needs="This host is the actual primary; elsewhere it does nothing.", example="marsadm log-rotate all",
    ),
    Command(
        "log-delete", "RES", partial(log_delete, what="log-delete"),
        "delete the oldest log, if every member has replayed it", "logs", example="marsadm log-delete data",
    ),
    Command(
        "log-delete-all", "RES", partial(log_delete, what="log-delete-all"),
        "delete all logs that every member has replayed", "logs", example="marsadm log-delete-all all",
    ),
)  # fmt: skip
