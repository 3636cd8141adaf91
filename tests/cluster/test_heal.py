"""Hosts that come back: cut off, killed, with and without data of their own, with damaged logs (rules 5, 7, 18, 21,
22)."""

import dataclasses
import os
import shutil
from pathlib import Path

from damage import WRITE, contents, fetched, kill, log_file, logs, messages, rewind, rot, spoil_header

from marsx.log.record import FileHeader
from tools import loops, scenario
from tools.hosts import MIB, Host

HERE = "resource-data/primary"


def force(host: Host) -> None:
    """Take the role without asking."""
    host.run("marsadm disconnect data")
    host.run("marsadm primary --force data")
    scenario.wait_device(host, "data")


def split(host: Host) -> bool:
    """Whether an administrator is told of a split brain on this host."""
    return "SPLIT BRAIN" in host.run("mars-status", check=False).stdout


def is_impatient(host: Host) -> None:
    """A host that waits one second for others after its start (no wait is needed where they can be reached)."""
    host.path("/etc/mars/marsd.toml").write_text("[tunables]\nstart_patience_s = 1\n")


def written(host: Host) -> bytes:
    """New data on the device, and on the disk below it."""
    host.run(WRITE)
    host.wait(lambda: scenario.settled(host, "data"), what=f"write-back on {host.name}")
    return contents(host)


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
    is_impatient(a)
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
    is_impatient(a)
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
    a.wait(lambda: a.link("resource-data/actual-a/is-primary") == "0" and a.link(HERE) == "b",
           what="a to know that it is no primary")
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


class Old:
    """An older state of a host: its resource's tree and logs, and its data device. marsd is down."""

    def __init__(self, host: Host, where: Path) -> None:
        self.host, self.mars, self.disk = host, where / "mars", where / "data.img"
        shutil.copytree(host.path("/mars/resource-data"), self.mars, symlinks=True)
        host.run(["sync"])
        self.disk.write_bytes(host.data.file.read_bytes())

    def restore(self) -> None:
        """As from a backup."""
        there = self.host.path("/mars/resource-data")
        shutil.rmtree(there)
        shutil.copytree(self.mars, there, symlinks=True)
        with open(self.host.data_device, "r+b") as disk:
            disk.write(self.disk.read_bytes())
            os.fsync(disk.fileno())


def filled(pair, **options):
    """Hosts a and b with the same contents, out of one log of a."""
    hosts = pair(data_size=32 * MIB, **options)
    a, b = hosts
    for _ in range(3):
        a.run(WRITE)
    scenario.wait_equal(a, b, "data")
    return hosts


def test_rotten_log_of_the_primary_is_healed(pair):
    """Rule 5: one bit in the middle of the newest log, found at start: not dropped as a torn tail, but fetched from b;
    then the primary goes on by itself."""
    hosts = filled(pair)
    a, b = hosts
    before = contents(a)
    kill(a)
    rewind(a)
    sound = log_file(a).read_bytes()
    rot(log_file(a))
    name = logs(a)[-1]
    a.marsd_start()
    scenario.wait_device(a, "data")
    assert log_file(a, logs(a).index(name)).read_bytes().rstrip(b"\0") == sound.rstrip(b"\0")
    assert "came back from b" in messages(a, "inf-heal"), a.cluster.dump()
    assert not list(a.path("/mars/resource-data").glob(".damaged-*"))
    assert contents(a) == before
    a.run(WRITE)
    scenario.wait_equal(a, b, "data")
    never_split(a, b)


def test_rotten_log_waits_for_a_member_that_has_it(pair):
    """Rule 5: nobody can be reached: the resource stops, says which log, where, how much is behind it; it goes on by
    itself when the line is back."""
    hosts = filled(pair)
    a, b = hosts
    kill(a)
    rewind(a)
    name = logs(a)[-1]
    rot(log_file(a))
    sound = log_file(b).read_bytes()
    hosts.net.cut("a", "b")
    a.marsd_start()
    a.wait(lambda: "no other member can give it back" in messages(a, "err-resource"), what="the text")
    text = messages(a, "err-resource")
    assert name in text and "bytes behind it were durable" in text and "b cannot be reached" in text, text
    assert a.devices() == []
    hosts.net.heal("a", "b")
    scenario.wait_device(a, "data")
    assert log_file(a, logs(a).index(name)).read_bytes().rstrip(b"\0") == sound.rstrip(b"\0")
    a.run(WRITE)
    scenario.wait_equal(a, b, "data")


def test_damaged_copies_of_a_secondary_are_fetched_again(pair):
    """Rule 5: bit rot, a lost header, and a lost file in the copies of b: each is fetched again, b ends equal."""
    hosts = filled(pair)
    a, b = hosts
    b.run("marsadm pause-replay data")
    b.wait(lambda: b.link("resource-data/actual-b/is-replaying") == "0", what="replay to pause")
    a.run(WRITE)
    a.run("marsadm log-rotate data")
    a.run(WRITE)
    b.wait(lambda: fetched(a, b), what="the logs to be fetched")
    damages = (lambda: rot(log_file(b, 0), 0.9), lambda: spoil_header(log_file(b, 1)), lambda: log_file(b, 0).unlink())
    for damage in damages:
        kill(b)
        before = messages(b, "inf-heal")
        damage()
        b.marsd_start()
        b.wait(lambda before=before: "came back from a" in messages(b, "inf-heal").replace(before or "?", ""),
               what="the log of b to be healed")
        b.wait(lambda: messages(b, "err-resource") == "OK", what="the end of the message")
    b.run("marsadm resume-replay data")
    scenario.wait_equal(a, b, "data")


