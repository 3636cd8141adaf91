"""A real marsd under the I/O layer: it is hit while it runs, wherever it opened its files, and says what is wrong."""
from __future__ import annotations

import os

import pytest

from tests.fault import iolayer
from tools.hosts import MIB

pytestmark = [pytest.mark.cluster, pytest.mark.root]


def write_and_sync(host, offset: int) -> bool:
    """One flushed block through the device; False on an error."""
    code = f"import os; fd = os.open('/dev/mars/data', os.O_WRONLY); os.pwrite(fd, b'x' * 4096, {offset}); os.fsync(fd)"
    return host.run(["python3", "-c", code], check=False).returncode == 0


def test_marsd_is_hit_while_it_runs(cluster):
    """The log's fdatasync fails from a moment on: no flush succeeds any more, and the resource says why. Rule 1: an
    fsync error is never retried into success, also when the disk is well again."""
    host = cluster("a", data_size=16 * MIB, mars_size=128 * MIB)["a"]
    rules = iolayer.Rules(host.folder / "rules")
    library = iolayer.build(host.folder)
    host.marsd_environment = iolayer.environment(library, rules=rules.path)
    host.run("marsadm create-cluster")
    host.marsd_start()
    host.run(f"marsadm create-resource data {host.data_device}")
    host.wait(lambda: os.path.lexists(host.path("/dev/mars/data")), 30, "the device")
    assert write_and_sync(host, 0)
    rules.set("fdatasync /mars/*log-0* EIO")
    assert not write_and_sync(host, 4096)
    assert rules.hits() and "log-0" in rules.hits()[0][3]
    rules.set()
    assert not write_and_sync(host, 8192)
    host.wait(lambda: "syncing the log failed" in host.run("mars-status", check=False).stdout, 30, "the message")
