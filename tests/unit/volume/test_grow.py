"""A volume that grows: a log never has records behind the size that its header says, over crashes and failures too."""
from __future__ import annotations

import os

import pytest

from marsx.base.errors import MarsError
from marsx.log import record
from tests.fix_volume import BLOCK, MIB, Serving, Site, read_groups


def sizes(site: Site) -> dict[int, tuple[int, int]]:
    """log number -> (size in its header, highest byte its records touch)."""
    found = {}
    for path in sorted(site.directory.glob("log-*")):
        header = record.FileHeader.parse(path.read_bytes()[:BLOCK])
        ends = [one[1] + one[2] for group in read_groups(path) for one in group.records]
        found[header.nr] = header.device_size, max(ends, default=0)
    return found


def enlarge(site: Site, size: int) -> None:
    """What lvresize does."""
    os.truncate(site.disk.path, size)


def grown_write(one: Serving, offset: int) -> int:
    """The answer to a write at `offset`: 0, or an errno."""
    ticket = one.injector.write(offset, b"g" * 4096)
    one.injector.wait()
    return dict(one.injector.answered())[ticket]


def test_grow(make_site):
    """Rule 1: behind the old end nothing may be written before a log with the new size has begun; then it is kept over
    a death, and reaches the disk."""
    site = make_site(1 * MIB)
    enlarge(site, 2 * MIB)
    with Serving(site, first=True) as one:
        assert grown_write(one, 0) == 0 and grown_write(one, MIB) > 0
        seen = []
        site.facts.look = lambda what: seen.append((what[1].nr, one.primary.volume.device_size))
        one.primary.grow(2 * MIB)
        site.facts.look = lambda what: None
        assert set(seen) <= {(1, MIB), (2, MIB)} and seen, "requests behind the old end come after the new log only"
        assert one.primary.header.device_size == one.primary.volume.device_size == 2 * MIB
        assert grown_write(one, 2 * MIB - 4096) == 0 and grown_write(one, 2 * MIB) > 0
        one.primary.grow(2 * MIB)
        assert one.primary.header.nr == 2, "growing again to the same size does nothing"
        one.injector.flush()
    assert all(end <= size for size, end in sizes(site).values()), sizes(site)
    assert {nr: size for nr, (size, _) in sizes(site).items()} == {1: MIB, 2: 2 * MIB}
    site.disk.size = 2 * MIB
    with Serving(site) as one:
        assert one.injector.read(2 * MIB - 4096, 4096) == b"g" * 4096
        assert one.primary.drain(20)
    assert site.disk.contents()[-4096:] == b"g" * 4096


def test_growing_that_fails(make_site):
    """The new log cannot begin: the old size stays, for requests and for the next log."""
    site = make_site(1 * MIB)
    enlarge(site, 2 * MIB)
    with Serving(site, first=True) as one:
        def look(what: tuple) -> None:
            if what[0] == "version":
                raise MarsError("the tree is full")
        site.facts.look = look
        with pytest.raises(MarsError, match="full"):
            one.primary.grow(2 * MIB)
        site.facts.look = lambda what: None
        assert grown_write(one, MIB) > 0 and grown_write(one, 0) == 0
        one.primary.rotate()
        assert one.primary.header.device_size == MIB
        one.primary.grow(2 * MIB)
        assert grown_write(one, MIB) == 0


def test_who_knows_an_old_size_only_does_not_write_on(make_site):
    """The size in the tree is older than that in the log (a member that has not heard of it): named, nothing begun."""
    site = make_site(1 * MIB)
    enlarge(site, 2 * MIB)
    with Serving(site, first=True) as one:
        one.primary.grow(2 * MIB)
        grown_write(one, MIB)
        one.injector.flush()
    before = sorted(path.name for path in site.directory.iterdir())
    with pytest.raises(MarsError, match=f"{MIB} bytes, its log says {2 * MIB}"):
        Serving(site)
    assert sorted(path.name for path in site.directory.iterdir()) == before
