"""/mars full on a real cluster (rules 27, 28): the application goes on, members are healed by the regions that changed,
and all of it ends by itself."""
from __future__ import annotations

from tools import scenario
from tools.hosts import MIB, Host

RESOURCE = "resource-data"


def fill(host: Host, rest_kb: int = 8000, name: str = "foreign") -> None:
    """A foreign file takes all but so much of /mars; 0: every block."""
    size = f"F=$(df --output=avail -k /mars | tail -1); fallocate -l $((F-{rest_kb or 2000}))K /mars/{name}"
    host.run(["sh", "-c", size])
    if not rest_kb:
        host.run(["sh", "-c", f"cat /dev/zero >> /mars/{name}"], check=False)


def write(host: Host, block_kb: int, count: int, seek: int) -> None:
    """The application writes and flushes."""
    host.run(f"dd if=/dev/urandom of=/dev/mars/data bs={block_kb}k count={count} seek={seek} oflag=direct conv=fsync "
             "status=none", timeout=60)


def fact(host: Host, key: str, of: str = "a") -> str:
    """actual-OF/KEY as the host knows it."""
    return host.links(f"{RESOURCE}/actual-{of}").get(key, "")


def log_of(host: Host) -> str:
    """What its marsd said."""
    return host.run("cat /run/mars/marsd.log").stdout


def messages(host: Host, of: str) -> str:
    """Standing messages of a host."""
    found = host.links(f"{RESOURCE}/actual-{of}", "msg-")
    return "\n".join(text for text in found.values() if text != "OK")


def enter(a: Host) -> None:
    """Fill, and wait for emergency mode."""
    fill(a)
    a.wait(lambda: fact(a, "is-emergency") == "1", 30, "emergency mode")


def leave(a: Host, name: str = "foreign") -> None:
    """Make room, and wait for the log to go on."""
    a.run(f"rm /mars/{name}")
    a.wait(lambda: fact(a, "is-emergency") == "0", 30, "the log to go on")


def parted(host: Host) -> str:
    """What the host thinks of the histories."""
    return host.run("marsadm view-is-split-brain data").stdout.strip()


def test_the_primary_goes_without_log(pair):
    """Rule 27: writes and flushes go on without error; the member waits, named; a worker killed meanwhile goes on past
    the log; then the member is healed by just the regions that changed, and nothing of it stays."""
    one = pair(data_size=64 * MIB, mars_size=300 * MIB)
    a, b = one
    write(a, 1024, 16, 0)
    scenario.wait_equal(a, b, "data", 60)
    enter(a)
    write(a, 64, 16, 300)
    assert a.status()["data"]["counters"]["direct_writes"] >= 16
    assert "EMERGENCY MODE" in messages(a, "a")
    status = a.run("mars-status", check=False).stdout
    assert "EMERGENCY MODE" in status and "Replication not running" in status
    b.wait(lambda: "a gap of the log lies ahead" in messages(b, "b"), 20, "b to wait")
    dead = a.kill9_worker()
    write(a, 64, 16, 500)                                   # waits for the next worker, gets no error
    a.wait(lambda: a.worker() not in (None, dead), 60, "another worker")
    assert a.status()["data"]["state"]["direct"]
    assert "nothing to rotate" in a.run("marsadm log-rotate data").stdout
    leave(a)
    write(a, 64, 8, 100)
    scenario.wait_equal(a, b, "data", 60)
    assert f"{32 * 65536} bytes are compared" in log_of(b)
    b.wait(lambda: not b.path(f"/mars/{RESOURCE}/.heal").exists(), 20, "the set of regions to go")
    for host, name in ((a, "a"), (b, "b")):
        host.wait(lambda host=host, name=name: "EMERGENCY" not in messages(host, name)
                  and "gap" not in messages(host, name), 20, "messages to end")
    a.wait(lambda: not list(a.path(f"/mars/{RESOURCE}").glob(".map-*")), 30, "the map to go")
    a.wait(lambda: a.path(f"/mars/{RESOURCE}/.gap-map").exists(), 30, "the next one to be prepared")
    assert not [key for key in {**a.tree(), **b.tree()} if "splitbrain" in key]
    scenario.hand_over(a, b, "data")
    b.run("dd if=/dev/urandom of=/dev/mars/data bs=64k count=4 oflag=direct conv=fsync status=none")
    scenario.wait_equal(b, a, "data", 60)


