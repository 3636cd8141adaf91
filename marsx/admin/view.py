"""Looking: `view` prints the state of the resources, `view-NAME` one value or macro, --macro a text of one's own.

What there is to see is in `admin.views`, the language in `admin.macro`; the list is docs/views.md. Here is only which
resources are meant, what frames the output of `all`, and the commands' rows. A resource that cannot be shown does not
stop the others.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from marsx.admin.context import Context, require_cluster, require_resource, resource_list
from marsx.admin.table import Command, aliased
from marsx.base.errors import MarsError, NotFoundError, PartlyFailedError, UsageError

if TYPE_CHECKING:
    from marsx.admin.views.source import ViewSource

OF_ALL = ("default", "1and1")
"""Macros that show all resources when none is named."""
COMMON: dict[str, Any] = {
    "family": "view", "daemon": False, "writes": False, "member": False, "scope": "none", "for_host": True,
}  # fmt: skip
OPTIONS = "--macro=TEXT --json --host=HOST --window=SECONDS --threshold=SIZE --verbose[=N] --timeout=SECONDS"


def view(ctx: Context, args: tuple[str, ...], name: str = "default") -> None:
    """`view[-NAME] [RES|all] [ARGUMENT...]`"""
    require_cluster(ctx.view(), ctx.host)
    from marsx.admin.views.source import ViewSource

    if ctx.options.host and ctx.options.host not in ctx.view().hosts:
        raise NotFoundError(f"there is no host {ctx.options.host[:80]}", f"hosts: {', '.join(ctx.view().hosts)}")
    if ctx.options.json:
        return _json(ctx, args, name)
    source = ViewSource(ctx)
    if ctx.options.macro is not None:
        return _of_resources(ctx, source, "", ctx.options.macro, args)
    if _speaks_of_no_resource(source, name):
        return _say(ctx, source.show(name, "", _behind_resource(ctx, args)) or "")
    if not args and name not in OF_ALL and name not in source.macro_names():
        raise UsageError(f"view-{name}: an argument is missing", f"usage: marsadm view-{name} RES")
    _of_resources(ctx, source, name, None, args)


def _speaks_of_no_resource(source: ViewSource, name: str) -> bool:
    from marsx.admin.views.macros import GLOBAL

    row = source.values.get(name)
    own = name in source.macro_names()
    return not own and (name in GLOBAL or (row is not None and row.scope == "host" and name != "is-alive"))


def _behind_resource(ctx: Context, args: tuple[str, ...]) -> tuple[str, ...]:
    """Arguments without a resource before them, which values of the host need not have."""
    return args[1:] if args and (args[0] == "all" or args[0] in ctx.view().resources) else args


def _of_resources(ctx: Context, source: ViewSource, name: str, text: str | None, args: tuple[str, ...]) -> None:
    """A macro or value for each resource that is meant, or once for none."""
    if not args and name not in OF_ALL:
        return _say(ctx, _text_of(source, name, text, "", ()))
    word, rest = (args[0], args[1:]) if args else ("all", ())
    names = resource_list(ctx.view(), word, ctx.host, False)
    framed = word == "all"
    parts = [_frame(source, name, "header")] if framed else []
    failed = []
    for resource in names:
        try:
            require_resource(ctx.view(), resource)
            if framed:
                parts.append(_frame(source, name, "resource-header", resource))
            parts.append(_text_of(source, name, text, resource, rest))
        except MarsError as error:
            failed.append(error)
            if len(names) > 1:
                ctx.note(f"marsadm: {error.text}")
    if framed:
        parts += [_frame(source, name, "global"), _frame(source, name, "footer")]
    _say(ctx, "\n".join(part.rstrip("\n") for part in parts if part.rstrip("\n")))
    if failed:
        _give_up(failed, len(names))


def _give_up(failed: list[MarsError], asked: int) -> None:
    if len(failed) == asked and len({error.exit_code for error in failed}) == 1:
        raise failed[-1]
    raise PartlyFailedError(f"{len(failed)} of {asked} resources could not be shown", "the messages above say why")


def _text_of(source: ViewSource, name: str, text: str | None, resource: str, args: tuple[str, ...]) -> str:
    found = source.show(name, resource, args) if text is None else source.run(text, resource, args)
    if found is None:
        raise _unknown(name)
    return found


def _frame(source: ViewSource, name: str, part: str, resource: str = "") -> str:
    """NAME-header and its kin; each resource has a header whatever is shown."""
    for macro in (f"{name}-{part}", f"default-{part}" if part == "resource-header" else ""):
        if macro and source.macro(macro) is not None:
            return source.show(macro, resource) or ""
    return ""


def _say(ctx: Context, text: str) -> None:
    """With just one newline at its end, if there is anything."""
    text = text.rstrip("\n")
    if text:
        ctx.say(text)


def _json(ctx: Context, args: tuple[str, ...], name: str) -> None:
    """The structure of all, or one value of the resources that are meant."""
    import json

    from marsx.admin.views.structure import one_value, structure

    word = args[0] if args else "all"
    tree = ctx.view()
    if ctx.options.macro is not None:
        raise UsageError("--macro makes text, not JSON", "leave one of --macro and --json out")
    names = resource_list(tree, word, ctx.host, False)
    for resource in names:
        require_resource(tree, resource)
    found = structure(ctx, names) if name == "default" else one_value(ctx, names, name, args[1:])
    if found is None:
        raise _unknown(name)
    ctx.say(json.dumps(found, indent=2, ensure_ascii=False))


def _unknown(name: str) -> UsageError:
    import difflib

    from marsx.admin.views.macros import MACROS
    from marsx.admin.views.table import all_values

    near = difflib.get_close_matches(name, [*MACROS, *all_values()], 3)
    hint = f"did you mean: {', '.join('view-' + word for word in near)}" if near else "marsadm view-names lists them"
    return UsageError(f"there is no value '{name[:80]}' to view, and no macro", hint)


def primitive(name: str) -> Command | None:
    """The row of `view-NAME`; whether there is such a value shows when the files of macros have been looked at."""
    if not name.startswith("view-"):
        return None
    key = name.removeprefix("view-")
    run = partial(_view_named, name=key)
    return Command(
        name, "[RES] [ARGUMENT...]", run, "print one value or macro", extra=(0, 9), options=OPTIONS, **COMMON
    )


def _view_named(ctx: Context, args: tuple[str, ...], name: str) -> None:
    from marsx.admin.macro.files import MacroFiles
    from marsx.admin.views.macros import MACROS
    from marsx.admin.views.table import all_values

    if name not in MACROS and name not in all_values():
        import os

        if MacroFiles(os.environ, lambda text: None).text(name) is None:
            raise _unknown(name)
    view(ctx, args, name)


def _lazy(name: str) -> Any:
    """A command of `admin.show`, imported when it runs."""

    def run(*args: Any) -> Any:
        from marsx.admin import show

        return getattr(show, name)(*args)

    return run


_HERE: dict[str, Any] = {**COMMON, "for_host": False}
EACH: dict[str, Any] = {**_HERE, "scope": "each"}
_ROWS = (
    Command(
        "view", "[RES]", view, "print the state of each resource",
        effect="""One line says: RES [replicas/hosts] diskstate replstate flags role primarynode. With it the device
        that is here, what is under way, and what is wrong. view-NAME RES prints one value or macro; view-names
        lists them. --macro=TEXT prints what TEXT evaluates to, --json all values as one structure.""",
        options=OPTIONS, example="marsadm view all", **{**COMMON, "extra": (0, 9)},
    ),
    Command("show", "[RES]", _lazy("show"), "print the tree's entries of a resource as PATH=VALUE",
            example="marsadm show data", **{**_HERE, "extra": (0, 1)}),
    Command("show-errors", "RES", _lazy("show_errors"), "print warnings and errors, old ones too",
            needs="Status 1 if there are any.", example="marsadm show-errors data", **EACH),
    Command("show-state", "RES", _lazy("show_state"), "print the state of the replica here in words",
            example="marsadm show-state data", **EACH),
    Command("show-info", "RES", _lazy("show_info"), "print what marsd said about the resource last",
            example="marsadm show-info data", **EACH),
    Command("role", "RES", _lazy("role"), "print the role of this host in a sentence",
            example="marsadm role data", **EACH),
    Command("cat", "FILE...", _lazy("cat"), "print files with time stamps as dates",
            example="marsadm cat /run/mars/marsd.log", **{**_HERE, "extra": (1, 99)}),
    Command("dump-macros", "", _lazy("dump_macros"), "write the built-in macros to NAME.tpl files here",
            needs="No file is written over.", example="marsadm dump-macros", **_HERE),
    Command("dump-all-macros", "", _lazy("dump_all_macros"), "the same, and one for each value",
            needs="No file is written over.", example="marsadm dump-all-macros", **_HERE),
)  # fmt: skip
_ALIASES = (("show-state", "mars-state"), ("show-info", "mars-info"), ("role", "state"))
COMMANDS = (
    *_ROWS,
    *(aliased(row, alias) for row in _ROWS for name, alias in _ALIASES if row.name == name),
)
