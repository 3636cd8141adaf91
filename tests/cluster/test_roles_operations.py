"""docs/operations.md, roles under failure: each situation is made, the commands of the page are typed (rules 6, 26)."""

import re
from pathlib import Path

from tools import scenario
from tools.hosts import MIB

PAGE = Path(__file__).resolve().parents[2] / "docs/operations.md"
WRITE = "dd if=/dev/urandom of=/dev/mars/data bs=64k count=4 conv=fsync,notrunc status=none"


def boxes() -> dict[str, list[tuple[str, str]]]:
    """Name of a box on the page -> its lines, (host, command)."""
    found = re.findall(r"<!-- test: ([a-z-]+) -->\n```\n(.*?)```", PAGE.read_text(), re.S)
    return {name: [tuple(line.split("# ", 1)) for line in text.splitlines()] for name, text in found}


def follow(hosts, name: str) -> list[str]:
    """Type what the page says; what each line answered."""
    return [hosts[host].run(command, timeout=120).stdout for host, command in boxes()[name]]


def members(host) -> list[str]:
    """As this host sees it."""
    return host.run("marsadm view-resource-members data", check=False).stdout.split()


def told(host) -> bool:
    """Is somebody told of a split brain here?"""
    return "SPLIT BRAIN" in host.run("mars-status", check=False).stdout


def test_lost_primary_and_split_brain(pair):
    """a is cut off and writes on, b is forced; both sides are shown; a gives its branch up, which is kept, exported,
    purged; the disks are equal, nothing of the branch is in the live tree."""
    hosts = pair(data_size=32 * MIB)
    a, b = hosts
    a.run(WRITE)
    scenario.wait_equal(a, b, "data")
    hosts.net.cut("a", "b")
    a.run("dd if=/dev/urandom of=/dev/mars/data bs=64k seek=100 count=2 conv=fsync,notrunc status=none")
    follow(hosts, "lost-primary")
    scenario.wait_device(b, "data")
    b.run(WRITE)
    hosts.net.heal("a", "b")
    a.wait(lambda: a.devices() == [] and a.link("resource-data/primary") == "b", what="a to step down")
    for host in hosts:
        host.wait(lambda host=host: told(host), 30, "the message")
    on_a, on_b = follow(hosts, "split-brain-look")
    assert "SPLIT BRAIN" in on_a and "SPLIT BRAIN" in on_b
    assert f"{100 << 16} {2 << 16}" in on_a, "what a wrote alone"
    assert f"0 {4 << 16}" in on_b, "what b wrote alone"
    follow(hosts, "split-brain-resolve")
    scenario.wait_equal(b, a, "data")
    for host in hosts:
        host.wait(lambda host=host: not told(host), 30, "the end of the message")
    kept, exported = follow(hosts, "split-brain-export")
    assert "no split brain" in kept and "kept" in kept and "index.txt" in exported
    index = a.run("cat /root/lost-data/index.txt").stdout
    assert f" write {100 << 16} " in index
    follow(hosts, "split-brain-purge")
    assert a.run("marsadm log-export data /root/again", check=False).returncode == 4
    a.run("rm -r /root/lost-data")
    scenario.hand_over(b, a, "data")  # nothing was written since: a began with an empty log (rule 7)
    a.run(WRITE)
    scenario.wait_equal(a, b, "data")


def test_dead_member(pair):
    """c is dead: it is taken out, logs go again; when it comes back it is not believed, and joins anew (rule 26)."""
    hosts = pair("abc", data_size=32 * MIB)
    a, b, c = hosts
    a.run(WRITE)
    for other in (b, c):
        scenario.wait_equal(a, other, "data")
    c.kill9_keeper()
    c.wait(lambda: c.pids() == {}, what="the end of c")
    a.run("marsadm log-rotate data")
    a.run(WRITE)
    scenario.wait_equal(a, b, "data")
    before = b.run("ls /mars/resource-data").stdout
    assert "log-000000001-a" in before, "c holds it"
    follow(hosts, "dead-member")
    b.wait(lambda: "log-000000001-a" not in b.run("ls /mars/resource-data").stdout, 60, "log 1 to go")
    c.marsd_start()
    c.wait(lambda: "c" not in members(c), 60, "c to see that it is out")
    a.run(WRITE)
    scenario.wait_equal(a, b, "data")
    assert members(a) == members(b) == ["a", "b"]
