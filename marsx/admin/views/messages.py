"""What marsd says: the msg-* entries of the tree, and lines of its own messages file.

`all` is every entry, `the` those that stand (not `OK`); `err`, `wrn`, `inf` one kind; `global` what a host says of
itself; `pretty` writes time stamps as dates. The original kept errors back for a while as perhaps transient; what marsd
says here it means, so nothing is kept back.
"""

from __future__ import annotations

import re
import time
from functools import partial
from typing import Any

from marsx.admin.views.look import Look
from marsx.admin.views.table import Value

CLASSES = ("", "err", "wrn", "inf")
TAIL = 1 << 18
"""How much of the end of the messages file is read."""

_STAMP = re.compile(r"(?<![0-9])([0-9]{9,12})\.([0-9]{9})(?![0-9])")
_LINE = re.compile(r"([0-9T:-]{19})\.[0-9]{3} ([A-Z]+) \S+ (.*)", re.DOTALL)
_WORD = re.compile(r"[A-Za-z0-9_][-A-Za-z0-9_]*")
LEVELS = {"fat": ("CRITICAL",), "err": ("ERROR",), "wrn": ("WARNING",)}


def pretty(text: str) -> str:
    """Stamps `SECONDS.NANOSECONDS` as local date and time."""

    def date(match: re.Match[str]) -> str:
        try:
            when = time.localtime(int(match[1]))
            return f"{time.strftime('%Y-%m-%d %H:%M:%S', when)}.{match[2]}"
        except (OverflowError, ValueError, OSError):
            return match[0]

    return _STAMP.sub(date, text)


def entries(look: Look, resource: str, host: str) -> list[tuple[str, str]]:
    """(KEY, value) of all msg-KEY entries of a host about a resource, or about itself."""
    return sorted(look.tree.all_messages(resource, host).items())


def lines(look: Look, resource: str, *args: str, which: str, is_pretty: bool, about: str, kind: str) -> list[str]:
    """`KEY: VALUE`"""
    host = args[0] if args else look.host
    found = [
        f"{key}: {value}"
        for key, value in entries(look, "" if about == "global" else resource, host)
        if (not kind or key.startswith(f"{kind}-")) and (which == "all" or not value.startswith("OK"))
    ]
    return [pretty(line) for line in found] if is_pretty else found


def count(look: Look, resource: str, *args: str, **what: Any) -> int:
    """How many."""
    return len(lines(look, resource, *args, **what))


def message(look: Look, resource: str, *args: str) -> str:
    """One message by its key, as it stands."""
    key, host = (*args, "", "")[:2]
    return dict(entries(look, resource, host or look.host)).get(key.removeprefix("msg-"), "")


# The messages file


Said = tuple[str, str, str]
"""(date and time, level, line)"""


def said(look: Look, resource: str) -> list[Said]:
    """The last messages about a resource."""
    return look.once("said", lambda: _by_word(tail(look))).get(resource, [])


def _by_word(text: list[str]) -> dict[str, list[Said]]:
    """Every word of the messages -> the messages it occurs in."""
    found: dict[str, list[Said]] = {}
    for line in text:
        match = _LINE.fullmatch(line)
        for word in set(_WORD.findall(match[3])) if match else ():
            found.setdefault(word, []).append((match[1], match[2], line))  # type: ignore[index]
    return found


def tail(look: Look) -> list[str]:
    """The last lines of marsd.log; nothing if there is none or it may not be read."""
    try:
        with open(look.ctx.paths.messages_file, "rb") as file:
            size = file.seek(0, 2)
            file.seek(max(0, size - TAIL))
            text = file.read(TAIL).decode("utf-8", "replace")
    except OSError:
        return []
    return text.splitlines()[1 if size > TAIL else 0 :]


def _time(text: str) -> float:
    from datetime import datetime

    try:
        return datetime.fromisoformat(text).timestamp()
    except (ValueError, OverflowError, OSError):
        return 0.0


def file_lines(look: Look, resource: str, level: str) -> list[str]:
    """Lines of one level that are not older than --window: what goes on now."""
    oldest = look.now_ns / 1e9 - look.ctx.options.window
    return [line for when, name, line in said(look, resource) if name in LEVELS[level] and _time(when) >= oldest]


def log_status(look: Look, resource: str) -> list[str]:
    """Warnings and errors about a resource, however old."""
    return [line for _, name, line in said(look, resource) if any(name in levels for levels in LEVELS.values())]


# Blocks for people


def error_blocks(look: Look, resource: str, bodies: bool = False) -> str:
    """What is wrong with the resource, worst first; "" where nothing is."""
    verbose = look.ctx.options.verbose
    parts = []
    for title, kind in (("FATALS", "fat"), ("ERRORS", "err"), ("WARNINGS", "wrn"), ("INFOS", "inf")):
        if kind != "fat" and (kind != "inf" or bodies or verbose >= 2):
            parts.append(_link_block(look, resource, title, kind))
        if kind != "inf":
            parts.append(_file_block(look, resource, title, kind, bodies or verbose > 0))
    if bodies or verbose >= 2:
        status = [line for _, _, line in said(look, resource)][-10:]
        parts.append(_block("    STATUS   FILE:", status) if status else "")
    return "".join(parts)


def _link_block(look: Look, resource: str, title: str, kind: str) -> str:
    found = lines(look, resource, which="the", is_pretty=True, about="", kind=kind)
    return _block(f"    {title:<8} LNK  ({len(found)}):", found) if found else ""


def _file_block(look: Look, resource: str, title: str, kind: str, with_body: bool) -> str:
    found = file_lines(look, resource, kind)
    if not found:
        return ""
    head = f"    {title:<8} FILE ({len(found)})"
    return _block(head + ":", found) if with_body else f"{head}: available with --verbose\n"


def _block(head: str, body: list[str]) -> str:
    return "\n".join([head, *(f"      {line}" for line in body)]) + "\n"


def _families() -> list[Value]:
    rows = []
    for which in ("all", "the"):
        for is_pretty in (False, True):
            for about in ("", "global"):
                for kind in CLASSES:
                    parts = [which, "pretty" if is_pretty else "", about, kind, "msg"]
                    name = "-".join(part for part in parts if part)
                    what: dict[str, Any] = {"which": which, "is_pretty": is_pretty, "about": about, "kind": kind}
                    scope = "host" if about else "resource"
                    short = f"{'standing ' if which == 'the' else ''}{kind or 'all'} messages" + (
                        " of the host" if about else "") + (" with dates" if is_pretty else "")
                    rows.append(Value(name, "list", short, partial(lines, **what), scope))
                    rows.append(Value(f"{name}-count", "number", f"number of {short}", partial(count, **what), scope))
    return rows


def _file_values() -> list[Value]:
    rows = []
    for kind, title in (("fat", "fatal errors"), ("err", "errors"), ("wrn", "warnings")):
        short = f"{title} about the resource in marsd's messages within --window"
        rows.append(Value(f"get-resource-{kind}", "list", short, partial(file_lines, level=kind)))
        rows.append(Value(f"get-resource-{kind}-count", "number", f"number of {short}",
                          lambda look, res, kind=kind: len(file_lines(look, res, kind))))
    return rows  # fmt: skip


VALUES = (
    *_families(),
    *_file_values(),
    Value("get-log-status", "list", "warnings and errors about the resource in marsd's messages", log_status),
    Value("message", "text", "the text of message {KEY}, of this or a named host", message),
    Value("resource-errors", "text", "what is wrong, worst first, in blocks", error_blocks),
    Value("resource-errors-1and1", "text", "the same with all texts", partial(error_blocks, bodies=True)),
)