def test_logs_that_one_member_needs(pair):
    """Rule 27: a member that is cut off holds logs back until /mars is full; the application writes several times the
    size of /mars meanwhile, without an error; only what that member needs is dropped, and only it is healed, by the
    regions that changed. The secondary beside it does not keep logs for it at the price of its own."""
    one = pair("abc", data_size=64 * MIB, mars_size=300 * MIB)
    a, b, c = one
    write(a, 1024, 2, 0)
    for host in (b, c):
        scenario.wait_equal(a, host, "data", 60)
    c.run("marsadm disconnect data")
    c.wait(lambda: fact(c, "is-copying", "c") == "0", 20, "the fetch to end")
    for _ in range(14):
        write(a, 1024, 24, 8)                               # the same 24 MiB again and again
        a.wait(lambda: a.links("actual-a")["emergency"] in ("0", "1"), 30, "room to be made")
    assert "is dropped, c will be healed" in log_of(a) and "b will be healed" not in log_of(a)
    assert fact(a, "is-emergency") == "0" and "emergency mode:" not in log_of(a)
    assert "c will be healed" in messages(a, "a")
    scenario.wait_equal(a, b, "data", 90)
    assert "across the gap" not in log_of(b)
    c.run("marsadm connect data")
    scenario.wait_equal(a, c, "data", 90)
    amount = int(log_of(c).partition("); ")[2].partition(" bytes are compared")[0])
    assert 24 * MIB <= amount < 28 * MIB
    a.wait(lambda: not list(a.path(f"/mars/{RESOURCE}").glob(".drop-*")), 60, "the member's set to go")
    a.wait(lambda: "dropped" not in messages(a, "a"), 60, "the message to end")


def test_all_are_full_and_one_has_a_limit_of_its_own(pair):
    """Rules 27, 28: /mars is full on both hosts by foreign files: the application goes on, facts still arrive; the
    secondary alone full does not disturb the primary; then the limit of one resource, and logger_resume."""
    one = pair(data_size=64 * MIB, mars_size=300 * MIB)
    a, b = one
    write(a, 1024, 8, 0)
    scenario.wait_equal(a, b, "data", 60)
    fill(b, 0)
    write(a, 1024, 8, 8)
    a.wait(lambda: a.links("actual-b").get("emergency") == "4", 20, "b's level in a's tree")
    assert fact(a, "is-emergency") == "0"
    fill(a, 0)
    write(a, 64, 32, 400)
    a.wait(lambda: fact(a, "is-emergency") == "1", 30, "emergency mode")
    b.wait(lambda: "EMERGENCY MODE" in messages(b, "a"), 20, "a's state in b's tree")
    b.run("rm /mars/foreign")
    a.run(["sh", "-c", "echo 0 > /run/mars/sys/logger_resume"])
    a.run("rm /mars/foreign")
    a.wait(lambda: "logger_resume" in messages(a, "a"), 30, "the message to say what it waits for")
    write(a, 64, 8, 700)
    a.run(["sh", "-c", "echo 1 > /run/mars/sys/logger_resume"])
    a.wait(lambda: fact(a, "is-emergency") == "0", 30, "the log to go on")
    scenario.wait_equal(a, b, "data", 60)
    a.wait(lambda: a.path(f"/mars/{RESOURCE}/.gap-map").exists(), 30, "the next map to be prepared")
    a.run("marsadm set-emergency-limit data 99")
    a.wait(lambda: fact(a, "is-emergency") == "1", 30, "emergency mode by the resource's own limit")
    assert a.links("actual-a")["emergency"] == "0"
    write(a, 64, 8, 100)
    a.run("marsadm set-emergency-limit data 0")
    a.wait(lambda: fact(a, "is-emergency") == "0", 30, "the log to go on")
    scenario.wait_equal(a, b, "data", 60)


