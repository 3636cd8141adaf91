"""Emergency mode of a primary (rule 27): what is written past the log is where it has to be, each region's bit comes
before its first byte, the order of entering and leaving holds, and a crash at any point leaves the truth."""
from __future__ import annotations

import os
import random
import shutil
import threading

import pytest

from marsx._ext import marsdirect, marsinject
from marsx.base.errors import DamagedError, PreconditionError
from marsx.base.position import LogPos
from marsx.log import record
from marsx.volume import emergency, gap, primary, recovery
from marsx.volume.primary import Primary
from tests.fix_volume import BLOCK, HOST, MIB, RESOURCE, UUID, Serving, Site, apply, flip, read_groups

START = LogPos(1, HOST, 0)
REGION = 1 << gap.SHIFT_LEAST


def load(one: Serving, twin: bytearray, rng: random.Random, n: int) -> set[int]:
    """n random writes and discards; the regions they touched."""
    touched: set[int] = set()
    for _ in range(n):
        length = 512 * rng.randrange(1, 40)
        at = 512 * rng.randrange((len(twin) - length) // 512)
        if rng.random() < 0.2:
            one.injector.zero(at, length, rng.choice((record.DISCARD, record.ZERO)))
            twin[at:at + length] = bytes(length)
        else:
            data = rng.randbytes(length)
            one.injector.write(at, data)
            twin[at:at + length] = data
        touched |= set(range(at // REGION, (at + length - 1) // REGION + 1))
    one.injector.wait()
    return touched


def ready(make_site, size: int = 4 * MIB, **more) -> tuple[Site, bytearray]:
    """A site whose emergency mode is prepared."""
    site = make_site(size, **more)
    gap.prepare(str(site.directory), RESOURCE, size)
    return site, bytearray(site.disk.contents())


def regions(site: Site) -> set[int]:
    """What the newest map in use says."""
    header = gap.headers(str(site.directory), UUID, RESOURCE)[-1]
    found = gap.find(str(site.directory), header)
    assert found is not None
    return {8 * at + bit for at, byte in enumerate(found.bits()) for bit in range(8) if byte >> bit & 1}


def test_there_and_back(make_site):
    """Rule 27: everything is on the data device before, direct writes are there at once and in the map, the log goes
    on behind the gap, and its header says where the gap is."""
    site, twin = ready(make_site)
    rng = random.Random(1)
    with Serving(site, first=True) as one:
        load(one, twin, rng, 120)
        end = emergency.enter(one.primary)
        assert site.disk.contents() == bytes(twin) == one.logical()
        touched = load(one, twin, rng, 120)
        one.injector.flush()
        assert site.disk.contents() == bytes(twin) == one.logical()
        assert regions(site) == touched
        state = one.primary.volume.state
        assert (state["nr"], state["appended"], state["direct"]) == (end.nr + 11, 0, True)
        assert one.primary.volume.counters["direct_writes"] == 120
        emergency.leave(one.primary)
        before = regions(site)
        load(one, twin, rng, 60)
        one.injector.flush()
        assert one.logical() == bytes(twin) and before == regions(site) == touched
        assert one.primary.drain(20)
    header = record.FileHeader.parse(site.path(end.nr + 11).read_bytes()[:BLOCK])
    assert (header.pred, header.gap_id != record.NO_ID) == (end, True)
    assert site.disk.contents() == bytes(twin)


def test_order_of_entering(make_site):
    """Rule 27: disk position = end of the log, durable, before the gap log is there; the hole in the version links."""
    site, twin = ready(make_site)
    there: list[tuple[str, bool]] = []
    site.facts.look = lambda what: there.append((what[0], bool(gap.headers(str(site.directory), UUID, RESOURCE))))
    with Serving(site, first=True) as one:
        load(one, twin, random.Random(2), 50)
        there.clear()
        told = len(site.facts.told)
        end = emergency.enter(one.primary)
    at = site.facts.told.index(("dirty", end, 0), told)
    assert site.facts.told[at - 1][:2] == ("replayed", end)
    assert not any(exists for _, exists in there[:at - told + 1]), "the gap log came before the position"
    links = [what for what in site.facts.told[at:] if what[0] == "version"]
    assert links[0] == ("version", LogPos(end.nr + 10, HOST, 0), record.NO_DIGEST, "")
    assert links[1][1] == LogPos(end.nr + 11, HOST, 0) and links[1][3].startswith(f"{record.NO_DIGEST},log-")


def test_nothing_of_the_log_is_left_behind(make_site, monkeypatch):
    """Rule 27: what write-back has not come to yet is on the data device before anything goes past the log."""
    site, twin = ready(make_site, writeback_bytes=1 << 30, writeback_ms=60_000, writeback_idle_ms=60_000)
    monkeypatch.setattr(emergency, "easy_drain", lambda primary: None)
    with Serving(site, first=True) as one:
        load(one, twin, random.Random(20), 40)
        one.injector.flush()
        assert site.disk.contents() != bytes(twin)
        emergency.enter(one.primary)
        assert site.disk.contents() == bytes(twin)
        load(one, twin, random.Random(21), 40)
        assert site.disk.contents() == bytes(twin) == one.logical()


def test_writers_during_the_change(make_site):
    """Rules 1, 27: writers and flushers that run all the time lose nothing, whatever the log is doing."""
    site, _ = ready(make_site, size=2 * MIB)
    with Serving(site, first=True) as one:
        stop = threading.Event()
        twins = [bytearray(512 * 64) for _ in range(4)]
        errors: list[str] = []

        def writer(number: int) -> None:
            rng, base, injector = random.Random(number), number * 512 * 64, marsinject.Injector(one.primary.volume)
            while not stop.is_set():
                at, data = 512 * rng.randrange(64), rng.randbytes(512)
                injector.write(base + at, data)
                injector.wait()
                if any(error for _, error in injector.answered()):
                    errors.append("a write failed")
                if rng.random() < 0.1:
                    injector.flush()
                twins[number][at:at + 512] = data
                if one.injector.read(base + at, 512) != data:
                    errors.append("an old block was read")
        for number in range(4):
            one.injector.write(number * 512 * 64, bytes(512 * 64))
        one.injector.wait()
        threads = [threading.Thread(target=writer, args=(number,)) for number in range(4)]
        for thread in threads:
            thread.start()
        for _ in range(3):
            emergency.enter(one.primary)
            emergency.leave(one.primary)
        stop.set()
        for thread in threads:
            thread.join()
        assert errors == []
        assert one.logical()[:4 * 512 * 64] == b"".join(bytes(twin) for twin in twins)


def test_accepted_and_never_logged(make_site):
    """Rule 27: a log without room holds accepted records back; they go to the data device first, in the order of the
    log, and their requests are answered."""
    site, twin = ready(make_site)
    rng = random.Random(3)
    with Serving(site, first=True) as one:
        load(one, twin, rng, 20)
        volume = one.primary.volume
        volume.hold()
        volume.give_up()
        one.primary.volume.freeze()             # groups stay where they are, as for want of room
        waiting = 0
        for _ in range(40):
            data = rng.randbytes(512 * rng.randrange(1, 9))
            at = 512 * rng.randrange(16)
            one.injector.write(at, data)        # overlapping: their order counts
            twin[at:at + len(data)] = data
            waiting += 1
        assert volume.state["durable"] < volume.state["appended"]
        assert one.logical() == bytes(twin)
        emergency.enter(one.primary)
        one.injector.wait()
        assert volume.counters["diverted"] == waiting
        assert site.disk.contents() == bytes(twin) == one.logical()
        emergency.leave(one.primary)
        load(one, twin, rng, 20)
        assert one.logical() == bytes(twin)


def test_crash_past_the_log(make_site):
    """Rule 27: a worker that ended in emergency mode goes on there, in the same map, and the log does not put old
    blocks over new ones."""
    site, twin = ready(make_site)
    rng = random.Random(4)
    with Serving(site, first=True) as one:
        load(one, twin, rng, 60)
        end = emergency.enter(one.primary)
        touched = load(one, twin, rng, 30)
        digest = site.facts.last("replayed")[2]
    for at, known in ((end, digest), (LogPos(end.nr + 11, HOST, 0), "")):
        with Serving(site, at, known) as one:
            assert one.primary.volume.is_direct and one.logical() == bytes(twin)
            touched |= load(one, twin, rng, 30)
            assert regions(site) == touched and site.disk.contents() == bytes(twin)
    with Serving(site, end, digest) as one:
        emergency.leave(one.primary)
        load(one, twin, rng, 30)
        one.injector.flush()
        at = site.facts.last("replayed")[1]
    assert at.nr == end.nr + 11
    with Serving(site, at) as one:
        assert not one.primary.volume.is_direct and one.logical() == bytes(twin)
        assert one.primary.header.nr == end.nr + 12
        assert regions(site) == touched


def test_closed_is_for_ever(make_site):
    """Rule 27: a map that was closed gets no bit in addition, also when the gap log is still empty at the next
    start; nor one that is damaged."""
    site, twin = ready(make_site)
    with Serving(site, first=True) as one:
        load(one, twin, random.Random(5), 10)
        end = emergency.enter(one.primary)
        emergency.leave(one.primary)
    with Serving(site, end) as one:
        assert not one.primary.volume.is_direct and one.primary.header.nr == end.nr + 12


def test_lost_map(make_site):
    """Rule 27: without a sound map nothing goes past the log, and nobody is healed by regions."""
    site, twin = ready(make_site)
    with Serving(site, first=True) as one:
        load(one, twin, random.Random(6), 10)
        end = emergency.enter(one.primary)
        load(one, twin, random.Random(7), 10)
    header = gap.headers(str(site.directory), UUID, RESOURCE)[-1]
    flip(gap.map_path(str(site.directory), header.gap_id), BLOCK + 100)
    assert gap.find(str(site.directory), header) is None
    with Serving(site, end) as one:
        assert not one.primary.volume.is_direct and one.logical() == bytes(twin)


@pytest.mark.parametrize("emergency_too", [False, True])
def test_a_disk_that_was_changed_directly_is_a_gap(make_site, emergency_too):
    """Rule 27: a primary whose disk was changed past the log, nobody knows where, begins a gap log of which nobody has
    a map, so that all members compare all; also where a map is open still, which does not know of it."""
    site, twin = ready(make_site)
    with Serving(site, first=True) as one:
        load(one, twin, random.Random(30), 40)
        end = emergency.enter(one.primary)
        if not emergency_too:
            emergency.leave(one.primary)
        at, digest = site.facts.last("replayed")[1:3]
    newest = gap.headers(str(site.directory), UUID, RESOURCE)[-1]
    primary = Primary(site.env, site.disk.fd)
    primary.past = True
    try:
        primary.open(at if emergency_too else newest.start, digest if emergency_too else "", lambda nr, producer: 0)
        header = primary.header
        assert header.nr == end.nr + 22 and header.gap_id not in (record.NO_ID, newest.gap_id)
        assert header.pred == newest.start and gap.find(str(site.directory), header) is None
        assert not primary.volume.is_direct and not primary.past
    finally:
        primary.close()


def test_bit_before_data(make_site):
    """Rule 27: a region's bit that cannot be made durable keeps the data away, and everything stops, named."""
    site, twin = ready(make_site)
    with Serving(site, first=True) as one:
        load(one, twin, random.Random(8), 10)
        emergency.enter(one.primary)
        one.injector.write(0, b"x" * 512)
        os.dup2(os.open(os.devnull, os.O_RDONLY), one.primary._map_fd)
        one.injector.wait()
        one.injector.answered()
        one.injector.write(64 * 1024 + 512, b"y" * 512)
        assert one.injector.answered()[0][1] != 0
        state = one.primary.volume.state
        assert state["failed"] and site.disk.contents()[64 * 1024 + 512:64 * 1024 + 1024] != b"y" * 512
        assert regions(site) == {0}


def test_a_flush_reaches_the_disk(make_site):
    """Rules 1, 27: past the log a FLUSH is a sync of the data device; one that fails is for good."""
    site, twin = ready(make_site)
    with Serving(site, first=True) as one:
        load(one, twin, random.Random(22), 10)
        emergency.enter(one.primary)
        one.injector.write(0, b"x" * 512)
        one.injector.flush()
        one.injector.wait()
        assert not any(error for _, error in one.injector.answered())
        kept, broken = os.dup(site.disk.fd), os.open(os.devnull, os.O_RDWR)
        os.dup2(broken, site.disk.fd)                       # takes writes, and cannot sync
        one.injector.flush()
        one.injector.wait()
        assert [error for _, error in one.injector.answered()] == [22]
        os.dup2(kept, site.disk.fd)
        one.injector.write(512, b"y" * 512)
        one.injector.wait()
        assert [error for _, error in one.injector.answered()] == [22] and one.primary.volume.state["failed"] == 22
        for fd in (kept, broken):
            os.close(fd)


def test_position_before_the_gap_is_refused(make_site):
    """Rule 27: a disk position before the gap would put the log over what was written past it."""
    site, twin = ready(make_site)
    with Serving(site, first=True) as one:
        load(one, twin, random.Random(9), 30)
        emergency.enter(one.primary)
        load(one, twin, random.Random(10), 10)
    with pytest.raises(DamagedError, match="before the gap"), Serving(site, START):
        pass
    assert site.disk.contents() == bytes(twin)


def no_room(*args: object) -> int:
    raise OSError(28, "No space left on device")


def test_not_prepared(make_site, monkeypatch):
    """Rule 27: without the files that are made in time nothing begins, and the log goes on; with room they are made
    late."""
    site = make_site(4 * MIB)
    twin = bytearray(site.disk.contents())
    with Serving(site, first=True) as one:
        load(one, twin, random.Random(11), 10)
        with monkeypatch.context() as patch:
            patch.setattr(gap.durable, "write_file", no_room)
            with pytest.raises(PreconditionError, match="cannot be prepared"):
                emergency.enter(one.primary)
        load(one, twin, random.Random(12), 10)
        one.injector.flush()
        assert one.logical() == bytes(twin) and not one.primary.volume.is_direct
        emergency.enter(one.primary)
        load(one, twin, random.Random(19), 10)
        assert one.logical() == bytes(twin) == site.disk.contents()


class FailsAt:
    """In place of a function: the call number `at` finds no room."""

    def __init__(self, real, at: int) -> None:
        self.real, self.at, self.calls = real, at, 0

    def __call__(self, *args: object):
        self.calls += 1
        return no_room() if self.calls == self.at else self.real(*args)


STEPS = [("os", "rename", 1), ("os", "rename", 2), ("durable", "overwrite", 1), ("durable", "overwrite", 2),
         ("os", "open", 2), ("os", "open", 4)]


@pytest.mark.parametrize(("module", "name", "at"), STEPS)
def test_a_try_that_fails_uses_nothing_up(make_site, monkeypatch, module, name, at):
    """Rule 27: entering fails at each of its steps; the log goes on, and the next try finds all that it needs, without
    any new file."""
    site, twin = ready(make_site)
    rng = random.Random(13)
    with Serving(site, first=True) as one:
        load(one, twin, rng, 10)
        monkeypatch.setattr(gap.durable, "write_file", no_room)
        with monkeypatch.context() as patch:
            fails = FailsAt(getattr(getattr(gap, module), name), at)
            patch.setattr(getattr(gap, module), name, fails)
            with pytest.raises((OSError, PreconditionError), match="No space|prepared"):
                emergency.enter(one.primary)
            assert fails.calls >= at
        assert not one.primary.volume.is_direct and gap.is_ready(str(site.directory), 4 * MIB)
        load(one, twin, rng, 10)
        one.injector.flush()
        assert one.logical() == bytes(twin)
        emergency.enter(one.primary)
        load(one, twin, rng, 10)
        assert one.logical() == bytes(twin) == site.disk.contents()


def test_the_next_gap_is_prepared_before_the_log_goes_on(make_site, monkeypatch):
    """Rule 27: without room for the next emergency this one does not end; when the log goes on, it could be left again
    at once, however full /mars is. A log that ends needs no such room."""
    site, twin = ready(make_site)
    rng = random.Random(14)
    with Serving(site, first=True) as one:
        for _ in range(3):
            load(one, twin, rng, 10)
            with monkeypatch.context() as patch:
                patch.setattr(gap.durable, "write_file", no_room)
                emergency.enter(one.primary)
                with pytest.raises(PreconditionError, match="cannot be prepared"):
                    emergency.leave(one.primary)
                assert one.primary.volume.is_direct
            load(one, twin, rng, 10)
            emergency.leave(one.primary)
            assert gap.is_ready(str(site.directory), 4 * MIB) and not one.primary.volume.is_direct
            load(one, twin, rng, 10)
            one.injector.flush()
            assert one.logical() == bytes(twin)
        monkeypatch.setattr(gap.durable, "write_file", no_room)
        emergency.enter(one.primary)
        one.primary.end()


def test_a_start_without_room(make_site, monkeypatch):
    """Rule 27: a primary that comes up and finds no room for a log begins with the file kept for that, and can go
    without log from there. One that goes on in its log does not use it."""
    site, twin = ready(make_site)
    rng = random.Random(23)
    with Serving(site, first=True) as one:
        load(one, twin, rng, 20)
        one.injector.flush()
        at = site.facts.last("version")[1]

    def full(*args: object) -> int:
        raise PreconditionError("no space for log")
    monkeypatch.setattr(primary.writer, "create_log", full)
    monkeypatch.setattr(gap.durable, "write_file", no_room)
    with Serving(site, LogPos(at.nr, HOST, 0)) as one:
        assert one.primary.header.nr == at.nr + 1 and not (site.directory / gap.NEXT_LOG).exists()
        load(one, twin, rng, 20)
        emergency.enter(one.primary)
        load(one, twin, rng, 20)
        assert one.logical() == bytes(twin) == site.disk.contents()
    with Serving(site, LogPos(at.nr + 12, HOST, 0)) as one:
        assert one.primary.volume.is_direct                 # as it was: nothing new is needed
        with pytest.raises(PreconditionError, match="cannot be prepared"):
            emergency.leave(one.primary)


def test_a_gap_is_history(make_site):
    """Rules 7, 27: an empty log behind a gap is never taken back."""
    site, _ = ready(make_site)
    with Serving(site, first=True) as one:
        emergency.enter(one.primary)
    header = gap.headers(str(site.directory), UUID, RESOURCE)[-1]
    assert not recovery.may_withdraw(site.env, header)


def test_no_rotation_meanwhile(make_site):
    """A rotation or a proper end in emergency mode: refused, and done by leaving first."""
    site, twin = ready(make_site)
    with Serving(site, first=True) as one:
        load(one, twin, random.Random(14), 10)
        end = emergency.enter(one.primary)
        load(one, twin, random.Random(15), 10)
        with pytest.raises(PreconditionError, match="emergency mode"):
            one.primary.rotate()
        last, digest = one.primary.end()
        assert last == LogPos(end.nr + 11, HOST, 0)
        assert site.facts.last("replayed")[1:] == (last, digest)
    found = gap.find(str(site.directory), gap.headers(str(site.directory), UUID, RESOURCE)[-1])
    assert found is not None and found.header.state == gap.CLOSED
    assert site.disk.contents() == bytes(twin)


def test_recovery_over_a_gap(make_site):
    """The log behind the gap is replayed on top of what went past the log, never what lies before it."""
    site, twin = ready(make_site)
    with Serving(site, first=True) as one:
        load(one, twin, random.Random(16), 40)
        end = emergency.enter(one.primary)
        load(one, twin, random.Random(17), 40)
        emergency.leave(one.primary)
        load(one, twin, random.Random(18), 40)
        one.injector.flush()
    image = bytearray(site.disk.contents())
    with Serving(site, end, threads=False) as one:
        assert one.logical() == bytes(twin)
    assert bytes(apply(image, read_groups(site.path(end.nr + 11)))) == bytes(twin)


@pytest.fixture(autouse=True)
def _no_patience(monkeypatch):
    """Writers here never pause: nothing is gained by waiting for that."""
    monkeypatch.setattr(emergency, "EASY_DRAIN_S", 0.1)


@pytest.mark.parametrize("size", [MIB, 64 << 30, 1 << 40, 1 << 46])
def test_shift(size):
    """Not more regions than a map holds, none smaller than 64 KiB."""
    shift = gap.shift_for(size)
    assert shift >= gap.SHIFT_LEAST and size >> shift <= gap.REGIONS_MOST
    assert shift == gap.SHIFT_LEAST or size >> shift > gap.REGIONS_MOST // 2


def test_one_form_of_the_map():
    """The engine and the control plane mean the same sectors."""
    assert (marsdirect.MAP_SECTOR, marsdirect.MAP_HEAD) == (gap.SECTOR_BYTES, gap.SECTOR_HEAD)


def test_prepare_again(make_site, tmp_path):
    """What is there and fits stays; what does not fit, or is damaged, is made anew."""
    folder = tmp_path / "prepared"
    folder.mkdir()
    gap.prepare(str(folder), RESOURCE, MIB)
    before = (folder / gap.SPARE_MAP).read_bytes()
    gap.prepare(str(folder), RESOURCE, MIB)
    assert (folder / gap.SPARE_MAP).read_bytes() == before and gap.is_ready(str(folder), MIB)
    gap.prepare(str(folder), RESOURCE, 64 * MIB)
    assert gap.is_ready(str(folder), 64 * MIB) and not gap.is_ready(str(folder), MIB)
    flip(folder / gap.SPARE_MAP, 20)
    assert not gap.is_ready(str(folder), 64 * MIB)
    gap.prepare(str(folder), RESOURCE, 64 * MIB)
    assert gap.is_ready(str(folder), 64 * MIB)
    os.link(folder / gap.SPARE_LOG, folder / "log-000000012-a")     # two names: it may be a log
    assert not gap.is_ready(str(folder), 64 * MIB)
    gap.prepare(str(folder), RESOURCE, 64 * MIB)
    assert os.stat(folder / "log-000000012-a").st_nlink == 1 and gap.is_ready(str(folder), 64 * MIB)
    os.rename(gap.put_to_use(str(folder), 12).path, folder / gap.SPARE_MAP)     # cut off in the middle
    assert not gap.is_ready(str(folder), 64 * MIB)
    gap.prepare(str(folder), RESOURCE, 64 * MIB)
    assert gap.is_ready(str(folder), 64 * MIB)
    shutil.rmtree(folder)
