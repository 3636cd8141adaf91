"""A host without daemon and network: the real tree, publisher, primary and copy on a small directory.

`root/mars` is /mars, `root/disk` the data device. What stands here between the parts is what `daemon` does there, and
names the place. Sizes are small, so that a run of a few hundred operations has windows, rotations and deletions.
"""
from __future__ import annotations

import asyncio
import os
import random
import time
from pathlib import Path
from types import SimpleNamespace

from marsx.base.config import Paths
from marsx.base.errors import NotFoundError
from marsx.base.lamport import Lamport
from marsx.base.position import LogPos
from marsx.daemon import housekeeping, logcopy
from marsx.daemon.facts import Publisher
from marsx.log import reader
from marsx.tree import paths
from marsx.tree.store import Store
from marsx.tree.view import View
from marsx.volume import primary, recovery
from marsx.volume.env import Env, Facts

UUID, RESOURCE = "u-crash", "data"
MIB = 1 << 20
SECOND = 10**9

primary.PREALLOCATE = primary.FIRST_SPACE = 0                   # a log of the tests is short
logcopy.VERSION_INTERVAL_S = 0.01       # publish much more often than a real copy


def initial_disk(size: int) -> bytes:
    """What the data devices of all hosts hold at first: no zeros by chance."""
    return random.Random(7).randbytes(65536) * (size // 65536)


def make_host(root: Path, name: str, size: int, start: LogPos) -> None:
    """Directories, disk and the facts that a replica begins with; everything before the record begins."""
    tree = root / "mars"
    for folder in (paths.resource_dir(RESOURCE), os.path.dirname(paths.actual(RESOURCE, name, "fetched")),
                   paths.local_dir(name)):
        (tree / folder).mkdir(parents=True)
    (root / "disk").write_bytes(initial_disk(size))
    (root / "marks").touch()
    store = Store(Paths(mars_dir=str(tree)), name, Lamport())
    store.load()
    store.put_many([(paths.member(RESOURCE, name), "1" * 16), (paths.data(RESOURCE, name), "/dev/disk"),
                    (paths.replay(RESOURCE, name), f"{start},0")])
    store.close()


class Host:
    """One start of marsd, as far as data are concerned. `loop`: where the store lives."""

    def __init__(self, root: Path, name: str, size: int, loop: asyncio.AbstractEventLoop) -> None:
        self.root, self.name, self.size = root, name, size
        self.store = Store(Paths(mars_dir=str(root / "mars")), name, Lamport())
        self.store.load()
        self.publisher = Publisher(self.store, loop, RESOURCE, lambda: None)
        self.trouble: list[str] = []
        self.producer: object = None            # of a primary: deleted logs are kept for the next ones
        self.disk_fd = os.open(root / "disk", os.O_RDWR | os.O_DIRECT | os.O_CLOEXEC)

    @property
    def directory(self) -> str:
        """Where the logs are."""
        return os.path.join(self.store.root, paths.resource_dir(RESOURCE))

    def env(self, facts: Facts | None = None, **sizes: int) -> Env:
        """As `daemon.resource` makes one."""
        settings = {"window_bytes": 128 << 10, "ring_bytes": 16 * MIB, "index_bytes": MIB, "writeback_bytes": 64 << 10,
                    "writeback_ms": 20, "writeback_idle_ms": 10, "flush_ms": 4, "fill_bytes": 0, **sizes}
        return Env(self.directory, UUID, RESOURCE, self.name, self.size, 512, facts or self.publisher,
                   self.store.lamport.now, on_trouble=self.trouble.append, **settings)

    def view(self) -> View:
        """The tree at this moment."""
        return View(self.store.entries())

    def position(self) -> tuple[LogPos, int, str]:
        """Disk position, dirty length, digest there ("" = not known): `daemon.resource._position`."""
        replay = self.view().replay(RESOURCE, self.name)
        assert replay is not None, "the replay link is missing or damaged"
        return replay.pos, replay.length, self.publisher.digest_hint(replay.pos)

    def known_durable(self) -> recovery.KnownDurable:
        """`daemon.resource.known_durable`, of the own links."""
        view, known = self.view(), {}
        for nr in view.version_numbers(RESOURCE, self.name):
            version = view.version(RESOURCE, self.name, nr)
            if version is not None:
                known[nr, version.end.pos.producer] = version.end.pos.pos
        return lambda nr, producer: known.get((nr, producer), 0)

    def is_first(self) -> bool:
        """No log was ever begun."""
        return not reader.list_logs(self.directory) and not self.view().version_numbers(RESOURCE, self.name)

    def delete_logs(self) -> list[str]:
        """The real deletion of logs that nobody needs (rules 9, 16)."""
        settings = SimpleNamespace(get=lambda name: 0)
        site = SimpleNamespace(view=self.view, store=self.store, host=self.name, settings=settings)
        worker = SimpleNamespace(site=site, start_service=SimpleNamespace(lowest=lambda resource: None))
        runner = SimpleNamespace(resource=RESOURCE, pinned=lambda: None, producer=self.producer)
        return housekeeping.delete_logs(worker, runner, None)  # type: ignore[arg-type]

    def recover_copy(self, env: Env, on_fetched) -> tuple[logcopy.LogCopy, LogPos, str]:
        """`daemon.consumer._recover`, without the step back over an empty log."""
        at, _, digest = self.position()
        try:
            logs = recovery.recover(env, at, digest, self.known_durable())
        except NotFoundError:
            if at.pos == 0 and not any(entry.nr >= at.nr for entry in reader.list_logs(env.directory)):
                return logcopy.nothing_yet(env, at, on_fetched), at, ""
            raise
        recovery.close_all(logs)
        if (logs[0].header.nr, logs[0].header.producer) == (at.nr, at.producer):
            digest = logs[0].start_digest
        return logcopy.from_recovered(env, logs, on_fetched), at, digest

    def close(self) -> None:
        """Give everything back."""
        os.close(self.disk_fd)
        self.store.close()


def wait_for(condition, seconds: float = 60.0) -> None:
    """Poll from a thread."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it does not come to an end"
        time.sleep(0.002)
