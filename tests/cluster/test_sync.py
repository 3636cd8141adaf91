"""A full sync on real hosts that is disturbed in every way goes on where it stood; limits of slots and of bandwidth."""

import os
import subprocess
import time

import pytest
from running_writer import RunningWriter

from tools import scenario
from tools.hosts import Host

MIB = 1 << 20
SIZE = 64 * MIB
CLIENT = "traffic_tuning/client_role_traffic_ratelimit_kb"


def tune(host: Host, name: str, value: int) -> None:
    """Write a tunable as an operator does."""
    host.path(f"/run/mars/sys/{name}").write_text(f"{value}\n")


@pytest.fixture
def slow(cluster):
    """slow("abc"): a cluster whose first host is primary of 48 MiB of noise; the last has joined, its sync is slow."""
    def make(names: str):
        hosts = cluster(*names, data_size=SIZE)
        first, *others = list(hosts)
        scenario.form_cluster(hosts)
        scenario.create_resource(first, "data")
        first.run("dd if=/dev/urandom of=/dev/mars/data bs=1M count=48 oflag=direct conv=fsync status=none")
        for host in others[:-1]:
            scenario.join_resource(host, "data")
            scenario.wait_caught_up(first, host, "data")
        tune(others[-1], CLIENT, 3000)
        scenario.join_resource(others[-1], "data")
        return hosts
    return make


class Watched:
    """The progress of a sync, which must never go back."""

    def __init__(self, host: Host) -> None:
        self.host = host
        self.last = 0

    def look(self) -> int:
        now = scenario.synced(self.host, "data")
        assert now >= self.last, f"the sync went back from {self.last} to {now}"
        self.last = now
        return now

    def go_on(self, more: int = 3 * MIB) -> None:
        """Until so much more is synced."""
        goal = min(SIZE - 1, self.look() + more)
        self.host.wait(lambda: self.look() >= goal, 90, f"the sync to reach {goal}")


def test_goes_on_where_it_stood(slow, tmp_path):
    """Rules 14, 15: pause, kill of either worker and of a whole marsd, a cut line, all under writes: syncstatus never
    goes back, the replica is not consistent before the end, and equal after it."""
    hosts = slow("ab")
    a, b = hosts
    synced = Watched(b)
    with RunningWriter(a, "/dev/mars/data", tmp_path / "notes", blocks=256, pause_us=500) as writer:
        synced.go_on()
        b.run("marsadm pause-sync data")
        b.wait(lambda: b.link("resource-data/actual-b/is-syncing") == "0", what="the sync to pause")
        stood = synced.look()
        time.sleep(1.2)
        assert synced.look() == stood < SIZE
        assert b.run("marsadm primary data --timeout=5", check=False).returncode != 0, "a replica that is not synced"
        b.run("marsadm resume-sync data")
        synced.go_on()
        b.kill9_worker()
        synced.go_on()
        b.kill9_keeper()
        b.wait(lambda: not b.pids(), what="marsd to die with its keeper")
        b.marsd_start()
        tune(b, CLIENT, 3000)
        synced.go_on()
        a.kill9_worker()
        synced.go_on()
        hosts.net.cut("a", "b")
        time.sleep(1)
        hosts.net.heal("a", "b")
        tune(b, CLIENT, 0)
        b.wait(lambda: synced.look() == SIZE, 90, "the end of the sync")
        writer.go_on(50)
        assert writer.stop() == 0
    scenario.wait_equal(a, b, "data")
    assert "began again" not in b.link("resource-data/actual-b/msg-inf-sync-start")


def test_change_of_the_primary(slow):
    """Rule 14: the role goes from a to b while c syncs: c goes on from b where it stood, because what it has lies in
    b's history."""
    hosts = slow("abc")
    a, b, c = hosts
    synced = Watched(c)
    synced.go_on(12 * MIB)
    b.run("marsadm primary data --ignore-sync", timeout=120)
    scenario.wait_device(b, "data")
    b.run("dd if=/dev/urandom of=/dev/mars/data bs=64k count=100 seek=600 oflag=direct conv=fsync status=none")
    synced.go_on(5 * MIB)
    tune(c, CLIENT, 0)
    c.wait(lambda: synced.look() == SIZE, 90, "the end of the sync")
    for host in (a, c):
        scenario.wait_equal(b, host, "data")


def syncing(host) -> set[str]:
    """Which of the two resources sync."""
    return {name for name in ("one", "two") if host.link(f"resource-{name}/actual-b/is-syncing") == "1"}


