"""Ledger of writes: a writer that records what was acknowledged, and a checker that says what a device must hold.

The writer (this file run as a program inside a host) writes blocks of 4096 bytes with O_DIRECT; each names its sequence
number and place, so that a checker can tell every state apart. Each thread owns the blocks t, t+threads, t+2*threads...
and its own ledger file, one line per event, in order:

    W seq block     the write is about to be issued        A seq block    the write was acknowledged
    S seq           an fdatasync that began after the acknowledgement of `seq` has ended with success
    E text          a write or fdatasync failed; the thread ends

Usage: write_ledger.py DEVICE LEDGER BLOCKS THREADS SEED COUNT [PAUSE_US]     (COUNT 0 = until standard input ends)
"""

import hashlib
import mmap
import os
import random
import struct
import sys
import threading
import time
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path

BLOCK = 4096
HEAD = struct.Struct("<8sQQ")
MAGIC = b"LEDGER01"


def content(seq: int, block: int) -> bytes:
    """The block that write `seq` puts at `block`: no two writes have the same."""
    head = HEAD.pack(MAGIC, seq, block)
    return head + (hashlib.sha256(head).digest() * 128)[: BLOCK - HEAD.size]


@dataclass
class Ledger:
    """What one thread's ledger file says."""

    writes: list[tuple[int, int]] = field(default_factory=list)
    acknowledged: int = 0
    flushed: int = 0
    error: str = ""

    @classmethod
    def read(cls, file: Path) -> "Ledger":
        """Parse a ledger; a last line that was cut by a kill is dropped."""
        one = cls()
        for line in file.read_text().split("\n")[:-1]:
            kind, _, rest = line.partition(" ")
            if kind == "W":
                seq, block = rest.split()
                one.writes.append((int(seq), int(block)))
            elif kind == "A":
                one.acknowledged = int(rest.split()[0])
            elif kind == "S":
                one.flushed = int(rest)
            elif kind == "E":
                one.error = rest
        return one

    def allowed(self, floor: int) -> dict[int, set[int]]:
        """Per block the sequence numbers it may hold when nothing up to `floor` may be lost (0 = never written)."""
        found: dict[int, set[int]] = defaultdict(lambda: {0})
        for seq, block in self.writes:
            found[block] = {seq} if seq <= floor else found[block] | {seq}
        return found

    def prefix(self, last: int) -> dict[int, int]:
        """What each block holds after exactly the writes up to `last`."""
        return {block: seq for seq, block in self.writes if seq <= last}


def ledgers(folder: Path) -> list[Ledger]:
    """All ledgers of one writer."""
    return [Ledger.read(file) for file in sorted(folder.glob("thread-*"))]


def found_on(data: bytes) -> dict[int, int]:
    """Which write each block of a device image holds; a block that no write made as a whole is an error."""
    found = {}
    for block in range(len(data) // BLOCK):
        piece = data[block * BLOCK:(block + 1) * BLOCK]
        magic, seq, named = HEAD.unpack_from(piece)
        if magic != MAGIC:
            if any(piece):
                raise AssertionError(f"block {block} holds neither zeros nor a block of the ledger")
            seq = 0
        elif named != block or piece != content(seq, block):
            raise AssertionError(f"block {block} is a mixture: it says write {seq} for block {named}")
        found[block] = seq
    return found


def check_nothing_lost(data: bytes, all_ledgers: list[Ledger], only_flushed: bool = False) -> int:
    """Every acknowledged (or only every flushed) write is there or was overwritten later; returns how many."""
    found, promised = found_on(data), 0
    for ledger in all_ledgers:
        floor = ledger.flushed if only_flushed else ledger.acknowledged
        promised += sum(1 for seq, _ in ledger.writes if seq <= floor)
        for block, seqs in ledger.allowed(floor).items():
            if found.get(block, 0) not in seqs:
                raise AssertionError(f"block {block} holds {found.get(block, 0)}, but may only hold {sorted(seqs)} "
                                     f"(acknowledged {ledger.acknowledged}, flushed {ledger.flushed})")
    return promised


def check_prefix(data: bytes, ledger: Ledger) -> int:
    """The device is what one writer thread had made at some moment; returns that moment's sequence number."""
    found = found_on(data)
    last = max(found.values(), default=0)
    for block, seq in ledger.prefix(last).items():
        if found.get(block, 0) != seq:
            raise AssertionError(f"not a prefix: write {last} is there, but block {block} holds {found.get(block, 0)}, "
                                 f"not {seq}")
    return last


class Writer(threading.Thread):
    """One thread of the writer program."""

    def __init__(self, device: str, ledger: Path, number: int, plan: tuple[int, int, int, int, float]) -> None:
        super().__init__(name=f"writer-{number}")
        self.device, self.ledger, self.number = device, ledger, number
        self.blocks, self.threads, seed, self.count, self.pause = plan
        self.random = random.Random(f"{seed}:{number}")
        self.enough = threading.Event()

    def run(self) -> None:
        """Write until told to stop, until `count`, or until the first error."""
        note = os.open(self.ledger, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        disk = os.open(self.device, os.O_RDWR | os.O_DIRECT)
        area = mmap.mmap(-1, BLOCK)
        seq = 0
        try:
            while not self.enough.is_set() and (not self.count or seq < self.count):
                seq += 1
                block = self.random.randrange(self.number, self.blocks, self.threads)
                area[:] = content(seq, block)
                os.write(note, b"W %d %d\n" % (seq, block))
                os.pwrite(disk, area, block * BLOCK)
                os.write(note, b"A %d %d\n" % (seq, block))
                if self.random.random() < 0.05:
                    os.fdatasync(disk)
                    os.write(note, b"S %d\n" % seq)
                if self.pause:
                    time.sleep(self.pause)
            os.fdatasync(disk)
            os.write(note, b"S %d\n" % seq)
        except OSError as problem:
            os.write(note, f"E {problem}\n".encode())
        finally:
            os.close(disk)
            os.close(note)


def main(argv: list[str]) -> int:
    """The writer program; exit status 1 when a thread met an error."""
    device, folder = argv[1], Path(argv[2])
    blocks, threads, seed, count = (int(word) for word in argv[3:7])
    pause = int(argv[7]) / 1e6 if len(argv) > 7 else 0.0
    folder.mkdir(exist_ok=True)
    writers = [Writer(device, folder / f"thread-{n}", n, (blocks, threads, seed, count, pause)) for n in range(threads)]
    for writer in writers:
        writer.start()
    if not count:
        sys.stdin.read()
        for writer in writers:
            writer.enough.set()
    for writer in writers:
        writer.join()
    return int(any(Ledger.read(writer.ledger).error for writer in writers))


if __name__ == "__main__":
    sys.exit(main(sys.argv))
