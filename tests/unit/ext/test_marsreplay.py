"""The window engine by itself: what it takes, what it refuses, how it writes."""
from __future__ import annotations

import os
import random

import pytest

from marsx._ext import marsreplay
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


def test_overwrites_take_their_place_in_memory(make_rig):
    """Newest wins inside the window, for every way in which records can cover each other; a log many times as long as
    the window's memory becomes one window, and one write per block."""
    rig, rng = make_rig(128 * 1024), random.Random(5)
    for _ in range(3000):
        rig.step(rng, 8192)
    rig.volume.sync_now()
    window, cursor = marsreplay.Window(512 * 1024), marsreplay.Cursor(rig.header.pack())
    end, taken = rig.volume.state["durable"], 0
    groups = read_groups(rig.path())
    while cursor.pos < end:
        count, code = window.load(rig.fds[1], cursor, end)
        taken += count
        assert count and not code and window.apply(rig.disk.fd) <= 128 * 1024
        assert rig.disk.contents() == bytes(apply(bytearray(rig.before), groups[:taken]))
    assert end > 16 * 512 * 1024 and taken == len(groups) and rig.disk.contents() == bytes(rig.twin)


def test_a_window_has_an_end(make_rig):
    """However well its data fit into memory, a window takes a bounded length of log: while it is written the disk is a
    mixture (rule 12)."""
    rig = make_rig(64 * 1024)
    for i in range(600):
        rig.write(0, bytes([i % 256]) * 4096)
    rig.volume.sync_now()
    window, cursor = marsreplay.Window(64 * 1024), marsreplay.Cursor(rig.header.pack())
    ends = []
    while cursor.pos < rig.volume.state["durable"]:
        assert window.load(rig.fds[1], cursor, rig.volume.state["durable"])[1] == 0
        assert window.stats[0] <= 16 * 64 * 1024 + 8192 and window.apply(rig.disk.fd) == 4096
        ends.append(cursor.pos)
        assert rig.disk.contents()[:1] == bytes([(cursor.pos // 8192 - 1) % 256])
    assert len(ends) > 3


@pytest.mark.parametrize("fly", [1, 3, 64])
def test_loading_beside_the_writes(logged, fly):
    """Rule 2: what is loaded while a window is written is not written with it; the next apply brings just that."""
    rig, end = logged(steps=300)
    groups = read_groups(rig.path())
    now, following = marsreplay.Window(128 * 1024), marsreplay.Window(128 * 1024)
    cursor = marsreplay.Cursor(rig.header.pack())
    now.begin(rig.fds[1], cursor, end)
    taken = windows = 0
    while True:
        count, code = now.finish()
        assert count and code == 0
        taken, windows = taken + count, windows + 1
        assert cursor.pos == groups[taken - 1].end
        more = cursor.pos < end
        if more:
            cursor = cursor.copy()
            following.begin(rig.fds[1], cursor, end)
        now.apply(rig.disk.fd, fly, following if more else None)
        assert rig.disk.contents() == bytes(apply(bytearray(rig.before), groups[:taken]))
        if not more:
            break
        now, following = following, now
    assert windows > 3 and rig.disk.contents() == bytes(rig.twin)


def test_what_goes_wrong_beside_the_writes(logged, tmp_path):
    """A bad group or an unreadable file met while another window is written is told by finish(), not by apply()."""
    rig, end = logged(steps=200)
    groups = read_groups(rig.path())
    flip(rig.path(), BLOCK + groups[150].pos + 13)
    now, following = marsreplay.Window(8 * MIB), marsreplay.Window(8 * MIB)
    cursor = marsreplay.Cursor(rig.header.pack())
    assert now.load(rig.fds[1], cursor, groups[99].end)[0] == 100
    following.begin(rig.fds[1], cursor, end)
    assert now.apply(rig.disk.fd, 4, following) > 0
    assert following.finish() == (50, code_of("crc")) and cursor.pos == groups[150].pos
    unreadable = os.open(tmp_path / "log", os.O_WRONLY | os.O_CREAT)
    try:
        following.begin(unreadable, marsreplay.Cursor(rig.header.pack()), end)
        now.apply(rig.disk.fd, 4, following)
        with pytest.raises(OSError, match="Bad file descriptor"):
            following.finish()
    finally:
        os.close(unreadable)


def test_windows_that_cannot_be_written(logged):
    """A window beside itself, one that is not loaded, and numbers of writes that make no sense are refused."""
    rig, end = logged(steps=5)
    window, other = marsreplay.Window(), marsreplay.Window()
    with pytest.raises(ValueError, match="begun"):
        window.finish()
    window.begin(rig.fds[1], marsreplay.Cursor(rig.header.pack()), end)
    with pytest.raises(ValueError, match="loaded"):
        window.apply(rig.disk.fd)
    assert window.finish()[0] == 5
    with pytest.raises(ValueError, match="beside another"):
        window.apply(rig.disk.fd, 4, window)
    for fly in (0, 1025):
        with pytest.raises(ValueError, match="writes at a time"):
            window.apply(rig.disk.fd, fly)
    window.apply(rig.disk.fd, 4, other)
    assert rig.disk.contents() == bytes(rig.twin)
    window.rest()
    assert window.empty and window.apply(rig.disk.fd) == 0
    assert rig.disk.contents() == bytes(rig.twin)


def test_the_map_never_overflows(make_rig):
    """Small records all over the device: the window ends before its map is full; the next one goes on."""
    rig, rng = make_rig(32 * MIB), random.Random(3)
    for _ in range(200):
        rig.volume.freeze()                 # collects full groups of 97 records
        for _ in range(97):
            rig.write(1024 * rng.randrange(32000), b"r" * 512)
        rig.volume.thaw()
    rig.volume.sync_now()
    end = rig.volume.state["durable"]
    window, cursor = marsreplay.Window(16 * MIB), marsreplay.Cursor(rig.header.pack())
    first, code = window.load(rig.fds[1], cursor, end)
    assert code == 0 and 0 < cursor.pos < end < 16 * MIB and window.stats[3] > 4000
    window.apply(rig.disk.fd)
    second, _ = window.load(rig.fds[1], cursor, end)
    assert cursor.pos == end and first + second == len(read_groups(rig.path()))
    window.apply(rig.disk.fd)
    assert rig.disk.contents() == bytes(rig.twin)
