"""Scenarios for test_log_faults: each runs in a process of its own, with log_shim.c preloaded.

    python -m tests.unit.ext.shim_scenarios NAME DIRECTORY
"""
from __future__ import annotations

import ctypes
import errno
import os
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

from marsx._ext import marslog
from marsx.log import reader
from tests.fix_volume import BLOCK, MIB, Rig

PWRITE, FDATASYNC, FALLOCATE, PREAD = 1, 2, 3, 4
SHIM = ctypes.CDLL(None)
EIO = errno.EIO


class Event(ctypes.Structure):
    """See log_shim.c."""

    _fields_ = [("kind", ctypes.c_int), ("fd", ctypes.c_int), ("phase", ctypes.c_int), ("result", ctypes.c_int),
                ("off", ctypes.c_uint64), ("len", ctypes.c_uint64)]


def rule(kind: int, fd: int, nth: int = 1, *, hold: bool = False, fail: int = 0, half: bool = False) -> int:
    """A rule for the nth call from now on."""
    return SHIM.shim_rule(kind, fd, nth, int(hold), fail, int(half))


def events() -> list[Event]:
    """All calls so far."""
    found = (Event * 4096)()
    return list(found)[:SHIM.shim_events(found)]


def until(condition: Callable[[], object]) -> None:
    """Wait for another thread's step; 20 seconds are a hang."""
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline, "it does not come"
        time.sleep(0.001)


def stays(condition: Callable[[], object]) -> None:
    """Still true after a moment in which it could have become false."""
    for _ in range(50):
        assert condition()
        time.sleep(0.001)


def two_groups(rig: Rig, **first: object) -> tuple[int, list[threading.Thread]]:
    """Group 0 is held in its pwrite, group 1 behind it is written; neither may be answered."""
    rig.volume.batch = 1
    gate = rule(PWRITE, rig.fds[1], 1, hold=True, **first)
    threads = [rig.spawn(lambda: rig.write(0, b"0" * 4096))]
    until(lambda: SHIM.shim_waiting() == 1)
    threads.append(rig.spawn(lambda: rig.write(4096, b"1" * 4096)))
    until(lambda: rig.volume.state["in_flight"] == 1)
    threads[1].join(20)
    assert not threads[1].is_alive()
    return gate, threads


def ack_order(rig: Rig) -> None:
    """Group 1 complete before group 0: answered only behind it, in log order."""
    gate, threads = two_groups(rig)
    stays(lambda: rig.injector.answered() == [] and rig.volume.state["written"] == 0)
    assert rig.volume.durable_point()[2] == 0
    SHIM.shim_open(gate)
    threads[0].join(20)
    assert rig.injector.answered() == [(2, 0), (4, 0)]
    assert rig.volume.state["written"] == 4 * BLOCK


def ack_fail(rig: Rig) -> None:
    """Group 0 fails behind the back of a complete group 1: both are answered with the error, and all that follows."""
    gate, threads = two_groups(rig, fail=EIO)
    assert rig.injector.answered() == []
    SHIM.shim_open(gate)
    threads[0].join(20)
    assert sorted(rig.injector.answered()) == [(2, EIO), (4, EIO)]
    state = rig.volume.state
    assert state["failed"] == EIO and marslog.FAILURES[state["fail_where"]] == "writing the log"
    assert state["written"] == state["durable"] == 0
    rig.write(8192, b"2" * 512)
    rig.zero(8192, 512)
    rig.injector.flush()
    assert [error for _, error in rig.injector.answered()] == [EIO] * 3
    assert reader.scan(rig.fds[1], rig.header).end == 0


