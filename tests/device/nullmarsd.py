"""marsd whose worker is nullworker.py: the real command, keeper and front end with a stand-in behind them.

    NULL_LIBRARY=... NULL_SOCKET=... NULL_BACKING=... nullmarsd.py start|run|stop|status [options]
"""
from __future__ import annotations

import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from marsx import __main__ as door  # noqa: E402
from marsx.base.config import Paths  # noqa: E402
from marsx.daemon import marsd  # noqa: E402


def worker_command(_: Paths) -> list[str]:
    """Instead of the real worker."""
    if os.environ.get("NULL_COMMAND"):
        return ["/bin/sh", "-c", os.environ["NULL_COMMAND"], "worker"]
    names = ("NULL_LIBRARY", "NULL_SOCKET", "NULL_BACKING")
    return [sys.executable, str(Path(__file__).with_name("nullworker.py")), *(os.environ[name] for name in names)]


marsd.worker_command = worker_command
sys.exit(door.main(["marsd", *sys.argv[1:]]))
