"""What the own logs hold after a crash: cuts at any place, damage, ended logs, the primary built on it."""
from __future__ import annotations

import contextlib
import dataclasses
import os
import random

import pytest

from marsx.base.errors import DamagedError, NotFoundError
from marsx.base.position import LogPos
from marsx.log import reader, record
from marsx.volume import recovery
from tests.fix_volume import BLOCK, HOST, MIB, Serving, Site, apply, flip, new_header, read_groups, tree_of
from tests.ref.log_reader import seal

START = LogPos(1, HOST, 0)


def recover(site: Site, at: LogPos = START, digest: str = "", durable: int = 0) -> list[recovery.Recovered]:
    """Recover and give the descriptors back."""
    logs = recovery.recover(site.env, at, digest, lambda nr, producer: durable, uniques=True)
    recovery.close_all(logs)
    return logs


@pytest.fixture
def crashed(make_rig):
    """crashed(seed) -> (rig, site, durable POS, written POS): a log with flushed groups and then unflushed ones."""
    def make(seed: int, logs: int = 1):
        rig, rng = make_rig(1 * MIB), random.Random(seed)
        for _ in range(logs - 1):
            for _ in range(30):
                rig.step(rng, 8192)
            rig.rotate()
        for _ in range(30):
            rig.step(rng, 8192)
        rig.volume.sync_now()
        durable = rig.volume.state["durable"]
        for _ in range(30):
            rig.step(rng, 8192)
        return rig, Site(rig.directory, rig.disk), durable, rig.volume.state["written"]
    return make


def lose(rig, rng: random.Random, durable: int, written: int) -> None:
    """A power cut: of what was not flushed, any blocks may be missing, and the file may be cut anywhere in it."""
    with open(rig.path(), "r+b") as file:
        for at in range(durable, written, BLOCK):
            if rng.random() < 0.1:
                file.seek(BLOCK + at)
                file.write(rng.choice((bytes(BLOCK), rng.randbytes(BLOCK))))
        if rng.random() < 0.5:
            file.truncate(BLOCK + rng.randrange(durable, written + 1, 512))


@pytest.mark.parametrize("seed", range(25))
def test_cut_anywhere(crashed, seed):
    """Rules 3, 4, 5: whatever is left of unflushed groups, recovery finds a prefix that holds all flushed ones, calls
    it a normal end, and finds the same again."""
    rig, site, durable, written = crashed(seed)
    whole = read_groups(rig.path())
    lose(rig, random.Random(seed), durable, written)
    log, = recover(site, durable=durable)
    assert durable <= log.end <= written and log.end in {0, *(group.end for group in whole)}
    assert [g.records for g in read_groups(rig.path(), log.end)] == [g.records for g in whole if g.end <= log.end]
    assert log.scan.uniques == [r[3] for g in whole if g.end <= log.end for r in g.records]
    again, = recover(site, durable=durable)
    assert (again.end, again.digest) == (log.end, log.digest)


@pytest.mark.parametrize("seed", range(8))
def test_primary_after_a_crash(crashed, seed):
    """Rules 2, 4, 10, 11: the new primary shows just the recovered prefix at once, from the index; N is cut to its end
    and named by N+1; crashes of the new one change nothing of that."""
    rig, site, durable, written = crashed(seed, logs=1 + seed % 3)
    nr = max(rig.fds)
    before = [read_groups(rig.path(n), rig.ends.get(n)) for n in range(1, nr)]
    lose(rig, random.Random(seed), durable, written)
    image = bytearray(rig.before)
    for groups in before:
        apply(image, groups)
    for round_ in range(3):
        with Serving(site, threads=False) as one:
            header = one.primary.header
            assert header.nr == nr + 1 + round_
            if round_ == 0:
                last = header.pred
                apply(image, read_groups(rig.path(nr), last.pos))
                assert rig.path(nr).stat().st_size == BLOCK + last.pos >= BLOCK + durable
                assert site.facts.last("version")[1] == header.start
            assert one.logical() == bytes(image), f"round {round_}"
            assert rig.disk.contents() == rig.before, "recovery writes nothing to the disk"
    with Serving(site) as one:
        assert one.primary.drain(20)
    assert rig.disk.contents() == bytes(image)


