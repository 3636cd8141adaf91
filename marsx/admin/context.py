"""What one call of marsadm carries along: paths, options, who we are, the tree, the daemon's socket, where text goes.

The store is loaded at first use and kept up to date by `waits`. Lamport stamps come from the store, so all that one
command writes is newer than all it has seen (rule 25).
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable
from functools import cached_property
from typing import Any, TextIO

from marsx.admin.cli import Options
from marsx.admin.control_client import Control
from marsx.admin.dryrun import DryControl, DryStore
from marsx.base.config import Paths
from marsx.base.errors import DaemonDownError, MarsError, NotFoundError, PreconditionError
from marsx.base.lamport import Lamport
from marsx.base.text import for_reader, printable
from marsx.tree.store import Store
from marsx.tree.view import View

FEW = 8  # names that a hint lists


class Context:
    """One call of marsadm."""

    def __init__(
        self,
        paths: Paths,
        host: str,
        options: Options,
        *,
        out: TextIO | None = None,
        err: TextIO | None = None,
        control: Control | None = None,
        readonly: bool = False,
        monotonic: Callable[[], float] = time.monotonic,
        clock_ns: Callable[[], int] = time.time_ns,
    ) -> None:
        self.paths = paths
        self.host = host
        self.options = options
        self.dry = options.dry_run and not readonly
        """Nothing may be changed: what would be is told (`dryrun`)."""
        real = control or Control(paths.run_dir)
        self.control: Control | DryControl = DryControl(real, paths.mars_dir, self._tell) if self.dry else real
        self.monotonic = monotonic
        self.clock_ns = clock_ns
        self.readonly = readonly
        self.daemon_runs = False
        self._there: bool | None = None
        self._view: View | None = None
        self.events: Callable[[Context], Any] | None = None
        """What wakes a wait; None: inotify (`waits.Events`)."""
        self._out, self._err = out, err
        self._line = ""

    @cached_property
    def lamport(self) -> Lamport:
        """The clock of all stamps that this call writes."""
        return Lamport(self.clock_ns)

    @cached_property
    def store(self) -> Store:
        """The tree on disk, read once here and kept up to date by `waits`."""
        store = (
            DryStore(self.paths, self.host, self.lamport, self._tell)
            if self.dry
            else Store(self.paths, self.host, self.lamport, readonly=self.readonly)
        )
        store.on_change(lambda names: self._drop_view())
        store.load()
        return store

    def forget(self) -> None:
        """Read the tree anew at the next look."""
        self.__dict__.pop("store", None)
        self._drop_view()

    def view(self) -> View:
        """The tree as it is now; the same picture until something changes."""
        store = self.store
        if self._view is None:
            self._view = View(store.snapshot())
        return self._view

    def _drop_view(self) -> None:
        self._view = None

    def daemon_there(self) -> bool:
        """marsd answers here (asked once); who may not ask takes it as running."""
        if self._there is None:
            try:
                self.control.ping()
                self._there = True
            except DaemonDownError:
                self._there = False
            except MarsError:
                self._there = True
        return self._there

    def say(self, text: str) -> None:
        """Normal text, to stdout; in a dry run nothing was done that could be told."""
        if not self.dry:
            self.progress("")
            print(text, file=self._out or sys.stdout, flush=True)

    def show(self, value: Any, text: str) -> None:
        """What a command shows: as one line of JSON with --json, else as text."""
        if self.options.json:
            import json

            text = json.dumps(value, ensure_ascii=False)
        self.say(text)

    def note(self, text: str) -> None:
        """What goes on or might be wrong, to stderr: stdout is for scripts."""
        self.progress("")
        out = self._err or sys.stderr
        print(for_reader(printable(text), out), file=out, flush=True)

    def warn(self, text: str) -> None:
        """Something that does not stop the command."""
        self.note(f"marsadm: warning: {text}")

    def progress(self, text: str) -> None:
        """What is waited for: on a terminal one line that is written over ("" takes it away), else a line a change."""
        out = self._err or sys.stderr
        if text == self._line:
            return
        if not out.isatty():
            if text:
                print(printable(f"  waiting: {text}"), file=out, flush=True)
        else:
            import shutil

            width = max(20, shutil.get_terminal_size().columns - 1)
            shown = printable(f"  waiting: {text}")[:width] if text else ""
            print(f"\r{shown}\x1b[K", end="", file=out, flush=True)
        self._line = text

    def wish(self, *entries: tuple[str, str]) -> None:
        """Write wishes, with one stamp, durable before the command goes on."""
        written = self.store.put_many(list(entries), durable=True)
        if self.options.verbose and not self.dry:
            for rel in written:
                self.note(f"  {rel} -> {self.store.get(rel) or '(deleted)'}")

    def would(self, text: str) -> bool:
        """True in a dry run, which tells the effect (beyond links) that the caller then leaves out."""
        if self.dry:
            self._tell(f"would {text}")
        return self.dry

    def _tell(self, text: str) -> None:
        print(printable(f"DRY_RUN: {text}"), file=self._out or sys.stdout, flush=True)


def require_cluster(view: View, host: str) -> None:
    """This host belongs to a cluster."""
    if not view.uuid:
        raise PreconditionError(
            "this host belongs to no cluster", "marsadm create-cluster, or: marsadm join-cluster HOST --token=T"
        )
    if host not in view.ips:
        raise PreconditionError(
            f"host {host} is not a member of the cluster found here",
            "was the host renamed, or has it left the cluster?",
        )


def require_resource(view: View, resource: str) -> None:
    """The resource exists in the cluster."""
    if resource not in view.resources:
        raise NotFoundError(f"unknown resource '{resource[:80]}'", _near(resource, list(view.resources)))


def _near(resource: str, known: list[str]) -> str:
    """Which one may have been meant, of many only the nearest."""
    if len(known) <= FEW:
        return f"known resources: {', '.join(known) or 'none'}"
    import difflib

    near = difflib.get_close_matches(resource, known, 3) or known[:3]
    return f"there are {len(known)} resources, among them {', '.join(near)}; all of them: marsadm view all"


def require_member(view: View, resource: str, host: str) -> None:
    """This host has a replica of the resource."""
    require_resource(view, resource)
    if host not in view.members(resource):
        raise PreconditionError(
            f"resource {resource} is not joined on this host", f"marsadm join-resource {resource} /dev/..."
        )


def resource_list(view: View, word: str, host: str, members_only: bool) -> list[str]:
    """The resources that RES names: one, a comma list, or `all`."""
    if word == "all" or not word:
        mine = [res for res in view.resources if not members_only or host in view.members(res)]
        return mine
    return list(dict.fromkeys(_split(word)))


def _split(word: str) -> Iterable[str]:
    return [part for part in word.split(",") if part]
