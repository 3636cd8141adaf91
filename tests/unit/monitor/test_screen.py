"""--interval: the full screen, its keys, and what it shows when there is no news; on a real pseudo terminal too."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from pathlib import Path

import pytest

from marsx.base.errors import MarsError
from marsx.monitor.screen import Screen, _split
from tests.unit.admin.small_tree import SmallTree
from tests.unit.monitor.live_tree import live_tree

TOP = Path(__file__).resolve().parents[3]


def visible(frame: str) -> list[str]:
    """Lines without control sequences."""
    return re.sub(r"\x1b\[[?0-9;]*[A-Za-z]", "", frame).split("\r\n")


def test_scrolls_and_fits() -> None:
    """Just as many lines as there are, the last one the footer; keys move within what there is."""
    screen = Screen(lambda width: [f"line {number}" for number in range(1, 101)], False, 2)
    screen.look(40)

    def top(*keys: str) -> str:
        assert all(screen.key(key) for key in keys)
        shown = visible(screen.frame(40, 10, "12:00:00"))
        assert len(shown) == 10 and "q" in shown[-1]
        return shown[0]

    assert [top(), top("j"), top("k", "k"), top(" "), top("G"), top("j"), top("g")] == [
        "line 1", "line 2", "line 1", "line 9", "line 92", "line 92", "line 1"]
    assert not screen.key("q") and not screen.key("\x03")
    assert list(_split("\x1b[B\x1b[6~jq")) == ["\x1b[B", "\x1b[6~", "j", "q"]


def test_last_column() -> None:
    """A line as wide as the terminal keeps its last sign: nothing is cleared behind it."""
    screen = Screen(lambda width: ["x" * width, "y" * (width - 1)], False, 1)
    screen.look(20)
    frame = screen.frame(20, 4, "12:00:00")
    assert "x" * 20 + "\r\n" in frame and "y" * 19 + "\x1b[K" in frame


def test_no_news() -> None:
    """What cannot be made anew stays, below a line that says why; it goes when there is news."""
    troubles = [None, MarsError("the tree is gone", "mount it"), None]

    def lines(width: int) -> list[str]:
        trouble = troubles.pop(0)
        if trouble:
            raise trouble
        return ["all is well"]

    screen = Screen(lines, False, 1)
    frames = []
    for _ in range(3):
        screen.look(80)
        frames.append(visible(screen.frame(80, 5, "12:00:00")))
    assert frames[0] == frames[2] and frames[0][0] == "all is well"
    assert frames[1][0].rstrip() == "12:00:00: no news: the tree is gone (mount it)" and frames[1][1] == "all is well"


class Terminal:
    """mars-status on a pseudo terminal."""

    def __init__(self, tree: SmallTree, *options: str, columns: int = 80, lines: int = 24) -> None:
        self.master, slave = pty.openpty()
        self._size(columns, lines)
        self.before = termios.tcgetattr(slave)
        paths = tree.paths
        command = [sys.executable, "-m", "marsx", "mars-status", *options, f"--mars-dir={paths.mars_dir}",
                   f"--run-dir={paths.run_dir}", f"--dev-dir={paths.dev_dir}", f"--etc-dir={paths.etc_dir}"]
        environment = {**os.environ, "TERM": "xterm", "PYTHONPATH": str(TOP)}
        self.process = subprocess.Popen(command, stdin=slave, stdout=slave, stderr=slave, env=environment,
                                        start_new_session=True)
        self.slave = slave
        self.text = ""

    def _size(self, columns: int, lines: int) -> None:
        fcntl.ioctl(self.master, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))

    def resize(self, columns: int, lines: int) -> None:
        """As a window manager does it."""
        self._size(columns, lines)
        self.process.send_signal(signal.SIGWINCH)

    def until(self, wanted: str) -> str:
        """What came, up to where the wanted text is in it."""
        end = time.monotonic() + 60
        while wanted not in self.text:
            assert time.monotonic() < end, f"no {wanted!r} in {self.text[-3000:]!r}"
            if select.select([self.master], [], [], 1)[0]:
                self.text += os.read(self.master, 65536).decode()
        shown, self.text = self.text, ""
        return shown

    def end(self) -> tuple[int, bool]:
        """(exit status, is the terminal as it was?)"""
        code = self.process.wait(30)
        same = termios.tcgetattr(self.slave) == self.before
        os.close(self.slave)
        os.close(self.master)
        return code, same


@pytest.fixture
def tree(tmp_path: Path) -> SmallTree:
    """This host and b, marsd is down."""
    return live_tree(tmp_path)


def test_on_a_terminal(tree: SmallTree) -> None:
    """A full screen in colours; it outlives its tree, follows the size of the window, and leaves all as it was."""
    terminal = Terminal(tree, "--interval=0.2")
    first = terminal.until("quit: q")
    assert first.startswith("\x1b[?1049h") and "UNKNOWN" in first and "\x1b[2J" not in first
    gone = tree.paths.mars_dir + "-gone"
    Path(tree.paths.mars_dir).rename(gone)
    terminal.until("no news:")
    Path(gone).rename(tree.paths.mars_dir)
    terminal.until("lines 1-23")
    terminal.resize(60, 12)
    terminal.until("lines 1-11")
    os.write(terminal.master, b"q")
    last = terminal.until("\x1b[?1049l")
    assert "\x1b[?25h" in last and terminal.end() == (0, True)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_ended_from_outside(tree: SmallTree, number: signal.Signals) -> None:
    """The terminal is as it was before, however it ends."""
    terminal = Terminal(tree, "--interval=60")
    terminal.until("quit: q")
    terminal.process.send_signal(number)
    terminal.until("\x1b[?1049l")
    assert terminal.end() == (0, True)


def test_once_on_a_terminal(tree: SmallTree) -> None:
    """Without --interval: coloured lines that fit, no full screen."""
    terminal = Terminal(tree, columns=50)
    text = terminal.until(" nodes)")
    assert "\x1b[1;35mUNKNOWN" in text and "\x1b[?1049h" not in text
    assert max(map(len, visible(text))) <= 50
    assert terminal.end()[0] == 3
