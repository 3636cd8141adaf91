"""Plain-Python twin of recovery: which logs of a directory hold the history from a position on, and how far.

Written from the section "The logs of a directory" of the format page in marsx/log/record.py; imports nothing of marsx.
"""
from __future__ import annotations

import re
from dataclasses import dataclass

from tests.ref.log_reader import BLOCK, Head, Walk, block_crc, parse_header, walk, xxh3_128

NAME = re.compile(r"log-([0-9]{9}|[1-9][0-9]{9,17})-([A-Za-z0-9](?:[A-Za-z0-9_.-]{0,61}[A-Za-z0-9_])?)", re.ASCII)


class Refused(Exception):
    """Nothing may be concluded; the text says why."""


@dataclass
class Part:
    """One log of a history: [start, end) is verified."""

    head: Head
    start: int
    start_digest: bytes
    walk: Walk
    is_last: bool


Key = tuple[int, str]


def names(files: dict[str, bytes]) -> dict[str, Key]:
    """Names of files that are names of logs."""
    found = {name: NAME.fullmatch(name) for name in files}
    return {name: (int(m[1]), m[2]) for name, m in found.items() if m and int(m[1])}


def heads(files: dict[str, bytes], uuid: str, resource: str, first: int) -> dict[Key, Head]:
    """The headers of all logs from number `first` on; each has to be the one of its name, cluster and resource."""
    found = {}
    for name, key in names(files).items():
        if key[0] < first:
            continue
        head = parse_header(files[name])
        if head is None or (head.uuid, head.resource, head.nr, head.producer) != (uuid, resource, *key):
            raise Refused(f"{name}: no header that may be followed")
        found[key] = head
    return found


def has_contents(files: dict[str, bytes], head: Head) -> bool:
    """At least one valid group."""
    return walk(files[head.name]).groups > 0


def only_one(files: dict[str, bytes], beside: list[Head], host: str) -> Head:
    """Of several logs beside each other, the one that is history (rule 7)."""
    if len(beside) == 1:
        return beside[0]
    full = [head for head in beside if has_contents(files, head)]
    if len(full) > 1:
        raise Refused("the history has parted")
    return full[0] if full else min(beside, key=lambda head: (head.producer != host, head.producer, head.nr))


def chain(files: dict[str, bytes], at: tuple[int, str, int], uuid: str, resource: str, host: str) -> list[Head]:
    """The logs from `at` (number, producer, POS) on, oldest first."""
    known = heads(files, uuid, resource, at[0])
    if at[:2] in known:
        run = [known[at[:2]]]
    else:
        later = [head for head in known.values() if head.pred == at]
        if not later:
            raise Refused("the log is missing")
        run = [only_one(files, later, host)]
    while after := [head for head in known.values() if head.pred and head.pred[:2] == (run[-1].nr, run[-1].producer)]:
        run.append(only_one(files, after, host))
    if run[0].nr == at[0] and len(run) > 1 and run[1].pred and at[2] > run[1].pred[2]:
        raise Refused("the position lies behind the end of its log")
    for head in known.values():
        if head not in run and head.nr >= run[0].nr and has_contents(files, head):
            raise Refused(f"{head.name} has contents and is not part of the history")
    return run


def recover(files: dict[str, bytes], at: tuple[int, str, int], at_digest: bytes, uuid: str, resource: str, host: str,
            known_durable: int = 0) -> list[Part]:
    """The verified history from `at` on; Refused when it is not whole. known_durable: of the newest log."""
    run = chain(files, at, uuid, resource, host)
    parts = []
    for i, head in enumerate(run):
        data, last = files[head.name], i == len(run) - 1
        pred = None if last else run[i + 1].pred
        here = (head.nr, head.producer) == at[:2]
        start = at[2] if here else 0
        digest = at_digest if start else xxh3_128(data[:BLOCK])
        if start % BLOCK or BLOCK + start > len(data):
            raise Refused("the log does not reach the position")
        if start and pred and start == pred[2]:             # nothing of this log is read, its successor says the rest
            digest = run[i + 1].pred_digest
        digest = digest or digest_at(data, start)
        end = pred[2] if pred else None
        if end is not None and end < start:
            raise Refused("the log ends before the position")
        got = walk(data, known_durable if last else 0, start, digest, end, proof=head.producer == host)
        if pred:
            if got.end != end or got.digest != run[i + 1].pred_digest:
                raise Refused(f"{head.name} does not end as its successor says")
        elif got.reason not in ("end", "torn", "foreign"):
            raise Refused(f"{head.name} is {got.reason}")
        if start and last and not got.groups and digest != digest_behind(data, start):
            raise Refused("nothing confirms the digest at the position")
        parts.append(Part(head, start, digest, got, last))
    return parts


def digest_behind(data: bytes, pos: int) -> bytes:
    """The digest at a position by the header of the group that ends there; nothing else of that group is looked at."""
    for at in range(BLOCK, BLOCK + pos, BLOCK):
        block = data[at:at + BLOCK]
        here, length = (int.from_bytes(block[i:i + 8], "little") for i in (48, 56))
        if (block[:10] == b"MARSXGRP\x01\0" and block[16:40] == data[32:48] + data[24:32] and here == at - BLOCK
                and here + length == pos and block_crc(block) == int.from_bytes(block[12:16], "little")):
            return xxh3_128(block)
    return b""


def digest_at(data: bytes, pos: int) -> bytes:
    """The digest at a position, found from the log's beginning."""
    got = walk(data, 0, 0, b"", pos)
    if got.end != pos:
        raise Refused("no valid group ends there")
    return got.digest
