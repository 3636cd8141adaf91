"""The primary's volume by its injector: order of answers, shadow, windows, read-back, full index, full ring,
rotation."""
from __future__ import annotations

import os
import random
import subprocess
import sys
import threading
import time

import pytest

from marsx._ext import marsinject, marslog, marsreplay, marsshadow
from marsx.log import reader, record
from tests.fix_volume import BLOCK, MIB, apply, flip, new_header, read_groups


def test_logical_contents_are_the_newest(make_rig):
    """Rules 8, 10: reads see every accepted write and discard at once, whatever is on the disk."""
    rig, rng = make_rig(2 * MIB), random.Random(1)
    for _ in range(400):
        rig.step(rng)
    assert rig.logical() == bytes(rig.twin)
    assert rig.disk.contents() == rig.before, "nothing may reach the disk before a window"
    assert rig.injector.wait() == 0
    assert all(error == 0 for _, error in rig.injector.answered())


def test_log_holds_the_order_of_acceptance(make_rig):
    """Rule 8: applying the log record by record gives the logical contents; the scan accepts every group."""
    rig, rng = make_rig(2 * MIB), random.Random(2)
    for _ in range(300):
        rig.step(rng)
    pos, digest = rig.volume.freeze()
    result = reader.scan(rig.fds[1], rig.header)
    assert (result.end, result.digest) == (pos, digest.hex()) and result.records == 300
    assert apply(bytearray(rig.before), read_groups(rig.path())) == rig.twin


@pytest.mark.parametrize("seed", range(6))
def test_window_is_a_prefix(make_rig, seed):
    """Rule 2: after each window the disk holds just the log up to the write-back position, though newer versions wait;
    reads see the newest all the time."""
    rig, rng = make_rig(1 * MIB), random.Random(seed)
    rig.window = marsreplay.Window(256 * 1024)
    windows = 0
    for turn in range(12):
        for _ in range(rng.randrange(60)):
            rig.step(rng)
        if rng.random() < 0.8:
            rig.volume.sync_now()
        for _ in range(rng.randrange(1, 20)):
            rig.step(rng)                   # written, not durable: no window may take these
        if rng.random() < 0.2:
            rig.rotate()
        for _ in range(rng.randrange(4)):
            if rig.write_back():
                windows += 1
                assert rig.disk.contents() == rig.prefix(), f"turn {turn}"
        assert rig.logical() == bytes(rig.twin), f"turn {turn}"
    assert windows > 3
    rig.volume.sync_now()
    while rig.write_back():
        pass
    assert rig.disk.contents() == bytes(rig.twin)
    assert rig.volume.state["extents"] == 0 and rig.volume.state["writeback_rest"] == 0


def test_window_ends_at_durable(make_rig):
    """Rule 2: what is written but not durable is in no window."""
    rig = make_rig()
    rig.write(0, b"x" * 4096)
    assert rig.volume.state["written"] == 8192 and rig.volume.state["durable"] == 0
    assert not rig.write_back()
    rig.volume.sync_now()
    rig.write(0, b"y" * 4096)
    assert rig.write_back()
    assert rig.disk.contents()[:4096] == b"x" * 4096, "the window's version, not the newest"
    assert rig.injector.read(0, 4096) == b"y" * 4096


def test_unanswered_stays_behind_the_disk_position(make_rig):
    """Rule 11: a group whose requests are not all answered is not written back, so that recovery finds their
    uniques."""
    rig = make_rig()
    rig.write(0, b"a" * 512)
    rig.injector.hold(1)
    waiting = rig.spawn(lambda: rig.write(4096, b"b" * 512))
    while rig.volume.state["written"] < 4 * BLOCK:
        time.sleep(0.001)
    rig.volume.sync_now()
    assert rig.volume.state["durable"] == 4 * BLOCK
    assert rig.write_back() and rig.volume.writeback_cursor.pos == 2 * BLOCK, "only the answered group"
    assert not rig.write_back()
    rig.injector.hold(0)
    waiting.join(10)
    assert rig.write_back() and rig.volume.writeback_cursor.pos == 4 * BLOCK


