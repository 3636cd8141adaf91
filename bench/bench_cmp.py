"""Sync's block compare: digests of spans beside memcmp of the same spans, and the way from a file with O_DIRECT.

Arithmetic first: fast full sync and verify of equal data must reach 0.8 of reading both devices. With one core for
digests and devices that read 1 to 10 GB/s, digests at 20 GB/s and more (memory that is not in the cache) cost at most
a third of the reading, and run beside the reading of the next span. On the wire 16 bytes go for 4096: 0.4 %;
a larger block makes it less (0.1 % at 16 KiB).
Do not conclude the speed of a sync from the span groups: they do not read.
"""
from __future__ import annotations

import os
import random
from collections.abc import Iterator
from pathlib import Path

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from marsx._ext import marscmp

SPAN = 1 << 20
COLD = 128 << 20


def rate(benchmark: BenchmarkFixture, size: int) -> None:
    """Notes the rate of the best round."""
    benchmark.extra_info["GB/s"] = round(size / benchmark.stats.stats.min / 1e9, 2)


def noise(size: int) -> bytes:
    """No zeros, and no block twice within 1 MiB."""
    return random.Random(3).randbytes(min(size, SPAN)) * max(1, size // SPAN)


@pytest.mark.parametrize("size", [SPAN, COLD], ids=["1M", "128M"])
def test_memcmp(benchmark: BenchmarkFixture, size: int) -> None:
    """The yardstick."""
    benchmark.group = f"span {size >> 20}M"
    one, two = noise(size), bytearray(noise(size))
    assert benchmark.pedantic(marscmp.compare, (one, two), rounds=10, warmup_rounds=1) == []
    rate(benchmark, size)


@pytest.mark.parametrize("block", [4096, 65536])
@pytest.mark.parametrize("size", [SPAN, COLD], ids=["1M", "128M"])
@pytest.mark.parametrize("kind", marscmp.KINDS)
def test_digests(benchmark: BenchmarkFixture, kind: str, size: int, block: int) -> None:
    """Digests of one span."""
    if kind != "xxh3" and size == COLD:
        pytest.skip("hashlib's kinds do not depend on the cache")
    benchmark.group = f"span {size >> 20}M"
    benchmark.pedantic(marscmp.digests, (noise(size), block, kind), rounds=10, warmup_rounds=1)
    rate(benchmark, size)


@pytest.mark.parametrize("size", [SPAN, COLD], ids=["1M", "128M"])
def test_digests_of_zeros(benchmark: BenchmarkFixture, size: int) -> None:
    """Blocks that need no hash."""
    benchmark.group = f"span {size >> 20}M"
    benchmark.pedantic(marscmp.digests, (bytes(size),), rounds=10, warmup_rounds=1)
    rate(benchmark, size)


@pytest.mark.parametrize("every", [0, 1000, 2], ids=["equal", "one in 1000", "every other"])
def test_differ(benchmark: BenchmarkFixture, every: int) -> None:
    """Digests of 4 GiB in blocks of 4 KiB, compared; every other block different is the worst case."""
    benchmark.group = "differ 1M digests"
    mine = noise(16 << 20)
    theirs = bytearray(mine)
    if every:
        theirs[::16 * every] = bytes(255 - value for value in theirs[::16 * every])
    runs = benchmark.pedantic(marscmp.differ, (mine, theirs), rounds=5, warmup_rounds=1)
    assert len(runs) == (-(-(1 << 20) // every) if every else 0)


@pytest.fixture
def direct(tmp_path: Path) -> Iterator[int]:
    """A file of 64 MiB opened with O_DIRECT."""
    path = tmp_path / "disk"
    path.write_bytes(noise(64 << 20))
    try:
        fd = os.open(path, os.O_RDWR | os.O_DIRECT)
    except OSError as error:
        pytest.skip(f"no O_DIRECT on {tmp_path}: {error}")
    os.fsync(fd)
    yield fd
    os.close(fd)


@pytest.mark.parametrize("what", ["read", "read and digest", "write"])
def test_span_io(benchmark: BenchmarkFixture, direct: int, what: str) -> None:
    """64 MiB in spans of 1 MiB: what digests add to reading."""
    benchmark.group = "span io"
    scratch = marscmp.AlignedBuffer(SPAN)

    def one_pass() -> None:
        for offset in range(0, 64 << 20, SPAN):
            if what == "read":
                marscmp.read_span(direct, offset, scratch)
            elif what == "write":
                marscmp.write_span(direct, offset, scratch)
            else:
                marscmp.read_digests(direct, offset, SPAN, 4096, scratch)

    benchmark.pedantic(one_pass, rounds=5, warmup_rounds=1)
    rate(benchmark, 64 << 20)
