"""The whole data path on a real FUSE + loop device: file systems, fio with verification, discards, flushes, kill -9
under load.

The test is the keeper: it holds the descriptors, starts workers, and a new one only after the old one was waited for.
"""
from __future__ import annotations

import hashlib
import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from marsx.device.loop import FuseLoop
from tests.fix_volume import MIB

TOP = Path(__file__).resolve().parents[2]
SIZE = 320 * MIB
NEEDED = ("fio", "mkfs.ext4", "mkfs.xfs", "blkdiscard", "fstrim", "e2fsck", "xfs_repair")
MISSING = [name for name in NEEDED if shutil.which(name) is None]

pytestmark = [
    pytest.mark.root, pytest.mark.slow,
    pytest.mark.skipif(os.geteuid() != 0 or not os.path.exists("/dev/fuse") or not os.path.exists("/dev/loop-control"),
                       reason="needs root, /dev/fuse and /dev/loop-control"),
    pytest.mark.skipif(bool(MISSING), reason=f"missing: {', '.join(MISSING)}"),
]


def run(*command: object, check: bool = True) -> subprocess.CompletedProcess[str]:
    """A program; its output is in the failure."""
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True, check=False, timeout=180)
    assert not check or done.returncode == 0, f"{command}: {done.returncode}\n{done.stdout}{done.stderr}"
    return done


class Device:
    """One device, its keeper side, and the worker of the moment."""

    def __init__(self, top: Path) -> None:
        self.top = top
        (top / "logs").mkdir()
        (top / "dev").mkdir()
        with open(top / "disk", "wb") as disk:
            os.posix_fallocate(disk.fileno(), 0, SIZE)
        self.name = f"s{secrets.token_hex(4)}"
        self.loop = FuseLoop(str(top / "dev"))
        self.channel = self.loop.create(self.name, 3)
        self.worker: subprocess.Popen | None = None
        self.attached = None
        self.start()
        self.attached = self.loop.attach(self.name, self.channel.mount, SIZE, 512, lambda number: None)
        os.close(self.channel.mount)
        self.path = self.attached.path

    def start(self, *more: str) -> None:
        """A worker; it inherits the descriptors, not the mount."""
        fds = self.channel.fds
        words = [str(self.top), self.name, str(SIZE), ",".join(map(str, fds)), *more]
        with open(self.top / "messages", "a") as messages:
            self.worker = subprocess.Popen([sys.executable, "-m", "tests.device.serve_volume", *words], cwd=TOP,
                                           pass_fds=fds, stderr=messages)

    def kill(self) -> None:
        """kill -9, wait, the next worker (rules 3, 11)."""
        self.worker.send_signal(signal.SIGKILL)
        self.worker.wait()
        self.start("again")

    def messages(self) -> str:
        """What the workers said."""
        return (self.top / "messages").read_text()

    def digest(self) -> str:
        """SHA-256 of the whole device, past the page cache."""
        done = run("sh", "-c", f"dd if={self.path} bs=1M iflag=direct status=none | sha256sum")
        return done.stdout.split()[0]

    def end(self) -> dict:
        """Take the device away; the worker ends its log and brings all to the disk."""
        assert self.loop.detach(self.name, self.attached, 10.0) == [], "the device is in use"
        self.attached = None
        for fd in self.channel.fds:
            os.close(fd)
        self.channel.fds.clear()
        assert self.worker.wait(60) == 0, self.messages()
        self.worker = None
        return json.loads((self.top / "end").read_text())

    def clean(self) -> None:
        """Leave nothing, whatever happened."""
        if self.attached is not None:
            if self.worker.poll() is not None:
                self.start("again")
            self.loop.detach(self.name, self.attached, 10.0)
        for fd in self.channel.fds:
            os.close(fd)
        if self.worker is not None and self.worker.poll() is None:
            try:
                self.worker.wait(20)
            except subprocess.TimeoutExpired:
                self.worker.kill()
                self.worker.wait()
        shutil.rmtree(self.top / "logs")
        (self.top / "disk").unlink()


@pytest.fixture
def device(tmp_path: Path) -> Iterator[Device]:
    """A served device; mounts below tmp_path are taken away too."""
    one = Device(tmp_path)
    (tmp_path / "mnt").mkdir()
    try:
        yield one
    finally:
        while os.path.ismount(tmp_path / "mnt"):
            run("umount", tmp_path / "mnt")
        one.clean()


def check_end(device: Device) -> dict:
    """What applications saw is what the disk holds after a proper end; nothing went wrong on the way."""
    seen = device.digest()
    report = device.end()
    assert hashlib.sha256((device.top / "disk").read_bytes()).hexdigest() == seen
    assert device.messages() == ""
    return report


