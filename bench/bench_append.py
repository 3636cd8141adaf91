"""The append engine alone (no device, no write-back, no sync) beside raw O_DIRECT writes of the same bytes to a file on
the same file system whose space was written before.

Arithmetic first: a group of one 1 MiB record is 1.004 times its data, so 0.95 of raw leaves 4.6 % for the copy into the
ring, CRC and digest; these run while another group is being written. The log here is a file whose space is already
written (what a recycled log is), as is the raw one.
Do not conclude the speed of /dev/mars: the kernel's path and the write-back come on top.
"""
from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from marsx._ext import marscmp, marsinject, marsshadow
from marsx.log import record, writer
from marsx.log.record import BLOCK, FileHeader

MIB = 1 << 20
TOTAL = 192 * MIB
THREADS = 4


class Engine:
    """A volume with a written log and a few writers."""

    def __init__(self, where: Path) -> None:
        size = 1 << 30
        header = FileHeader(nr=1, producer="a", resource="data", uuid="bench", log_id=record.new_log_id(),
                            device_size=size, block_size=512, lamport_ns=time.time_ns(), real_ns=time.time_ns())
        self.log = writer.create_log(str(where), header, 2 * TOTAL)
        block = marscmp.AlignedBuffer(MIB)
        for at in range(BLOCK, BLOCK + 2 * TOTAL, MIB):
            os.pwritev(self.log, [block], at)
        os.fsync(self.log)
        self.disk = os.open(where / "disk", os.O_RDWR | os.O_CREAT)
        os.truncate(where / "disk", size)
        self.volume = marsshadow.Volume(self.disk, size)
        self.volume.start(self.log, header.pack(), BLOCK + 2 * TOTAL)
        self.injector = marsinject.Injector(self.volume)

    def run(self, count: int, block: int, depth: int) -> None:
        """`count` writes by THREADS threads."""
        share = [threading.Thread(target=self.injector.run_writes, args=(count // THREADS, block, depth, seed))
                 for seed in range(THREADS)]
        for thread in share:
            thread.start()
        for thread in share:
            thread.join()

    def close(self) -> None:
        self.volume.request_stop()
        os.close(self.log)
        os.close(self.disk)


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[Engine]:
    one = Engine(tmp_path)
    yield one
    one.close()


def test_raw_1m(benchmark: BenchmarkFixture, written_file: Path) -> None:
    """The yardstick: 1 MiB after 1 MiB."""
    benchmark.group = "append 1M"
    fd = os.open(written_file, os.O_WRONLY | os.O_DIRECT)
    block = marscmp.AlignedBuffer(MIB)

    def write() -> None:
        for at in range(0, TOTAL, MIB):
            os.pwritev(fd, [block], at)

    benchmark.pedantic(write, rounds=3, warmup_rounds=1)
    os.close(fd)
    benchmark.extra_info.update(report="raw O_DIRECT write, 1 MiB", bytes=TOTAL)


def test_append_1m(benchmark: BenchmarkFixture, engine: Engine) -> None:
    """1 MiB records, several writers."""
    benchmark.group = "append 1M"
    benchmark.pedantic(engine.run, (TOTAL // MIB, MIB, 8), rounds=1)
    benchmark.extra_info.update(report="log append, 1 MiB records", bytes=TOTAL, against="test_raw_1m", goal=">= 0.95")


def test_append_4k(benchmark: BenchmarkFixture, engine: Engine) -> None:
    """4 KiB records, 32 outstanding."""
    benchmark.group = "append 4k"
    benchmark.pedantic(engine.run, (16384, 4096, 32), rounds=1)
    benchmark.extra_info.update(report="log append, 4 KiB records, depth 32", bytes=16384 * 4096)
