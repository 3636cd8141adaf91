"""A position that cannot be made durable for lack of room: the window waits for it, nothing reaches the disk before
(rule 12), and it goes on by itself; told to stop meanwhile, it ends without writing."""
from __future__ import annotations

import threading

import pytest

from marsx.base.position import LogPos
from marsx.volume import env
from marsx.volume.env import NoRoomError
from marsx.volume.replay import Replayer
from tests.fix_volume import BLOCK, HOST, MIB, Disk, Serving, Site, WrittenFacts


class Full:
    """Makes `dirty` of a WrittenFacts fail until `room` is set; counts the tries."""

    def __init__(self, facts: WrittenFacts, monkeypatch: pytest.MonkeyPatch) -> None:
        self.room, self.tried = threading.Event(), threading.Semaphore(0)
        self._dirty = facts.dirty
        monkeypatch.setattr(env, "NO_ROOM_PAUSE_S", 0.01)
        monkeypatch.setattr(facts, "dirty", self.dirty)

    def dirty(self, at: LogPos, length: int) -> None:
        """See env.Facts."""
        if not self.room.is_set():
            self.tried.release()
            raise NoRoomError("resource-r/replay-a: No space left on device")
        self._dirty(at, length)

    def wait(self) -> None:
        """Until it was tried more than once."""
        for _ in range(3):
            assert self.tried.acquire(timeout=20), "nobody tries again"


@pytest.fixture
def replayer(make_rig, tmp_path):
    """(replayer that has a log to replay, its site, the rig that wrote the log, set when replay has moved)."""
    rig = make_rig(MIB)
    rig.write(0, b"n" * BLOCK)
    rig.volume.sync_now()
    site = Site(rig.directory, Disk(tmp_path / "copy", MIB))
    moved = threading.Event()
    one = Replayer(site.env, site.disk.fd, LogPos(1, HOST, 0), "", lambda at: moved.set())
    one.advance(LogPos(1, HOST, rig.volume.state["durable"]))
    yield one, site, rig, moved
    site.disk.close()


@pytest.mark.parametrize("stopped", [False, True])
def test_replay_waits_for_room(replayer, monkeypatch, stopped):
    """Rule 12, 28: as the module says, on a secondary."""
    one, site, rig, moved = replayer
    before = site.disk.contents()
    full = Full(site.facts, monkeypatch)
    thread = threading.Thread(target=one.body, daemon=True)
    thread.start()
    full.wait()
    assert site.disk.contents() == before and one.at.pos == 0
    if not stopped:
        full.room.set()
        assert moved.wait(20)
    one.request_stop()
    thread.join(20)
    assert not thread.is_alive() and one.error == ""
    assert site.disk.contents() == (before if stopped else bytes(rig.twin))
    assert [what[0] for what in site.facts.told] == ([] if stopped else ["dirty", "replayed"])


@pytest.mark.parametrize("stopped", [False, True])
def test_write_back_waits_for_room(make_site, monkeypatch, stopped):
    """Rule 12, 28: as the module says, on a primary, whose writers go on."""
    site = make_site(MIB)
    before = site.disk.contents()
    full = Full(site.facts, monkeypatch)
    with Serving(site, first=True) as serving:
        serving.injector.write(0, b"n" * BLOCK)
        serving.injector.flush()
        full.wait()
        assert site.disk.contents() == before
        serving.injector.write(BLOCK, b"m" * BLOCK)
        if not stopped:
            full.room.set()
            assert serving.primary.drain(20)
            assert site.disk.contents()[:2 * BLOCK] == b"n" * BLOCK + b"m" * BLOCK
    assert serving.primary.error == "" and site.trouble == []
    if stopped:
        assert site.disk.contents() == before
