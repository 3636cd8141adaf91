"""CRC-32C, XXH3 and the codec: each kernel beside memcmp of the same bytes, which is what reading them costs anyway.

Arithmetic first: a 4 KiB payload is summed once by the writer, once by each reader of the log. At 100,000 writes a
second that is 0.4 GB/s; at 60 GB/s it is 0.7 % of a core, at the scalar kernel's 2 GB/s it is 20 %.

Every benchmark does the same number of bytes (TOTAL) in one round, so `min` compares directly; GB/s is in extra_info.
Rounds of 4 KiB include a Python call for each 4 KiB (0.1 µs; the memcmp one 0.2 µs, most of its time): the kernels
inside the log and the replay engine do not have it. Do not conclude from these numbers how fast memory is: only 64 MiB
does not stay in the cache.
The default kernels were chosen from this page: avx512 > sse42 > scalar for CRC, avx512 > avx2 > sse2 for XXH3.
"""
from __future__ import annotations

import random
from collections.abc import Callable, Iterator

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from marsx._ext import marscmp, marssum

SIZES = {"4K": 4096, "64K": 65536, "1M": 1 << 20, "64M": 64 << 20}
TOTAL = 64 << 20


@pytest.fixture(autouse=True)
def default_kernels() -> Iterator[None]:
    """Each benchmark starts with the defaults."""
    before = marssum.selected()
    yield
    for name in before:
        marssum.select_kernel(name)


def measure(benchmark: BenchmarkFixture, work: Callable[[memoryview], object], size: int, total: int = TOTAL) -> None:
    """Runs work over total bytes in buffers of size, and notes the rate of the best round."""
    data = memoryview(random.Random(1).randbytes(min(size, 1 << 20)) * max(1, size >> 20))
    count = total // size

    def rounds() -> None:
        for _ in range(count):
            work(data)

    benchmark.pedantic(rounds, rounds=7, warmup_rounds=1)
    benchmark.extra_info["GB/s"] = round(total / benchmark.stats.stats.min / 1e9, 2)


@pytest.mark.parametrize("size", SIZES)
def test_memcmp(benchmark: BenchmarkFixture, size: str) -> None:
    """The yardstick: two equal buffers compared."""
    benchmark.group = f"sum {size}"
    other = random.Random(1).randbytes(min(SIZES[size], 1 << 20)) * max(1, SIZES[size] >> 20)
    measure(benchmark, lambda data: marscmp.compare(data, other, len(other)), SIZES[size])


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("kernel", marssum.kernels())
def test_kernel(benchmark: BenchmarkFixture, kernel: str, size: str) -> None:
    """One kernel at one size."""
    benchmark.group = f"sum {size}"
    marssum.select_kernel(kernel)
    measure(benchmark, marssum.crc32c if kernel.startswith("crc32c") else marssum.xxh3_128, SIZES[size])


def sample(kind: str, size: int) -> bytes:
    """Half text-like, half noise; or noise only; or zeros."""
    rnd = random.Random(2)
    if kind == "zeros":
        return bytes(size)
    if kind == "noise":
        return rnd.randbytes(size)
    words = [rnd.randbytes(rnd.randrange(2, 9)) for _ in range(500)]
    text = b"".join(rnd.choices(words, k=size // 8))[:size // 2]
    return text + rnd.randbytes(size - len(text))


@pytest.mark.parametrize("kind", ["mixed", "noise", "zeros"])
@pytest.mark.parametrize(("codec", "level"), [("lz4", 5), ("zstd", 1)])
def test_compress(benchmark: BenchmarkFixture, codec: str, level: int, kind: str) -> None:
    """1 MiB at a time, as on the wire."""
    benchmark.group = f"compress {kind}"
    data = sample(kind, 1 << 20)
    chunk = benchmark.pedantic(marssum.compress, (data, codec, level), rounds=10, warmup_rounds=1)
    benchmark.extra_info["GB/s"] = round(len(data) / benchmark.stats.stats.min / 1e9, 2)
    benchmark.extra_info["ratio"] = round(len(data) / len(chunk), 2) if chunk else 1.0


@pytest.mark.parametrize(("codec", "level"), [("lz4", 5), ("zstd", 1)])
def test_decompress(benchmark: BenchmarkFixture, codec: str, level: int) -> None:
    """1 MiB at a time, as on the wire."""
    benchmark.group = "decompress mixed"
    data = sample("mixed", 1 << 20)
    chunk = marssum.compress(data, codec, level)
    assert chunk is not None
    assert benchmark.pedantic(marssum.decompress, (chunk, len(data)), rounds=10, warmup_rounds=1) == data
    benchmark.extra_info["GB/s"] = round(len(data) / benchmark.stats.stats.min / 1e9, 2)
