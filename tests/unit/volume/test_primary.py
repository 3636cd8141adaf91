"""The primary's volume: publications and their order, rotation and its failures, a proper end, write-back that
fails."""
from __future__ import annotations

import os
import random
import threading

import pytest

from marsx.base.errors import DamagedError, MarsError, PreconditionError
from marsx.base.position import LogPos
from marsx.log import reader, record, writer
from tests.fix_volume import BLOCK, HOST, MIB, Serving, apply, read_groups

START = LogPos(1, HOST, 0)


def load(one: Serving, twin: bytearray, rng: random.Random, n: int) -> None:
    """n random writes and discards."""
    for _ in range(n):
        length = 512 * rng.randrange(1, 17)
        at = 512 * rng.randrange((len(twin) - length) // 512)
        if rng.random() < 0.2:
            one.injector.zero(at, length, rng.choice((record.DISCARD, record.ZERO)))
            twin[at:at + length] = bytes(length)
        else:
            data = rng.randbytes(length)
            one.injector.write(at, data)
            twin[at:at + length] = data
    one.injector.wait()                             # others may be the ones who write a group


def test_publications(make_site):
    """Rules 2, 12: dirty names the window before the disk changes, replayed comes when the disk holds just that prefix,
    windows follow each other without a gap, over a rotation too."""
    site, rng = make_site(1 * MIB, window_bytes=256 * 1024), random.Random(1)
    before, twin = site.disk.contents(), bytearray(site.disk.contents())
    problems: list[str] = []
    state = {"at": START, "disk": before}

    def image(at: LogPos) -> bytes:
        result = bytearray(before)
        for nr in range(1, at.nr + 1):
            ends = at.pos if nr == at.nr else record.FileHeader.parse(site.path(nr + 1).read_bytes()[:BLOCK]).pred.pos
            apply(result, read_groups(site.path(nr), ends))
        return bytes(result)

    def look(what: tuple) -> None:
        at = state["at"]
        if what[0] == "dirty":
            if site.disk.contents() != state["disk"]:
                problems.append(f"the disk changed before {what}")
            if what[1] != at and not (what[1].nr == at.nr + 1 and what[1].pos == 0):
                problems.append(f"{what} does not go on at {at}")
            state["dirty"] = what[1].pos + what[2]
        elif what[0] == "replayed":
            if what[1].pos != state.get("dirty") or site.disk.contents() != image(what[1]):
                problems.append(f"{what}: the disk is not that prefix")
            state.update(at=what[1], disk=site.disk.contents())

    site.facts.look = look
    with Serving(site, first=True) as one:
        for _ in range(4):
            load(one, twin, rng, 80)
            one.primary.rotate()
        load(one, twin, rng, 40)
        one.injector.flush()
        assert one.primary.drain(20)
        site.facts.look = lambda what: None
        assert problems == []
        assert site.disk.contents() == bytes(twin) == one.logical()
    kinds = [what[0] for what in site.facts.told if what[0] != "version"]
    assert kinds == ["dirty", "replayed"] * (len(kinds) // 2) and len(kinds) >= 10


def test_first_log_and_its_version(make_site):
    """A new resource begins with log 1, position 0, no predecessor."""
    site = make_site()
    with Serving(site, first=True) as one:
        header = one.primary.header
        assert site.facts.told == [("version", START, header.digest0, "")]
        one.injector.write(0, b"v" * 512)
        one.injector.wait()
        one.primary.volume.sync_now()
        one.primary.publish()
        _, end, digest, previous = site.facts.last("version")
        with reader.open_log(str(site.path(1)), header.uuid, header.resource) as log:
            result = reader.scan(log.fd, log.header)
    assert (end.pos, digest, previous) == (2 * BLOCK, result.digest, "")


def test_published_is_durable_only(make_site):
    """A version link is never ahead of what an fdatasync has made true (rules 1, 3)."""
    site = make_site(flush_ms=10**6)
    with Serving(site, first=True, threads=False) as one:
        one.injector.write(0, b"v" * 512)
        one.primary.publish()
        assert site.facts.last("version")[1] == START
        one.injector.flush()
        one.primary.publish()
        assert site.facts.last("version")[1].pos == 2 * BLOCK


def test_a_log_in_a_used_file(make_site):
    """Rules 4, 9: a deleted log's file becomes the next log; a death then finds just the new groups, and the space that
    was there already is not made a second time."""
    site, rng = make_site(), random.Random(12)
    twin = bytearray(site.disk.contents())
    with Serving(site, first=True) as one:
        load(one, twin, rng, 700)
        one.primary.rotate()
        assert one.primary.drain(20)
        while 1 in one.primary._fds:                    # closed with the first window of log 2
            load(one, twin, rng, 1)
            assert one.primary.drain(20)
        old = site.path(1).read_bytes()
        writer.set_aside(str(site.path(1)), 1 << 30)
        inode = (site.directory / writer.SPARE).stat().st_ino
        end = one.primary.rotate()
        assert site.path(3).stat().st_ino == inode and not (site.directory / writer.SPARE).exists()
        load(one, twin, rng, 10)
        one.injector.flush()
        assert old[2 * MIB:] and old[2 * MIB:] == site.path(3).read_bytes()[2 * MIB:len(old)]
    with Serving(site, end, "") as two:
        assert two.logical() == bytes(twin)
        assert two.primary.header.nr == 4


def test_rotation(make_site):
    """Rules 4, 6: N is cut to its end, its version is published before N+1 begins, N+1 names end and digest."""
    site, rng = make_site(), random.Random(2)
    twin = bytearray(site.disk.contents())
    with Serving(site, first=True) as one:
        load(one, twin, rng, 30)
        end = one.primary.rotate()
        header = one.primary.header
        digest, = {what[2] for what in site.facts.told if what[0] == "version" and what[1] == end}
        assert (header.nr, header.pred, header.pred_digest) == (2, end, digest)
        assert site.path(1).stat().st_size == BLOCK + end.pos
        assert site.facts.last("version") == ("version", header.start, header.digest0, f"{digest},{end}")
        load(one, twin, rng, 30)
        assert one.logical() == bytes(twin)
        final, final_digest = one.primary.end()
    assert site.disk.contents() == bytes(twin)
    assert site.facts.last("replayed") == ("replayed", final, final_digest)
    assert site.facts.last("version")[1:3] == (final, final_digest)
    assert site.path(2).stat().st_size == BLOCK + final.pos


@pytest.mark.parametrize("where", ["facts", "no space", "after the name"])
def test_rotation_that_fails(make_site, monkeypatch, where):
    """A rotation that cannot be made leaves log N in use; once N+1 has its name nothing more may go into N (rule 4)."""
    site = make_site()
    with Serving(site, first=True) as one:
        one.injector.write(0, b"1" * 512)
        assert one.injector.wait() == 0
        if where == "facts":
            def look(what: tuple) -> None:
                if what[0] == "version":
                    raise MarsError("the tree is full")
            site.facts.look = look
        elif where == "no space":
            def refuse(*args: object, **more: object) -> int:
                raise PreconditionError("no space for log")
            monkeypatch.setattr(writer, "create_log", refuse)
        else:
            real = writer.create_log

            def late(*args: object, **more: object) -> int:
                os.close(real(*args, **more))
                raise MarsError("directory sync failed")
            monkeypatch.setattr(writer, "create_log", late)
        with pytest.raises(MarsError):
            one.primary.rotate()
        monkeypatch.undo()
        site.facts.look = lambda what: None
        ticket = one.injector.write(512, b"2" * 512)
        if where == "after the name":
            assert one.injector.wait(timeout_ms=200) == 1 and "log-000000002-a" in site.trouble[0]
            assert len(read_groups(site.path(1))) == 1
        else:
            assert one.injector.wait() == 0 and dict(one.injector.answered())[ticket] == 0
            assert one.primary.rotate() == LogPos(1, HOST, 4 * BLOCK)
            assert site.trouble == []


def test_crash_in_a_rotation(make_site):
    """Rule 4: N+1 is there and empty, the process dies: the next one goes on behind N, nothing acknowledged is lost."""
    site = make_site()
    twin = bytearray(site.disk.contents())
    with Serving(site, first=True, threads=False) as one:
        load(one, twin, random.Random(3), 20)
        end = one.primary.rotate()
    with Serving(site, threads=False) as one:
        assert (one.primary.header.nr, one.primary.header.pred) == (3, LogPos(2, HOST, 0))
        assert one.logical() == bytes(twin)
        load(one, twin, random.Random(4), 20)
    with Serving(site) as one:
        assert one.primary.drain(20)
        assert site.disk.contents() == bytes(twin)
    assert end.pos > 0


def test_versions_never_go_back(make_site):
    """Rule 19: whoever publishes at any moment of a rotation, no older end of a log comes behind a newer one, and each
    log's last version is its end."""
    site = make_site()
    with Serving(site, first=True) as one:
        done = threading.Event()
        problems: list[BaseException] = []

        def publish() -> None:
            try:
                while not done.is_set():
                    one.primary.publish()
            except BaseException as err:        # shown by the assert below
                problems.append(err)

        threads = [threading.Thread(target=publish) for _ in range(2)]
        for thread in threads:
            thread.start()
        for n in range(12):
            one.injector.write(512 * n, b"v" * 512)
            assert one.injector.wait() == 0     # else it may wait for the filler, and stand in the next log
            one.primary.rotate()
        done.set()
        for thread in threads:
            thread.join(20)
            assert not thread.is_alive()
        assert problems == []
    versions = [what[1] for what in site.facts.told if what[0] == "version"]
    assert versions == sorted(versions)
    assert {at.nr: at.pos for at in versions} == {nr: 2 * BLOCK if nr <= 12 else 0 for nr in range(1, 14)}


def test_publishing_does_not_wait(make_site):
    """publish() of the loop's thread returns while another thread waits for that loop inside a publication; what it
    was to tell is told by the other one."""
    site = make_site(flush_ms=10**6)
    with Serving(site, first=True, threads=False) as one:
        inside, go = threading.Event(), threading.Event()
        site.facts.look = lambda what: (inside.set(), go.wait(20))
        thread = threading.Thread(target=one.primary.publish)
        thread.start()
        assert inside.wait(20)
        one.injector.write(0, b"v" * 512)
        one.injector.flush()
        one.primary.publish()
        go.set()
        thread.join(20)
        assert site.facts.last("version")[1].pos == 2 * BLOCK


def test_rotation_under_load(make_site):
    """Writers in several threads, a rotation every few milliseconds, write-back behind: all answered, disk =
    logical."""
    site = make_site(2 * MIB)
    with Serving(site, first=True) as one:
        done = threading.Event()
        results: list[tuple] = []
        threads = [threading.Thread(target=lambda seed=seed: results.append(
            one.injector.run_writes(1500, 4096, 8, seed, 100))) for seed in range(1, 4)]

        def rotate() -> None:
            while not done.wait(0.005):
                one.primary.rotate()

        rotator = threading.Thread(target=rotate)
        for thread in [*threads, rotator]:
            thread.start()
        for thread in threads:
            thread.join(60)
            assert not thread.is_alive(), one.primary.volume.state
        done.set()
        rotator.join(20)
        assert not rotator.is_alive() and [failed for _, failed in results] == [0, 0, 0]
        end, _ = one.primary.end()
        assert one.logical() == site.disk.contents() and end.nr > 3 and not site.trouble
    for nr in range(1, end.nr):
        with reader.open_log(str(site.path(nr)), "u-test", "data") as log:
            result = reader.scan(log.fd, log.header)
            assert result.reason == "end"
        with reader.open_log(str(site.path(nr + 1)), "u-test", "data") as following:
            assert following.header.pred == LogPos(nr, HOST, result.end)
            assert following.header.pred_digest == result.digest


def test_write_back_that_fails(make_site, monkeypatch):
    """An error of the data device stops write-back, named; the position stays, LEN stays (rule 12), drain and end say
    so at once, reads and writes go on."""
    site = make_site()
    with Serving(site, first=True) as one:
        one.injector.write(0, b"1" * 512)
        assert one.primary.drain(20)
        at = site.facts.last("replayed")[1]
        disk, one.primary.disk_fd = one.primary.disk_fd, os.open(site.disk.path, os.O_RDONLY)
        one.injector.write(4096, b"2" * 512)
        one.threads[-1].join(20)
        assert not one.threads[-1].is_alive() and "write-back stopped" in site.trouble[0]
        os.close(one.primary.disk_fd)
        one.primary.disk_fd = disk
        assert site.facts.told[-1] == ("dirty", at, 2 * BLOCK)
        assert one.injector.read(4096, 512) == b"2" * 512
        assert not one.primary.drain(3600), "no hour of waiting for a thread that is gone"
        with pytest.raises(MarsError, match="write-back stopped"):
            one.primary.end()
    with Serving(site, at) as one:
        assert one.primary.drain(20) and site.disk.contents()[4096:4608] == b"2" * 512


def test_write_back_after_facts_fail(make_site):
    """A publication that cannot be made stops write-back before the disk is touched."""
    site = make_site()

    def look(what: tuple) -> None:
        if what[0] == "dirty":
            raise MarsError("the tree is full")

    with Serving(site, first=True) as one:
        site.facts.look = look
        before = site.disk.contents()
        one.injector.write(0, b"1" * 512)
        one.injector.flush()
        one.threads[-1].join(20)
        assert "the tree is full" in site.trouble[0] and site.disk.contents() == before


def test_logs_behind_the_disk_position_are_closed(make_site):
    """Ended logs are given back when write-back has passed them, not before (rule 9); drain does not wait for a
    timer."""
    site = make_site(writeback_ms=10**6, writeback_idle_ms=10**6, writeback_bytes=1 << 40)
    with Serving(site, first=True) as one:
        for n in range(3):
            one.injector.write(512 * n, b"%d" % n * 512)
            one.injector.wait()
            one.primary.rotate()
        fds = dict(one.primary._fds)
        assert sorted(fds) == [1, 2, 3, 4]
        assert one.primary.drain(20)
        assert sorted(one.primary._fds) == [3, 4], "the disk position is the end of 3"
        for nr in (1, 2):
            with pytest.raises(OSError, match="Bad file descriptor"):
                os.fstat(fds[nr])
        one.injector.write(0, b"4" * 512)
        one.injector.flush()
        assert one.primary.drain(20) and sorted(one.primary._fds) == [4]


def test_drain_after_the_end_of_the_thread(make_site):
    """drain() of a stopped primary returns at once."""
    site = make_site()
    with Serving(site, first=True) as one:
        one.primary.request_stop()
        one.threads[-1].join(20)
        assert not one.primary.drain(3600)


def test_two_branches_are_refused(make_site):
    """Rule 21: a higher log with contents that is not of this chain stops the start; nothing is made."""
    site = make_site()
    with Serving(site, first=True, threads=False) as one:
        one.injector.write(0, b"1" * 512)
        one.primary.rotate()
        one.injector.write(0, b"2" * 512)
    os.rename(site.path(2), site.directory / "kept")
    with Serving(site, threads=False) as one:
        one.injector.write(0, b"3" * 512)
        assert one.primary.header.nr == 2
        one.primary.rotate()
        one.injector.write(0, b"4" * 512)
    os.rename(site.path(2), site.directory / "other")
    os.rename(site.directory / "kept", site.path(2))
    names = sorted(os.listdir(site.directory))
    with pytest.raises(DamagedError):
        Serving(site, threads=False)
    assert sorted(os.listdir(site.directory)) == names
