"""Planned handover a -> b -> a under load, and its refusals: in use, not synced, replay paused, old primary gone."""

import write_ledger
from running_writer import RunningWriter

from tools import loops, scenario


def test_there_and_back_under_load(pair, tmp_path):
    """Three rounds: the writer stops, the role moves at once; all that was acknowledged is on the new device."""
    hosts = pair()
    hosts_in_turn = [hosts["a"], hosts["b"], hosts["a"], hosts["b"]]
    for step, (old, new) in enumerate(zip(hosts_in_turn, hosts_in_turn[1:], strict=False)):
        with RunningWriter(old, "/dev/mars/data", tmp_path / f"ledger{step}", threads=4, seed=step) as writer:
            writer.go_on(1000)
            assert writer.stop() == 0
        scenario.hand_over(old, new, "data")
        image = new.read_bytes("/dev/mars/data", 0, 4096 * write_ledger.BLOCK)
        assert write_ledger.check_nothing_lost(image, writer.ledgers()) >= 1000
        assert new.link("resource-data/primary") == new.name
        assert old.link(f"resource-data/actual-{old.name}/is-primary") == "0"
        new.run(["blkdiscard", "-z", "-l", str(4096 * write_ledger.BLOCK), "/dev/mars/data"])
    scenario.wait_equal(hosts["b"], hosts["a"], "data")


def test_refused_while_mounted(pair):
    """The device is in use on a: b's `primary` fails and says why; a keeps role, device and contents (rule 20)."""
    hosts = pair(data_size=384 << 20)
    a, b = hosts
    scenario.make_file_system(a, "data", "xfs")
    a.run(["sh", "-c", "echo kept > /mnt/file"])
    scenario.wait_caught_up(a, b, "data")
    done = b.run("marsadm primary data --timeout=20", check=False)
    assert done.returncode in (3, 5) and "umount" in done.stderr, (done.returncode, done.stderr)
    assert b.devices() == [] and a.devices() == ["data"]
    a.wait(lambda: a.link("resource-data/primary") == b.link("resource-data/primary") == "a", 60, "the old role")
    assert a.link("resource-data/actual-a/is-primary") == "1"
    a.run(["sh", "-c", "echo more >> /mnt/file; sync; cat /mnt/file"])
    a.run("umount /mnt")
    scenario.hand_over(a, b, "data")
    b.run("mount -t xfs /dev/mars/data /mnt")
    assert b.path("/mnt/file").read_text() == "kept\nmore\n"
    b.run("umount /mnt")


def test_refused_while_a_program_holds_the_device(pair, tmp_path):
    """A plain opener counts as well, though it is no mount: its writes go on and none is lost (rule 20)."""
    hosts = pair()
    a, b = hosts
    scenario.wait_caught_up(a, b, "data")
    with RunningWriter(a, "/dev/mars/data", tmp_path / "ledger") as writer:
        writer.go_on(100)
        done = b.run("marsadm primary data --timeout=15", check=False)
        assert done.returncode in (3, 5), (done.returncode, done.stderr)
        writer.go_on(100)
        assert writer.stop() == 0
    a.wait(lambda: a.devices() == ["data"], 30, "the old primary goes on with its device")
    assert b.devices() == []
    write_ledger.check_nothing_lost(a.read_bytes("/dev/mars/data", 0, 4096 * write_ledger.BLOCK), writer.ledgers())
    scenario.wait_equal(a, b, "data")


def test_refused_while_sync_or_replay_is_off(pair):
    """Facts 5.2 phase 0: an unfinished sync and a paused replay refuse the handover, and change nothing."""
    hosts = pair()
    a, b = hosts
    scenario.wait_caught_up(a, b, "data")
    b.run("marsadm pause-replay data")
    before = b.link("resource-data/primary")
    done = b.run("marsadm primary data", check=False)
    assert done.returncode == 3 and "replay" in done.stderr
    b.run("marsadm resume-replay data")
    b.run(["sh", "-c", "echo 0 > /run/mars/sys/do_fast_fullsync"])
    a.run("dd if=/dev/urandom of=/dev/mars/data bs=1M count=16 oflag=direct status=none")
    scenario.wait_equal(a, b, "data")
    hosts.net.shape("b", "20mbit")
    b.run("marsadm invalidate data")
    done = b.run("marsadm primary data", check=False)
    assert done.returncode == 3 and "sync" in done.stderr
    assert b.link("resource-data/primary") == before == "a" and a.devices() == ["data"]
    hosts.net.unshape("b")
    scenario.wait_equal(a, b, "data")


def test_old_primary_is_unreachable(pair):
    """Without a grant nothing is taken over: time-out, exit 5, the role is still a's after the heal (rules 18, 24)."""
    hosts = pair()
    a, b = hosts
    scenario.wait_caught_up(a, b, "data")
    hosts.net.cut("a", "b")
    done = b.run("marsadm primary data --timeout=10", check=False)
    assert done.returncode in (3, 5), (done.returncode, done.stderr)
    assert b.devices() == [] and a.devices() == ["data"]
    a.run(["blkdiscard", "-z", "-l", "1048576", "/dev/mars/data"])
    hosts.net.heal("a", "b")
    b.wait(lambda: [host.link("resource-data/primary") for host in hosts] == ["a", "a"], 60, "the old role on both")
    scenario.wait_equal(a, b, "data")


def test_secondary_gives_up_the_role(pair):
    """`secondary` takes the device away; both hosts can become primary again afterwards (rule 18)."""
    hosts = pair()
    a, b = hosts
    scenario.wait_caught_up(a, b, "data")
    a.run("marsadm secondary data")
    a.wait(lambda: a.devices() == [], 60, "the device to vanish")
    assert a.link("resource-data/primary") == "(none)"
    b.run("marsadm primary data")
    scenario.wait_device(b, "data")
    b.run("marsadm secondary data")
    b.wait(lambda: b.devices() == [], 60, "the device to vanish")
    b.run("marsadm primary data")
    scenario.wait_device(b, "data")
    scenario.wait_equal(b, a, "data")


def test_same_primary_again_is_no_change(pair):
    """`primary` where it already is: exit 0, same log, same device."""
    hosts = pair()
    a, b = hosts
    scenario.wait_equal(a, b, "data")

    def state() -> tuple[str, list[str]]:
        names = [name for name in a.tree() if name.startswith(("resource-data/log-", "resource-data/version-"))]
        return a.mars_device("data"), sorted(names)

    before = state()
    assert any("/log-" in name for name in before[1])
    a.run("marsadm primary data")
    assert state() == before
    assert loops.backing_file(a.mars_device("data"))
