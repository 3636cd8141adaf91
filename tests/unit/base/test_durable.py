"""Atomic, durable links and files; a failed sync stays failed; long links survive a power cut."""
from __future__ import annotations

import errno
import os
import shutil
import stat
import subprocess

import pytest

from marsx.base import durable

STAMP = 1_700_000_000_123_456_789


@pytest.fixture(autouse=True)
def forget_failures(monkeypatch):
    monkeypatch.setattr(durable, "_failed", {})


def test_link_has_value_and_stamp_and_no_temporary_stays(tmp_path):
    path = str(tmp_path / "primary")
    durable.write_link(path, "alpha", STAMP, durable=True)
    durable.write_link(path, "bêta", STAMP + 1, durable=False)
    assert os.readlink(path) == "bêta"
    assert os.lstat(path).st_mtime_ns == STAMP + 1
    assert os.listdir(tmp_path) == ["primary"]


@pytest.mark.parametrize("value", ["", "a\0b", "x" * 1024, "é" * 512, "\ud800"])
def test_illegal_value_changes_nothing(tmp_path, value):
    path = str(tmp_path / "primary")
    durable.write_link(path, "alpha", STAMP, durable=False)
    with pytest.raises(ValueError):
        durable.write_link(path, value, STAMP + 1, durable=False)
    assert os.readlink(path) == "alpha" and os.listdir(tmp_path) == ["primary"]


@pytest.mark.parametrize("stamp", [0, -5, 2**63])
def test_illegal_stamp_is_refused(tmp_path, stamp):
    with pytest.raises(ValueError):
        durable.write_link(str(tmp_path / "x"), "v", stamp, durable=False)
    assert os.listdir(tmp_path) == []


def test_longest_value_fits(tmp_path):
    path = str(tmp_path / "x")
    durable.write_link(path, "v" * 1023, STAMP, durable=True)
    assert os.readlink(path) == "v" * 1023


def test_a_regular_file_is_never_replaced_by_a_link(tmp_path):
    path = tmp_path / "log-000000001-a"
    path.write_bytes(b"data")
    with pytest.raises(FileExistsError):
        durable.write_link(str(path), "v", STAMP, durable=False)
    assert path.read_bytes() == b"data"


def test_failed_rename_leaves_no_temporary(tmp_path, monkeypatch):
    def broken(*args, **kwargs):
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(os, "rename", broken)
    with pytest.raises(OSError, match="full"):
        durable.write_link(str(tmp_path / "x"), "v", STAMP, durable=False)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(("value", "call"), [("v" * 59, "fsync"), ("v" * 60, "syncfs"), ("é" * 30, "syncfs")])
def test_a_link_outside_of_its_inode_needs_the_stronger_sync(tmp_path, monkeypatch, value, call):
    """What the table in the module says about ext4 without journal: 60 bytes do not fit into the inode."""
    calls = []
    monkeypatch.setattr(durable, "_directory_fsync_covers", {os.stat(tmp_path).st_dev: True})
    monkeypatch.setattr(os, "fsync", lambda fd: calls.append("fsync"))
    monkeypatch.setattr(durable, "_syncfs", lambda fd: calls.append("syncfs"))
    durable.write_link(str(tmp_path / "x"), value, STAMP, durable=True)
    assert calls == [call]


def test_unknown_file_system_gets_the_stronger_sync(tmp_path, monkeypatch):
    calls = []
    monkeypatch.setattr(durable, "_directory_fsync_covers", {})
    monkeypatch.setattr(durable, "_file_system_type", lambda device: "btrfs")
    monkeypatch.setattr(durable, "_syncfs", lambda fd: calls.append("syncfs"))
    durable.write_link(str(tmp_path / "x"), "v", STAMP, durable=True)
    assert calls == ["syncfs"]


def test_file_system_type_is_found_for_the_root():
    with open("/proc/self/mounts", encoding="utf-8") as lines:
        types = [line.split()[2] for line in lines if line.split()[1] == "/"]
    assert durable._file_system_type(os.stat("/").st_dev) in types