def copy_outside_the_lock(rig: Rig) -> None:
    """A payload on its way into the ring: the record has its place in log and shadow, but nobody reads it, its group is
    not written, and nothing behind it is acknowledged; others go on meanwhile."""
    fd, odd, new = rig.fds[1], 25 * 512, b"n" * 25 * 512
    rig.write(0, b"o" * odd)
    rig.twin[:odd] = new
    SHIM.shim_hold_copies(ctypes.c_size_t(odd))
    writer = rig.spawn(lambda: rig.injector.write(0, new))
    until(lambda: SHIM.shim_copies_held() == 1)
    before, got = SHIM.shim_calls(PWRITE, fd), []
    reader_ = rig.spawn(lambda: got.append(rig.injector.read(512, 512)))
    behind = rig.spawn(lambda: rig.write(MIB, b"b" * 512))
    rig.injector.flush(100)
    assert rig.injector.read(2 * MIB, 512) == bytes(rig.twin[2 * MIB:2 * MIB + 512])
    stays(lambda: not got and SHIM.shim_calls(PWRITE, fd) == before and rig.volume.state["in_flight"] == 0)
    assert rig.injector.answered() == [(2, 0), (100, 0)]
    SHIM.shim_hold_copies(ctypes.c_size_t(0))
    for thread in (writer, reader_, behind):
        thread.join(20)
        assert not thread.is_alive()
    assert got == [b"n" * 512] and sorted(rig.injector.answered()) == [(4, 0), (6, 0)]
    rig.volume.freeze()
    assert rig.logical() == bytes(rig.twin) and reader.scan(fd, rig.header).records == 3


def failure_while_copying(rig: Rig) -> None:
    """The log fails while a payload is on its way: its request gets the error too, once, when it is done copying."""
    odd, new, got = 25 * 512, b"n" * 25 * 512, []
    rig.write(MIB, b"w" * 512)
    SHIM.shim_hold_copies(ctypes.c_size_t(odd))
    writer = rig.spawn(lambda: rig.injector.write(0, new))
    until(lambda: SHIM.shim_copies_held() == 1)
    rule(FDATASYNC, rig.fds[1], 1, fail=EIO)
    reader_ = rig.spawn(lambda: got.append(rig.injector.read(0, 512)))
    rig.injector.flush(100)
    assert rig.volume.state["failed"] == EIO and rig.injector.answered() == [(2, 0), (100, EIO)]
    late = rig.spawn(lambda: rig.injector.write(0, new))
    late.join(20)
    assert not late.is_alive(), "after a failure nothing is copied any more"
    stays(lambda: not got and SHIM.shim_copies_held() == 1 and rig.injector.outstanding == 1)
    SHIM.shim_hold_copies(ctypes.c_size_t(0))
    for thread in (writer, reader_):
        thread.join(20)
        assert not thread.is_alive()
    assert rig.injector.wait() == 0 and got == [b"n" * 512]
    assert [error for _, error in rig.injector.answered()] == [EIO, EIO]
    assert reader.scan(rig.fds[1], rig.header).records == 1


def flush_shares_nothing(rig: Rig) -> None:
    """A write is acknowledged while an fdatasync runs; a FLUSH after it needs an fdatasync issued after the write."""
    fd = rig.fds[1]
    rig.write(0, b"a" * 512)
    first, second = rule(FDATASYNC, fd, 1, hold=True), rule(FDATASYNC, fd, 2, hold=True)
    flusher = rig.spawn(lambda: rig.injector.flush(100))
    until(lambda: SHIM.shim_waiting() == 1)
    rig.write(512, b"b" * 512)
    rig.injector.flush(102)
    assert rig.injector.answered() == [(2, 0), (4, 0)]
    SHIM.shim_open(first)
    until(lambda: SHIM.shim_waiting() == 1 and rig.volume.state["durable"] == 2 * BLOCK)
    stays(lambda: rig.injector.outstanding == 1)
    assert rig.injector.answered() == [(100, 0)]
    SHIM.shim_open(second)
    flusher.join(20)
    assert rig.injector.answered() == [(102, 0)] and rig.volume.state["durable"] == 4 * BLOCK
    before = SHIM.shim_calls(FDATASYNC, fd)
    rig.injector.flush(104)
    assert rig.injector.answered() == [(104, 0)] and SHIM.shim_calls(FDATASYNC, fd) == before, "nothing new to sync"


