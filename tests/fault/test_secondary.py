"""Errors of the disks of a secondary: what needs the disk stops, says why, believes nothing that is not so; the log is
still fetched. The primary does not notice. After the repair all goes on where it stood."""

import pytest

from tests.fault import ways
from tools import scenario

pytestmark = [pytest.mark.cluster, pytest.mark.root]


def stop_replay(a, b, writer, rule: str) -> None:
    """A fault of the data device under replay, while the log is still fetched; then detach and attach."""
    b.rules.set(rule)
    writer.go_on(100)
    ways.told(b, "replay stopped")
    stuck, fetched = scenario.Replay.of(b, "data"), b.status()["data"]["fetched"]
    writer.go_on(300)
    b.wait(lambda: b.status()["data"]["fetched"] != fetched, 30, "the fetch to go on beside it")
    now = scenario.Replay.of(b, "data")
    assert (now.nr, now.pos) == (stuck.nr, stuck.pos), "a position moved although the disk failed"
    assert ways.messages(a) == ""
    b.rules.set()
    b.run("marsadm detach data")
    b.run("marsadm attach data")
    b.wait(lambda: scenario.Replay.of(b, "data") != now, 30, "replay to go on")
    ways.quiet(b)


def test_disks_of_the_secondary_fail(faulty_pair, tmp_path):
    """Rules 2, 12: write and fsync errors of its data device stop replay, those of its log copy the fetch, named;
    neither position moves; the primary's writers see nothing; in the end both are equal."""
    a, b = faulty_pair()
    with ways.fresh_writer(a, tmp_path, "ledger") as writer:
        writer.go_on(100)
        stop_replay(a, b, writer, f"write {b.data_device} EIO")
        stop_replay(a, b, writer, f"fdatasync,fsync {b.data_device} EIO")
        assert len(b.rules.hits()) >= 2
        b.rules.set(f"write {ways.LOG} EIO")
        writer.go_on(100)
        ways.told(b, "Input/output error")
        held = b.status()["data"]["fetched"]
        writer.go_on(200)
        assert b.status()["data"]["fetched"] == held, "fetched moved although the log copy failed"
        b.rules.set()
        b.wait(lambda: b.status()["data"]["fetched"] != held, 30, "the fetch to go on by itself")
        b.rules.set(f"fdatasync,fsync {ways.LOG} EIO")
        writer.go_on(100)
        ways.told(b, "sync")
        b.rules.set()
        held = ways.settled(b, lambda: scenario.Version.newest(b, "data"))
        writer.go_on(200)
        assert scenario.Version.newest(b, "data") == held, "an fsync error was forgotten"
        assert writer.stop() == 0
    ways.restart(b)
    scenario.wait_equal(a, b, "data")
    assert ways.nothing_lost(a, writer) > 800
