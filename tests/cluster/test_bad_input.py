"""Bad input: one clear text on stderr, the documented exit status, nothing changed in the tree (design.md 6).

Rows: (command, exit statuses that are right, pattern the error text must contain). `{spare}` is an unused device of 64
MiB, `{small}` one of 1 MiB, `{used}` the resource's own data device, `{mounted}` one with a mounted file system on it.
"""

import re

import pytest
import write_ledger
from running_writer import RunningWriter

from tools import scenario
from tools.hosts import MIB, Host

USAGE, REFUSED, UNKNOWN, DOWN, DAMAGED, AUTH, DENIED = 2, 3, 4, 6, 8, 9, 10

BEFORE_CLUSTER = [
    ("marsadm create-resource data {spare}", {REFUSED, DOWN}, "create-cluster|join-cluster|cluster"),
    ("marsadm create-token", {REFUSED, DOWN}, "cluster|marsd"),
    ("marsd start", {REFUSED}, "create-cluster|join-cluster"),
    ("marsadm join-cluster nosuchhost --token=x", {UNKNOWN, AUTH}, "nosuchhost|token"),
    ("marsadm join-cluster", {USAGE}, "(?i)usage|argument"),
    ("marsadm frobnicate", {USAGE}, "frobnicate"),
    ("marsd frobnicate", {USAGE}, "frobnicate"),
]
DAEMON_DOWN = [
    ("marsadm create-cluster", {REFUSED}, "(?i)already|exists"),
    ("marsadm create-resource data {spare}", {DOWN}, "marsd"),
    ("marsadm create-token", {DOWN}, "marsd"),
]
RUNNING = [
    ("marsadm", {USAGE}, "(?i)usage|command"),
    ("marsadm --nosuchoption view", {USAGE}, "nosuchoption"),
    ("marsadm primary", {USAGE}, "(?i)usage|resource"),
    ("marsadm primary nosuch", {UNKNOWN}, "nosuch"),
    ("marsadm pause-sync nosuch", {UNKNOWN}, "nosuch"),
    ("marsadm log-rotate nosuch", {UNKNOWN}, "nosuch"),
    ("marsadm invalidate nosuch", {UNKNOWN}, "nosuch"),
    ("marsadm create-cluster", {REFUSED}, "(?i)already|exists"),
    ("marsadm create-resource data {spare}", {REFUSED}, "data"),
    ("marsadm create-resource other /dev/nosuch", {REFUSED, UNKNOWN}, "/dev/nosuch"),
    ("marsadm create-resource other /etc/hostname", {REFUSED}, "block device"),
    ("marsadm create-resource other dev/loop0", {USAGE, REFUSED, UNKNOWN}, "dev/loop0"),
    ("marsadm create-resource other {mounted}", {REFUSED}, "(?i)mount|in use|busy|used"),
    ("marsadm create-resource other {used}", {REFUSED}, "(?i)in use|belongs to resource data"),
    ("marsadm create-resource ../up {spare}", {USAGE, REFUSED}, r"\.\./up"),
    ("marsadm create-resource a/b {spare}", {USAGE, REFUSED}, "a/b"),
    ("marsadm create-resource all {spare}", {USAGE, REFUSED}, "all|one resource"),
    ("marsadm join-resource nosuch {spare}", {UNKNOWN}, "nosuch"),
    ("marsadm join-resource data {spare}", {REFUSED}, "(?i)already|member|joined"),
    ("marsadm invalidate data", {REFUSED}, "primary"),
    ("marsadm leave-resource data", {REFUSED}, "(?i)primary|down"),
    ("marsadm primary --force data", {REFUSED, 0}, ""),
    ("marsadm --host=nosuchhost pause-sync data", {UNKNOWN, USAGE}, "--host"),
    ("hostname stranger; marsadm pause-sync data; s=$?; hostname a; exit $s", {REFUSED, UNKNOWN}, "stranger"),
]


def lasting(host: Host) -> dict[str, str]:
    """The part of the tree that no daemon refreshes by itself."""
    volatile = re.compile(r"(^|/)(actual-|cache-|local-|\.|log-|replay-|version-|syncstatus-|syncpos-)")
    return {name: value for name, value in host.tree().items() if not volatile.search(name)}


