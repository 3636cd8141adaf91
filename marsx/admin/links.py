"""Links for users' own purposes (`userspace/`), and any link of the tree by its path.

Writing is confined to `/mars/userspace/NAME` and `/mars/resource-RES/userspace/NAME`: everything else in the tree has a
command that knows what it means.
"""

from __future__ import annotations

from marsx.admin.context import Context, require_cluster
from marsx.admin.table import Command
from marsx.base.errors import NotFoundError, UsageError
from marsx.tree import paths


def _rel(ctx: Context, text: str) -> str:
    """The name in the tree of a path below /mars, absolute or not."""
    root = ctx.paths.mars_dir + "/"
    rel = text.removeprefix(root) if text.startswith("/") else text
    if paths.parse(rel) is None:
        raise UsageError(f"'{text[:120]}' is not a path of the tree", f"example: {root}userspace/NAME")
    return rel


def _user_rel(ctx: Context, text: str) -> str:
    """The same, for writing."""
    rel = _rel(ctx, text)
    name = paths.parse(rel)
    if name is None or name.kind != "userspace":
        raise UsageError(
            f"'{text[:120]}' does not lie in a userspace directory",
            f"{ctx.paths.mars_dir}/userspace/NAME or {ctx.paths.mars_dir}/resource-RES/userspace/NAME; "
            "for other links there are commands: marsadm help",
        )
    return rel


def set_link(ctx: Context, args: tuple[str, ...]) -> None:
    """Pairs of VALUE PATH."""
    require_cluster(ctx.view(), ctx.host)
    if len(args) % 2:
        raise UsageError("set-link: a PATH is missing", "usage: marsadm set-link VALUE PATH [VALUE PATH ...]")
    pairs = [(_user_rel(ctx, path), value) for value, path in zip(args[::2], args[1::2], strict=True)]
    for rel, value in pairs:
        name = paths.parse(rel)
        if name is not None and (paths.value_problem(name, value) or value == paths.DELETED):
            raise UsageError(f"'{value[:80]}' cannot be the value of a link", "1 to 1023 printable characters")
    if len({rel for rel, _ in pairs}) < len(pairs):
        raise UsageError("set-link: a PATH is given twice")
    ctx.wish(*pairs)


def get_link(ctx: Context, args: tuple[str, ...]) -> None:
    """Values, a line each."""
    found = {}
    for text in args:
        value = ctx.store.get(_rel(ctx, text))
        if not value:
            raise NotFoundError(f"there is no link {text[:120]}", f"look below {ctx.paths.mars_dir}")
        found[text] = value
    ctx.show(found, "\n".join(found[text] for text in args))


def delete_file(ctx: Context, args: tuple[str, ...]) -> None:
    """Leave tombstones, so that the links vanish on all hosts."""
    require_cluster(ctx.view(), ctx.host)
    rels = [_user_rel(ctx, text) for text in args]
    for rel, text in zip(rels, args, strict=True):
        if not ctx.store.get(rel):
            raise NotFoundError(f"there is no link {text[:120]}", f"look below {ctx.paths.mars_dir}")
    ctx.wish(*((rel, paths.DELETED) for rel in dict.fromkeys(rels)))


_WHERE = "PATH is userspace/NAME or resource-RES/userspace/NAME, with or without /mars/ before it."

COMMANDS = (
    Command(
        "set-link", "VALUE PATH [VALUE PATH ...]", set_link, "write links of your own, for all hosts",
        "lowlevel", needs=_WHERE, example="marsadm set-link alpha /mars/userspace/owner",
        scope="none", extra=(2, 200), daemon=False,
    ),
    Command(
        "get-link", "PATH ...", get_link, "print the values of links, a line each", "lowlevel",
        needs="PATH is any link of the tree, with or without /mars/ before it.",
        example="marsadm get-link userspace/owner", scope="none", extra=(1, 200), daemon=False, writes=False,
        options="--json",
    ),
    Command(
        "delete-file", "PATH ...", delete_file, "delete links of your own, on all hosts", "lowlevel", needs=_WHERE,
        example="marsadm delete-file /mars/userspace/owner", scope="none", extra=(1, 200), daemon=False,
    ),
)  # fmt: skip
