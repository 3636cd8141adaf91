"""Scrub: verify after verify of a replica by itself, at the low rate of the tunable `verify_scrub_kb` (0 = off).

It begins only where a verify may run, goes no further while a sync runs on this host or the replica is behind, and lets
go at once when people ask for a verify. What it found stays to be read: a replica that differs is not scrubbed again
before somebody has verified it, with --repair or without, or a full sync has healed it.

A round goes on where it was interrupted, also by the end of marsd (`Place`). Invariant: everything before the place was
compared in this round and found equal, so it never moves beyond the first difference; it is not made durable, because
an older one only costs time.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
from collections.abc import AsyncIterator
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from marsx.base import messages
from marsx.base.errors import MarsError, PreconditionError
from marsx.base.position import LogPos
from marsx.daemon.consumer import Consumer
from marsx.daemon.verify import VerifyRun, Wanted
from marsx.peer.verify import Progress
from marsx.tree import paths
from marsx.tree.view import View

if TYPE_CHECKING:
    from marsx.daemon.resource import Runner

LOG = messages.get("daemon.scrub")
AGAIN_S = 60.0
# So much log may wait for fetch or replay before the scrub waits, too.
BEHIND = 16 << 20
# As good as none; the rate is asked for again twice a second.
WAITS_KB = 1
SAVE_S = 5.0


@dataclass(frozen=True)
class Round:
    """What a round compares with what: one with other values begins at 0."""

    size: int
    source: str
    syncpos: str


class Place:
    """How far the round is, in a file beside the logs."""

    def __init__(self, directory: str) -> None:
        self._path = os.path.join(directory, ".scrub")
        self._saved = -1

    def load(self, wanted: Round) -> int:
        """Where to go on; 0 when what is noted is of another round, or no sense can be made of it."""
        try:
            with open(self._path, encoding="utf-8") as file:
                found = json.load(file)
            done = found.pop("done")
            sound = type(done) is int and 0 <= done < wanted.size and found == asdict(wanted)
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
            return 0
        return done if sound else 0

    def save(self, of: Round, done: int) -> None:
        """Everything before `done` was equal in this round. Blocks."""
        if done == self._saved:
            return
        temp = f"{self._path}.new"
        with contextlib.suppress(OSError):  # a round that begins again only costs time
            fd = os.open(temp, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
            with os.fdopen(fd, "w", encoding="utf-8") as file:
                json.dump({"done": done, **asdict(of)}, file)
            os.replace(temp, self._path)
            self._saved = done

    def drop(self) -> None:
        """The round has ended."""
        self._saved = -1
        with contextlib.suppress(OSError):
            os.unlink(self._path)


class Scrub:
    """Of one resource on this host. On the loop."""

    def __init__(self, runner: Runner) -> None:
        self._runner = runner
        self._task: asyncio.Task[None] | None = None
        self._not_before = 0.0
        self._equal = 0

    @property
    def running(self) -> bool:
        return self._task is not None and not self._task.done()

    def tick(self) -> None:
        """Begin when it is time."""
        site, resource = self._runner.site, self._runner.resource
        if self.running or not site.settings.get("verify_scrub_kb") or site.loop.time() < self._not_before:
            return
        state = site.store.get(paths.actual(resource, site.host, "verify-state"))
        if self._runner.consumer is not None and state != "differs" and not self._must_wait():
            self._not_before = site.loop.time() + AGAIN_S
            self._task = asyncio.create_task(self._run(), name=f"scrub {resource}")

    async def stop(self) -> None:
        """Let go; returns when nothing of it runs."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])

    async def _run(self) -> None:
        async def tell(told: dict[str, Any]) -> None:
            """Everything is in the tree."""

        resource, site = self._runner.resource, self._runner.site
        place, of = Place(self._runner.directory()), self._round()
        self._equal = await site.blocking(place.load, of)
        run = VerifyRun(self._runner, Wanted(resource), tell, self._rate, self._equal, self._note)
        try:
            async with self._saving(place, of):
                result = await run.run()
        except PreconditionError:
            return  # no time for it
        except (MarsError, OSError) as error:
            LOG.info("%s: the scrub ended early: %s", resource, error)
            return
        await site.blocking(place.drop)
        if result["differs"]:
            LOG.info("%s: the scrub found %d bytes that differ", resource, result["differs"])

    def _round(self) -> Round:
        site, resource = self._runner.site, self._runner.resource
        view = site.view()
        return Round(view.size(resource), view.designated(resource),
                     site.store.get(paths.syncpos(resource, site.host)))

    def _note(self, progress: Progress) -> None:
        self._equal = progress.equal

    @contextlib.asynccontextmanager
    async def _saving(self, place: Place, of: Round) -> AsyncIterator[None]:
        """The place is saved now and then."""
        site = self._runner.site

        async def body() -> None:
            while True:
                await asyncio.sleep(SAVE_S)
                await site.blocking(place.save, of, self._equal)
        task = asyncio.create_task(body(), name="scrub-place")
        try:
            yield
        finally:
            task.cancel()
            await asyncio.wait([task])
            await site.blocking(place.save, of, self._equal)

    def _rate(self) -> int:
        """KiB/s at this moment."""
        return WAITS_KB if self._must_wait() else max(WAITS_KB, self._runner.site.settings.get("verify_scrub_kb"))

    def _must_wait(self) -> bool:
        """Something more important goes on."""
        site, consumer = self._runner.site, self._runner.consumer
        view = site.view()
        if not site.settings.get("verify_scrub_kb") or consumer is None:
            return True
        syncs = any(view.actual(name, site.host, "is-syncing") == "1" for name in view.resources)
        return syncs or is_behind(view, self._runner.resource, consumer)


def is_behind(view: View, resource: str, consumer: Consumer) -> bool:
    """Much of the log is not fetched, or not replayed."""
    if consumer.copy is None or consumer.at is None:
        return True
    fetched, source = consumer.copy.at, view.designated(resource)
    numbers = view.version_numbers(resource, source) if source else []
    newest = view.version(resource, source, numbers[-1]) if numbers else None
    return _is_far(consumer.at, fetched) or (newest is not None and newest.end.pos is not None
                                             and _is_far(fetched, newest.end.pos))


def _is_far(low: LogPos, high: LogPos) -> bool:
    return high > low and (high.pos if high.nr != low.nr else high.pos - low.pos) > BEHIND
