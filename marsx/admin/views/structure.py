"""`marsadm view --json`: everything that can be seen, as one structure with typed values (docs/views.md).

    {"format": "marsx-view", "version": 1, "host": H, "time": SECONDS, "values": {NAME: value...},
     "resources": {RES: {"words": {NAME: text...}, "values": {NAME: value...}}...}}

Stable: names and types only come in addition as long as `version` stays. What waits is not among the values, nor what
is the same as another value; macros of people do not count.
"""

from __future__ import annotations

from collections.abc import Iterable

from marsx.admin.context import Context
from marsx.admin.views.source import ViewSource, typed

FORMAT, VERSION = "marsx-view", 1
WORDS = (
    "diskstate", "replstate", "flags", "role", "todo-role", "primarynode", "commstate", "diskstate-1and1",
    "replstate-1and1", "flags-1and1", "role-1and1", "primarynode-1and1",
)  # fmt: skip
LEFT_OUT = ("wait-", "present-", "all-pretty-", "the-pretty-", "message", "resource-errors", "comm-status", "names")


def structure(ctx: Context, names: Iterable[str]) -> dict[str, object]:
    """The structure of these resources and of the host."""
    source = ViewSource(ctx, with_files=False)
    return {
        "format": FORMAT, "version": VERSION, "host": source.look.host,
        "time": source.look.now_ns // 1_000_000_000,
        "values": _values(source, "", "host"),
        "resources": {name: _resource(source, name) for name in names},
    }  # fmt: skip


def _resource(source: ViewSource, resource: str) -> dict[str, object]:
    return {
        "words": {name: source.show(name, resource) for name in WORDS},
        "values": _values(source, resource, "resource"),
    }


def _values(source: ViewSource, resource: str, scope: str) -> dict[str, object]:
    look = source.look
    return {
        name: typed(look, row, resource, [])
        for name, row in source.values.items()
        if row.scope == scope and not name.startswith(LEFT_OUT) and "-pretty-" not in name
    }


def one_value(ctx: Context, names: Iterable[str], name: str, args: tuple[str, ...]) -> dict[str, object] | None:
    """The same structure with one value or macro only; None if there is none of that name."""
    source = ViewSource(ctx)
    row = source.values.get(name)
    found: dict[str, object] = {"format": FORMAT, "version": VERSION, "host": source.look.host, "name": name}
    if row is not None and row.kind != "wait" and source.macro(name) is None:
        if row.scope == "host":
            return {**found, "value": typed(source.look, row, "", list(args))}
        return {**found, "resources": {res: typed(source.look, row, res, list(args)) for res in names}}
    texts = {resource: source.show(name, resource, args) for resource in names}
    return None if None in texts.values() else {**found, "resources": texts}
