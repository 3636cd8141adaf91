"""The ranges behind a point hold all that was changed behind it, over logs, and nothing is left out in silence."""
from __future__ import annotations

import os
import random

import pytest

from marsx.base.errors import DamagedError
from marsx.base.position import LogPos
from marsx.log import reader
from marsx.log.chain import Point
from marsx.volume import tail
from tests.fix_volume import BLOCK, HOST, MIB, Site, apply, flip, read_groups
from tests.ref.log_reader import seal

Ranges = tuple[tuple[int, int], ...]


@pytest.fixture
def parted(make_rig):
    """parted(seed) -> (rig, site, point, log bytes behind it, image there, image at the end)."""
    def make(seed: int, after: int = 12, logs: int = 2):
        rig, rng = make_rig(1 * MIB), random.Random(seed)
        for _ in range(10):
            rig.step(rng, 8192)
        rig.volume.sync_now()
        at, nr = rig.volume.state["durable"], max(rig.fds)
        point = Point(reader.digest_at(rig.fds[nr], rig.header, at), LogPos(nr, HOST, at))
        before = apply(bytearray(rig.before), read_groups(rig.path(nr), at))
        for turn in range(logs):
            for _ in range(after):
                rig.step(rng, 8192)
            if turn < logs - 1:
                rig.rotate()
        rig.volume.sync_now()
        length = sum(groups[-1].end for n in rig.fds if (groups := read_groups(rig.path(n), rig.ends.get(n)))) - at
        return rig, Site(rig.directory, rig.disk), point, length, before, rig.twin
    return make


def outside(image: bytearray, ranges: Ranges) -> bytes:
    """The image with these ranges blanked out."""
    image = bytearray(image)
    for offset, length in ranges:
        image[offset:offset + length] = bytes(length)
    return bytes(image)


def never(nr: int, producer: str) -> int:
    """No version link."""
    return 0


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("logs", [1, 3])
def test_all_that_was_changed_behind_the_point(parted, seed, logs):
    """Outside the ranges the image at the end is that of the point; they are ascending, apart, and no more than was
    written."""
    rig, site, point, length, before, after = parted(seed, logs=logs)
    found = tail.behind(site.env, point, never)
    assert found is not None and found.length == length and found.end.nr == max(rig.fds)
    assert bytes(before) != bytes(after) and outside(before, found.ranges) == outside(after, found.ranges)
    ends = [offset + size for offset, size in found.ranges]
    assert all(end < start for end, (start, _) in zip(ends, found.ranges[1:], strict=False))
    written = {(r[1], r[2]) for n in rig.fds for g in read_groups(rig.path(n), rig.ends.get(n)) for r in g.records}
    assert {offset for offset, _ in found.ranges} <= {offset for offset, _ in written}


def test_nothing_behind_it(parted):
    """The point is the end: no ranges."""
    _, site, point, length, _, _ = parted(1, after=0, logs=1)
    assert length == 0 and tail.behind(site.env, point, never) == tail.Tail(point.at, 0, ())


def test_from_the_beginning_of_a_log(parted):
    """The point is where an own log begins, and the log before is gone: the header must name just that point."""
    rig, site, *_ = parted(5, logs=3)
    header = rig.header
    assert header.pred is not None
    os.unlink(rig.path(1))
    os.unlink(rig.path(2))
    point, begin = Point(header.pred_digest, header.pred), LogPos(header.nr, HOST, 0)
    found = tail.behind(site.env, point, never, begin)
    assert found is not None and found.length == read_groups(rig.path(3))[-1].end and found.ranges
    with pytest.raises(DamagedError, match="does not begin at"):
        tail.behind(site.env, Point("ab" * 16, point.at), never, begin)


def test_another_digest_is_not_in_this_history(parted):
    """Rule 6: the position alone proves nothing."""
    _, site, point, _, _, _ = parted(2)
    with pytest.raises(DamagedError):
        tail.behind(site.env, Point("ab" * 16, point.at), never)


def test_a_gap_is_not_left_out(parted):
    """Rule 27: what went past the log is in none of its records, so all has to be compared."""
    rig, site, point, *_ = parted(6, logs=2)
    with open(rig.path(2), "r+b") as file:
        block = bytearray(file.read(BLOCK))
        file.seek(0)
        block[112:128] = bytes(range(1, 17))
        file.write(seal(block))
        file.truncate(BLOCK)
    assert tail.behind(site.env, point, never) is None


def test_damage_is_not_left_out(parted):
    """A tail that cannot be read to its end gives no ranges: all has to be compared."""
    rig, site, point, _, _, _ = parted(3)
    groups = [g for g in read_groups(rig.path(1), rig.ends[1]) if g.pos > point.at.pos]
    flip(rig.path(1), BLOCK + groups[1].pos + 230)
    with pytest.raises(DamagedError):
        tail.behind(site.env, point, never)


def test_too_long(parted, monkeypatch):
    """Not worth it: None."""
    _, site, point, length, _, _ = parted(4)
    monkeypatch.setattr(tail, "MOST", length - 1)
    assert tail.behind(site.env, point, never) is None
