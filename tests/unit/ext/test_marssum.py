"""`marssum`: every kernel gives the twin's bits, a demanded kernel is never replaced, the codec is safe."""
from __future__ import annotations

import importlib.util
import os
import random
import struct
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from marsx._ext import marssum

TOP = Path(__file__).resolve().parents[3]
CRC = ("crc32c/scalar", "crc32c/sse42", "crc32c/avx512")
XXH3 = ("xxh3/sse2", "xxh3/avx2", "xxh3/avx512")


def load_twin() -> ModuleType:
    """tests/ref/sums.py, wherever the tests were started."""
    spec = importlib.util.spec_from_file_location("ref_sums", TOP / "tests/ref/sums.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


twin = load_twin()


@pytest.fixture(autouse=True)
def default_kernels() -> Iterator[None]:
    """Whatever a test selects, the next one starts with the defaults."""
    before = marssum.selected()
    yield
    for name in before:
        marssum.select_kernel(name)


def use(name: str) -> None:
    """Selects a kernel or skips, saying so."""
    if name not in marssum.kernels():
        pytest.skip(f"this processor cannot run {name}")
    marssum.select_kernel(name)
    assert name in marssum.selected()


def shifted(data: bytes, by: int) -> memoryview:
    """The same bytes at another alignment."""
    return memoryview(bytes(by) + data)[by:]


# ---- kernels

@pytest.mark.parametrize("kernel", CRC)
@pytest.mark.parametrize(("data", "crc"), [
    (b"", 0),
    (b"123456789", 0xE3069283),
    (bytes(32), 0x8A9136AA),
    (b"\xff" * 32, 0x62A8AB43),
    (bytes(range(32)), 0x46DD794E),
    (bytes(range(31, -1, -1)), 0x113FDB5C),
])
def test_crc32c_published_values(kernel: str, data: bytes, crc: int) -> None:
    """The check value, and the examples of RFC 3720 B.4."""
    use(kernel)
    assert marssum.crc32c(data) == crc


@pytest.mark.parametrize("kernel", XXH3)
def test_xxh3_published_values_and_byte_order(kernel: str) -> None:
    """Digests are in the canonical order: the high half first, big endian."""
    use(kernel)
    assert marssum.xxh3_64(b"") == 0x2D06800538D394C2
    assert marssum.xxh3_128(b"").hex() == "99aa06d3014798d86001c324468d497f"


@pytest.mark.parametrize("kernel", CRC + XXH3)
def test_each_length_around_the_borders(kernel: str) -> None:
    """All lengths that end in another branch of a kernel: short forms, strides of 8, 64, 240, 256, 504, 1024, 4080."""
    use(kernel)
    data = random.Random(1).randbytes(70000)
    lengths = [*range(0, 600), *range(1016, 1034), *range(1340, 1370), *range(4070, 4110), 8191, 8192, 65536, 69999]
    for n in lengths:
        part = shifted(data[:n], n % 64)
        if kernel in CRC:
            assert marssum.crc32c(part) == twin.crc32c(data[:n]), n
        else:
            assert marssum.xxh3_128(part) == twin.xxh3_128(data[:n]), n
            assert marssum.xxh3_64(part) == twin.xxh3_64(data[:n]), n


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 70000), st.integers(0, 63), st.integers(0, 2**32), st.integers(0, 2**32 - 1))
def test_all_kernels_give_the_twins_bits(n: int, align: int, seed: int, crc: int) -> None:
    """Any length, alignment, content and start value."""
    data = random.Random(seed).randbytes(n)
    part = shifted(data, align)
    want = twin.crc32c(data, crc), twin.xxh3_64(data), twin.xxh3_128(data)
    for name in marssum.kernels():
        marssum.select_kernel(name)
        assert (marssum.crc32c(part, crc), marssum.xxh3_64(part), marssum.xxh3_128(part)) == want, name


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(0, 9000), max_size=5), st.integers(0, 2**32))
def test_crc32c_goes_on_where_it_stopped(cuts: list[int], seed: int) -> None:
    """crc(crc(a), b) = crc(ab), with a change of kernel between the parts."""
    data = random.Random(seed).randbytes(sum(cuts))
    crc, at = 0, 0
    names = [name for name in marssum.kernels() if name in CRC]
    for i, n in enumerate(cuts):
        marssum.select_kernel(names[i % len(names)])
        crc = marssum.crc32c(data[at:at + n], crc)
        at += n
    assert crc == marssum.crc32c(data)


def test_any_contiguous_buffer_is_taken() -> None:
    """bytes, bytearray, memoryview and mapped memory are the same; others are refused."""
    data = bytes(range(256)) * 20
    for buffer in (data, bytearray(data), memoryview(data)):
        assert marssum.crc32c(buffer) == twin.crc32c(data)
    refused: list[Any] = ["text", None, 5, memoryview(data)[::2]]
    for wrong in refused:
        with pytest.raises((TypeError, BufferError)):
            marssum.crc32c(wrong)
    with pytest.raises(OverflowError):
        marssum.crc32c(b"", 1 << 32)


# ---- choice of kernel

