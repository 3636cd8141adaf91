"""The rows of the outcome table that say `real`, on two hosts (facts 5.2 to 5.5; rules 18, 20, 23, 24): exit status,
words and roles are those of the table, nothing is lost, and what was refused can be done afterwards."""

import contextlib

from damage import kill

from tests.ref.role_outcomes import BRANCHES, COMMANDS, Branch
from tools import scenario
from tools.hosts import MIB

ROLE = "resource-data/primary"
WRITE = "dd if=/dev/urandom of=/dev/mars/data bs=64k count=4 conv=fsync,notrunc status=none"


@contextlib.contextmanager
def in_sync(a, b, net):
    yield


@contextlib.contextmanager
def syncing(a, b, net):
    b.run(["sh", "-c", "echo 0 > /run/mars/sys/do_fast_fullsync"])
    a.run("dd if=/dev/urandom of=/dev/mars/data bs=1M count=16 oflag=direct status=none")
    scenario.wait_equal(a, b, "data")
    net.shape("b", "10mbit")
    b.run("marsadm invalidate data")
    yield
    net.unshape("b")
    scenario.wait_equal(a, b, "data")


def switched_off(off, on):
    """A switch of b."""
    @contextlib.contextmanager
    def situation(a, b, net):
        b.run(f"marsadm {off} data")
        yield
        b.run(f"marsadm {on} data")
    return situation


@contextlib.contextmanager
def lagging(a, b, net):
    b.run("marsadm pause-replay data")
    for _ in range(4):
        a.run("dd if=/dev/urandom of=/dev/mars/data bs=1M count=8 conv=notrunc oflag=direct status=none")
    b.run("marsadm resume-replay data")
    yield


@contextlib.contextmanager
def cut(a, b, net):
    net.cut("a", "b")
    yield
    assert a.devices() == ["data"] and b.devices() == []
    a.run(WRITE)
    net.heal("a", "b")
    b.wait(lambda: [host.link(ROLE) for host in (a, b)] == ["a", "a"], 60, "the old role on both (rule 24)")


@contextlib.contextmanager
def dead(a, b, net):
    kill(a)
    yield
    assert b.devices() == []
    a.marsd_start()
    scenario.wait_device(a, "data")


@contextlib.contextmanager
def dead_forced(a, b, net):
    kill(a)
    b.run("marsadm disconnect data")
    yield
    b.run(WRITE)
    a.marsd_start()
    a.wait(lambda: a.link(ROLE) == "b", what="a to hear of it")


@contextlib.contextmanager
def secondary(a, b, net):
    yield
    a.wait(lambda: a.devices() == [], what="the device to vanish")
    a.run("marsadm primary data")


SITUATIONS = {"in-sync": in_sync, "syncing": syncing, "paused": switched_off("pause-replay", "resume-replay"),
              "disconnected": switched_off("disconnect", "connect"), "detached": switched_off("detach", "attach"),
              "lagging": lagging, "cut": cut, "dead": dead, "dead-forced": dead_forced, "secondary": secondary}


def test_commands(pair) -> None:
    """One row after the other; a is primary again before the next one."""
    hosts = pair(data_size=32 * MIB)
    a, b = hosts
    a.run(WRITE)
    scenario.wait_equal(a, b, "data")
    rows = [row for row in COMMANDS if row.real]
    assert {row.real for row in rows} == set(SITUATIONS)
    for real, situation in SITUATIONS.items():
        with situation(a, b, hosts.net):
            for row in (row for row in rows if row.real == real):
                host = hosts[row.host]
                done = host.run(f"marsadm {row.command}", check=False, timeout=60)
                assert done.returncode == row.exit and row.text in done.stdout + done.stderr, (row.name, done)
                host.wait(lambda host=host, row=row: host.link(ROLE) == row.primary, 30, f"{row.name}: the role")
                if real == "in-sync" and row.primary == "b":
                    scenario.hand_over(b, a, "data")
        if a.link(ROLE) != "a":
            scenario.hand_over(b, a, "data")
        scenario.wait_device(a, "data")
        assert b.devices() == [], real
    a.run(WRITE)
    scenario.wait_equal(a, b, "data")


