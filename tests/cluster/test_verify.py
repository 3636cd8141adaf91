"""verify on real hosts: exact under load (rule 17), repaired by the sync rule, ended by Ctrl-C, told in the tree."""

import os
import signal

from running_writer import RunningWriter

from tools import scenario
from tools.hosts import Host

MIB = 1 << 20


def damage(host: Host, *blocks: int) -> None:
    """Blocks of 4096 bytes of the host's data device, behind the daemon's back."""
    for block in blocks:
        host.run(["dd", "if=/dev/urandom", f"of={host.data_device}", "bs=4096", "count=1", f"seek={block}",
                  "oflag=direct", "conv=notrunc", "status=none"])


def _status(host: Host) -> str:
    """What an administrator sees."""
    return host.run("mars-status", check=False).stdout


def verify(host: Host, options: str = "") -> tuple[int, list[tuple[int, int]], str]:
    """(exit status, ranges, stderr)."""
    done = host.run(f"marsadm verify data {options}", check=False)
    return done.returncode, [tuple(map(int, line.split())) for line in done.stdout.splitlines()], done.stderr


def fact(host: Host, key: str) -> str:
    """verify-KEY of host b, as `host` has it."""
    return host.link(f"resource-data/actual-b/verify-{key}")


def test_exact_under_load_and_repaired(pair, tmp_path):
    """Rule 17: a replica that is written to without end shows no false difference, and all damage is found: beside what
    is written, among it, at both ends of the device. What is repaired is equal, the two hosts too."""
    hosts = pair(data_size=128 * MIB)
    a, b = hosts
    a.run("dd if=/dev/urandom of=/dev/mars/data bs=1M count=96 oflag=direct status=none")
    scenario.wait_equal(a, b, "data")
    notes = tmp_path / "notes"
    notes.mkdir()
    last = 128 * MIB // 4096 - 1
    with RunningWriter(a, "/dev/mars/data", notes, blocks=64, threads=2) as writer:
        writer.go_on(50)
        for turn in range(3):
            if turn == 1:
                a.run("marsadm log-rotate data")
            assert verify(b)[:2] == (0, []), f"a false difference in turn {turn}"
        damage(b, 100, 101, 5000, last)
        expected = [(100 * 4096, 8192), (5000 * 4096, 4096), (last * 4096, 4096)]
        assert verify(b)[:2] == (1, expected)
        assert (fact(b, "state"), fact(b, "differs"), fact(b, "source")) == ("differs", "16384", "a")
        assert "16384 bytes differ from a ==> marsadm verify data --host=b --repair" in _status(b)
        status, ranges, err = verify(a, "--host=b --repair")
        assert (status, ranges) == (1, expected) and "16384 of them are repaired" in err
        assert verify(a, "--host=b")[:2] == (0, [])
        writer.go_on(50)
        assert writer.stop() == 0
    scenario.wait_equal(a, b, "data")
    assert fact(b, "state") == "equal"
    a.wait(lambda: fact(a, "state") == "equal", what="the result to be told to the other host")


def test_ends_cleanly_and_refuses_what_makes_no_sense(pair):
    """Ctrl-C ends the run on the other host too, and frees replay; wrong states are named (exit status 3)."""
    hosts = pair(data_size=64 * MIB)
    a, b = hosts
    scenario.wait_equal(a, b, "data")
    child = a.popen("marsadm verify data --host=b --rate=1000", stdout=-1, stderr=-1)
    b.wait(lambda: fact(b, "state") == "running", what="the verify to run")
    status, _, err = verify(b)
    assert status == 3 and "runs here already" in err
    inside = [pid for pid, words in a.pids().items() if "verify" in words]
    os.kill(inside[-1], signal.SIGINT)
    assert child.wait(20) == 130
    b.wait(lambda: fact(b, "state") == "stopped", what="the verify to end")
    assert "did not come to its end" in _status(b)
    a.run("dd if=/dev/urandom of=/dev/mars/data bs=1M count=8 oflag=direct status=none")
    scenario.wait_equal(a, b, "data")
    assert verify(b)[0] == 0
    status, _, err = verify(a)
    assert status == 3 and "--host=SECONDARY" in err
    b.run("marsadm pause-replay data")
    b.wait(lambda: b.link("resource-data/actual-b/is-replaying") == "0", what="replay to end")
    status, _, err = verify(b)
    assert status == 3 and "marsadm resume-replay" in err
    b.run("marsadm resume-replay data")


def test_goes_round_until_interrupted_and_survives_its_worker(pair):
    """--continuous finds what is damaged later; a worker that dies leaves no `running` behind."""
    hosts = pair(data_size=32 * MIB)
    a, b = hosts
    scenario.wait_equal(a, b, "data")
    child = b.popen("marsadm verify data --continuous --rate=200000", stdout=-1, stderr=-1)
    b.wait(lambda: fact(b, "state") == "equal", what="the first round")
    damage(b, 77)
    b.wait(lambda: fact(b, "state") == "differs", what="the damage to be found")
    b.wait(lambda: fact(b, "state") == "running", what="the next round")
    b.kill9_worker()
    out, err = child.communicate(timeout=60)
    assert f"{77 * 4096} 4096" in out.splitlines() and "32.0 MiB compared, all equal" in err, (out, err)
    assert child.returncode not in (0, 1), "a verify that was cut off proves nothing"
    b.wait(lambda: fact(b, "state") == "stopped", what="the end to be told")


def test_scrub_goes_by_itself_and_lets_people_first(pair):
    """verify_scrub_kb: damage is found and told in the tree without a command; who asks for a verify meanwhile gets
    it; a round goes on where its worker died; a replica that differs is left as it is until it is repaired, or healed
    by a full sync, which takes back what was found."""
    hosts = pair(data_size=32 * MIB)
    a, b = hosts
    scenario.wait_equal(a, b, "data")
    rate = b.path("/run/mars/sys/verify_scrub_kb")
    assert rate.read_text().strip() == "0" and not fact(b, "state")
    rate.write_text("500\n")
    b.wait(lambda: int(fact(b, "pos") or 0) >= 4 * MIB, what="the scrub to begin")
    damage(b, 40)
    assert verify(b)[:2] == (1, [(40 * 4096, 4096)])
    assert "4096 bytes differ from a" in _status(b)
    assert verify(b, "--repair")[0] == 1
    assert fact(b, "state") == "repaired"
    damage(b, 7000)
    b.kill9_worker()  # a new worker goes on with the round at once
    b.wait(lambda: fact(b, "state") == "running", 90, "the scrub to go on")
    assert int(fact(b, "pos")) >= 4 * MIB
    rate.write_text("200000\n")
    b.wait(lambda: fact(b, "state") == "differs", 90, "the scrub to find the damage")
    assert fact(b, "differs") == "4096"
    b.run("marsadm invalidate data")
    scenario.wait_equal(a, b, "data")
    assert not fact(b, "state")
    b.kill9_worker()
    b.wait(lambda: fact(b, "state") == "equal", 90, "the next round")
    scenario.wait_caught_up(a, b, "data")
