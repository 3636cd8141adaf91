"""Lists the plugins (every tests/fix_*.py), remembers a run that died, keeps parallel workers out of each other's way.
Nothing else belongs here.

A run that ends by a signal (a crash in an extension, kill -9) leaves a note with the name of the test it was in; the
next run says so on top, because "no failures reported" is no success then.
"""
from __future__ import annotations

import ctypes
import os
import signal
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent

pytest_plugins = [f"tests.{path.stem}" for path in sorted(HERE.glob("fix_*.py"))]


def _notes(config: pytest.Config) -> Path | None:
    cache = getattr(config, "cache", None)
    return Path(cache.mkdir("marsx-running")) if cache else None


def _is_alive(note: Path) -> bool:
    return note.name.isdigit() and os.path.exists(f"/proc/{note.name}")


def pytest_report_header(config: pytest.Config) -> list[str]:
    """Runs that died since."""
    notes = _notes(config)
    lines = []
    for note in sorted(notes.iterdir()) if notes else []:
        if not _is_alive(note):
            lines.append(f"an earlier run DIED (crash or kill) in: {note.read_text() or 'start or end'}")
            note.unlink(missing_ok=True)
    if notes:
        (notes / str(os.getpid())).write_text("")
    return lines


def pytest_runtest_setup() -> None:
    """Programs under test set a umask of their own, for themselves."""
    os.umask(0o022)


def pytest_runtest_logstart(nodeid: str) -> None:
    """The test that runs now."""
    if _current is not None and _current.exists():
        _current.write_text(nodeid)


def pytest_configure(config: pytest.Config) -> None:
    """Where this run's note is. A worker of a parallel run has one of its own."""
    global _current
    # Who starts us in the background of a script may have Ctrl-C ignored, and what we start would inherit that.
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    notes = _notes(config)
    _current = notes / str(os.getpid()) if notes else None
    if hasattr(config, "workerinput"):
        if _current is not None:
            _current.write_text("")
        _own_mounts()


def _own_mounts() -> None:
    """A mount of one worker must not be held by the name spaces that another one makes meanwhile."""
    libc = ctypes.CDLL(None, use_errno=True)
    new_namespace, recursive, private = 0x20000, 0x4000, 0x40000
    if os.geteuid() == 0 and libc.unshare(new_namespace) == 0:
        if libc.mount(b"none", b"/", None, recursive | private, None):
            raise OSError(ctypes.get_errno(), "the mounts of this worker cannot be made private")


def pytest_unconfigure(config: pytest.Config) -> None:
    """This run came to its end."""
    if _current is not None:
        _current.unlink(missing_ok=True)


_current: Path | None = None
