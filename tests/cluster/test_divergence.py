"""Lost primaries and parted histories: who follows, who is told of a split brain, what heals it."""

from tools import scenario
from tools.hosts import MIB

WRITE = "dd if=/dev/urandom of=/dev/mars/data bs=64k count=16 conv=fsync,notrunc status=none"


def force(host) -> None:
    """Take the role without asking."""
    host.run("marsadm disconnect data")
    host.run("marsadm primary --force data")
    scenario.wait_device(host, "data")


def split(host) -> bool:
    """Whether an administrator is told of a split brain on this host."""
    return "SPLIT BRAIN" in host.run("mars-status", check=False).stdout


def test_lost_primary_returns_without_more_data(pair):
    """a dies with nothing that b has not got; b is forced; a comes back as a secondary and follows, no split brain."""
    a, b = pair(data_size=32 * MIB)
    a.run(WRITE)
    scenario.wait_equal(a, b, "data")
    a.kill9_keeper()
    a.wait(lambda: a.pids() == {}, what="the end of both processes")
    force(b)
    b.run(WRITE)
    a.marsd_start()
    scenario.wait_equal(b, a, "data")
    assert a.devices() == [] and a.link("resource-data/primary") == "b"
    for host in (a, b):
        assert not split(host)
    scenario.hand_over(b, a, "data")
    a.run(WRITE)
    scenario.wait_equal(a, b, "data")


def test_split_brain_is_told_on_both_and_healed_by_invalidate(pair):
    """a wrote what b never got, and b went on without it: nobody mixes the two (rule 6); a gives its version up."""
    hosts = pair(data_size=32 * MIB)
    a, b = hosts
    a.run(WRITE)
    scenario.wait_equal(a, b, "data")
    hosts.net.cut("a", "b")
    a.run(WRITE)
    a.wait(lambda: scenario.settled(a, "data"), what="write-back on a")
    force(b)
    b.run(WRITE)
    b.wait(lambda: scenario.settled(b, "data"), what="write-back on b")
    hosts.net.heal("a", "b")
    a.wait(lambda: a.devices() == [] and a.link("resource-data/primary") == "b", what="a to step down")
    for host in hosts:
        host.wait(lambda host=host: split(host), 30, "the message")
    refused = a.run("marsadm primary data", check=False)
    assert refused.returncode == 3 and "split brain" in refused.stderr.lower(), refused.stderr
    b.run(WRITE)
    a.run("marsadm invalidate data")
    scenario.wait_equal(b, a, "data")
    for host in hosts:
        host.wait(lambda host=host: not split(host), 30, "the end of the message")
    scenario.hand_over(b, a, "data")
    a.run(WRITE)
    scenario.wait_equal(a, b, "data")


def test_sync_goes_on_from_another_primary(pair):
    """The role moves while c syncs: c goes on with the new primary and ends equal (rule 14)."""
    hosts = pair("abc", data_size=64 * MIB)
    a, b, c = hosts
    scenario.wait_equal(a, b, "data")
    scenario.wait_equal(a, c, "data")
    c.run(["sh", "-c", "echo 0 > /run/mars/sys/do_fast_fullsync"])
    a.run("dd if=/dev/urandom of=/dev/mars/data bs=1M count=32 oflag=direct status=none")
    scenario.wait_equal(a, b, "data")
    hosts.net.shape("c", "40mbit")
    c.run("marsadm invalidate data")
    c.wait(lambda: scenario.synced(c, "data") > 0, what="progress of the sync")
    b.run("marsadm primary data --ignore-sync")
    scenario.wait_device(b, "data")
    assert not scenario.fully_synced(c, "data"), "too fast to prove anything"
    b.run(WRITE)
    hosts.net.unshape("c")
    scenario.wait_equal(b, c, "data")
    scenario.wait_equal(b, a, "data")


def test_worker_of_the_source_is_killed_during_the_sync(pair):
    """The primary's worker dies while b syncs: the sync resumes where it was, and ends equal."""
    hosts = pair(data_size=64 * MIB)
    a, b = hosts
    scenario.wait_equal(a, b, "data")
    b.run(["sh", "-c", "echo 0 > /run/mars/sys/do_fast_fullsync"])
    a.run("dd if=/dev/urandom of=/dev/mars/data bs=1M count=32 oflag=direct status=none")
    hosts.net.shape("b", "40mbit")
    b.run("marsadm invalidate data")
    b.wait(lambda: scenario.synced(b, "data") > 0, what="progress of the sync")
    dead = a.kill9_worker()
    a.wait(lambda: a.worker() not in (None, dead), what="another worker")
    assert not scenario.fully_synced(b, "data"), "too fast to prove anything"
    hosts.net.unshape("b")
    a.run(WRITE)
    scenario.wait_equal(a, b, "data")
