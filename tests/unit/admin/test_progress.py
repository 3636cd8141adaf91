"""What a waiting command shows: one line that is written over on a terminal, one line a change elsewhere."""

from __future__ import annotations

import io

import pytest

from marsx.admin.cli import Options
from marsx.admin.context import Context
from marsx.base.config import Paths


class Terminal(io.StringIO):
    """Somebody looks."""

    def isatty(self) -> bool:
        return True


def context(err: io.StringIO) -> Context:
    return Context(Paths(), "a", Options(), out=io.StringIO(), err=err)


def test_elsewhere() -> None:
    """The same text is not said twice."""
    err = io.StringIO()
    ctx = context(err)
    for text in ("one", "one", "two", ""):
        ctx.progress(text)
    assert err.getvalue() == "  waiting: one\n  waiting: two\n"


def test_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """One line, not longer than the terminal, gone before anything else is said; no control characters of others."""
    monkeypatch.setenv("COLUMNS", "40")
    err = Terminal()
    ctx = context(err)
    ctx.progress("x\x1b[2J" + "y" * 100)
    shown = err.getvalue()
    assert shown.startswith("\r  waiting: x\\x1b") and shown.endswith("\x1b[K") and len(shown) == 1 + 39 + 3
    ctx.note("done")
    assert err.getvalue()[len(shown):] == "\r\x1b[Kdone\n"
    ctx.progress("")
    assert err.getvalue().endswith("done\n")
