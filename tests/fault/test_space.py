"""/mars without room, at every kind of write: writers wait or go on, nothing wrong is acknowledged, the lack is named,
and all goes on by itself as soon as there is room."""

import os
import signal
import subprocess

import pytest

from tests.fault import ways
from tools import scenario
from tools.hosts import MIB

pytestmark = [pytest.mark.cluster, pytest.mark.root]

NEW_LOG = "/mars/*.tmp.*log-0*"
POSITION = "/mars/local-*/position-*"
EVERYTHING = (f"write,fallocate {ways.LOG} ENOSPC", "symlink,mkdir,link /mars/* ENOSPC", "open /mars/*.tmp.* ENOSPC",
              f"open,write,rename {POSITION} ENOSPC")


def log_extension(a, b, writer) -> None:
    """No more file space for the log: the application goes on without it (rule 27), and the log when there is room."""
    a.rules.set(f"fallocate {ways.LOG} ENOSPC")
    load = a.popen(["dd", "if=/dev/urandom", f"of={ways.DEVICE}", "bs=1M", "count=24", "seek=32", "oflag=direct",
                    "status=none"])
    assert load.wait(60) == 0
    ways.told(a, "EMERGENCY MODE")
    assert a.rules.hits() and not writer.failed()
    writer.go_on(50)
    a.rules.set()
    logged(a)


def logged(a) -> None:
    """The log is written again."""
    a.wait(lambda: not a.status()["data"]["state"]["direct"], 60, "the log to go on")


def no_promise(a, b, writer) -> None:
    """The log's space is allocated, and still there is none when a group is written (rule 4: the log cannot end then;
    a rotation is refused, so that room can be made by deleting logs)."""
    for error in ("ENOSPC", "EDQUOT"):
        a.rules.set(f"write {ways.LOG} {error}")
        ways.told(a, "no room for the log")
        before = writer.acknowledged()
        done = a.run("marsadm log-rotate data", check=False)
        assert done.returncode and "space" in done.stderr, (done.returncode, done.stderr)
        a.run("marsadm log-delete-all data")
        assert writer.acknowledged() == before and not writer.failed()
        a.rules.set()
        a.wait(lambda before=before: writer.acknowledged() > before, 30, "the writers to go on")
        ways.quiet(a)


def symlinks(a, b, writer) -> None:
    """Positions cannot be published: the log goes on, write-back waits for its durable mark (rule 12), then goes on.
    The message itself finds no room here, but its way to the other host."""
    a.rules.set("symlink /mars/* ENOSPC")
    writer.go_on(300)
    with ways.paused(writer):
        b.wait(lambda: "no room" in ways.messages_of(b, "a"), 30, "a's lack of room in b's tree")
    a.rules.set()


def new_log(a, b, writer) -> None:
    """A rotation that finds no room is refused and leaves the old log in use."""
    a.rules.set(f"open,link,rename {NEW_LOG} ENOSPC")
    done = a.run("marsadm log-rotate data", check=False)
    assert done.returncode and "room" in done.stderr, (done.returncode, done.stderr)
    writer.go_on(200)
    a.rules.set()
    a.run("marsadm log-rotate data")


def position_file(a, b, writer) -> None:
    """The hint beside the tree cannot be written: nobody needs it, not even the next worker."""
    a.rules.set(f"open,write,rename {POSITION} ENOSPC")
    writer.go_on(300)
    dead = a.kill9_worker()
    a.wait(lambda: a.worker() not in (None, dead), 60, "another worker")
    writer.go_on(200)
    assert a.rules.hits()
    a.rules.set()


def log_copy(a, b, writer) -> None:
    """The secondary has no room for the log: the fetch says so and goes on by itself; the primary does not notice."""
    b.rules.set(f"write,fallocate {ways.LOG} ENOSPC")
    writer.go_on(200)
    ways.told(b, "No space left")
    assert not writer.failed()
    b.rules.set()


def symlinks_of_the_secondary(a, b, writer) -> None:
    """Replay waits for its durable mark (rule 12), then goes on by itself."""
    b.rules.set("symlink /mars/* ENOSPC")
    writer.go_on(200)
    a.wait(lambda: "no room" in ways.messages_of(a, "b"), 30, "b's lack of room in a's tree")
    b.rules.set()


def everything_everywhere(a, b, writer) -> None:
    """No write into /mars works on either host for a while."""
    for host in (a, b):
        host.rules.set(*EVERYTHING)
    a.wait(lambda: a.status()["data"]["state"]["stalled_ns"], 30, "the writers to wait")
    before = writer.acknowledged()
    for host in (a, b):
        host.rules.set()
    a.wait(lambda: writer.acknowledged() > before, 30, "the writers to go on")


def really_full(a, b, writer) -> None:
    """Somebody fills /mars with a file, again whenever logs were deleted: the same without the layer. There is no room
    for the message here either, but the other host hears it."""
    fill = a.popen(["sh", "-c", "while :; do dd if=/dev/zero bs=64k status=none >> /mars/foreign; sleep 0.3; done"],
                   stderr=subprocess.DEVNULL)
    load = a.popen(["sh", "-ec", f"for n in 1 2 3 4 5; do dd if=/dev/urandom of={ways.DEVICE} bs=1M count=24 seek=32 "
                    "oflag=direct status=none; done"])
    b.wait(lambda: "EMERGENCY MODE" in ways.messages_of(b, "a"), 60, "a's lack of room in b's tree")
    assert not writer.failed()
    os.killpg(fill.pid, signal.SIGKILL)
    fill.wait()
    assert load.wait(60) == 0
    a.run(["rm", "/mars/foreign"])
    logged(a)


CASES = (log_extension, no_promise, symlinks, new_log, position_file, log_copy, symlinks_of_the_secondary,
         everything_everywhere, really_full)


def test_no_space(faulty_pair, tmp_path):
    """Rules 12, 28: each case in turn, under writers that must see no error; in the end nothing is lost and both hosts
    are equal."""
    a, b = faulty_pair(mars_size=160 * MIB)
    with ways.fresh_writer(a, tmp_path, "ledger") as writer:
        for case in CASES:
            print(case.__name__, flush=True)
            writer.go_on(50)
            case(a, b, writer)
            writer.go_on(50)
            with ways.paused(writer):
                all_go_on(a, b)
        assert writer.stop() == 0
    assert ways.nothing_lost(a, writer) > 1000
    scenario.wait_equal(a, b, "data")
    for host in (a, b):
        ways.quiet(host)


def all_go_on(a, b) -> None:
    """What was written up to now is published, written back on the primary, and replayed on the secondary."""
    for host in (a, b):                             # the newest link may still change: emergency mode ends meanwhile
        host.wait(lambda host=host: scenario.published(a, "data") and scenario.Version.newest(a, "data").reached_by(
            scenario.Replay.of(host, "data")), 90, f"{host.name} to go on")