def sync_fails(rig: Rig) -> None:
    """One failed fdatasync: nothing is acknowledged or durable any more, and nobody tries again."""
    fd = rig.fds[1]
    rig.spawn(rig.volume.run_flusher)
    rig.volume.flush_ns = 10**12
    rig.write(0, b"a" * 512)
    rule(FDATASYNC, fd, 1, fail=EIO)
    rig.injector.flush(100)
    assert rig.injector.answered() == [(2, 0), (100, EIO)]
    rig.write(0, b"b" * 512)
    rig.injector.flush(102)
    assert [error for _, error in rig.injector.answered()] == [EIO, EIO]
    state = rig.volume.state
    assert (state["failed"], state["durable"]) == (EIO, 0)
    assert marslog.FAILURES[state["fail_where"]] == "syncing the log"
    for call in (rig.volume.sync_now, rig.volume.freeze):
        try:
            call()
        except OSError as err:
            assert err.errno == EIO
        else:
            raise AssertionError("a failed log was synced or ended")
    assert SHIM.shim_calls(FDATASYNC, fd) == 2, "one of create_log, the failed one, none after"
    assert not rig.write_back() and rig.disk.contents() == rig.before
    os._exit(0)                                     # the flusher sleeps for long


def sync_fails_under_waiting_flush(rig: Rig) -> None:
    """A FLUSH that waits for somebody else's fdatasync hears of its failure."""
    rig.write(0, b"a" * 512)
    gate = rule(FDATASYNC, rig.fds[1], 1, hold=True, fail=EIO)
    flusher = rig.spawn(lambda: rig.injector.flush(100))
    until(lambda: SHIM.shim_waiting() == 1)
    rig.injector.flush(102)
    SHIM.shim_open(gate)
    flusher.join(20)
    assert rig.injector.wait() == 0
    assert sorted(rig.injector.answered()) == [(2, 0), (100, EIO), (102, EIO)]


def no_space(rig: Rig) -> None:
    """/mars is full: writers wait, it is said, and they go on when there is room again; also without fallocate."""
    fd = rig.fds[1]
    for kind, code in ((FALLOCATE, errno.ENOSPC), (FALLOCATE, errno.EDQUOT), (PWRITE, errno.ENOSPC)):
        number = rule(kind, fd, 0, fail=code)
        writers = [rig.spawn(lambda n=n: [rig.write(512 * n, bytes([n]) * MIB) for _ in range(8)]) for n in range(3)]
        until(lambda: rig.volume.state["stalled_ns"])
        assert rig.injector.outstanding and rig.volume.state["failed"] == 0
        assert rig.injector.read(0, 512) == bytes(rig.twin[:512]), "reads go on"
        SHIM.shim_drop(number)
        for writer in writers:
            writer.join(20)
        assert rig.injector.wait() == 0
        assert not any(error for _, error in rig.injector.answered())
        assert rig.volume.state["stalled_ns"] == 0
    rig.volume.freeze()
    assert reader.scan(fd, rig.header).records == 72


def room_in_the_next_log(rig: Rig) -> None:
    """What waits for room finds it in the next log, which has some: nobody waits any more, and that is said at once,
    not when that log needs more."""
    rule(FALLOCATE, rig.fds[1], 0, fail=errno.ENOSPC)
    rig.write(0, b"x" * 4096)
    until(lambda: rig.volume.state["stalled_ns"])
    rig.rotate(space=MIB)
    assert rig.injector.wait() == 0 and rig.injector.answered() == [(2, 0)]
    assert rig.volume.state["stalled_ns"] == 0


