"""Facts about block devices, on real loop devices; and that a failed flush is never smoothed over."""
from __future__ import annotations

import errno
import mmap
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from marsx.base import disk
from marsx.base.errors import NotFoundError, PermissionDeniedError, PreconditionError

SIZE = 24 << 20

needs_loop = pytest.mark.skipif(os.geteuid() != 0 or not os.path.exists("/dev/loop-control"),
                                reason="makes loop devices: needs root and /dev/loop-control")


@pytest.fixture
def loop(tmp_path: Path) -> Iterator[str]:
    """A loop device of 24 MiB with 4096-byte blocks; gone after the test."""
    image = tmp_path / "image"
    with open(image, "wb") as file:
        file.truncate(SIZE)
    done = subprocess.run(["losetup", "--find", "--show", "--sector-size", "4096", image], capture_output=True,
                          text=True, timeout=60)
    if done.returncode:
        pytest.skip(f"losetup: {done.stderr.strip()}")
    path = done.stdout.strip()
    try:
        yield path
    finally:
        subprocess.run(["losetup", "-d", path], check=True, timeout=60)


@needs_loop
def test_size_and_block(loop: str) -> None:
    """What the kernel says about the device."""
    fd = disk.open_exclusive(loop)
    try:
        assert (disk.size(fd), disk.logical_block(fd)) == (SIZE, 4096)
        assert disk.is_block_device(loop) and not disk.is_block_device("/dev/null")
        buffer = mmap.mmap(-1, 4096)
        buffer[:] = b"x" * 4096
        assert os.pwrite(fd, buffer, 0) == 4096
        disk.flush(fd)
        with pytest.raises(OSError):
            os.pwrite(fd, b"y" * 100, 0)
    finally:
        os.close(fd)
    with open(loop, "rb") as file:
        assert file.read(4096) == b"x" * 4096


def test_plain_file(tmp_path: Path) -> None:
    """Sizes work for files; taking one as a data device does not."""
    path = tmp_path / "file"
    path.write_bytes(bytes(8192))
    with open(path, "rb") as file:
        assert (disk.size(file.fileno()), disk.logical_block(file.fileno())) == (8192, 512)
    with pytest.raises(PreconditionError):
        disk.open_exclusive(str(path))


def test_missing_device() -> None:
    """An unknown name is code 4."""
    with pytest.raises(NotFoundError):
        disk.open_exclusive("/dev/no-such-device")


def test_error_table() -> None:
    """What open says becomes the class an operator's script can act on."""
    assert isinstance(disk._open_error("/dev/x", OSError(errno.EACCES, "denied")), PermissionDeniedError)
    assert isinstance(disk._open_error("/dev/x", OSError(errno.ENXIO, "gone")), NotFoundError)
    assert disk._open_error("/dev/x", OSError(errno.EIO, "broken")).exit_code == 1


@needs_loop
def test_second_taker_is_told_who_has_it(loop: str) -> None:
    """O_EXCL keeps the second one out, and the message names the first."""
    code = f"import os,sys; os.open({loop!r}, os.O_RDWR | os.O_EXCL); print('open', flush=True); sys.stdin.read()"
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdout and holder.stdout.readline() == b"open\n"
        with pytest.raises(PreconditionError) as caught:
            disk.open_exclusive(loop)
        assert f"process {holder.pid} (python" in caught.value.hint
        assert disk.who_uses(loop, without_pid=holder.pid) == []
    os.close(disk.open_exclusive(loop))


@needs_loop
def test_mount_in_another_name_space_is_seen(loop: str) -> None:
    """Rule 20: users are found in every mount name space, also of a partition-less file system."""
    subprocess.run(["mkfs.ext4", "-q", "-F", loop], check=True, capture_output=True, timeout=60)
    script = f"mount {loop} /mnt && echo ok && read x; umount /mnt"
    with subprocess.Popen(["unshare", "--mount", "--propagation", "private", "sh", "-c", script],
                          stdin=subprocess.PIPE, stdout=subprocess.PIPE) as mounter:
        assert mounter.stdout and mounter.stdout.readline() == b"ok\n"
        assert "mounted on /mnt" in disk.who_uses(loop)
        with pytest.raises(PreconditionError):
            disk.open_exclusive(loop)
        mounter.communicate(b"\n", timeout=60)
    assert disk.who_uses(loop) == []


@needs_loop
def test_swap_and_loop_on_top_are_seen(loop: str) -> None:
    """Users without any process: swap, and another loop device."""
    subprocess.run(["mkswap", loop], check=True, capture_output=True, timeout=60)
    swapped = subprocess.run(["swapon", loop], capture_output=True, timeout=60)
    if swapped.returncode == 0:
        try:
            assert "used as swap" in disk.who_uses(loop)
        finally:
            subprocess.run(["swapoff", loop], check=True, timeout=60)
    upper = subprocess.run(["losetup", "--find", "--show", loop], check=True, capture_output=True, text=True,
                           timeout=60).stdout.strip()
    try:
        assert f"backs {upper}" in disk.who_uses(loop)
    finally:
        subprocess.run(["losetup", "-d", upper], check=True, timeout=60)


def test_failed_flush_is_raised_and_not_repeated(monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel reports a lost write once: the first error counts."""
    calls = []

    def failing(fd: int) -> None:
        calls.append(fd)
        raise OSError(errno.EIO, "lost")

    monkeypatch.setattr(os, "fdatasync", failing)
    with pytest.raises(OSError, match="lost"):
        disk.flush(5)
    assert calls == [5]


def test_mountinfo_escapes() -> None:
    """Mount points with blanks are shown as they are."""
    assert disk._unescape("/a\\040b\\134040") == "/a b\\040"


def test_ioctl_failure_is_an_error() -> None:
    """A device that will not tell its size is never taken for an empty one."""
    reader, writer = os.pipe()
    try:
        with pytest.raises(OSError):
            disk.size(reader)
    finally:
        os.close(reader)
        os.close(writer)
