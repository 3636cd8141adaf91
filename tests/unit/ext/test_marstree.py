"""`marstree`: the links of a directory are what os.readlink and os.lstat say, and nothing else is listed."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from marsx._ext.marstree import links


def test_what_the_directory_says(tmp_path: Path) -> None:
    """Values of all lengths and scripts, stamps to the nanosecond; files, sockets and what begins with a dot are no
    directories of the tree; no link is followed."""
    values = {"short": "1", "long": "x" * 1023, "umlaut": "/dev/vg/ä", "dangling": "/nowhere", "to-dir": str(tmp_path)}
    for number, (name, value) in enumerate(values.items()):
        (tmp_path / name).symlink_to(value)
        os.utime(tmp_path / name, ns=(0, 1_700_000_000_000_000_000 + number), follow_symlinks=False)
    os.symlink(b"\xff\xfe", bytes(tmp_path / "raw"))
    os.symlink("1", bytes(tmp_path) + b"/\xff")
    (tmp_path / "file").write_text("x")
    for name in ("inner", ".hidden"):
        (tmp_path / name).mkdir()
    found, directories = links(str(tmp_path))
    expected = {name: (os.readlink(tmp_path / name), os.lstat(tmp_path / name)) for name in (*values, "raw", "\udcff")}
    assert {name: (value, stamp, changed) for name, value, stamp, changed in found} == {
        name: (value, status.st_mtime_ns, status.st_ctime_ns) for name, (value, status) in expected.items()}
    assert directories == ["inner"]


def test_errors(tmp_path: Path) -> None:
    """As the system has them, with the name."""
    (tmp_path / "file").touch()
    with pytest.raises(FileNotFoundError, match="gone"):
        links(str(tmp_path / "gone"))
    with pytest.raises(NotADirectoryError):
        links(str(tmp_path / "file"))


def test_nothing_stays_open(tmp_path: Path) -> None:
    """Thousands of calls, good and bad ones."""
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(2000):
        links(str(tmp_path))
        with pytest.raises(FileNotFoundError):
            links(str(tmp_path / "gone"))
    assert len(os.listdir("/proc/self/fd")) == before
