"""Two hosts replicate a live file system: files and device bytes arrive, with ext4 and with XFS."""

import hashlib
import os
from pathlib import Path

import pytest

from tools import loops, scenario


def fingerprint(top: Path) -> dict[str, str]:
    """Every file below `top`: kind, mode and a hash of the contents."""
    found = {}
    for folder, folders, files in os.walk(top):
        for name in sorted([*folders, *files]):
            whole = Path(folder) / name
            status = whole.lstat()
            if whole.is_symlink():
                text = "-> " + os.readlink(whole)
            elif whole.is_file():
                text = hashlib.sha256(whole.read_bytes()).hexdigest()
            else:
                text = "folder"
            found[str(whole.relative_to(top))] = f"{status.st_mode:o} {status.st_uid} {text}"
    found.pop("lost+found", None)
    return found


SOURCE = "/usr/lib/python3"
WRITE = ("import os,sys; fd=os.open('/dev/mars/data', os.O_RDWR); "
         "os.pwrite(fd, sys.argv[1].encode('latin1')*int(sys.argv[2]), 0); os.fsync(fd)")


@pytest.mark.parametrize("kind", ["ext4", "xfs"])
def test_file_system_is_replicated(pair, kind):
    """Files written while the sync runs are on the secondary: same device bytes, same files after a handover."""
    hosts = pair(data_size=512 << 20)
    a, b = hosts
    scenario.make_file_system(a, "data", kind)
    a.run(["cp", "-a", SOURCE, "/mnt/first"])
    a.run("sync")
    expected = fingerprint(a.path("/mnt"))
    assert len(expected) > 100
    a.run("umount /mnt")
    scenario.wait_equal(a, b, "data")
    assert loops.data_bytes(b.data.file) > 1 << 20, "equal because both are empty proves nothing"
    scenario.hand_over(a, b, "data")
    b.run(["mount", "-t", kind, "/dev/mars/data", "/mnt"])
    assert fingerprint(b.path("/mnt")) == expected
    b.run("umount /mnt")


def test_secondary_holds_what_was_synced_to_disk_without_umount(pair):
    """After sync(1) on the primary the secondary gets a state that mounts, with all files in it."""
    hosts = pair(data_size=384 << 20)
    a, b = hosts
    scenario.make_file_system(a, "data", "xfs")
    a.run(["sh", "-c", "mkdir /mnt/d; for i in $(seq 200); do echo $i > /mnt/d/$i; done; sync"])
    scenario.wait_caught_up(a, b, "data")
    b.wait(lambda: scenario.settled(a, "data"), 60, "write-back on the primary")
    copy = b.add_device("copy.img", 384 << 20)
    b.run(["dd", f"if={b.data_device}", f"of={copy.path}", "bs=1M", "iflag=direct", "oflag=direct", "status=none"])
    b.run(["mount", "-t", "xfs", "-o", "nouuid", copy.path, "/mnt"])
    assert {name: b.path(f"/mnt/d/{name}").read_text().strip() for name in os.listdir(b.path("/mnt/d"))} == {
        str(i): str(i) for i in range(1, 201)}
    b.run("umount /mnt")
    a.run("umount /mnt")


def test_discard_and_zeroes_are_replicated(pair):
    """Discarded and zeroed ranges read as zeros on both hosts, also with unaligned edges (rule 10)."""
    hosts = pair()
    a, b = hosts
    a.run(["python3", "-c", WRITE, "\xa5", str(8 << 20)])
    a.run("blkdiscard -o 1536 -l 1049600 /dev/mars/data")
    a.run("blkdiscard -z -o 3145728 -l 1048576 /dev/mars/data")
    expected = bytearray([0xA5]) * (8 << 20)
    expected[1536:1536 + 1049600] = bytes(1049600)
    expected[3145728:3145728 + 1048576] = bytes(1048576)
    assert a.read_bytes("/dev/mars/data", 0, 8 << 20) == expected
    scenario.wait_equal(a, b, "data")
    assert b.read_bytes(b.data_device, 0, 8 << 20) == expected
    assert a.read_bytes("/dev/mars/data", 0, 8 << 20) == expected


def test_daemon_stop_and_start_keeps_everything(pair):
    """An ordinary stop of both daemons and a start: same contents, same roles, replication goes on."""
    hosts = pair()
    a, b = hosts
    a.run(["python3", "-c", WRITE, "1", "4096"])
    scenario.wait_equal(a, b, "data")
    for host in (a, b):
        host.marsd_stop()
        assert host.devices() == []
        assert host.pids() == {}, "stop left a process"
    assert loops.first_difference(a.data.file, b.data.file) is None
    for host in (a, b):
        host.marsd_start()
    scenario.wait_device(a, "data")
    assert a.read_bytes("/dev/mars/data", 0, 4096) == b"1" * 4096
    a.run(["python3", "-c", WRITE, "2", "4096"])
    scenario.wait_equal(a, b, "data")
    assert b.read_bytes(b.data_device, 0, 4096) == b"2" * 4096
