"""What is recorded: a primary under load, or a secondary that fetches and replays, until its end or until it is killed.

    python -m tests.crash.scenario primary|secondary|source ROOT SEED PHASE

ROOT is a host as `host.make_host` makes one, after any crash. `marks` receives, one line each and in the order in which
they happened: `w UNIQUE OFFSET LENGTH KIND DIGEST` before a write is given to the volume (kind 1, 2, 3: write, discard,
zeros), `a UNIQUE` after it was answered, `f TICKET` before a FLUSH, `F TICKET` after its answer, `d POSITION` when a
secondary counts log as fetched. So an answer stands at or behind its true moment, a request at or before it.

With MARS_CRASH_FAULTS=1 in the environment, disks fail or are full too: what does not come to its end then, kills
itself.
"""
from __future__ import annotations

import asyncio
import os
import random
import signal
import sys
import threading
import time
from pathlib import Path

from marsx._ext import marsinject, marssum
from marsx.base.errors import MarsError
from marsx.base.position import LogPos
from marsx.daemon import replica
from marsx.daemon.consumer import _InOrder
from marsx.log import reader
from marsx.log.record import BLOCK, DISCARD, WRITE, ZERO
from marsx.tree import paths
from marsx.volume import primary as primary_module
from marsx.volume import recovery
from marsx.volume.primary import Primary
from marsx.volume.replay import Replayer
from tests.crash.host import RESOURCE, Host, wait_for

SIZE = 1 << 20
SOURCE_HOST = "a"
HOT = 12                                # blocks that are written again and again
FAULTS = os.environ.get("MARS_CRASH_FAULTS") == "1"


def die() -> None:
    """A fault has stopped what runs, and then comes the kill."""
    os.kill(os.getpid(), signal.SIGKILL)


class Marks:
    """The ledger."""

    def __init__(self, root: Path) -> None:
        self._fd = os.open(root / "marks", os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)

    def say(self, *words: object) -> None:
        """One line."""
        os.write(self._fd, (" ".join(map(str, words)) + "\n").encode())


