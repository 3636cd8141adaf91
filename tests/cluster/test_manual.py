"""The manual's procedures (chapters 2 and 7) on real hosts, command for command as it prints them.

What differs: volumes are loop files that are made larger as `lvresize` does it; `modprobe mars` is `marsd start`;
hosts that have no ssh between them join with a token; the manual's typos (`create-ressource`, `jon-cluster`,
`growxfs`) are set right. In each block: `HOST: command`, in this order, every one must succeed.
"""

import os
import subprocess

from tools import scenario
from tools.hosts import MIB, Host

CREATE = """
a: marsadm create-cluster --ip={a.ip}
a: marsd start
a: marsadm create-resource data {a.data_device}
"""
USE = """
a: mkfs.xfs -q /dev/mars/data
a: mount /dev/mars/data /mnt
"""
SECONDARY = """
b: marsadm join-cluster a --ip={b.ip} --ip-a={a.ip} --token={token}
b: marsd start
b: marsadm wait-cluster
b: marsadm join-resource data {b.data_device}
"""
SWITCH = """
a: umount /dev/mars/data
b: marsadm primary data
b: mount /dev/mars/data /mnt
"""
LOGS = """
b: marsadm log-rotate data
b: marsadm log-delete-all data
"""
RESIZE = """
a: marsadm pause-sync data
b: marsadm pause-sync data
b: marsadm resize data
a: marsadm resume-sync data
b: marsadm resume-sync data
b: xfs_growfs /mnt
"""
LEAVE = """
a: marsadm pause-replay data
a: marsadm pause-sync data
a: marsadm detach data
a: marsadm disconnect data
a: marsadm leave-resource data
a: marsadm leave-cluster data
a: marsd stop
"""


def follow(hosts, text: str, **values: object) -> None:
    """Run the commands of a block."""
    for line in text.format(**{host.name: host for host in hosts}, **values).strip().splitlines():
        name, _, command = line.partition(": ")
        next(host for host in hosts if host.name == name).run(command, timeout=120)


def note(host: Host, name: str, text: str) -> None:
    """The application writes a file, and it is on the device."""
    host.run(["sh", "-c", f"echo {text} > /mnt/{name}; sync"])


def enlarge(host: Host, size: int) -> None:
    """`lvresize` on this host."""
    os.truncate(host.data.file, size)
    subprocess.run(["losetup", "--set-capacity", host.data_device], check=True, timeout=20)


def test_chapter_7(cluster):
    """Create, use, secondary, handover, logs, resize: the file system lives through all of it, both devices end
    equal."""
    a, b = hosts = list(cluster("a", "b", data_size=320 * MIB))
    follow(hosts, CREATE)
    follow(hosts, USE)
    note(a, "one", "first")
    follow(hosts, SECONDARY, token=scenario.new_token(a))
    scenario.wait_caught_up(a, b, "data")
    follow(hosts, SWITCH)
    assert b.path("/mnt/one").read_text() == "first\n"
    note(b, "two", "second")
    follow(hosts, LOGS)
    assert b.links("resource-data", "replay-")["replay-b"]
    for host in hosts:
        enlarge(host, 400 * MIB)
        host.wait(lambda host=host: int(host.link(f"resource-data/actsize-{host.name}") or 0) == 400 * MIB,
                  what="marsd to see the larger device")
    b.wait(lambda: "resize is possible" in b.run("mars-status --resource=data", check=False).stdout, what="the advice")
    follow(hosts, RESIZE)
    assert int(b.run("blockdev --getsize64 /dev/mars/data").stdout) == scenario.size(b, "data") == 400 * MIB
    assert os.statvfs(b.path("/mnt")).f_blocks * os.statvfs(b.path("/mnt")).f_frsize > 330 * MIB
    note(b, "three", "third")
    b.run("dd if=/dev/urandom of=/mnt/large bs=1M count=60 conv=fsync status=none")
    b.run("umount /mnt")
    scenario.wait_equal(b, a, "data")
    scenario.hand_over(b, a, "data")
    a.run("mount /dev/mars/data /mnt")
    for name, text in (("one", "first"), ("two", "second"), ("three", "third")):
        assert a.path(f"/mnt/{name}").read_text().strip() == text
    a.run("umount /mnt")


def test_chapter_2_leaving(pair):
    """The order of chapter 2.3: everything is stopped, then the resource is left, then the cluster; the other goes on,
    and what is left of a resource that all have left can be deleted."""
    b, a = hosts = pair(("b", "a"), data_size=32 * MIB)
    scenario.wait_equal(b, a, "data")
    follow(hosts, LEAVE)
    b.run("dd if=/dev/urandom of=/dev/mars/data bs=64k count=4 conv=fsync,notrunc status=none")
    b.wait(lambda: not b.link("ips/ip-a"), what="a to vanish from the cluster")
    assert b.run("marsadm delete-resource data", check=False).returncode == 3
    follow(hosts, "b: marsadm secondary data\nb: marsadm down data\nb: marsadm leave-resource data")
    b.run("marsadm delete-resource data")
    assert "data" not in b.run("marsadm view all").stdout
    scenario.create_resource(b, "data")
    assert scenario.Replay.of(b, "data").nr > 100000, "numbers of old logs are not used again"
