"""What the program tells people: stderr, `run_dir/marsd.log`, syslog where there is one.

Everyone writes through `get("room.module")`, a child of the logger "marsx"; tests watch that logger. Only the programs
call `setup`. Promise: telling never blocks the caller on another program and never raises: a full disk or a dead
syslog loses the message, not the daemon. Text of a peer or a file reaches people without control characters.
"""
from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable
from contextlib import suppress

from marsx.base.text import printable as printable

LEVELS = {"error": logging.ERROR, "warning": logging.WARNING, "info": logging.INFO, "debug": logging.DEBUG}
FILE_BYTES_MAX = 4 << 20
SYSLOG_SOCKET = "/dev/log"

_FORMAT = "%(asctime)s.%(msecs)03d %(levelname)s %(name)s: %(message)s"
_DATE = "%Y-%m-%dT%H:%M:%S"
_installed: list[logging.Handler] = []


def get(name: str) -> logging.Logger:
    """The logger of one module, named without `marsx.`: get("daemon.worker")."""
    return logging.getLogger(f"marsx.{name}")


class _Formatter(logging.Formatter):
    """One message is one line, except for a traceback below it."""

    def formatMessage(self, record: logging.LogRecord) -> str:
        record.message = printable(record.message, 4000)
        return super().formatMessage(record)


class _Stderr(logging.StreamHandler):
    """Follows sys.stderr when it is replaced, and drops what cannot be written."""

    def emit(self, record: logging.LogRecord) -> None:
        self.stream = sys.stderr
        super().emit(record)

    def handleError(self, record: logging.LogRecord) -> None:
        """A message that cannot be told is lost (see the module)."""


def _file_handler(path: str) -> logging.Handler:
    from logging.handlers import RotatingFileHandler

    class File(RotatingFileHandler):
        """Own file, mode 0600, one older part beside it: bounded, because the run directory is memory."""

        def _open(self):  # type: ignore[no-untyped-def]
            flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
            return open(os.open(self.baseFilename, flags, 0o600), "a", encoding="utf-8")

        def handleError(self, record: logging.LogRecord) -> None:
            """Lost, see the module."""

    return File(path, maxBytes=FILE_BYTES_MAX, backupCount=1, encoding="utf-8")


class _Syslog(logging.Handler):
    """Datagrams to the local syslog. One that does not read loses messages; it never makes us wait."""

    PRIORITIES = ((logging.ERROR, 3), (logging.WARNING, 4), (logging.INFO, 6), (0, 7))
    DAEMON = 3 << 3

    def __init__(self, program: str) -> None:
        super().__init__()
        import socket

        self._program = program
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)

    def emit(self, record: logging.LogRecord) -> None:
        """Send, or lose it (see the module)."""
        priority = self.DAEMON + next(number for level, number in self.PRIORITIES if record.levelno >= level)
        with suppress(Exception):
            text = f"<{priority}>{self._program}[{os.getpid()}]: {self.format(record)}"
            self._socket.sendto(text.encode("utf-8", "backslashreplace"), SYSLOG_SOCKET)

    def close(self) -> None:
        self._socket.close()
        super().close()


def setup(program: str, *, level: str = "info", stderr: bool = True, file: str = "", syslog: bool = False) -> None:
    """Send the messages of this process to the wanted places; a second call replaces the places of the first."""
    root = logging.getLogger("marsx")
    while _installed:
        old = _installed.pop()
        root.removeHandler(old)
        old.close()
    handlers: list[logging.Handler] = []
    if file:
        handlers.append(_file_handler(file))
        handlers[-1].setFormatter(_Formatter(_FORMAT, _DATE))
    if stderr:
        handlers.append(_Stderr())
        handlers[-1].setFormatter(_Formatter(f"{program}: %(levelname)s %(message)s"))
    if syslog and os.path.exists(SYSLOG_SOCKET):
        handlers.append(_Syslog(program))
        handlers[-1].setFormatter(_Formatter("%(levelname)s %(name)s: %(message)s"))
    for handler in handlers or [logging.NullHandler()]:
        _installed.append(handler)
        root.addHandler(handler)
    root.setLevel(LEVELS[level])
    root.propagate = False


class Throttle:
    """Tells whether a repeated message is due: once per key and period. The number of keys is bounded."""

    KEYS_MAX = 1000

    def __init__(self, every_s: float, clock: Callable[[], float]) -> None:
        self._every_s = every_s
        self._clock = clock
        self._told: dict[str, float] = {}

    def due(self, key: str) -> bool:
        """True when `key` was not told within the period; then it counts as told now."""
        now = self._clock()
        if key in self._told and now - self._told[key] < self._every_s:
            return False
        if len(self._told) >= self.KEYS_MAX:
            self._told.clear()
        self._told[key] = now
        return True