def try_rows(host: Host, rows: list[tuple[str, set[int], str]], **words: str) -> list[str]:
    """Run all rows; what was wrong with them."""
    wrong = []
    for command, statuses, pattern in rows:
        before = lasting(host)
        done = host.run(["sh", "-c", command.format(**words)], check=False, timeout=60)
        problems = []
        if done.returncode not in statuses:
            problems.append(f"exit {done.returncode}, not one of {sorted(statuses)}")
        if done.returncode and not re.search(pattern, done.stderr):
            problems.append(f"stderr without {pattern!r}")
        if done.returncode and "Traceback" in done.stderr:
            problems.append("a traceback")
        if done.returncode and lasting(host) != before:
            problems.append(f"the tree changed: {set(lasting(host).items()) ^ set(before.items())}")
        wrong += [f"{command}: {problem}; stderr: {done.stderr!r}" for problem in problems]
    return wrong


def test_without_cluster_and_without_daemon(cluster):
    """Before create-cluster, and with a cluster but no daemon."""
    host = cluster("a", data_size=64 * MIB)["a"]
    assert try_rows(host, BEFORE_CLUSTER, spare=host.data_device) == []
    assert not host.link("uuid") and host.devices() == []
    host.run(f"marsadm create-cluster --ip={host.ip}")
    assert try_rows(host, DAEMON_DOWN, spare=host.data_device) == []


def test_running_cluster(pair):
    """Every row against a live primary; afterwards it still replicates."""
    hosts = pair(data_size=64 * MIB)
    a, b = hosts
    spare, mounted = a.add_device("spare.img", 64 * MIB), a.add_device("mounted.img", 64 * MIB)
    a.run(["mkfs.ext4", "-q", "-F", mounted.path])
    a.run(["mount", mounted.path, "/mnt"])
    wrong = try_rows(a, RUNNING, spare=spare.path, mounted=mounted.path, used=a.data_device)
    a.run("umount /mnt")
    assert not wrong, "\n".join(wrong)
    a.run(["blkdiscard", "-z", "-l", "1048576", "/dev/mars/data"])
    scenario.wait_equal(a, b, "data")


def test_mars_is_not_writable(cluster):
    """/mars is mounted read-only: neither the daemon starts nor a wish is written, and both say so."""
    host = cluster("a", data_size=16 * MIB)["a"]
    host.run(f"marsadm create-cluster --ip={host.ip}")
    host.run("mount -o remount,ro /mars")
    rows = [("marsd start", {DENIED}, "/mars is not writable"), ("marsadm create-token", {DENIED, DOWN}, "/mars|marsd"),
            ("marsadm create-resource data {spare}", {DENIED}, "/mars is not writable")]
    assert not (wrong := try_rows(host, rows, spare=host.data_device)), "\n".join(wrong)
    host.run("mount -o remount,rw /mars")
    host.marsd_start()


def test_device_too_small_on_the_second_host(cluster):
    """join-resource with a device smaller than the resource is refused and leaves no membership."""
    hosts = cluster("a", "b", data_size=64 * MIB)
    a, b = hosts
    scenario.form_cluster(hosts)
    scenario.create_resource(a, "data")
    b.wait(lambda: scenario.size(b, "data"), 60, "the resource on b")
    small = b.add_device("small.img", MIB)
    rows = [("marsadm join-resource data {small}", {REFUSED}, "(?i)small|size"),
            ("marsadm primary data", {REFUSED}, "(?i)member|join")]
    assert try_rows(b, rows, small=small.path) == []
    assert not b.link("resource-data/data-b")


def test_tokens(cluster):
    """A wrong, a changed and a used token are refused with exit 9, and the host stays outside."""
    hosts = cluster("a", "b", "c", data_size=64 * MIB)
    a, b, c = hosts
    a.run(f"marsadm create-cluster --ip={a.ip}")
    a.marsd_start()
    token = scenario.new_token(a)
    middle = len(token) // 2
    changed = token[:middle] + ("A" if token[middle] != "A" else "B") + token[middle + 1:]
    join = "marsadm join-cluster a --ip={0} --ip-a={1} --token={2}"
    rows = [(join.format(c.ip, a.ip, bad), {AUTH}, "(?i)token|certificate") for bad in ("garbage", changed)]
    assert try_rows(c, rows) == []
    good = scenario.new_token(a)
    b.run(join.format(b.ip, a.ip, good))
    assert try_rows(c, [(join.format(c.ip, a.ip, good), {AUTH}, "(?i)token")]) == []
    assert not c.link("uuid") and not a.link("ips/ip-c")
    assert a.link("ips/ip-b") == b.ip


