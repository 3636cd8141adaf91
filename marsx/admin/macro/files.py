"""Finds macros that people wrote: NAME.tpl in the directories of MARS_PATH, the first that has it.

A macro decides what is shown to root and may wait, so it is only taken from where nobody else could have put it: the
directory, everything above it and the file belong to root (or to the caller, if he is not root) and no one else may
write to them; a sticky directory like /tmp may lie above. The file is a plain one of at most 64 KiB. What does not fit
is not used, with one line that says so.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Callable, Mapping

from marsx.admin.macro.parser import TEXT_MAX, without_comments

DEFAULT_PATH = ".:~/.marsadm:/etc/marsadm:/usr/lib/marsadm:/usr/local/lib/marsadm"
NAME = re.compile(r"[A-Za-z0-9_][-A-Za-z0-9_]{0,62}", re.ASCII)
_OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH


class MacroFiles:
    """The NAME.tpl files of one call; each directory is listed once."""

    def __init__(self, environ: Mapping[str, str], warn: Callable[[str], None], uid: int | None = None) -> None:
        self._uid = os.geteuid() if uid is None else uid
        self._warn = warn
        self._texts: dict[str, str | None] = {}
        home = environ.get("HOME", "")
        places = (environ.get("MARS_PATH") or DEFAULT_PATH).split(":")
        self._places = [
            place.replace("~", home, 1) if place.startswith("~/") and home.startswith("/") else place
            for place in places
            if place and not (place.startswith("~") and not home.startswith("/"))
        ]
        self._found: dict[str, str] | None = None

    def names(self) -> list[str]:
        """All macros there are."""
        return sorted(self._paths())

    def text(self, name: str) -> str | None:
        """The text of a macro without its comments; None if there is no file for it."""
        if name not in self._texts:
            path = self._paths().get(name)
            self._texts[name] = self._read(path) if path else None
        return self._texts[name]

    def _paths(self) -> dict[str, str]:
        if self._found is None:
            self._found = {}
            for place in self._places:
                for name, path in self._list(place).items():
                    self._found.setdefault(name, path)
        return self._found

    def _list(self, place: str) -> dict[str, str]:
        try:
            directory = os.path.realpath(place)
            with os.scandir(directory) as items:
                names = [item.name.removesuffix(".tpl") for item in items if item.name.endswith(".tpl")]
        except (OSError, ValueError):
            return {}
        names = [name for name in names if NAME.fullmatch(name)]
        problem = self._problem(directory) if names else ""
        if problem:
            self._warn(f"macros in {place} are not used: {problem}")
        return {} if problem else {name: f"{directory}/{name}.tpl" for name in names}

    def _problem(self, directory: str) -> str:
        """Why somebody else may have written there, or ""."""
        part = directory
        while True:
            problem = self._problem_of(part, os.lstat(part), part == directory)
            if problem or part == "/":
                return problem
            part = os.path.dirname(part)

    def _problem_of(self, path: str, status: os.stat_result, last: bool) -> str:
        if status.st_uid not in (0, self._uid):
            return f"{path} belongs to user id {status.st_uid}"
        if status.st_mode & _OTHERS_WRITE and (last or not status.st_mode & stat.S_ISVTX):
            return f"{path} can be written by others"
        return ""

    def _read(self, path: str) -> str | None:
        try:
            fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
            with open(fd, "rb") as file:
                status = os.fstat(fd)
                problem = self._problem_of(path, status, True)
                if not stat.S_ISREG(status.st_mode):
                    problem = "it is not a plain file"
                data = b"" if problem else file.read(TEXT_MAX + 1)
            if not problem and len(data) > TEXT_MAX:
                problem = f"it is longer than {TEXT_MAX} bytes"
            text = data.decode("utf-8")
        except (OSError, UnicodeDecodeError) as error:
            problem = str(error)
        if problem:
            self._warn(f"the macro {path} is not used: {problem}")
            return None
        return without_comments(text)
