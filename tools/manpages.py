"""Writes the man pages (docs/man) and the bash completion (docs/completion) from the tables of the programs (make man).

Sources: the rows of marsadm's commands, the usage texts of the programs, the table of tunables, the error classes, the
glossary. With --check nothing is written, and stale files are named.
"""
from __future__ import annotations

import re
import sys
from pathlib import Path

TOP = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(TOP))

import marsx  # noqa: E402
from marsx.admin import cli, completion, marsadm  # noqa: E402
from marsx.admin.table import FAMILIES, Command, conditions, effects  # noqa: E402
from marsx.base import errors  # noqa: E402
from marsx.base.tunables import TUNABLES  # noqa: E402
from marsx.daemon.marsd import USAGE as MARSD  # noqa: E402
from marsx.monitor.mars_status import USAGE as STATUS  # noqa: E402

DATE = "2026-11-22"  # of the last change of what the pages say
FILES = (
    ("/mars", "the tree of the cluster's state (symlinks) and the transaction logs; a file system of its own"),
    ("/dev/mars/RES", "the device of a resource, on its primary"),
    ("/etc/mars/marsd.toml", "settings that last; table [tunables]"),
    ("/etc/mars/tls", "certificates of this host and of the cluster"),
    ("/run/mars/sys/NAME", "tunables: one number each, taken at once"),
    ("/run/mars/marsd.log", "what marsd says"),
    ("/run/mars/marsd.sock", "where marsd listens for marsadm"),
)
STATUS_CODES = [
    ("0", "All is well; also the end of --interval and --events."),
    ("1", "A warning, or work beyond a limit."),
    ("2", "Critical: replication stopped, split brain, emergency, a host that is not heard of."),
    ("3", "Not known: marsd does not run here, no cluster, no such resource, a wrong command line."),
]
ENVIRONMENT = "MARS_DIR, MARS_RUN_DIR, MARS_DEV_DIR, MARS_ETC_DIR: other directories than those above."
SEE = "marsadm(8), marsd(8), mars-status(8), mars(7)"
ABOUT = """\
mars replicates block devices through transaction logs, asynchronously: on the primary every write goes into a log and
from there to the data device; the logs are fetched by the other members and replayed on their devices. Lines may be
slow, far or broken for days; the replicas stay consistent, and are behind by what has not been replayed.

A cluster is a set of hosts that share one tree of symlinks below /mars. A resource is a device that is replicated; a
host with a replica of it is a member. One member is the primary: there the device /dev/mars/RES can be used.

To begin: make a file system for /mars on each host, then

    marsadm create-cluster                      on the first host
    marsd start
    marsadm create-resource RES /dev/VG/LV
    marsadm create-token                        prints a token
    marsadm join-cluster HOST --token=TOKEN     on each other host
    marsd start
    marsadm join-resource RES /dev/VG/LV

To change roles: umount /dev/mars/RES on the primary, then `marsadm primary RES` on the other host. What goes on is
shown by `marsadm view` and mars-status."""


def quoted(text: str) -> str:
    """Text as roff takes it."""
    text = text.replace("\\", "\\e").replace("-", "\\-")
    return "\\&" + text if text.startswith((".", "'")) else text


def header(name: str, section: int, short: str) -> list[str]:
    """Title and NAME."""
    return ['.\\" Made by `make man`; do not edit.',
            f'.TH {name.upper()} {section} "{DATE}" "marsx {marsx.__version__}" "mars"',
            ".SH NAME", f"{quoted(name)} \\- {quoted(short)}"]


def verbatim(text: str) -> list[str]:
    """Lines as they stand."""
    return [".nf", *map(quoted, text.rstrip("\n").splitlines()), ".fi"]


def items(pairs: list[tuple[str, str]]) -> list[str]:
    """Terms and what they mean."""
    return [line for term, text in pairs for line in (".TP", f".B {quoted(term)}", quoted(text))]


def statuses() -> list[str]:
    """EXIT STATUS."""
    classes = sorted((cls for cls in errors.subclasses() if cls.__module__ == errors.__name__),
                     key=lambda cls: cls.exit_code)
    pairs = [("0", "Done."), *((str(cls.exit_code), (cls.__doc__ or "").strip()) for cls in classes),
             ("130", "Interrupted from the keyboard."), ("141", "The reader of the output has gone.")]
    return [".SH EXIT STATUS", *items(pairs)]


