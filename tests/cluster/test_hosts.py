"""Hosts that come back wrong, disks that were used behind MARS's back (docs/operations.md; rules 21, 22, 25, 26)."""

import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

from damage import kill, messages
from test_roles_operations import follow

from tools import loops, scenario
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


def said(host: Host, key: str, name: str = "") -> str:
    """A message of the host about itself, "" if it stands no more."""
    text = host.link(f"actual-{name or host.name}/msg-{key}")
    return "" if text.startswith("OK") else text


def test_hosts_that_are_not_whom_they_say(pair):
    """Rules 21, 22, 26: a removed primary that comes back with its old tree begins no log and is not believed; a copy
    of a living host neither; a host under another name does not start. All say so on both sides; joining anew works."""
    hosts = pair("abc", data_size=32 * MIB)
    a, b, c = hosts
    a.run(WRITE)
    for host in (b, c):
        scenario.wait_equal(a, host, "data")
    scenario.hand_over(a, c, "data")
    c.run(WRITE)
    for host in (a, b):
        scenario.wait_equal(c, host, "data")
    kill(c)
    a.run("marsadm disconnect data")
    a.run("marsadm primary --force data")
    a.run("marsadm connect data")
    scenario.wait_device(a, "data")
    a.run("marsadm lowlevel-delete-host c --force")
    b.wait(lambda: not b.link("ips/ip-c"), what="b to hear of it")
    c.marsd_start()
    c.wait(lambda: said(c, "err-outcast"), 30, "c to say that nobody takes it")
    assert c.link("resource-data/primary") == "c" and "join-cluster" in said(c, "err-outcast")
    for host in (a, b):
        host.wait(lambda host=host: "c from" in said(host, "wrn-refused-host"), 30, "the others to say so")
    c.wait(lambda: "removed from the cluster" in messages(c, "inf-why"), 30, "the reason for its role")
    assert c.devices() == [] and not a.link("ips/ip-c") and a.link("resource-data/primary") == "a"
    a.run(WRITE)
    scenario.wait_equal(a, b, "data")

    follow(hosts, "outcast-joins-anew")
    shutil.copytree(b.path("/mars"), c.path("/mars"), symlinks=True, dirs_exist_ok=True)
    shutil.copytree(b.path("/etc/mars/tls"), c.path("/etc/mars/tls"))
    mine = c.path("/mars/resource-data/data-b")
    mine.unlink()
    mine.symlink_to(c.data_device)
    c.run("hostname b")
    c.marsd_start()
    a.wait(lambda: "has its identity" in said(a, "wrn-refused-host"), 30, "a to name the copy")
    c.wait(lambda: "has its identity" in said(c, "err-outcast", "b"), 30, "the copy to say so")
    assert a.link("resource-data/data-b") == b.data_device == b.link("resource-data/data-b")
    a.run(WRITE)
    scenario.wait_equal(a, b, "data")
    c.marsd_stop()

    for name in ("x", "a"):
        b.run("marsd stop", check=name == "x")
        b.run(f"hostname {name}")
        failed = b.run("marsd start", check=False)
        assert failed.returncode == 3 and f"called '{name}'" in failed.stderr and "that of 'b'" in failed.stderr
        assert b.devices() == []
    b.run("hostname b")
    b.marsd_start()

    c.run(["sh", "-c", "rm -r /mars/* /etc/mars/tls; hostname c"])
    scenario.join_cluster(a, c)
    scenario.join_resource(c, "data")
    a.run(WRITE)
    for host in (b, c):
        scenario.wait_equal(a, host, "data")
    a.wait(lambda: "c from" not in said(a, "wrn-refused-host"), 30, "the end of the message")


def images(host: Host) -> list[Path]:
    """The files that are the host's disks: /mars and the data device."""
    return [loop.file for loop in host._loops]


