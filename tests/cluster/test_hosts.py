"""Hosts that come back wrong, disks that were used behind MARS's back (docs/operations.md; rules 21, 22, 25, 26)."""

import os

from damage import kill, messages
from test_roles_operations import follow

from tools import scenario
from tools.hosts import MIB, Host

WRITE = "dd if=/dev/urandom of=/dev/mars/data bs=64k count=16 conv=fsync,notrunc status=none"
CHANGED = "err-disk-changed"


def changed(host: Host) -> str:
    """What the host says of its data device, "" if nothing."""
    text = messages(host, CHANGED)
    return "" if text.startswith("OK") else text


def again(host: Host) -> None:
    """marsd is stopped and started in the ordinary way."""
    host.marsd_stop()
    host.marsd_start()


def no_device(host: Host) -> None:
    """The host says what was done to its disk, and takes no role."""
    host.wait(lambda: changed(host), 30, "the text")
    assert host.devices() == [] and "marsadm fake-sync data" in changed(host)


def test_direct_use_of_a_data_device(pair):
    """The manual's 8.6: a mount below MARS is noticed on a secondary and on a primary, after a proper end and after a
    crash; nothing is served or overwritten before somebody decides; both decisions end in equal disks, and a disk that
    nobody touched is never complained of."""
    hosts = pair(data_size=64 * MIB)
    a, b = hosts
    a.run(["mkfs.ext4", "-q", "-F", "/dev/mars/data"])
    scenario.wait_equal(a, b, "data")
    for host in hosts:
        again(host)
    scenario.wait_device(a, "data")
    a.run(WRITE.replace("64k", "64k seek=400"))
    scenario.wait_equal(a, b, "data")
    assert not changed(a) and not changed(b)

    b.marsd_stop()
    b.run(f"mount {b.data_device} /mnt")
    b.run("umount /mnt")
    for _ in range(2):
        b.marsd_start()
        b.wait(lambda: changed(b), 30, "the text")
        b.marsd_stop()
    b.marsd_start()
    assert "marsadm invalidate data" in changed(b)
    a.wait(lambda: a.link("resource-data/syncstatus-b") == "0", what="a to know that b is not consistent")
    a.run(WRITE.replace("64k", "64k seek=200"))
    a.wait(lambda: scenario.settled(a, "data"), what="write-back")
    b.wait(lambda: scenario.Version.newest(a, "data") == scenario.Version.newest(b, "data"), what="b to fetch on")
    follow(hosts, "direct-secondary")
    scenario.wait_equal(a, b, "data")
    assert not changed(b)

    a.marsd_stop()
    a.run(f"mount {a.data_device} /mnt")
    a.run(["sh", "-c", "echo by hand > /mnt/file"])
    a.run("umount /mnt")
    a.marsd_start()
    no_device(a)
    again(a)
    no_device(a)
    follow(hosts, "direct-primary-keep")
    scenario.wait_device(a, "data")
    a.run("mount /dev/mars/data /mnt")
    assert a.path("/mnt/file").read_text() == "by hand\n"
    a.run("umount /mnt")
    scenario.wait_equal(a, b, "data", timeout=120)
    assert not changed(a) and not changed(b)

    older = a.data.file.read_bytes()
    a.run(WRITE.replace("64k", "64k seek=300"))
    scenario.wait_equal(a, b, "data")
    kill(a)
    before = b.data.file.read_bytes()
    with open(a.data_device, "r+b") as disk:
        disk.write(older)
        os.fsync(disk.fileno())
    a.marsd_start()
    no_device(a)
    follow(hosts, "direct-primary-discard")
    scenario.wait_equal(b, a, "data")
    assert b.data.file.read_bytes() == before
    scenario.hand_over(b, a, "data")
    assert not changed(a) and not changed(b)
