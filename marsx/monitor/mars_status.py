"""The program mars-status: read-only display of the cluster as this host knows it.

Exit status: 0 shown (also while marsd is down: the display says so), 2 command line, 3 no cluster here, 4 unknown
resource, 10 the tree cannot be read.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict

from marsx import __version__
from marsx.base.config import Paths
from marsx.base.errors import MarsError, NotFoundError, PreconditionError, UsageError
from marsx.base.lamport import Lamport
from marsx.base.messages import printable
from marsx.monitor import render, report
from marsx.tree.store import Store
from marsx.tree.view import View

USAGE = """Display of a mars cluster, read-only.

Usage:
  mars-status [options]

Options:
  --resource=RES     Only this resource.
  --interval=SEC     Show it again every SEC seconds, until Ctrl-C.
  --history          Also the versions of the logs, with check sums.
  --status           Also bars of all nodes on one scale.
  --json             The same as JSON.
  --mars-dir=DIR     Directory of the cluster's state and logs.
  --run-dir=DIR      Directory of the daemon's socket.
  --dev-dir=DIR      Directory of the devices.
  --etc-dir=DIR      Directory of configuration.
  -h, --help         Show this text.
  -v, --version      Show only who and what.

WORK: busy.  TODO: something is wrong or can be done.  HINT: somebody has to look.
"""

CLEAR = "\x1b[H\x1b[2J\x1b[3J"
PING_TIMEOUT = 2.0


def main(argv: Sequence[str]) -> int:
    """Show the cluster once or for ever; the exit status."""
    try:
        options = _options(argv)
        if options["--help"]:
            print(USAGE, end="")
            return 0
        return _run(options)
    except MarsError as error:
        hint = f"\n  hint: {printable(error.hint)}" if error.hint else ""
        print(f"mars-status: {printable(error.text)}{hint}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        return 0
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def _options(argv: Sequence[str]) -> dict[str, object]:
    from docopt import DocoptExit, docopt

    known = [word.rstrip(",").partition("=")[0] for word in USAGE.split() if word.startswith("-")]
    for word in argv:
        name = word.partition("=")[0]
        if word.startswith("-") and name not in known:
            raise UsageError(f"unknown option '{name[:80]}'", "see: mars-status --help")
    try:
        return dict(docopt(USAGE, list(argv), default_help=False))
    except DocoptExit as exc:
        raise UsageError("the command line is not understood", "see: mars-status --help") from exc


def _run(options: dict[str, object]) -> int:
    paths = Paths.of({name: value for name, value in options.items() if name.endswith("-dir") and value})
    interval = _interval(options["--interval"])
    only = str(options["--resource"] or "")
    style = render.Style(sys.stdout.isatty(), bool(options["--history"]), bool(options["--status"]))
    store = Store(paths, os.uname().nodename, Lamport(), readonly=True)
    while True:
        shown = current(paths, store, only)
        if options["--version"]:
            print("\n".join(render.head(shown)))
            return 0
        _check(shown)
        text = json.dumps(asdict(shown), indent=2) + "\n" if options["--json"] else render.text(shown, style)
        print((CLEAR if interval and style.terminal else "") + text, end="", flush=True)
        if not interval:
            return 0
        time.sleep(interval)


def _interval(text: object) -> float:
    try:
        value = float(str(text)) if text else 0.0
    except ValueError:
        value = -1.0
    if not 0 <= value < 86400 * 365 or (text and value < 0.1):
        raise UsageError(f"--interval={text}: a number of seconds is needed, 0.1 at least")
    return value


def _check(shown: report.Report) -> None:
    if not shown.uuid:
        raise PreconditionError("this host belongs to no cluster", "marsadm create-cluster, or marsadm join-cluster")
    if shown.only and not shown.resources:
        raise NotFoundError(f"unknown resource '{shown.only[:80]}'", "without --resource all are shown")


def current(paths: Paths, store: Store, only: str) -> report.Report:
    """The report of this moment."""
    store.load()
    daemon, heard = ask_daemon(paths.control_socket)
    view = View(store.entries(), heard)
    local = report.look(
        view, paths, os.uname().nodename, program=__version__, kernel=os.uname().release, daemon=daemon,
        sync_limit=_sync_limit(paths),
    )  # fmt: skip
    return report.build(view, local, time.time_ns(), only)


def _sync_limit(paths: Paths) -> int:
    try:
        with open(f"{paths.sys_dir}/sync_limit", encoding="ascii", errors="replace") as file:
            text = file.read(32).strip()
    except OSError:
        return 0
    return int(text) if text.isdigit() else 0


def ask_daemon(path: str) -> tuple[str, dict[str, float] | None]:
    """What marsd says of itself ("" when it does not run), and when it last heard each host, in seconds."""
    import socket

    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
            sock.settimeout(PING_TIMEOUT)
            sock.connect(path)
            sock.sendall(b'{"cmd":"status"}\n')
            answer = _read_answer(sock)
    except PermissionError:
        return f"marsd {__version__} (only root may ask it)", None
    except TimeoutError:
        return "marsd runs but does not answer", None
    except OSError:
        return "", None
    heard = answer.get("heard")
    if isinstance(heard, dict):
        heard = {str(host): float(age) for host, age in heard.items() if isinstance(age, int | float)}
    version = answer.get("version")
    name = f"marsd {printable(version, 40) if isinstance(version, str) else __version__}"
    return f"{name} (running)", heard if isinstance(heard, dict) else None


def _read_answer(sock: object) -> dict[str, object]:
    buffer = b""
    while b"\n" not in buffer and len(buffer) < 16 << 20:
        data = sock.recv(1 << 16)  # type: ignore[attr-defined]
        if not data:
            break
        buffer += data
    try:
        answer = json.loads(buffer.partition(b"\n")[0])
    except (ValueError, RecursionError):
        return {}
    return answer if isinstance(answer, dict) else {}
