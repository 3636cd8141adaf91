"""Replay: bring fetched log to the data device of a secondary, window by window.

While one window is written the next one is loaded (`marsreplay`); what was loaded counts for nothing before its turn.

Invariants (rules 2, 12, and the sync bound of design D 5):
    replayed <= fetched; a window never reaches beyond the bound that running syncs set when it is begun to be written
    POS, LEN durable before a window is written; POS moves, LEN = 0, after its flush; only then the next is begun
    at a log's end, which only its successor's header can say, replay goes on at POS 0 of the successor
"""
from __future__ import annotations

import os
import threading
from collections.abc import Callable

from marsx._ext import marsreplay
from marsx.base.errors import DamagedError, MarsError, NotFoundError
from marsx.base.position import LogPos
from marsx.log import reader
from marsx.log.record import FileHeader
from marsx.volume.env import Env, announce

REST_S = 2.0        # without work: the windows' memory is given back


class Pair:
    """Two windows: the one of the moment, and the one that is loaded meanwhile (with its cursor)."""

    def __init__(self, size: int) -> None:
        self.now, self.next = marsreplay.Window(size), marsreplay.Window(size)
        self.cursor: marsreplay.Cursor | None = None

    def begin(self, fd: int, cursor: marsreplay.Cursor, limit: int) -> None:
        """The next window goes on behind `cursor`."""
        self.cursor = cursor.copy()
        self.next.begin(fd, self.cursor, limit)

    def turn(self) -> marsreplay.Cursor:
        """What was begun is the window of the moment; its cursor."""
        cursor, self.cursor = self.cursor, None
        assert cursor is not None
        self.now, self.next = self.next, self.now
        return cursor


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
        window.apply(disk_fd, env.fly)
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
        pair: Pair | None = None
        try:
            while not self._stop:
                if self._wait(REST_S if pair else None):
                    pair = pair or Pair(self.env.window_bytes)
                    self._step(pair)
                else:
                    pair = None
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

    def _wait(self, patience: float | None) -> bool:
        """True: there is something to do. False: nothing for so long, or the end is asked for."""
        with self._wake:
            self._wake.wait_for(lambda: self._stop or self._limit() > self.at, patience)
            return not self._stop and self._limit() > self.at

    def _step(self, pair: Pair) -> None:
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
        if pair.cursor is None:
            pair.begin(self._log.fd, self._cursor, end)
        cursor = pair.turn()
        groups, code = self._loaded(pair.now, header)
        if not groups:
            raise DamagedError(f"{header.name} cannot be replayed at position {self.at.pos} (code {code})",
                               "fetch the log again: marsadm invalidate, or remove the file when a peer has it")
        new = LogPos(header.nr, header.producer, cursor.pos)
        if not self._may_write(new):
            return                          # a lower bound was set meanwhile: this window is dropped, look again
        try:
            if not announce(self.env, self.at, new.pos - self.at.pos, self._pause):
                return
            if new.pos < end:
                pair.begin(self._log.fd, cursor, end)
            pair.now.apply(self.disk_fd, self.env.fly, pair.next if pair.cursor else None)
            self.env.facts.replayed(new, cursor.digest.hex())
            with self._wake:
                self.at, self.digest, self._cursor = new, cursor.digest.hex(), cursor
        finally:
            with self._wake:
                self._busy = False
                self._wake.notify_all()
        self.on_progress(new)

    def _loaded(self, window: marsreplay.Window, header: FileHeader) -> tuple[int, int]:
        """(groups, code) of a window that was begun. A log that cannot be read is damaged, not the data device."""
        try:
            return window.finish()
        except OSError as err:
            raise DamagedError(f"{header.name} cannot be read behind position {self.at.pos}: {err.strerror}",
                               "fetch the log again: marsadm invalidate") from err

    def _may_write(self, end: LogPos) -> bool:
        """From now on everything up to `end` may be on the disk; False when the bound forbids it."""
        with self._wake:
            if self._limit() < end:
                return False
            self._busy = True
            self._window_end = end
            return True

    def _open(self) -> None:
        self._log = self._open_log()
        if not self.at.pos:
            self.digest = self._log.header.digest0          # who begins here may not have known it
        digest = bytes.fromhex(self.digest) if self.at.pos else b""
        self._cursor = marsreplay.Cursor(self._log.header.pack(), self.at.pos, digest)

    def _open_log(self) -> reader.OpenLog:
        """The log of the position. (N, its end) is (N+1, 0), also where N was deleted while replay was off (rule 7)."""
        path = os.path.join(self.env.directory, self.at.log)
        try:
            return reader.open_log(path, self.env.uuid, self.env.resource)
        except NotFoundError:
            for entry in reader.list_logs(self.env.directory):
                log = reader.open_log(entry.path, self.env.uuid, self.env.resource)
                if (log.header.pred, log.header.pred_digest) == (self.at, self.digest):
                    with self._wake:
                        self.at, self.digest = log.header.start, log.header.digest0
                    self.env.facts.replayed(self.at, self.digest)
                    return log
                log.close()
            raise

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