def no_promise(rig: Rig) -> None:
    """A file system that promises no space: a group waits in its write, nothing fails, it is said and taken back; a
    rotation gives up instead of waiting for room that only a deletion behind it may make, before and during its
    wait (rule 4)."""
    rig.write(0, b"a" * 4096)
    for code, held in ((errno.ENOSPC, False), (errno.EDQUOT, False), (errno.ENOSPC, True)):
        gate = rule(PWRITE, rig.fds[1], 1, hold=held, fail=code)
        number = rule(PWRITE, rig.fds[1], 0, fail=code)
        assert rig.injector.answered()
        writer = rig.spawn(lambda: rig.write(8192, b"b" * 4096))
        until(lambda held=held: SHIM.shim_waiting() if held else rig.volume.state["stalled_ns"])
        ended: list[int] = []
        freezing = rig.spawn(lambda ended=ended: ended.append(why_not(rig.volume.freeze)))
        if held:
            stays(lambda ended=ended: not ended)
            SHIM.shim_open(gate)
        freezing.join(20)
        assert ended == [errno.ENOSPC]
        rig.volume.thaw()
        stays(lambda: not rig.injector.answered() and rig.volume.state["stalled_ns"])
        SHIM.shim_drop(number)
        writer.join(20)
        until(lambda: rig.volume.state["stalled_ns"] == 0)
        assert rig.injector.wait() == 0
    assert [error for _, error in rig.injector.answered()] == [0]
    assert rig.volume.freeze()[0] == 8 * BLOCK and rig.logical() == bytes(rig.twin)


def why_not(call: Callable[[], object]) -> int:
    """The error of a call, 0 when it worked."""
    try:
        call()
    except OSError as err:
        return err.errno or -1
    return 0


def small_rest(rig: Rig) -> None:
    """There is no room for a whole step, but for this group: it is taken."""
    rule(FALLOCATE, rig.fds[1], 1, fail=errno.ENOSPC)
    rig.write(0, b"x" * 4096)
    assert [e.len for e in events() if e.kind == FALLOCATE and e.phase == 0] == [MIB, 2 * BLOCK]
    assert rig.injector.answered() == [(2, 0)] and rig.volume.state["stalled_ns"] == 0


def freeze_waits(rig: Rig) -> None:
    """freeze() with nothing in flight, but a group behind one that is being answered: it counts (rule 4)."""
    gate, threads = two_groups(rig)
    rig.injector.hold(1)
    SHIM.shim_open(gate)
    until(lambda: rig.volume.state["written"] == 2 * BLOCK)
    assert rig.volume.state["in_flight"] == 0
    ended: list[tuple] = []
    frozen = rig.spawn(lambda: ended.append(rig.volume.freeze()))
    stays(lambda: not ended)
    rig.injector.hold(0)
    frozen.join(20)
    threads[0].join(20)
    assert ended[0][0] == 4 * BLOCK and rig.volume.state["durable"] == 4 * BLOCK
    assert rig.injector.answered() == [(2, 0), (4, 0)]


def freeze_waits_for_space(rig: Rig) -> None:
    """A writer and the filler want file space at the same time: freeze() waits until nobody makes the log's file
    longer, because an ended log must not grow again (rule 4)."""
    fd = rig.fds[1]
    rig.write(0, b"a" * 4096)
    gate = rule(FALLOCATE, fd, 1, hold=True)
    writer = rig.spawn(lambda: rig.write(4096, b"b" * MIB))
    until(lambda: any(e.kind == FALLOCATE and e.off > BLOCK and e.phase == 0 for e in events()))
    rig.volume.fill_ahead = 4 * MIB
    rig.spawn(rig.volume.run_filler)
    ended: list[tuple] = []
    frozen = rig.spawn(lambda: ended.append(rig.volume.freeze()))
    stays(lambda: not ended)
    SHIM.shim_open(gate)
    frozen.join(20)
    size = os.fstat(fd).st_size
    assert ended[0][0] == 2 * BLOCK
    stays(lambda: os.fstat(fd).st_size == size and rig.volume.state["written"] == 2 * BLOCK)
    rig.volume.thaw()
    writer.join(20)
    assert rig.injector.wait() == 0 and rig.injector.answered() == [(2, 0), (4, 0)]


def short_writes(rig: Rig) -> None:
    """A pwrite that takes only a part is gone on with."""
    rule(PWRITE, rig.fds[1], 0, half=True)
    rig.write(0, os.urandom(65536))
    rig.volume.freeze()
    assert rig.logical() == bytes(rig.twin)
    assert reader.scan(rig.fds[1], rig.header).records == 1


