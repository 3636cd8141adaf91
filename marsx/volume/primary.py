"""The volume of a primary: recovery, a new log, write-back, rotation, a proper end.

States: made -> open() -> serving -> end() -> closed. Threads (run by `daemon`): `flusher_body`, `filler_body`,
`writeback_body`; device threads call the extension directly.

Invariants:
    log N+1 is made only when N is durable to its end, and its header says so (rule 4)
    POS, LEN of the replay link is durable before a window is written; POS moves after the window's flush (rule 12)
    the window ends at or before the durable position (rule 2; the extension loads no further)
"""
from __future__ import annotations

import os
import struct
import threading
import time

from marsx._ext import marsdirect, marslog, marsreplay
from marsx.base.errors import MarsError, PreconditionError
from marsx.base.position import LogPos, log_name
from marsx.log import record, writer
from marsx.log.record import FileHeader
from marsx.volume import emergency, gap, recovery
from marsx.volume.env import Env, announce, point_before
from marsx.volume.replay import apply_windows

PREALLOCATE = 64 << 20
FIRST_SPACE = 1 << 20                           # of a new log: its first writes do not wait for the filler
FAILURES: dict[int, str] = marslog.FAILURES


def _share(directory: str, most: int) -> int:
    """Bytes of log space to take ahead: a sixteenth of what is free at most, 0 when there is next to nothing."""
    stat = os.statvfs(directory)
    return min(most, stat.f_bavail * stat.f_frsize // 16) >> 20 << 20


class Primary:
    """One resource's volume on its primary. disk_fd: O_DIRECT, stays the caller's."""

    def __init__(self, env: Env, disk_fd: int, event_fd: int = -1) -> None:
        self.env = env
        self.disk_fd = disk_fd
        self.event_fd = event_fd
        self.header: FileHeader | None = None
        self.volume: marsdirect.DirectVolume | None = None
        self.error = ""
        self._fds: dict[int, int] = {}
        self._headers: dict[int, FileHeader] = {}
        self.changed: gap.Map | None = None                 # in emergency mode: the map
        self.past = False                                   # the disk was changed past the log, nobody knows where
        self.rotate_lock = threading.Lock()
        self._publish_lock = threading.Lock()
        self._publish_wanted = False
        self._stopping = False
        self._drain = threading.Event()
        self._drained = threading.Event()
        self._durable_only = False
        self._map_fd = -1
        self._ended = False                                 # the write-back thread is no more
        self._closed = False

    # ---- start ----

    def open(self, at: LogPos, at_digest: str, known_durable: recovery.KnownDurable, *, first: bool = False,
             same_device: bool = False) -> None:
        """Recover from the disk position `at`, make log N+1, be ready to serve. first: the resource has no log yet.
        same_device: the block device outlived the last worker, so requests may be sent again (rule 11)."""
        writer.remove_leftovers(self.env.directory)
        logs = [] if first else recovery.recover(self.env, at, at_digest, known_durable, uniques=same_device)
        try:
            self._check_sizes(logs)
            changed = emergency.is_in_between(logs[-1], self.env.directory) if logs and not self.past else None
            while not self._build(logs[:-1] if changed else logs, at):
                at, old, logs = self._bring_forward(logs), logs, []
                recovery.close_all(old)
                logs = recovery.recover(self.env, at, "", known_durable, uniques=same_device)
        except BaseException:
            recovery.close_all([log for log in logs if log.fd not in self._fds.values()])
            raise
        assert self.volume is not None
        if same_device:
            known = {unique for log in logs for unique in log.scan.uniques if unique}
            self.volume.set_known(struct.pack(f"<{len(known)}Q", *sorted(known)))
        last = logs[-1] if logs else None
        if last is not None and changed is not None:
            emergency.resume(self, last, changed)
            return
        if last is not None:
            writer.end_log(last.fd, last.end, last.path)
            self.env.facts.version(last.position, last.digest, point_before(last.header))
        nr = at.nr if first else last.header.nr + 1 if last else at.nr + 1
        self.past = self.past and last is not None
        nr += gap.STEP - 1 if self.past else 0
        self._start_log(nr, last.position if last else None, last.digest if last else record.NO_DIGEST, fresh=True)
        self.past = False

    def _check_sizes(self, logs: list[recovery.Recovered]) -> None:
        """A device never becomes smaller along its history: who knows an older size only must not write on."""
        largest = max((log.header.device_size for log in logs), default=0)
        if largest > self.env.device_size:
            raise MarsError(f"{self.env.resource} has {self.env.device_size} bytes, its log says {largest}",
                            "the new size has not arrived here yet; it comes from any other member")

    def _build(self, logs: list[recovery.Recovered], at: LogPos) -> bool:
        """A new volume with these logs in its index; False when the index is too small for the backlog."""
        env = self.env
        self._fds.clear()
        self.volume = marsdirect.DirectVolume(self.disk_fd, env.device_size, env.block_size, env.ring_bytes,
                                              env.index_bytes, self.event_fd)
        self.volume.flush_ns = env.flush_ms * 1_000_000
        for log in logs:
            cursor = None
            if not self._fds:
                cursor = marsreplay.Cursor(log.header.pack(), log.start, bytes.fromhex(log.start_digest))
            self._fds[log.header.nr] = log.fd
            self._headers[log.header.nr] = log.header
            try:
                self.volume.add_log(log.fd, log.header.pack(), log.end, cursor)
            except BlockingIOError:
                self._fds.clear()
                return False
        return True

    def _bring_forward(self, logs: list[recovery.Recovered]) -> LogPos:
        """The index cannot hold the backlog: write the oldest log's windows to the disk before serving."""
        log = logs[0] if logs[0].end > logs[0].start or len(logs) == 1 else logs[1]
        cursor = marsreplay.Cursor(log.header.pack(), log.start, bytes.fromhex(log.start_digest))
        window = marsreplay.Window(self.env.window_bytes * 3 // 4)
        done = apply_windows(self.env, window, log.fd, log.header, cursor, log.end, self.disk_fd, max_windows=16)
        return done

    def _start_log(self, nr: int, pred: LogPos | None, pred_digest: str, *, fresh: bool) -> None:
        """Make log `nr` durable and append to it from now on."""
        env = self.env
        stamp = env.stamp()
        header = FileHeader(nr=nr, producer=env.host, resource=env.resource, uuid=env.uuid, log_id=record.new_log_id(),
                            device_size=env.device_size, block_size=env.block_size,
                            lamport_ns=stamp, real_ns=time.time_ns(),
                            pred=pred, pred_digest=pred_digest,
                            gap_id=record.new_log_id() if self.past else record.NO_ID)  # a gap without a map (rule 27)
        fd = self._new_file(header, fresh=fresh)
        allocated = os.fstat(fd).st_size // record.BLOCK * record.BLOCK
        assert self.volume is not None
        self.volume.allocate_step = max(_share(env.directory, PREALLOCATE), 1 << 20)
        self.volume.reserve, self.volume.low_room = env.reserve_bytes, env.low_bytes
        self.volume.fill_ahead = _share(env.directory, env.fill_bytes)
        self.volume.set_lamport(stamp)
        # known before the volume uses it: other threads ask for the header of whatever log the volume names
        self._fds[nr] = fd
        self._headers[nr] = header
        if fresh:
            self.volume.start(fd, header.pack(), allocated)
        else:
            self.volume.switch(fd, header.pack(), allocated)
        self.header = header
        self.publish()

    def _new_file(self, header: FileHeader, *, fresh: bool) -> int:
        """Where there is no room for it, a primary that comes up has a file kept for this (rule 27): it can go without
        log then, while one that goes on in its log had better do so."""
        directory = self.env.directory
        try:
            return writer.create_log(directory, header, _share(directory, FIRST_SPACE), writer.take_spare(directory))
        except PreconditionError:
            fd = gap.begin_log(directory, header) if fresh else None
            if fd is None:
                raise
            return fd

    # ---- while serving ----

    def flusher_body(self) -> None:
        """Thread."""
        assert self.volume is not None
        self.volume.run_flusher()

    def filler_body(self) -> None:
        """Thread."""
        assert self.volume is not None
        self.volume.run_filler()

    def writeback_body(self) -> None:
        """Thread: windows of durable groups to the data device, until end() or an error (which stops the resource,
        named)."""
        assert self.volume is not None
        window = marsreplay.Window(self.env.window_bytes * 3 // 4)
        try:
            while not self._stopping:
                draining, env = self._drain.is_set(), self.env
                have = self.volume.wait_work(1 if draining else env.writeback_bytes, env.writeback_idle_ms,
                                             50 if draining else env.writeback_ms)
                if have and not self._stopping:
                    self._write_back(window)
                if not have:
                    window.rest()
                if self._drain.is_set() and not self.volume.state[self._rest]:
                    self._drained.set()
        except (OSError, ValueError, MarsError) as err:
            self.error = f"write-back stopped: {err}"
            self.env.on_trouble(self.error)
        finally:
            self._ended = True
            self._drained.set()

    @property
    def _rest(self) -> str:
        """What a drain waits for: in a frozen log, groups that are not in it do not count."""
        return "settled_rest" if self._durable_only else "writeback_rest"

    def _write_back(self, window: marsreplay.Window) -> None:
        volume = self.volume
        assert volume is not None
        at = volume.writeback_cursor
        if not volume.load_window(window):
            return
        after = volume.writeback_cursor
        start = LogPos(after.nr, self._producer(after.nr), at.pos if at.nr == after.nr else 0)
        if not announce(self.env, start, after.pos - start.pos, self.pause):
            return
        window.apply(self.disk_fd, self.env.fly)
        volume.finish_window(window)
        self.env.facts.replayed(LogPos(after.nr, start.producer, after.pos), after.digest.hex())
        for nr, fd in volume.drop_logs():
            self._fds.pop(nr, None)
            self._headers.pop(nr, None)
            os.close(fd)

    def pause(self, seconds: float) -> bool:
        time.sleep(seconds)
        return self._stopping

    def _producer(self, nr: int) -> str:
        return self._headers[nr].producer

    def rotate(self) -> LogPos:
        """Log N ends, log N+1 begins; writers wait for two syncs. Returns the end of N. Blocks. An error leaves log N
        as it is and goes on in it, unless N+1 is there already: then writers wait, because N+1 says where N ends (rule
        4)."""
        assert self.header is not None
        with self.rotate_lock:
            old = os.dup(self._fds[self.header.nr])     # write-back may close the log as soon as the next one begins
            try:
                end = self._change_log()
                writer.end_log(old, end.pos, end.log)
                return end
            finally:
                os.close(old)

    def _change_log(self) -> LogPos:
        assert self.volume is not None and self.header is not None
        if self.changed is not None:
            raise PreconditionError(f"{self.env.resource} is in emergency mode: no log is written",
                                    "make room in /mars; it ends by itself (logger_resume)")
        old, following = self.header, log_name(self.header.nr + 1, self.env.host)
        try:
            end, digest = self.freeze()
            self._start_log(old.nr + 1, end, digest, fresh=False)
        except BaseException:
            if self.header is old:
                if not os.path.lexists(os.path.join(self.env.directory, following)):
                    self.volume.thaw()
                else:
                    self.fail(f"{following} was made but is not known to be durable: "
                              "writers wait until marsd is restarted")
            raise
        return end

    def freeze(self) -> tuple[LogPos, str]:
        assert self.volume is not None and self.header is not None
        pos, digest = self.volume.freeze()
        end = LogPos(self.header.nr, self.header.producer, pos)
        with self._publish_lock:
            self._tell_version(end, digest, self.header)
        if self._publish_wanted:
            self.publish()
        return end, digest.hex()

    def fail(self, text: str) -> None:
        """Nothing but a restart goes on from here."""
        self.error = text
        self.env.on_trouble(text)

    def take_log(self, fd: int, header: FileHeader, map_fd: int) -> None:
        """The gap log is the newest one. Before the volume uses it: other threads ask for the header of whatever log
        the volume names."""
        if self._map_fd >= 0:
            os.close(self._map_fd)
        self._map_fd = map_fd
        self._fds[header.nr] = fd
        self._headers[header.nr] = header
        self.header = header

    def grow(self, size: int) -> None:
        """The device gets larger: a new log begins whose header says so, only then may requests lie there. Blocks."""
        assert self.volume is not None
        old = self.env.device_size
        if size > self.volume.device_size:
            self.env.device_size = size
            try:
                self.rotate()
            except BaseException:
                self.env.device_size = old
                raise
            self.volume.set_device_size(size)

    def drain(self, timeout: float, *, durable_only: bool = False) -> bool:
        """Write everything back that is durable; True when nothing is left (durable_only: of what is in the frozen
        log). Blocks."""
        assert self.volume is not None
        self._durable_only = durable_only
        self._drained.clear()
        self._drain.set()
        self.volume.kick()
        try:
            if self._ended:                     # looked at after clear(): the thread sets both, in this order
                return False
            return self._drained.wait(timeout) and not self._ended
        finally:
            self._drain.clear()

    def publish(self) -> None:
        """The version link as far as the log is durable now. Never waits: while another thread publishes, it is left
        to that one."""
        self._publish_wanted = True
        while self._publish_wanted and self._publish_lock.acquire(blocking=False):
            try:
                self._publish_wanted = False
                assert self.volume is not None
                _, nr, pos, digest = self.volume.durable_point()
                header = self._headers.get(nr)
                if header is not None:          # else rotated and written back since: its end was told when it ended
                    self._tell_version(LogPos(nr, header.producer, pos), digest, header)
            finally:
                self._publish_lock.release()

    def _tell_version(self, end: LogPos, digest: bytes, header: FileHeader) -> None:
        """Under the lock: an older end of a log must not come behind a newer one."""
        if header.pred is not None and header.pred.nr + 1 != header.nr:
            self.env.facts.version(LogPos(header.nr - 1, header.producer, 0), record.NO_DIGEST, "")
        self.env.facts.version(end, digest.hex(), point_before(header))

    # ---- end ----

    def end(self) -> tuple[LogPos, str]:
        """The device is gone (or never was): end the log, bring everything to the disk, publish. Returns the final
        position and digest. The write-back thread must still run. Blocks. Raises MarsError when the disk position
        could not reach the log's end."""
        assert self.volume is not None and self.header is not None
        if self.changed is not None:
            emergency.leave(self, to_go_on=False)
        with self.rotate_lock:
            end, digest = self.freeze()
        if not self.drain(3600.0):
            raise MarsError(self.error or "write-back did not come to an end",
                            "see the messages of the kernel about the data device")
        writer.end_log(self._fds[end.nr], end.pos, end.log)
        self.env.facts.replayed(end, digest)
        return end, digest

    def request_stop(self) -> None:
        """Let the threads end; nothing that is durable is lost (recovery goes on from the disk position)."""
        self._stopping = True
        if self.volume is not None:
            self.volume.request_stop()

    def close(self) -> None:
        """After the threads have ended."""
        if not self._closed:
            self._closed = True
            for fd in self._fds.values():
                os.close(fd)
            if self._map_fd >= 0:
                os.close(self._map_fd)
            self._fds.clear()
            self.volume = None
