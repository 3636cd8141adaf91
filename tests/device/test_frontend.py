"""Conformance of the front end fuse+loop under the real keeper: what facts sections 0, 5, 6, 7 and rule 20 promise."""
from __future__ import annotations

import fcntl
import os
import struct
import subprocess
from pathlib import Path

import pytest

from tests.device import nullserver
from tests.device.harness import Mars, children_of, loops_of, until

MIB = 1 << 20


def run(*words: str | Path, **more: object) -> str:
    done = subprocess.run([str(w) for w in words], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, f"{words}: {done.stderr}{done.stdout}"
    return done.stdout


@pytest.fixture
def device(mars: Mars) -> str:
    mars.marsd("start")
    return mars.make(size=64 * MIB)


def sysfs(device: str, name: str) -> str:
    return Path(f"/sys/block/{os.path.basename(os.path.realpath(device))}/{name}").read_text().strip()


def test_is_a_block_device_of_the_wanted_shape(mars: Mars) -> None:
    """Size is exact although the file has 2^62 bytes; direct I/O; discard is bounded; nobody sees a mount."""
    mars.marsd("start")
    device = mars.make(size=64 * MIB + 512, block_size=512)
    assert run("blockdev", "--getsize64", "--getss", device).split() == [str(64 * MIB + 512), "512"]
    assert sysfs(device, "loop/dio") == "1"
    assert sysfs(device, "loop/backing_file") == f"/{mars.name}"
    assert int(sysfs(device, "queue/discard_max_bytes")) == 256 * MIB
    assert mars.name not in Path("/proc/self/mountinfo").read_text()
    assert int(os.path.realpath(device).removeprefix("/dev/loop")) >= 4700


def test_logical_block_size(mars: Mars) -> None:
    mars.marsd("start")
    assert run("blockdev", "--getss", mars.make(block_size=4096)).strip() == "4096"


def test_mkfs_mount_files_and_discard(mars: Mars, device: str, tmp_path: Path) -> None:
    """What was written through a file system is in the backing file after umount; fstrim arrives as FALLOCATE."""
    run("mkfs.ext4", "-q", "-F", device)
    place = tmp_path / "mnt"
    place.mkdir()
    run("mount", device, place)
    (place / "file").write_bytes(b"x" * MIB)
    run("fstrim", place)
    run("umount", place)
    assert mars.ask(do="count", of=nullserver.FALLOCATE)["count"] > 0
    assert mars.ask(do="count", of=nullserver.FSYNC)["count"] > 0
    copy = tmp_path / "copy"
    copy.write_bytes((mars.backing / mars.name).read_bytes()[:64 * MIB])
    os.truncate(copy, 64 * MIB)
    run("e2fsck", "-fn", copy)
    assert "file" in run("debugfs", "-R", "ls /", copy)


def test_failed_flush_reaches_the_application(mars: Mars, device: str) -> None:
    """An fsync error is an error for the application, each time, and never becomes success."""
    mars.ask(do="tune", what=nullserver.FSYNC_ERROR, value=5)
    fd = os.open(device, os.O_RDWR)
    try:
        for _ in range(2):
            with pytest.raises(OSError, match="Input/output"):
                os.fsync(fd)
        mars.ask(do="tune", what=nullserver.FSYNC_ERROR, value=0)
    finally:
        os.close(fd)


def test_detach_of_an_idle_device_takes_everything_away(mars: Mars, device: str) -> None:
    """Rule 20: gone means link, loop device and number are gone and the connection has ended."""
    node = os.path.realpath(device)
    assert mars.ask(op="dev-detach", name=mars.name)["ok"]
    assert not os.path.lexists(device)
    assert not os.path.exists(node)
    assert mars.state()["devices"][0]["state"] == "gone"
    assert mars.ask(op="dev-drop", name=mars.name)["ok"]
    assert mars.state()["devices"] == []
    assert mars.make() == device


def test_detach_writes_dirty_pages_of_closed_writers(mars: Mars, device: str) -> None:
    """Rule 20: buffered data of a closed writer is on the server before the device goes (LOOP_CLR_FD would lose it)."""
    with open(device, "r+b") as writer:
        writer.seek(8 * MIB)
        writer.write(b"A" * MIB)
    assert mars.ask(op="dev-detach", name=mars.name)["ok"]
    with open(mars.backing / mars.name, "rb") as backing:
        backing.seek(8 * MIB)
        assert backing.read(MIB) == b"A" * MIB


def test_detach_with_a_plain_opener_is_busy_and_changes_nothing(mars: Mars, device: str) -> None:
    """Rule 20: O_EXCL does not see plain openers; the exact protocol does, and the device goes on working."""
    fd = os.open(device, os.O_RDWR)
    try:
        answer = mars.ask(op="dev-detach", name=mars.name, patience=0.3)
        assert any(str(os.getpid()) in who for who in answer["busy"]), answer
        assert os.pwrite(fd, b"B" * 4096, 0) == 4096
        os.fsync(fd)
        assert os.path.exists(device)
        assert sysfs(device, "loop/autoclear") == "0"
    finally:
        os.close(fd)
    assert mars.ask(op="dev-detach", name=mars.name)["ok"]


def test_detach_of_a_mounted_device_is_busy_and_names_the_mount(mars: Mars, device: str, tmp_path: Path) -> None:
    run("mkfs.ext4", "-q", "-F", device)
    place = tmp_path / "mnt"
    place.mkdir()
    run("mount", device, place)
    answer = mars.ask(op="dev-detach", name=mars.name)
    assert any(str(place) in who for who in answer["busy"]), answer
    (place / "still").write_text("alive")
    run("umount", place)
    assert mars.ask(op="dev-detach", name=mars.name)["ok"]


def test_detach_sees_a_mount_in_another_name_space(mars: Mars, device: str, tmp_path: Path) -> None:
    run("mkfs.ext4", "-q", "-F", device)
    place = tmp_path / "mnt"
    place.mkdir()
    script = f"mount --make-rprivate / && mount {device} {place} && echo up && read go; umount {place}"
    other = subprocess.Popen(["unshare", "-m", "-n", "-u", "sh", "-c", script],
                             stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert other.stdout and other.stdin
    try:
        assert other.stdout.readline() == b"up\n"
        answer = mars.ask(op="dev-detach", name=mars.name)
        assert answer.get("busy"), answer
    finally:
        other.communicate(b"\n", timeout=30)
    assert mars.ask(op="dev-detach", name=mars.name)["ok"]


def test_resize_grows_live_and_never_shrinks(mars: Mars, tmp_path: Path) -> None:
    """Facts 7: one ioctl, a mounted XFS grows into the new room; smaller is refused."""
    mars.marsd("start")
    device = mars.make(size=512 * MIB)
    run("mkfs.xfs", "-q", "-f", device)
    place = tmp_path / "mnt"
    place.mkdir()
    run("mount", device, place)
    before = os.statvfs(place).f_blocks
    assert mars.ask(op="dev-resize", name=mars.name, size=640 * MIB)["ok"]
    assert run("blockdev", "--getsize64", device).strip() == str(640 * MIB)
    run("xfs_growfs", place)
    assert os.statvfs(place).f_blocks * 4 >= before * 4.9
    run("umount", place)
    with open(device, "rb") as reader:
        reader.seek(640 * MIB - 512)
        assert len(reader.read(512)) == 512
    answer = mars.ask(op="dev-resize", name=mars.name, size=512 * MIB)
    assert "never made smaller" in answer["error"]
    assert run("blockdev", "--getsize64", device).strip() == str(640 * MIB)


def test_users_are_named(mars: Mars, device: str) -> None:
    assert mars.ask(op="dev-users", name=mars.name)["count"] == 0
    with open(device, "rb"):
        answer = mars.ask(op="dev-users", name=mars.name)
    assert answer["count"] == 1
    assert str(os.getpid()) in answer["users"][0]


@pytest.mark.parametrize("kills", [4])
def test_killed_workers_under_load_are_only_a_pause(mars: Mars, device: str, kills: int) -> None:
    """Facts 6: kill -9 under verified load, RESEND by the new worker: no error, no wrong byte."""
    mars.ask(do="tune", what=nullserver.WRITE_DELAY_US, value=500)
    load = subprocess.Popen(
        ["fio", "--name=load", f"--filename={device}", "--rw=randwrite", "--bs=4k", "--iodepth=32",
         "--ioengine=libaio",
         "--direct=1", "--verify=crc32c", "--verify_state_save=0", "--verify_fatal=1", "--size=32M", "--loops=200",
         "--runtime=8", "--time_based"],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    resent = 0
    try:
        for _ in range(kills):
            until(lambda: mars.ask(do="count", of=nullserver.WRITE)["count"] > 200, "load", 20)
            mars.kill_worker()
            resent += mars.ask(do="count", of=nullserver.RESENT)["count"]
            mars.ask(do="tune", what=nullserver.WRITE_DELAY_US, value=500)
        out, _ = load.communicate(timeout=120)
    finally:
        if load.poll() is None:
            load.kill()
            load.wait()
    assert load.returncode == 0, out
    assert resent > 0, "no request was in flight at any kill: the test proved nothing"
    assert mars.state()["restarts"] == kills


def test_worker_killed_during_attach(mars: Mars) -> None:
    """The attach's child waits for a server that dies: the next worker serves it, and finds the device attached."""
    mars.marsd("start")
    mars.ask(op="dev-create", name=mars.name, clones=2)
    with mars.sent(op="dev-attach", name=mars.name, size=MIB, block_size=512):
        until(lambda: children_of(mars.keeper()) - {mars.state()["worker"]}, "the child that attaches")
        mars.kill_worker()
    until(lambda: mars.state()["devices"][0]["state"] == "attached", "the next worker serves the attach")
    answer = mars.ask(op="dev-attach", name=mars.name, size=MIB, block_size=512)
    assert answer["loop"] == os.readlink(mars.link)
    assert "error" in mars.ask(op="dev-attach", name=mars.name, size=2 * MIB, block_size=512)
    run("dd", "if=/dev/zero", f"of={mars.link}", "bs=64k", "count=16", "oflag=direct")


def test_something_in_the_way_of_the_link(mars: Mars) -> None:
    """A failed attach leaves nothing, and never removes what is not ours."""
    mars.marsd("start")
    (mars.dev_dir / mars.name).write_text("precious")
    answer = mars.ask(make=mars.name, size=MIB)
    assert "in the way" in answer["error"]
    assert loops_of(mars.prefix) == []
    assert (mars.dev_dir / mars.name).read_text() == "precious"
    assert "ok" in mars.ask(op="dev-drop", name=mars.name)


def test_drop_of_an_attached_device_is_refused(mars: Mars, device: str) -> None:
    assert "detach it first" in mars.ask(op="dev-drop", name=mars.name)["error"]


def test_data_disk_is_held_over_a_worker_restart(mars: Mars, tmp_path: Path) -> None:
    """Rule 3: between two workers the data device stays exclusively ours; the same open file comes back."""
    image = tmp_path / "image"
    image.touch()
    os.truncate(image, 16 * MIB)
    disk = run("losetup", "--show", "-f", image).strip()
    try:
        mars.marsd("start")
        assert mars.ask(op="disk-open", path=disk)["fds"]
        again = mars.ask(op="disk-open", path=disk)
        assert again["fds"]
        mars.kill_worker()
        with pytest.raises(OSError, match="busy"):
            os.open(disk, os.O_RDWR | os.O_EXCL)
        assert mars.state()["disks"] == [disk]
        fd = mars.ask(op="disk-open", path=disk)["fds"][0]
        worker = mars.state()["worker"]
        flags = Path(f"/proc/{worker}/fdinfo/{fd}").read_text().split("flags:")[1].split()[0]
        assert int(flags, 8) & os.O_DIRECT
        mars.kill_worker()
        assert mars.ask(op="disk-close", path=disk)["ok"]
        os.close(os.open(disk, os.O_RDWR | os.O_EXCL))
        taken = os.open(disk, os.O_RDWR | os.O_EXCL)
        answer = mars.ask(op="disk-open", path=disk)
        os.close(taken)
        assert (answer["errno"], answer["exit"]) == (16, 3), answer
    finally:
        mars.clean()
        run("losetup", "-d", disk)


def test_bad_disks_are_refused(mars: Mars, device: str, tmp_path: Path) -> None:
    (tmp_path / "plain").touch()
    assert mars.ask(op="disk-open", path=str(tmp_path / "plain"))["errno"] == 15
    assert mars.ask(op="disk-open", path="/dev/nothing-here")["errno"] == 2
    assert "itself" in mars.ask(op="disk-open", path=os.path.realpath(device))["error"]
    assert mars.ask(op="disk-open", path="relative")["errno"] == 22


def test_loop_number_taken_by_others_is_skipped(mars: Mars) -> None:
    """LOOP_CTL_ADD fails for a number that exists: the device gets another one, and the stranger stays."""
    from marsx.device import loop

    stranger = loop.reserve_number()
    try:
        mars.marsd("start")
        assert os.path.realpath(mars.make()) != f"/dev/loop{stranger}"
        fd = os.open(f"/dev/loop{stranger}", os.O_RDONLY)
        assert loop.status(fd) is None
        os.close(fd)
    finally:
        loop.remove_number(stranger)


def test_status64_layout_matches_the_kernel(mars: Mars, device: str) -> None:
    """The tag stands in lo_file_name at byte 56 of loop_info64."""
    fd = os.open(device, os.O_RDONLY)
    raw = fcntl.ioctl(fd, 0x4C05, bytes(232))
    os.close(fd)
    assert raw[56:120].rstrip(b"\0") == f"mars:{mars.name}".encode()
    assert struct.unpack_from("<Q", raw, 32)[0] == 64 * MIB