def test_limits_of_slots_and_bandwidth(cluster):
    """One slot for two resources: never both at once, the preferred one first; the bandwidth is kept."""
    hosts = cluster("a", "b", data_size=SIZE)
    a, b = hosts
    scenario.form_cluster(hosts)
    for name in ("one", "two"):
        scenario.create_resource(a, name, a.add_device(f"{name}.img", 32 * MIB).path)
        a.run(f"dd if=/dev/urandom of=/dev/mars/{name} bs=1M count=16 oflag=direct conv=fsync status=none")
    b.run("marsadm set-sync-limit-value 1")
    b.wait(lambda: "two" in b.run("marsadm view all", check=False).stdout or b.link("resource-two/size"), what="two")
    b.run("marsadm set-sync-pref-list two")
    tune(b, CLIENT, 4000)
    began = time.monotonic()
    for name in ("one", "two"):
        b.run(["marsadm", "join-resource", name, b.add_device(f"{name}.img", 32 * MIB).path])
    seen = set()
    end = {}
    while len(end) < 2:
        running = syncing(b)
        if len(running) > 1:
            time.sleep(0.5)  # the slot passes on before the one who gave it away has said so
            running = syncing(b)
        assert len(running) <= 1, "two syncs with one slot"
        seen |= running
        for name in ("one", "two"):
            if name not in end and scenario.fully_synced(b, name):
                end[name] = time.monotonic()
        assert time.monotonic() - began < 120, hosts.dump()
        time.sleep(0.02)
    assert seen and end["two"] <= end["one"], "the preferred one comes first"
    # 32 MiB of noise at 4000 KiB/s are 8 s; a limit cannot make it faster than that.
    assert max(end.values()) - began > 3.5
    for name in ("one", "two"):
        b.run(f"marsadm verify {name}")


def received(host: Host) -> int:
    """Bytes that came in over the host's line."""
    return int(host.path("/sys/class/net/eth0/statistics/rx_bytes").read_text())


def enlarge(host: Host, size: int) -> None:
    """`lvresize` on this host; the new part holds noise of its own."""
    with open(host.data.file, "r+b") as file:
        old = file.seek(0, os.SEEK_END)
        file.write(os.urandom(size - old))
        file.flush()
        os.fsync(file.fileno())
    subprocess.run(["losetup", "--set-capacity", host.data_device], check=True, timeout=20)


def test_growth_syncs_only_what_is_new(pair):
    """Rule 14 after `resize`: the new part moves, the old one is not even looked at; the replica is not consistent
    meanwhile, and equal after it."""
    hosts = pair(data_size=32 * MIB)
    a, b = hosts
    a.run("dd if=/dev/urandom of=/dev/mars/data bs=1M count=32 oflag=direct conv=fsync status=none")
    scenario.wait_equal(a, b, "data")
    b.run(["dd", "if=/dev/urandom", f"of={b.data_device}", "bs=4096", "count=1", "seek=1000", "oflag=direct",
           "conv=notrunc", "status=none"])
    for host in hosts:
        enlarge(host, 48 * MIB)
        host.wait(lambda host=host: int(host.link(f"resource-data/actsize-{host.name}") or 0) == 48 * MIB,
                  what="marsd to see the larger device")
    tune(b, CLIENT, 8000)
    before = received(b)
    a.run("marsadm resize data")
    b.wait(lambda: scenario.size(b, "data") == 48 * MIB, what="the new size")
    synced = [scenario.synced(b, "data")]
    assert not scenario.fully_synced(b, "data") and b.run("marsadm view-is-consistent data").stdout.strip() == "0"
    b.wait(lambda: synced.append(scenario.synced(b, "data")) or scenario.fully_synced(b, "data"), 90, "the sync")
    assert min(synced) >= 32 * MIB
    assert 16 * MIB < received(b) - before < 20 * MIB
    done = b.run("marsadm verify data", check=False)
    assert (done.returncode, done.stdout.split()) == (1, [str(1000 * 4096), "4096"])


def test_a_slow_line_is_compressed_where_that_pays(pair):
    """On 40 Mbit/s: text takes much less than its size (how much is measured: a busy processor compresses less), noise
    no more than its own; both become equal."""
    hosts = pair(data_size=16 * MIB)
    a, b = hosts
    scenario.wait_equal(a, b, "data")
    hosts.net.shape("b", "40mbit")
    took = {}
    for name, source in (("text", "yes 'one more line of text' | head -c 12M"), ("noise", "head -c 12M /dev/urandom")):
        b.run("marsadm down data")
        a.run(["sh", "-c", f"{source} | dd of=/dev/mars/data bs=64k iflag=fullblock oflag=direct conv=fsync"])
        a.run("marsadm log-rotate data")
        b.run("marsadm up data")
        scenario.wait_caught_up(a, b, "data")
        b.run(["dd", "if=/dev/zero", f"of={b.data_device}", "bs=1M", "count=12", "oflag=direct", "conv=notrunc"])
        before = received(b)
        b.run("marsadm invalidate data")
        scenario.wait_equal(a, b, "data")
        took[name] = received(b) - before
    assert took["text"] < 9 * MIB and 12 * MIB < took["noise"] < 14 * MIB, took
