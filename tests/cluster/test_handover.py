"""Planned handover a -> b -> a under load, and what refuses it: in use. The other outcomes:
test_roles_outcomes.py. MARS_HANDOVERS=100 MARS_SEED=n plays more rounds."""

import os
import random

import pytest
import write_ledger
from running_writer import RunningWriter

from tools import loops, scenario

ROUNDS = int(os.environ.get("MARS_HANDOVERS", "4"))
BATCH = 10  # on the same hosts
SEED = int(os.environ.get("MARS_SEED", "1"))


@pytest.mark.parametrize("batch", range((ROUNDS + BATCH - 1) // BATCH))
def test_round_and_round_under_load(pair, tmp_path, batch):
    """Rules 18 to 20: the writer stops, the role moves at once, among three hosts; the device is gone where it was, is
    where it shall be and nowhere else, and holds all that was acknowledged. Some rounds begin while the others are
    behind. In the end all disks are equal."""
    hosts, rng = pair("abc", data_size=64 << 20), random.Random(SEED + batch)
    old = hosts["a"]
    for step in range(min(BATCH, ROUNDS - batch * BATCH)):
        new = rng.choice([host for host in hosts if host is not old])
        with RunningWriter(old, "/dev/mars/data", tmp_path / f"ledger{step}", threads=4, seed=step) as writer:
            writer.go_on(rng.choice((50, 1000)))
            assert writer.stop() == 0
        scenario.hand_over(old, new, "data")
        image = new.read_bytes("/dev/mars/data", 0, 4096 * write_ledger.BLOCK)
        assert write_ledger.check_nothing_lost(image, writer.ledgers()) >= 50
        assert [host.name for host in hosts if host.devices()] == [new.name]
        assert new.link("resource-data/primary") == new.name
        assert old.link(f"resource-data/actual-{old.name}/is-primary") == "0"
        new.run(["blkdiscard", "-z", "-l", str(4096 * write_ledger.BLOCK), "/dev/mars/data"])
        old = new
    for other in hosts:
        if other is not old:
            scenario.wait_equal(old, other, "data")
        assert "SPLIT BRAIN" not in other.run("mars-status", check=False).stdout


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
