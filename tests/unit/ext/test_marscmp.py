"""`marscmp`: digests and runs are the twin's, "zero" means zero, and a span is done entirely or is an error."""
from __future__ import annotations

import errno
import gc
import importlib.util
import os
import random
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from marsx._ext import marscmp, marssum

TOP = Path(__file__).resolve().parents[3]
BLOCK = 4096


def load_twin() -> ModuleType:
    """tests/ref/sums.py, wherever the tests were started."""
    spec = importlib.util.spec_from_file_location("ref_sums", TOP / "tests/ref/sums.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


twin = load_twin()


def contents(seed: int, size: int, block: int) -> bytes:
    """Blocks of noise, of zeros, and of zeros but for one byte."""
    rnd = random.Random(seed)
    parts = []
    for start in range(0, size, block):
        n = min(block, size - start)
        part = bytearray(rnd.randbytes(n) if rnd.random() < 0.5 else bytes(n))
        if rnd.random() < 0.3:
            part[rnd.randrange(n)] ^= rnd.randrange(256)
        parts.append(bytes(part))
    return b"".join(parts)


# ---- digests

@settings(max_examples=80, deadline=None)
@given(st.integers(0, 70000), st.sampled_from([1000, 512, 4096, 16384, 1 << 20]), st.integers(0, 63),
       st.integers(0, 2**32), st.sampled_from(marscmp.KINDS))
def test_digests_are_the_twins(size: int, block: int, align: int, seed: int, kind: str) -> None:
    """Any length, block size, alignment and kind, with a short last block."""
    data = contents(seed, size, block)
    part = memoryview(bytes(align) + data)[align:]
    assert marscmp.digests(part, block, kind) == twin.digests(data, block, kind)


@pytest.mark.parametrize("level", ["sse2", "avx2", "avx512"])
def test_digests_do_not_depend_on_the_kernel(level: str) -> None:
    """Hosts with different processors compare their digests: all levels of this extension's own copy agree."""
    if f"xxh3/{level}" not in marssum.kernels():
        pytest.skip(f"this processor cannot run {level}")
    code = ("import random; from marsx._ext import marscmp; "
            "print(marscmp.digests(random.Random(9).randbytes(70001), 4096).hex())")
    done = subprocess.run([sys.executable, "-c", code], cwd=TOP, env={**os.environ, "MARS_XXH3_KERNEL": level},
                          capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == twin.digests(random.Random(9).randbytes(70001), 4096).hex(), done.stderr


@pytest.mark.parametrize("kind", marscmp.KINDS)
@pytest.mark.parametrize("size", [1, 7, 512, BLOCK])
def test_reserved_digest_is_for_zeros_and_nothing_else(kind: str, size: int) -> None:
    """One bit anywhere in the block, and it is no longer the digest of zeros."""
    assert marscmp.digests(bytes(size), BLOCK, kind) == bytes(16)
    for at in {0, 1, 7, 8, size // 2, size - 2, size - 1} & set(range(size)):
        for bit in range(8):
            block = bytearray(size)
            block[at] = 1 << bit
            assert marscmp.digests(block, BLOCK, kind) != bytes(16), (at, bit)


def block_with_digest_zero() -> bytes:
    """16 bytes that are not zero and whose XXH3-128 is: each step of the short form can be undone."""
    m64, p64, p32 = twin._M64, twin._P64[0], twin._P32[1]
    flip_a, flip_b = twin._s64(32) ^ twin._s64(40), twin._s64(48) ^ twin._s64(56)
    mixed = -(15 << 54) * pow(p64, -1, 1 << 64) & m64           # makes the low half of the product vanish
    rest = -((mixed * p64) >> 64) & m64                         # what the high half still has to become
    low = rest * pow(p32, -1, 1 << 32) & 0xFFFFFFFF
    last = ((rest - low * p32 >> 32 & 0xFFFFFFFF) << 32 | low) ^ flip_b
    return (mixed ^ last ^ flip_a).to_bytes(8, "little") + last.to_bytes(8, "little")


def test_hash_of_all_zero_bits_is_not_taken_for_zeros() -> None:
    """Such blocks exist and an application can write one: without the rule it would be synced as zeros."""
    block = block_with_digest_zero()
    assert any(block) and twin.xxh3_128(block) == bytes(16)
    digest = marscmp.digests(block, 16)
    assert digest == bytes(15) + b"\x01"
    assert marscmp.differ(bytes(16), digest) == [(0, 1)]
    assert marscmp.differ_split(bytes(16), digest) == ([(0, 1)], [])


def test_digest_arguments() -> None:
    """Nonsense is named."""
    assert marscmp.digests(b"") == b"" == marscmp.digests(b"", 1, "sha256")
    for block in (0, -1):
        with pytest.raises(ValueError, match="makes no sense"):
            marscmp.digests(bytes(16), block)
    with pytest.raises(ValueError, match="'md5' is unknown; there are: xxh3, sha256, blake2b"):
        marscmp.digests(b"", 4096, "md5")
    with pytest.raises(BufferError):
        marscmp.digests(memoryview(bytes(64))[::2])


@given(st.integers(0, 20000), st.integers(0, 70), st.integers(-1, 19999))
def test_is_zero(size: int, align: int, at: int) -> None:
    """One byte anywhere makes the difference; bytes outside do not."""
    data = bytearray(b"\xff" * align + bytes(size) + b"\xff")
    if 0 <= at < size:
        data[align + at] = 1
    assert marscmp.is_zero(memoryview(data)[align:align + size]) is not (0 <= at < size)


# ---- compare

@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(st.sampled_from("sdzZ"), st.integers(1, 40)), max_size=30), st.integers(0, 2**32))
def test_runs_are_merged_and_complete(pattern: list[tuple[str, int]], seed: int) -> None:
    """s = same, d = different data, z = zeros there, Z = zeros here: the twin's runs, in one list and in two."""
    rnd = random.Random(seed)
    mine, theirs = bytearray(), bytearray()
    for what, count in pattern:
        for _ in range(count):
            one, two = rnd.randbytes(15) + b"\x01", rnd.randbytes(15) + b"\x02"
            pair = {"s": rnd.choice([(one, one), (bytes(16), bytes(16))]), "d": (one, two),
                    "z": (one, bytes(16)), "Z": (bytes(16), one)}[what]
            mine += pair[0]
            theirs += pair[1]
    assert marscmp.differ(mine, theirs) == twin.differ(mine, theirs)
    assert marscmp.differ_split(mine, theirs) == twin.differ_split(mine, theirs)


@pytest.mark.parametrize("at", range(16))
def test_every_byte_of_a_digest_counts(at: int) -> None:
    """A difference in any single byte is a difference."""
    other = bytearray(b"\x55" * 48)
    other[16 + at] ^= 0x80
    assert marscmp.differ(b"\x55" * 48, other) == [(1, 1)]


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 30000), st.sampled_from([1, 3, 512, 4096]), st.lists(st.integers(0, 29999), max_size=6))
def test_compare_contents(size: int, block: int, places: list[int]) -> None:
    """Byte by byte, with a short last block."""
    mine = random.Random(size).randbytes(size)
    theirs = bytearray(mine)
    for place in places:
        theirs[place % size] ^= 1
    assert marscmp.compare(mine, theirs, block) == twin.compare(mine, bytes(theirs), block)


