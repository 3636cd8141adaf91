"""Whole clusters: two become one, a dead host is taken out, tombstones go; and growth that is cut off by a death."""

import os
import signal
import subprocess
import threading
import time

from tools import scenario
from tools.hosts import MIB

WRITE = "dd if=/dev/urandom of=/dev/mars/{} bs=64k count=16 conv=fsync,notrunc status=none"


def test_merge_cluster(cluster):
    """c goes over into a's cluster with its resource, d follows: logs written before, between and after are fetched
    and replayed, the role changes, all three see everything."""
    hosts = a, c, d = list(cluster("a", "c", "d", data_size=16 * MIB))
    for first, resource in ((a, "data"), (c, "mail")):
        first.run(f"marsadm create-cluster --ip={first.ip}")
        first.marsd_start()
        scenario.create_resource(first, resource)
    scenario.join_cluster(c, d)
    scenario.join_resource(d, "mail")
    c.run(WRITE.format("mail"))
    scenario.wait_equal(c, d, "mail")
    d.run("marsadm disconnect mail")
    c.run(WRITE.format("mail"))
    for host in (c, d):
        how = f"a {a.ip} --token={scenario.new_token(a)}"
        assert "can be merged" in host.run(f"marsadm merge-cluster-check {how}").stdout
        assert host.run(f"marsadm merge-cluster {how}", check=False).returncode == 3, "marsd runs"
        host.marsd_stop()
        host.run(f"marsadm merge-cluster {how}")
        host.marsd_start()
        scenario.wait_device(c, "mail")
        c.run(WRITE.format("mail"))
    d.run("marsadm connect mail")
    for host in hosts:
        host.run("marsadm wait-cluster --timeout=30")
        assert host.run("marsadm lowlevel-ls-host-ips").stdout.split()[::2] == ["a", "c", "d"]
    a.wait(lambda: scenario.size(a, "mail") and scenario.size(d, "data"), what="all resources to be known everywhere")
    scenario.wait_equal(c, d, "mail")
    scenario.hand_over(c, d, "mail")
    d.run(WRITE.format("mail"))
    scenario.wait_equal(d, c, "mail")


def test_dead_host(pair):
    """A host dies for good and was the primary: the others go on without it, its logs block nothing, tombstones can
    go; with it reachable again it stays out (rule 26)."""
    a, b, c = hosts = list(pair("abc", data_size=32 * MIB))
    for host in (b, c):
        scenario.wait_equal(a, host, "data")
    hosts[0].cluster.net.isolate("a")
    b.run("marsadm disconnect data")
    b.run("marsadm primary data --force --ignore-sync", timeout=120)
    b.run("marsadm connect data")
    scenario.wait_device(b, "data")
    b.run(WRITE.format("data"))
    c.run("marsadm connect data")
    done = b.run("marsadm lowlevel-delete-host a", check=False)
    assert done.returncode == 3 and "--force" in done.stderr
    assert b.run("marsadm link-purge-all", check=False).returncode == 3, "a cannot be reached"
    b.run("marsadm leave-resource data --host=a --force")
    b.run("marsadm lowlevel-delete-host a --force")
    c.wait(lambda: not c.link("ips/ip-a"), what="a to vanish on c")
    scenario.wait_equal(b, c, "data")
    b.run("marsadm log-rotate data")
    b.run(WRITE.format("data"))
    scenario.wait_equal(b, c, "data")
    b.run("marsadm cron")
    logs = [name for name in os.listdir(b.path("/mars/resource-data")) if name.startswith("log-")]
    assert "log-000000001-a" not in logs and "log-000000002-b" not in logs, "the dead host holds no log any more"
    b.run("marsadm link-purge-all")
    b.cluster.net.heal_all()
    a.wait(lambda: "a was removed from the cluster" in a.run("mars-status", check=False).stdout, what="b to refuse a")
    assert not b.link("ips/ip-a") and b.link("resource-data/replay-a") == ""


def test_death_while_it_grows(pair):
    """`size` is written, the worker dies before, in or behind the change of the log: the device grows by itself, what
    was written stays, the other gets all of it."""
    a, b = pair(data_size=32 * MIB)
    scenario.wait_equal(a, b, "data")
    for size, delay in ((48 * MIB, 0.0), (64 * MIB, 0.02), (80 * MIB, 0.05)):
        die_while_it_grows(a, b, size, delay)
        scenario.wait_equal(a, b, "data")
    scenario.hand_over(a, b, "data")
    assert int(b.run("blockdev --getsize64 /dev/mars/data").stdout) == size


