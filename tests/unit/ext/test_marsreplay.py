"""The window engine by itself: what it takes, what it refuses, how it writes."""
from __future__ import annotations

import os
import random

import pytest

from marsx._ext import marsreplay
from marsx.log import record
from tests.fix_volume import BLOCK, MIB, Disk, apply, flip, read_groups


def code_of(name: str) -> int:
    """A MARS_SCAN_* code by name."""
    from marsx._ext import marsscan
    return marsscan.CODES.index(name)


@pytest.fixture
def logged(make_rig):
    """logged(steps, longest) -> rig whose log is durable."""
    def make(steps: int = 120, longest: int = 16384, seed: int = 1):
        rig, rng = make_rig(1 * MIB), random.Random(seed)
        for _ in range(steps):
            rig.step(rng, longest)
        rig.volume.sync_now()
        return rig, rig.volume.state["durable"]
    return make


@pytest.mark.parametrize("size", [1, 64 * 1024, 8 * MIB])
def test_windows_make_prefixes(logged, size):
    """Rule 2: whole groups only; whatever the window's size, each applied window ends at a group and makes a prefix. A
    group larger than the window is taken alone."""
    rig, end = logged()
    window, cursor = marsreplay.Window(size), marsreplay.Cursor(rig.header.pack())
    groups = read_groups(rig.path())
    taken = 0
    while cursor.pos < end:
        count, code = window.load(rig.fds[1], cursor, end)
        assert count and not code
        taken += count
        assert cursor.pos == groups[taken - 1].end
        window.apply(rig.disk.fd)
        assert rig.disk.contents() == bytes(apply(bytearray(rig.before), groups[:taken]))
    assert taken == len(groups) and cursor.digest == rig.volume.durable_point()[3]
    assert window.load(rig.fds[1], cursor, end) == (0, 0) and window.empty


def test_newest_wins_and_merging(make_rig, tmp_path):
    """Overwritten records are not written, neighbours become one write."""
    rig = make_rig(1 * MIB)
    for i in range(64):
        rig.write(4096 * i, b"%d" % (i % 10) * 4096)
    for i in range(64):
        rig.write(4096 * i, bytes([i]) * 4096)
    rig.volume.sync_now()
    window, cursor = marsreplay.Window(MIB), marsreplay.Cursor(rig.header.pack())
    assert window.load(rig.fds[1], cursor, rig.volume.state["durable"]) == (128, 0)
    used, records, payload, extents = window.stats
    assert (records, payload, extents) == (128, 128 * 4096, 64) and used == 128 * 8192
    assert window.apply(rig.disk.fd) == 64 * 4096
    assert rig.disk.contents() == bytes(rig.twin)


@pytest.mark.parametrize(("where", "name"), [
    (0, "magic"), (13, "crc"), (70, "crc"), (2000, "crc"), (BLOCK + 5, "payload")])
def test_bad_group_ends_the_window(logged, where, name):
    """Header, table and payload are verified before a byte is written; the code says why it stopped, the cursor
    stands in front of the bad group."""
    rig, end = logged()
    groups = read_groups(rig.path())
    index = next(i for i, g in enumerate(groups) if i > 20 and g.records[0][4])
    flip(rig.path(), BLOCK + groups[index].pos + where)
    window, cursor = marsreplay.Window(8 * MIB), marsreplay.Cursor(rig.header.pack())
    assert window.load(rig.fds[1], cursor, end) == (index, code_of(name))
    assert cursor.pos == groups[index].pos
    assert window.load(rig.fds[1], cursor, end) == (0, code_of(name))


def test_limit_inside_a_group(logged):
    """A limit that is no end of a group takes nothing of that group."""
    rig, _ = logged(10, 512)
    groups = read_groups(rig.path())
    window, cursor = marsreplay.Window(MIB), marsreplay.Cursor(rig.header.pack())
    limit = groups[3].end + BLOCK
    assert window.load(rig.fds[1], cursor, limit)[0] == 4 and cursor.pos == groups[3].end
    assert window.load(rig.fds[1], cursor, limit) == (0, code_of("short")) and cursor.pos == groups[3].end


def test_cursor_in_the_middle(logged):
    """A start inside a log needs the right digest; numbers are taken from the group there."""
    rig, end = logged()
    window, cursor = marsreplay.Window(64 * 1024), marsreplay.Cursor(rig.header.pack())
    window.load(rig.fds[1], cursor, end)
    pos, digest = cursor.pos, cursor.digest
    again = marsreplay.Cursor(rig.header.pack(), pos, digest)
    assert window.load(rig.fds[1], again, end)[0] > 0
    assert window.load(rig.fds[1], marsreplay.Cursor(rig.header.pack(), pos, bytes(16)), end) == (0, code_of("chain"))
    with pytest.raises(ValueError, match="digest"):
        marsreplay.Cursor(rig.header.pack(), pos)
    with pytest.raises(ValueError, match="header"):
        marsreplay.Cursor(bytes(BLOCK))


def test_records_outside_a_smaller_device(logged):
    """A record behind the end of the device in force is refused, never written."""
    rig, end = logged()
    cursor = marsreplay.Cursor(rig.header.pack(), device_size=65536)
    window = marsreplay.Window(8 * MIB)
    assert window.load(rig.fds[1], cursor, end)[1] == code_of("range")


def test_zeros_are_zeros(make_rig, tmp_path):
    """Rule 10: discards and zeros, odd sectors and all, read as zeros afterwards; what lies beside stays."""
    rig = make_rig(1 * MIB)
    for at, length, kind in ((512, 512, 2), (3 * 512, 7 * 512, 2), (65536 - 512, 4096, 3), (MIB // 2, MIB // 4, 2)):
        rig.zero(at, length, kind)
    rig.volume.sync_now()
    assert rig.write_back()
    assert rig.disk.contents() == bytes(rig.twin)


def test_errors_of_the_disk(logged, tmp_path):
    """A disk that refuses the write, or ends too early, is an error; the window can then be applied to a good one."""
    rig, end = logged()
    window, cursor = marsreplay.Window(8 * MIB), marsreplay.Cursor(rig.header.pack())
    window.load(rig.fds[1], cursor, end)
    bad = os.open(rig.disk.path, os.O_RDONLY | os.O_DIRECT)
    try:
        with pytest.raises(OSError):
            window.apply(bad)
    finally:
        os.close(bad)
    good = Disk(tmp_path / "other", 1 * MIB)
    try:
        window.apply(good.fd)
        assert good.contents() == bytes(rig.twin)
    finally:
        good.close()


def test_many_records_are_split(make_rig):
    """A window takes a bounded number of records, so its map cannot overflow; the next one goes on."""
    rig = make_rig(4 * MIB)
    rng = random.Random(3)
    pos = 0
    for _ in range(170):
        rig.volume.freeze()                 # collects full groups of 97 records
        for _ in range(97):
            at = 1024 * rng.randrange(4000)
            rig.write(at, b"r" * 512)
        rig.volume.thaw()
    rig.volume.sync_now()
    end = rig.volume.state["durable"]
    window, cursor = marsreplay.Window(64 * MIB), marsreplay.Cursor(rig.header.pack())
    first, code = window.load(rig.fds[1], cursor, end)
    assert code == 0 and pos < cursor.pos < end and window.stats[1] <= 16384
    window.apply(rig.disk.fd)
    second, _ = window.load(rig.fds[1], cursor, end)
    assert cursor.pos == end and first + second == len(read_groups(rig.path()))
    window.apply(rig.disk.fd)
    assert rig.disk.contents() == bytes(rig.twin)
    assert record.MAX_RECORDS == 97