class Writer(threading.Thread):
    """One user of the device: random requests, some outstanding, its FLUSHes, its ledger."""

    def __init__(self, volume, marks: Marks, seed: str, base: int, count: int) -> None:
        super().__init__(daemon=True)
        of_all = random.Random(seed[:-2])                   # the same for all writers of this run
        self.flush_rate = of_all.choice((0.03, 0.25, 0.4))
        self.pause = of_all.choice((0, 0.004, 0.012))       # slow ones let write-back come close behind them
        self.marks, self.rng, self.count, self.next = marks, random.Random(seed), count, base
        self.injector = marsinject.Injector(volume, first_unique=base + 1)
        self.flushes: set[int] = set()
        self.error = ""

    def ticket(self) -> int:
        self.next += 2
        return self.next

    def run(self) -> None:
        for _ in range(self.count):
            what = self.rng.random()
            if what < self.flush_rate:
                self.flush()
            elif what < self.flush_rate + 0.1:
                self.zero()
            else:
                self.write()
            if self.rng.random() < 0.3:
                self.injector.wait(self.rng.randrange(3))
                time.sleep(self.pause)
            self.settle()
        self.injector.wait()
        self.settle()

    def place(self, sectors: int) -> int:
        """Half of all requests meet each other."""
        if self.rng.random() < 0.5:
            return 4096 * self.rng.randrange(HOT) + 512 * self.rng.randrange(8)
        return 512 * self.rng.randrange(SIZE // 512 - sectors)

    def write(self) -> None:
        sectors = self.rng.choice((1, 1, 1, 2, 8, 8, 8, 9, 32))
        data, at, unique = self.rng.randbytes(512 * sectors), self.place(sectors), self.ticket()
        self.marks.say("w", unique, at, len(data), WRITE, marssum.xxh3_128(data).hex())
        self.injector.write(at, data, unique)

    def zero(self) -> None:
        sectors, kind = self.rng.choice((1, 8, 8, 24)), self.rng.choice((DISCARD, ZERO))
        at, unique = self.place(sectors), self.ticket()
        self.marks.say("w", unique, at, 512 * sectors, kind, "-")
        self.injector.zero(at, 512 * sectors, kind, unique)

    def flush(self) -> None:
        unique = self.ticket()
        self.flushes.add(unique)
        self.marks.say("f", unique)
        self.injector.flush(unique)
        if self.rng.random() < 0.8:
            self.injector.wait()                            # so that the answer is written down when it comes

    def settle(self) -> None:
        """Write the answers down."""
        for unique, error in self.injector.answered():
            if error:
                self.error = f"request {unique} failed: {os.strerror(error)}"
            else:
                self.marks.say("F" if unique in self.flushes else "a", unique)


class PrimaryRun:
    """`daemon.producer` and `daemon.worker`, as far as the data plane sees them."""

    def __init__(self, host: Host, marks: Marks, seed: int, phase: int, requests: int) -> None:
        self.host, self.marks, self.phase, self.requests = host, marks, phase, requests
        self.name = f"{seed}.{phase}"
        self.rng = random.Random(self.name)
        sizes = {"flush_ms": self.rng.choice((1, 4, 40)), "fill_bytes": self.rng.choice((0, 0, 0, 1 << 20)),
                 "writeback_idle_ms": self.rng.choice((1, 5)), "writeback_ms": self.rng.choice((2, 20)),
                 "writeback_bytes": self.rng.choice((4, 32)) << 10, "window_bytes": self.rng.choice((32, 128)) << 10}
        self.primary = Primary(host.env(**sizes), host.disk_fd)
        self.deletes = self.rng.choice((0.05, 0.5))         # often: logs are deleted as soon as nobody needs them

    async def run(self) -> None:
        loop, one = asyncio.get_running_loop(), self.primary
        at, _, digest = self.host.position()
        known, first = self.host.known_durable(), self.host.is_first()
        await loop.run_in_executor(None, lambda: one.open(at, digest, known, first=first))
        self.set_steps()
        assert one.volume is not None
        one.volume.batch = self.rng.choice((1, 1, 2, 8))    # small: two groups are often under way at a time
        threads = [threading.Thread(target=body, daemon=True) for body in (one.flusher_body, one.writeback_body)]
        writers = [Writer(one.volume, self.marks, f"{self.name}.{i}", (self.phase + 1) << 40 | i << 24,
                          self.requests // 3) for i in range(3)]
        for thread in [*threads, *writers]:
            thread.start()
        while any(writer.is_alive() for writer in writers):
            try:
                await self.housekeeping(loop)
            except (OSError, MarsError):
                if not FAULTS:
                    raise
            if FAULTS and (one.error or one.volume.state["failed"]):
                await asyncio.sleep(self.rng.choice((0, 0.02, 0.1)))
                die()
        await self.end(loop, threads)
        problems = [*self.host.trouble, *(writer.error for writer in writers if writer.error)]
        assert not problems, problems

    def set_steps(self) -> None:
        assert self.primary.volume is not None
        self.primary.volume.allocate_step = 64 << self.rng.randrange(10, 13)

    async def housekeeping(self, loop: asyncio.AbstractEventLoop) -> None:
        """What the loop of marsd does beside: version links, rotation, deletion."""
        await asyncio.sleep(0.004)
        self.primary.publish()
        if self.rng.random() < 0.1:
            await loop.run_in_executor(None, self.primary.rotate)
            self.set_steps()
        if self.rng.random() < self.deletes:
            self.host.delete_logs()

    async def end(self, loop: asyncio.AbstractEventLoop, threads: list[threading.Thread]) -> None:
        """An orderly end (`producer.finish`), or just threads that stop."""
        one, orderly = self.primary, self.rng.random() < 0.5
        if orderly:
            end, _ = await loop.run_in_executor(None, one.end)
        one.request_stop()
        for thread in threads:
            await loop.run_in_executor(None, thread.join)
        header = one.header
        one.close()
        if orderly:
            assert header is not None
            if end.pos == 0 and header.pred is not None and recovery.may_withdraw(one.env, header):
                end = header.pred
                await loop.run_in_executor(None, replica.withdraw, one.env, self.host.publisher, header, True)
            self.host.store.make_durable([paths.version(RESOURCE, end.nr, self.host.name),
                                          paths.replay(RESOURCE, self.host.name)])


class SecondaryRun:
    """`daemon.consumer` and the stream of `peer.fetch`; the source's logs are files in root/source."""

    def __init__(self, host: Host, marks: Marks, seed: int, phase: int) -> None:
        self.host, self.marks = host, marks
        self.rng = random.Random(f"{seed}.{phase}.b")
        self.facts = _InOrder(host.publisher)
        self.env = host.env(self.facts, window_bytes=self.rng.choice((32, 64, 256)) << 10)
        self.replayer: Replayer | None = None
        self.loop = asyncio.get_running_loop()
        self.source = str(host.root / "source")

    async def run(self) -> None:
        recovered = await self.loop.run_in_executor(None, self.host.recover_copy, self.env, self.fetched)
        self.copy, at, digest = recovered
        self.facts.copy = self.copy
        if self.copy.header is not None:
            await self.loop.run_in_executor(None, self.copy.publish)
        self.replayer = Replayer(self.env, self.host.disk_fd, at, digest, lambda at: None)
        self.replayer.advance(self.copy.at)
        replay = threading.Thread(target=self.replayer.body, daemon=True)
        replay.start()
        feed = self.loop.run_in_executor(None, self.feed)
        while not feed.done():
            await self.housekeeping()
        await feed
        await self.loop.run_in_executor(None, wait_for, lambda: self.replayer.error or
                                        self.replayer.at == self.copy.at)
        self.replayer.request_stop()
        await self.loop.run_in_executor(None, replay.join)
        self.copy.close()
        assert not self.replayer.error and not self.host.trouble, (self.replayer.error, self.host.trouble)

    async def housekeeping(self) -> None:
        await asyncio.sleep(0.004)
        if self.copy.header is not None:
            self.copy.publish(wait=False)
            self.host.store.put(paths.actual(RESOURCE, self.host.name, "fetched"),
                                f"{self.copy.at},0,{self.copy.digest}")
        if self.rng.random() < 0.04:
            self.host.delete_logs()

    def fetched(self, at: LogPos, digest: str) -> None:
        """In the thread that feeds: this counts from now on."""
        self.marks.say("d", at)
        if self.replayer is not None:
            self.replayer.advance(at)

    def feed(self) -> None:
        """The stream: pieces of any length, at least what the copy wants."""
        logs = [reader.open_log(entry.path, self.env.uuid, RESOURCE) for entry in reader.list_logs(self.source)]
        start = self.copy.start()
        if not start.log_id:
            first = next(log for log in logs if log.header.nr == start.nr)
            self.copy.begin(start, first.header.pack())
        for log in logs:
            if log.header.nr < start.nr:
                continue
            if log.header.nr > start.nr:
                self.copy.next(log.header.nr, log.header.producer, self.copy.at.pos, log.header.pack())
            with open(log.path, "rb") as file:
                self.feed_log(log.header.nr, log.header.producer, file.read()[BLOCK:])
            log.close()

    def feed_log(self, nr: int, producer: str, data: bytes) -> None:
        pos, need = self.copy.at.pos, BLOCK
        while pos < len(data):
            take = max(need, 512 * self.rng.randrange(1, 100))
            fed = self.copy.feed(nr, producer, pos, data[pos:pos + take])
            pos, need = fed.end, fed.need


async def main(kind: str, root: Path, seed: int, phase: int) -> None:
    """One phase: from a start to an orderly end, unless something kills us, or a fault does not let it come to one."""
    try:
        await play(kind, root, seed, phase)
    except (OSError, MarsError, AssertionError):
        if not FAULTS:
            raise
        die()


async def play(kind: str, root: Path, seed: int, phase: int) -> None:
    """The phase."""
    name = "b" if kind == "secondary" else SOURCE_HOST
    host = Host(root, name, SIZE, asyncio.get_running_loop())
    primary_module.FIRST_SPACE = (seed % 4 == 0) << 20          # space by steps, or all before the first group
    marks = Marks(root)
    if kind == "secondary":
        await SecondaryRun(host, marks, seed, phase).run()
    else:
        if kind == "source":
            host.delete_logs = list  # type: ignore[method-assign]
        elif seed % 3:
            host.producer = marks                               # stands for one: deleted logs are recycled
        await PrimaryRun(host, marks, seed, phase, 150 if kind == "primary" else 120).run()
    host.close()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])))
