"""The full sync of one resource on this host: runs from a source until one comes to its end (rules 13 to 16)."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from marsx.base import disk
from marsx.base.errors import MarsError
from marsx.daemon import regions
from marsx.daemon.consumer import Consumer
from marsx.daemon.facts import Publisher
from marsx.daemon.site import Site
from marsx.daemon.spans import DiskSpans, resume_of
from marsx.peer.spanio import KINDS
from marsx.peer.sync import sync_resource
from marsx.peer.syncparts import Progress, SyncRestart
from marsx.peer.wire import PeerError
from marsx.tree import paths

PAUSE_MIN, PAUSE_MAX = 0.2, 5.0


class Syncing:
    """`changed`: the runner looks again, with a new view. `on_trouble` hears from the executor that the data device
    failed."""

    def __init__(self, site: Site, resource: str, publisher: Publisher, changed: Callable[[], None],
                 on_trouble: Callable[[str], None]) -> None:
        self.site = site
        self.resource = resource
        self.publisher = publisher
        self.changed = changed
        self.on_trouble = on_trouble

    def start(self, host: str, consumer: Consumer, disk_fd: int) -> None:
        """The consumer's sync begins."""
        consumer.sync.start(host, self._run(host, consumer, disk_fd), f"sync {self.resource}")

    async def _run(self, host: str, consumer: Consumer, disk_fd: int) -> None:
        """Task: runs until one ends."""
        pause = PAUSE_MIN
        while True:
            sink = self.spans(consumer, disk_fd)
            try:
                if sink.resume().why:
                    self.site.say(self.resource, "inf-sync-start", sink.resume().why)
                    await self.site.blocking(sink.forget_progress)
                await self._once(host, sink, consumer)
                return
            except SyncRestart as err:
                self.site.say(self.resource, "inf-sync-start", err.text)
                await self.site.blocking(sink.forget_progress)
            except (PeerError, OSError, MarsError) as err:
                consumer.sync.error = err
                self.site.say(self.resource, "err-sync", f"sync from {host}: {err}")
            await asyncio.sleep(pause)
            pause = min(PAUSE_MAX, pause * 2)

    async def _once(self, host: str, sink: DiskSpans, consumer: Consumer) -> None:
        done, requests = -1, 0

        def note(progress: Progress) -> None:
            nonlocal done, requests
            consumer.sync.error = None
            if done >= 0:
                consumer.count.add("sync", progress.done - done, progress.requests - requests)
            done, requests = progress.done, progress.requests

        link, _ = await self.site.dial(host, "sync")
        try:
            self.site.say(self.resource, "inf-sync", f"syncing '{self.resource}' from {host}")
            if sink.compares_all:
                # Whatever a verify has found is healed by that; a later one has to say so.
                self.site.store.delete(paths.actual(self.resource, self.site.host, "verify-state"))
            settings = self.site.settings
            await sync_resource(
                link,
                self.resource,
                sink,
                executor=self.site.executor,
                fast=lambda: bool(settings.get("do_fast_fullsync")),
                answer_timeout=float(settings.get("copy_timeout")),
                fly=settings.get("sync_fly"),
                bucket=self.site.fetch_bucket,
                kind=KINDS[settings.get("sync_digest")],
                progress=note,
                due=sink.due,
            )
        finally:
            await link.close()
        for key in ("err-sync", "inf-sync", "inf-sync-start"):
            self.site.say(self.resource, key, "")
        self.site.store.put_many([(paths.actual(self.resource, self.site.host, "is-syncing"), "0")])
        self.changed()

    def spans(self, consumer: Consumer, disk_fd: int) -> DiskSpans:
        """The data device as a sync writes to it."""
        copy = consumer.copy
        assert copy is not None
        return DiskSpans(
            self.publisher,
            self.resource,
            self.site.host,
            disk_fd,
            disk.size(disk_fd),
            resume=resume_of(self.site.view(), self.resource, self.site.host, not consumer.missing_log),
            bound=consumer.bound,
            fetched=lambda: copy.point,
            replayed=lambda: consumer.at or copy.at,
            on_trouble=self.on_trouble,
            regions_file=regions.path_of(consumer.env.directory),
        )
