"""The table of commands: one row says what a command is called, takes, needs and does. Help is printed from it.

`run` of a row does the work for one resource (scope "each" and "one") or for the cluster (scope "none"). It may be a
generator: each `yield` is the end of a phase, and with several resources a phase is done for all of them before
the next begins. A generator is closed when the call ends early, so that its `finally` takes back what it must.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

Phases = Iterator[None] | None
Run = Callable[..., Phases]


@dataclass(frozen=True)
class Command:
    """One command of marsadm."""

    name: str
    synopsis: str
    run: Run
    short: str
    family: str
    needs: str = ""
    """Preconditions, a line each."""
    effect: str = ""
    """What it does, beyond `short`."""
    example: str = ""
    scope: str = "each"
    """"each": RES, a comma list or `all`; "one": just one RES; "maybe": like "each", nothing means all; "none"."""
    extra: tuple[int, int] = (0, 0)
    """How many arguments follow the resource (or the command itself): least and most."""
    daemon: bool = True
    """marsd has to run here."""
    writes: bool = True
    """Changes something: root, a sane host name and a cluster are needed."""
    member: bool = True
    """`all` means the resources of this host, and a named one has to be joined here."""
    alias_of: str = ""
    for_host: bool = False
    """Takes --host=HOST."""
    dry: bool = True
    """Can tell what it would do (--dry-run), if it writes at all."""
    options: str = ""
    """The options that mean something here, beyond the common ones."""


def aliased(row: Command, name: str, **changes: Any) -> Command:
    """The same command under another name."""
    from dataclasses import replace

    example = row.example.replace(row.name, name, 1)
    return replace(row, name=name, alias_of=row.name, **{"example": example, **changes})


FAMILIES = (
    ("cluster", "Cluster"),
    ("resource", "Resources"),
    ("roles", "Roles"),
    ("switches", "Switches"),
    ("logs", "Transaction logs"),
    ("waits", "Waiting"),
    ("view", "Looking"),
    ("settings", "Settings"),
    ("lowlevel", "Repair by hand"),
    ("habits", "Words of old, answered with what helps"),
)
QUIET = ("habits",)


def overview(commands: dict[str, Command], usage: str) -> str:
    """What `marsadm help` prints."""
    lines = [usage.rstrip(), ""]
    lines.append("RES is a resource, a comma list of resources, or `all` (every resource of this host).")
    for family, title in FAMILIES:
        rows = [row for row in commands.values() if row.family == family]
        if rows:
            lines += ["", f"{title}:", *(_names(rows) if family in QUIET else _lines(rows))]
    lines += ["", "marsadm COMMAND --help shows more about one command."]
    return "\n".join(lines)


def _lines(rows: list[Command]) -> list[str]:
    lines = []
    for row in rows:
        left = f"{row.name} {row.synopsis}".rstrip()
        text = f"the same as {row.alias_of}" if row.alias_of else row.short
        lines += [f"  {left:<30} {text}"] if len(left) <= 30 else [f"  {left}", f"  {'':<30} {text}"]
    return lines


def _names(rows: list[Command]) -> list[str]:
    import textwrap

    return textwrap.wrap(" ".join(row.name for row in rows), 110, initial_indent="  ", subsequent_indent="  ",
                         break_on_hyphens=False)  # fmt: skip


def conditions(row: Command) -> list[str]:
    """What must hold, a sentence each."""
    found = [line.strip() for line in row.needs.strip().splitlines()]
    if row.daemon:
        found.append("marsd runs on this host.")
    return found


def effects(row: Command) -> list[str]:
    """What it does, a line each, beginning with the short text."""
    short = f"The same as {row.alias_of}: {row.short}." if row.alias_of else f"{row.short[:1].upper()}{row.short[1:]}."
    return [short, *[line.strip() for line in row.effect.strip().splitlines()]]


def details(row: Command) -> str:
    """What `marsadm COMMAND --help` prints."""
    lines = [f"marsadm {row.name} {row.synopsis}".rstrip()]
    if row.options:
        lines[0] += f"   [{'] ['.join(row.options.split())}]"
    lines += ["", "Effect:", *(f"  {line}" for line in effects(row))]
    if conditions(row):
        lines += ["", "Conditions:", *(f"  {line}" for line in conditions(row))]
    if row.example:
        lines += ["", "Example:", f"  {row.example}"]
    return "\n".join(lines)


def as_json(row: Command) -> dict[str, Any]:
    """What `marsadm help --json` tells of one command."""
    return {
        "name": row.name, "synopsis": row.synopsis, "family": row.family, "alias_of": row.alias_of,
        "effect": effects(row), "conditions": conditions(row), "options": row.options.split(),
        "example": row.example, "writes": row.writes, "daemon": row.daemon,
    }  # fmt: skip
