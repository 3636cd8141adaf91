"""Chaos on real hosts: seeded commands and harms in any order, and a model of what the device may hold.

One writer program at a time writes blocks of `write_ledger.content`, one after the other, with numbers that are never
used twice. So the device is what the writes up to some number made (`History`), and nothing else:

    an orderly change of the role, a kill, a cut, a restart: everything acknowledged is there
    a forced role: a prefix of what was written, not shorter than what the forced host was seen to hold

After every few steps all is healed in the way docs/operations.md says, and the bytes of all data devices are compared.
Who did not catch up by himself must have been told that `invalidate` is what heals.

Run as a program it is the writer: chaos.py DEVICE NOTE FIRST COUNT SEED
"""

import mmap
import os
import random
import sys

import write_ledger
from write_ledger import BLOCK, Ledger

BLOCKS = 512
RESOURCE = "data"
DEVICE = f"/dev/mars/{RESOURCE}"
HEAL_S = 120


def write(device: str, note: str, first: int, count: int, seed: int) -> int:
    """The writer program: 1 when a write failed."""
    chosen, notes = random.Random(f"{seed}:{first}"), os.open(note, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    area = mmap.mmap(-1, BLOCK)
    try:
        disk = os.open(device, os.O_RDWR | os.O_DIRECT)
        for seq in range(first, first + count):
            block = chosen.randrange(BLOCKS)
            area[:] = write_ledger.content(seq, block)
            os.write(notes, b"W %d %d\n" % (seq, block))
            os.pwrite(disk, area, block * BLOCK)
            if chosen.random() < 0.1:
                os.fdatasync(disk)
            os.write(notes, b"A %d\n" % seq)
    except OSError as problem:
        os.write(notes, f"E {problem}\n".encode())
        return 1
    return 0


class History:
    """What was written, in order, on the branch of the present primary."""

    def __init__(self) -> None:
        self.writes: list[tuple[int, int]] = []
        self.acknowledged = 0                           # number of the last write that was

    def add(self, book: Ledger) -> None:
        """One run of the writer."""
        self.writes += book.writes
        self.acknowledged = max(self.acknowledged, book.acknowledged)

    def _state(self, last: int) -> dict[int, int]:
        return {block: seq for seq, block in self.writes if seq <= last}

    def check(self, data: bytes, least: int) -> int:
        """The device holds what the writes up to some number made, `least` at the earliest; that number. Later ones
        were not acknowledged, and never come."""
        found = {block: seq for block, seq in write_ledger.found_on(data).items() if seq}
        last = max(found.values(), default=0)
        wanted = self._state(max(last, least))
        if last < least or wanted != found:
            differs = {block: (found.get(block, 0), wanted.get(block, 0)) for block in found.keys() | wanted.keys()
                       if found.get(block, 0) != wanted.get(block, 0)}
            raise AssertionError(f"write {last} is the newest on the device, {least} has to be there; (found, wanted) "
                                 f"differ at {len(differs)} blocks: {dict(list(differs.items())[:8])}")
        self.forget(last)
        return last

    def forget(self, last: int) -> None:
        """The branch was left behind write `last`."""
        self.writes = [one for one in self.writes if one[0] <= last]
        self.acknowledged = min(self.acknowledged, last)


if __name__ == "__main__":
    sys.exit(write(sys.argv[1], sys.argv[2], *map(int, sys.argv[3:6])))
