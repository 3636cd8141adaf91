"""The program marsadm: reads the command line, looks the command up, runs it for each resource, phase by phase.

What is promised for every command: one line on stderr for what failed (and a hint), the exit status of its error
class, 7 when several resources were asked for and only some failed. What failed does not stop the others.
"""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Generator, Sequence
from contextlib import suppress

from marsx.admin import checks, cli
from marsx.admin import table as tables
from marsx.admin.cli import Call
from marsx.admin.context import Context, require_cluster, resource_list
from marsx.admin.table import Command, Phases
from marsx.base.config import Paths
from marsx.base.errors import DaemonDownError, MarsError, PartlyFailedError, UsageError
from marsx.base.text import for_reader, printable

INTERRUPTED = 130
READER_GONE = 141


def commands() -> dict[str, Command]:
    """The table of all commands, in the order of the help."""
    from marsx.admin import (
        cluster,
        completion,
        habits,
        hosts,
        links,
        logs,
        merge,
        resource,
        roles,
        settings,
        splitbrain,
        switches,
        synclimits,
        verify,
        view,
        waits,
    )

    families = (
        cluster, merge, resource, roles, switches, synclimits, settings, logs, splitbrain, verify, waits, view, hosts,
        links, completion, habits,
    )  # fmt: skip
    return {row.name: row for module in families for row in module.COMMANDS}


def commands_for(name: str) -> dict[str, Command]:
    """The part of the table that is needed for a command: looking is called often, so it does not load all the rest."""
    if name == "view" or name.startswith("view-"):
        from marsx.admin import view

        return {row.name: row for row in view.COMMANDS}
    return commands()


def main(argv: Sequence[str]) -> int:
    """Run one command line (without the program's name); the exit status."""
    gc.set_threshold(100_000)  # few cycles are made; to look for them again and again takes a tenth of a large view
    try:
        return _run(argv)
    except MarsError as error:
        return report(error)
    except KeyboardInterrupt:
        print("marsadm: interrupted", file=sys.stderr)
        return INTERRUPTED
    except PermissionError as error:
        from marsx.base.errors import PermissionDeniedError

        return report(PermissionDeniedError(f"{error.filename or 'a file'}: {error.strerror}", "run it as root"))
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return READER_GONE
    except OSError as error:
        return report(MarsError(f"{error.filename or 'input/output'}: {error.strerror or error}"))


def report(error: MarsError, prefix: str = "") -> int:
    """Print an error as people and scripts expect it; its exit status."""
    text = printable(f"{prefix}{error.text}")
    lines = [f"marsadm: {text}"] + ([f"  hint: {printable(error.hint)}"] if error.hint else [])
    with suppress(BrokenPipeError):
        print(for_reader("\n".join(lines), sys.stderr), file=sys.stderr, flush=True)
    return error.exit_code


def _run(argv: Sequence[str]) -> int:
    call = cli.parse(argv)
    if call.options.version or call.command == "version":
        from marsx import __version__

        print(f"marsadm {__version__}")
        return 0
    table = commands() if call.options.help else commands_for(call.command)
    if call.command in ("", "help", "h"):
        if not call.command and not call.options.help:
            raise UsageError("a command is missing", cli.HELP_HINT)
        return _help(table, call.args[0] if call.args else "", call.options.json)
    if call.options.help:
        return _help(table, call.command, call.options.json)
    row = _row(table, call.command)
    _check_arguments(row, call)
    if call.options.dry_run and row.writes and not row.dry:
        raise UsageError(f"{row.name} has no --dry-run", "it changes nothing in the tree that could be told before")
    ctx = prepare(row, call)
    return run_row(ctx, row, call)


def _help(table: dict[str, Command], name: str, as_json: bool) -> int:
    if as_json:
        import json

        rows = [_row(table, name)] if name else list(table.values())
        print(json.dumps([tables.as_json(row) for row in rows], ensure_ascii=False))
    else:
        text = tables.details(_row(table, name)) if name else tables.overview(table, cli.USAGE)
        print(for_reader(text, sys.stdout))
    return 0


def _row(table: dict[str, Command], name: str) -> Command:
    from marsx.admin import view

    row = table.get(name) or view.primitive(name)
    if row is None:
        import difflib

        near = difflib.get_close_matches(name, table, 3)
        raise UsageError(
            f"unknown command '{name[:80]}'", f"did you mean: {', '.join(near)}" if near else cli.HELP_HINT
        )
    return row


