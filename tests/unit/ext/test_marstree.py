"""`marstree`: the links of directories are what os.readlink and os.lstat say, and nothing else is listed."""

from __future__ import annotations

import errno
import os
import threading
import time
from pathlib import Path

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
    (found, directories, error), = links([str(tmp_path)])
    assert error == 0
    expected = {name: (os.readlink(tmp_path / name), os.lstat(tmp_path / name)) for name in (*values, "raw", "\udcff")}
    assert {name: (value, stamp, changed) for name, value, stamp, changed in found} == {
        name: (value, status.st_mtime_ns, status.st_ctime_ns) for name, (value, status) in expected.items()}
    assert directories == ["inner"]


def test_many_directories(tmp_path: Path) -> None:
    """By any number of threads the same, each directory at its place, whatever becomes of the others."""
    names = [str(tmp_path / f"d{number}") for number in range(300)]
    for number, name in enumerate(names):
        os.mkdir(name)
        for link in range(number % 40):
            os.symlink(f"{number}-{link}" + "x" * (number % 500), f"{name}/link{link}")
    mixed = [part for name in names for part in (name, f"{name}/gone", f"{name}/link0")]
    one = links(mixed, 1)
    assert [len(found) for found, _, _ in one[::3]] == [number % 40 for number in range(300)]
    assert {error for _, _, error in one[1::3]} == {errno.ENOENT} and one[2][2] == errno.ENOENT
    assert {error for _, _, error in one[5::3]} <= {errno.ENOTDIR, errno.ENOENT, errno.ENAMETOOLONG}
    assert sorted(value for _, value, *_ in one[3 * 41][0]) == ["41-0" + "x" * 41]
    for threads in (0, 2, 4, 9):
        assert links(mixed, threads) == one
    assert links([]) == []


def test_links_that_change_meanwhile(tmp_path: Path) -> None:
    """While others rename links over each other, what is told of a link are the value and the times of one link, as
    far as its change time lies before the call."""
    for number in range(50):
        os.symlink("old", tmp_path / f"link{number}")
    end = threading.Event()

    def change() -> None:
        while not end.is_set():
            for number in range(50):
                os.symlink("new" * 9, tmp_path / "temp")
                os.rename(tmp_path / "temp", tmp_path / f"link{number}")

    time.sleep(0.02)
    settled = time.time_ns() - 10_000_000
    writer = threading.Thread(target=change)
    writer.start()
    try:
        for _ in range(300):
            (found, _, error), = links([str(tmp_path)])
            assert error == 0 and found
            assert all(value == "old" for _, value, _, changed in found if value is not None and changed < settled)
    finally:
        end.set()
        writer.join()


def test_errors(tmp_path: Path) -> None:
    """As the system has them."""
    (tmp_path / "file").touch()
    assert links([str(tmp_path / "gone"), str(tmp_path / "file")]) == [([], [], errno.ENOENT), ([], [], errno.ENOTDIR)]


def test_nothing_stays_open(tmp_path: Path) -> None:
    """Thousands of calls, good and bad ones."""
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(2000):
        assert [error for _, _, error in links([str(tmp_path), str(tmp_path / "gone")], 2)] == [0, errno.ENOENT]
    assert len(os.listdir("/proc/self/fd")) == before
