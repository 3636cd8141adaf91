"""A disk that only MARS wrote to is never called changed; one that somebody else wrote to, or an older copy, is."""
from __future__ import annotations

import json
import os
import random

import pytest

from marsx.base.errors import DamagedError
from marsx.base.position import LogPos
from marsx.volume import fingerprint
from marsx.volume.fingerprint import Covered, Samples
from tests.fix_volume import HOST, MIB, Site, apply, read_groups


@pytest.fixture
def written(make_rig):
    """written(seed, logs) -> (rig, site, position of the durable end): the disk file holds just the twin."""
    def make(seed: int, logs: int = 1, steps: int = 20):
        rig, rng = make_rig(1 * MIB), random.Random(seed)
        for turn in range(logs):
            for _ in range(steps):
                rig.step(rng, 8192)
            if turn < logs - 1:
                rig.rotate()
        rig.volume.sync_now()
        rig.disk.path.write_bytes(bytes(rig.twin))
        return rig, Site(rig.directory, rig.disk), LogPos(max(rig.fds), HOST, rig.volume.state["durable"])
    return make


@pytest.mark.parametrize("seed", range(8))
def test_last_writes_are_on_the_disk(written, seed):
    """Of a disk at the end of the log none is contradicted; each one that is turned over is found."""
    rig, site, at = written(seed)
    known = fingerprint.last_writes(site.env, at, 0)
    assert len(known) > 5
    assert fingerprint.contradicted(rig.disk.fd, known) == []
    for one in known:
        image = bytearray(rig.twin)
        image[one.offset + len(one.data) - 1] ^= 1
        rig.disk.path.write_bytes(bytes(image))
        assert one.offset in fingerprint.contradicted(rig.disk.fd, known)


@pytest.mark.parametrize("seed", range(8))
def test_a_window_that_may_be_there_in_part(written, seed):
    """Rule 12: what a window behind the position covers says nothing, whatever of it is on the disk."""
    rig, site, end = written(seed)
    groups = read_groups(rig.path(end.nr), end.pos)
    middle = groups[len(groups) // 2].pos
    before = apply(bytearray(rig.before), read_groups(rig.path(end.nr), middle))
    known = fingerprint.last_writes(site.env, LogPos(end.nr, HOST, middle), end.pos - middle)
    for image in (before, rig.twin):
        rig.disk.path.write_bytes(bytes(image))
        assert fingerprint.contradicted(rig.disk.fd, known) == []
    assert fingerprint.last_writes(site.env, LogPos(end.nr, HOST, middle), end.pos - middle + 4096) == [], "not known"


def test_an_older_disk_is_found(written):
    """The disk as it was some groups earlier lacks the last writes."""
    rig, site, end = written(3)
    groups = read_groups(rig.path(end.nr), end.pos)
    rig.disk.path.write_bytes(bytes(apply(bytearray(rig.before), read_groups(rig.path(end.nr), groups[-3].pos))))
    assert fingerprint.contradicted(rig.disk.fd, fingerprint.last_writes(site.env, end, 0))


def test_behind_a_rotation_the_log_before_counts(written):
    """At the beginning of a log its predecessor tells; not when that is gone."""
    rig, site, end = written(4, logs=2)
    first = min(rig.fds)
    size = rig.ends[first]
    image = apply(bytearray(rig.before), read_groups(rig.path(first), size))
    rig.disk.path.write_bytes(bytes(image))
    known = fingerprint.last_writes(site.env, LogPos(end.nr, HOST, 0), 0)
    assert known and fingerprint.contradicted(rig.disk.fd, known) == []
    assert fingerprint.last_writes(site.env, LogPos(first, HOST, size), 0) == known
    os.unlink(rig.path(first))
    assert fingerprint.last_writes(site.env, LogPos(end.nr, HOST, 0), 0) == []


def test_rotten_payload_says_nothing(written):
    """A record whose bytes are not sound in the log is no witness."""
    rig, site, end = written(5)
    sound = {one.offset: one.data for one in fingerprint.last_writes(site.env, end, 0)}
    group = read_groups(rig.path(end.nr), end.pos)[-1]
    with open(rig.path(end.nr), "r+b") as file:
        file.seek(4096 + group.pos + 4096 + 5)
        byte = file.read(1)
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte[0] ^ 1]))
    for one in fingerprint.last_writes(site.env, end, 0):
        assert sound[one.offset][:len(one.data)] == one.data


def test_samples(tmp_path):
    """First and last MiB, scattered pieces and the recent ones; each change in one is found, and no other."""
    path, size = tmp_path / "disk", 8 * MIB + 512
    path.write_bytes(random.Random(1).randbytes(size))
    fd = os.open(path, os.O_RDWR)
    try:
        recent = [fingerprint.Known(5 * MIB + 512, bytes(1024))]
        pieces = fingerprint.take(fd, size, recent, seed=7)
        assert fingerprint.changed(fd, pieces) == []
        assert (5 * MIB + 512, 1024) in {piece[:2] for piece in pieces}
        assert {offset for offset, length, _ in pieces if length == 256 << 10} >= {0, 256 << 10, 512 << 10, 768 << 10}
        assert max(offset + length for offset, length, _ in pieces) == size
        for offset, length, _ in pieces:
            byte = os.pread(fd, 1, offset + length - 1)
            os.pwrite(fd, bytes([byte[0] ^ 1]), offset + length - 1)
            assert offset in fingerprint.changed(fd, pieces)
            os.pwrite(fd, byte, offset + length - 1)
        os.ftruncate(fd, MIB)
        assert fingerprint.changed(fd, pieces) == [], "what cannot be read says nothing"
    finally:
        os.close(fd)


def test_samples_as_a_file():
    """What was packed comes back; everything else is refused."""
    one = Samples("m", "log-000000001-a,4096", ((0, 4096, "ab"),))
    assert Samples.parse(one.pack()) == one
    for bad in (b"", b"[]", b"{}", b'{"member":1}', json.dumps({"member": "m", "at": "", "pieces": [[0, 1 << 30, ""]]})
                .encode(), b'{"member":"m","at":"","pieces":[[-1,1,""]]}', b'{"member":"m","at":"","pieces":[1]}'):
        with pytest.raises(DamagedError):
            Samples.parse(bad)


@pytest.mark.parametrize("seed", range(20))
def test_covered_against_a_set(seed):
    """The ranges against a plain set of numbers."""
    rng, covered, plain = random.Random(seed), Covered(), set()
    for _ in range(200):
        start = rng.randrange(200)
        end = start + rng.randrange(1, 30)
        free = covered.free(start, end)
        assert all(low < high for low, high in free)
        assert {n for low, high in free for n in range(low, high)} == set(range(start, end)) - plain
        if rng.random() < 0.5:
            covered.add(start, end)
            plain |= set(range(start, end))
