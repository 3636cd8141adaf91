"""Cuts a macro text into nodes: literal text, `%name{arg}{arg}...`, `%{variable}{...}` and escapes.

An argument is the text between balanced braces; `\\{` and `\\}` do not count. It is cut when it is first needed, so
nothing here recurses, however deep a text is nested. A `%` that begins nothing is itself.
"""

from __future__ import annotations

import re
from functools import lru_cache

from marsx.base.errors import UsageError

TEXT_MAX = 1 << 16

_TOKEN = re.compile(
    r"\\(?P<escape>.)|%(?P<name>[A-Za-z][-A-Za-z0-9_]*|<<|>>|<=|>=|==|!=|&&|\|\||[-+*/%&|^<>!~])?(?P<open>\{)",
    re.DOTALL,
)
_BRACE = re.compile(r"\\.|[{}]", re.DOTALL)
_ESCAPES = {"n": "\n", "t": "\t", "r": "\r", "f": "\f", "b": "\b", "a": "\a", "e": "\x1b"}


class Call:
    """`%name{arg}...`; the name of a variable's node is "", its first argument is the variable."""

    __slots__ = ("name", "args")

    def __init__(self, name: str, args: tuple[str, ...]) -> None:
        self.name, self.args = name, args


Nodes = tuple["str | Call", ...]


@lru_cache(maxsize=2048)
def parse(text: str) -> Nodes:
    """The nodes of a text; UsageError when a brace is not closed or the text is too long."""
    if len(text) > TEXT_MAX:
        raise UsageError(f"the macro text is longer than {TEXT_MAX} characters", "cut it into several macros")
    nodes: list[str | Call] = []
    place = 0
    while match := _TOKEN.search(text, place):
        if match.start() > place:
            nodes.append(text[place : match.start()])
        if match["open"]:
            args, place = _arguments(text, match.start("open"))
            nodes.append(Call(match["name"] or "", args))
        else:
            nodes.append(_ESCAPES.get(match["escape"], match["escape"]))
            place = match.end()
    if place < len(text):
        nodes.append(text[place:])
    return tuple(nodes)


def _arguments(text: str, place: int) -> tuple[tuple[str, ...], int]:
    """The arguments that begin at the brace at `place`, and what comes behind the last."""
    args = []
    while text.startswith("{", place):
        end = _closing(text, place)
        args.append(text[place + 1 : end])
        place = end + 1
    return tuple(args), place


def _closing(text: str, place: int) -> int:
    depth = 0
    for match in _BRACE.finditer(text, place):
        if match[0] == "{":
            depth += 1
        elif match[0] == "}":
            depth -= 1
            if not depth:
                return match.start()
    shown = text[max(0, place - 20) : place + 20]
    raise UsageError(f"macro text: a '{{' is not closed: ...{shown}...", "each { needs its }; write \\{ for the sign")


_COMMENTS = re.compile(r"/\*.*?\*/|^[ \t]*(?:#|//)[^\n]*(?:\n|\Z)", re.DOTALL | re.MULTILINE)


def without_comments(text: str) -> str:
    """The text of a NAME.tpl file: no `/* */`, no lines that begin with # or //, lines that end with a backslash joined
    to the next, and without the newline at the file's end."""
    return _COMMENTS.sub("", text).replace("\\\n", "").removesuffix("\n")