def test_compare_arguments() -> None:
    """Sides of different length cannot be compared, nor digests that are not whole."""
    assert marscmp.differ(b"", b"") == []
    for call in (marscmp.differ, marscmp.differ_split, marscmp.compare):
        with pytest.raises(ValueError, match="16 bytes cannot be compared with 32"):
            call(bytes(16), bytes(32))
    with pytest.raises(ValueError, match="not whole digests"):
        marscmp.differ(bytes(17), bytes(17))
    with pytest.raises(ValueError, match="makes no sense"):
        marscmp.compare(b"", b"", 0)


# ---- memory

def test_aligned_buffer() -> None:
    """Page aligned, of the size asked for, zero at first, writable, and alive as long as somebody looks at it."""
    for size in (1, 4095, 4096, 4097, 1 << 20):
        buffer = marscmp.AlignedBuffer(size)
        assert len(buffer) == size and buffer.address % 4096 == 0 and marscmp.is_zero(buffer)
        view = memoryview(buffer)
        assert view.nbytes == size and not view.readonly
        view[-1] = 7
        del buffer
        gc.collect()
        assert view[-1] == 7
    for size in (0, -1, 1 << 50):
        with pytest.raises(ValueError, match="cannot be made"):
            marscmp.AlignedBuffer(size)


