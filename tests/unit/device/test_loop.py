"""The parts of the loop front end that need no device: the link in /dev/mars, the tag, what counts as ours."""
from __future__ import annotations

import os
from pathlib import Path

import pytest

from marsx.device import loop
from marsx.device.frontend import Attached


def test_link_is_made_replaced_and_removed(tmp_path: Path) -> None:
    loop.make_link(str(tmp_path), "data", "/dev/loop4700")
    loop.make_link(str(tmp_path), "data", "/dev/loop4701")
    assert os.readlink(tmp_path / "data") == "/dev/loop4701"
    assert os.listdir(tmp_path) == ["data"]
    assert not loop.remove_link(str(tmp_path), "data", "/dev/loop4700"), "that link is not ours any more"
    assert loop.remove_link(str(tmp_path), "data", "/dev/loop4701")
    assert os.listdir(tmp_path) == []
    assert not loop.remove_link(str(tmp_path), "data", "/dev/loop4701")


@pytest.mark.parametrize("target", ["/dev/sda", "/dev/loop1/../sda", "loop1", "/dev/loopx"])
def test_foreign_link_is_never_replaced(tmp_path: Path, target: str) -> None:
    os.symlink(target, tmp_path / "data")
    with pytest.raises(OSError, match="in the way"):
        loop.make_link(str(tmp_path), "data", "/dev/loop4700")
    assert os.readlink(tmp_path / "data") == target
    assert loop.link_target(str(tmp_path), "data") is None


def test_file_is_never_replaced(tmp_path: Path) -> None:
    (tmp_path / "data").write_text("precious")
    with pytest.raises(OSError, match="not a symbolic link"):
        loop.make_link(str(tmp_path), "data", "/dev/loop4700")
    assert not loop.remove_link(str(tmp_path), "data", "/dev/loop4700")
    assert (tmp_path / "data").read_text() == "precious"


def test_link_target(tmp_path: Path) -> None:
    os.symlink("/dev/loop4711", tmp_path / "data")
    assert loop.link_target(str(tmp_path), "data") == 4711
    assert loop.link_target(str(tmp_path), "nothing") is None
    assert loop.link_target(str(tmp_path), "../data") is None


def test_longest_name_has_a_tag_that_fits() -> None:
    """lo_file_name has 64 bytes with its NUL; the tag of the longest name still ends before it."""
    tag = loop.tag_of("r" * 63)
    assert len(tag) == 63 and tag.startswith(b"mars:rrr")


@pytest.mark.parametrize(("device", "inode", "name", "ours"),
                         [(39, 2, "data", True), (40, 2, "data", False), (39, 3, "data", False),
                          (39, 2, "other", False)])
def test_ours_is_device_inode_and_tag(device: int, inode: int, name: str, ours: bool) -> None:
    """Rule 20 depends on it: a loop device bound to something else in between is neither touched nor taken for ours."""
    now = loop.Status(39, 2, 1 << 30, loop.DIRECT_IO, b"mars:data")
    assert now.is_bound_to(Attached(4700, device, inode), name) is ours


class FakeLoop:
    """A loop device for `release`: `others` openers, AUTOCLEAR as the kernel does it at the last close."""

    def __init__(self, others: int, tag: bytes = b"mars:data") -> None:
        self.others, self.bound, self.flags, self.tag, self.open = others, True, loop.DIRECT_IO, tag, 0

    def open_status(self, number: int) -> tuple[int, loop.Status | None]:
        self.open += 1
        return os.open(os.devnull, os.O_RDONLY), loop.Status(39, 2, 0, self.flags, self.tag) if self.bound else None

    def set_status(self, fd: int, was: loop.Status, *, flags: int) -> None:
        self.flags = flags

    def close(self, fd: int) -> None:
        self.open -= 1
        if not self.open and not self.others and self.flags & loop.AUTOCLEAR:
            self.bound = False


@pytest.mark.parametrize(("others", "gone", "flags"), [(0, True, None), (1, False, loop.DIRECT_IO)])
def test_release_lets_the_last_close_decide(monkeypatch: pytest.MonkeyPatch, others: int, gone: bool,
                                            flags: int | None) -> None:
    """Rule 20: AUTOCLEAR, close, look again; still ours: AUTOCLEAR off, nothing has changed."""
    fake = FakeLoop(others)
    real = os.close
    monkeypatch.setattr(loop, "_open_status", fake.open_status)
    monkeypatch.setattr(loop, "_set_status", fake.set_status)
    monkeypatch.setattr(loop.os, "close", lambda fd: (real(fd), fake.close(fd)))
    assert loop.release(4700, lambda now: now.tag == b"mars:data") is gone
    assert fake.bound is not gone
    assert fake.open == 0
    assert flags is None or fake.flags == flags


def test_release_never_touches_a_stranger(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeLoop(0, tag=b"somebody")
    monkeypatch.setattr(loop, "_open_status", fake.open_status)
    monkeypatch.setattr(loop, "_set_status", lambda *a, **k: pytest.fail("changed a device that is not ours"))
    assert loop.release(4700, lambda now: now.tag == b"mars:data")