def disk_sync_fails(rig: Rig) -> None:
    """A window whose flush failed moves nothing; the data stay in the shadow."""
    rig.write(0, b"w" * 4096)
    rig.volume.sync_now()
    rule(FDATASYNC, rig.disk.fd, 1, fail=EIO)
    assert rig.volume.load_window(rig.window) == 1
    try:
        rig.window.apply(rig.disk.fd)
    except OSError as err:
        assert err.errno == EIO
    else:
        raise AssertionError("a failed flush was called a success")
    assert rig.volume.state["writeback_rest"] == 2 * BLOCK and rig.volume.state["extents"] == 1
    assert rig.injector.read(0, 4096) == b"w" * 4096


def rotation_order(rig: Rig) -> None:
    """Rule 4: the last fdatasync of N, then the header of N+1 and its fdatasync, then the first group of N+1."""
    rig.write(0, b"1" * 512)
    rig.rotate()
    rig.write(0, b"2" * 512)
    log, following = rig.fds[1], rig.fds[2]
    seen = [(e.fd, e.kind, e.off) for e in events() if e.phase == 1 and e.kind in (PWRITE, FDATASYNC)]
    last_sync = max(i for i, what in enumerate(seen) if what[:2] == (log, FDATASYNC))
    last_write = max(i for i, what in enumerate(seen) if what[:2] == (log, PWRITE))
    header_sync = min(i for i, what in enumerate(seen) if what[:2] == (following, FDATASYNC))
    group = seen.index((following, PWRITE, BLOCK))
    assert last_write < last_sync < header_sync < group


def log_before_disk(rig: Rig) -> None:
    """No byte of a group reaches the data device before the log is durable: the window stays empty until then."""
    fd = rig.fds[1]
    rig.write(0, b"l" * 512)
    gate = rule(FDATASYNC, fd, 1, hold=True)
    syncing = rig.spawn(rig.volume.sync_now)
    until(lambda: SHIM.shim_waiting() == 1)
    stays(lambda: not rig.write_back())
    SHIM.shim_open(gate)
    syncing.join(20)
    assert rig.write_back() and rig.disk.contents()[:512] == b"l" * 512


def many_flushes(rig: Rig) -> None:
    """More FLUSHes than the table holds: the others wait, none fails."""
    rig.write(0, b"f" * 512)
    gate = rule(FDATASYNC, rig.fds[1], 1, hold=True)
    threads = [rig.spawn(rig.injector.flush)]
    until(lambda: SHIM.shim_waiting() == 1)
    threads += [rig.spawn(lambda: [rig.injector.flush() for _ in range(100)]) for _ in range(3)]
    until(lambda: rig.volume.counters["flushes"] >= 257)
    SHIM.shim_open(gate)
    for thread in threads:
        thread.join(20)
        assert not thread.is_alive()
    answers = rig.injector.answered()
    assert len(answers) == 302 and not any(error for _, error in answers)


def read_back_pins(rig: Rig) -> None:
    """A read that is inside the log file holds the log: write-back passes it, and the file is given away only when the
    read has ended, with the right bytes (rule 9)."""
    rig.write(3 * MIB, os.urandom(4096))
    rig.rotate()
    for _ in range(20):                                     # log 1 leaves the ring, its newest data stay in the shadow
        rig.write(0, os.urandom(MIB))
    rig.rotate()
    want = bytes(rig.twin[3 * MIB:3 * MIB + 4096])
    gate = rule(PREAD, rig.fds[1], 1, hold=True)
    got: list[bytes] = []
    reading = rig.spawn(lambda: got.append(rig.injector.read(3 * MIB, 4096)))
    until(lambda: SHIM.shim_waiting() == 1)
    while rig.write_back():
        assert rig.fds[1] not in [fd for _, fd in rig.volume.drop_logs()], "the log under a running read is given away"
    SHIM.shim_open(gate)
    reading.join(20)
    assert got == [want]
    assert rig.fds[1] in [fd for _, fd in rig.volume.drop_logs()]


def main(name: str, directory: str) -> None:
    """Run one scenario; anything wrong ends with a traceback."""
    rig = Rig(Path(directory), 4 * MIB)
    globals()[name](rig)
    rig.close()
    print("done", name)


if __name__ == "__main__":
    main(*sys.argv[1:])
