"""A sector of a log that the disk does not give any more: named with its place, healed from a member that has it as bit
rot is (rule 5), and nothing is acknowledged behind it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from damage import WRITE, contents, fetched, kill, log_file, logs, messages, rewind

from tests.fault import iolayer, ways
from tests.fix_volume import read_groups
from tools import scenario
from tools.hosts import MIB, Host

TOP = Path(__file__).resolve().parents[2]

@pytest.mark.parametrize("seed", range(3))
def test_any_sector_of_a_log(tmp_path, seed):
    """Rules 3, 5: wherever it is, recovery names it, sound up to the group before; the log is healed and is as it was
    before, byte for byte."""
    rules = iolayer.Rules(tmp_path / "rules")
    env = iolayer.environment(iolayer.build(), rules=rules.path)
    done = subprocess.run([sys.executable, "-m", "tests.fault.bad_sectors", str(tmp_path), str(seed)], cwd=TOP,
                          env={**os.environ, **env}, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    print(done.stdout)
    assert rules.hits()


def bad_sector(host: Host, path: Path, share: float = 0.5) -> int:
    """Byte of a sector, about at this share of what the log holds, that cannot be read from now on."""
    groups = read_groups(path)
    at = 4096 + groups[int(len(groups) * share)].pos + 512
    host.rules.set(f"read *{path.name} sector={at} EIO")
    return at


def filled(faulty_pair, names: str = "ab"):
    """Hosts with equal contents, out of one log of a with some hundred groups."""
    hosts = faulty_pair(names, data_size=32 * MIB)
    hosts["a"].run("sh -c 'for n in 1 2 3 4; do " + WRITE + "; done'")
    for host in list(hosts)[1:]:
        scenario.wait_equal(hosts["a"], host, "data")
    return hosts


@pytest.mark.cluster
@pytest.mark.root
def test_own_log_at_the_start(faulty_pair):
    """Rule 5: nobody can give it back: the resource stops and says where; it goes on by itself as soon as b can."""
    a, b = hosts = filled(faulty_pair)
    before = contents(a)
    kill(a)
    rewind(a)
    log = log_file(a)
    sound, place = log.read_bytes(), bad_sector(a, log)
    hosts.net.cut("a", "b")
    a.marsd_start()
    ways.told(a, f"{log.name} cannot be read at byte {place // 4096 * 4096}")
    assert "no other member can give it back" in ways.messages(a) and a.devices() == []
    hosts.net.heal("a", "b")
    scenario.wait_device(a, "data")
    assert "came back from b" in messages(a, "inf-heal") and a.rules.hits()
    assert log.read_bytes().rstrip(b"\0") == sound.rstrip(b"\0") and contents(a) == before
    a.run(WRITE)
    scenario.wait_equal(a, b, "data")


@pytest.mark.cluster
@pytest.mark.root
def test_log_that_only_others_need(faulty_pair):
    """Rule 5: a serves its log to c and comes upon the sector: c is told, a gets it back from b while it serves on."""
    a, b, c = filled(faulty_pair, "abc")
    c.run("marsadm disconnect data")
    c.wait(lambda: c.link("resource-data/actual-c/is-copying") == "0", what="fetch to stop")
    with ways.fresh_writer(a, a.folder, "ledger", blocks=256) as writer:
        writer.go_on(300)
        with ways.paused(writer):
            scenario.wait_equal(a, b, "data")
            bad_sector(a, log_file(a), 0.95)
            c.run("marsadm connect data")
            a.wait(lambda: "came back from b" in messages(a, "inf-heal"), 60, "the log to be healed")
        writer.go_on(100)
        assert writer.stop() == 0
    assert a.rules.hits() and not list(a.path("/mars/resource-data").glob(".damaged-*"))
    scenario.wait_equal(a, c, "data")
    for host in (a, b, c):
        ways.quiet(host)
    assert ways.nothing_lost(a, writer) >= 400


@pytest.mark.cluster
@pytest.mark.root
def test_write_back_cannot_read_the_log(faulty_pair):
    """Rules 1, 5: named; from then on no write and no flush is acknowledged. When the log is given back, a goes on by
    itself with all that was acknowledged."""
    a, b = faulty_pair()
    a.run(["sh", "-c", "head -c 60M /dev/urandom > /run/random"])
    a.run(["touch", "/run/slow"])
    slow = f"write {a.data_device} if=/run/slow delay=1000"
    a.rules.set(slow)
    a.run(["dd", "if=/run/random", f"of={ways.DEVICE}", "bs=1M", "oflag=direct", "conv=fsync", "status=none"])
    a.wait(lambda: fetched(a, b), 60, "b to have the log")
    assert a.status()["data"]["state"]["writeback_rest"] > 40 * MIB, "write-back was too fast: this proves nothing"
    a.rules.set(slow, f"read *{logs(a)[-1]} EIO")
    a.run(["rm", "/run/slow"])
    ways.told(a, "cannot be read")
    assert "reading the log back failed" in messages(a, "err-device")
    assert not ways.flushed_write(a, 61 * MIB) and not ways.flushed_write(a, 0)
    a.rules.set()
    a.wait(lambda: "came back from b" in messages(a, "inf-heal"), 60, "the log to be healed")
    a.wait(lambda: ways.flushed_write(a, 62 * MIB, "z"), 60, "another worker that serves")
    assert a.read_bytes(ways.DEVICE, 0, 60 * MIB) == a.path("/run/random").read_bytes()
    scenario.wait_equal(a, b, "data")
    for host in (a, b):
        ways.quiet(host)


@pytest.mark.cluster
@pytest.mark.root
def test_member_that_stalls_while_it_heals(faulty_pair):
    """Rule 5: b, which is asked first, gives a part and then nothing more, though its line is alive: it is given up
    after network_io_timeout, and c heals the log."""
    a, b, c = filled(faulty_pair, "abc")
    a.run("sh -c 'echo 4 > /run/mars/sys/network_io_timeout'")
    kill(a)
    rewind(a)
    log = log_file(a)
    place = bad_sector(a, log, 0.3) // 4096 * 4096
    # far behind, but in the first piece that b reads for a
    b.rules.set(f"read *{log.name} sector={place + 256 * 1024} delay=3600000")
    a.marsd_start()
    a.wait(lambda: "came back from c" in messages(a, "inf-heal"), 90, "c to heal the log")
    log_of_a = a.run("cat /run/mars/marsd.log").stdout
    assert f"fetching /mars/resource-data/{log.name} from b failed" in log_of_a, log_of_a[-3000:]
    scenario.wait_device(a, "data")
    a.run(WRITE)
    scenario.wait_equal(a, c, "data")


def test_what_the_page_cache_still_knows(tmp_path):
    """Rule 5: a sector that only reads past the page cache find bad is written anew, although its bytes look right."""
    env = iolayer.environment(iolayer.build())
    done = subprocess.run([sys.executable, "-m", "tests.fault.bad_sectors", str(tmp_path), "cached"], cwd=TOP,
                          env={**os.environ, **env}, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