def part(hosts, branch: Branch) -> None:
    """Make it: a away, b forced, both write as the branch says."""
    a, b = hosts
    hosts.net.cut("a", "b")
    if branch.tail:
        a.run(WRITE)
    b.run("marsadm disconnect data")
    b.run("marsadm primary --force data")
    scenario.wait_device(b, "data")
    for host, wrote, rotated in ((a, branch.tail, branch.rotated_a), (b, branch.wrote, branch.rotated_b)):
        for _ in range(rotated):
            host.run("marsadm log-rotate data")
            if wrote:
                host.run(WRITE)
    if branch.wrote and not branch.rotated_b:
        b.run(WRITE)


def told(host) -> bool:
    """As the version links say it there."""
    return "SPLIT BRAIN" in host.run("marsadm split-brain data").stdout


def test_branches(pair) -> None:
    """Where both wrote a split brain is told on both, the loser invalidates; elsewhere the old primary follows by
    itself, its device open meanwhile or not; identical disks and nothing of the branch in the live tree afterwards."""
    hosts = pair(data_size=32 * MIB)
    a, b = hosts
    a.run(WRITE)
    scenario.wait_equal(a, b, "data")
    for number, branch in enumerate((Branch(True, True, 3, 1), Branch(False, True, 1, 3), Branch(False, False, 3, 0))):
        assert branch in BRANCHES or branch.rotated_b == 1
        part(hosts, branch)
        user = a.popen(["sh", "-c", "exec 3</dev/mars/data; read line"], stdin=-1) if number else None
        b.run("marsadm connect data")
        hosts.net.heal("a", "b")
        a.wait(lambda: a.link(ROLE) == "b", what="a to hear of it")
        if user is not None:
            a.wait(lambda: "in use" in a.link("resource-data/actual-a/msg-err-device-busy"), what="a to keep it")
            user.communicate("end\n", timeout=30)
        a.wait(lambda: a.devices() == [], what="a to step down")
        if branch.parted:
            for host in hosts:
                host.wait(lambda host=host: told(host), 30, f"{branch}: the verdict")
            a.run("marsadm invalidate data")
        scenario.wait_equal(b, a, "data")
        for host in hosts:
            host.wait(lambda host=host: not told(host), 30, f"{branch}: no verdict")
            host.run("marsadm log-purge-all data")
        scenario.hand_over(b, a, "data")
        a.run(WRITE)
        scenario.wait_equal(a, b, "data")


def test_handover_and_emergency_mode(pair) -> None:
    """Rule 27: while the primary goes without log b is refused, says why, and nothing changes; also when b has not
    heard of it and asks all the same. When there is room again the handover is done, with all that was written."""
    a, b = pair(data_size=64 * MIB, mars_size=300 * MIB)
    a.run(WRITE)
    scenario.wait_equal(a, b, "data")
    a.run(["sh", "-c", "fallocate -l $(($(df --output=avail -k /mars | tail -1) - 8000))K /mars/foreign"])
    a.wait(lambda: a.link("resource-data/actual-a/is-emergency") == "1", 30, "emergency mode")
    a.run(f"{WRITE} seek=300")
    done = b.run("marsadm primary data --timeout=5", check=False)
    assert done.returncode == 3 and "past the log, in emergency mode" in done.stderr, done
    # as a marsadm that looked a moment before would ask
    b.run(["sh", "-c", "cd /mars/resource-data && mkdir -p todo-b && ln -sfn 0123 todo-b/want-primary"])
    b.wait(lambda: a.link("resource-data/todo-b/want-primary") == "0123", what="a to hear that b waits")
    gone = a.run("marsadm secondary data --timeout=4", check=False)
    assert gone.returncode == 5 and "b waits for the primary role" in gone.stderr, gone
    a.wait(lambda: a.link(ROLE) == b.link(ROLE) == "a", what="the old role on both")
    b.run(["sh", "-c", "ln -sfn 0 /mars/resource-data/todo-b/want-primary"])
    assert a.devices() == ["data"] and b.devices() == []
    a.run(f"{WRITE} seek=400")
    a.run("rm /mars/foreign")
    a.wait(lambda: a.link("resource-data/actual-a/is-emergency") == "0", 30, "the log to go on")
    done = b.run("marsadm primary data --timeout=5", check=False)
    b.wait(lambda: "gap" not in b.link("resource-data/actual-b/msg-inf-gap"), 60, "b to be healed")
    if done.returncode:
        scenario.hand_over(a, b, "data")
    scenario.wait_equal(b, a, "data")
