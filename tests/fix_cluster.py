"""Fixtures for tests on real hosts: `cluster("a", "b")` makes hosts, ends them after the test, proves nothing stays.

Missing privileges are a skip with the reason; a missing `mars.pyz` is a failure, because then nothing would be tested.
The fixture `machinery` makes the same hosts around a stand-in for `mars.pyz`, to test hosts and network by themselves.
"""

import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

TOP = Path(__file__).resolve().parent.parent
if str(TOP) not in sys.path:
    sys.path.insert(0, str(TOP))

from tools import loops, scenario  # noqa: E402
from tools.hosts import MIB, Cluster  # noqa: E402

Make = Callable[..., Cluster]


def missing() -> str:
    """Why this machine cannot run hosts ("" = it can)."""
    if os.geteuid() != 0:
        return "hosts in name spaces need root"
    for device in ("/dev/fuse", "/dev/loop-control"):
        if not os.path.exists(device):
            return f"{device} is not there: the kernel has no such driver, or it is hidden in this container"
    return ""


@pytest.fixture(scope="session")
def no_leftovers() -> Iterator[list[Cluster]]:
    """At the end of the session no loop device, mount, process or folder of any of our clusters may exist."""
    made: list[Cluster] = []
    previous = signal.signal(signal.SIGTERM, _terminated)
    yield made
    signal.signal(signal.SIGTERM, previous)
    found = {str(one.folder): one.leftovers() for one in made}
    ours = tuple(str(one.folder) for one in made)
    stray = [f"{dev} on {file}" for dev, file in loops.all_backing_files().items() if ours and file.startswith(ours)]
    assert not stray and not any(found.values()), f"left behind: {stray} {found}"


def _terminated(number: int, frame: object) -> None:
    """`timeout` and the like end a run as Ctrl-C does: the hosts are taken away."""
    raise KeyboardInterrupt("SIGTERM")


def _maker(made: list[Cluster], mine: list[Cluster], pyz: Path) -> Make:
    def make(*names: str, **options: object) -> Cluster:
        one = Cluster(names, pyz, **options)
        made.append(one)
        mine.append(one)
        return one

    return make


def _end(mine: list[Cluster], failed: bool) -> None:
    for one in mine:
        if failed:
            print(one.dump())
        one.close()
    for one in mine:
        assert one.leftovers() == [], "the cluster left something behind"


_FAILED = pytest.StashKey[bool]()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    """Remember a failed call, so that the fixture can print the state of the hosts before it ends them."""
    report = yield
    if report.when == "call":
        item.stash[_FAILED] = report.failed
    return report


@pytest.fixture
def cluster(request: pytest.FixtureRequest, no_leftovers: list[Cluster]) -> Iterator[Make]:
    """Factory of clusters with the real `mars.pyz`, nothing set up on them yet."""
    if missing():
        pytest.skip(missing())
    pyz = Path(os.environ.get("MARS_PYZ", TOP / "mars.pyz"))
    if not pyz.is_file():
        pytest.fail(f"{pyz} is not there: run `make pyz` first")
    mine: list[Cluster] = []
    try:
        yield _maker(no_leftovers, mine, pyz)
    finally:
        _end(mine, request.node.stash.get(_FAILED, False))


@pytest.fixture
def pair(cluster: Make) -> Callable[..., Cluster]:
    """Factory: hosts "a" and "b" in one cluster, resource "data" with primary a; b has joined, its sync may run."""

    def make(names: str = "ab", data_size: int = 128 * MIB, **options: object) -> Cluster:
        one = cluster(*names, data_size=data_size, **options)
        first, *others = list(one)
        scenario.form_cluster(one)
        scenario.create_resource(first, "data")
        for host in others:
            scenario.join_resource(host, "data")
        return one

    return make


@pytest.fixture
def machinery(request: pytest.FixtureRequest, no_leftovers: list[Cluster], tmp_path: Path) -> Iterator[Make]:
    """Factory of clusters whose `mars.pyz` is the stand-in of `tests/cluster/stand_in.py`."""
    if missing():
        pytest.skip(missing())
    mine: list[Cluster] = []
    try:
        yield _maker(no_leftovers, mine, Path(__file__).parent / "cluster/stand_in.py")
    finally:
        _end(mine, request.node.stash.get(_FAILED, False))
