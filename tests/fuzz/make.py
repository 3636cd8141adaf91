"""Builds fuzz inputs: sound logs and chains of logs, then damage that keeps as many checks true as it likes.

Structure-aware: a lie in a header or a record can get its CRC repaired, and then also the digests of all groups behind
it, so that the checks behind CRC and chain are reached.
"""
from __future__ import annotations

import random
import struct
from collections.abc import Callable, Iterator

from marsx._ext import marssum
from tests.fuzz.case import Case
from tests.ref.log_reader import BLOCK, Log, Record

DEVICE = 1 << 18
UUID, RESOURCE = "cluster", "res"
HOSTS = ("alpha", "beta")
BORDERS = (0, 1, 2, 7, 96, 97, 98, 511, 512, 513, 4095, 4096, 4097, 8192, DEVICE - 1, DEVICE, DEVICE + 1, 1 << 26,
           (1 << 26) + 4096, (1 << 31) - 1, (1 << 32) - 1, 1 << 32, 1 << 62, (1 << 62) + 4096, (1 << 63) - 4096,
           (1 << 63) - 1, 1 << 63, (1 << 64) - 8192, (1 << 64) - 4096, (1 << 64) - 1, 10**18 - 1, 10**18)
# name -> (offset, size) of the fields worth lying about
FILE_FIELDS = {"version": (8, 2), "header blocks": (10, 2), "compat": (16, 4), "incompat": (20, 4), "number": (24, 8),
               "log id": (32, 16), "device size": (48, 8), "block size": (72, 4), "pred number": (80, 8),
               "pred end": (88, 8), "pred digest": (96, 16), "map id": (112, 16), "producer": (128, 64),
               "pred producer": (192, 64), "resource": (256, 64), "uuid": (320, 128), "rest": (448, 64)}
GROUP_FIELDS = {"version": (8, 2), "header blocks": (10, 2), "log id": (16, 16), "log number": (32, 8),
                "group number": (40, 8), "pos": (48, 8), "length": (56, 8), "digest before": (64, 16),
                "durable": (80, 8), "first record": (104, 8), "record count": (112, 4), "flags": (116, 4),
                "reserved": (120, 8)}
RECORD_FIELDS = {"type": (0, 1), "must flag": (1, 1), "codec": (2, 2), "payload crc": (4, 4), "offset": (8, 8),
                 "range length": (16, 8), "unique": (24, 8), "stored length": (32, 4), "record reserved": (36, 4)}


# ---- sound logs ----

