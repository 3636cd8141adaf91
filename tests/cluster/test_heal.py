"""Hosts that come back: cut off, killed, with and without data of their own, with damaged logs (rules 5, 7, 18, 21,
22)."""

from tools import loops, scenario
from tools.hosts import MIB, Host

WRITE = "dd if=/dev/urandom of=/dev/mars/data bs=64k count=16 conv=fsync,notrunc status=none"
HERE = "resource-data/primary"


def force(host: Host) -> None:
    """Take the role without asking."""
    host.run("marsadm disconnect data")
    host.run("marsadm primary --force data")
    scenario.wait_device(host, "data")


def split(host: Host) -> bool:
    """Whether an administrator is told of a split brain on this host."""
    return "SPLIT BRAIN" in host.run("mars-status", check=False).stdout


def kill(host: Host) -> None:
    """Both processes of the daemon die at once."""
    host.kill9_keeper()
    host.wait(lambda: host.pids() == {}, what="the end of both processes")


def contents(host: Host) -> bytes:
    """The first bytes of the data device."""
    return host.read_bytes(host.data_device, 0, MIB)


def written(host: Host) -> bytes:
    """New data on the device, and on the disk below it."""
    host.run(WRITE)
    host.wait(lambda: scenario.settled(host, "data"), what=f"write-back on {host.name}")
    return contents(host)


def logs(host: Host) -> list[str]:
    """The log files of the host."""
    return sorted(path.name for path in host.path("/mars/resource-data").glob("log-*"))


def never_split(*hosts: Host) -> None:
    """Nobody is told of a split brain."""
    for host in hosts:
        assert not split(host), host.run("mars-status").stdout


def test_restart_while_cut_off(pair):
    """a restarts alone and is primary again by its durable role (rule 21); b is forced meanwhile. Both wrote: a split
    brain on both, and the bytes of both stay as they are (rule 6)."""
    hosts = pair(data_size=32 * MIB)
    a, b = hosts
    a.run(WRITE)
    scenario.wait_equal(a, b, "data")
    hosts.net.cut("a", "b")
    kill(a)
    a.marsd_start()
    scenario.wait_device(a, "data")
    of_a = written(a)
    force(b)
    of_b = written(b)
    hosts.net.heal("a", "b")
    a.wait(lambda: a.devices() == [] and a.link(HERE) == "b", what="a to step down")
    for host in hosts:
        host.wait(lambda host=host: split(host), 30, "the message")
    assert (contents(a), contents(b)) == (of_a, of_b) and of_a != of_b


def test_restart_while_cut_off_without_a_write(pair):
    """a begins logs while it is cut off and writes nothing into them; b is forced, with a log of the same number: no
    split brain, a follows by itself (rule 7)."""
    hosts = pair(data_size=32 * MIB)
    a, b = hosts
    a.run(WRITE)
    scenario.wait_equal(a, b, "data")
    before = logs(a)
    hosts.net.cut("a", "b")
    for _ in range(2):
        kill(a)
        a.marsd_start()
        scenario.wait_device(a, "data")
    assert len(logs(a)) == len(before) + 1, "an empty log is taken back before the next one begins"
    force(b)
    b.run(WRITE)
    hosts.net.heal("a", "b")
    a.wait(lambda: a.devices() == [] and a.link(HERE) == "b", what="a to step down")
    scenario.wait_equal(b, a, "data")
    never_split(a, b)
    scenario.hand_over(b, a, "data")
    a.run(WRITE)
    scenario.wait_equal(a, b, "data")


def test_killed_primary_returns_with_a_tail(pair):
    """a wrote what b never got, and died; b is forced and writes; a comes back: split brain on both, nothing
    overwritten (rule 6)."""
    hosts = pair(data_size=32 * MIB)
    a, b = hosts
    a.run(WRITE)
    scenario.wait_equal(a, b, "data")
    hosts.net.cut("a", "b")
    of_a = written(a)
    kill(a)
    force(b)
    of_b = written(b)
    hosts.net.heal("a", "b")
    a.marsd_start()
    for host in hosts:
        host.wait(lambda host=host: split(host), 30, "the message")
    assert (contents(a), contents(b)) == (of_a, of_b) and of_a != of_b
    assert a.devices() == []
    a.run("marsadm invalidate data")
    scenario.wait_equal(b, a, "data")
    for host in hosts:
        host.wait(lambda host=host: not split(host), 30, "the end of the message")


def test_killed_primary_returns_behind_its_peer(pair):
    """a dies with less on its disk than b has replayed; b goes on over two logs; a follows without a split brain."""
    hosts = pair(data_size=32 * MIB)
    a, b = hosts
    a.run(WRITE)
    a.run(WRITE)
    scenario.wait_caught_up(a, b, "data")
    kill(a)
    force(b)
    b.run(WRITE)
    b.run("marsadm log-rotate data")
    b.run(WRITE)
    a.marsd_start()
    scenario.wait_equal(b, a, "data")
    never_split(a, b)
    assert loops.first_difference(a.data.file, b.data.file) is None


def test_restarts_of_an_idle_primary(pair):
    """A primary that dies again and again without a write leaves no row of empty logs, and hands over (rule 7)."""
    hosts = pair(data_size=32 * MIB)
    a, b = hosts
    a.run(WRITE)
    scenario.wait_equal(a, b, "data")
    before = logs(a)
    for _ in range(3):
        dead = a.kill9_worker()
        a.wait(lambda dead=dead: a.worker() not in (None, dead), what="another worker")
        scenario.wait_device(a, "data")
    assert len(logs(a)) == len(before) + 1
    scenario.wait_caught_up(a, b, "data")
    scenario.hand_over(a, b, "data")
    b.run(WRITE)
    scenario.wait_equal(b, a, "data")
    never_split(a, b)
