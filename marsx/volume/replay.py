"""Replay: bring fetched log to the data device of a secondary, window by window.

Invariants (rules 2, 12, and the sync bound of design D 5):
    replayed <= fetched; a window never reaches beyond the bound that running syncs set
    POS, LEN durable before a window is written; POS moves, LEN = 0, after its flush
    at a log's end, which only its successor's header can say, replay goes on at POS 0 of the successor
"""
from __future__ import annotations

import os
import threading
from collections.abc import Callable

from marsx._ext import marsreplay
from marsx.base.errors import DamagedError, MarsError
from marsx.base.position import LogPos
from marsx.log import reader
from marsx.log.record import FileHeader
from marsx.volume.env import Env, announce


def apply_windows(env: Env, window: marsreplay.Window, fd: int, header: FileHeader, cursor: marsreplay.Cursor,
                  limit: int, disk_fd: int, max_windows: int = 0) -> LogPos:
    """Windows of one log from the cursor to POS `limit` (an end of a group); stops after max_windows if given. Returns
    the new position."""
    done = 0
    while cursor.pos < limit and (not max_windows or done < max_windows):
        start = LogPos(header.nr, header.producer, cursor.pos)
        groups, code = window.load(fd, cursor, limit)
        if not groups:
            raise DamagedError(f"{header.name} cannot be replayed at position {start.pos} (code {code})",
                               "fetch the log again: marsadm invalidate, or remove the file when a peer has it")
        env.facts.dirty(start, cursor.pos - start.pos)
        window.apply(disk_fd)
        env.facts.replayed(LogPos(header.nr, header.producer, cursor.pos), cursor.digest.hex())
        done += 1
    return LogPos(header.nr, header.producer, cursor.pos)


class Replayer:
    """Replays one resource. `at`: the disk position, `digest` there. Told by advance() what is fetched, by set_bound()
    how far it may go."""

    def __init__(self, env: Env, disk_fd: int, at: LogPos, digest: str, on_progress: Callable[[LogPos], None]) -> None:
        self.env = env
        self.disk_fd = disk_fd
        self.at = at
        self.digest = digest
        self.on_progress = on_progress
        self.error = ""
        self.damaged = False                # by a log that does not hold what fetch had verified
        self._wake = threading.Condition()
        self._fetched = at
        self._bound: LogPos | None = None
        self._stop = False
        self._busy = False
        self._log: reader.OpenLog | None = None
        self._cursor: marsreplay.Cursor | None = None

    def advance(self, fetched: LogPos) -> None:
        """Everything up to here is verified and durable in the local copy."""
        with self._wake:
            if fetched > self._fetched or fetched.nr > self._fetched.nr:
                self._fetched = fetched
                self._wake.notify_all()

    def set_bound(self, bound: LogPos | None) -> LogPos:
        """Replay must not pass `bound` (None: no bound) from now on. Returns the upper end of what may be on the disk
        already: the caller's bound is in force only if that is not beyond it."""
        with self._wake:
            self._bound = bound
            self._wake.notify_all()
            return self._upper

    def upper(self) -> LogPos:
        """Upper end of what may be on the disk already. From any thread."""
        with self._wake:
            return self._upper

    @property
    def _upper(self) -> LogPos:
        return self._window_end if self._busy else self.at

    def request_stop(self) -> None:
        """End after the window that is being written (rule 12)."""
        with self._wake:
            self._stop = True
            self._wake.notify_all()

    def body(self) -> None:
        """Thread."""
        window = None
        try:
            while self._wait():
                window = window or marsreplay.Window(self.env.window_bytes)
                self._step(window)
        except (OSError, MarsError, ValueError) as err:
            self.error, self.damaged = f"replay stopped: {err}", isinstance(err, DamagedError)
            self.env.on_trouble(self.error)
        finally:
            if self._log is not None:
                self._log.close()

    def _current_limit(self) -> LogPos:
        with self._wake:
            return self._limit()

    def _limit(self) -> LogPos:
        return self._fetched if self._bound is None else min(self._fetched, self._bound)

    def _pause(self, seconds: float) -> bool:
        with self._wake:
            return self._wake.wait_for(lambda: self._stop, seconds)

    def _wait(self) -> bool:
        with self._wake:
            while not self._stop and not self._limit() > self.at:
                self._wake.wait()
            return not self._stop

    def _step(self, window: marsreplay.Window) -> None:
        """One window, or the step over the end of a log."""
        if self._log is None:
            self._open()
        assert self._log is not None and self._cursor is not None
        header = self._log.header
        # Not under the lock: these read files and publish, and the loop takes the lock to move bound and fetched.
        limit = self._current_limit()
        end = limit.pos if limit.nr == header.nr else self._end_of_log(header)
        if self._cursor.pos >= end:
            if limit.nr > header.nr:
                self._next_log(header, end)
            return
        with self._wake:
            if self._limit() < limit:
                return                      # a lower bound was set meanwhile: look again
            self._busy = True
            self._window_end = LogPos(header.nr, header.producer, end)
        try:
            groups, code = window.load(self._log.fd, self._cursor, end)
            if not groups:
                raise DamagedError(f"{header.name} cannot be replayed at position {self.at.pos} (code {code})",
                                   "fetch the log again: marsadm invalidate, or remove the file when a peer has it")
            new = LogPos(header.nr, header.producer, self._cursor.pos)
            digest = self._cursor.digest.hex()
            if not announce(self.env, self.at, new.pos - self.at.pos, self._pause):
                return
            window.apply(self.disk_fd)
            self.env.facts.replayed(new, digest)
            with self._wake:
                self.at, self.digest = new, digest
        finally:
            with self._wake:
                self._busy = False
                self._wake.notify_all()
        self.on_progress(new)

    def _open(self) -> None:
        path = os.path.join(self.env.directory, self.at.log)
        self._log = reader.open_log(path, self.env.uuid, self.env.resource)
        if not self.at.pos:
            self.digest = self._log.header.digest0          # who begins here may not have known it
        digest = bytes.fromhex(self.digest) if self.at.pos else b""
        self._cursor = marsreplay.Cursor(self._log.header.pack(), self.at.pos, digest)

    def _end_of_log(self, header: FileHeader) -> int:
        """A log ends where its successor's header says (rule 4)."""
        for entry in reader.list_logs(self.env.directory):
            if entry.nr > header.nr:
                with reader.open_log(entry.path, self.env.uuid, self.env.resource) as log:
                    pred = log.header.pred
                    if pred and (pred.nr, pred.producer) == (header.nr, header.producer):
                        self._successor = log.header
                        return pred.pos
        raise DamagedError(f"no log follows {header.name} although more is known to be fetched",
                           "see mars-status --history")

    def _next_log(self, header: FileHeader, end: int) -> None:
        following = self._successor
        if following.pred_digest != self.digest:
            raise DamagedError(f"{following.name} does not continue {header.name}: other digest at its end",
                               "split brain: see mars-status")
        assert self._log is not None
        self._log.close()
        self._log = None
        with self._wake:
            self.at, self.digest = following.start, following.digest0
        self.env.facts.replayed(self.at, self.digest)
        self.on_progress(self.at)