def test_disk_position_in_the_middle(crashed):
    """Recovery from a disk position inside a log, with and without its digest, is the same."""
    rig, site, _, _ = crashed(1)
    rig.volume.load_window(rig.window)
    cursor = rig.volume.writeback_cursor
    at = LogPos(1, HOST, cursor.pos)
    given, = recover(site, at, cursor.digest.hex())
    found, = recover(site, at)
    assert given.start == found.start == at.pos > 0
    assert (given.start_digest, given.end, given.digest) == (found.start_digest, found.end, found.digest)
    with pytest.raises(DamagedError, match="not the end of a valid group"):
        recover(site, LogPos(1, HOST, at.pos - BLOCK))
    with pytest.raises(DamagedError):
        recover(site, at, "ab" * 16)


def test_log_shorter_than_the_disk_position(crashed):
    """Rules 3, 5: what the disk holds was durable in the log; a log that ends before it has lost bytes, however clean
    its end. Only the digest given, so nothing before the position is read."""
    rig, site, durable, _ = crashed(1)
    groups = read_groups(rig.path())
    at = next(g for g in groups if g.end == durable)
    digest = reader.digest_at(rig.fds[1], rig.header, at.end)
    for size in (BLOCK + at.pos, BLOCK, BLOCK + at.end - 512):
        os.truncate(rig.path(), size)
        with pytest.raises(DamagedError, match="not the end of a valid group"):
            recover(site, LogPos(1, HOST, at.end), digest)
    with pytest.raises(DamagedError, match="not the end of a valid group"):
        recover(site, LogPos(1, HOST, 100), digest)


def test_digest_at_the_end_is_confirmed(crashed):
    """Rule 6: where no group follows, the digest that was handed in has to be that of the group before; else a wrong
    hint would become the digest of the log's end, in the version link and in the next log."""
    rig, site, durable, _ = crashed(1)
    digest = reader.digest_at(rig.fds[1], rig.header, durable)
    os.truncate(rig.path(), BLOCK + durable)
    assert recover(site, LogPos(1, HOST, durable), digest)[0].digest == digest
    with pytest.raises(DamagedError, match="does not confirm the digest"):
        recover(site, LogPos(1, HOST, durable), "ab" * 16)
    other = new_header(1, 2 * MIB).pack()[:64]
    with open(rig.path(), "r+b") as file:           # a header of its own under groups that continue the old one
        file.write(rig.header.pack()[:48] + other[48:56])
        file.seek(0)
        block = bytearray(file.read(BLOCK))
        file.seek(0)
        file.write(seal(block))
    with pytest.raises(DamagedError, match="does not continue the chain"):
        recover(site, START, rig.header.digest0)


@pytest.mark.parametrize("empty", [False, True])
def test_digest_of_an_earlier_log_of_that_name(crashed, empty):
    """Rule 7: log N was empty, was withdrawn and made again; a power cut has brought back the note of the first one's
    digest at POS 0. It says nothing about the second one."""
    rig, site, _, written = crashed(1)
    if empty:
        os.truncate(rig.path(), BLOCK)
    log, = recover(site, START, new_header(1, 2 * MIB).digest0)
    assert log.start_digest == rig.header.digest0 and log.end == (0 if empty else written)
    with Serving(site, digest=new_header(1, 2 * MIB).digest0, threads=False) as one:
        assert one.primary.header.pred.pos == log.end


@pytest.mark.parametrize("where", ["header", "table", "payload"])
def test_bit_rot_below_durable(crashed, where):
    """Rule 5: a flipped bit in what was flushed is damage, not a torn tail, by the later headers alone; it is named,
    and nothing changes on disk or in the directory."""
    rig, site, durable, _ = crashed(2)
    groups = read_groups(rig.path())
    victim = next(g for g in groups[5:] if g.records[0][4] and g.end < durable)
    flip(rig.path(), BLOCK + victim.pos + {"header": 70, "table": 230, "payload": BLOCK + 17}[where])
    before = tree_of(rig.directory)
    for durable_known in (0, durable):
        with pytest.raises(DamagedError, match=f"damaged.*position {victim.pos}"):
            recover(site, durable=durable_known)
        with pytest.raises(DamagedError):
            Serving(site, durable=durable_known)
    assert tree_of(rig.directory) == before and site.facts.told == []


