"""Fixture for tests that make files fail under a real marsd: hosts that are under the I/O layer."""

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tools import scenario
from tools.hosts import MIB, Cluster

HERE = Path(__file__).resolve().parent
if str(HERE / "cluster") not in sys.path:
    sys.path.insert(0, str(HERE / "cluster"))


@pytest.fixture
def faulty_pair(cluster: Callable[..., Cluster]) -> Callable[..., Cluster]:
    """Factory: hosts "a" and "b", resource "data" with primary a, others are synced. `host.rules` says what fails."""
    from tests.fault import iolayer

    def make(names: str = "ab", data_size: int = 64 * MIB, **options: object) -> Cluster:
        hosts = cluster(*names, data_size=data_size, **options)
        library = iolayer.build(hosts.folder)
        for host in hosts:
            host.rules = iolayer.Rules(host.folder / "rules")
            host.marsd_environment = iolayer.environment(library, rules=host.rules.path)
        first, *others = hosts
        scenario.form_cluster(hosts)
        scenario.create_resource(first, "data")
        for host in others:
            scenario.join_resource(host, "data")
            scenario.wait_equal(first, host, "data")
        return hosts

    return make
