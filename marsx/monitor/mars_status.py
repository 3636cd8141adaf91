"""The program mars-status: read-only display of the cluster as this host knows it, and a check for monitoring.

Exit status: 0 all is well, 1 a warning or work beyond a limit, 2 critical (replication stopped, split brain, emergency,
a dead peer), 3 not known: marsd is down, no cluster, no such resource, the tree cannot be read, the command line is
wrong. The first line names the worst. What runs until it is stopped (--interval, --events) ends with 0.
"""

from __future__ import annotations

import gc
import os
import re
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from marsx import __version__
from marsx.base.config import Paths
from marsx.base.errors import MarsError, NotFoundError, UsageError
from marsx.base.lamport import Lamport
from marsx.base.text import for_reader, printable
from marsx.monitor import render, seen
from marsx.monitor.limits import Limits, parse
from marsx.monitor.picture import picture
from marsx.tree.store import Store
from marsx.tree.view import View

USAGE = """Display of a mars cluster, read-only.

Usage:
  mars-status [options]

What is shown:
  --resource=RES     Only this resource.
  --history          Also the versions of the logs: check sums, sizes, who has what, what hinders deletion.
  --status           Also bars of all nodes on one scale: disk, sync, fetch, replay.
  --system           Also the tunables of this host: set value, actual value.
  --debug            Also the last errors and warnings of marsd.

How:
  --interval=SEC     Show it again every SEC seconds; full screen on a terminal, q ends it.
  --json             As one structure, documented and versioned.
  --events           One line of JSON for each change, until it is stopped.
  --nagios           As a plugin of Nagios and Icinga, with performance data.
  --ascii            Bars and lines of plain signs.

For monitoring systems, each alone (ends with 0 where it could be told):
  --prometheus       All metrics, for the textfile collector of the node exporter.
  --zabbix=WORDS     A value for the Zabbix agent.
  --print-template=NAME   Alert rules, dashboard, templates out of this program; NAME = list: which there are.

From when on it is a warning, or critical (WARN, or WARN,CRIT; off: never):
  --lag=LIMITS       Age of what a replica lacks [default: 60,600] seconds, or 5m, 1h.
  --rest=LIMITS      Bytes that a replica lacks [default: 4G], as in 500M,10G.
  --space=LIMITS     Percent of /mars that are free [default: off], as in 20,10.
  --peer=LIMITS      Seconds since a host was heard of [default: 30,120].

  --mars-dir=DIR     Directory of the cluster's state and logs.
  --run-dir=DIR      Directory of the daemon's socket.
  --dev-dir=DIR      Directory of the devices.
  --etc-dir=DIR      Directory of configuration.
  -h, --help         Show this text.
  -v, --version      Show only who and what.

WORK: busy.  TODO: something is wrong or can be done.  HINT: somebody has to look.  ==> what to do.
Exit status: 0 well, 1 warning, 2 critical, 3 not known (marsd is down, no cluster, no such resource).
"""

LIMITS = ("lag", "rest", "space", "peer")
FEEDS = ("--prometheus", "--zabbix", "--print-template")
UNKNOWN = 3
WIDTH = 100

Options = dict[str, Any]
Dict = dict[str, Any]


def main(argv: Sequence[str]) -> int:
    """Show the cluster once or for ever; the exit status."""
    gc.disable()  # a call makes one large picture and ends: looking for cycles in it would take a tenth of its time
    try:
        if any(word.partition("=")[0] in FEEDS for word in argv):
            from marsx.monitor import feeds

            return feeds.main(argv)
        options = _options(argv)
        if options["--help"]:
            print(for_reader(USAGE, sys.stdout), end="")
            return 0
        return _run(options)
    except MarsError as error:
        return _unknown(error, "--nagios" in argv)
    except KeyboardInterrupt:
        return 0
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def _unknown(error: MarsError, for_nagios: bool) -> int:
    """There is nothing to show: why not, where who called looks for it."""
    if for_nagios:
        from marsx.monitor.nagios import unknown

        print(unknown(printable(error.text)), end="")
    else:
        hint = f"\n  hint: {printable(error.hint)}" if error.hint else ""
        print(for_reader(f"mars-status: {printable(error.text)}{hint}", sys.stderr), file=sys.stderr)
    return UNKNOWN


def defaults() -> Options:
    """What docopt says where no option is given."""
    found = re.findall(r"^  (?:-., )?(--[a-z-]+)(=?)(?:.*\[default: (.*)\])?", USAGE, re.MULTILINE)
    return {name: default or (None if takes_value else False) for name, takes_value, default in found}


def _options(argv: Sequence[str]) -> Options:
    if not argv:
        return defaults()
    from docopt import DocoptExit, docopt

    known = [word.rstrip(",").partition("=")[0] for word in USAGE.split() if word.startswith("-")]
    for word in argv:
        name = word.partition("=")[0]
        if word.startswith("-") and name not in known:
            raise UsageError(f"unknown option '{name[:80]}'", "see: mars-status --help")
    try:
        options = dict(docopt(USAGE, list(argv), default_help=False))
    except DocoptExit as exc:
        raise UsageError("the command line is not understood", "see: mars-status --help") from exc
    formats = [name for name in ("--json", "--events", "--nagios") if options[name]]
    if len(formats) > 1 or (options["--interval"] and formats and formats != ["--json"]):
        both = [*formats, *(["--interval"] if options["--interval"] else [])]
        raise UsageError(f"{' and '.join(both)} do not go together", "see: mars-status --help")
    return options