def test_headers_of_a_copy_prove_nothing(crashed):
    """Rule 5: a power cut may take the first groups of a piece that fetch wrote and leave the last, whose headers speak
    of the producer's disk: for a copy that is a torn tail, unless the own version link says more."""
    rig, site, durable, _ = crashed(2)
    victim = next(g for g in read_groups(rig.path())[5:] if g.end < durable)
    flip(rig.path(), BLOCK + victim.pos + 70)
    copy = dataclasses.replace(site.env, host="b")
    for known, damaged in ((0, False), (victim.pos, False), (victim.end, True)):
        with pytest.raises(DamagedError, match="damaged") if damaged else contextlib.nullcontext():
            log, = recovery.recover(copy, START, "", lambda nr, producer, known=known: known)
            recovery.close_all([log])
            assert log.end == victim.pos


def test_known_durable_of_links(crashed):
    """Rule 5: with no later header left, the version links still tell damage from a torn tail."""
    rig, site, durable, _ = crashed(3)
    last = [g for g in read_groups(rig.path()) if g.end <= durable][-1]
    with open(rig.path(), "r+b") as file:
        file.truncate(BLOCK + last.pos)
    assert recover(site)[0].end == last.pos, "torn for all that the log itself says"
    with pytest.raises(DamagedError, match="damaged"):
        recover(site, durable=durable)


def test_ended_log_must_be_whole(crashed):
    """Rule 4: a log with a successor ends where that says: shorter, or other contents with the same length, is damage;
    what stands behind the end is not history."""
    rig, site, _, _ = crashed(4, logs=2)
    end = rig.ends[1]
    with open(rig.path(1), "r+b") as file:
        file.seek(BLOCK + end)
        file.write(b"behind the end" * 300)
    assert [log.end for log in recover(site)] == [end, rig.volume.state["written"]]
    saved = rig.path(1).read_bytes()
    last = read_groups(rig.path(1), end)[-1]
    for size in (BLOCK + end - BLOCK, BLOCK + last.pos):
        rig.path(1).write_bytes(saved[:size])
        with pytest.raises(DamagedError, match="has to end at"):
            recover(site)
    rig.path(1).write_bytes(saved)
    flip(rig.path(1), BLOCK + last.pos + 20)
    with pytest.raises(DamagedError, match="has to end at"):
        recover(site)


def test_valid_groups_behind_the_end(crashed):
    """Rule 4: groups that are sound and continue the chain, but stand behind the end that N+1 names, are no history."""
    rig, site, _, _ = crashed(4)
    middle = read_groups(rig.path())[20]
    digest = reader.digest_at(rig.fds[1], rig.header, middle.end)
    rig.path(2).write_bytes(new_header(2, MIB, LogPos(1, HOST, middle.end), digest).pack())
    first, second = recover(site)
    assert (first.end, first.digest, first.scan.groups, second.end) == (middle.end, digest, 21, 0)


def test_successor_of_other_contents(crashed):
    """Rule 4, 6: N+1 names the digest of N's end; a log of the same length with another history does not fit."""
    rig, site, _, _ = crashed(5, logs=2)
    other = new_header(2, MIB, LogPos(1, HOST, rig.ends[1]), "ab" * 16)
    rig.path(2).write_bytes(other.pack())
    with pytest.raises(DamagedError, match="other contents"):
        recover(site)


def test_crash_between_logs(crashed):
    """Rule 4: N ended, N+1's header durable and nothing in it; and before that, only a temporary file: both recover to
    N's end."""
    rig, site, _, _ = crashed(6)
    end = rig.rotate()
    logs = recover(site)
    assert [(log.header.nr, log.end) for log in logs] == [(1, end.pos), (2, 0)]
    os.rename(rig.path(2), rig.directory / ".tmp.1.log-000000002-a")
    log, = recover(site)
    assert log.position == end and log.is_last


def test_missing_and_foreign(crashed, make_site):
    """A log that is not there, or of another resource, is named."""
    rig, site, _, _ = crashed(7, logs=2)
    os.unlink(rig.path(1))
    with pytest.raises(NotFoundError, match="log-000000001-a"):
        recover(site)
    assert recover(site, LogPos(2, HOST, 0))[0].header.nr == 2
    assert recover(site, LogPos(1, HOST, rig.ends[1]))[0].header.nr == 2, "the end of N is the start of N+1 (rule 7)"
    with pytest.raises(NotFoundError):
        recover(make_site())


