"""Text for people: no control characters, and on a terminal no words that are torn apart."""

from __future__ import annotations

import io
import os
import pty
import struct
import termios
from fcntl import ioctl

import pytest

from marsx.base.text import folded, for_reader, printable


def test_printable() -> None:
    """Control characters are shown, what is too long is cut."""
    assert printable("a\x1b[2J\u200bb\n") == "a\\x1b[2J\\u200bb\\n" and printable("ä€") == "ä€"
    assert printable("x" * 1001) == "x" * 1000 + "..."


@pytest.mark.parametrize(("line", "expected"), [
    ("short", "short"), ("", ""),
    ("  --window=SEC   How long a peer may be quiet",
     "  --window=SEC   How long a peer may be\n                 quiet"),
    ("  --window=SECONDS             How long a peer may be",
     "  --window=SECONDS             How long\n    a peer may be"),
    ("  hint: umount it on all but one, there: marsadm secondary data",
     "  hint: umount it on all but one, there:\n        marsadm secondary data"),
    ("marsadm: data: log 9 is ahead of what is replayed", "marsadm: data: log 9 is ahead of what is\n  replayed"),
    ("    deeper lines go on two deeper than they have begun",
     "    deeper lines go on two deeper than\n      they have begun"),
    ("  " + "x" * 60, "  " + "x" * 60),
])  # fmt: skip
def test_folded(line: str, expected: str) -> None:
    """At blanks, below the second column, below the hint's text, else two deeper; a word is never torn apart."""
    assert folded(line, 40) == expected
    assert folded(f"{line}\n{line}", 40) == f"{expected}\n{expected}"


def test_only_a_terminal_folds() -> None:
    """What goes into a file or pipe is as it was."""
    text = "one two three four five six seven"
    assert for_reader(text, io.StringIO()) == text
    master, slave = pty.openpty()
    try:
        ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 20, 0, 0))
        with open(os.dup(slave), "w") as terminal:
            assert for_reader(text, terminal) == "one two three four\n  five six seven"
    finally:
        os.close(master)
        os.close(slave)