def some_record(rng: random.Random) -> Record:
    """Any type of record, inside the device."""
    kind = rng.choice((1, 1, 1, 1, 1, 2, 3, 4, 5, 6, 7, 99))
    if kind in (1, 7):
        length = rng.choice((1, 511, 512, 512, 512, 700, 1024, 4096))
        # repeated patterns: the twin remembers sums it has made
        payload = bytes([rng.randrange(1, 8)]) * length
        return Record(kind, 512 * rng.randrange(DEVICE // 512 - 8), length, payload, unique=rng.randrange(1 << 64))
    if kind in (2, 3):
        start = 512 * rng.randrange(DEVICE // 512)
        return Record(kind, start, rng.choice((1, 512, DEVICE - start)), unique=rng.randrange(4))
    if kind == 4:
        return Record(4, payload=b"text" * rng.randrange(3))
    if kind == 5:
        return Record(5, 0, DEVICE + 512 * rng.randrange(3))
    return Record(kind, payload=b"new" if kind == 99 else b"")


def fill(log: Log, rng: random.Random, groups: int) -> None:
    """Append sound groups; each has a record that changes something (rule 7)."""
    for _ in range(groups):
        records = [some_record(rng) for _ in range(rng.choice((0, 0, 1, 2, 5, 20)))]
        records.insert(rng.randrange(len(records) + 1), Record(1, 512 * rng.randrange(DEVICE // 512), 512,
                                                               bytes([rng.randrange(8)]) * 512))
        log.add(records, durable=rng.choice([0, log.ends[-1], rng.choice(log.ends)]))


def some_chain(rng: random.Random, logs: int) -> list[Log]:
    """Logs that follow each other."""
    made: list[Log] = []
    for _ in range(logs):
        more: dict = {"nr": rng.randrange(1, 4)}
        if made:
            last = made[-1]
            more = {"nr": last.nr + rng.choice((1, 1, 1, 3)),
                    "pred": (last.nr, last.end, last.digests[-1], last.producer)}
        log = Log(log_id=rng.randbytes(16), producer=rng.choice(HOSTS), size=DEVICE, **more)
        fill(log, rng, rng.choice((0, 1, 2, 4, 6)))
        made.append(log)
    return made


# ---- damage ----

def headers(data: bytes | bytearray) -> list[int]:
    """Offsets of blocks that look like group headers."""
    return [at for at in range(BLOCK, len(data) - BLOCK + 1, BLOCK) if data[at:at + 8] == b"MARSXGRP"]


def reseal(data: bytearray, at: int) -> None:
    """The header block at `at` gets the CRC that it needs."""
    block = data[at:at + BLOCK]
    block[12:16] = bytes(4)
    struct.pack_into("<I", data, at + 12, marssum.crc32c(bytes(block)))


def repair_payloads(data: bytearray, at: int) -> None:
    """The payload CRCs in the table of the group at `at` become those of the bytes that stand there."""
    count = min(int.from_bytes(data[at + 112:at + 116], "little"), 97)
    payload = at + BLOCK
    for i in range(count):
        entry = at + 192 + 40 * i
        stored = int.from_bytes(data[entry + 32:entry + 36], "little")
        if stored and payload + stored <= len(data):
            struct.pack_into("<I", data, entry + 4, marssum.crc32c(bytes(data[payload:payload + stored])))
        payload += -(-stored // 512) * 512


def rechain(data: bytearray) -> None:
    """Digests and CRCs of all groups in the order in which they stand, so that the chain holds again."""
    if len(data) < BLOCK:
        return
    reseal(data, 0)
    digest = marssum.xxh3_128(bytes(data[:BLOCK]))
    for at in headers(data):
        data[at + 64:at + 80] = digest
        reseal(data, at)
        digest = marssum.xxh3_128(bytes(data[at:at + BLOCK]))


def number(rng: random.Random, old: int, size: int) -> int:
    """A number near a border, near the old one, or any."""
    kind = rng.randrange(4)
    if kind == 0:
        value = rng.choice(BORDERS)
    elif kind == 1:
        value = old + rng.choice((-4096, -512, -1, 1, 512, 4096))
    elif kind == 2:
        value = old ^ 1 << rng.randrange(8 * size)
    else:
        value = rng.getrandbits(8 * size)
    return value % (1 << 8 * size)


def lie(data: bytearray, rng: random.Random, base: int, fields: dict[str, tuple[int, int]]) -> str:
    """Another value in one field."""
    name = rng.choice(list(fields))
    at, size = fields[name]
    old = data[base + at:base + at + size]
    if size > 8:
        new = rng.choice((bytes(size), rng.randbytes(size), bytes([old[0] ^ 1]) + old[1:], b"../x".ljust(size, b"\0"),
                          old[:4] + b"\0" + old[5:], b"beta".ljust(size, b"\0"), b"\xff" * size))
    else:
        new = number(rng, int.from_bytes(old, "little"), size).to_bytes(size, "little")
    data[base + at:base + at + size] = new
    return name


def lie_in_file_header(data: bytearray, rng: random.Random) -> str:
    """The file header says something else."""
    if len(data) < BLOCK:
        return "too short"
    what = lie(data, rng, 0, FILE_FIELDS)
    repaired = repair(data, rng, 0)
    return f"file header {what}{repaired}"


def lie_in_group(data: bytearray, rng: random.Random) -> str:
    """A group header says something else."""
    places = headers(data)
    if not places:
        return "no group"
    at = rng.choice(places)
    what = lie(data, rng, at, GROUP_FIELDS)
    return f"group {what}{repair(data, rng, at)}"


def lie_in_record(data: bytearray, rng: random.Random) -> str:
    """A record says something else, or there are more or fewer of them."""
    places = headers(data)
    if not places:
        return "no record"
    at = rng.choice(places)
    count = int.from_bytes(data[at + 112:at + 116], "little")
    i = rng.randrange(min(max(count, 1), 97)) if rng.random() < 0.9 else rng.randrange(97)
    what = lie(data, rng, at + 192 + 40 * i, RECORD_FIELDS)
    if rng.random() < 0.5:
        fit_length(data, at)
    return f"record {what}{repair(data, rng, at)}"


def fit_length(data: bytearray, at: int) -> None:
    """The length of the group becomes what its table needs."""
    count = min(int.from_bytes(data[at + 112:at + 116], "little"), 97)
    total = sum(-(-int.from_bytes(data[at + 192 + 40 * i + 32:at + 192 + 40 * i + 36], "little") // 512) * 512
                for i in range(count))
    struct.pack_into("<Q", data, at + 56, BLOCK + -(-total // BLOCK) * BLOCK)


def repair(data: bytearray, rng: random.Random, at: int) -> str:
    """Nothing, the CRC, or all that the chain needs."""
    kind = rng.choice(("", ", sealed", ", chained", ", chained", ", payloads chained"))
    if "payloads" in kind and at:
        repair_payloads(data, at)
    if "chained" in kind:
        rechain(data)
    elif kind:
        reseal(data, at)
    return kind


def flip(data: bytearray, rng: random.Random) -> str:
    """One bit."""
    if not data:
        return "empty"
    at = rng.randrange(len(data))
    data[at] ^= 1 << rng.randrange(8)
    return "flip"


def cut(data: bytearray, rng: random.Random) -> str:
    """Truncated at a block, a sector or a byte."""
    step = rng.choice((BLOCK, BLOCK, 512, 1))
    del data[rng.randrange(len(data) // step + 1) * step:]
    return f"cut to a multiple of {step}"


def blocks(data: bytearray, rng: random.Random) -> str:
    """Blocks overwritten, doubled, taken out or exchanged."""
    n = len(data) // BLOCK
    if n < 2:
        return "few blocks"
    a, b = (BLOCK * rng.randrange(n) for _ in range(2))
    one, other = data[a:a + BLOCK], data[b:b + BLOCK]
    kind = rng.choice(("zeroed", "garbage", "doubled", "taken out", "exchanged", "put in"))
    if kind == "taken out":
        del data[a:a + BLOCK]
    elif kind == "put in":
        data[a:a] = other
    elif kind == "exchanged":
        data[a:a + BLOCK], data[b:b + BLOCK] = other, one
    else:
        data[a:a + BLOCK] = {"zeroed": bytes(BLOCK), "garbage": rng.randbytes(BLOCK), "doubled": other}[kind]
    return f"block {kind}"


def tail(data: bytearray, rng: random.Random, others: list[bytes]) -> str:
    """Something behind or in place of the end: zeros, garbage, groups of another log (recycled space, splice)."""
    kind = rng.choice(("zeros", "garbage", "older log", "splice", "splice chained"))
    if kind == "zeros":
        data += bytes(rng.choice((1, 100, BLOCK, 3 * BLOCK)))
    elif kind == "garbage":
        data += rng.randbytes(rng.choice((1, 100, BLOCK, 2 * BLOCK + 5)))
    else:
        other = rng.choice(others)
        at = rng.choice(headers(data) + [len(data) - len(data) % BLOCK])
        data[at:] = other[at if kind == "older log" else rng.choice(headers(other) or [0]):]
        if kind == "splice chained":
            adopt_groups(data)
    return f"tail {kind}"


def adopt_groups(data: bytearray) -> None:
    """All groups get log id and number of the file they stand in, and places that fit."""
    record = 0
    for i, at in enumerate(headers(data)):
        data[at + 16:at + 40] = data[32:48] + data[24:32]
        struct.pack_into("<QQ", data, at + 40, i, at - BLOCK)
        struct.pack_into("<Q", data, at + 104, record)
        record += int.from_bytes(data[at + 112:at + 116], "little")
        record %= 1 << 64
    rechain(data)


Damage = Callable[[bytearray, random.Random], str]
DAMAGES: tuple[Damage, ...] = (lie_in_file_header, lie_in_group, lie_in_group, lie_in_record, lie_in_record,
                               lie_in_record, flip, cut, blocks)


def damage(data: bytearray, rng: random.Random, others: list[bytes]) -> str:
    """One to three kinds of damage; now and then none."""
    said = []
    for _ in range(rng.choice((0, 1, 1, 1, 1, 2, 3))):
        if rng.random() < 0.2:
            said.append(tail(data, rng, others))
        else:
            said.append(rng.choice(DAMAGES)(data, rng))
    return "; ".join(said) or "sound"


# ---- cases ----

def log_case(rng: random.Random, pool: list[list[Log]]) -> Case:
    """One log, read in all ways there are."""
    logs = [bytes(log.data) for chain in pool for log in chain]
    log = rng.choice([log for chain in pool for log in chain])
    data = bytearray(log.data)
    if rng.random() < 0.02:
        data, why = bytearray(rng.randbytes(rng.randrange(4 * BLOCK))), "random bytes"
    else:
        why = damage(data, rng, logs)
    at = rng.randrange(len(log.ends))
    params = {
        "known": rng.choice((0, 0, 0, log.end, rng.choice(BORDERS))),
        "start": log.ends[at] if rng.random() < 0.8 else rng.choice(BORDERS),
        "digest": log.digests[at].hex(),
        "limit": rng.choice((None, log.end, rng.choice(log.ends), BLOCK * rng.randrange(9), rng.choice(BORDERS))),
        "device": rng.choice((0, 0, DEVICE, rng.choice(BORDERS))),
        "window": rng.choice((1, 8192, 1 << 16)),
        "index": rng.random() < 0.15,
    }
    return Case("log", params, {"log": bytes(data)}, why)


def dir_case(rng: random.Random, pool: list[list[Log]]) -> Case:
    """A directory of logs, some of them hostile, and a disk position."""
    chain = rng.choice(pool)
    others = [bytes(log.data) for one in pool for log in one]
    files = {f"log-{log.nr:09d}-{log.producer}": bytearray(log.data) for log in chain}
    why = []
    for name in list(files):
        if rng.random() < 0.35:
            why.append(f"{name}: {damage(files[name], rng, others)}")
    why.append(shuffle(files, rng, others))
    log = rng.choice(chain)
    at = rng.randrange(len(log.ends))
    newest = chain[-1]
    params = {
        "at": [log.nr, log.producer, log.ends[at] if rng.random() < 0.9 else rng.choice(BORDERS) % (1 << 63)],
        "digest": rng.choice(("", "", log.digests[at].hex(), rng.choice(log.digests).hex())),
        "known": rng.choice((0, 0, newest.end, rng.choice(newest.ends), rng.choice(BORDERS))),
        "host": rng.choice(HOSTS),
        "index": rng.random() < 0.1,
    }
    return Case("dir", params, {name: bytes(data) for name, data in files.items()}, "; ".join(why))


def shuffle(files: dict[str, bytearray], rng: random.Random, others: list[bytes]) -> str:
    """Files away, under other names, beside each other."""
    kind = rng.choice(("as they are", "as they are", "one away", "renamed", "copy", "empty rival", "full rival",
                       "junk"))
    name = rng.choice(list(files))
    other = f"log-{rng.randrange(1, 8):09d}-{rng.choice(HOSTS)}"
    if kind == "one away":
        del files[name]
    elif kind == "renamed":
        files[other] = files.pop(name)
    elif kind == "copy":
        files[other] = bytearray(files[name])
    elif kind in ("empty rival", "full rival"):
        rival = Log(log_id=rng.randbytes(16), nr=int(name[4:13]), producer="gamma", size=DEVICE)
        rival.data[80:128] = files[name][80:128].ljust(48, b"\0")
        rival.data[192:256] = files[name][192:256].ljust(64, b"\0")
        reseal(rival.data, 0)
        rival.digests[0] = marssum.xxh3_128(bytes(rival.data[:BLOCK]))
        if kind == "full rival":
            fill(rival, rng, 1)
        files["log-" + name[4:13] + "-gamma"] = rival.data
    elif kind == "junk":
        files[rng.choice((other, "log-1-a", "primary", "log-000000000-a", ".tmp.1.x.log-000000001-a"))] = bytearray(
            rng.choice(others)[:rng.randrange(3 * BLOCK)])
    return kind


def chain_pool(rng: random.Random) -> list[list[Log]]:
    """What the cases are made from."""
    return [some_chain(rng, rng.choice((1, 1, 2, 3))) for _ in range(8)]


def cases(seed: int) -> Iterator[Case]:
    """An endless row of cases; the same for the same seed."""
    from tests.fuzz.words import word_case
    rng = random.Random(seed)
    while True:
        pool = chain_pool(rng)
        for _ in range(400):
            kind = rng.random()
            if kind < 0.6:
                yield log_case(rng, pool)
            elif kind < 0.9:
                yield dir_case(rng, pool)
            else:
                yield word_case(rng)