def test_aligned_buffer_is_not_shared_with_children() -> None:
    """A page that a child shares would be copied under the device's hands: the kernel must not give it to children."""
    buffer = marscmp.AlignedBuffer(8 << 20)
    flags = None
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if "-" in line.split()[0] and not line.split()[0].endswith(":"):
            low, high = (int(part, 16) for part in line.split()[0].split("-"))
            inside = low <= buffer.address < high
        elif inside and line.startswith("VmFlags:"):
            flags = line.split()[1:]
    assert flags is not None and "dc" in flags


def test_aligned_buffers_give_their_memory_back() -> None:
    """2,000 buffers of 1 MiB, one after the other, are not 2 GiB."""
    def mapped() -> int:
        return int(Path("/proc/self/statm").read_text().split()[0]) * 4096

    before = mapped()
    for _ in range(2000):
        marscmp.AlignedBuffer(1 << 20)
    assert mapped() - before < 100 << 20


# ---- span input and output

@pytest.fixture
def direct(tmp_path: Path) -> Iterator[tuple[int, bytes]]:
    """A descriptor with O_DIRECT on 1 MiB of known contents."""
    data = contents(4, 1 << 20, BLOCK)
    path = tmp_path / "disk"
    path.write_bytes(data)
    try:
        fd = os.open(path, os.O_RDWR | os.O_DIRECT)
    except OSError as error:
        pytest.skip(f"no O_DIRECT on {tmp_path}: {error}")
    try:
        yield fd, data
    finally:
        os.close(fd)


@pytest.mark.parametrize("kind", marscmp.KINDS)
@pytest.mark.parametrize(("offset", "length"), [(0, 1 << 20), (4096, 65536), (1 << 19, 4096), (8192, 0)])
def test_read_digests(direct: tuple[int, bytes], offset: int, length: int, kind: str) -> None:
    """Digests of just that span; its contents are left in the scratch buffer, what was behind them too."""
    fd, data = direct
    scratch = marscmp.AlignedBuffer((1 << 20) + 4096)
    memoryview(scratch)[length:] = b"\xee" * (len(scratch) - length)
    got = marscmp.read_digests(fd, offset, length, BLOCK, scratch, kind)
    assert got == twin.digests(data[offset:offset + length], BLOCK, kind)
    assert bytes(memoryview(scratch)[:length]) == data[offset:offset + length]
    assert set(bytes(memoryview(scratch)[length:])) == {0xEE}


def test_read_and_write_spans(direct: tuple[int, bytes]) -> None:
    """What is written is read again, and nothing beside it has changed."""
    fd, data = direct
    buffer = marscmp.AlignedBuffer(3 * BLOCK)
    memoryview(buffer)[:] = random.Random(8).randbytes(3 * BLOCK)
    new = bytes(memoryview(buffer))
    marscmp.write_span(fd, 5 * BLOCK, buffer)
    memoryview(buffer)[:] = bytes(3 * BLOCK)
    marscmp.read_span(fd, 5 * BLOCK, buffer)
    assert bytes(memoryview(buffer)) == new
    whole = marscmp.AlignedBuffer(1 << 20)
    marscmp.read_span(fd, 0, whole)
    assert bytes(memoryview(whole)) == data[:5 * BLOCK] + new + data[8 * BLOCK:]


def test_end_of_device_is_an_error(tmp_path: Path) -> None:
    """A span that the device has only half of is no span; it says how far it came."""
    path = tmp_path / "disk"
    path.write_bytes(bytes(6000))
    with open(path, "rb") as file:
        for call in (lambda: marscmp.read_digests(file.fileno(), 0, 8192, 4096, bytearray(8192)),
                     lambda: marscmp.read_span(file.fileno(), 0, bytearray(8192))):
            with pytest.raises(OSError, match="8192 bytes at 0 stopped after 6000: end of the device") as caught:
                call()
            assert caught.value.errno == errno.ENODATA


def test_errors_of_the_device_come_through(tmp_path: Path) -> None:
    """errno is kept, and the place is named."""
    with open("/dev/full", "r+b", buffering=0) as full:
        with pytest.raises(OSError, match="writing 4096 bytes at 8192 stopped after 0: No space") as caught:
            marscmp.write_span(full.fileno(), 8192, bytes(4096))
        assert caught.value.errno == errno.ENOSPC
    (tmp_path / "x").write_bytes(bytes(4096))
    with open(tmp_path / "x", "rb") as file, pytest.raises(OSError) as caught:
        marscmp.write_span(file.fileno(), 0, bytes(512))
    assert caught.value.errno == errno.EBADF
    with pytest.raises(OSError) as caught:
        marscmp.read_span(-1, 0, bytearray(512))
    assert caught.value.errno == errno.EBADF