def test_log_that_rots_under_a_serving_primary_is_healed(pair):
    """Rule 5: write-back comes upon a rotten log: it is healed from b in place, another worker takes over, and the
    application sees no error. (Write-back begins a second after the start; did the rot come before?)"""
    hosts = filled(pair)
    a, b = hosts
    name = logs(a)[0]
    for _ in range(5):
        kill(a)
        rewind(a)
        a.marsd_start()
        rot(log_file(a, logs(a).index(name)))
        a.run(WRITE)
        a.wait(lambda: scenario.settled(a, "data"), what="write-back")
        if "came back from b" in messages(a, "inf-heal"):
            break  # else the rot came too late
        log_file(a, logs(a).index(name)).write_bytes(log_file(b, logs(b).index(name)).read_bytes())
    assert "came back from b" in messages(a, "inf-heal")
    assert not messages(a, "err-device").replace("OK", "")
    a.run(WRITE)
    scenario.wait_equal(a, b, "data")


def test_older_state_fetches_the_tail_of_its_own_log(pair, tmp_path):
    """Rule 22: a primary is set back (tree, logs, data device) to an older state; b has everything that came later in
    logs of a, also a log that a does not know of: a fetches that before it begins the next one."""
    hosts = filled(pair)
    a, b = hosts
    a.run("marsadm log-rotate data")
    a.run(WRITE)
    scenario.wait_equal(a, b, "data")
    a.marsd_stop()
    old = Old(a, tmp_path)
    a.marsd_start()
    scenario.wait_device(a, "data")
    a.run(WRITE)
    a.run("marsadm log-rotate data")
    a.run(WRITE)
    scenario.wait_equal(a, b, "data")
    before, newest = contents(b), logs(a)[-1]
    kill(a)
    old.restore()
    assert contents(a) != before
    a.marsd_start()
    scenario.wait_device(a, "data")
    assert a.read_bytes("/dev/mars/data", 0, MIB) == before
    assert newest in logs(a) and logs(a)[-1] > newest
    a.run(WRITE)
    scenario.wait_equal(a, b, "data")
    never_split(a, b)


def test_older_state_that_nobody_can_complete_stops(pair, tmp_path):
    """Rule 22: b remembers positions of a that neither of them has: a says that it has lost memory and does not become
    primary; invalidate heals it once b is primary."""
    hosts = filled(pair)
    a, b = hosts
    a.marsd_stop()
    old = Old(a, tmp_path)
    a.marsd_start()
    scenario.wait_device(a, "data")
    scenario.wait_caught_up(a, b, "data")
    b.run("marsadm disconnect data")
    b.wait(lambda: b.link("resource-data/actual-b/is-copying") == "0", what="fetch to stop")
    a.run(WRITE)
    b.wait(lambda: scenario.published(a, "data") and scenario.Version.newest_of(b, "data", "a") ==
           scenario.Version.newest(a, "data"), what="b to hear of it")
    kill(a)
    old.restore()
    a.marsd_start()
    a.wait(lambda: "lost memory" in messages(a, "err-memory"), what="the text")
    assert a.devices() == [] and "data" in messages(a, "err-memory")
    force(b)
    b.run("marsadm connect data")
    b.run(WRITE)
    a.wait(lambda: a.link(HERE) == "b", what="the news")
    a.run("marsadm invalidate data")
    scenario.wait_equal(b, a, "data")
    scenario.hand_over(b, a, "data")
    a.run(WRITE)
    scenario.wait_equal(a, b, "data")


def test_damaged_log_after_another_took_over(pair):
    """The log of a primary that died is damaged, and b was forced: healed from b, a follows without a split brain; and
    with a file that is no log of this cluster, which nobody can heal, a is named and goes on by invalidate."""
    hosts = filled(pair)
    a, b = hosts
    kill(a)
    rewind(a)
    rot(log_file(a))
    force(b)
    b.run("marsadm connect data")
    b.run(WRITE)
    a.marsd_start()
    a.wait(lambda: "came back from b" in messages(a, "inf-heal"), what="the log to be healed")
    scenario.wait_equal(b, a, "data")
    never_split(a, b)
    kill(a)
    foreign = log_file(a)
    header = FileHeader.parse(foreign.read_bytes()[:4096])
    stranger = dataclasses.replace(header, uuid="another cluster")
    foreign.write_bytes(stranger.pack() + foreign.read_bytes()[4096:])
    a.marsd_start()
    a.wait(lambda: "belongs to cluster" in messages(a, "err-resource"), what="the text")
    a.run("marsadm invalidate data")
    b.run(WRITE)
    scenario.wait_equal(b, a, "data")