def test_kernels_start_with_the_oracle() -> None:
    """The scalar CRC and the lowest XXH3 level run everywhere; what is in use is one of the list."""
    names = marssum.kernels()
    assert names[0] == "crc32c/scalar" and "xxh3/sse2" in names
    assert set(marssum.selected()) <= set(names)


@pytest.mark.parametrize("name", ["", "scalar", "crc32c/", "crc32c/avx1024", "xxh3/scalar", "CRC32C/SCALAR"])
def test_unknown_kernel_is_refused_and_changes_nothing(name: str) -> None:
    """An override is a demand: no fallback."""
    before = marssum.selected()
    with pytest.raises(ValueError, match="there are: crc32c/scalar"):
        marssum.select_kernel(name)
    assert marssum.selected() == before


def in_new_process(code: str, **environ: str) -> subprocess.CompletedProcess[str]:
    """Runs code in a fresh interpreter."""
    return subprocess.run([sys.executable, "-c", code], cwd=TOP, env={**os.environ, **environ},
                          capture_output=True, text=True, timeout=60)


def test_environment_selects_the_kernels() -> None:
    """MARS_CRC_KERNEL and MARS_XXH3_KERNEL are obeyed."""
    done = in_new_process("from marsx._ext import marssum; print(*marssum.selected())",
                          MARS_CRC_KERNEL="scalar", MARS_XXH3_KERNEL="sse2")
    assert done.stdout.split() == ["crc32c/scalar", "xxh3/sse2"], done.stderr


@pytest.mark.parametrize(("extension", "variable"), [
    ("marssum", "MARS_CRC_KERNEL"), ("marssum", "MARS_XXH3_KERNEL"), ("marscmp", "MARS_XXH3_KERNEL"),
])
def test_environment_demanding_what_is_not_here_stops_the_import(extension: str, variable: str) -> None:
    """A demand that cannot be met never falls back silently."""
    done = in_new_process(f"import marsx._ext.{extension}", **{variable: "abacus"})
    assert done.returncode != 0 and "ValueError" in done.stderr and "'abacus'" in done.stderr


# ---- threads

def test_long_buffers_release_the_gil() -> None:
    """While one thread is inside a call, another one runs; without the release nobody would be switched away."""
    data = bytes(32 << 20)
    before = sys.getswitchinterval()
    marssum.select_kernel("crc32c/scalar")
    sys.setswitchinterval(1000)
    try:
        assert any(_ran_meanwhile(lambda: marssum.crc32c(data)) for _ in range(50))
    finally:
        sys.setswitchinterval(before)


def _ran_meanwhile(call: Callable[[], object]) -> bool:
    started, ended = threading.Event(), []

    def work() -> None:
        started.set()
        call()
        ended.append(True)

    thread = threading.Thread(target=work)
    thread.start()
    started.wait()
    result = not ended
    thread.join()
    return result


def test_threads_agree_while_the_kernel_changes() -> None:
    """Selecting is atomic: a call sees one kernel or the other, and both give the same bits."""
    data = random.Random(5).randbytes(200_000)
    want = marssum.crc32c(data), marssum.xxh3_128(data)
    wrong: list[object] = []
    stop = threading.Event()

    def work() -> None:
        while not stop.is_set():
            got = marssum.crc32c(data), marssum.xxh3_128(data)
            if got != want:
                wrong.append(got)

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for _ in range(30):
        for name in marssum.kernels():
            marssum.select_kernel(name)
    stop.set()
    for thread in threads:
        thread.join()
    assert not wrong


# ---- codec

