"""A writer that never stops over a data device, or a /mars, that cannot follow: the shadow's limit holds, writers are
slowed down smoothly and none fails."""
from __future__ import annotations

import os
import secrets
import subprocess
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.device.nullserver import null_device
from tests.fix_volume import MIB, Disk, Serving, WrittenFacts
from tests.fix_volume import Site as VolumeSite

SIZE = 32 * MIB
INDEX = 256 * 1024
EXTENTS_MOST = INDEX // 1304 * 32       # nodes of 1304 bytes hold up to 32 extents each

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(os.geteuid() != 0 or not os.path.exists("/dev/fuse") or not os.path.exists("/dev/loop-control"),
                       reason="needs root, /dev/fuse and /dev/loop-control"),
]


@dataclass
class SlowDisk:
    """A data device behind the null server: 4 writes at a time, each takes 2 ms."""

    path: str
    file: Path
    fd: int
    size: int = SIZE


@pytest.fixture
def slow_disk(tmp_path: Path, null_library: str) -> Iterator[SlowDisk]:
    file = tmp_path / "disk"
    file.write_bytes(bytes(SIZE))
    with null_device(null_library, f"slow{secrets.token_hex(4)}", SIZE, clones=4, backing=str(file),
                     delay_us=2000) as path:
        fd = os.open(path, os.O_RDWR | os.O_DIRECT | os.O_CLOEXEC)
        try:
            yield SlowDisk(path, file, fd)
        finally:
            os.close(fd)


@pytest.fixture
def slow_mars(tmp_path: Path, null_library: str) -> Iterator[Path]:
    """A file system that takes up to 1 MiB in 30 ms, one write at a time."""
    file, folder = tmp_path / "mars-disk", tmp_path / "mars"
    folder.mkdir()
    file.write_bytes(bytes(8 * SIZE))
    with null_device(null_library, f"slow{secrets.token_hex(4)}", 8 * SIZE, clones=1, backing=str(file),
                     delay_us=30_000) as path:
        subprocess.run(["mkfs.ext4", "-q", "-F", "-I", "256", "-E", "lazy_itable_init=1,nodiscard", "-O",
                        "^has_journal", path], check=True)
        subprocess.run(["mount", "-t", "ext4", path, str(folder)], check=True)
        try:
            yield folder
        finally:
            subprocess.run(["umount", str(folder)], check=True)


class Watcher:
    """Looks at the volume again and again: the most extents; and the pauses, which are times without any answer to a
    write, from the moment on at which writers are held up."""

    def __init__(self, volume) -> None:
        self.volume, self.most, self.stop = volume, 0, threading.Event()
        self.pauses: list[float] = []
        self.thread = threading.Thread(target=self._look)
        self.thread.start()

    def _look(self) -> None:
        written, since = -1, 0.0
        while not self.stop.wait(0.005):
            self.most = max(self.most, self.volume.state["extents"])
            now, counters = time.monotonic(), self.volume.counters
            count = counters["writes"]
            if count != written and counters["paced"] + counters["waits"]:
                self.pauses += [now - since] if since else []
                written, since = count, now

    def standing(self) -> float:
        """The part of the time that went by in pauses of more than a 50th of it."""
        whole = sum(self.pauses)
        return sum(pause for pause in self.pauses if pause > whole / 50) / whole

    def end(self) -> None:
        self.stop.set()
        self.thread.join()


def test_the_limit_of_the_shadow_holds(slow_disk, tmp_path, record_property):
    """Design D 4: a full shadow slows writers down and never fails them, and it does so smoothly: they do not stop and
    go with the windows of write-back. What they wrote is what the disk holds at the end."""
    logs = tmp_path / "logs"
    logs.mkdir()
    site = VolumeSite(logs, slow_disk, WrittenFacts(), more={"index_bytes": INDEX, "writeback_bytes": 256 * 1024})
    with Serving(site, first=True) as one:
        volume, results = one.primary.volume, []
        watcher = Watcher(volume)
        writers = [threading.Thread(target=lambda seed=seed: results.append(
            one.injector.run_writes(5000, 4096, 32, seed))) for seed in (1, 2)]
        for writer in writers:
            writer.start()
        for writer in writers:
            writer.join()
        watcher.end()
        assert [errors for _, errors in results] == [0, 0]
        assert volume.counters["writes"] == 10_000
        assert volume.counters["paced"] > 1000, "the limit was never met: this proves nothing"
        assert EXTENTS_MOST // 4 < watcher.most <= EXTENTS_MOST
        longest, standing = max(watcher.pauses), watcher.standing()
        record_property("longest_stall_s", round(longest, 3))
        print(f"longest time without an answer: {longest * 1000:.0f} ms, extents at most {watcher.most}, "
              f"{standing:.0%} of the time in pauses")
        assert standing < 0.5, sorted(watcher.pauses)[-20:]
        seen = one.logical()
        one.primary.end()
        assert site.trouble == [] and slow_disk.file.read_bytes() == seen


def counted(one: Serving, records: int) -> dict:
    """The counters behind 32 more writes, `records` in all: they are counted a moment after they are answered."""
    assert one.injector.run_writes(32, MIB, 32)[1] == 0
    end = time.monotonic() + 30
    while one.primary.volume.counters["records"] < records and time.monotonic() < end:
        time.sleep(0.01)
    return one.primary.volume.counters


def test_a_slow_mars(slow_mars, tmp_path):
    """Writers that write much at a time get answers one after the other, not all of them when a long group is written:
    groups get short where a long one takes long."""
    site = VolumeSite(slow_mars, Disk(tmp_path / "disk", SIZE), WrittenFacts(), more={"writeback_bytes": 1 << 30})
    try:
        with Serving(site, first=True) as one:
            before, after = [counted(one, 32 * number) for number in (1, 2)]
            assert after["records"] == 64
            assert after["groups"] - before["groups"] >= 16, after["group_sizes"]
            one.primary.end()
            assert site.trouble == []
    finally:
        site.disk.close()
