"""Logs that are not what their names say: stale groups of recycled space behind the end, and logs of another cluster
under the right name. Nothing of them is replayed or served; what is wrong is named."""

import re
import shutil

import pytest
import write_ledger

from tests.fault import ways
from tests.fix_volume import flip, read_groups
from tools import scenario
from tools.hosts import MIB, Host

pytestmark = [pytest.mark.cluster, pytest.mark.root]


def newest_log(host: Host) -> str:
    """Path of the log with the highest number, inside the host."""
    names = sorted(entry.name for entry in host.path("/mars/resource-data").iterdir() if entry.name.startswith("log-"))
    return f"/mars/resource-data/{names[-1]}"


def die(host: Host) -> None:
    """Both processes, at once."""
    host.kill9_keeper()
    host.wait(lambda: host.pids() == {}, 30, "the end of both processes")


def single_blocks(host: Host, seed: int, count: int) -> write_ledger.Ledger:
    """Writes of one block each, one after the other: every group of the log is two blocks long."""
    notes = host.folder / f"notes-{seed}"
    words = [ways.DEVICE, str(notes), "256", "1", str(seed), str(count)]
    host.run(["python3", write_ledger.__file__, *words])
    return write_ledger.ledgers(notes)[0]


def test_stale_groups_behind_the_end(faulty_pair):
    """Rule 4: the newest log has, behind its end, just where the next group would begin, valid groups of an older log,
    as recycled space has: recovery stops there; the primary serves what was written, nothing older, and goes on."""
    a, b = faulty_pair()
    single_blocks(a, 1, 2000)
    old = a.path(newest_log(a))
    a.run("marsadm log-rotate data")
    for half in (0, MIB // 2):                          # two groups of one block: the borders are even again
        a.run(["blkdiscard", "-z", "-f", "-o", str(half), "-l", str(MIB // 2), ways.DEVICE])
    ledger = single_blocks(a, 2, 300)
    scenario.wait_equal(a, b, "data")
    die(a)
    new = a.path(newest_log(a))
    stale, groups = read_groups(old), read_groups(new)
    end = groups[-1].end
    following = [group for group in stale if group.pos >= end]
    assert new.name != old.name and following and following[0].pos == end, "no group of the old log fits there"
    with open(old, "rb") as source, open(new, "r+b") as target:
        for file in (source, target):
            file.seek(4096 + end)
        shutil.copyfileobj(source, target)
    a.marsd_start()
    scenario.wait_device(a, "data")
    data = a.read_bytes(ways.DEVICE, 0, MIB)
    assert write_ledger.check_nothing_lost(data, [ledger]) == 300
    assert write_ledger.check_prefix(data, ledger) == 300
    assert ways.messages(a) == "" or all(text.startswith("OK") for text in ways.messages(a).splitlines())
    single_blocks(a, 3, 50)
    scenario.wait_equal(a, b, "data")


FLIPS = {"the log's header": lambda group: 100 - 4096, "a group's header": lambda group: group.pos + 40,
         "a group's record table": lambda group: group.pos + 200, "a payload": lambda group: group.pos + 4096 + 77}


def test_bit_flips_in_the_own_log(faulty_pair):
    """Rule 5: any bit of a log that recovery needs, below what was known durable, with nobody else who has the log: the
    resource does not start, the log is named, nothing is changed; with the bit back, all is there."""
    a = faulty_pair("a")["a"]
    a.rules.set(f"write {a.data_device} EIO")
    ledger = single_blocks(a, 1, 400)
    ways.told(a, "write-back stopped")
    a.wait(lambda: scenario.published(a, "data"), what="the end of the log in the tree")
    die(a)
    a.rules.set()
    log, at = a.path(newest_log(a)), scenario.Replay.of(a, "data")
    groups = [group for group in read_groups(log) if group.pos >= at.pos]
    assert len(groups) > 200, "recovery does not need the log"
    for what, place in FLIPS.items():
        before = log.read_bytes()
        flip(log, 4096 + place(groups[len(groups) // 2]), 0x10)
        damaged = log.read_bytes()
        a.marsd_start()
        ways.told(a, log.name)
        assert re.search("damaged|corrupt|wrong", ways.messages(a)), f"{what}: {ways.messages(a)}"
        assert a.devices() == [] and scenario.Replay.of(a, "data") == at, what
        assert log.read_bytes() == damaged, f"{what}: the only copy was changed"
        a.run("marsd stop")
        log.write_bytes(before)
    a.marsd_start()
    scenario.wait_device(a, "data")
    data = a.read_bytes(ways.DEVICE, 0, MIB)
    assert write_ledger.check_nothing_lost(data, [ledger]) == 400 == write_ledger.check_prefix(data, ledger)


def foreign_log(cluster, name: str, target) -> None:
    """The log of a host of the same name in another cluster, with a resource of the same name, is put at `target`."""
    stranger = cluster(name, data_size=64 * MIB)[name]
    scenario.form_cluster(stranger.cluster)
    scenario.create_resource(stranger, "data")
    single_blocks(stranger, 9, 200)
    stranger.run("marsd stop")
    shutil.copyfile(stranger.path(newest_log(stranger)), target)


def test_log_of_another_cluster(faulty_pair, cluster, tmp_path):
    """Rule 6: under the right name on the secondary it is named and not replayed, on the primary the device does not
    come; with the right file in its place all is there."""
    a, b = faulty_pair()
    foreign_log(cluster, "a", tmp_path / "foreign")
    b.run("marsadm pause-replay data")
    b.run("marsadm wait-resource data is-replay-off --timeout=30")
    ledger = single_blocks(a, 1, 500)
    for host in (b, a):
        die(host)
        log = host.path(newest_log(host))
        shutil.copyfile(log, tmp_path / f"right-{host.name}")
        shutil.copyfile(tmp_path / "foreign", log)
        before = scenario.Replay.of(host, "data")
        host.marsd_start()
        if host is b:
            b.run("marsadm resume-replay data")
        ways.told(host, "cluster")
        assert scenario.Replay.of(host, "data") == before and host.devices() == []
        host.run("marsd stop")
        shutil.copyfile(tmp_path / f"right-{host.name}", log)
        host.marsd_start()
    scenario.wait_device(a, "data")
    assert write_ledger.check_nothing_lost(a.read_bytes(ways.DEVICE, 0, MIB), [ledger]) == 500
    scenario.wait_equal(a, b, "data")