class Program:
    """One call: options, paths, limits, and the tree that is read again and again."""

    def __init__(self, options: Options) -> None:
        self.options = options
        self.paths = Paths.of({name: value for name, value in options.items() if name.endswith("-dir") and value})
        self.limits = Limits(**{name: parse(name, options[f"--{name}"]) for name in LIMITS})
        self.only = str(options["--resource"] or "")
        self._store: Store | None = None

    def picture(self, names: list[str] | None = None) -> Dict:
        """The picture of this moment; `names`: only these entries may have changed since the last one."""
        view, daemon = self._view(names)
        host = os.uname().nodename
        if self.only and self.only not in view.resources:
            raise NotFoundError(f"unknown resource '{self.only[:80]}'", "without --resource all are shown")
        known = seen.look(view, self.paths, host, daemon, self.only)
        found = picture(view, time.time_ns(), known, self.limits, self.only)
        self._add(found, view, known)
        return found

    def _view(self, names: list[str] | None) -> tuple[View, seen.Daemon]:
        try:
            if self._store is None:
                self._store = Store(self.paths, os.uname().nodename, Lamport(), readonly=True)
                self._store.load()
            elif names is None:
                self._store.load()
            else:
                self._store.reread(names)
        except (MarsError, OSError):
            self._store = None  # another directory may be mounted there by the next look
            raise
        daemon = seen.ask_daemon(self.paths.control_socket)
        return View(self._store.snapshot(), daemon.heard), daemon

    def _add(self, found: Dict, view: View, known: seen.Seen) -> None:
        """What options add."""
        if self.options["--history"]:
            from marsx.monitor.history import history

            for name, resource in found["resources"].items():
                resource["history"] = history(view, known, name, resource)
        if self.options["--system"] or self.options["--debug"]:
            from marsx.monitor import extras

            if self.options["--system"]:
                extras.add_system(found, self.paths)
            if self.options["--debug"]:
                extras.add_debug(found, self.paths)

    def lines(self, found: Dict, width: int) -> Iterator[str]:
        """A picture as lines of any length."""
        plain = bool(self.options["--ascii"]) or not _can_show(sys.stdout.encoding)
        style = render.Style(
            sys.stdout.isatty(), bool(self.options["--history"]), bool(self.options["--status"]), plain, width
        )
        return render.lines(found, style)


def _can_show(encoding: str | None) -> bool:
    try:
        "║╠═█░│─".encode(encoding or "ascii")
    except (UnicodeEncodeError, LookupError):
        return False
    return True


def _run(options: Options) -> int:
    program = Program(options)
    every = _interval(options["--interval"])
    if options["--version"]:
        daemon = seen.ask_daemon(program.paths.control_socket)
        who = {"host": os.uname().nodename, "program": __version__, "kernel": os.uname().release, "only": ""}
        print("\n".join(render.head({**who, "daemon": {"text": str(daemon)}}, worst="")))
        return 0
    if options["--events"] or every:
        gc.enable()
    if options["--events"]:
        from marsx.monitor.events import follow

        follow(program.paths.mars_dir, program.picture, _say)
    if every:
        return _repeat(program, every)
    found = program.picture()
    if options["--json"]:
        import json

        print(json.dumps(found, indent=2))
    elif options["--nagios"]:
        from marsx.monitor.nagios import text

        print(text(found, program.limits), end="")
    else:
        _show(program, found)
    return int(found["level"])


def _say(line: str) -> None:
    print(line, flush=True)


def _interval(text: object) -> float:
    try:
        value = float(str(text)) if text else 0.0
    except ValueError:
        value = -1.0
    if not 0 <= value < 86400 * 365 or (text and value < 0.1):
        raise UsageError(f"--interval={text}: a number of seconds is needed, 0.1 at least")
    return value


def _has_colours() -> bool:
    return sys.stdout.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM", "dumb") != "dumb"


def _show(program: Program, found: Dict) -> None:
    """Once: on a terminal as wide as that is, else in lines of any length."""
    if not sys.stdout.isatty():
        print("\n".join(program.lines(found, WIDTH)), flush=True)
        return
    from marsx.monitor.layout import fitted, painted

    width = max(20, os.get_terminal_size(sys.stdout.fileno()).columns or WIDTH)
    lines: Iterable[str] = fitted(program.lines(found, width), width)
    print("\n".join(painted(lines) if _has_colours() else lines), flush=True)


def _repeat(program: Program, every: float) -> int:
    """Again and again: a full screen, or pages one below the other where that cannot be."""
    if not program.options["--json"] and sys.stdout.isatty() and os.environ.get("TERM", "dumb") != "dumb":
        from marsx.monitor.screen import show

        show(lambda width: list(program.lines(program.picture(), width)), every, _has_colours())
        return 0
    import json

    while True:
        try:
            found = program.picture()
        except MarsError as err:
            found = None
            print(f"mars-status: {printable(err.text)}", file=sys.stderr, flush=True)
        if found and program.options["--json"]:
            _say(json.dumps(found))
        elif found:
            _show(program, found)
        time.sleep(every)
