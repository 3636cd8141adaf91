"""What a full /mars means for the daemon: the ballast (rule 28), and what may be given to members while the log is
passed by (rule 27)."""
from __future__ import annotations

import asyncio
import os
from types import SimpleNamespace

import pytest

from marsx.base.errors import MarsError
from marsx.base.position import LogPos
from marsx.daemon import emergency
from marsx.daemon.emergency import Ballast, Watch
from marsx.daemon.logsource import End, Pins
from marsx.daemon.space import Room
from marsx.daemon.spans import PrimarySpans, SpanGate
from marsx.log import record
from marsx.log.chain import Point
from marsx.peer.spanio import AlignedBuffer
from marsx.peer.wire import Reason
from marsx.volume import emergency as passing
from marsx.volume import gap
from tests.fix_volume import HOST, MIB, RESOURCE, Serving

GIB = 1 << 30
SETTINGS = {"mars_reset_emergency": 1, **{f"required_free_space_{level}_gb": 2 for level in (1, 2, 3, 4)},
            **{f"required_free_space_{level}_percent": 0 for level in (1, 2, 3, 4)}}


def test_the_ballast_is_there_for_the_facts(tmp_path, monkeypatch):
    """Rule 28: with much room there is ballast, space and inodes; at level 4, or when a fact cannot be written, it goes
    at once; it comes back only at level 0."""
    free = [60]
    monkeypatch.setattr(emergency, "room_of", lambda path: Room(free[0] * GIB, 64 * GIB))
    monkeypatch.setattr(emergency, "BALLAST_MOST", 2 << 20)
    store = SimpleNamespace(root=str(tmp_path), host="a", problems={})
    site = SimpleNamespace(store=store, host="a", level=0, settings=SimpleNamespace(get=SETTINGS.__getitem__),
                           loop=SimpleNamespace(call_soon=lambda call: None), kick=None)
    watch, folder = Watch(site), tmp_path / "local-a/ballast"

    def there() -> tuple[int, int]:
        watch.look()
        files = list(folder.iterdir())
        return sum(path.stat().st_blocks * 512 for path in files), len(files)
    full = (2 << 20, 1 + emergency.BALLAST_INODES)
    assert there() == full
    for free[0], due in ((7, full), (3, full), (1, (0, 0)), (5, (0, 0)), (60, (0, 0)), (60, (0, 0))):
        assert there() == due
    assert there() == full and site.level == 0
    store.problems = {"x": "no room"}
    assert there() == (0, 0)


def test_ballast_that_finds_no_room(tmp_path, monkeypatch):
    """Rule 28: half a ballast is none, and an error of /mars there is none of the daemon."""
    ballast = Ballast(str(tmp_path))
    ballast.restore(Room(2 << 20, 2 << 20), 1 << 20 | 1)
    assert not (tmp_path / "ballast").exists()

    def no_room(*args: object) -> None:
        raise OSError(28, "No space left on device")
    monkeypatch.setattr(emergency.os, "posix_fallocate", no_room)
    ballast.restore(Room(GIB, GIB), 0)
    assert os.listdir(tmp_path / "ballast") == []


def test_nothing_past_the_log_is_given_away(make_site):
    """Rule 27: a source that was made before refuses from the entry on, for ever; none is made meanwhile; afterwards
    who stands before the gap has to cross it first."""
    site = make_site(4 * MIB)
    gap.prepare(str(site.directory), RESOURCE, 4 * MIB)

    async def run(one: Serving) -> None:
        gate = SpanGate(one.primary, End(LogPos(1, HOST, 0)), None)
        old = PrimarySpans(gate, Pins())
        buffer = memoryview(AlignedBuffer(4096))
        old.read(0, buffer)
        end = passing.enter(one.primary)
        one.injector.write(0, b"n" * 4096)
        for call in (lambda: old.read(0, buffer), old.still, lambda: PrimarySpans(gate, Pins())):
            with pytest.raises(MarsError, match="emergency mode"):
                call()
        with pytest.raises(MarsError, match="emergency mode"):
            await old.durable(0)
        passing.leave(one.primary)
        with pytest.raises(MarsError, match="emergency mode"):
            old.read(0, buffer)
        new = PrimarySpans(gate, Pins())
        new.read(0, buffer)
        refused = new.check(Point(record.NO_DIGEST, LogPos(1, HOST, 0)), None)
        assert refused is not None and refused.reason is Reason.BEHIND and "crossed first" in refused.text
        assert new.check(Point(record.NO_DIGEST, LogPos(end.nr + 11, HOST, 0)), None) is None
        for source in (old, new):
            await source.close()
        await gate.shut()

    with Serving(site, first=True) as one:
        one.injector.write(0, b"o" * 4096)
        asyncio.run(run(one))