def test_resent_after_recovery(crashed):
    """Rule 11: after a restart under the same device, what the logs hold is answered only; without it, it is logged."""
    rig, site, _, _ = crashed(8, logs=2)
    uniques = [r[3] for nr in (1, 2) for g in read_groups(rig.path(nr), rig.ends.get(nr)) for r in g.records]
    for same_device in (True, False):
        with Serving(site, threads=False, same_device=same_device) as one:
            for unique in (uniques[0], uniques[-1]):
                one.injector.write(0, b"resent" + bytes(506), unique | 1 << 63)
            one.injector.write(0, b"new" + bytes(509), max(uniques) + 2 | 1 << 63)
            assert [error for _, error in one.injector.answered()] == [0, 0, 0]
            assert one.primary.volume.counters["resent_known"] == (2 if same_device else 0)
            groups = read_groups(site.path(one.primary.header.nr))
            assert sum(len(g.records) for g in groups) == (1 if same_device else 3)


def test_index_too_small_for_the_backlog(make_rig):
    """A backlog that the index cannot hold is brought to the disk first, in windows with their publications (rule
    12)."""
    rig, rng = make_rig(4 * MIB), random.Random(1)
    for nr in range(2):
        for i in range(2500):
            rig.write(1024 * ((i * 1237 + nr * 600) % 4000), rng.randbytes(512))
        if nr == 0:
            rig.rotate()
    rig.volume.sync_now()
    site = Site(rig.directory, rig.disk, more={"index_bytes": 1, "window_bytes": MIB})
    with Serving(site, threads=False) as one:
        assert one.logical() == bytes(rig.twin)
    kinds = [what[0] for what in site.facts.told]
    assert kinds.count("dirty") == kinds.count("replayed") > 2
    assert kinds[0] == "dirty" and site.facts.told[0][1] == START


def test_bring_forward_damage_keeps_descriptors_apart(make_rig, monkeypatch):
    """Damage found while the backlog is brought forward is the error that is told, and no descriptor is closed
    twice."""
    rig, rng = make_rig(4 * MIB), random.Random(1)
    for i in range(2500):
        rig.write(1024 * ((i * 1237) % 4000), rng.randbytes(512))
    rig.volume.sync_now()
    site = Site(rig.directory, rig.disk, more={"index_bytes": 1, "window_bytes": MIB})
    real, calls = recovery.recover, []

    def second_fails(*args, **more):
        calls.append(1)
        if len(calls) == 2:
            raise DamagedError("found later")
        return real(*args, **more)

    monkeypatch.setattr(recovery, "recover", second_fails)
    open_before = sorted(os.listdir("/proc/self/fd"))
    with pytest.raises(DamagedError, match="found later"):
        Serving(site, threads=False)
    assert sorted(os.listdir("/proc/self/fd")) == open_before


def test_what_recovery_reads_is_synced(crashed, monkeypatch):
    """Rule 3: each log is fdatasynced before its scan."""
    rig, site, _, _ = crashed(9, logs=2)
    order = []
    from marsx.base import durable
    real_sync, real_scan = durable.overwrite, reader.scan
    monkeypatch.setattr(durable, "overwrite", lambda fd, *a: (order.append(("sync", fd)), real_sync(fd, *a)))
    monkeypatch.setattr(reader, "scan", lambda fd, *a, **k: (order.append(("scan", fd)), real_scan(fd, *a, **k))[1])
    logs = recover(site)
    assert order == [(what, log.fd) for log in logs for what in ("sync", "scan")]
    assert record.BLOCK == BLOCK


def test_only_what_is_empty_for_sure_is_withdrawn(crashed):
    """Rule 7: the newest log without a group may go; rules 4, 5: not when its first group is only damaged, not when
    its predecessor is gone."""
    rig, site, durable, _ = crashed(10, logs=2)
    assert recovery.empty_end(site.env, START, lambda nr, producer: 0) is None
    flip(rig.path(2), BLOCK + 70)
    with pytest.raises(DamagedError, match="damaged"):
        recovery.empty_end(site.env, START, lambda nr, producer: 0)
    rig, site, _, _ = crashed(10)
    rig.rotate()
    found = recovery.empty_end(site.env, START, lambda nr, producer: 0)
    assert found is not None and found.nr == 2
    with pytest.raises(DamagedError, match="damaged"):
        recovery.empty_end(site.env, START, lambda nr, producer: BLOCK if nr == 2 else 0)
    site.more["begun"] = lambda: "log-000000002-a"
    assert recovery.empty_end(site.env, START, lambda nr, producer: 0) is None, "a replica began with it"
    site.more["begun"] = str
    os.unlink(rig.path(1))
    assert recovery.empty_end(site.env, LogPos(2, HOST, 0), lambda nr, producer: 0) is None
