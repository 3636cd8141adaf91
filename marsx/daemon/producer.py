"""Being primary: the volume, the device in front of it, and the proper end of both.

Order of becoming (rules 4, 11, 18): recover -> log N+1 durable -> threads -> resend (after a restart) -> device ->
is-primary=1. Order of ending (rules 19, 20): device gone for sure -> log ended, all written back -> final version and
replay links durable -> grant durable -> is-primary=0. A device in use ends nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import threading
from functools import partial
from typing import Any

from marsx.base import messages
from marsx.base.errors import MarsError
from marsx.base.position import LogPos
from marsx.daemon.context import Context
from marsx.daemon.replica import withdraw
from marsx.daemon.spans import SpanGate
from marsx.device import serve
from marsx.log import writer
from marsx.tree import paths
from marsx.volume import emergency, recovery
from marsx.volume.primary import FAILURES, Primary

LOG = messages.get("daemon.producer")
# Short: a wish that is taken back meanwhile must not take the device away. The runner tries again every second.
DETACH_PATIENCE_S = 0.3
DROP_PATIENCE_S = 30.0
MOVED_PAUSE_S = 0.005


class Producer:
    """One resource while this host is its primary."""

    def __init__(self, given: Context) -> None:
        self.site = given.site
        self.resource = given.resource
        self.name = given.site.device_name(given.resource)
        self.env = given.env
        self.publisher = given.publisher
        self.changed = given.changed
        self.event_fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self.primary = Primary(given.env, given.disk_fd, self.event_fd)
        self.stock = given.stock
        self.gate: SpanGate | None = None
        self.frontend: serve.Frontend | None = None
        self.device = False  # the block device exists
        self.size = 0  # of the block device
        self._threads: list[threading.Thread] = []
        self._servers: list[threading.Thread] = []
        self._published = ""
        self.lacks_room = False  # wants emergency mode, or is in it
        self.look_at = 0.0  # when the space is looked at again
        self.prepared = 0  # the device size for which emergency mode is prepared

    # ---- becoming ----

    async def start(self, at: LogPos, digest: str, known: recovery.KnownDurable, first: bool) -> None:
        """Recover, begin log N+1, serve the device."""
        kept = self.resource in self.site.kept
        try:
            await self.site.blocking(lambda: self.primary.open(at, digest, known, first=first, same_device=kept))
        except BaseException:
            self.primary.close()
            raise
        volume, header = self.primary.volume, self.primary.header
        assert volume is not None and header is not None
        self.gate = SpanGate(self.primary, self.stock.move(header.start, header.digest0), self.site.executor)
        self._listen()
        self._threads = [
            self.site.thread(f"flush-{self.resource}", self.primary.flusher_body),
            self.site.thread(f"fill-{self.resource}", self.primary.filler_body),
            self.site.thread(f"wb-{self.resource}", self.primary.writeback_body),
        ]
        try:
            await self._serve_device(kept)
        except BaseException:
            await self.close()
            raise

    async def _prepare_gap(self) -> None:
        """Before the first write is accepted. Without room for it the device is served all the same: the look at the
        space (`daemon.emergency`) tries again, and says so."""
        if self.primary.changed is not None:
            return
        try:
            await self.site.blocking(emergency.prepare, self.primary)
            self.prepared = self.env.device_size
        except MarsError as err:
            LOG.info("%s: %s", self.resource, err.text)

    async def _serve_device(self, kept: bool) -> None:
        volume = self.primary.volume
        assert volume is not None
        await self._prepare_gap()
        self.frontend = serve.Frontend(volume, self.name)
        if kept:
            _, fds = await self.site.keeper.call("dev-fds", name=self.name)
            if not self.frontend.resend(fds[0]):
                LOG.warning(
                    "%s: this kernel cannot send requests again: those in flight when marsd died have failed",
                    self.resource,
                )
        else:
            _, fds = await self.site.keeper.call(
                "dev-create", name=self.name, clones=max(2, self.site.settings.get("device_threads"))
            )
        self._servers = [self.site.thread(f"read-{self.resource}", self.frontend.answer_reads)]
        self._servers += [
            self.site.thread(f"dev{i}-{self.resource}", partial(self._serve, fd)) for i, fd in enumerate(fds)
        ]
        try:
            if kept and 0 < self.site.kept[self.resource].get("size", 0) < self.env.device_size:
                await self._enlarge_device()
            answer, _ = await self.site.keeper.call(
                "dev-attach", name=self.name, size=self.env.device_size, block_size=self.env.block_size
            )
        except MarsError:
            await self._drop()
            raise
        LOG.info(
            "%s: device %s/%s is there (%s)", self.resource, self.site.paths.dev_dir, self.name, answer.get("loop")
        )
        self.site.kept.pop(self.resource, None)
        self.device, self.size = True, self.env.device_size

    def _serve(self, fd: int) -> None:
        try:
            assert self.frontend is not None
            self.frontend.serve(fd)
        finally:
            os.close(fd)

    # ---- being ----

    def _listen(self) -> None:
        if self.event_fd >= 0:
            self.site.loop.add_reader(self.event_fd, self._told)

    def _told(self) -> None:
        """The event descriptor says: durable moved, or the volume failed or stalled. A flush behind each write says so
        thousands of times a second; who waits for a flush wants the processor."""
        self.site.loop.remove_reader(self.event_fd)
        self.site.loop.call_later(MOVED_PAUSE_S, self._listen)
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(self.event_fd)
        self._moved()

    def _moved(self) -> None:
        """As far as the log is durable now, it may be fetched."""
        volume = self.primary.volume
        if volume is None:
            return
        _, nr, pos, digest = volume.durable_point()
        self.stock.move(LogPos(nr, self.site.host, pos), digest.hex())
        self.check()

    def check(self) -> None:
        """Turn what the volume reports into messages."""
        volume = self.primary.volume
        if volume is None:
            return
        state = volume.state
        if state["stalled_ns"] and not self.lacks_room:
            self.changed()
        text = self._broken(state)
        if text:
            effect = "All writes get errors" if state["failed"] else "Reads and writes go on, the log grows"
            text = f"{text}. {effect}; after repair: marsd stop, marsd start"
        self.site.say(self.resource, "err-device", text)
        self.site.say(
            self.resource,
            "err-space-low",
            "no room for the log: writers wait. Make room in /mars: marsadm log-delete-all"
            if state["stalled_ns"] and not state["direct"]
            else "",
        )

    def _broken(self, state: dict[str, Any]) -> str:
        """What failed for good, "" if nothing did."""
        if state["failed"]:
            why = f" ({self.primary.error})" if self.primary.error else ""
            return f"{FAILURES.get(state['fail_where'], 'the volume')} failed: {os.strerror(state['failed'])}{why}"
        return self.primary.error

    def publish(self) -> None:
        """The version link, when it moved (called every logger_report_interval_s)."""
        volume = self.primary.volume
        if volume is not None:
            point = str(volume.durable_point()[1:])
            if point != self._published:
                self._published = point
                self.primary.publish()

    def is_log_empty(self) -> bool:
        """Nothing was written since the newest log began."""
        volume = self.primary.volume
        return volume is not None and not volume.state["appended"]

    async def rotate(self) -> LogPos:
        """Log N ends, N+1 begins."""
        end = await self.site.blocking(self.primary.rotate)
        self.begun()
        return end

    def begun(self) -> None:
        """Another log is the newest one."""
        self._moved()
        header = self.primary.header
        if header is not None and header.nr > self.site.view().maxnr(self.resource):
            self.site.store.put(paths.maxnr(self.resource), str(header.nr))

    async def grow(self, size: int) -> None:
        """The resource has `size` bytes from now on: first the log, then what may be written, then the device. Can be
        done again when it was cut off anywhere. The map for that size is there before (rule 27)."""
        self.prepared = 0
        if self.primary.changed is None:
            await self.site.blocking(emergency.prepare, self.primary, size)
        await self.site.blocking(self.primary.grow, size)
        self.prepared = size
        self.begun()
        await self._enlarge_device()
        self.size = size
        LOG.info("%s: the device has %d bytes now", self.resource, size)

    async def _enlarge_device(self) -> None:
        await self.site.keeper.call("dev-resize", name=self.name, size=self.env.device_size)

    # ---- ending ----

    async def take_device_away(self) -> list[str]:
        """Who uses the device, [] when it is gone for sure."""
        if not self.device:
            return []
        answer, _ = await self.site.keeper.call("dev-detach", name=self.name, patience=DETACH_PATIENCE_S)
        if answer.get("busy"):
            return [str(user) for user in answer["busy"]]
        if not await self.site.join(self._servers, 60.0):
            raise MarsError(f"{self.resource}: the device is gone but its connection does not end", "see marsd.log")
        await self._drop()
        self.device = False
        return []

    async def _drop(self) -> None:
        """The keeper forgets the device, which is gone. Not while a child of its looks who uses it: that is waited
        for."""
        end = self.site.loop.time() + DROP_PATIENCE_S
        while True:
            try:
                await self.site.keeper.call("dev-drop", name=self.name)
                return
            except MarsError as err:
                code = getattr(err.__cause__, "errno", 0)
                if code == errno.ENODEV:
                    return
                if code != errno.EBUSY or self.site.loop.time() > end:
                    raise
            await asyncio.sleep(0.05)

    async def finish(self) -> tuple[LogPos, str]:
        """After the device is gone: end the log, write everything back, publish durably. MarsError when that cannot be
        done any more: then the role stays."""
        try:
            end, digest = await self.site.blocking(self.primary.end)
        except (MarsError, OSError) as err:
            why = self._broken(self.primary.volume.state if self.primary.volume else {"failed": 0}) or str(err)
            raise MarsError(f"{self.resource}: the log cannot be ended: {why}", "after repair: marsd stop, marsd start"
                            ) from err
        header, host = self.primary.header, self.site.host
        await self.close()
        writer.drop_spare(self.env.directory)
        if end.pos == 0 and header is not None and header.pred is not None and recovery.may_withdraw(self.env, header):
            end, digest = header.pred, header.pred_digest
            await self.site.blocking(withdraw, self.env, self.publisher, header, True)
        self.site.store.make_durable([paths.version(self.resource, end.nr, host), paths.replay(self.resource, host)])
        self.stock.move(end, digest)
        return end, digest

    async def finish_if_possible(self) -> None:
        """marsd stops, the device is gone: end the log, or leave it to the recovery of the next start."""
        try:
            await self.finish()
        except MarsError as err:
            LOG.warning("%s. Left to the recovery of the next start", err.text)
            await self.close()

    async def close(self) -> None:
        """End the threads and let go of the files. The log stays as it is: recovery goes on from the disk position."""
        if self.event_fd < 0:
            return
        if self.gate is not None:
            await self.gate.shut()
        self.primary.request_stop()
        await self.site.join(self._threads)
        self.site.loop.remove_reader(self.event_fd)
        if not any(server.is_alive() for server in self._servers):
            self.primary.close()
        os.close(self.event_fd)
        self.event_fd = -1
