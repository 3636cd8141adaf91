"""What an administrator does all day: switches, rotation and deletion of logs, stop, leaving. The devices end equal."""

import os

from tools import scenario
from tools.hosts import MIB

WRITE = "dd if=/dev/urandom of=/dev/mars/data bs=64k count=16 conv=fsync,notrunc status=none"


def logs(host) -> list[str]:
    """Names of the log files that a host has."""
    return sorted(name for name in os.listdir(host.path("/mars/resource-data")) if name.startswith("log-"))


def refused(host, command: str, text: str, status: int = 3) -> None:
    """A command that must fail, with this status and these words."""
    done = host.run(command, check=False)
    assert done.returncode == status and text in done.stderr, (command, done.returncode, done.stderr)


def test_replay_and_fetch_pause_each_for_itself(pair):
    """With replay paused the log still comes; with fetch paused it does not; resumed, all arrives."""
    a, b = hosts = pair(data_size=32 * MIB)
    scenario.wait_equal(a, b, "data")
    b.run("marsadm pause-replay data")
    b.run("marsadm wait-resource data is-replay-off --timeout=30")
    before = scenario.Replay.of(b, "data")
    a.run(WRITE)
    a.wait(lambda: scenario.settled(a, "data"), what="write-back on a")
    newest = scenario.Version.newest(a, "data")
    there = f"log-{newest.nr:09d}-a,{newest.pos},"
    b.wait(lambda: b.link("resource-data/actual-b/fetched").startswith(there), what="the fetch")
    assert scenario.Replay.of(b, "data") == before
    b.run("marsadm disconnect data")
    b.run("marsadm wait-resource data is-fetch-off --timeout=30")
    a.run(WRITE)
    a.wait(lambda: scenario.settled(a, "data"), what="write-back on a")
    assert b.link("resource-data/actual-b/fetched").startswith(there)
    b.run("marsadm connect data")
    b.run("marsadm resume-replay data")
    scenario.wait_equal(*hosts, "data")
    b.run("marsadm wait-resource data is-uptodate --timeout=30")


def test_detach_and_down_free_the_disk(pair):
    """Detached, nobody holds the data device; attached again, the replica goes on where it was."""
    a, b = hosts = pair(data_size=32 * MIB)
    scenario.wait_equal(a, b, "data")
    probe = ["python3", "-c", f"import os; os.open('{b.data_device}', os.O_RDWR | os.O_EXCL)"]
    assert b.run(probe, check=False).returncode, "an attached device is held exclusively"
    for off, on in (("detach", "attach"), ("down", "up")):
        b.run(f"marsadm {off} data")
        b.run(probe)
        a.run(WRITE)
        b.run(f"marsadm {on} data")
        scenario.wait_equal(*hosts, "data")
    a.run("marsadm down data")
    a.wait(lambda: a.devices() == [], what="the device to vanish")
    a.run("marsadm up data")
    scenario.wait_device(a, "data")
    a.run(WRITE)
    scenario.wait_equal(*hosts, "data")


def test_rotation_and_deletion(pair):
    """A log goes only when no member needs it (facts 6.1): who lags behind holds it; afterwards it goes on both."""
    a, b = hosts = pair(data_size=32 * MIB)
    scenario.wait_equal(a, b, "data")
    b.run("marsadm disconnect data")
    b.run("marsadm wait-resource data is-fetch-off --timeout=30")
    for _ in range(2):
        a.run(WRITE)
        a.run("marsadm log-rotate data")
    assert len(logs(a)) == 3
    a.run("marsadm log-delete-all data")
    assert len(logs(a)) == 3, "b has not got them yet"
    b.run("marsadm connect data")
    scenario.wait_equal(a, b, "data")
    a.run("marsadm log-delete data")
    assert len(logs(a)) == 2
    a.run("marsadm log-delete-all data")
    assert logs(a) == ["log-000000003-a"]
    b.run("marsadm log-delete-all data")
    assert logs(b) == ["log-000000002-a", "log-000000003-a"], "a may withdraw the empty one (rule 7)"
    b.marsd_stop()
    b.marsd_start()
    a.run(WRITE)
    scenario.wait_equal(*hosts, "data")
    b.wait(lambda: b.run("marsadm log-delete-all data") and logs(b) == ["log-000000003-a"], 30, "log 2 to go on b")
    assert "b is not primary" in b.run("marsadm log-rotate data").stdout and logs(b) == ["log-000000003-a"]


def test_stop_is_refused_while_mounted(pair):
    """`marsd stop` takes no device from its users; unmounted, it stops (exit 3, then 0); commands say exit 6 then."""
    a, b = hosts = pair(data_size=384 * MIB)
    scenario.make_file_system(a, "data", "xfs")
    refused(a, "marsd stop", "in use")
    a.run(["sh", "-c", "echo goes on > /mnt/file; sync"])
    refused(a, "marsadm secondary data", "in use")
    refused(a, "marsadm down data", "in use")
    a.run("umount /mnt")
    a.run("marsd stop")
    assert a.pids() == {} and a.devices() == []
    refused(a, "marsadm log-rotate data", "marsd", 6)
    refused(a, "marsadm pause-sync data", "marsd", 6)
    refused(a, "marsd status", "", 6)
    assert b.run("marsd status").returncode == 0
    a.marsd_start()
    scenario.wait_device(a, "data")
    a.run("mount -t xfs /dev/mars/data /mnt")
    assert a.path("/mnt/file").read_text() == "goes on\n"
    a.run("umount /mnt")
    scenario.wait_equal(*hosts, "data")


def test_leaving(pair):
    """Resource before cluster, down before leaving; the others see it go, and the device is free; it may join again."""
    a, b = hosts = pair(data_size=32 * MIB)
    scenario.wait_equal(a, b, "data")
    refused(b, "marsadm leave-cluster", "data")
    refused(b, "marsadm leave-resource data", "down")
    b.run("marsadm down data")
    b.run("marsadm leave-resource data")
    a.wait(lambda: not a.link("resource-data/data-b"), what="b's membership to vanish on a")
    assert logs(b) == []
    scenario.join_resource(b, "data")
    a.run(WRITE)
    scenario.wait_equal(*hosts, "data")
    b.run("marsadm down data")
    b.run("marsadm leave-resource data")
    b.run("marsadm leave-cluster")
    a.wait(lambda: not a.link("ips/ip-b"), what="b to vanish from the cluster")
    a.run("marsadm log-rotate data")
    a.run(WRITE)
    a.wait(lambda: scenario.settled(a, "data"), what="write-back on a")
    a.run("marsadm log-delete-all data")
    assert logs(a) == ["log-000000002-a"], "a member that left blocks nothing"
