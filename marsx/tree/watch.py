"""Changes of the tree as they happen, by inotify (behind pyinotify, and only here).

`Watch(root, callback)` watches the root and the directories of the grammar below it, also those that appear later. When
`fileno()` is readable, `process()` calls `callback(names)` at most once, with the names of entries and directories that
may have changed, each once, in the order of their first event; or `callback(None)`: read everything again.

Promises: no change is lost. A directory that is new is watched first and listed afterwards; when the kernel's queue
overflowed, a name could not be read, or a watched directory was moved, everything is to be read again. A name may be
reported although nothing changed (own writes come back): the reader compares.

Not watched: what is no part of the grammar, temporary names, the contents of log files, and changes of a link's stamp
alone (whoever changes an entry renames a new link over it).
"""
from __future__ import annotations

import errno
import logging
import os
import warnings
from collections.abc import Callable
from types import ModuleType
from typing import Any

from marsx.base import durable
from marsx.base.errors import MarsError, PreconditionError
from marsx.tree import paths

Callback = Callable[["list[str] | None"], None]

_READS_MAX = 16


def _pyinotify() -> ModuleType:
    """The library, without its habit of printing messages of its own.

    It imports `asyncore`, which Python >= 3.12 does not bring: there the package pyasyncore does."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        try:
            import pyinotify
        except ImportError as err:
            raise MarsError(f"pyinotify cannot be loaded: {err}",
                            "install pyinotify, and pyasyncore on Python >= 3.12") from err
    library_log = logging.getLogger("pyinotify")
    library_log.handlers.clear()
    library_log.propagate = False
    library_log.addHandler(logging.NullHandler())
    return pyinotify


class Watch:
    """Watches one tree for one caller; every method belongs to the caller's thread."""

    def __init__(self, root: str, callback: Callback) -> None:
        self._lib = _pyinotify()
        self._root = os.path.normpath(root)
        self._callback = callback
        self._rels: dict[int, str] = {}
        self._closed = False
        self._names: dict[str, None] = {}
        self._everything = False
        lib = self._lib
        self._mask = (lib.IN_CREATE | lib.IN_MOVED_TO | lib.IN_MOVED_FROM | lib.IN_DELETE | lib.IN_DELETE_SELF
                      | lib.IN_MOVE_SELF | lib.IN_ONLYDIR | lib.IN_DONT_FOLLOW)
        try:
            self._manager = lib.WatchManager()
        except OSError as err:
            raise MarsError(f"inotify cannot be used: {err}", "raise fs.inotify.max_user_instances") from err
        self._notifier = lib.Notifier(self._manager, self._on_event)
        os.set_inheritable(self.fileno(), False)
        try:
            if not self._add(""):
                raise PreconditionError(f"{root} cannot be watched: it is no directory",
                                        "create it and mount its file system there")
            self._add_below("")
        except BaseException:
            self.close()
            raise

    def fileno(self) -> int:
        """Readable when `process` has something to do."""
        return self._manager.get_fd()

    def process(self) -> None:
        """Take what happened and tell it. Does not wait."""
        for _ in range(_READS_MAX):
            if not self._notifier.check_events(timeout=0):
                break
            try:
                self._notifier.read_events()
            except (UnicodeDecodeError, self._lib.NotifierError):
                # The events behind such a name are lost with it.
                self._everything = True
            self._notifier.process_events()
        names, everything = list(self._names), self._everything
        self._names, self._everything = {}, False
        if everything:
            self._add("")
            self._add_below("")
            self._callback(None)
        elif names:
            self._callback(names)

    def close(self) -> None:
        """Stop watching; the descriptor is gone afterwards."""
        if not self._closed:
            self._closed = True
            self._manager.close()

    def _on_event(self, event: Any) -> None:
        lib = self._lib
        if event.mask & (lib.IN_Q_OVERFLOW | lib.IN_UNMOUNT):
            self._everything = True
            return
        directory = self._rels.get(event.wd)
        if event.mask & (lib.IN_DELETE_SELF | lib.IN_MOVE_SELF | lib.IN_IGNORED):
            self._gone(event.wd, moved=bool(event.mask & lib.IN_MOVE_SELF))
        elif directory is not None and event.name and not durable.is_temp(event.name):
            rel = f"{directory}/{event.name}" if directory else event.name
            if event.dir:
                self._directory_event(rel, bool(event.mask & (lib.IN_CREATE | lib.IN_MOVED_TO)))
            elif _is_entry(rel):
                self._names[rel] = None

    def _directory_event(self, rel: str, appeared: bool) -> None:
        if not paths.is_directory(rel):
            return
        self._names[rel] = None
        if appeared:
            self._add(rel)
            self._add_below(rel)

    def _gone(self, wd: int, moved: bool) -> None:
        rel = self._rels.pop(wd, None)
        if moved and rel is not None:
            # The watch follows the directory to its new place, where its name would be a lie.
            self._manager.rm_watch(wd)
        if moved or rel == "":
            self._everything = True

    def _add(self, rel: str) -> bool:
        path = os.path.join(self._root, rel) if rel else self._root
        try:
            self._rels[self._manager.add_watch(path, self._mask, quiet=False)[path]] = rel
            return True
        except self._lib.WatchManagerError as err:
            if os.path.isdir(path) and not os.path.islink(path):
                raise MarsError(f"{path} cannot be watched: {err}", "raise fs.inotify.max_user_watches") from None
            return False

    def _add_below(self, rel: str) -> None:
        """Watch the directories below one that is watched already; what is in them then counts as changed."""
        try:
            with os.scandir(os.path.join(self._root, rel)) as items:
                found = [item.name for item in items if item.is_dir(follow_symlinks=False)]
        except OSError as err:
            if err.errno not in (errno.ENOENT, errno.ENOTDIR):
                raise MarsError(f"{self._root}/{rel} cannot be read: {err.strerror}") from err
            return
        for name in found:
            inner = f"{rel}/{name}" if rel else name
            if paths.is_directory(inner):
                self._add(inner)
                self._add_below(inner)


def _is_entry(rel: str) -> bool:
    name = paths.parse(rel)
    return name is not None and (name.propagated or name.kind == "log")
