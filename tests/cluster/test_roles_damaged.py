"""`primary --force` over logs that do not hold (facts 5.4, rules 4, 5, 12, 23): it takes over up to the last valid
group, says what is lost, keeps what lies behind; without force nothing is given up."""

import os

from damage import kill, log_file, logs, messages, rot, spoil_header
from test_roles_operations import follow

from tools import scenario
from tools.hosts import MIB, Host

BLOCK = 64 << 10


def contents(host: Host, device: str = "") -> bytes:
    """The first bytes of the data device, or of another one."""
    return host.read_bytes(device or host.data_device, 0, 2 * MIB)


def write(host: Host, seek: int) -> None:
    """Eight blocks of new data at this place, durable."""
    host.run(f"dd if=/dev/urandom of=/dev/mars/data bs=64k seek={seek} count=8 conv=fsync,notrunc status=none")


def three_logs(old: Host, new: Host) -> bytes:
    """`old` writes at 0, 8 and 16, each in a log of its own; `new` has all three logs and has replayed nothing of them.
    What its disk held before."""
    new.run("marsadm pause-replay data")
    new.wait(lambda: new.link(f"resource-data/actual-{new.name}/is-replaying") == "0", what="replay to pause")
    before = contents(new)
    for seek in (0, 8, 16):
        old.run("marsadm log-rotate data")
        write(old, seek)
    old.wait(lambda: scenario.settled(old, "data"), what="write-back")
    newest = scenario.Version.newest(old, "data")
    new.wait(lambda: scenario.Version.newest(new, "data") == newest, what="the logs to be fetched")
    return before


def stopped(host: Host, text: str) -> None:
    """marsd starts upon the damage: named, nothing is given up, and `primary` alone does not help."""
    host.marsd_start()
    host.wait(lambda: "no other member can give it back" in messages(host, "err-resource"), what="the text")
    assert text in messages(host, "err-resource")
    host.wait(lambda: "primary --force would give up" in messages(host, "inf-log-sound"), what="what force would do")
    assert text in host.run("mars-status", check=False).stdout
    before = logs(host)
    assert host.run("marsadm primary data --timeout=2", check=False).returncode in (3, 5)
    assert logs(host) == before and host.devices() == []


def refused(host: Host) -> str:
    """The dead host may still be back in a moment, with more (rule 23): what has to be given up."""
    host.run("marsadm disconnect data")
    sound = ",".join(host.link(f"resource-data/actual-{host.name}/sound").split(",")[:2])
    done = host.run("marsadm primary --force data", check=False)
    assert done.returncode == 3 and f"--accept-position={sound}" in done.stderr, done
    return host.run(f"marsadm primary --force --accept-position={sound} data", timeout=60).stdout


def told(host: Host, said: str) -> None:
    """What is lost is said by the command, in the tree, in mars-status."""
    scenario.wait_device(host, "data")
    assert "bytes of log behind it, written since 20" in said, said
    assert "are lost here" in messages(host, "wrn-log-lost")
    assert "are lost here" in host.run("mars-status", check=False).stdout


def kept(host: Host) -> list[str]:
    """Names of the logs that are kept aside."""
    return sorted({path.name for path in host.path("/mars").glob("local-*/aside-data/*/log-*")})


def back(old: Host, new: Host) -> None:
    """The old primary comes back with all that was lost: a split brain on both, and the documented way out."""
    write(new, 24)
    new.run("marsadm connect data")
    old.marsd_start()
    for host in (old, new):
        host.wait(lambda host=host: "SPLIT BRAIN" in host.run("marsadm split-brain data").stdout, what="the verdict")
    seen = {host.run("marsadm split-brain data").stdout.splitlines()[1] for host in (old, new)}
    assert len(seen) == 1, seen
    old.run("marsadm invalidate data")
    new.run("marsadm resume-replay data")
    scenario.wait_equal(new, old, "data")
    for host in (old, new):
        host.wait(lambda host=host: "SPLIT BRAIN" not in host.run("mars-status", check=False).stdout, what="its end")
    for host in (old, new):
        host.run("marsadm log-purge-all data")
    new.wait(lambda: messages(new, "wrn-log-lost") == "OK" and not kept(new), what="nothing to be left")


