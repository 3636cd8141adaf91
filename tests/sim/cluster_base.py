"""One world of `cluster_world`: its hosts and their lives, what is real and what is played in it."""
from __future__ import annotations

import asyncio
import contextvars
import os
import random
import time as real_time
from collections import defaultdict
from collections.abc import Callable, Coroutine, Iterator
from contextlib import ExitStack, contextmanager
from types import SimpleNamespace
from typing import Any
from unittest import mock

from marsx.daemon import comeback, commands, consumer, emergency, gaps, heal, logcopy, replica, resource, syncing
from marsx.daemon import salvage as daemon_salvage
from marsx.log import record
from marsx.log.record import BLOCK
from marsx.volume import primary, salvage
from tests.sim import cluster_host as sim
from tests.sim.cluster_host import Host
from tests.sim.cluster_volume import SimProducer, Truth, Volume
from tests.sim.cluster_wire import Wire
from tests.sim.handover_host import Violation

START_NS = 1_800_000_000_000_000_000
SECOND = 1_000_000_000
STEP_S = 0.02
FLUSH_S = 0.02
PASSES = 50_000


class Base(Wire):
    """`force`: somebody may use primary --force."""

    def __init__(self, seed: int, directory: str) -> None:
        super().__init__(seed)
        self.seed, self.directory = seed, directory
        self.force = self.rng.random() < 0.5
        self.truth = Truth()
        self.life: contextvars.ContextVar[tuple[str, int] | None] = contextvars.ContextVar("life", default=None)
        self.tasks: dict[tuple[str, int] | None, dict[asyncio.Task[Any], None]] = defaultdict(dict)
        self.flushed: dict[bytes, int] = {}
        self.forced = 0
        self.starts = 0
        self.parted = 0
        self.decided: list[float] = []  # when somebody was made primary
        self.taken_back: dict[int, tuple[float, int]] = {}  # stamp -> when, stamp of the (none) that it replaced
        self.skewed = False  # a clock was wrong
        self.peaceful = False  # nothing bad happens any more
        self.damaged = 0  # logs
        self.salvaged = 0  # times that force ended damaged logs
        self.hopeless = False  # nobody has a whole state of the disk
        self.violation: BaseException | None = None
        self.log: list[str] = []

    @property
    def now(self) -> int:
        """Real time, ns."""
        return START_NS + int(self.loop.seconds * SECOND)

    def note(self, text: str) -> None:
        """For who looks at a failure."""
        self.log.append(f"{self.loop.seconds:8.3f} {text}")

    def look(self) -> None:
        """Has anything gone wrong meanwhile?"""
        errors = [error for error in self.loop.errors if not isinstance(error, sim.Killed)]
        if self.violation is not None or errors:
            raise self.violation or errors[0]

    # ---- running ----

    def run(self) -> None:
        """One history; Violation when a rule was broken."""
        self.loop.set_task_factory(self._task)
        asyncio.set_event_loop(None)
        with self._played():
            try:
                self.loop.run_until_complete(self._main())
            finally:
                for host in self.hosts.values():
                    host.up = False
                for task in [task for tasks in self.tasks.values() for task in tasks]:
                    task.cancel()
                self.loop.run_until_complete(asyncio.sleep(0))
                self.loop.run_until_complete(asyncio.sleep(0))
                self._close_files()
                self.loop.close()
                sim.wipe(self.directory)
        if self.violation is not None:
            raise self.violation

    @contextmanager
    def _played(self) -> Iterator[None]:
        clock = SimpleNamespace(monotonic=self.loop.time, time_ns=lambda: self.now, time=lambda: self.now / SECOND,
                                strftime=real_time.strftime, localtime=real_time.localtime)
        ids = random.Random(self.seed ^ 0x5EED)
        with ExitStack() as stack:
            def play(where: Any, name: str, value: Any) -> None:
                stack.enter_context(mock.patch.object(where, name, value))
            for module in (comeback, commands, logcopy, resource, replica, primary, salvage, daemon_salvage):
                play(module, "time", clock)
            play(record, "new_log_id", lambda: ids.randbytes(16))
            play(resource, "Producer", SimProducer)
            play(resource, "Publisher", sim.SimPublisher)
            play(emergency, "follow", sim.never)
            play(gaps, "cross", sim.never)
            play(consumer, "Replayer", sim.SimReplayer)
            play(consumer, "fetch_logs", sim.fetch_logs)
            play(heal, "fetch_logs", sim.fetch_logs)
            play(heal, "ask_all", sim.ask_all)
            play(replica, "start_position", sim.start_position)
            play(salvage, "_next_log", self._salvaged(salvage._next_log))
            play(syncing, "sync_resource", sim.sync_resource)
            yield

    def _salvaged(self, real: Callable[..., Any]) -> Callable[..., Any]:
        """The log that force begins behind damaged ones. A digest that nobody knew is a history of its own."""
        def begin(env: Any, sound: Any) -> Any:
            header = real(env, sound)
            self.salvaged += 1
            self.note(f"{env.host} ends its logs at {sound.end}")
            self.truth.invent(header, tuple(self.hosts[env.host].blocks()))
            self.truth.begin(header)
            return header
        return begin

    def _task(self, loop: Any, work: Any, **args: Any) -> asyncio.Task[Any]:
        task: asyncio.Task[Any] = asyncio.Task(work, loop=loop, **args)
        mine = self.tasks[self.life.get()]
        mine[task] = None
        task.add_done_callback(lambda ended: mine.pop(ended, None))
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[Any]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None and not isinstance(error, sim.Killed):
            self.violation = self.violation or error

    def _close_files(self) -> None:
        """Of lives that ended in the middle."""
        for fd in os.listdir("/proc/self/fd"):
            try:
                if os.readlink(f"/proc/self/fd/{fd}").startswith(self.directory + "/"):
                    os.close(int(fd))
            except OSError:
                pass

    def end_tasks(self, name: str, life: int) -> None:
        """This life's tasks go no further."""
        for task in list(self.tasks.pop((name, life), ())):
            task.cancel()

    def spawn(self, host: Host, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        """A program on this host: it dies with it."""
        return self.on(host, lambda: asyncio.ensure_future(work))

    def on(self, host: Host, call: Callable[[], Any]) -> Any:
        """Call it as a part of this host's life."""
        context = self.neutral.copy()
        context.run(self.life.set, (host.name, host.life))
        return context.run(call)

    # ---- hosts ----

    def boot(self, host: Host) -> None:
        """Start it."""
        context = self.neutral.copy()
        context.run(self.life.set, (host.name, host.life_to_come))
        context.run(host.boot)
        self.note(f"{host.name} boots")
        self.network()

    def crash(self, host: Host, power: bool) -> None:
        """Host down, with all its lines."""
        self.note(f"{host.name} {'loses power' if power else 'is killed'}")
        for a, b in [pair for pair in self.lines if host.name in pair]:
            self.cut(a, b)
            if b == host.name:
                self.lines[a, b].session = False
        host.crash(power)
        self.wake(host.name)

    def dies(self, host: Host) -> None:
        """In the middle of something."""
        if host.up:
            host.up = False
            self.crash(host, self.rng.random() < 0.5)

    def tear(self, volume: Volume, path: str) -> None:
        """A power cut: of what was not flushed any part may be there."""
        size, kept = os.path.getsize(path), BLOCK + volume.durable
        if size > kept:
            keep = self.rng.randrange(kept, size + 1, BLOCK)
            os.truncate(path, keep)
            if keep > kept and self.rng.random() < 0.5:
                hole = self.rng.randrange(kept, keep, BLOCK)
                with open(path, "r+b") as file:
                    file.seek(hole)
                    file.write(bytes(BLOCK))

    def became_primary(self, host: Host) -> None:
        """Rule 18."""
        self.starts += 1
        self.note(f"{host.name} is primary")
        others = [h.name for h in self.hosts.values() if h is not host and h.up and h.volume is not None]
        if others and not self.forced:
            raise self.broken(f"{host.name} becomes primary beside {others}")

    def broken(self, text: str) -> Violation:
        """A rule was."""
        self.violation = self.violation or Violation(text)
        return Violation(text)

    async def _main(self) -> None:
        raise NotImplementedError