def test_windows_in_another_thread(make_rig):
    """Rules 2, 8: reads are right while windows come and go, with three threads writing their own parts."""
    rig = make_rig(3 * MIB)
    rig.spawn(rig.volume.run_flusher)
    rig.volume.flush_ns = 1_000_000
    rig.window = marsreplay.Window(128 * 1024)
    stop = threading.Event()
    errors: list[str] = []

    def write_back() -> None:
        while not stop.is_set():
            if rig.volume.wait_work(1, 20, 20):
                rig.write_back()

    def load(part: int) -> None:
        rng, base = random.Random(part), part * MIB
        for _ in range(500):
            at = base + 512 * rng.randrange(2000)
            rig.write(at, rng.randbytes(512 * rng.randrange(1, 17)))
            if rng.random() < 0.1:
                rig.zero(at, 2048)
            look = base + 512 * rng.randrange(2000)
            if rig.injector.read(look, 4096) != bytes(rig.twin[look:look + 4096]):
                errors.append(f"part {part}: a read at {look} is not the newest")
                return

    back = rig.spawn(write_back)
    loads = [rig.spawn(lambda part=part: load(part)) for part in range(3)]
    for one in loads:
        one.join(60)
    stop.set()
    back.join(20)                       # windows belong to one thread
    assert errors == []
    assert rig.logical() == bytes(rig.twin)
    rig.volume.sync_now()
    while rig.volume.state["writeback_rest"]:
        rig.write_back()
    assert rig.disk.contents() == bytes(rig.twin) == rig.prefix()


def fill_over_the_ring(rig) -> None:
    """More than the ring holds, so that the first parts can only come from the log file."""
    rng = random.Random(5)
    for at in range(0, 24 * MIB, 256 * 1024):
        rig.write(at, rng.randbytes(256 * 1024))


def test_read_back_from_the_log(make_rig):
    """Data beyond the ring come from the log file, cut and unaligned as they may be; so do windows."""
    rig = make_rig(24 * MIB)
    fill_over_the_ring(rig)
    rig.write(512 * 7, b"n" * 512)
    before = rig.volume.counters["readbacks"]
    assert rig.injector.read(512, 8192) == bytes(rig.twin[512:512 + 8192])
    assert rig.volume.counters["readbacks"] > before
    assert rig.logical() == bytes(rig.twin)
    rig.volume.sync_now()
    while rig.write_back():
        pass
    assert rig.disk.contents() == bytes(rig.twin)


def test_read_back_checks_the_crc(make_rig):
    """Rule 9: foreign bytes in the log file are an error for the reader and stop the volume, named."""
    rig = make_rig(24 * MIB)
    fill_over_the_ring(rig)
    flip(rig.path(), BLOCK + BLOCK + 1000)
    with pytest.raises(OSError, match="Input/output error"):
        rig.injector.read(0, 512)
    assert marslog.FAILURES[rig.volume.state["fail_where"]] == "reading the log back"
    ticket = rig.injector.write(0, b"z" * 512)
    assert dict(rig.injector.answered())[ticket] == 5, "nothing is acknowledged after a failure"


def test_window_checks_the_log(make_rig):
    """Rule 9: write-back out of the file verifies too; a broken log never reaches the disk."""
    rig = make_rig(24 * MIB)
    fill_over_the_ring(rig)
    rig.volume.sync_now()
    flip(rig.path(), BLOCK + BLOCK + 1000)
    with pytest.raises(ValueError, match="not valid"):
        rig.write_back()
    assert rig.disk.contents() == rig.before