def test_force_takes_over_what_holds(pair) -> None:
    """A log file is missing in the middle, on b: its disk gets what is before, by the commands of the page. Then a bit
    turns over in the middle, on a, and the dead host may have more."""
    hosts = pair(data_size=32 * MIB)
    a, b = hosts
    write(a, 0)
    scenario.wait_equal(a, b, "data")
    before = three_logs(a, b)
    after = contents(a)
    a.marsd_stop()
    kill(b)
    name = logs(b)[-2]
    log_file(b, -2).unlink()
    stopped(b, name)
    told(b, follow(hosts, "damaged-log")[1])
    on_device = contents(b, "/dev/mars/data")
    assert on_device[:8 * BLOCK] == after[:8 * BLOCK] != before[:8 * BLOCK], "the first log holds"
    assert on_device[8 * BLOCK:] == before[8 * BLOCK:], "and nothing of the others is there"
    assert len(kept(b)) == 1
    restarted(b)
    back(a, b)

    three_logs(b, a)
    after, name = contents(b), logs(a)[-2]
    kill(b)
    kill(a)
    rot(log_file(a, -2))
    stopped(a, name)
    told(a, refused(a))
    on_device = contents(a, "/dev/mars/data")
    assert on_device[:8 * BLOCK] == after[:8 * BLOCK] and on_device[8 * BLOCK:] != after[8 * BLOCK:]
    assert len(kept(a)) == 2
    back(b, a)


def restarted(host: Host) -> None:
    """Nothing is to be forced twice."""
    write(host, 25)
    host.run("marsadm connect data")
    kill(host)
    host.marsd_start()
    scenario.wait_device(host, "data")


def test_primary_whose_own_log_is_damaged(pair) -> None:
    """The designated primary itself, after a crash, while the other host is dead: the header of its newest log is gone.
    Force goes on behind it, a restart needs no second one, and the other host, which has it all, gives its branch
    up."""
    a, b = pair(data_size=32 * MIB)
    a.path("/etc/mars/marsd.toml").write_text("[tunables]\nstart_patience_s = 1\n")
    for _ in range(2):
        older = a.data.file.read_bytes()
        a.run("marsadm log-rotate data")
        write(a, 0)
        scenario.wait_equal(a, b, "data")
    name = logs(a)[-1]
    kill(b)
    kill(a)
    rewind(a, name, older)
    spoil_header(log_file(a, -1))
    stopped(a, name)
    told(a, refused(a))
    restarted(a)
    b.marsd_start()
    b.wait(lambda: "SPLIT BRAIN" in b.run("mars-status", check=False).stdout, what="the verdict")
    b.run("marsadm invalidate data")
    scenario.wait_equal(a, b, "data")


def rewind(host: Host, name: str, disk: bytes) -> None:
    """The disk of a host without marsd, and its position, go back to the beginning of this log; its window was not
    begun."""
    with open(host.data_device, "r+b") as device:
        device.write(disk)
        os.fsync(device.fileno())
    link = host.path(f"/mars/resource-data/replay-{host.name}")
    link.unlink()
    link.symlink_to(f"{name},0,0")
    for hint in host.path("/mars").glob("local-*/position-data"):
        hint.unlink()


def test_half_a_disk_that_was_taken_stays_primary(pair) -> None:
    """The primary is lost in the middle of the first sync: force alone refuses, --ignore-sync takes what there is, says
    that the others have to be invalidated, and a restart finds it again."""
    hosts = pair(data_size=64 * MIB)
    a, b = hosts
    b.run(["sh", "-c", "echo 0 > /run/mars/sys/do_fast_fullsync"])
    a.run("dd if=/dev/urandom of=/dev/mars/data bs=1M count=32 oflag=direct status=none")
    scenario.wait_equal(a, b, "data")
    hosts.net.shape("b", "20mbit")
    b.run("marsadm invalidate data")
    b.wait(lambda: scenario.synced(b, "data") > 0, what="progress of the sync")
    a.marsd_stop()
    b.run("marsadm disconnect data")
    assert b.run("marsadm primary --force data", check=False).returncode == 3
    done = b.run("marsadm primary --force --ignore-sync data", timeout=60)
    assert "not a whole state" in done.stderr and "marsadm invalidate data" in done.stderr, done
    scenario.wait_device(b, "data")
    assert not scenario.fully_synced(b, "data"), "too fast to prove anything"
    hosts.net.unshape("b")
    b.path("/etc/mars/marsd.toml").write_text("[tunables]\nstart_patience_s = 1\n")
    restarted(b)
    a.marsd_start()
    a.wait(lambda: a.link("resource-data/primary") == "b", what="a to hear of it")
    a.run("marsadm invalidate data")
    scenario.wait_equal(b, a, "data")
