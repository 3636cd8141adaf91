"""A test run that was killed is not forgotten."""
from __future__ import annotations

from pathlib import Path

import pytest

pytest_plugins = ["pytester"]

CASES = """
import os, signal

def test_dies():
    if os.environ.get("DIE"):
        os.kill(os.getpid(), signal.SIGSEGV)
"""


def test_crash_is_reported_once(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    """The run after a crash names the test; the one after that is quiet again."""
    tests = pytester.mkdir("tests")
    (tests / "conftest.py").write_text((Path(__file__).parents[1] / "conftest.py").read_text())
    (tests / "test_it.py").write_text(CASES)
    monkeypatch.setenv("DIE", "1")
    assert pytester.runpytest_subprocess("tests").ret not in (0, 1)
    monkeypatch.delenv("DIE")
    second = pytester.runpytest_subprocess("tests")
    second.stdout.fnmatch_lines(["an earlier run DIED (crash or kill) in: tests/test_it.py::test_dies"])
    assert second.ret == 0
    assert "DIED" not in pytester.runpytest_subprocess("tests").stdout.str()