def test_full_index_makes_writers_wait(make_rig):
    """A full shadow slows writers down and never fails them; it asks for write-back before enough bytes are there."""
    rig = make_rig(8 * MIB, index=1)
    rig.spawn(rig.volume.run_flusher)
    rig.volume.flush_ns = 1_000_000
    rng = random.Random(9)

    def load() -> None:
        for i in range(3000):
            rig.write(1024 * ((i * 1237) % 8000), rng.randbytes(512))

    writer = rig.spawn(load)
    while writer.is_alive() and not rig.volume.counters["waits"]:
        time.sleep(0.001)
    assert rig.volume.counters["waits"], "64 nodes cannot hold 3000 extents"
    while rig.volume.counters["writes"] < 3000:
        if rig.volume.wait_work(1 << 40, 10**6, 1000):         # never enough bytes: only the full index ends the wait
            rig.write_back()
    writer.join(20)
    answers = rig.injector.answered()
    assert len(answers) == 3000 and not any(error for _, error in answers)
    assert rig.logical() == bytes(rig.twin)


def test_when_write_back_is_due(make_rig):
    """Enough bytes, quiet, age, or a kick; before that a burst passes."""
    rig, never = make_rig(), 10**6
    assert rig.volume.wait_work(1, 0, 1) == 0
    rig.write(0, b"b" * 4096)
    assert rig.volume.wait_work(1, 0, 1) == 0, "not durable yet"
    rig.volume.sync_now()
    assert rig.volume.wait_work(2 * BLOCK, never, never) == 2 * BLOCK
    assert rig.volume.wait_work(1 << 40, 0, never) == 2 * BLOCK
    assert rig.volume.wait_work(1 << 40, never, 1) == 2 * BLOCK
    assert rig.volume.wait_work(1 << 40, never, never) == 2 * BLOCK, "what was there when it was due by age still is"
    assert rig.write_back()
    rig.write(0, b"c" * 4096)
    rig.volume.sync_now()
    found: list[int] = []
    waiting = rig.spawn(lambda: found.append(rig.volume.wait_work(1 << 40, never, never)))
    waiting.join(0.2)
    assert waiting.is_alive() and found == []
    rig.volume.kick()
    waiting.join(20)
    assert found == [2 * BLOCK]


def test_write_back_that_rests_is_woken(make_rig):
    """It waits for nothing to write back as long as it may; the first data that become durable end that."""
    rig, never = make_rig(), 10**6
    found: list[int] = []
    waiting = rig.spawn(lambda: found.append(rig.volume.wait_work(1, never, never)))
    waiting.join(0.2)
    assert waiting.is_alive()
    rig.write(0, b"w" * 4096)
    rig.volume.sync_now()
    waiting.join(20)
    assert found == [2 * BLOCK]


def test_known_uniques_are_answered_only(make_rig):
    """Rule 11: a request sent again that the recovered logs hold is answered, not logged; the same number without the
    mark of a resend is a new request."""
    rig = make_rig()
    rig.volume.set_known((40).to_bytes(8, "little") + (44).to_bytes(8, "little"))
    top = 1 << 63
    for unique in (top | 40, top | 44):
        rig.injector.write(0, b"o" * 512, unique)
    rig.injector.zero(0, 512, 2, top | 44)
    assert rig.volume.state["appended"] == 0 and rig.volume.counters["resent_known"] == 3
    rig.injector.write(0, b"p" * 512, top | 42)
    rig.injector.write(512, b"q" * 512, 40)
    assert [error for _, error in rig.injector.answered()] == [0] * 5
    groups = read_groups(rig.path())
    assert [r[3] for g in groups for r in g.records] == [42, 40]


def test_requests_outside_the_device(make_rig):
    """Nothing outside the device is logged or read; the sums cannot wrap."""
    rig = make_rig(1 * MIB)
    for offset, length in ((MIB, 512), (MIB - 512, 1024), (2**64 - 512, 1024), (2**63, 512)):
        ticket = rig.injector.write(offset, bytes(length))
        assert dict(rig.injector.answered())[ticket] == 5
        ticket = rig.injector.zero(offset, length)
        assert dict(rig.injector.answered())[ticket] == 5
        with pytest.raises(OSError):
            rig.injector.read(offset, length)
    for length in (0, marsinject.WRITE_MAX + 512):
        ticket = rig.injector.write(0, bytes(length))
        assert dict(rig.injector.answered())[ticket] == 5
    for offset, length in ((1, 512), (512, 100), (256, 256)):
        for ticket in (rig.injector.write(offset, bytes(length)), rig.injector.zero(offset, length)):
            assert dict(rig.injector.answered()).get(ticket, 5) == 5, "no disk could take it"
    rig.injector.zero(0, 2**64 - 1)
    assert rig.volume.state["appended"] == 0


