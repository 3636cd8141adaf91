"""Slow twins of `marssum` and `marscmp` in plain Python: CRC-32C, XXH3 (64 and 128 bits, no seed), block digests, runs.

Written from the published description of the algorithms, without any code in common with the kernels, so that a
mistake in a folding constant, a length border or a tail cannot be on both sides.
"""
from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence

DIGEST = 16
ZERO_DIGEST = bytes(DIGEST)

_M32, _M64 = (1 << 32) - 1, (1 << 64) - 1


# ---- CRC-32C

def _eight_bits(register: int) -> int:
    for _ in range(8):
        register = (register >> 1) ^ (0x82F63B78 if register & 1 else 0)
    return register


_TABLE = [_eight_bits(i) for i in range(256)]


def crc32c(data: bytes, crc: int = 0) -> int:
    """CRC-32C, one byte at a time."""
    crc ^= _M32
    for byte in data:
        crc = _TABLE[(crc ^ byte) & 0xFF] ^ (crc >> 8)
    return crc ^ _M32


# ---- XXH3

_P32 = (0x9E3779B1, 0x85EBCA77, 0xC2B2AE3D)
_P64 = (0x9E3779B185EBCA87, 0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9, 0x85EBCA77C2B2AE63, 0x27D4EB2F165667C5)
_MX1, _MX2 = 0x165667919E3779F9, 0x9FB21C651E98DF25
_SECRET = bytes.fromhex(
    "b8fe6c3923a44bbe7c01812cf721ad1cded46de9839097db7240a4a4b7b3671fcb79e64eccc0e578825ad07dccff7221"
    "b8084674f743248ee03590e6813a264c3c2852bb91c300cb88d0658b1b532ea371644897a20df94e3819ef46a9deacd8"
    "a8fa763fe39c343ff9dcbbc7c70b4f1d8a51e04bcdb45931c89f7ec9d9787364eac5ac8334d3ebc3c581a0fffa1363eb"
    "170ddd51b7f0da49d316552629d4689e2b16be587d47a1fc8ff8b8d17ad031ce45cb3a8f95160428afd7fbcabb4b407e"
)


def _u32(data: bytes, at: int) -> int:
    return int.from_bytes(data[at:at + 4], "little")


def _u64(data: bytes, at: int) -> int:
    return int.from_bytes(data[at:at + 8], "little")


def _s64(at: int) -> int:
    return _u64(_SECRET, at)


def _swap(value: int, size: int) -> int:
    return int.from_bytes(value.to_bytes(size, "little"), "big")


def _rotl64(value: int, by: int) -> int:
    return (value << by | value >> (64 - by)) & _M64


def _fold(a: int, b: int) -> int:
    product = a * b
    return (product ^ product >> 64) & _M64


def _avalanche(h: int) -> int:
    h = (h ^ h >> 37) * _MX1 & _M64
    return h ^ h >> 32


def _avalanche_xxh64(h: int) -> int:
    h = (h ^ h >> 33) * _P64[1] & _M64
    h = (h ^ h >> 29) * _P64[2] & _M64
    return h ^ h >> 32


def _mix16(data: bytes, at: int, secret: int) -> int:
    return _fold(_u64(data, at) ^ _s64(secret), _u64(data, at + 8) ^ _s64(secret + 8))


def _three(data: bytes) -> int:
    """1 to 3 bytes and their number in 32 bits."""
    n = len(data)
    return data[0] << 16 | data[n >> 1] << 24 | data[n - 1] | n << 8


