"""Lines for a terminal: wrapped at blanks to its width, cut where one word is too long, with colours.

A line is plain text until here, so that its length is what it takes; colours are put on last. What is broken goes on
below the text, not below the margin. Tabs end at every eighth column.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

RESET = "\x1b[0m"
COLOURS = {"TODO": "\x1b[1;31m", "HINT": "\x1b[1;33m", "WORK": "\x1b[36m", "CRITICAL": "\x1b[1;31m",
           "WARNING": "\x1b[1;33m", "UNKNOWN": "\x1b[1;35m", "OK": "\x1b[1;32m"}
BOLD = "\x1b[1m"

_HEAD = re.compile(r"(MARS Status - .*?: )(OK|WARNING|CRITICAL|UNKNOWN)(.*)", re.DOTALL)
_TAG = re.compile(r"([\s║|]*(?:-{1,4}>|╠═══>|\|----->) )(WORK|TODO|HINT)(: )(.*)", re.DOTALL)
_BEGIN = re.compile(r"\s*(?:[║|]\s+)?(?:(?:-{1,4}>|╠═══>|\|----->) (?:(?:WORK|TODO|HINT): )?|[A-Z][a-z]+ *: )?")
HANG_MAX = 24
COMMA_FROM = 0.6
EDGES = "║|"


def fitted(lines: Iterable[str], width: int) -> Iterator[str]:
    """The same lines, none longer than `width`."""
    for line in lines:
        plain = line.expandtabs()
        if len(plain) <= width:
            yield plain
        else:
            yield from _broken(plain, width)


def _broken(line: str, width: int) -> Iterator[str]:
    hang = _hang(line, width)
    advice = line.find(" ==> ")
    if advice > 0 and len(line) - advice + len(hang) <= width + 1:
        yield from _broken(line[:advice], width) if advice > width else [line[:advice]]
        yield hang + line[advice + 1 :]
        return
    while len(line) > width:
        cut = _cut(line, len(hang) + 1, width)
        yield line[:cut].rstrip()
        line = hang + line[cut:].lstrip()
    yield line


def _hang(line: str, width: int) -> str:
    """What stands before the rest of a broken line: blanks, and the edge of the history."""
    begin = _BEGIN.match(line)
    head = line[: begin.end()] if begin else ""
    return "".join(char if char in EDGES else " " for char in head[: min(HANG_MAX, width // 3)])


def _cut(line: str, least: int, width: int) -> int:
    """Where to break: behind a comma if that does not waste much, else at a blank, else in the word."""
    comma = line.rfind(", ", least, width) + 1
    blank = line.rfind(" ", least, width + 1)
    return comma if comma > width * COMMA_FROM else blank if blank >= least else width


def painted(lines: Iterable[str]) -> Iterator[str]:
    """The same lines with colours: tags, the worst in the first line, and the beginnings of resources in bold. A line
    that was broken keeps the colour of its tag only where the tag stands."""
    for line in lines:
        head, tag = _HEAD.fullmatch(line), _TAG.fullmatch(line)
        if head:
            yield f"{BOLD}{head[1]}{COLOURS[head[2]]}{head[2]}{head[3]}{RESET}"
        elif tag:
            yield f"{tag[1]}{COLOURS[tag[2]]}{tag[2]}{RESET}{tag[3]}{tag[4]}"
        elif line.startswith("-> check resource "):
            yield f"{BOLD}{line}{RESET}"
        elif " Node (" in line and line.endswith("!!!"):
            place, _, state = line.rpartition(", System unknown")
            yield f"{place}, {COLOURS['TODO']}System unknown{state}{RESET}"
        else:
            yield line