def test_a_full_mars_at_the_start(pair):
    """Rules 27, 28: a primary that finds /mars full to the last block when it comes up serves its device all the same,
    past the log. Then the way of the manual (8.1), from within emergency mode: make room, secondary and primary, and
    invalidate on the others."""
    one = pair(data_size=64 * MIB, mars_size=300 * MIB)
    a, b = one
    write(a, 1024, 8, 0)
    scenario.wait_equal(a, b, "data", 60)
    for way in ("by itself", "by the manual"):
        a.run("marsd stop")
        fill(a, 0)
        a.marsd_start()
        scenario.wait_device(a, "data")
        a.wait(lambda: fact(a, "is-emergency") == "1", 30, "emergency mode")
        write(a, 64, 16, 300)
        b.wait(lambda: "EMERGENCY MODE" in messages(b, "a"), 20, "a's state in b's tree")
        if way == "by itself":
            leave(a)
        else:
            a.run(["sh", "-c", "echo 0 > /run/mars/sys/logger_resume"])
            a.run("rm /mars/foreign")
            a.wait(lambda: "logger_resume" in messages(a, "a"), 30, "room that nobody uses")
            a.run("marsadm secondary data")
            a.run("marsadm primary data")
            b.run("marsadm invalidate data")
        write(a, 64, 8, 200)
        scenario.wait_equal(a, b, "data", 60)
        assert a.path(f"/mars/{RESOURCE}/.next-log").exists() and fact(a, "is-emergency") == "0"


def test_a_paused_secondary(pair):
    """Rules 27, 28: a secondary whose replay is paused fetches until its own /mars is full of log, and says so; it is
    named on the primary, which drops what it has not fetched, for it alone, and is never without log. When it goes on,
    all of it ends by itself."""
    one = pair(data_size=64 * MIB, mars_size=200 * MIB)
    a, b = one
    write(a, 1024, 2, 0)
    scenario.wait_equal(a, b, "data", 60)
    for host in one:
        host.run(["sh", "-c", "echo 4 > /run/mars/sys/stuck_seconds"])
    b.run("marsadm pause-replay data")
    for _ in range(14):
        write(a, 1024, 24, 8)
        a.run("marsadm log-rotate data")                # a fast machine fills /mars before marsd looks again
        a.wait(lambda: a.links("actual-a")["emergency"] in ("0", "1"), 60, "room to be made")
    a.wait(lambda: "b has its replay switched off" in messages(a, "a"), 30, "b to be named on a")
    a.wait(lambda: a.links("actual-b").get("emergency", "0") > "1", 30, "b's level in a's tree")
    assert "b will be healed" in log_of(a) and "emergency mode:" not in log_of(a)
    b.run("marsadm resume-replay data")
    scenario.wait_equal(a, b, "data", 90)
    for host in one:
        host.wait(lambda host=host: host.links(f"actual-{host.name}")["emergency"] == "0", 30, "room")
    a.wait(lambda: "switched off" not in messages(a, "a") and "dropped" not in messages(a, "a"), 60, "messages to end")


def test_who_is_forced_meanwhile_has_parted(pair):
    """Rule 27: a primary that went past its log is cut off, the other one is forced where the log ended: split brain on
    both, told with its place, although the forced one has all of the log; the documented way leads out."""
    one = pair(data_size=64 * MIB, mars_size=300 * MIB)
    a, b = one
    write(a, 1024, 8, 0)
    scenario.wait_equal(a, b, "data", 60)
    one.net.isolate("a")
    enter(a)
    write(a, 64, 8, 300)
    b.run("marsadm disconnect data")
    b.run("marsadm primary --force data")
    scenario.wait_device(b, "data")
    write(b, 64, 4, 0)
    one.net.heal_all()
    b.run("marsadm connect data")
    for host in (a, b):
        host.wait(lambda host=host: parted(host) == "1", 30, "the verdict")
    assert "parted at log-000000001-a" in b.run("mars-status", check=False).stdout
    a.run("rm /mars/foreign")
    a.wait(lambda: fact(a, "is-primary") == "0", 30, "a to step down")
    a.run("marsadm invalidate data")
    scenario.wait_equal(b, a, "data", 60)
    b.wait(lambda: parted(b) == "0", 30, "the end of it")