def power_cut(hosts, folder: Path) -> None:
    """All hosts lose power at once: what the kernel had not written to the disks yet is gone with it. (All stand still
    while the disks are copied; the copies are what the hosts come back with.)"""
    for host in hosts:
        for pid in host.pids():
            os.kill(pid, signal.SIGSTOP)
    kept = {file: folder / f"{host.name}-{file.name}" for host in hosts for file in images(host)}
    for file, copy in kept.items():
        subprocess.run(["cp", "--sparse=always", file, copy], check=True)
    for host in hosts:
        for pid in host.pids():
            os.kill(pid, signal.SIGKILL)
    for host in hosts:
        host.wait(lambda host=host: host.pids() == {}, what="the end of all processes")
        host.wait(lambda host=host: host.run("umount /mars", check=False).returncode == 0, what="/mars to be let go")
        for file in images(host):
            with open(kept[file], "rb") as copy, open(file, "r+b") as disk:
                size = os.fstat(disk.fileno()).st_size
                disk.truncate(0)
                disk.truncate(size)
                for start, end in loops.data_ranges(copy.fileno(), size):
                    copy.seek(start)
                    disk.seek(start)
                    disk.write(copy.read(end - start))
                os.fsync(disk.fileno())
            kept[file].unlink()
        host.run(["mount", "-t", "ext4", host._loops[0].path, "/mars"])


def test_power_cut_of_all_hosts(pair, tmp_path):
    """Rules 1, 3, 21: under load, right after a handover, all hosts lose power and what was not flushed: the same
    primary, what was flushed is there, equal replicas, no split brain, and no disk is called changed."""
    hosts = pair(data_size=32 * MIB, mars_size=512 * MIB)
    a, b = hosts
    a.run(WRITE)
    scenario.wait_equal(a, b, "data")
    load = "while :; do dd if=/dev/urandom of=/dev/mars/data bs=16k seek=600 count=300 conv=notrunc status=none; done"
    for turn, (before, primary) in enumerate(((a, a), (a, b))):
        if before is not primary:
            scenario.hand_over(before, primary, "data")
        writer = primary.popen(["sh", "-c", load])
        primary.run(WRITE)
        flushed = primary.read_bytes("/dev/mars/data", 0, MIB)
        time.sleep(0.2 * turn)  # another moment of the load
        power_cut(hosts, tmp_path)
        writer.kill()  # nsenter has stopped with its child, which is no more
        writer.wait()
        for host in hosts:
            host.marsd_start()
        scenario.wait_device(primary, "data")
        assert primary.read_bytes("/dev/mars/data", 0, MIB) == flushed
        for host in hosts:
            assert host.link("resource-data/primary") == primary.name
            assert not changed(host)
            if host is not primary:
                assert host.devices() == []
                scenario.wait_equal(primary, host, "data")
        assert not any("SPLIT BRAIN" in text for text in follow(hosts, "all-came-back"))


SKEW = """
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdlib.h>
#include <time.h>
int clock_gettime(clockid_t id, struct timespec *t) {
    int (*real)(clockid_t, struct timespec *) = dlsym(RTLD_NEXT, "clock_gettime");
    int rc = real(id, t);
    if (id == CLOCK_REALTIME) t->tv_sec += atol(getenv("SKEW_S"));
    return rc;
}
"""


def test_clocks(pair, tmp_path):
    """Rule 25: a host whose clock is a day off takes part; one that is ten years off is named, on both sides where the
    other one must not believe it, and harms nobody; set right again after having been behind, it is as before."""
    (tmp_path / "skew.c").write_text(SKEW)
    subprocess.run(["gcc", "-shared", "-fPIC", "-o", tmp_path / "skew.so", tmp_path / "skew.c", "-ldl"], check=True)
    hosts = pair(data_size=16 * MIB)
    a, b = hosts
    shutil.copy(tmp_path / "skew.so", b.path("/var/cache/skew.so"))
    day = 86400
    for days, here, there in ((-1, "", ""), (1, "", ""), (-3650, "behind the stamps", "of b differs"), (0, "", ""),
                              (3650, "ahead of all", "of b differs")):
        b.marsd_stop()
        b.marsd_environment = {"LD_PRELOAD": "/var/cache/skew.so", "SKEW_S": str(days * day)}
        b.marsd_start()
        a.run(WRITE)
        scenario.wait_equal(a, b, "data")
        for host, words in ((b, here), (a, there)):
            host.wait(lambda host=host, words=words: words in said(host, "err-clock") if words else
                      not said(host, "err-clock"), 30, f"{words!r} on {host.name}, {days} days off")
        assert a.link("resource-data/primary") == "a" and a.devices() == ["data"] and b.devices() == []