def test_discards_of_everything(make_rig):
    """Rule 10: unaligned edges and the whole device read as zeros at once, and from the disk behind the window."""
    rig = make_rig(2 * MIB)
    rig.write(0, b"\xff" * 65536)
    rig.zero(512 * 3, 512 * 11)
    rig.zero(8192 + 512, 4096, record.ZERO)
    assert rig.logical() == bytes(rig.twin)
    rig.volume.sync_now()
    rig.write_back()
    assert rig.disk.contents() == bytes(rig.twin)
    rig.zero(0, 2 * MIB)
    assert rig.logical() == bytes(2 * MIB)
    rig.volume.sync_now()
    rig.write_back()
    assert rig.disk.contents() == bytes(2 * MIB)


def test_durable_in_headers_never_runs_ahead(make_rig):
    """Rule 5: a group tells the durable position known when it was sealed, at or before itself, and never less."""
    rig, rng = make_rig(), random.Random(3)
    known = []
    for _ in range(40):
        rig.step(rng)
        if rng.random() < 0.3:
            rig.injector.flush()
        known.append(rig.volume.state["durable"])
    groups = read_groups(rig.path())
    told = [group.durable for group in groups]
    assert told == sorted(told) and all(g.durable <= g.pos for g in groups) and max(told) > 0
    assert told[1:] == known[:-1]


def test_rotation_names_the_end(make_rig):
    """Rule 4: log N+1 begins at the durable end of N, and its header names end and digest; both scan to their ends."""
    rig, rng = make_rig(), random.Random(4)
    for _ in range(50):
        rig.step(rng)
    end = rig.rotate()
    assert rig.header.pred == end
    for _ in range(50):
        rig.step(rng)
    result = reader.scan(rig.fds[1], new_read(rig, 1))
    assert (result.end, result.digest) == (end.pos, rig.header.pred_digest)
    rig.volume.sync_now()
    while rig.write_back():
        assert rig.disk.contents() == rig.prefix()
    assert rig.disk.contents() == bytes(rig.twin)
    assert rig.volume.drop_logs() == [(1, rig.fds[1])]


def new_read(rig, nr: int):
    """Header of a log as it stands in the file."""
    return record.FileHeader.parse(rig.path(nr).read_bytes()[:BLOCK])


def test_frozen_holds_writers_back(make_rig):
    """Between freeze() and switch() nothing is written to a log; then everything goes into the new one (rule 4)."""
    rig = make_rig()
    rig.write(0, b"1" * 512)
    pos, digest = rig.volume.freeze()
    rig.write(512, b"2" * 512)
    assert rig.injector.outstanding == 1 and rig.volume.state["written"] == pos
    assert rig.injector.read(512, 512) == b"2" * 512
    rig.volume.thaw()
    assert rig.injector.outstanding == 0
    assert rig.volume.freeze()[0] == 2 * pos


def test_pinned_log_is_not_dropped(make_rig):
    """Rule 9: drop_logs keeps the log at the disk position and the newest, and gives each other one back once."""
    rig = make_rig()
    for nr in range(3):
        rig.write(nr * 4096, b"d" * 4096)
        rig.rotate()
    assert rig.volume.drop_logs() == []
    seen = []
    while rig.write_back():
        seen += [nr for nr, _ in rig.volume.drop_logs()]
    assert seen == [1, 2], "log 3 holds the disk position until log 4 has a group"


