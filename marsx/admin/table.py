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
)


def overview(commands: dict[str, Command], usage: str) -> str:
    """What `marsadm help` prints."""
    lines = [usage.rstrip(), ""]
    lines.append("RES is a resource, a comma list of resources, or `all` (every resource of this host).")
    for family, title in FAMILIES:
        rows = [row for row in commands.values() if row.family == family]
        if not rows:
            continue
        lines += ["", f"{title}:"]
        for row in rows:
            left = f"{row.name} {row.synopsis}".rstrip()
            text = f"the same as {row.alias_of}" if row.alias_of else row.short
            lines += [f"  {left:<30} {text}"] if len(left) <= 30 else [f"  {left}", f"  {'':<30} {text}"]
    lines += ["", "marsadm COMMAND --help shows more about one command."]
    return "\n".join(lines)


def details(row: Command) -> str:
    """What `marsadm COMMAND --help` prints."""
    lines = [f"marsadm {row.name} {row.synopsis}".rstrip(), "", f"  {row.short}"]
    if row.alias_of:
        lines.append(f"  The same as {row.alias_of}.")
    conditions = [line.strip() for line in row.needs.strip().splitlines()]
    if row.daemon:
        conditions.append("marsd runs on this host.")
    if conditions:
        lines += ["", "Conditions:", *(f"  {line}" for line in conditions)]
    if row.example:
        lines += ["", "Example:", f"  {row.example}"]
    return "\n".join(lines)
