"""Replay on a secondary: windows, publications, the step over a log's end, bounds, stop, damage."""
from __future__ import annotations

import random
import threading
import time
import weakref
from pathlib import Path

import pytest

from marsx.base.errors import MarsError
from marsx.base.position import LogPos
from marsx.volume import replay
from marsx.volume.replay import Pair, Replayer
from tests.fix_volume import BLOCK, HOST, MIB, Disk, Site, apply, flip, new_header, read_groups

START = LogPos(1, HOST, 0)


class Running:
    """A Replayer in its thread, with the positions it told."""

    def __init__(self, site: Site, at: LogPos = START, digest: str = "") -> None:
        self.told: list[LogPos] = []
        self.moved = threading.Condition()
        self.replayer = Replayer(site.env, site.disk.fd, at, digest, self.progress)
        self.thread = threading.Thread(target=self.replayer.body, daemon=True)
        self.thread.start()

    def progress(self, at: LogPos) -> None:
        """Callback."""
        with self.moved:
            self.told.append(at)
            self.moved.notify_all()

    def until(self, at: LogPos) -> None:
        """Wait until replay is there."""
        with self.moved:
            assert self.moved.wait_for(lambda: self.replayer.at == at or self.replayer.error, 20)
        assert self.replayer.error == "" and self.replayer.at == at

    def until_moved(self) -> None:
        """Wait for the first step."""
        with self.moved:
            assert self.moved.wait_for(lambda: self.told, 20)

    def __enter__(self) -> Running:
        return self

    def __exit__(self, *_: object) -> None:
        self.replayer.request_stop()
        self.thread.join(20)
        assert not self.thread.is_alive(), "replay hangs"


@pytest.fixture
def target(make_rig, tmp_path: Path):
    """target(seed, logs, **env) -> (rig with logs, site of the secondary with the same first contents)."""
    made: list[Disk] = []

    def make(seed: int = 1, logs: int = 1, **more: int):
        rig, rng = make_rig(1 * MIB), random.Random(seed)
        for nr in range(logs):
            for _ in range(60):
                rig.step(rng, 16384)
            if nr < logs - 1:
                rig.rotate()
        rig.volume.sync_now()
        made.append(Disk(tmp_path / f"copy{len(made)}", 1 * MIB))
        return rig, Site(rig.directory, made[-1], more={"window_bytes": 128 * 1024, **more})

    yield make
    for disk in made:
        disk.close()


def end_of(rig) -> LogPos:
    """The newest position of the primary's log."""
    return LogPos(max(rig.fds), HOST, rig.volume.state["durable"])


def prefix(rig, at: LogPos) -> bytes:
    """Contents at a position."""
    image = bytearray(rig.before)
    for nr in range(1, at.nr + 1):
        apply(image, read_groups(rig.path(nr), at.pos if nr == at.nr else rig.ends[nr]))
    return bytes(image)


def test_a_log_that_was_deleted_while_replay_was_off(target):
    """Rule 7: (1, its end) is (2, 0): replay that stood there goes on, whoever deleted log 1 meanwhile; with another
    digest it does not."""
    rig, site = target(5, logs=2)
    at = LogPos(1, HOST, rig.ends[1])
    with Running(site) as one:
        one.replayer.advance(at)
        one.until(at)
    digest = one.replayer.digest
    rig.path(1).unlink()
    for known in ("ab" * 16, digest):
        with Running(site, at, known) as one:
            one.replayer.advance(end_of(rig))
            if known == digest:
                one.until(end_of(rig))
            else:
                one.thread.join(20)
        assert bool(one.replayer.error) is (known != digest)
    assert site.disk.contents() == bytes(rig.twin)


@pytest.mark.parametrize("seed", range(4))
def test_replay_of_several_logs(target, seed):
    """Rules 2, 4, 12: at each published position the disk is just that prefix; dirty comes before the first change of
    each window; the end of a log is what its successor says."""
    rig, site = target(seed, logs=3)
    problems: list[tuple] = []
    state = {"disk": rig.before, "at": START, "length": 0}

    def look(what: tuple) -> None:
        disk = site.disk.contents()
        if what[0] == "dirty":
            if disk != state["disk"] or what[1] != state["at"] or what[2] <= 0:
                problems.append(what)
            state["length"] = what[2]
        else:
            step = (what[1].nr, what[1].pos) in {(state["at"].nr + 1, 0),
                                                 (state["at"].nr, state["at"].pos + state["length"])}
            if disk != prefix(rig, what[1]) or not step:
                problems.append(what)
            state.update(disk=disk, at=what[1], length=0)

    site.facts.look = look
    with Running(site) as one:
        one.replayer.advance(end_of(rig))
        one.until(end_of(rig))
    assert problems == []
    assert site.disk.contents() == bytes(rig.twin)
    assert site.facts.last("replayed")[2] == rig.volume.durable_point()[3].hex()
    assert [at for at in one.told if at.pos == 0] == [LogPos(2, HOST, 0), LogPos(3, HOST, 0)]


