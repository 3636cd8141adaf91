"""Publication of one resource's positions in the tree, callable from the threads of the data plane.

The tree's store belongs to the loop's thread. A thread hands its entries over, waits until they are in the tree, and
makes them durable itself where the contract wants it, so that a slow disk of /mars never holds up the loop. Order of
calls = order in the tree (rule 19). What is wanted durable and cannot even be written (no space) is a NoRoomError:
nothing that needs the durable fact goes on without it (rules 12, 28); who waits for room is shown by `lacking`.

The digest at the disk position stands in no tree entry. It is kept beside the tree in `local-HOST/position-RES`, a
hint: it is believed only if the log confirms it (a group that starts there names it, or the scan finds it); without
it the log is read from its beginning.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import json
import os
import re
import threading
from collections.abc import Callable

from marsx.base import durable
from marsx.base.errors import MarsError
from marsx.base.position import LogPos
from marsx.tree import paths
from marsx.tree.store import Store
from marsx.tree.view import parse_replay
from marsx.volume.env import NoRoomError

Items = list[tuple[str, str]]
_DIGEST = re.compile(r"[0-9a-f]{32}", re.ASCII)


class Publisher:
    """Implements `volume.env.Facts` for one resource of this host."""

    def __init__(
        self, store: Store, loop: asyncio.AbstractEventLoop, resource: str, changed: Callable[[], None]
    ) -> None:
        self._store = store
        self._loop = loop
        self._thread = threading.get_ident()
        self._resource = resource
        self._changed = changed
        self.lacking = ""  # a message: what has to be durable and finds no room
        self._hint = os.path.join(store.root, paths.local_dir(store.host), f"position-{resource}")

    # ---- volume.env.Facts ----

    def dirty(self, at: LogPos, length: int) -> None:
        self.put(lambda: self._position(at, length), make_durable=True)

    def replayed(self, at: LogPos, digest: str, make_durable: bool = False) -> None:
        self._write_hint(at, digest)
        self.put(lambda: self._position(at, 0), make_durable=make_durable)

    def _position(self, at: LogPos, length: int) -> Items:
        """What a window has made dirty stays so until it is passed (rule 12): after a crash in it the next window may
        be shorter, and behind its end the disk is still a mixture."""
        rel = paths.replay(self._resource, self._store.host)
        old = parse_replay(self._store.get(rel))
        if old is not None and old.pos <= at and (old.pos.nr, old.pos.producer) == (at.nr, at.producer):
            length = max(length, old.pos.pos + old.length - at.pos)
        return [(rel, f"{at},{length}")]

    def version(self, end: LogPos, digest: str, previous: str) -> None:
        self.put([(paths.version(self._resource, end.nr, self._store.host), f"{digest},{end}:{previous}")])

    # ---- for the daemon ----

    def put(self, items: Items | Callable[[], Items], *, make_durable: bool = False) -> None:
        """Entries into the tree, in this order; a callable says them on the loop, where it may read the tree. From any
        thread."""
        if threading.get_ident() == self._thread:
            written, unwritten = self._store_them(items)
        else:
            done: concurrent.futures.Future[tuple[Items, str]] = concurrent.futures.Future()
            try:
                self._loop.call_soon_threadsafe(self._put, items, done)
            except RuntimeError as err:
                raise MarsError("marsd is ending: positions cannot be published any more") from err
            written, unwritten = done.result()
        if make_durable:
            self.lacking = f"no room for positions: write-back, replay, sync wait ({unwritten})" if unwritten else ""
            if unwritten:
                raise NoRoomError(f"{unwritten}: {self._resource} cannot go on", f"make room on {self._store.root}")
            by_dir: dict[str, list[str]] = {}
            for rel, value in written:
                by_dir.setdefault(os.path.join(self._store.root, os.path.dirname(rel)), []).append(value)
            for directory, values in by_dir.items():
                durable.sync_links(directory, values)

    def _put(self, items: Items | Callable[[], Items], done: concurrent.futures.Future[tuple[Items, str]]) -> None:
        try:
            found = self._store_them(items)
        except BaseException as err:
            done.set_exception(err)
        else:
            done.set_result(found)
            self._changed()

    def _store_them(self, items: Items | Callable[[], Items]) -> tuple[Items, str]:
        """On the loop: what was put into the tree, and what of it stands in memory only."""
        entries = items() if callable(items) else items
        self._store.put_many(entries)
        return entries, self._not_written(entries)

    def _not_written(self, items: Items) -> str:
        """What stands in memory only, with the reason; "" if all is on the disk."""
        problems = self._store.problems
        return next((f"{rel}: {problems[rel]}" for rel, _ in items if rel in problems), "")

    def _write_hint(self, at: LogPos, digest: str) -> None:
        temp = f"{self._hint}.new"
        with contextlib.suppress(OSError):  # only a hint: without it the next start reads the log from its beginning
            os.makedirs(os.path.dirname(self._hint), mode=0o700, exist_ok=True)
            fd = os.open(temp, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
            with os.fdopen(fd, "w") as file:
                json.dump({"at": str(at), "digest": digest}, file)
            os.replace(temp, self._hint)

    def digest_hint(self, at: LogPos) -> str:
        """The digest noted for just this position, "" if there is none."""
        try:
            with open(self._hint, encoding="ascii") as file:
                found = json.load(file)
            digest = found["digest"]
            return digest if found["at"] == str(at) and _DIGEST.fullmatch(digest) else ""
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            return ""

    def drop_hint(self) -> None:
        """Durably: what is noted from then on may be of other logs with the same names."""
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self._hint)
            durable.sync_dir(os.path.dirname(self._hint))
