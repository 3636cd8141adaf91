"""Errors of the log and of the data device of a primary, made below a real marsd: nothing is acknowledged that is not
so, the error is named, and after the repair everything acknowledged is there."""

import pytest

from tests.fault import ways
from tools import scenario
from tools.hosts import MIB

pytestmark = [pytest.mark.cluster, pytest.mark.root]


def fail_the_log(a, top, name: str, rule: str, words: str) -> None:
    """A fault of the log under two writers and two flushes in flight; then repair, restart, check."""
    with ways.fresh_writer(a, top, name) as writer:
        writer.go_on(200)
        a.rules.set(rule)
        flushes = [ways.start_flushed_write(a, 32 * MIB + i * MIB) for i in range(2)]
        ways.until_failed(writer)
    assert [flush.wait(60) for flush in flushes] == [1, 1], "a flush of a log that fails must be an error"
    assert a.rules.hits(), "the layer made no fault: this proves nothing"
    a.rules.set()
    assert not ways.flushed_write(a, 48 * MIB), "an error of the log was forgotten (rule 1)"
    ways.told(a, words)
    ways.restart(a)
    assert ways.nothing_lost(a, writer) >= 200
    assert ways.flushed_write(a, 48 * MIB)
    ways.quiet(a)


def test_log_fails(faulty_pair, tmp_path):
    """Rule 1: after a failed fdatasync or write of the log no write and no flush is acknowledged any more, those in
    flight and those after the disk is well again included; restarted, all that was acknowledged before is there."""
    a, b = faulty_pair()
    fail_the_log(a, tmp_path, "sync", f"fdatasync {ways.LOG} delay=300 EIO", "syncing the log failed")
    fail_the_log(a, tmp_path, "write", f"write {ways.LOG} from=5 EIO", "writing the log failed")
    scenario.wait_equal(a, b, "data")


@pytest.mark.parametrize("operation", ["write", "fdatasync,fsync"])
def test_data_device_fails(faulty_pair, tmp_path, operation):
    """Rules 2, 12: write-back ends, named, and its position stays; reads, writes and flushes go on, the secondary
    gets them; after repair and restart nothing is lost."""
    a, b = faulty_pair()
    with ways.fresh_writer(a, tmp_path, "ledger") as writer:
        writer.go_on(200)
        a.rules.set(f"{operation} {a.data_device} EIO")
        writer.go_on(200)
        with ways.paused(writer):
            ways.told(a, "write-back stopped")
        stuck = scenario.Replay.of(a, "data")
        writer.go_on(500)
        assert ways.flushed_write(a, 32 * MIB)
        assert writer.stop() == 0
    assert a.rules.hits()
    assert scenario.Replay.of(a, "data") == stuck, "a position moved although the disk failed"
    assert ways.nothing_lost(a, writer) >= 900
    scenario.wait_caught_up(a, b, "data")
    a.rules.set()
    ways.restart(a)
    assert ways.nothing_lost(a, writer) >= 900
    scenario.wait_equal(a, b, "data")
    ways.quiet(a)


def test_log_cannot_be_read_back(faulty_pair):
    """Data that are in the log only (write-back has stopped) cannot be read: EIO, never other bytes; all else goes on,
    and after the repair the same bytes come."""
    a, b = faulty_pair()
    a.rules.set(f"write {a.data_device} EIO")
    a.run(["sh", "-c", "head -c 48M /dev/urandom > /run/random"])
    a.run(["dd", "if=/run/random", f"of={ways.DEVICE}", "bs=1M", "oflag=direct", "status=none"])
    ways.told(a, "write-back stopped")
    wanted = a.path("/run/random").read_bytes()
    a.rules.set(f"write {a.data_device} EIO", f"read {ways.LOG} EIO")
    with pytest.raises(OSError, match="Errno 5"):
        a.read_bytes(ways.DEVICE, 0, MIB)
    assert a.read_bytes(ways.DEVICE, 47 * MIB, MIB) == wanted[47 * MIB:], "what is in memory needs no log"
    assert ways.flushed_write(a, 50 * MIB)
    a.rules.set(f"write {a.data_device} EIO")
    assert a.read_bytes(ways.DEVICE, 0, 48 * MIB) == wanted
    a.rules.set()
    ways.restart(a)
    assert a.read_bytes(ways.DEVICE, 0, 48 * MIB) == wanted
    scenario.wait_equal(a, b, "data")


def test_log_is_slow(faulty_pair):
    """While an fdatasync of the log takes seconds, reads and writes without a flush go on, and so do heartbeats and the
    exchange; a flush waits for it and is then acknowledged."""
    a, b = faulty_pair()
    assert ways.flushed_write(a, MIB, "y")
    a.wait(lambda: scenario.settled(a, "data"), what="write-back")
    a.rules.set("fdatasync,fsync,syncfs /mars* delay=2500")
    a.run(["dd", "if=/dev/zero", f"of={ways.DEVICE}", "bs=4k", "count=1", "oflag=direct", "status=none"])
    started = a.status()["data"]["state"]["durable"]
    alive = ways.stamp(b, "actual-a/alive")
    for number in range(10):
        assert a.read_bytes(ways.DEVICE, MIB, 4096) == b"y" * 4096
        a.run(["dd", "if=/dev/zero", f"of={ways.DEVICE}", "bs=4k", "count=1", f"seek={number}", "oflag=direct",
               "status=none"])
    a.wait(lambda: ways.stamp(b, "actual-a/alive") > alive, 30, "a heartbeat")
    assert a.status()["data"]["state"]["durable"] == started, "the sync was over too soon: this proves nothing"
    assert ways.flushed_write(a, 2 * MIB)
    a.rules.set()
    scenario.wait_equal(a, b, "data")