def _check_arguments(row: Command, call: Call) -> None:
    least, most = row.extra
    if row.scope in ("each", "one"):
        least, most = least + 1, most + 1
    elif row.scope == "maybe":
        most += 1
    usage = f"usage: marsadm {row.name} {row.synopsis}".rstrip()
    if len(call.args) < least:
        raise UsageError(f"{row.name}: an argument is missing", usage)
    if len(call.args) > most:
        raise UsageError(f"{row.name}: too many arguments: {' '.join(call.args[most:])[:80]}", usage)
    if call.options.host and not row.for_host:
        raise UsageError(
            f"{row.name} cannot act for another host", "--host is for leave-resource, leave-cluster and verify"
        )


def make_context(row: Command, call: Call) -> Context:
    """The context of a call on this host."""
    return Context(Paths.of(call.options.dirs), os.uname().nodename, call.options, readonly=not row.writes)


def prepare(row: Command, call: Call) -> Context:
    """The context of a call, after all checks that do not depend on a resource."""
    ctx = make_context(row, call)
    if row.writes:
        os.umask(0o077)
        checks.require_root()
        checks.host_name(ctx.host)
        checks.require_mars_dir(ctx.paths.mars_dir)
    if row.scope != "none":
        require_cluster(ctx.view(), ctx.host)
    if row.daemon:
        _require_daemon(ctx, row)
    return ctx


def _require_daemon(ctx: Context, row: Command) -> None:
    """marsd answers; a switch may be thrown without it by --force."""
    try:
        ctx.control.ping()
        ctx.daemon_runs = True
    except DaemonDownError:
        if not (row.family == "switches" and ctx.options.force):
            raise
        ctx.warn("marsd does not run here; the switches count when it starts")


def run_row(ctx: Context, row: Command, call: Call) -> int:
    """Run a command for the cluster or for its resources."""
    if row.scope == "none":
        _finish(row.run(ctx, call.args))
        return 0
    if row.scope == "one":
        resource, rest = call.args[0], call.args[1:]
        if resource == "all" or "," in resource:
            raise UsageError(f"{row.name} takes one resource by its name", f"usage: marsadm {row.name} {row.synopsis}")
        _finish(row.run(ctx, resource, rest))
        return 0
    word, rest = (call.args[0], call.args[1:]) if call.args else ("all", ())
    names = resource_list(ctx.view(), word, ctx.host, row.member)
    if not names:
        ctx.note(f"{row.name}: this host has no resources")
        return 0
    if ctx.options.parallel != 1 and len(names) > 1 and row.writes:
        from marsx.admin import parallel

        words = cli.words(ctx.options)
        return parallel.run([[row.name, name, *rest, *words] for name in names], ctx.options.parallel)
    return run_each(ctx, row, names, rest)


def _finish(phases: Phases) -> None:
    for _ in phases or ():
        pass


def run_each(ctx: Context, row: Command, names: list[str], args: tuple[str, ...]) -> int:
    """Each phase for all resources before the next phase; what failed is out, the rest goes on."""
    failed: dict[str, MarsError] = {}
    running = {name: _phases(ctx, row, name, args) for name in names}
    try:
        while running:
            for name in list(running):
                error = _step(running, name)
                if error is not None:
                    failed[name] = error
                    report(error, "" if len(names) == 1 or name in error.text else f"{name}: ")
    finally:
        for phases in running.values():
            phases.close()
    codes = {error.exit_code for error in failed.values()}
    if len(failed) == len(names) and len(codes) == 1:
        return codes.pop()
    return PartlyFailedError.exit_code if failed else 0


def _phases(ctx: Context, row: Command, name: str, args: tuple[str, ...]) -> Generator[None, None, None]:
    phases = row.run(ctx, name, args)
    if phases is not None:
        yield from phases


def _step(running: dict[str, Generator[None, None, None]], name: str) -> MarsError | None:
    """One phase of one resource; what ended, well or badly, is no longer running."""
    try:
        next(running[name])
        return None
    except StopIteration:
        error = None
    except MarsError as exc:
        error = exc
    except OSError as exc:
        error = MarsError(f"{name}: {exc.filename or 'input/output'}: {exc.strerror or exc}")
    del running[name]
    return error
