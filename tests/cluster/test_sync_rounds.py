"""Harmed syncs on real hosts, at random (rules 13 to 16): see `sync_rounds.py`.

MARS_SYNC_ROUNDS=100 plays more of them, ten on each three hosts; MARS_SEED=n repeats a run. The seed is printed.
"""

import os
import random

import pytest
from sync_rounds import SIZE, Disk, SyncRounds

from tests.fault.iolayer import Entry

ROUNDS = max(1, int(os.environ.get("MARS_SYNC_ROUNDS", "2")))
EACH = 10
SEED = int(os.environ.get("MARS_SEED") or random.SystemRandom().randrange(10**6))


@pytest.mark.parametrize("batch", range(-(-ROUNDS // EACH)))
def test_rounds(cluster, tmp_path, batch):
    """Rules 13, 14, 15, 16: whatever happens to a sync, a replica that says that it is consistent is."""
    seed = SEED + batch
    print(f"MARS_SEED={seed}")
    rounds = SyncRounds(cluster("a", "b", "c", data_size=SIZE), tmp_path / "rounds", seed)
    for number in range(min(EACH, ROUNDS - batch * EACH)):
        print(rounds.play(number), flush=True)
    rounds.close()


def entry(op: str, key: int, end: bool, off: int = 0, data: bytes = b"", result: int = 0) -> Entry:
    return Entry(op, end, (1, key), 1, result, 0, 0, off, len(data), 0, "", "", data)


def test_the_model_of_a_power_cut(tmp_path, monkeypatch):
    """Only what had ended before a flush began that has ended too is there for sure; all else may be there or not."""
    block = b"x" * 4096
    disk = Disk("", tmp_path / "record")
    disk.begin(bytes(SIZE))
    happened = [entry("write", 1, False, 0, block), entry("write", 2, False, 4096, block), entry("write", 1, True),
                entry("fdatasync", 3, False), entry("write", 2, True), entry("write", 4, False, 8192, block),
                entry("write", 4, True), entry("fdatasync", 3, True), entry("fdatasync", 5, False)]
    monkeypatch.setattr("sync_rounds.iolayer.read_record", lambda path: happened)
    disk.read_record()
    assert bytes(disk.sure[:12288]) == block + bytes(8192)
    assert [offset for offset, _ in disk.open.values()] == [4096, 8192]