def test_not_root(pair):
    """Another user may look, not change."""
    a = pair(data_size=64 * MIB)["a"]
    a.run("marsadm --version")
    nobody = "setpriv --reuid=65534 --regid=65534 --clear-groups /usr/bin/python3 /opt/mars/mars.pyz marsadm"
    assert try_rows(a, [(nobody + " pause-sync data", {DENIED}, "root")]) == []


def test_corrupt_copy_on_the_secondary_stops_it_until_it_is_fetched_again(pair, tmp_path):
    """A byte flips in a fetched log: nothing of it is replayed, the log is named; a sound copy heals it (rule 5)."""
    hosts = pair(data_size=64 * MIB)
    a, b = hosts
    scenario.wait_caught_up(a, b, "data")
    b.run("marsadm pause-replay data")
    with RunningWriter(a, "/dev/mars/data", tmp_path / "ledger", blocks=256) as writer:
        writer.go_on(300)
        assert writer.stop() == 0
    a.wait(lambda: scenario.settled(a, "data"), what="write-back on a")
    newest = scenario.Version.newest(a, "data")
    log = f"log-{newest.nr:09d}-a"
    b.wait(lambda: b.link("resource-data/actual-b/fetched").startswith(f"{log},{newest.pos},"), what="the fetch")
    b.marsd_stop()
    replay = scenario.Replay.of(b, "data")
    flip(b.path(f"/mars/resource-data/{log}"), 4096 + (replay.pos if replay.nr == newest.nr else 0) + 4096 + 100)
    hosts.net.isolate("b")
    b.marsd_start()
    b.run("marsadm resume-replay data")
    b.wait(lambda: "damaged" in b.link("resource-data/actual-b/msg-err-resource"), what="the message")
    told = b.link("resource-data/actual-b/msg-err-resource")
    assert log in told and "invalidate" in told and f"{log} is damaged" in b.run("mars-status", check=False).stdout
    assert scenario.Replay.of(b, "data") == replay, "nothing of a damaged log is replayed"
    hosts.net.heal_all()
    scenario.wait_equal(a, b, "data")
    write_ledger.check_nothing_lost(b.read_bytes(b.data_device, 0, 256 * write_ledger.BLOCK), writer.ledgers())


def flip(file, offset: int) -> None:
    """Change one bit of a file."""
    with open(file, "r+b") as opened:
        opened.seek(offset)
        byte = opened.read(1)
        assert byte, f"{file} ends before {offset}"
        opened.seek(offset)
        opened.write(bytes([byte[0] ^ 1]))


def test_corrupt_log_of_the_primary_is_no_torn_tail(cluster):
    """A bit flips in a log that recovery needs, below its published end: no start, the log is named (rule 5)."""
    a = cluster("a", data_size=512 * MIB)["a"]
    a.run(f"marsadm create-cluster --ip={a.ip}")
    a.marsd_start()
    scenario.create_resource(a, "data")
    for attempt in range(5):
        burst = ["fio", "--name=burst", "--filename=/dev/mars/data", "--rw=randwrite", "--bs=4k", "--iodepth=32",
                 "--direct=1", "--ioengine=libaio", "--size=512m", "--io_size=1g", "--fsync=64",
                 f"--randseed={attempt}"]
        fio = a.popen(burst, stdout=-3, stderr=-3)
        a.wait(lambda fio=fio: behind(a) > 4 * MIB or fio.poll() is not None, 60, "a backlog of write-back")
        a.kill9_keeper()
        fio.wait(60)
        a.wait(lambda: a.pids() == {}, 30, "the end of both processes")
        if behind(a) > MIB:
            break
        a.marsd_start()
        scenario.wait_device(a, "data")
    else:
        pytest.fail("write-back was never behind, so recovery never needs the log: make the burst longer")
    replay = scenario.Replay.of(a, "data")
    log = f"log-{replay.nr:09d}-{replay.producer}"
    flip(a.path(f"/mars/resource-data/{log}"), 4096 + replay.pos + MIB // 2)
    started = a.run("marsd start", check=False)
    a.wait(lambda: started.returncode or a.links("resource-data/actual-a", "msg-err"), 60, "a message")
    assert a.devices() == [], "a resource with a damaged log must not serve"
    told = started.stderr + a.path("/run/mars/marsd.log").read_text()
    assert log in told and re.search("(?i)corrupt|damage", told)


def behind(host: Host) -> int:
    """Published log bytes that are not written back yet, within the newest log."""
    newest, replay = scenario.Version.newest(host, "data"), scenario.Replay.of(host, "data")
    if newest is None or replay is None or newest.nr != replay.nr:
        return 0
    return newest.pos - replay.pos