def test_write_that_stops_half_way_is_an_error(tmp_path: Path) -> None:
    """The kernel takes a part: the rest is tried, and what that says is reported, not the part as success."""
    code = ("import os, resource, sys; from marsx._ext import marscmp; "
            "resource.setrlimit(resource.RLIMIT_FSIZE, (10000, 10000)); "
            "fd = os.open(sys.argv[1], os.O_RDWR | os.O_CREAT); marscmp.write_span(fd, 4096, bytes(65536))")
    done = subprocess.run([sys.executable, "-B", "-c", code, str(tmp_path / "x")], cwd=TOP, capture_output=True,
                          text=True, timeout=60)
    assert "writing 65536 bytes at 4096 stopped after 5904: File too large" in done.stderr
    assert (tmp_path / "x").stat().st_size == 10000


def test_span_arguments(direct: tuple[int, bytes]) -> None:
    """Nothing outside the buffer or the device's range gets to the kernel."""
    fd, _ = direct
    scratch = marscmp.AlignedBuffer(8192)
    for length in (-1, 8193, 1 << 40):
        with pytest.raises(ValueError, match="does not fit"):
            marscmp.read_digests(fd, 0, length, 4096, scratch)
    for offset in (-1, (1 << 63) - 4096):
        with pytest.raises(ValueError, match="not on any device"):
            marscmp.read_digests(fd, offset, 4096, 4096, scratch)
        with pytest.raises(ValueError, match="not on any device"):
            marscmp.write_span(fd, offset, scratch)
    for call in (lambda: marscmp.read_span(fd, 0, bytes(4096)),
                 lambda: marscmp.read_digests(fd, 0, 4096, 4096, bytes(4096))):
        with pytest.raises(BufferError):
            call()
    with pytest.raises(ValueError, match="makes no sense"):
        marscmp.read_digests(fd, 0, 4096, 0, scratch)
    with pytest.raises(ValueError, match="is unknown"):
        marscmp.read_digests(fd, 0, 4096, 4096, scratch, "crc")


@pytest.mark.parametrize("work", [
    lambda data: marscmp.digests(data), lambda data: marscmp.compare(data, data), lambda data: marscmp.is_zero(data),
], ids=["digests", "compare", "is_zero"])
def test_spans_release_the_gil(work: Callable[[bytes], object]) -> None:
    """While one thread is inside a call, another one runs; without the release nobody would be switched away."""
    data = bytes(64 << 20)
    before = sys.getswitchinterval()
    sys.setswitchinterval(1000)
    try:
        assert any(_ran_meanwhile(work, data) for _ in range(50))
    finally:
        sys.setswitchinterval(before)


def _ran_meanwhile(work: Callable[[bytes], object], data: bytes) -> bool:
    started, ended = threading.Event(), []

    def run() -> None:
        started.set()
        work(data)
        ended.append(True)

    thread = threading.Thread(target=run)
    thread.start()
    started.wait()
    result = not ended
    thread.join()
    return result


def test_a_pool_gives_memory_again_when_nobody_refers_to_it():
    """Never before, whoever still has a view of it; the memory of a pool that is gone stays until then, too."""
    pool = marscmp.BufferPool(70_000)
    one, other = pool.take(), pool.take()
    view, place = memoryview(one)[100:200].toreadonly(), one.address
    memoryview(one)[:] = b"x" * 70_000
    del one
    third = pool.take()
    assert len(third) == 70_000 and len({place, other.address, third.address}) == 3
    del view
    again = pool.take()
    assert again.address == place and bytes(memoryview(again)[:2]) == b"xx" and marscmp.is_aligned(again)
    assert not marscmp.is_aligned(memoryview(again)[512:])
    many = [pool.take() for _ in range(40)]
    assert len({buf.address for buf in many}) == 40
    del many, pool, other, third
    memoryview(again)[-1] = 7


def test_a_pool_makes_no_buffer_without_size():
    with pytest.raises(ValueError):
        marscmp.BufferPool(0).take()
