"""A volume without daemon and device: a disk in a file, log files, publications written down, a plain twin of the
contents.

`rig` is a volume that the test drives by hand; `site` is what a Primary or Replayer needs. Everything lies below
tmp_path.
"""
from __future__ import annotations

import os
import random
import struct
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from marsx._ext import marsinject, marsreplay, marsshadow
from marsx.base.position import LogPos
from marsx.log import record, writer
from marsx.log.record import BLOCK, FileHeader
from marsx.volume.env import Env
from marsx.volume.primary import Primary

MIB = 1 << 20
UUID, RESOURCE, HOST = "u-test", "data", "a"


def new_header(nr: int, size: int, pred: LogPos | None = None, digest: str = record.NO_DIGEST) -> FileHeader:
    """Header of a log of the test's resource."""
    return FileHeader(nr=nr, producer=HOST, resource=RESOURCE, uuid=UUID, log_id=record.new_log_id(), device_size=size,
                      block_size=512, lamport_ns=time.time_ns(), real_ns=time.time_ns(), pred=pred, pred_digest=digest)


class Disk:
    """A data device in a file, O_DIRECT as the real one; filled with a pattern so that zeros are not there by
    chance."""

    def __init__(self, path: Path, size: int, seed: int = 7) -> None:
        self.path = path
        self.size = size
        path.write_bytes(random.Random(seed).randbytes(65536) * (size // 65536))
        self.fd = os.open(path, os.O_RDWR | os.O_DIRECT | os.O_CLOEXEC)

    def contents(self) -> bytes:
        """All of it."""
        return self.path.read_bytes()

    def close(self) -> None:
        os.close(self.fd)


@dataclass
class Group:
    """A group as it stands in a log file. `records`: (type, offset, length, unique, payload)."""

    pos: int
    end: int
    durable: int
    records: list[tuple[int, int, int, int, bytes]]


def read_groups(path: str | Path, end: int | None = None) -> list[Group]:
    """The groups of a log file, believed without checks (that is the scan's job), up to POS `end` or to the first
    zeros."""
    data = Path(path).read_bytes()[BLOCK:]
    found, at = [], 0
    while at + BLOCK <= len(data) and data[at:at + 8] == record.GROUP_MAGIC and (end is None or at < end):
        fields = record.GROUP_FIELDS.unpack_from(data, at)
        length, durable, count = fields[8], fields[10], fields[14]
        payload, records = at + BLOCK, []
        for i in range(count):
            one = record.RECORD_FIELDS.unpack_from(data, at + record.TABLE_OFFSET + i * record.RECORD_FIELDS.size)
            stored = one[7]
            records.append((one[0], one[4], one[5], one[6], data[payload:payload + stored]))
            payload += -(-stored // record.PAYLOAD_ALIGN) * record.PAYLOAD_ALIGN
        found.append(Group(at, at + length, durable, records))
        at += length
    return found


def apply(image: bytearray, groups: list[Group]) -> bytearray:
    """What a disk holds after these groups, one record after the other (rule 8: the order of the log)."""
    for group in groups:
        for kind, offset, length, _, payload in group.records:
            if kind == record.WRITE:
                image[offset:offset + length] = payload
            elif kind in (record.DISCARD, record.ZERO):
                image[offset:offset + length] = bytes(length)
    return image


class Rig:
    """A volume with an injector, its log files and a twin of the logical contents."""

    def __init__(self, directory: Path, size: int, ring: int = 16 * MIB, index: int = 16 * MIB) -> None:
        self.directory = directory
        self.size = size
        self.disk = Disk(directory / "disk", size)
        self.before = self.disk.contents()
        self.twin = bytearray(self.before)
        self.header = new_header(1, size)
        self.fds = {1: writer.create_log(str(directory), self.header)}
        self.volume = marsshadow.Volume(self.disk.fd, size, 512, ring, index)
        self.volume.allocate_step = MIB                 # read_groups reads all of a file
        self.volume.start(self.fds[1], self.header.pack(), BLOCK)
        self.injector = marsinject.Injector(self.volume)
        self.window = marsreplay.Window(4 * MIB)
        self.threads: list[threading.Thread] = []
        self.ends: dict[int, int] = {}

    def path(self, nr: int = 0) -> Path:
        """A log file; 0 = the newest."""
        return self.directory / f"log-{nr or max(self.fds):09d}-{HOST}"

    def spawn(self, body: Callable[[], object]) -> threading.Thread:
        """A thread that close() joins."""
        thread = threading.Thread(target=body, daemon=True)
        self.threads.append(thread)
        thread.start()
        return thread

    def write(self, offset: int, data: bytes) -> int:
        """A write, also into the twin."""
        self.twin[offset:offset + len(data)] = data
        return self.injector.write(offset, data)

    def zero(self, offset: int, length: int, kind: int = record.DISCARD) -> int:
        """A discard or a write of zeros, also into the twin."""
        self.twin[offset:offset + length] = bytes(length)
        return self.injector.zero(offset, length, kind)

    def step(self, rng: random.Random, longest: int = 64 * 1024) -> None:
        """A random write or discard at any multiple of 512."""
        length = 512 * min(rng.choice((1, 1, 2, 3, 8, 8, 8, 16, 100)), longest // 512)
        offset = 512 * rng.randrange((self.size - length) // 512 + 1)
        if rng.random() < 0.15:
            self.zero(offset, length * rng.choice((1, 1, 4)) if offset + 4 * length <= self.size else length,
                      rng.choice((record.DISCARD, record.ZERO)))
        else:
            self.write(offset, rng.randbytes(length))

    def logical(self) -> bytes:
        """All of the device as reads see it."""
        step = marsinject.WRITE_MAX
        return b"".join(self.injector.read(at, min(step, self.size - at)) for at in range(0, self.size, step))

    def write_back(self) -> bool:
        """One window; True when there was one."""
        if not self.volume.load_window(self.window):
            return False
        self.window.apply(self.disk.fd)
        self.volume.finish_window(self.window)
        return True

    def rotate(self, space: int = 0) -> LogPos:
        """Freeze, next log with `space` bytes for groups, switch."""
        pos, digest = self.volume.freeze()
        end = LogPos(self.header.nr, HOST, pos)
        self.ends[end.nr] = pos
        self.header = new_header(end.nr + 1, self.size, end, digest.hex())
        self.fds[end.nr + 1] = writer.create_log(str(self.directory), self.header, space)
        self.volume.switch(self.fds[end.nr + 1], self.header.pack(), BLOCK + space)
        return end

    def prefix(self) -> bytes:
        """What the data device must hold: the log up to the write-back position, nothing else (rule 2)."""
        cursor = self.volume.writeback_cursor
        image = bytearray(self.before)
        for nr in range(1, cursor.nr + 1):
            apply(image, read_groups(self.path(nr), cursor.pos if nr == cursor.nr else self.ends[nr]))
        return bytes(image)

    def close(self) -> None:
        """End threads, give everything back."""
        self.injector.hold(0)
        self.volume.request_stop()
        for thread in self.threads:
            thread.join(20)
            assert not thread.is_alive(), "a thread of the volume hangs"
        self.disk.close()
        for fd in self.fds.values():
            os.close(fd)


@pytest.fixture
def make_rig(tmp_path: Path) -> Iterator[Callable[..., Rig]]:
    """make_rig(size=..., ring=..., index=...)."""
    made: list[Rig] = []

    def make(size: int = 4 * MIB, **more: int) -> Rig:
        directory = tmp_path / f"rig{len(made)}"
        directory.mkdir()
        made.append(Rig(directory, size, **more))
        return made[-1]

    yield make
    for rig in made:
        rig.close()


class WrittenFacts:
    """Facts that writes every publication down, in order, with the disk's contents at that moment if asked for."""

    def __init__(self) -> None:
        self.told: list[tuple] = []
        self.look: Callable[[tuple], None] = lambda what: None

    def _tell(self, *what: object) -> None:
        self.look(what)
        self.told.append(what)

    def dirty(self, at: LogPos, length: int) -> None:
        """See env.Facts."""
        self._tell("dirty", at, length)

    def replayed(self, at: LogPos, digest: str) -> None:
        """See env.Facts."""
        self._tell("replayed", at, digest)

    def version(self, end: LogPos, digest: str, previous: str) -> None:
        """See env.Facts."""
        self._tell("version", end, digest, previous)

    def last(self, kind: str) -> tuple:
        """The newest publication of that kind."""
        return next(what for what in reversed(self.told) if what[0] == kind)


@dataclass
class Site:
    """One resource on one host: directory, disk, what was published, what went wrong."""

    directory: Path
    disk: Disk
    facts: WrittenFacts = field(default_factory=WrittenFacts)
    trouble: list[str] = field(default_factory=list)
    more: dict = field(default_factory=dict)

    @property
    def env(self) -> Env:
        """For Primary, Replayer, recover."""
        settings = {"window_bytes": 4 * MIB, "ring_bytes": 16 * MIB, "writeback_bytes": 1, "writeback_ms": 20,
                    "flush_ms": 1, **self.more}
        return Env(str(self.directory), UUID, RESOURCE, HOST, self.disk.size, 512, self.facts, time.time_ns,
                   on_trouble=self.trouble.append, **settings)

    def path(self, nr: int) -> Path:
        """A log file."""
        return self.directory / f"log-{nr:09d}-{HOST}"


@pytest.fixture
def make_site(tmp_path: Path) -> Iterator[Callable[..., Site]]:
    """make_site(size=..., **settings of Env)."""
    made: list[Site] = []

    def make(size: int = 4 * MIB, **more: int) -> Site:
        directory = tmp_path / f"site{len(made)}"
        directory.mkdir()
        made.append(Site(directory, Disk(tmp_path / f"disk{len(made)}", size), more=more))
        return made[-1]

    yield make
    for site in made:
        site.disk.close()


def flip(path: str | Path, offset: int, mask: int = 1) -> None:
    """Turn bits of one byte of a file over."""
    with open(path, "r+b") as file:
        file.seek(offset)
        byte, = struct.unpack("B", file.read(1))
        file.seek(offset)
        file.write(bytes([byte ^ mask]))
        file.flush()
        os.fsync(file.fileno())


class Serving:
    """A Primary with its threads and an injector, as the daemon runs one."""

    def __init__(self, site: Site, at: LogPos | None = None, digest: str = "", *, threads: bool = True,
                 durable: int = 0, **how: bool) -> None:
        self.site = site
        self.primary = Primary(site.env, site.disk.fd)
        self.threads: list[threading.Thread] = []
        try:
            self.primary.open(at or LogPos(1, HOST, 0), digest, lambda nr, producer: durable, **how)
        except BaseException:
            self.primary.close()
            raise
        self.injector = marsinject.Injector(self.primary.volume)
        one = self.primary
        bodies = (one.flusher_body, one.filler_body, one.writeback_body) if threads else ()
        for body in bodies:
            self.threads.append(threading.Thread(target=body, daemon=True))
            self.threads[-1].start()

    def __enter__(self) -> Serving:
        return self

    def __exit__(self, *_: object) -> None:
        self.primary.request_stop()
        for thread in self.threads:
            thread.join(20)
            assert not thread.is_alive(), "a thread of the primary hangs"
        self.primary.close()

    def logical(self) -> bytes:
        """All of the device as reads see it."""
        return self.injector.read(0, MIB) + b"".join(
            self.injector.read(at, MIB) for at in range(MIB, self.site.disk.size, MIB))


def tree_of(directory: str | Path) -> dict[str, bytes]:
    """Names and contents of all files: to show that something changed nothing."""
    return {path.name: path.read_bytes() for path in Path(directory).iterdir()}
