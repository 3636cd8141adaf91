"""CRC-32C, XXH3 and the codec: each kernel beside memcmp of the same bytes, which is what reading them costs anyway.

Arithmetic first: a 4 KiB payload is summed once by the writer, once by each reader of the log. At 100,000 writes a
second that is 0.4 GB/s; at 60 GB/s it is 0.7 % of a core, at the scalar kernel's 2 GB/s it is 20 %.

Every benchmark does the same number of bytes (TOTAL) in one round, so `min` compares directly; GB/s is in extra_info.
Rounds of 4 KiB include a Python call for each 4 KiB (0.1 µs; the memcmp one 0.2 µs, most of its time): the kernels
inside the log and the replay engine do not have it. Do not conclude from these numbers how fast memory is: only 64 MiB
does not stay in the cache.
The default kernels were chosen from this page: avx512 > sse42 > scalar for CRC, avx512 > avx2 > sse2 for XXH3.

The rows of the report compare the defaults with the best public code known to us: awscrt's CRC-32C (which was the
fastest of awscrt, google-crc32c and ISA-L's older one), and xxhash.h as its authors have it, compiled for just this
processor.
"""
from __future__ import annotations

import ctypes
import random
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from awscrt import checksums
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


@pytest.mark.parametrize("size", ["4K", "64K", "1M"])
def test_crc32c_public(benchmark: BenchmarkFixture, size: str) -> None:
    """Somebody else's."""
    benchmark.group = f"CRC-32C {size}"
    data = bytes(range(256))
    assert checksums.crc32c(data) == marssum.crc32c(data)
    content = random.Random(1).randbytes(SIZES[size])            # it takes no memoryview
    measure(benchmark, lambda data: checksums.crc32c(content), SIZES[size])
    benchmark.extra_info["bytes"] = TOTAL


@pytest.mark.parametrize("size", ["4K", "64K", "1M"])
def test_crc32c_ours(benchmark: BenchmarkFixture, size: str) -> None:
    """Ours, in the same way."""
    benchmark.group = f"CRC-32C {size}"
    content = random.Random(1).randbytes(SIZES[size])
    measure(benchmark, lambda data: marssum.crc32c(content), SIZES[size])
    benchmark.extra_info.update(report=f"CRC-32C of {size}", bytes=TOTAL, against=f"test_crc32c_public[{size}]",
                                goal=">= 0.8")


XXHASH = """
#define XXH_INLINE_ALL
#include <xxhash.h>
void digest(const void *p, size_t n, XXH128_hash_t *to) { *to = XXH3_128bits(p, n); }
"""


@pytest.fixture(scope="module")
def xxhash(tmp_path_factory: pytest.TempPathFactory) -> Callable[[bytes], bytes]:
    """The authors' XXH3, for what this processor has (-march=native is the slower choice here)."""
    flags = Path("/proc/cpuinfo").read_text()
    width = "-mavx512f" if "avx512f" in flags else "-mavx2" if "avx2" in flags else "-msse2"
    source = tmp_path_factory.mktemp("xxhash") / "xxhash.c"
    source.write_text(XXHASH)
    target = source.with_suffix(".so")
    subprocess.run(["gcc", "-O3", width, "-fno-tree-vectorize", "-shared", "-fPIC", str(source), "-o",
                    str(target)], check=True)
    digest, to = ctypes.CDLL(str(target)).digest, (ctypes.c_uint64 * 2)()
    digest.argtypes = [ctypes.c_char_p, ctypes.c_size_t, ctypes.c_void_p]

    def call(data: bytes) -> bytes:
        digest(data, len(data), to)
        return to[1].to_bytes(8, "big") + to[0].to_bytes(8, "big")

    return call


@pytest.mark.parametrize("size", ["64K", "1M"])
def test_xxh3_public(benchmark: BenchmarkFixture, xxhash: Callable[[bytes], bytes], size: str) -> None:
    """The authors'."""
    benchmark.group = f"XXH3 {size}"
    content = random.Random(1).randbytes(SIZES[size])
    assert xxhash(content) == marssum.xxh3_128(content)
    measure(benchmark, lambda data: xxhash(content), SIZES[size])
    benchmark.extra_info["bytes"] = TOTAL


@pytest.mark.parametrize("size", ["64K", "1M"])
def test_xxh3_ours(benchmark: BenchmarkFixture, size: str) -> None:
    """Ours, in the same way."""
    benchmark.group = f"XXH3 {size}"
    content = random.Random(1).randbytes(SIZES[size])
    measure(benchmark, lambda data: marssum.xxh3_128(content), SIZES[size])
    benchmark.extra_info.update(report=f"XXH3-128 of {size}", bytes=TOTAL, against=f"test_xxh3_public[{size}]",
                                goal=">= 0.8")


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
