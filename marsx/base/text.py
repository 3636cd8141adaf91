"""Text for people."""
from __future__ import annotations

import os
import re
from typing import TextIO

_COLUMN = re.compile(r" *\S+(?: \S+)* {2,}(?=\S)|  hint: ")


def printable(text: str, limit: int = 1000) -> str:
    """`text` without control characters and not longer than `limit`."""
    shown = text[:limit]
    if not shown.isprintable():
        shown = "".join(char if char.isprintable() else ascii(char)[1:-1] for char in shown)
    return shown + ("..." if len(text) > limit else "")


def folded(text: str, width: int) -> str:
    """Lines that are longer than `width` are broken at blanks. What is left of one goes on below the beginning of its
    second column if it has one (two blanks before it), else two deeper than the line."""
    lines = []
    for line in text.split("\n"):
        if len(line) <= width:
            lines.append(line)
            continue
        import textwrap

        column, own = _COLUMN.match(line), len(line) - len(line.lstrip(" "))
        indent = column.end() if column and column.end() <= width // 2 else own + 2
        lines += textwrap.wrap(line[own:], width, initial_indent=" " * own, subsequent_indent=" " * indent,
                               break_long_words=False, break_on_hyphens=False) or [line]
    return "\n".join(lines)


def for_reader(text: str, out: TextIO) -> str:
    """Folded where somebody reads it on a terminal, else as it is: scripts read lines."""
    try:
        width = os.get_terminal_size(out.fileno()).columns if out.isatty() else 0
    except (OSError, ValueError):
        width = 0
    return folded(text, max(20, width)) if width else text
