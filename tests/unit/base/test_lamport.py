"""The Lamport clock: never backwards, never behind real time, survives a power cut with a dead battery (rule 25)."""
from __future__ import annotations

import errno
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from marsx.base import durable
from marsx.base.lamport import MAX_FUTURE_NS, STEP_NS, HighWater, Lamport

YEAR_2000 = 946_684_800 * 10**9
NOW = 1_795_000_000 * 10**9


class Clock:
    def __init__(self, now: int = NOW) -> None:
        self.now = now

    def __call__(self) -> int:
        return self.now


@given(st.lists(st.one_of(st.tuples(st.just("tick"), st.integers(-10**12, 10**12)),
                          st.tuples(st.just("see"), st.integers(1, 2 * NOW)), st.just(("now", 0)))))
def test_stamps_grow_and_never_lag(steps):
    """Whatever the clock does: each stamp is above all stamps given or seen before, and not behind the clock."""
    clock = Clock()
    lamport = Lamport(clock)
    highest = 0
    for what, value in steps:
        if what == "tick":
            clock.now += value
        elif what == "see":
            lamport.see(value)
            highest = max(highest, value)
        else:
            stamp = lamport.now()
            assert stamp > highest and stamp >= clock.now
            highest = stamp


def test_equal_real_time_advances_by_one_ns():
    lamport = Lamport(Clock())
    assert [lamport.now(), lamport.now(), lamport.now()] == [NOW, NOW + 1, NOW + 2]


def test_rule_25_stamp_far_ahead_is_illegal_and_limit_is_the_guard():
    """rule 25: the guard is measured against the greatest of own clock, own high water and connected peers' clocks."""
    lamport = Lamport(Clock())
    assert lamport.legal(NOW + MAX_FUTURE_NS)
    assert not lamport.legal(NOW + MAX_FUTURE_NS + 1)
    lamport.peer_clock("b", NOW + 5)
    assert lamport.legal(NOW + MAX_FUTURE_NS + 5)
    lamport.peer_clock("b", None)
    assert not lamport.legal(NOW + MAX_FUTURE_NS + 5)
    lamport.see(NOW + 7)
    assert lamport.legal(NOW + MAX_FUTURE_NS + 7)


@pytest.mark.parametrize("stamp", [0, -1, 2**63])
def test_no_stamp_is_not_legal(stamp):
    assert not Lamport(Clock()).legal(stamp)


def test_rule_25_dead_battery_names_itself_and_keeps_believing_the_cluster(tmp_path):
    """rule 25: in the year 2000 the persisted high water keeps today's stamps legal, and the host says so."""
    path = str(tmp_path / "lamport")
    first = Lamport(Clock(), high_water=HighWater(path, writable=True))
    given_out = first.now()
    second = Lamport(Clock(YEAR_2000), high_water=HighWater(path))
    assert second.legal(NOW + 10**9)
    assert "behind" in second.clock_problem()
    assert second.now() > given_out


def test_clock_ahead_of_all_peers_is_a_problem_but_a_long_sleep_is_not():
    clock = Clock()
    lamport = Lamport(clock, floor=NOW - 3 * MAX_FUTURE_NS)
    assert lamport.clock_problem() == ""
    lamport.peer_clock("b", NOW - MAX_FUTURE_NS - 1)
    assert "ahead" in lamport.clock_problem()
    lamport.peer_clock("c", NOW)
    assert lamport.clock_problem() == ""


def test_power_cut_never_repeats_a_stamp(tmp_path):
    """The file is written ahead: a new life starts above every stamp of the old one, without any clean end."""
    path = str(tmp_path / "lamport")
    clock = Clock()
    for _ in range(3):
        lamport = Lamport(clock, high_water=HighWater(path, writable=True))
        stamps = []
        for _ in range(5):
            clock.now += 3 * 10**9
            stamps.append(lamport.now())
        after = Lamport(Clock(YEAR_2000), high_water=HighWater(path))
        assert after.now() > max(stamps)


def test_another_program_does_not_push_the_clock_ahead(tmp_path):
    """marsadm trusts the ceiling that marsd has written ahead, but begins at the stamps that exist: commands given one
    after the other leave the clock at real time."""
    path = str(tmp_path / "lamport")
    marsd = Lamport(Clock(), high_water=HighWater(path, writable=True))
    marsd.now()
    for _ in range(100):
        marsadm = Lamport(Clock())
        marsadm.trust(HighWater(path).limit)
        marsadm.see(marsd.high_water)
        assert marsadm.legal(HighWater(path).limit)
        marsd.see(marsadm.now())
        marsd.now()
    assert marsd.high_water - NOW < 1000


def test_high_water_costs_one_write_per_step(tmp_path, monkeypatch):
    writes = []
    real = durable.overwrite
    monkeypatch.setattr(durable, "overwrite", lambda *args: (writes.append(1), real(*args)))
    clock = Clock()
    lamport = Lamport(clock, high_water=HighWater(str(tmp_path / "lamport"), writable=True))
    for _ in range(1000):
        lamport.now()
    assert len(writes) == 1
    clock.now += STEP_NS + 1
    lamport.now()
    assert len(writes) == 2


def test_close_leaves_the_exact_mark(tmp_path):
    path = str(tmp_path / "lamport")
    lamport = Lamport(Clock(), high_water=HighWater(path, writable=True))
    stamp = lamport.now()
    lamport.close()
    assert HighWater(path).limit == stamp + 1


@pytest.mark.parametrize("torn", [0, 1])
def test_one_torn_slot_loses_at_most_the_last_step(tmp_path, torn):
    """Two slots in turn: damage of either leaves the other."""
    path = str(tmp_path / "lamport")
    mark = HighWater(path, writable=True)
    mark.write(1000)
    mark.write(2000)
    with open(path, "r+b") as file:
        file.seek(torn * 512 + 4)
        file.write(b"\xff\xff")
    assert HighWater(path).limit == {0: 1000, 1: 2000}[torn]
    again = HighWater(path, writable=True)
    again.write(3000)
    assert HighWater(path).limit == 3000


def test_garbage_is_no_mark(tmp_path):
    path = tmp_path / "lamport"
    path.write_bytes(os.urandom(1024))
    assert HighWater(str(path)).limit == 0


def test_file_is_roots_alone_and_needs_no_space_later(tmp_path):
    path = str(tmp_path / "lamport")
    mark = HighWater(path, writable=True)
    before = os.stat(path)
    assert before.st_mode & 0o777 == 0o600
    mark.write(5)
    after = os.stat(path)
    assert (after.st_size, after.st_blocks, after.st_ino) == (before.st_size, before.st_blocks, before.st_ino)


def test_failing_file_is_named_and_stamps_go_on(tmp_path, monkeypatch):
    lamport = Lamport(Clock(), high_water=HighWater(str(tmp_path / "lamport"), writable=True))

    def broken(*args):
        raise OSError(errno.EIO, "disk is broken")

    monkeypatch.setattr(durable, "overwrite", broken)
    assert lamport.now() == NOW
    assert "disk is broken" in lamport.trouble
