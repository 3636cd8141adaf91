"""Time and wire of `cluster_world`: a loop whose time is played, and the lines on which trees travel."""
from __future__ import annotations

import asyncio
import contextvars
import random
from collections import defaultdict, deque
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

from marsx.peer.wire import PeerError, Reason
from marsx.tree import paths
from marsx.tree.store import Entry
from tests.sim.cluster_host import Host
from tests.sim.handover_host import Violation

STEP_S = 0.02
PASSES = 20_000


class Loop(asyncio.BaseEventLoop):
    """An event loop whose time goes on only when nothing is to be done now."""

    def __init__(self) -> None:
        super().__init__()
        self.seconds = 0.0
        self.passes = 0
        self.errors: list[BaseException] = []
        self.set_exception_handler(self._note)
        self._selector = SimpleNamespace(select=self._pass)

    def _note(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        self.errors.append(context.get("exception") or Violation(context["message"]))

    def time(self) -> float:
        return self.seconds

    def _pass(self, timeout: float | None) -> list[Any]:
        self.passes += 1
        if self.passes > PASSES:
            raise Violation("no end of things to do")
        if timeout is None:
            raise Violation("everything waits for everything")
        self.seconds += timeout
        return []

    def _process_events(self, events: Any) -> None:
        """There are none."""

    def _write_to_self(self) -> None:
        """There are no threads."""

    def add_reader(self, *args: Any) -> None:
        """There are no descriptors."""

    def remove_reader(self, *args: Any) -> bool:
        return False

    def run_in_executor(self, executor: Any, call: Any, *args: Any) -> Any:  # type: ignore[override]
        done = self.create_future()
        try:
            done.set_result(call(*args))
        except Exception as err:
            done.set_exception(err)
        return done


@dataclass
class Line:
    """From one host to another."""

    blocked: bool = False
    up: bool = False
    session: bool = False  # the receiver has not noticed the end yet
    epoch: int = 0
    queue: deque[list[Entry]] = field(default_factory=deque)


class Wire:
    """Lines between hosts, services by direct call; `neutral`: the context of what belongs to no host."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.loop = Loop()
        self.hosts: dict[str, Host] = {}
        self.neutral = contextvars.copy_context()
        self.lines: dict[tuple[str, str], Line] = defaultdict(Line)
        self.waiting: dict[str, dict[asyncio.Future[None], None]] = defaultdict(dict)

    def reachable(self, name: str) -> set[str]:
        """Hosts that can hear `name`."""
        return {b for (a, b), line in self.lines.items() if a == name and line.up}

    def dial(self, host: str, other: str) -> Host:
        """A service of the other host."""
        there = self.hosts[other]
        if not there.up or self.lines[host, other].blocked or self.lines[other, host].blocked:
            raise PeerError(Reason.LOST, f"{other} does not answer")
        return there

    async def news(self, host: str) -> None:
        """Until something moves there."""
        moved = self.loop.create_future()
        self.waiting[host][moved] = None
        try:
            await moved
        finally:
            self.waiting[host].pop(moved)

    def wake(self, host: str) -> None:
        """Something has moved there."""
        for moved in list(self.waiting[host]):
            if not moved.done():
                moved.set_result(None)

    def changed(self, host: Host, rels: list[str]) -> None:
        """Push it on, as the exchange does."""
        self.wake(host.name)
        rels = [rel for rel in rels if (name := paths.parse(rel)) is not None and name.propagated]
        for other in sorted(self.reachable(host.name)):
            news = [host.store.entry(rel) for rel in rels if not host.intake.is_echo(other, rel)]
            unit = sorted((e for e in news if e is not None), key=lambda entry: entry.stamp)
            if unit:
                self._send(host.name, other, unit)

    def _send(self, a: str, b: str, unit: list[Entry]) -> None:
        line = self.lines[a, b]
        line.queue.append(unit)
        if len(line.queue) == 1:
            self._later(a, b, line)

    def _later(self, a: str, b: str, line: Line) -> None:
        """In steps of time, so that hosts hear of several things at once, as they do under load."""
        due = (int(self.loop.seconds / STEP_S) + self.rng.choice((1, 1, 1, 1, 2, 4))) * STEP_S
        self.loop.call_at(due, self._deliver, a, b, line.epoch, context=self.neutral)

    def _deliver(self, a: str, b: str, epoch: int) -> None:
        line, host = self.lines[a, b], self.hosts[b]
        if line.epoch != epoch or not host.up:
            return
        for _ in range(len(line.queue) if self.rng.random() < 0.8 else 1):
            host.intake.take(a, line.queue.popleft())
            host.told.add(a)
        if line.queue:
            self._later(a, b, line)

    def network(self) -> None:
        """Who can be reached is called."""
        for a in self.hosts.values():
            for b in self.hosts.values():
                if a is b or not a.up:
                    continue
                line = self.lines[a.name, b.name]
                if not b.up or line.blocked:
                    a.failed.add(b.name)
                elif not line.up:
                    self._connect(a, b, line)

    def _connect(self, a: Host, b: Host, line: Line) -> None:
        self._notice(a.name, b.name)
        line.up = line.session = True
        line.queue.clear()
        b.intake.begin(a.name)
        self._send(a.name, b.name, [e for e in a.store.entries() if e.rel.partition("/")[0] != "local"])
        a.kick()

    def cut(self, a: str, b: str) -> None:
        """What is under way is lost; the receiver notices later."""
        line = self.lines[a, b]
        if line.up:
            line.up, line.epoch = False, line.epoch + 1
            line.queue.clear()
            if self.hosts[a].up:
                self.hosts[a].kick()
            self.loop.call_later(self.rng.random() * 0.5, self._notice, a, b, context=self.neutral)
        self.wake(a)
        self.wake(b)

    def _notice(self, a: str, b: str) -> None:
        line = self.lines[a, b]
        if line.session and not line.up:
            line.session = False
            if self.hosts[b].up:
                self.hosts[b].intake.end(a)
