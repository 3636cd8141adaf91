"""The set of regions that a member has to sync behind a gap (rule 27): it leaves out only what is known to be right."""
from __future__ import annotations

import random

import pytest

from marsx.daemon import regions
from marsx.daemon.regions import Regions
from tests.fix_volume import flip

K64 = 1 << 16
SIZE = 10 * K64 + 4096


def test_against_a_plain_list():
    """add, runs and due say the same as a list of flags."""
    rng = random.Random(1)
    for _ in range(200):
        found, plain = Regions(SIZE, 16), [False] * 11
        for _ in range(rng.randrange(4)):
            offset = 512 * rng.randrange(SIZE // 512)
            length = 512 * rng.randrange(1, (SIZE - offset) // 512 + 1)
            found.add(offset, length)
            for region in range(offset // K64, (offset + length - 1) // K64 + 1):
                plain[region] = True
        for offset in range(0, SIZE, 2 * K64):
            length = min(2 * K64, SIZE - offset)
            due = bytearray(length)
            for at, size in found.due(offset, length):
                due[at - offset:at - offset + size] = b"\1" * size
            assert all(plain[(offset + at) // K64] == bool(due[at]) for at in range(0, length, 4096))
        assert found.amount() == sum(min(K64, SIZE - region * K64) for region in range(11) if plain[region])


def test_behind_the_known_size_all_is_due():
    """The device grew after the set was made."""
    found = Regions(SIZE, 16)
    assert found.due(0, K64) == []
    assert found.due(8 * K64, 4 * K64) == [(8 * K64, 4 * K64)]


@pytest.mark.parametrize("shift", [14, 16, 18])
def test_unite(shift):
    """Sets with regions of other sizes, and only what lies behind a position."""
    one, other = Regions(SIZE, 16), Regions(SIZE, shift)
    one.add(0, 1)
    other.add(2 * K64, 1)
    other.add(9 * K64, 1)
    one.unite(other, 5 * K64)
    assert one.due(0, K64) and not one.due(2 * K64, K64) and one.due(9 * K64, K64)


def test_the_file(tmp_path):
    """What cannot be read, or is damaged, is no set: then all is compared."""
    found = Regions(SIZE, 16)
    found.add(3 * K64, 512)
    regions.save(str(tmp_path), "data", found)
    path = regions.path_of(str(tmp_path))
    again = regions.load(path, "data")
    assert again is not None and again.bits == found.bits and (again.size, again.shift) == (SIZE, 16)
    assert regions.load(path, "other") is None
    for offset in (0, 9, 14, 20, 40, 89):
        flip(path, offset)
        assert regions.load(path, "data") is None, offset
        flip(path, offset)
    with open(path, "r+b") as file:
        file.truncate(89)
    assert regions.load(path, "data") is None
    regions.drop(path)
    regions.drop(path)
    assert regions.load(path, "data") is None


@pytest.mark.parametrize(("size", "shift"), [(0, 16), (SIZE, 3), (1 << 60, 12), (SIZE, 63)])
def test_what_is_no_set(size, shift):
    """From a peer, too."""
    with pytest.raises(ValueError, match="no regions"):
        Regions(size, shift)