def die_while_it_grows(a, b, size: int, delay: float) -> None:
    """Both devices are enlarged, `resize` is given on a, whose worker is killed `delay` seconds after `size` is
    written; then something is written at the new end."""
    for host in (a, b):
        os.truncate(host.data.file, size)
        subprocess.run(["losetup", "--set-capacity", host.data_device], check=True, timeout=20)
        host.wait(lambda host=host: host.link(f"resource-data/actsize-{host.name}") == str(size), what="actsize")
    worker = a.worker()

    def kill() -> None:
        end = time.monotonic() + 30
        while a.link("resource-data/size") != str(size) and time.monotonic() < end:
            pass
        time.sleep(delay)
        os.kill(worker, signal.SIGKILL)

    killer = threading.Thread(target=kill, daemon=True)
    killer.start()
    a.run("marsadm resize data", check=False)
    killer.join(60)
    a.wait(lambda: a.run("blockdev --getsize64 /dev/mars/data", check=False).stdout.strip() == str(size),
           what="the device to grow")
    a.run(f"dd if=/dev/urandom of=/dev/mars/data bs=1M seek={size // MIB - 4} count=4 conv=fsync,notrunc oflag=direct"
          " status=none")


def test_names_of_devices(cluster):
    """The device may be called otherwise than the resource, on each host in its own way; over a death of the worker, a
    restart and a handover."""
    a, b = list(cluster("a", "b", data_size=16 * MIB))
    scenario.form_cluster(a.cluster)
    a.run(f"marsadm create-resource data {a.data_device} disk0")
    scenario.wait_device(a, "disk0")
    b.wait(lambda: scenario.size(b, "data"), what="the resource")
    b.run(f"marsadm join-resource data {b.data_device} mail")
    a.run(WRITE.format("disk0"))
    a.kill9_worker()
    a.run(WRITE.format("disk0"), timeout=120)
    scenario.wait_equal(a, b, "data")
    assert a.devices() == ["disk0"] and "/dev/mars/disk0" in a.run("mars-status", check=False).stdout
    b.run("marsadm primary data")
    scenario.wait_device(b, "mail")
    b.run(WRITE.format("mail"))
    b.marsd_stop()
    b.marsd_start()
    scenario.wait_device(b, "mail")
    scenario.wait_equal(b, a, "data")
    assert a.devices() == [] and b.devices() == ["mail"]


def plan_of(host, command: str) -> dict[str, str]:
    """Links that a dry run tells, and their values; it changes nothing that a wish or a position is."""
    def picture() -> dict[str, str]:
        found = host.links("resource-data")
        return {name: value for name, value in found.items() if not name.startswith("actsize")} | {
            f"todo/{name}": value for name, value in host.links("resource-data/todo-b").items()}

    before = picture()
    lines = host.run(f"{command} --dry-run").stdout.splitlines()
    assert picture() == before, command
    found = [line.partition(" symlink '/mars/")[2].rstrip("'").split("' -> '") for line in lines if " symlink " in line]
    return {name: value for name, value in found}


def test_plans_are_kept(pair):
    """What marsd would do (`--dry-run`) is what it does; replaying again is honest about consistency (rule 14)."""
    a, b = pair(data_size=16 * MIB)
    scenario.wait_equal(a, b, "data")
    for _ in range(2):
        a.run(WRITE.format("data"))
        a.run("marsadm log-rotate data")
    a.run(WRITE.format("data"))
    scenario.wait_equal(a, b, "data")
    b.run("marsadm pause-replay data")
    b.run("marsadm wait-resource data is-replay-off")
    assert b.run("marsadm set-replay data 9", check=False).returncode == 3
    plan = plan_of(b, "marsadm set-replay data 1")
    b.run("marsadm set-replay data 1")
    assert set(plan) == {"resource-data/syncpos-b", "resource-data/replay-b"}
    assert all(b.link(name) == value for name, value in plan.items())
    assert b.run("marsadm view-is-consistent data").stdout == "0\n"
    b.run("marsadm resume-replay data")
    b.run("marsadm wait-resource data is-consistent")
    scenario.wait_equal(a, b, "data")
    assert plan_of(a, "marsadm log-delete-all data") == {} and len(a.links("resource-data", "version-")) >= 3
    assert "delete log-000000001-a" in a.run("marsadm log-delete-all data -d").stdout
    assert "log-000000001-a" in a.run("marsadm log-delete-all data").stdout
    for command, lasting in (("fake-sync", {"todo-b/sync", "syncstatus-b"}),
                             ("invalidate", {"todo-b/sync"}), ("down", {"todo-b/attach", "todo-b/connect"})):
        scenario.wait_equal(a, b, "data")
        plan = plan_of(b, f"marsadm {command} data")
        assert {f"resource-data/{name}" for name in lasting} <= set(plan), command
        b.run(f"marsadm {command} data")
        names = [f"resource-data/{name}" for name in lasting]
        assert [b.link(name) for name in names] == [plan[name] for name in names], command
    plan = plan_of(b, "marsadm leave-resource data")
    b.run("marsadm leave-resource data")
    left = {f"resource-data/{name}" for name in b.links("resource-data") if name.endswith("-b")}
    assert left == {"resource-data/removed-b"} and "resource-data/member-b" in plan
    plan = plan_of(b, f"marsadm join-resource data {b.data_device}")
    b.run(f"marsadm join-resource data {b.data_device}")
    steady = ("data-b", "device-b", "todo-b/attach", "todo-b/sync", "todo-b/connect", "todo-b/allow-replay")
    assert all(plan[f"resource-data/{name}"] == b.link(f"resource-data/{name}") != "" for name in steady)
    scenario.wait_equal(a, b, "data")