def blocky(seed: int, size: int) -> bytes:
    """Data as on a disk: some text, some zeros, some noise."""
    rnd = random.Random(seed)
    parts: list[bytes] = []
    while sum(map(len, parts)) < size:
        n = rnd.randrange(1, 5000)
        parts.append(rnd.choice([bytes(n), rnd.randbytes(n), rnd.randbytes(7) * (n // 7 + 1), b"mars " * (n // 5 + 1)]))
    return b"".join(parts)[:size]


@settings(max_examples=120, deadline=None)
@given(st.integers(0, 2**32), st.integers(0, 300_000), st.sampled_from(["lz4", "zstd"]), st.integers(1, 9))
def test_what_is_compressed_is_shorter_and_comes_back(seed: int, size: int, codec: str, level: int) -> None:
    """Round trip; and never a chunk that is not shorter than the data."""
    data = blocky(seed, size)
    chunk = marssum.compress(shifted(data, seed % 8), codec, level)
    if chunk is not None:
        assert len(chunk) < size
        assert marssum.decompress(chunk, size) == data
        with pytest.raises(ValueError, match="allowed"):
            marssum.decompress(chunk, size - 1)


@pytest.mark.parametrize("codec", ["lz4", "zstd"])
@pytest.mark.parametrize("size", [0, 1, 31, 32, 33, 34, 100, 4096, 65536, 1 << 20])
def test_what_does_not_shrink_is_none(codec: str, size: int) -> None:
    """Random bytes of any size; what shrinks much is not None (so the first half is not vacuous)."""
    assert marssum.compress(random.Random(size).randbytes(size), codec) is None
    if size >= 4096:
        assert len(marssum.compress(bytes(size), codec) or b"") == 32
        assert len(marssum.compress(b"ab" * (size // 2), codec) or bytes(size)) < size // 20


@pytest.mark.parametrize(("codec", "level", "text"), [
    ("gzip", 5, "codec 'gzip'"), ("", 5, "there are: lz4, zstd"), ("lz4", 0, "level 0"), ("zstd", 10, "level 10"),
])
def test_wrong_codec_or_level(codec: str, level: int, text: str) -> None:
    """Named, not guessed."""
    with pytest.raises(ValueError, match=text):
        marssum.compress(bytes(4096), codec, level)


def packed(data: bytes, codec: str) -> bytes:
    """A chunk of data that do shrink."""
    chunk = marssum.compress(data, codec, 1)
    assert chunk is not None
    return chunk


CHUNKS = {codec: packed(blocky(3, 50_000), codec) for codec in ("lz4", "zstd")}


@pytest.mark.parametrize("codec", ["lz4", "zstd"])
def test_truncated_or_lengthened_chunks(codec: str) -> None:
    """Every length but the right one is refused."""
    chunk = CHUNKS[codec]
    for n in [*range(0, 200), *range(200, len(chunk), 997), len(chunk) - 1]:
        with pytest.raises(ValueError):
            marssum.decompress(chunk[:n], 1 << 20)
    with pytest.raises(ValueError):
        marssum.decompress(chunk + b"\0", 1 << 20)


@pytest.mark.parametrize("codec", ["lz4", "zstd"])
def test_each_header_bit_that_is_not_a_length_is_fixed(codec: str) -> None:
    """Filters, dictionaries, lazy, plain copied or uninitialised chunks, other codecs: none gets to the library."""
    for bit in [*range(0, 32), *range(128, 256)]:
        chunk = bytearray(CHUNKS[codec])
        chunk[bit // 8] ^= 1 << bit % 8
        with pytest.raises(ValueError, match="not one of ours|zeros are"):
            marssum.decompress(bytes(chunk), 1 << 20)


@pytest.mark.parametrize(("field", "value", "text"), [
    (4, 0, "hold 0 bytes"),
    (4, 0xFFFFFFFF, "allowed are"),
    (4, 0x7FFFFFFF, "allowed are"),
    (4, 0x7FFFFF00, "cannot hold"),
    (8, 0, "blocks of 0"),
    (8, 0x80000000, "blocks of 2147483648"),
    (8, 1, "cannot hold"),
    (12, 31, "they are 31 bytes long"),
    (12, 0xFFFFFFFF, "they are 4294967295"),
])
def test_lengths_are_checked_before_memory_is_taken(field: int, value: int, text: str) -> None:
    """A peer cannot make us allocate what his bytes cannot hold, whatever is allowed."""
    chunk = bytearray(CHUNKS["lz4"])
    struct.pack_into("<I", chunk, field, value)
    with pytest.raises(ValueError, match=text):
        marssum.decompress(bytes(chunk), 1 << 40)


def test_zeros_chunk_is_only_a_header() -> None:
    """The form for zeros has no body, and is bounded by what is allowed like all others."""
    chunk = packed(bytes(1 << 20), "lz4")
    assert marssum.decompress(chunk, 1 << 20) == bytes(1 << 20)
    with pytest.raises(ValueError, match="allowed are 1048575"):
        marssum.decompress(chunk, (1 << 20) - 1)
    longer = bytearray(chunk + bytes(100))
    struct.pack_into("<I", longer, 12, len(longer))
    with pytest.raises(ValueError, match="zeros are 132 bytes"):
        marssum.decompress(bytes(longer), 1 << 20)


@settings(max_examples=400, deadline=None)
@given(st.sampled_from(["lz4", "zstd"]), st.lists(st.tuples(st.integers(0, 10**6), st.integers(1, 255)), max_size=12),
       st.integers(0, 2**32))
def test_hostile_bodies_never_break_out(codec: str, edits: list[tuple[int, int]], seed: int) -> None:
    """Any damage behind the header: the length the header says, or ValueError; never a crash, never another length."""
    chunk = bytearray(CHUNKS[codec])
    for where, value in edits:
        chunk[32 + where % (len(chunk) - 32)] ^= value
    if seed % 3 == 0:       # the table of blocks is the weak spot
        struct.pack_into("<i", chunk, 32, seed - 2**31 & 0x7FFFFFFF)
    try:
        assert len(marssum.decompress(bytes(chunk), 1 << 20)) == 50_000
    except ValueError as error:
        assert "damaged" in str(error)


@pytest.mark.parametrize("junk", [b"", b"\x05", bytes(31), bytes(32), bytes(4096), b"\xff" * 100])
def test_junk_is_refused(junk: bytes) -> None:
    """Nothing that is not ours."""
    with pytest.raises(ValueError):
        marssum.decompress(junk, 1 << 20)
    with pytest.raises(ValueError):
        marssum.decompress(CHUNKS["lz4"], -1)
