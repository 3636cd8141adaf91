"""The line between the hosts is cut, heals, is slow: the application never notices, the secondary is a prefix."""

import write_ledger
from running_writer import RunningWriter

from tools import loops, scenario

BLOCKS = 1024


def test_cut_and_heal(pair, tmp_path):
    """While the line is cut the writer goes on; the secondary is a state that really was; healed, it catches up."""
    hosts = pair()
    a, b = hosts
    scenario.wait_caught_up(a, b, "data")
    with RunningWriter(a, "/dev/mars/data", tmp_path / "ledger", BLOCKS) as writer:
        writer.go_on(300)
        hosts.net.cut("a", "b")
        writer.go_on(1000)
        b.run("marsadm pause-replay data")
        b.wait(lambda: b.link("resource-data/actual-b/is-replaying") == "0", 60, "replay to pause")
        book = writer.ledgers()[0]
        seen = write_ledger.check_prefix(b.read_bytes(b.data_device, 0, BLOCKS * write_ledger.BLOCK), book)
        assert 0 < seen < book.acknowledged, "the secondary lags, and is no mixture (rule 12)"
        b.run("marsadm resume-replay data")
        hosts.net.heal("a", "b")
        writer.go_on(300)
        assert writer.stop() == 0, "a cut line is no error of the application"
    scenario.wait_equal(a, b, "data")
    write_ledger.check_nothing_lost(b.read_bytes(b.data_device, 0, BLOCKS * write_ledger.BLOCK), writer.ledgers())


def test_cut_during_the_full_sync(pair, tmp_path):
    """The line breaks three times while sync and writes run: sync resumes and ends, devices are equal."""
    hosts = pair(data_size=512 << 20)
    a, b = hosts
    with RunningWriter(a, "/dev/mars/data", tmp_path / "ledger", BLOCKS) as writer:
        for _ in range(3):
            hosts.net.cut("a", "b")
            writer.go_on(100)
            hosts.net.heal("a", "b")
            writer.go_on(100)
        assert writer.stop() == 0
    scenario.wait_equal(a, b, "data")
    assert loops.data_bytes(b.data.file) > 0


def test_slow_line_does_not_slow_the_writer(pair, tmp_path):
    """At 2 Mbit/s the log grows faster than it travels: the writer goes on, the rest arrives later."""
    hosts = pair()
    a, b = hosts
    scenario.wait_caught_up(a, b, "data")
    hosts.net.shape("b", "2mbit")
    with RunningWriter(a, "/dev/mars/data", tmp_path / "ledger", BLOCKS, threads=4) as writer:
        writer.go_on(2000)
        assert writer.stop() == 0
    a.wait(lambda: scenario.published(a, "data"), what="a to say how far it is")
    replayed, known = scenario.backlog(a, b, "data")
    assert known > replayed, "8 MB cannot have passed 2 Mbit/s already"
    hosts.net.unshape("b")
    scenario.wait_equal(a, b, "data")
    write_ledger.check_nothing_lost(b.read_bytes(b.data_device, 0, BLOCKS * write_ledger.BLOCK), writer.ledgers())


def test_tree_is_exchanged_again_after_a_cut(pair):
    """Wishes written on both sides of a cut are on both hosts after the heal."""
    hosts = pair()
    a, b = hosts
    hosts.net.cut("a", "b")
    b.run("marsadm pause-sync data")
    a.run("marsadm pause-replay data")
    assert a.link("resource-data/todo-b/sync") == "1" and b.link("resource-data/todo-a/allow-replay") == "1"
    hosts.net.heal("a", "b")
    a.wait(lambda: a.link("resource-data/todo-b/sync") == "0", 60, "the wish of b")
    b.wait(lambda: b.link("resource-data/todo-a/allow-replay") == "0", 60, "the wish of a")