def test_many_threads_small_ring_rotation(make_rig):
    """No deadlock, no lost answer: writers, flushes, reads, windows and rotations at once in a small ring."""
    rig = make_rig(16 * MIB, index=512 * 1024)
    rig.spawn(rig.volume.run_flusher)
    rig.volume.flush_ns = 1_000_000
    rig.window = marsreplay.Window(32 * MIB)
    stop = threading.Event()
    problems: list[str] = []

    def guard(body) -> None:
        try:
            while not stop.is_set():
                body()
        except Exception as err:            # noqa: BLE001 - shown by the assert below
            problems.append(repr(err))

    def write_back() -> None:
        if rig.volume.wait_work(MIB, 10, 20):
            rig.write_back()

    injectors = [marsinject.Injector(rig.volume) for _ in range(4)]
    blocks = (4096, 512, 16384, 1 << 17)
    seeds = iter(range(1, 1 << 30))

    def load(injector, block: int) -> None:
        _, failed = injector.run_writes(2000000 // block // 4 + 4, block, 8, next(seeds), flush_every=50)
        assert failed == 0

    rig.spawn(lambda: guard(write_back))
    rig.spawn(lambda: guard(lambda: (rig.rotate(), time.sleep(0.05))))
    rig.spawn(lambda: guard(lambda: rig.injector.read(0, 65536)))
    for injector, block in zip(injectors, blocks, strict=True):
        for _ in range(2):
            rig.spawn(lambda injector=injector, block=block: guard(lambda: load(injector, block)))
    before = 0
    for _ in range(4):
        time.sleep(1)
        now = rig.volume.counters["writes"]
        assert now > before, f"no progress: {rig.volume.state}"
        before = now
    stop.set()
    for thread in rig.threads[1:]:
        thread.join(20)
        assert not thread.is_alive(), f"hangs: {rig.volume.state}"
    assert problems == [] and rig.volume.state["failed"] == 0
    assert all(injector.outstanding == 0 for injector in injectors)
    rig.volume.sync_now()
    while rig.write_back():
        pass
    assert len(rig.fds) > 5
    assert rig.disk.contents() == rig.logical()
    for nr, end in rig.ends.items():
        result = reader.scan(rig.fds[nr], new_read(rig, nr), limit=end)
        assert (result.end, result.digest) == (end, new_read(rig, nr + 1).pred_digest)


def wait_for(condition) -> None:
    """Another thread's step; so many seconds are a hang."""
    deadline = time.monotonic() + 90
    while not condition():
        assert time.monotonic() < deadline, "it does not come"
        time.sleep(0.001)


def test_zeros_ahead(make_rig):
    """The filler writes ahead of the groups and never over one, as much as the log has and no more than it may."""
    rig = make_rig(16 * MIB, ring=64 * MIB)
    rig.volume.fill_ahead = 24 * MIB

    def space() -> tuple[int, int]:
        return os.fstat(rig.fds[1]).st_size, rig.volume.state["appended"]

    def filled(ahead: int) -> bool:
        size, appended = space()
        return size >= BLOCK + appended + ahead

    rig.spawn(rig.volume.run_filler)
    wait_for(lambda: filled(16 * MIB))
    data = os.urandom(64 * 1024)
    for i in range(700):
        rig.write(i % 200 * len(data), data)
    wait_for(lambda: filled(12 * MIB))
    rig.volume.freeze()
    size, appended = space()
    assert appended > 40 * MIB and size <= BLOCK + appended + 24 * MIB + 4 * MIB
    extents = subprocess.run(["filefrag", "-v", str(rig.path())], capture_output=True, text=True, check=False).stdout
    assert "unwritten" not in extents
    assert reader.scan(rig.fds[1], rig.header).records == 700


def test_a_burst_gets_no_zeros(make_rig):
    """It would share the device with them and hardly gain; small writes, each made durable, gain much."""
    rig = make_rig(16 * MIB, ring=64 * MIB)
    rig.volume.allocate_step = 64 * MIB

    def ahead() -> int:
        return os.fstat(rig.fds[1]).st_size - BLOCK - rig.volume.state["appended"]

    for i in range(40):
        rig.write(i % 16 * MIB, bytes(MIB))
    rig.volume.sync_now()
    rig.volume.fill_ahead = 64 * MIB
    rig.spawn(rig.volume.run_filler)
    for i in range(16):
        rig.write(i * MIB, bytes(MIB))
    assert ahead() <= 5 * MIB                   # one step: what one fdatasync made durable, about
    for _ in range(20):
        rig.write(0, bytes(4096))
        rig.volume.sync_now()
    wait_for(lambda: ahead() >= 32 * MIB)


def test_demanded_kernel_is_never_ignored():
    """A kernel that was asked for by name and is not there stops the import."""
    for module in ("marslog", "marsshadow", "marsreplay"):
        for name in ("MARS_CRC_KERNEL", "MARS_XXH3_KERNEL"):
            done = subprocess.run([sys.executable, "-c", f"from marsx._ext import {module}"], capture_output=True,
                                  text=True, check=False, env={**os.environ, name: "none-such"})
            assert done.returncode != 0 and name in done.stderr


def test_recovered_log_ends_at_a_group(make_rig):
    """Rule 4: a log whose end is no end of a group is not indexed: addresses behind the end are those of the next
    log."""
    rig = make_rig(1 * MIB)
    rig.write(0, b"a" * 8192)
    end, _ = rig.volume.freeze()
    for wrong in (end - BLOCK, end + BLOCK, 2**64 - BLOCK):
        volume = marsshadow.Volume(rig.disk.fd, MIB, 512, 16 * MIB)
        with pytest.raises((ValueError, OSError)):
            volume.add_log(rig.fds[1], rig.header.pack(), wrong, marsreplay.Cursor(rig.header.pack()))
    marsshadow.Volume(rig.disk.fd, MIB, 512, 16 * MIB).add_log(rig.fds[1], rig.header.pack(), end,
                                                              marsreplay.Cursor(rig.header.pack()))


def test_bad_arguments():
    """The set-up refuses what cannot be, instead of going on with it."""
    with pytest.raises(ValueError, match="ring_bytes"):
        marsshadow.Volume(0, MIB, 512, 1000)
    volume = marsshadow.Volume(0, MIB, 512, 16 * MIB)
    with pytest.raises(ValueError, match="header"):
        volume.start(0, bytes(BLOCK))
    header = new_header(1, MIB).pack()
    with pytest.raises(ValueError, match="cursor"):
        volume.add_log(0, header, 0)
    volume.start(0, header)
    with pytest.raises(ValueError, match="started"):
        volume.start(0, header)
    with pytest.raises(ValueError, match="freeze"):
        volume.switch(0, header)
    with pytest.raises(ValueError, match="shrink"):
        volume.set_device_size(512)


def test_counters_add_up(make_rig):
    """Latencies and sizes of groups are counted once for each write and each record; groups of several are there."""
    rig = make_rig(8 * MIB)
    writers = [rig.spawn(lambda part=part: [rig.injector.write(part * MIB + at, b"x" * 4096)
                                            for at in range(0, 256 * 4096, 4096)]) for part in range(4)]
    for one in writers:
        one.join(60)
    rig.injector.flush()
    rig.injector.flush()
    found = rig.volume.counters
    assert sum(found["flush_latency"]) == found["flushes"] == 2
    low = sum(count * (2 ** (i - 1) if i else 0) for i, count in enumerate(found["flush_latency"]))
    assert low <= found["flush_latency_us"] <= sum(count * 2 ** i for i, count in enumerate(found["flush_latency"]))
    assert sum(found["latency"]) == found["writes"] == found["records"] == 1024
    assert sum(found["group_sizes"]) == found["groups"] <= 1024
    low = sum(count * (2 ** (i - 1) + 1 if i else 1) for i, count in enumerate(found["group_sizes"]))
    high = sum(count * 2 ** i for i, count in enumerate(found["group_sizes"]))
    assert low <= found["records"] <= high
    low = sum(count * (2 ** (i - 1) if i else 0) for i, count in enumerate(found["latency"]))
    assert low <= found["latency_us"] <= sum(count * 2 ** i for i, count in enumerate(found["latency"]))
