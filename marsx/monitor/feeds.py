"""What mars-status prints for monitoring systems: `--prometheus`, `--zabbix=WORDS`, `--print-template=NAME`.

Exit status: 0 printed (whatever the cluster is like: that is in the values), 3 nothing could be told.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence

from marsx.base.config import Paths, Settings
from marsx.base.errors import UsageError
from marsx.base.lamport import Lamport
from marsx.monitor import prometheus, seen, templates, zabbix
from marsx.monitor.picture import picture
from marsx.tree.store import Store
from marsx.tree.view import View

OPTIONS = ("--prometheus", "--zabbix", "--print-template")


def main(argv: Sequence[str]) -> int:
    """Print one of them; MarsError."""
    given: dict[str, str] = {}
    for word in argv:
        name, _, value = word.partition("=")
        if name not in (*OPTIONS, "--mars-dir", "--run-dir", "--dev-dir", "--etc-dir") or (
                bool(value) == (name == "--prometheus")):
            raise UsageError(f"{word[:80]!r} does not go with {' or '.join(OPTIONS)}", "see: mars-status --help")
        given[name] = value
    chosen = [name for name in OPTIONS if name in given]
    if len(chosen) != 1:
        raise UsageError(f"{' and '.join(chosen)} do not go together", "see: mars-status --help")
    print(_text(chosen[0], given[chosen[0]], Paths.of({k: v for k, v in given.items() if k.endswith("-dir")})), end="")
    return 0


def _text(option: str, value: str, paths: Paths) -> str:
    if option == "--print-template":
        if value == "list":
            return "".join(f"{name:28} {what}\n" for name, what in templates.TEMPLATES.items())
        return templates.text(value)
    host = os.uname().nodename
    store = Store(paths, host, Lamport(), readonly=True)
    store.load()
    daemon = seen.ask_daemon(paths.control_socket)
    view = View(store.entries(), daemon.heard)
    found = picture(view, time.time_ns(), seen.look(view, paths, host, daemon))
    if option == "--prometheus":
        return prometheus.text(found, daemon.live)
    return zabbix.value(value, found, daemon.live, Settings(paths).get) + "\n"