def fio(device: Device, *more: str) -> list[str]:
    """Command line of a verified load on the device."""
    return ["fio", "--name=load", f"--filename={device.path}", "--direct=1", "--ioengine=libaio", "--verify=crc32c",
            "--verify_state_save=0", "--verify_fatal=1", "--randrepeat=1", "--group_reporting",
            f"--aux-path={device.top}", *more]


def test_fio_verify(device):
    """Random writes of all sizes with 32 in flight read back right, with flushes in between, while write-back runs."""
    run(*fio(device, "--rw=randwrite", "--bsrange=512-256k", "--blockalign=512", "--iodepth=32", "--size=96m",
             "--fsync=64", "--do_verify=1"))
    report = check_end(device)
    assert report["counters"]["writes"] > 100 and report["counters"]["syncs"] > 1


def test_discards(device):
    """Rule 10: blkdiscard and blkdiscard -z, aligned or not, read as zeros at once and on the disk at the end; what
    lies beside stays."""
    pattern = os.urandom(MIB)
    fd = os.open(device.path, os.O_RDWR)
    try:
        for at in range(0, 8 * MIB, MIB):
            os.pwrite(fd, pattern, at)
        os.fsync(fd)
    finally:
        os.close(fd)
    twin = bytearray(pattern * 8)
    for flags, offset, length in (((), 512, 5120), (("-z",), MIB + 1536, 70 * 512), ((), 3 * MIB, 2 * MIB),
                                  (("-z",), 6 * MIB + 512, 512)):
        run("blkdiscard", *flags, "-f", "-o", offset, "-l", length, device.path)
        twin[offset:offset + length] = bytes(length)
        with open(device.path, "rb") as file:
            assert file.read(8 * MIB) == twin
    run("blkdiscard", "-f", "-o", 16 * MIB, device.path)
    check_end(device)
    with open(device.top / "disk", "rb") as file:
        assert file.read(8 * MIB) == twin


@pytest.mark.parametrize("kind", ["ext4", "xfs"])
def test_file_system(device, kind):
    """mkfs, files, fsync, fstrim, remount after a kill: the file system is clean and the files are there."""
    where = device.top / "mnt"
    run(f"mkfs.{kind}", "-q", device.path)
    run("mount", "-o", "discard", device.path, where)
    data = {f"file{i}": os.urandom(50_000 * (i + 1)) for i in range(20)}
    for name, content in data.items():
        with open(where / name, "wb") as file:
            file.write(content)
            os.fsync(file.fileno())
    for i in range(0, 20, 3):
        (where / f"file{i}").unlink()
        del data[f"file{i}"]
    run("fstrim", where)
    device.kill()
    assert {path.name: path.read_bytes() for path in where.iterdir() if path.is_file()} == data
    run("umount", where)
    run(*(("e2fsck", "-fn") if kind == "ext4" else ("xfs_repair", "-n")), device.path)
    run("mount", device.path, where)
    assert {path.name: path.read_bytes() for path in where.iterdir() if path.is_file()} == data
    run("umount", where)
    check_end(device)


def newest_log(device) -> int:
    """Number of the newest log: a worker that serves has begun one."""
    return max((int(path.name.split("-")[1]) for path in (device.top / "logs").glob("log-*")), default=0)


def test_kill_under_verified_load(device):
    """Rules 1, 3, 11: workers killed again and again under a verified load: the application sees no error and no wrong
    byte, requests in flight are sent again, logs rotate in between."""
    load = subprocess.Popen(fio(device, "--rw=randrw", "--bs=4k", "--iodepth=16", "--size=64m", "--io_size=1g",
                                "--fsync=200", "--time_based", "--runtime=8", "--verify_backlog=512",
                                "--rate_iops=3000,3000"),
                            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        kills = 0
        while load.poll() is None and kills < 30:
            time.sleep(0.3)
            if kills % 3 == 2 and device.worker.poll() is None:
                device.worker.send_signal(signal.SIGUSR1)       # a rotation, killed in the middle or just done
                time.sleep(0.01 * (kills % 4))
            before, until = newest_log(device), time.monotonic() + 3
            device.kill()
            kills += 1
            while newest_log(device) <= before and load.poll() is None and time.monotonic() < until:
                time.sleep(0.02)
        output, _ = load.communicate(timeout=120)
    finally:
        if load.poll() is None:
            load.kill()
            load.wait()
    assert load.returncode == 0, output
    assert kills >= 5
    assert newest_log(device) > kills // 2
    check_end(device)
    assert list(device.top.glob("resent.*")), "no request was in flight at any kill: this proves nothing"
