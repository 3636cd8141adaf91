"""A log that was rotated while nobody wrote: those who come later find their way into it."""
from __future__ import annotations

from tools import scenario
from tools.hosts import MIB


def test_join_after_rotation_of_an_idle_log(cluster):
    """The newest log is empty when a replica is promised to begin in it: no split brain (rule 7), nothing to rotate
    twice, and the replica gets what is written next."""
    pair = cluster("a", "b", data_size=64 * MIB)
    a, b = pair
    scenario.form_cluster(pair)
    scenario.create_resource(a, "data")
    a.run("dd if=/dev/urandom of=/dev/mars/data bs=1M count=8 oflag=direct conv=fsync status=none")
    a.wait(lambda: scenario.settled(a, "data"), 60, "write-back to end")
    assert "log 2 begins" in a.run("marsadm log-rotate data").stdout
    assert "empty" in a.run("marsadm log-rotate data").stdout
    assert not a.path("/mars/resource-data/log-000000003-a").exists()
    scenario.join_resource(b, "data")
    scenario.wait_equal(a, b, "data", 60)
    a.run("dd if=/dev/urandom of=/dev/mars/data bs=1M count=4 oflag=direct conv=fsync status=none")
    scenario.wait_equal(a, b, "data", 60)
    assert not [key for key in {**a.tree(), **b.tree()} if "splitbrain" in key]
