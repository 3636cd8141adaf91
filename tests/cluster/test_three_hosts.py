"""Three hosts: both secondaries follow, the role travels round, one that was away catches up, two cannot both win."""

import write_ledger
from running_writer import RunningWriter

from tools import scenario


def primaries(hosts) -> list[str]:
    """Hosts that say of themselves that they are primary."""
    return [host.name for host in hosts if host.link(f"resource-data/actual-{host.name}/is-primary") == "1"]


def test_role_travels_round(pair, tmp_path):
    """a -> b -> c -> a with writes on each; at every stop all three hold the same bytes."""
    hosts = pair("abc")
    names = ["a", "b", "c", "a"]
    for step, (now, nxt) in enumerate(zip(names, names[1:], strict=False)):
        with RunningWriter(hosts[now], "/dev/mars/data", tmp_path / f"ledger{step}", seed=step) as writer:
            writer.go_on(300)
            assert writer.stop() == 0
        for other in set("abc") - {now}:
            scenario.wait_equal(hosts[now], hosts[other], "data")
            write_ledger.check_nothing_lost(
                hosts[other].read_bytes(hosts[other].data_device, 0, 4096 * write_ledger.BLOCK), writer.ledgers())
        scenario.hand_over(hosts[now], hosts[nxt], "data")
        hosts[nxt].wait(lambda nxt=nxt: primaries(hosts) == [nxt], 60, "exactly one primary")
        hosts[nxt].run(["blkdiscard", "-z", "-l", str(4096 * write_ledger.BLOCK), "/dev/mars/data"])


def test_host_that_was_away_follows_a_new_primary(pair, tmp_path):
    """c is cut off during writes and a handover a -> b; after the heal it gets the rest of a's log and then b's."""
    hosts = pair("abc")
    a, b, c = hosts
    for other in (b, c):
        scenario.wait_caught_up(a, other, "data")
    hosts.net.isolate("c")
    with RunningWriter(a, "/dev/mars/data", tmp_path / "one", blocks=512) as writer:
        writer.go_on(300)
        assert writer.stop() == 0
    scenario.hand_over(a, b, "data")
    assert c.link("resource-data/primary") == "a", "c cannot know yet"
    with RunningWriter(b, "/dev/mars/data", tmp_path / "two", blocks=512, seed=2) as second:
        second.go_on(300)
        assert second.stop() == 0
    hosts.net.heal_all()
    for other in (a, c):
        scenario.wait_equal(b, other, "data")


def test_two_planned_handovers_at_once(pair):
    """`primary` on b and c in the same moment: one wins, never two, and all three agree in the end (rule 18)."""
    hosts = pair("abc")
    a, b, c = hosts
    for other in (b, c):
        scenario.wait_caught_up(a, other, "data")
    running = [host.popen("marsadm primary data --timeout=60") for host in (b, c)]
    ends = [child.wait(150) for child in running]
    assert 0 in ends, f"nobody became primary: exit status {ends}"
    a.wait(lambda: len(primaries(hosts)) == 1, 60, "exactly one primary")
    winner = hosts[primaries(hosts)[0]]
    holders = [host.name for host in hosts if "data" in host.devices()]
    assert holders == [winner.name], "the device exists where the role is, and only there"
    winner.run(["blkdiscard", "-z", "-l", "1048576", "/dev/mars/data"])
    for other in hosts:
        if other is not winner:
            scenario.wait_equal(winner, other, "data")
            assert other.link("resource-data/primary") == winner.name


def test_leave_and_join_again(pair, tmp_path):
    """c leaves the resource, the others go on; c joins again with a full sync."""
    hosts = pair("abc")
    a, b, c = hosts
    scenario.wait_equal(a, c, "data")
    c.run("marsadm down data")
    c.run("marsadm leave-resource data")
    a.wait(lambda: not a.link("resource-data/data-c"), 60, "c's entries to vanish on a")
    with RunningWriter(a, "/dev/mars/data", tmp_path / "ledger", blocks=512) as writer:
        writer.go_on(300)
        assert writer.stop() == 0
    scenario.wait_equal(a, b, "data")
    scenario.join_resource(c, "data")
    scenario.wait_equal(a, c, "data")