def test_no_further_than_fetched(target):
    """Replay ends at the known stable length, not at the file's; it goes on when more is known."""
    rig, site = target()
    groups = read_groups(rig.path())
    middle = LogPos(1, HOST, groups[len(groups) // 2].end)
    with Running(site) as one:
        one.replayer.advance(middle)
        one.until(middle)
        assert site.disk.contents() == prefix(rig, middle)
        one.replayer.advance(START)                 # an older report changes nothing
        one.replayer.advance(end_of(rig))
        one.until(end_of(rig))
    assert site.disk.contents() == bytes(rig.twin)


def test_bound_of_a_sync(target):
    """Replay does not pass a bound, and says what may be on the disk already when one is set (rule of design D 5)."""
    rig, site = target(logs=2)
    groups = read_groups(rig.path(1), rig.ends[1])
    bound = LogPos(1, HOST, groups[10].end)
    with Running(site) as one:
        assert one.replayer.set_bound(bound) == START
        one.replayer.advance(end_of(rig))
        one.until(bound)
        later = LogPos(2, HOST, 0)
        assert one.replayer.set_bound(later) <= later
        one.until(later)
        assert site.disk.contents() == prefix(rig, LogPos(1, HOST, rig.ends[1]))
        one.replayer.set_bound(None)
        one.until(end_of(rig))


def test_a_bound_stops_what_is_loaded_already(target):
    """A bound that comes while the next window is being loaded is not passed by that window (design D 5)."""
    rig, site = target(window_bytes=64 * 1024)
    groups = read_groups(rig.path())
    bounds: list[LogPos] = []

    def look(what: tuple) -> None:
        if what[0] == "dirty" and not bounds:
            end = what[1].pos + what[2]
            bounds.append(LogPos(1, HOST, next(group.end for group in groups if group.pos == end)))
            assert one.replayer.set_bound(bounds[0]) == LogPos(1, HOST, end)

    site.facts.look = look
    with Running(site) as one:
        one.replayer.advance(end_of(rig))
        one.until_moved()
        one.until(bounds[0])
        assert bounds[0] < end_of(rig) and site.disk.contents() == prefix(rig, bounds[0])
        one.replayer.set_bound(None)
        one.until(end_of(rig))
    assert site.disk.contents() == bytes(rig.twin)


def test_memory_is_given_back(target, monkeypatch):
    """A replay without work keeps no windows; work that comes later is done."""
    made: list[object] = []

    class Noted(Pair):
        def __init__(self, size: int) -> None:
            super().__init__(size)
            made.append(weakref.ref(self))

    monkeypatch.setattr(replay, "Pair", Noted)
    monkeypatch.setattr(replay, "REST_S", 0.01)
    rig, site = target()
    middle = LogPos(1, HOST, read_groups(rig.path())[20].end)
    with Running(site) as one:
        one.replayer.advance(middle)
        one.until(middle)
        end = time.monotonic() + 20
        while made[0]() is not None and time.monotonic() < end:
            time.sleep(0.002)
        assert made[0]() is None
        one.replayer.advance(end_of(rig))
        one.until(end_of(rig))
    assert len(made) == 2 and site.disk.contents() == bytes(rig.twin)


def test_bound_against_a_window_in_flight(target):
    """While a window is written its end counts as on the disk: a bound below it is told too late (rule 15)."""
    rig, site = target()
    inside, go = threading.Event(), threading.Event()

    def look(what: tuple) -> None:
        if what[0] == "dirty" and not inside.is_set():
            inside.set()
            assert go.wait(20)

    site.facts.look = look
    bound = LogPos(1, HOST, read_groups(rig.path())[0].end)
    with Running(site) as one:
        one.replayer.advance(end_of(rig))
        assert inside.wait(20)
        upper = one.replayer.set_bound(bound)
        dirty = one.replayer.at.pos
        go.set()
        with one.moved:
            assert one.moved.wait_for(lambda: one.told, 20)
        assert upper >= one.told[0] > bound and dirty == 0
    assert site.disk.contents() == prefix(rig, one.replayer.at), "nothing more than that one window"


def test_stop_ends_the_window(target):
    """Rule 12: request_stop() lets the window in flight come to its end; no LEN stays."""
    rig, site = target()
    inside, go = threading.Event(), threading.Event()
    site.facts.look = lambda what: (inside.set(), go.wait(20)) if what[0] == "dirty" else None
    one = Running(site)
    one.replayer.advance(end_of(rig))
    assert inside.wait(20)
    one.replayer.request_stop()
    go.set()
    one.thread.join(20)
    assert not one.thread.is_alive() and [what[0] for what in site.facts.told] == ["dirty", "replayed"]
    assert site.disk.contents() == prefix(rig, one.replayer.at)


def test_restart_in_the_middle(target):
    """A crash inside a window: replay again from the published position gives the same disk (rule 12)."""
    rig, site = target()
    end = end_of(rig)
    with Running(site) as one:
        one.replayer.advance(LogPos(1, HOST, read_groups(rig.path())[20].end))
        one.until(LogPos(1, HOST, read_groups(rig.path())[20].end))
    at, digest = one.replayer.at, one.replayer.digest
    mixture = bytearray(site.disk.contents())
    later = apply(bytearray(mixture), [g for g in read_groups(rig.path()) if g.pos >= at.pos])
    for start in range(0, len(mixture), 4096):      # any mixture of the window's writes
        if random.Random(start).random() < 0.5:
            mixture[start:start + 4096] = later[start:start + 4096]
    site.disk.path.write_bytes(mixture)
    with Running(site, at, digest) as two:
        two.replayer.advance(end)
        two.until(end)
    assert site.disk.contents() == bytes(rig.twin)


@pytest.mark.parametrize("where", ["header", "payload"])
def test_damage_stops_named(target, where):
    """A group that does not verify stops replay in front of it; nothing of it reaches the disk (D 4)."""
    rig, site = target(window_bytes=2 * BLOCK)
    groups = read_groups(rig.path())
    victim = next(g for g in groups[8:] if g.records[0][4])
    flip(rig.path(), BLOCK + victim.pos + (70 if where == "header" else BLOCK + 9))
    with Running(site) as one:
        one.replayer.advance(end_of(rig))
        one.thread.join(20)
    assert f"position {victim.pos}" in one.replayer.error and site.trouble == [one.replayer.error]
    assert one.replayer.at.pos == victim.pos and site.disk.contents() == prefix(rig, one.replayer.at)


def test_wrong_start_digest(target):
    """Rule 6: a start whose digest is of another history replays nothing."""
    rig, site = target()
    at = LogPos(1, HOST, read_groups(rig.path())[3].end)
    with Running(site, at, "ab" * 16) as one:
        one.replayer.advance(end_of(rig))
        one.thread.join(20)
    assert "cannot be replayed" in one.replayer.error and site.facts.told == []
    assert site.disk.contents() == rig.before


def test_no_successor(target):
    """More is said to be fetched but no log follows: named, no silent stall."""
    rig, site = target(logs=2)
    with Running(site) as one:
        rig.path(2).unlink()
        one.replayer.advance(LogPos(2, HOST, BLOCK))
        one.thread.join(20)
    assert "no log follows log-000000001-a" in one.replayer.error


def test_successor_of_another_history(target):
    """Rules 4, 6: log N+1 that names another digest for the end of N is not stepped into: a split brain, named."""
    rig, site = target(logs=2)
    end = LogPos(1, HOST, rig.ends[1])
    rig.path(2).write_bytes(new_header(2, MIB, end, "ab" * 16).pack())
    with Running(site) as one:
        one.replayer.advance(LogPos(2, HOST, BLOCK))
        one.thread.join(20)
    assert "other digest" in one.replayer.error and one.replayer.at == end
    assert site.disk.contents() == prefix(rig, end)


def test_facts_that_fail(target):
    """The dirty length that cannot be published keeps the window off the disk (rule 12)."""
    rig, site = target()

    def look(what: tuple) -> None:
        raise MarsError("the tree is full")

    site.facts.look = look
    with Running(site) as one:
        one.replayer.advance(end_of(rig))
        one.thread.join(20)
    assert "the tree is full" in one.replayer.error and site.disk.contents() == rig.before
