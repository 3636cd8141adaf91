"""Lost primaries and parted histories: who follows, who is told of a split brain, what heals it."""

import os

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


def test_invalidate_after_a_short_divergence_compares_what_was_written_since(pair):
    """Rules 13 to 15: outside the regions that a wrote since the histories parted nothing is compared, in them all; so
    a stray byte elsewhere is only found by a second `invalidate`. Killed before it is done, it is consistent in the
    end all the same."""
    hosts = pair(data_size=128 * MIB)
    a, b = hosts
    a.run(WRITE)
    scenario.wait_equal(a, b, "data")
    for keep in (b, a):                             # b is forced each time, and kept; then a, which went on in its log
        part(hosts, a, b)
        loser, winner = (a, b) if keep is b else (b, a)
        if keep is a:
            force(a)
            b.wait(lambda: b.devices() == [], what="b to step down")
        winner.run("marsadm connect data")
        message = f"resource-data/actual-{loser.name}/msg-err-splitbrain-detected"
        loser.wait(lambda loser=loser, message=message: loser.link(message)[:2] not in ("", "OK"),
                   what="the replica to ask for the log again")
        with open(loser.data.file, "r+b") as file:
            os.pwrite(file.fileno(), b"stray", 100 * MIB)
        said = loser.run("marsadm invalidate data").stdout
        assert "parted at log-" in said and "only the" in said, said
        if keep is a:
            loser.kill9_worker()
        loser.wait(lambda loser=loser: consistent(loser), what="the replica to be consistent")
        scenario.wait_caught_up(winner, loser, "data")
        loser.wait(lambda: differs(a, b) == {100 * MIB // 4096}, what="the stray byte alone to differ")
        loser.wait(lambda loser=loser: "inf-sync-start" not in loser.run("mars-status", check=False).stdout,
                   what="the end of the message")
        said = loser.run("marsadm invalidate data").stdout
        assert "parted" not in said
        scenario.wait_equal(winner, loser, "data")
        assert not split(loser) and not split(winner)
        if keep is b:
            scenario.hand_over(b, a, "data")


def part(hosts, old, new) -> None:
    """Both write while they are cut off from each other: at places of their own and at common ones, over logs."""
    hosts.net.cut(old.name, new.name)
    writes(old, 0, 40, 0)
    old.wait(lambda: scenario.settled(old, "data"), what="write-back on the old primary")
    force(new)
    writes(new, 8, 200)
    hosts.net.heal(old.name, new.name)
    old.wait(lambda: old.devices() == [] and old.link("resource-data/primary") == new.name,
             what="the old primary to step down")
    for host in (old, new):
        host.wait(lambda host=host: split(host), 30, "the message")


def writes(host, *seeks: int) -> None:
    """One write in a log."""
    for turn, seek in enumerate(seeks):
        if turn:
            host.run("marsadm log-rotate data")
        host.run(f"{WRITE} seek={seek}")


def consistent(host) -> bool:
    """As the host says it."""
    return host.run("marsadm view-is-consistent data", check=False).stdout.strip() == "1"


def differs(a, b) -> set[int]:
    """Numbers of the blocks that differ."""
    with open(a.data.file, "rb") as one, open(b.data.file, "rb") as other:
        blocks = enumerate(zip(iter(lambda: one.read(4096), b""), iter(lambda: other.read(4096), b""), strict=True))
        return {number for number, (x, y) in blocks if x != y}


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
