"""--interval on a terminal: a full screen that shows the cluster again and again, and a key that ends it.

    q, Ctrl-C           end                     space, Page Down / b, Page Up    a screen on, back
    j, k, arrows        a line on, back         g, G, Home, End                  the beginning, the end

Each picture is one write over the one before, line by line, so nothing flickers; nothing is cleared in between. When a
picture cannot be made (the tree is gone, its disk fails) the last one stays, below a line that says so, and it is tried
again: a display that ends when things go wrong is of no use. The terminal is as it was before, however it ends.
"""

from __future__ import annotations

import os
import select
import signal
import sys
import termios
import time
import tty
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

from marsx.base.errors import MarsError
from marsx.base.text import printable
from marsx.monitor.layout import fitted, painted

ENTER, LEAVE = "\x1b[?1049h\x1b[?25l\x1b[?7l", "\x1b[?7h\x1b[?25h\x1b[?1049l"
HOME, REST_OF_LINE = "\x1b[H", "\x1b[K"
BEGIN, END = "\x1b[?2026h", "\x1b[?2026l"
"""A terminal that knows it shows what is between as one picture."""
INVERSE, PLAIN = "\x1b[7m", "\x1b[0m"

Lines = Callable[[int], list[str]]
"""The picture as lines for a width; MarsError where there is none."""

KEYS = {"j": 1, "\x1b[B": 1, "\x1bOB": 1, "k": -1, "\x1b[A": -1, "\x1bOA": -1}
PAGES = {" ": 1, "\x1b[6~": 1, "\x06": 1, "b": -1, "\x1b[5~": -1, "\x02": -1}
ENDS = {"g": 0, "\x1b[H": 0, "\x1b[1~": 0, "G": 1 << 30, "\x1b[F": 1 << 30, "\x1b[4~": 1 << 30}


class Screen:
    """What is shown, and from which line on. Knows no terminal: `frame` is a text, `key` a decision."""

    def __init__(self, lines: Lines, colours: bool, every: float) -> None:
        self._lines, self._colours, self._every = lines, colours, every
        self._last: list[str] = []
        self._width = 0
        self.trouble = ""
        self.top = 0
        self._height = 0

    def look(self, width: int) -> None:
        """Make the picture anew; what cannot be made leaves the last one."""
        try:
            self._last, self.trouble = self._lines(width), ""
        except MarsError as err:
            self.trouble = f"{err.text} ({err.hint})" if err.hint else err.text
        except OSError as err:
            self.trouble = str(err)
        self._width = width

    def key(self, key: str) -> bool:
        """Take a key; False: that is the end."""
        if key in ("q", "Q", "\x03", "\x04"):
            return False
        if key in ENDS:
            self.top = ENDS[key]
        else:
            self.top += KEYS.get(key, 0) + PAGES.get(key, 0) * max(1, self._height - 2)
        return True

    def frame(self, width: int, height: int, clock: str) -> str:
        """The whole screen as one text to write."""
        lines = list(fitted(self._last, width))
        room = max(1, height - 1 - bool(self.trouble))
        self._height = height
        self.top = max(0, min(self.top, len(lines) - room))
        shown = lines[self.top : self.top + room]
        # In the last column clearing the rest of the line would take the sign that was just written.
        ends = [REST_OF_LINE if len(line) < width else "" for line in shown]
        if self._colours:
            shown = list(painted(shown))
        shown = [line + end for line, end in zip(shown, ends, strict=True)]
        if self.trouble:
            warning = f"{clock}: no news: {printable(self.trouble)}"[:width]
            shown.insert(0, f"{INVERSE}{warning:{width}}{PLAIN}" if self._colours else f"{warning:{width}}")
        footer = self._footer(len(lines), room, clock)[:width]
        body = "".join(f"{line}\r\n" for line in shown)
        foot = f"{INVERSE}{footer:{width}}{PLAIN}" if self._colours else f"{footer:{width}}"
        gap = max(0, height - 1 - len(shown))
        return f"{BEGIN}{HOME}{body}{(REST_OF_LINE + chr(13) + chr(10)) * gap}{foot}{END}"

    def _footer(self, count: int, room: int, clock: str) -> str:
        last = min(count, self.top + room)
        part = f"  lines {self.top + 1}-{last} of {count}, scroll: arrows, space, b" if count > room else ""
        return f" {clock}  every {self._every:g} s  quit: q{part}"


def show(lines: Lines, every: float, colours: bool) -> None:
    """Until q or Ctrl-C."""
    screen = Screen(lines, colours, every)
    with _terminal() as (keys, wakeup):
        while _round(screen, every, keys, wakeup):
            pass


def _round(screen: Screen, every: float, keys: int, wakeup: int) -> bool:
    """One look, and what is pressed until the next; False at the end."""
    width, height = _size()
    screen.look(width)
    _write(screen.frame(width, height, time.strftime("%H:%M:%S")))
    until = time.monotonic() + every
    while (left := until - time.monotonic()) > 0:
        ready = select.select([fd for fd in (keys, wakeup) if fd >= 0], [], [], left)[0]
        if wakeup in ready and (signals := os.read(wakeup, 64)):
            if any(number != signal.SIGWINCH for number in signals):
                return False
            if _size()[0] != width:
                return True  # another width is another picture
        if keys in ready:
            pressed = os.read(keys, 64).decode("ascii", "replace")
            if not pressed or not all(screen.key(key) for key in _split(pressed)):
                return False
        if ready:
            width, height = _size()
            _write(screen.frame(width, height, time.strftime("%H:%M:%S")))
    return True


def _split(pressed: str) -> Iterator[str]:
    """Keys out of what was read: an escape sequence is one."""
    rest = pressed
    while rest:
        known = next((key for key in (*KEYS, *PAGES, *ENDS) if len(key) > 1 and rest.startswith(key)), rest[0])
        yield known
        rest = rest[len(known) :]


def _size() -> tuple[int, int]:
    try:
        size = os.get_terminal_size(sys.stdout.fileno())
    except OSError:
        return 80, 24
    return max(20, size.columns or 80), max(3, size.lines or 24)


def _write(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()


@contextmanager
def _terminal() -> Iterator[tuple[int, int]]:
    """(descriptor of the keys or -1, descriptor that tells of signals); all is undone at the end."""
    keys = sys.stdin.fileno() if sys.stdin and sys.stdin.isatty() else -1
    reading, writing = os.pipe()
    os.set_blocking(reading, False)
    os.set_blocking(writing, False)
    before: Any = termios.tcgetattr(keys) if keys >= 0 else None
    numbers = (signal.SIGWINCH, signal.SIGTERM, signal.SIGHUP, signal.SIGINT)
    old = {number: signal.signal(number, lambda *_: None) for number in numbers}
    woken = signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    try:
        if keys >= 0:
            tty.setcbreak(keys)
        _write(ENTER)
        yield keys, reading
    finally:
        with suppress(OSError):
            _write(LEAVE)
        if before is not None:
            with suppress(termios.error):
                termios.tcsetattr(keys, termios.TCSADRAIN, before)
        signal.set_wakeup_fd(woken)
        for number, handler in old.items():
            signal.signal(number, handler)
        os.close(reading)
        os.close(writing)
