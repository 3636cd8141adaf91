"""Enumerated crash states of the primary and of a secondary (see `run`): rules 1 to 8, 10, 12, and 5 by turned bits."""
from __future__ import annotations

import re
import subprocess
import sys

import pytest

from tests.crash.recording import TOP

STATES = 20000


def test_no_crash_state_breaks_a_rule(capsys: pytest.CaptureFixture[str]) -> None:
    """Rules 1, 2, 3, 4, 5, 12: every state that a power cut or a kill can leave of recorded runs recovers to a prefix
    that holds what was promised. A failure prints the command that shows just that state."""
    argv = [sys.executable, "-m", "tests.crash.run", "--jobs", "2", "--states", str(STATES)]
    done = subprocess.run(argv, cwd=TOP, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stdout + done.stderr
    with capsys.disabled():
        print(f"\n{done.stdout}", end="")
    distinct, loss, starts, rot = (int(re.search(rf"(\d+) {words}", done.stdout)[1])  # type: ignore[index]
                                   for words in ("distinct states", "that lost answered", "started as a whole",
                                                 "named as damage"))
    assert distinct >= STATES
    assert loss > 100 and starts > 50 and rot > 100, "states that show nothing"