def test_a_failed_sync_never_becomes_a_success(tmp_path, monkeypatch):
    """The kernel reports a write-back error once; the second fsync would lie."""
    answers = iter([OSError(errno.EIO, "bad disk"), None])

    def fsync(fd):
        answer = next(answers)
        if answer:
            raise answer

    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(OSError) as first:
        durable.sync_dir(str(tmp_path))
    assert first.value.errno == errno.EIO and str(tmp_path) in str(first.value)
    with pytest.raises(OSError, match="an earlier sync"):
        durable.sync_dir(str(tmp_path))
    with pytest.raises(OSError, match="an earlier sync"):
        durable.write_file(str(tmp_path / "f"), b"x")
    assert not (tmp_path / "f").exists()


def test_write_file_is_whole_private_and_replaces(tmp_path):
    old = os.umask(0)
    try:
        path = str(tmp_path / "f")
        durable.write_file(path, b"one")
        durable.write_file(path, b"two", mode=0o640)
    finally:
        os.umask(old)
    assert (tmp_path / "f").read_bytes() == b"two"
    assert stat.S_IMODE(os.stat(path).st_mode) == 0o640
    assert os.listdir(tmp_path) == ["f"]


def test_make_dir_says_whether_it_was_new_and_refuses_other_kinds(tmp_path):
    assert durable.make_dir(str(tmp_path / "d"), durable=True) is True
    assert durable.make_dir(str(tmp_path / "d")) is False
    (tmp_path / "l").symlink_to(tmp_path / "d")
    with pytest.raises(NotADirectoryError):
        durable.make_dir(str(tmp_path / "l"))


def test_temporary_names_are_known():
    assert durable.is_temp(".tmp.12.3.primary") and durable.is_temp(".tmp-primary") and not durable.is_temp("primary")


def _run(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def _power_cut(tmp_path, mkfs, value) -> tuple[str, int]:
    """Write a durable link on a fresh file system, copy its device just then, and read the link in the copy."""
    image, copy, mnt = str(tmp_path / "image"), str(tmp_path / "copy"), str(tmp_path / "mnt")
    os.mkdir(mnt)
    with open(image, "wb") as file:
        file.truncate(320 << 20)
    _run(*mkfs, image)
    loop = _run("losetup", "-f", "--show", "--direct-io=on", image)
    try:
        _run("mount", loop, mnt)
        try:
            os.mkdir(mnt + "/d")
            durable.write_link(mnt + "/d/link", "old", STAMP, durable=True)
            _run("sync", "-f", mnt)
            durable.write_link(mnt + "/d/link", value, STAMP + 7, durable=True)
            _run("cp", "--sparse=always", image, copy)
        finally:
            _run("umount", mnt)
    finally:
        _run("losetup", "-d", loop)
    options = ["-o", "nouuid"] if "xfs" in mkfs[0] else []
    loop = _run("losetup", "-f", "--show", copy)
    try:
        _run("mount", *options, loop, mnt)
        try:
            return os.readlink(mnt + "/d/link"), os.lstat(mnt + "/d/link").st_mtime_ns
        finally:
            _run("umount", mnt)
    finally:
        _run("losetup", "-d", loop)


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to mount")
@pytest.mark.parametrize("length", [40, 120, 1023])
@pytest.mark.parametrize("mkfs", [("mkfs.ext4", "-q", "-F"), ("mkfs.ext4", "-q", "-F", "-O", "^has_journal"),
                                  ("mkfs.ext4", "-q", "-F", "-O", "fast_commit"), ("mkfs.xfs", "-q", "-f")],
                         ids=["ext4", "ext4-nojournal", "ext4-fast", "xfs"])
def test_durable_link_survives_a_power_cut(tmp_path, mkfs, length):
    """Rule 21 rests on this: what write_link(durable) returned from is on the device, value and stamp."""
    if shutil.which(mkfs[0]) is None:
        pytest.skip(f"{mkfs[0]} is not installed")
    value = "".join(chr(97 + i % 26) for i in range(length))
    assert _power_cut(tmp_path, mkfs, value) == (value, STAMP + 7)