def ending() -> list[str]:
    """FILES, ENVIRONMENT, SEE ALSO."""
    return [".SH FILES", *items(list(FILES)), ".SH ENVIRONMENT", quoted(ENVIRONMENT), ".SH SEE ALSO", quoted(SEE)]


def options(usage: str) -> list[tuple[str, str]]:
    """(option, meaning) of a usage text."""
    lines = usage.partition("Options:\n")[2].splitlines()
    found: list[tuple[str, str]] = []
    for line in lines:
        match = re.match(r" +(-.*?)(?:  +(.*))?$", line)
        if match:
            found.append((match[1], match[2] or ""))
        elif found and line.strip():
            found[-1] = (found[-1][0], f"{found[-1][1]} {line.strip()}".strip())
    return found


def command(row: Command) -> list[str]:
    """One command: synopsis, effect, conditions, example."""
    lines = [".TP", f".B {quoted(f'{row.name} {row.synopsis}'.rstrip())}", *map(quoted, effects(row))]
    if row.options:
        lines += [".br", quoted(f"Options: {row.options}")]
    if conditions(row):
        lines += [".br", "Conditions:", *map(quoted, conditions(row))]
    return [*lines, ".br", f"Example: {quoted(row.example)}"]


def marsadm_8() -> list[str]:
    """The page with all commands."""
    rows = marsadm.commands().values()
    page = [*header("marsadm", 8, "administration of a mars cluster"), ".SH SYNOPSIS", ".B marsadm",
            quoted("[options] COMMAND [ARGUMENT...]"), ".SH DESCRIPTION",
            quoted("RES is a resource, a comma list of resources, or `all`: every resource of this host. What fails "
                   "for one resource does not stop the others. marsadm writes wishes; marsd makes them true."),
            ".SH OPTIONS", *items(options(cli.USAGE))]
    for family, title in FAMILIES:
        family_rows = [row for row in rows if row.family == family]
        if family_rows:
            page += [f".SH {quoted(title.upper())}", *(line for row in family_rows for line in command(row))]
    return [*page, *statuses(), *ending()]


def program(name: str, short: str, usage: str, codes: list[tuple[str, str]] | None = None) -> list[str]:
    """A page from a program's usage text; `codes`: of a program that has exit statuses of its own."""
    return [*header(name, 8, short), ".SH SYNOPSIS", *verbatim(usage.partition("Usage:\n")[2].partition("\n\n")[0]),
            ".SH DESCRIPTION", *verbatim(usage.partition("\n\n")[2].partition("\n\n")[2] or usage),
            *([".SH EXIT STATUS", *items(codes)] if codes else statuses()), *ending()]


def mars_7() -> list[str]:
    """What it is, the words, the tunables."""
    glossary = (marsx.__doc__ or "").partition("use only these.\n\n")[2]
    tunables = [(tunable.name, f"{tunable.meaning} (default {tunable.default} {tunable.unit}, {tunable.low} to "
                 f"{tunable.high})".replace(" ,", ",")) for tunable in TUNABLES.values()]
    return [*header("mars", 7, "asynchronous replication of block devices through transaction logs"),
            ".SH DESCRIPTION", *verbatim(ABOUT), ".SH WORDS", *verbatim(glossary), ".SH TUNABLES",
            quoted("marsadm get-tunable, marsadm set-tunable NAME VALUE [--persist]"), *items(tunables), *ending()]


def pages() -> dict[Path, str]:
    """Every file and its text."""
    texts = {
        "docs/man/marsadm.8": marsadm_8(), "docs/man/mars.7": mars_7(),
        "docs/man/marsd.8": program("marsd", "the daemon of mars", MARSD),
        "docs/man/mars-status.8": program("mars-status", "state of a mars cluster", STATUS, STATUS_CODES),
    }
    found = {TOP / name: "\n".join(lines) + "\n" for name, lines in texts.items()}
    return {**found, TOP / "docs/completion/mars.bash": completion.script(marsadm.commands())}


def main() -> None:
    """Write what is stale, or name it."""
    stale = {path: text for path, text in pages().items()
             if not path.exists() or path.read_text(encoding="utf-8") != text}
    if sys.argv[1:] == ["--check"]:
        if stale:
            sys.exit(f"stale: {', '.join(str(path.relative_to(TOP)) for path in stale)}\n  run: make man")
        return
    for path, text in stale.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