def _accumulators(data: bytes) -> list[int]:
    """State after all stripes of more than 240 bytes."""
    acc = [_P32[2], _P64[0], _P64[1], _P64[2], _P64[3], _P32[1], _P64[4], _P32[0]]

    def stripe(at: int, secret: int) -> None:
        for i in range(8):
            value = _u64(data, at + 8 * i)
            keyed = value ^ _s64(secret + 8 * i)
            acc[i ^ 1] = (acc[i ^ 1] + value) & _M64
            acc[i] = (acc[i] + (keyed & _M32) * (keyed >> 32)) & _M64

    n = len(data)
    for number in range((n - 1) // 64):
        stripe(64 * number, 8 * (number % 16))
        if number % 16 == 15:
            for i in range(8):
                acc[i] = (acc[i] ^ acc[i] >> 47 ^ _s64(128 + 8 * i)) * _P32[0] & _M64
    stripe(n - 64, 121)
    return acc


def _merged(acc: list[int], secret: int, start: int) -> int:
    for i in range(4):
        start += _fold(acc[2 * i] ^ _s64(secret + 16 * i), acc[2 * i + 1] ^ _s64(secret + 16 * i + 8))
    return _avalanche(start & _M64)


def _xxh3_64_small(data: bytes) -> int:
    n = len(data)
    if n == 0:
        return _avalanche_xxh64(_s64(56) ^ _s64(64))
    if n <= 3:
        return _avalanche_xxh64(_three(data) ^ _u32(_SECRET, 0) ^ _u32(_SECRET, 4))
    if n <= 8:
        h = (_u32(data, n - 4) + (_u32(data, 0) << 32)) ^ _s64(8) ^ _s64(16)
        h = (h ^ _rotl64(h, 49) ^ _rotl64(h, 24)) * _MX2 & _M64
        h = (h ^ (h >> 35) + n) * _MX2 & _M64
        return h ^ h >> 28
    low, high = _u64(data, 0) ^ _s64(24) ^ _s64(32), _u64(data, n - 8) ^ _s64(40) ^ _s64(48)
    return _avalanche((n + _swap(low, 8) + high + _fold(low, high)) & _M64)


def xxh3_64(data: bytes) -> int:
    """XXH3-64 without seed."""
    n = len(data)
    if n <= 16:
        return _xxh3_64_small(data)
    acc = n * _P64[0]
    if n <= 128:
        for i in range((n - 1) // 32 + 1):
            acc += _mix16(data, 16 * i, 32 * i) + _mix16(data, n - 16 * (i + 1), 32 * i + 16)
        return _avalanche(acc & _M64)
    if n <= 240:
        acc = _avalanche((acc + sum(_mix16(data, 16 * i, 16 * i) for i in range(8))) & _M64)
        acc += sum(_mix16(data, 16 * i, 16 * (i - 8) + 3) for i in range(8, n // 16))
        return _avalanche((acc + _mix16(data, n - 16, 119)) & _M64)
    return _merged(_accumulators(data), 11, n * _P64[0] & _M64)


def _xxh3_128_4_to_8(data: bytes) -> tuple[int, int]:
    n = len(data)
    product = (_u32(data, 0) + (_u32(data, n - 4) << 32) ^ _s64(16) ^ _s64(24)) * (_P64[0] + (n << 2))
    low, high = product & _M64, product >> 64
    high = (high + (low << 1)) & _M64
    low ^= high >> 3
    low = (low ^ low >> 35) * _MX2 & _M64
    return low ^ low >> 28, _avalanche(high)


def _xxh3_128_9_to_16(data: bytes) -> tuple[int, int]:
    n = len(data)
    first, last = _u64(data, 0), _u64(data, n - 8)
    product = (first ^ last ^ _s64(32) ^ _s64(40)) * _P64[0]
    low = ((product & _M64) + (n - 1 << 54)) & _M64
    last ^= _s64(48) ^ _s64(56)
    high = ((product >> 64) + last + (last & _M32) * (_P32[1] - 1)) & _M64
    product = (low ^ _swap(high, 8)) * _P64[1]
    return _avalanche(product & _M64), _avalanche(((product >> 64) + high * _P64[1]) & _M64)


def _xxh3_128_small(data: bytes) -> tuple[int, int]:
    n = len(data)
    if n == 0:
        return _avalanche_xxh64(_s64(64) ^ _s64(72)), _avalanche_xxh64(_s64(80) ^ _s64(88))
    if n <= 3:
        low = _three(data)
        swapped = _swap(low, 4)
        high = (swapped << 13 | swapped >> 19) & _M32
        return (_avalanche_xxh64(low ^ _u32(_SECRET, 0) ^ _u32(_SECRET, 4)),
                _avalanche_xxh64(high ^ _u32(_SECRET, 8) ^ _u32(_SECRET, 12)))
    return _xxh3_128_4_to_8(data) if n <= 8 else _xxh3_128_9_to_16(data)


def _xxh3_128_middle(data: bytes) -> tuple[int, int]:
    """17 to 240 bytes."""
    n = len(data)
    low, high = n * _P64[0] & _M64, 0

    def mix32(one: int, two: int, secret: int) -> None:
        nonlocal low, high
        low = (low + _mix16(data, one, secret) & _M64) ^ (_u64(data, two) + _u64(data, two + 8) & _M64)
        high = (high + _mix16(data, two, secret + 16) & _M64) ^ (_u64(data, one) + _u64(data, one + 8) & _M64)

    if n <= 128:
        for i in reversed(range((n - 1) // 32 + 1)):
            mix32(16 * i, n - 16 * (i + 1), 32 * i)
    else:
        for i in range(4):
            mix32(32 * i, 32 * i + 16, 32 * i)
        low, high = _avalanche(low), _avalanche(high)
        for i in range(4, n // 32):
            mix32(32 * i, 32 * i + 16, 3 + 32 * (i - 4))
        mix32(n - 16, n - 32, 103)
    total = low * _P64[0] + high * _P64[3] + n * _P64[1]
    return _avalanche(low + high & _M64), -_avalanche(total & _M64) & _M64


def xxh3_128(data: bytes) -> bytes:
    """XXH3-128 without seed, canonical: high half first, big endian."""
    n = len(data)
    if n <= 16:
        low, high = _xxh3_128_small(data)
    elif n <= 240:
        low, high = _xxh3_128_middle(data)
    else:
        acc = _accumulators(data)
        low = _merged(acc, 11, n * _P64[0] & _M64)
        high = _merged(acc, 117, ~(n * _P64[1]) & _M64)
    return high.to_bytes(8, "big") + low.to_bytes(8, "big")


# ---- block compare

HASHES: dict[str, Callable[[bytes], bytes]] = {
    "xxh3": xxh3_128,
    "sha256": lambda data: hashlib.sha256(data).digest()[:DIGEST],
    "blake2b": lambda data: hashlib.blake2b(data, digest_size=DIGEST).digest(),
}


def digests(data: bytes, block: int, kind: str = "xxh3") -> bytes:
    """Digest of each block; zeros have the reserved one, and nothing else has it."""
    result = []
    for start in range(0, len(data), block):
        part = data[start:start + block]
        digest = HASHES[kind](part) if any(part) else ZERO_DIGEST
        if any(part) and digest == ZERO_DIGEST:
            digest = bytes(DIGEST - 1) + b"\x01"
        result.append(digest)
    return b"".join(result)


def runs(flags: Sequence[bool]) -> list[tuple[int, int]]:
    """Merged runs (first, count) of what is true."""
    result: list[tuple[int, int]] = []
    for i, flag in enumerate(flags):
        if flag and result and sum(result[-1]) == i:
            result[-1] = (result[-1][0], result[-1][1] + 1)
        elif flag:
            result.append((i, 1))
    return result


def differ(mine: bytes, theirs: bytes) -> list[tuple[int, int]]:
    """Runs of different digests."""
    starts = range(0, len(mine), DIGEST)
    return runs([mine[i:i + DIGEST] != theirs[i:i + DIGEST] for i in starts])


def differ_split(mine: bytes, theirs: bytes) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
    """Runs of different digests: those with data on the other side, those with zeros there."""
    pairs = [(mine[i:i + DIGEST], theirs[i:i + DIGEST]) for i in range(0, len(mine), DIGEST)]
    return (runs([a != b and b != ZERO_DIGEST for a, b in pairs]),
            runs([a != b and b == ZERO_DIGEST for a, b in pairs]))


def compare(mine: bytes, theirs: bytes, block: int) -> list[tuple[int, int]]:
    """Runs of different blocks."""
    return runs([mine[i:i + block] != theirs[i:i + block] for i in range(0, len(mine), block)])
