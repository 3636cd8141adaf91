"""Metrics: what promtool says of them, names as documented, values as in the picture, hostile names as text."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from marsx.monitor import prometheus
from marsx.monitor.picture import picture
from marsx.monitor.prometheus import FAMILIES, text
from marsx.monitor.seen import DOWN, RUNNING, Daemon, LogFile, Seen
from marsx.tree.view import View
from tests.unit.admin.small_tree import NOW, SmallTree
from tests.unit.monitor.test_picture import pictured

TOP = Path(__file__).resolve().parents[3]
LIVE = {"data": {
    "counters": {"writes": 7, "write_bytes": 28672, "reads": 3, "read_bytes": 12288, "flushes": 2, "groups": 4,
                 "syncs": 2, "waits": 0, "latency": [1, 0, 0, 4, 0, 0, 0, 2, *[0] * 24], "latency_us": 250,
                 "read_latency": [3, *[0] * 31], "read_latency_us": 0,
                 "flush_latency": [0, 0, 2, *[0] * 29], "flush_latency_us": 6,
                 "group_sizes": [2, 1, 1, 0, 0, 0, 0, 0], "records": 7},
    "state": {"writeback_rest": 4096, "shadow_bytes": 8192},
}}


@pytest.fixture
def tree(tmp_path: Path) -> SmallTree:
    """a is primary of data, b follows; b lacks something, and cannot reach a; c has no replica."""
    tree = SmallTree(tmp_path).cluster("a", "b", "c").resource("data", "a", "b")
    tree.put("resource-data/actual-b/is-replaying", "1")
    tree.put("resource-data/actual-b/stalled", "fetch=peer-silent,sync=no-slot")
    tree.put("resource-data/actual-b/verify-state", "differs")
    tree.put("resource-data/actual-b/verify-differs", "512")
    tree.put("resource-data/actual-b/verify-time", f"{NOW // 10**9 - 60}.000000000")
    tree.put("actual-a/unreachable", "b=silent")
    tree.put("actual-a/total-space", "5")
    tree.put("actual-a/rest-space", "3")
    return tree


def full(tree: SmallTree) -> Any:
    """A picture in which everything is known."""
    return pictured(tree, free_bytes=1 << 30, total_bytes=1 << 31, logs={"data": (LogFile(1, "a", 8192, 1.0),)})


def of_today(tree: SmallTree) -> SmallTree:
    """The same with stamps of today: what comes from the future is not believed by real programs."""
    for folder, folders, files in os.walk(tree.paths.mars_dir):
        for name in [*folders, *files]:
            os.utime(os.path.join(folder, name), follow_symlinks=False)
    return tree


def values(metrics: str) -> dict[str, float]:
    """`name{labels}` -> value."""
    rows = (line.rpartition(" ") for line in metrics.splitlines() if not line.startswith("#"))
    return {name: float(value) for name, _, value in rows}


def test_promtool_likes_them(tree: SmallTree) -> None:
    """No complaint about names, units, help, types, order, and histograms."""
    if not shutil.which("promtool"):
        pytest.skip("promtool is not there (Debian: prometheus)")
    done = subprocess.run(["promtool", "check", "metrics"], input=text(full(tree), LIVE), capture_output=True,
                          text=True, timeout=60)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


def test_values(tree: SmallTree) -> None:
    """Some of each kind."""
    found = values(text(full(tree), LIVE))
    expected = {
        'mars_daemon_state{state="running"}': 1, 'mars_daemon_state{state="down"}': 0,
        'mars_resource_role{resource="data",host="a",state="primary"}': 1,
        'mars_resource_role{resource="data",host="b",state="primary"}': 0,
        'mars_resource_switch{resource="data",host="b",switch="allow-replay"}': 1,
        'mars_peer_connection_state{host="b",state="silent"}': 1,
        'mars_peer_connection_state{host="b",state="connected"}': 0,
        'mars_peer_connection_state{host="c",state="connected"}': 1,
        'mars_resource_stalls{resource="data",host="b"}': 2, 'mars_resource_stalls{resource="data",host="a"}': 0,
        'mars_resource_stalled{resource="data",host="b",activity="fetch",cause="peer-silent"}': 1,
        'mars_resource_verify_differs_bytes{resource="data",host="b"}': 512,
        'mars_resource_verify_state{resource="data",host="b",state="differs"}': 1,
        'mars_dir_free_bytes{host="a"}': 1 << 30, 'mars_log_bytes{resource="data"}': 8192,
        'mars_resource_split_brain{resource="data"}': 0,
        'mars_device_writes_total{resource="data"}': 7,
        'mars_device_write_latency_seconds_bucket{resource="data",le="1e-06"}': 1,
        'mars_device_write_latency_seconds_bucket{resource="data",le="8e-06"}': 5,
        'mars_device_write_latency_seconds_bucket{resource="data",le="+Inf"}': 7,
        'mars_device_write_latency_seconds_count{resource="data"}': 7,
        'mars_device_write_latency_seconds_sum{resource="data"}': 0.00025,
        'mars_log_group_records_bucket{resource="data",le="2"}': 3,
        'mars_log_group_records_count{resource="data"}': 4, 'mars_log_group_records_sum{resource="data"}': 7,
    }
    assert {name: found.get(name) for name in expected} == expected


def test_just_one_state_is_true(tree: SmallTree) -> None:
    """Of each {state=...} family, and all of its states are there."""
    found = values(text(full(tree), LIVE))
    sums: dict[str, float] = {}
    for name, value in found.items():
        if 'state="' in name:
            without = re.sub(r'state="[a-z]+"', "", name)
            sums[without] = sums.get(without, 0) + value
    assert len(sums) > 10 and set(sums.values()) == {1.0}


def test_families_are_all_seen_and_documented(tree: SmallTree) -> None:
    """With everything known no family is empty; docs/monitoring.md has each name, and no other."""
    shown = text(full(tree), LIVE)
    assert [family.name for family in FAMILIES if f"# TYPE {family.name} " not in shown] == []
    page = (TOP / "docs/monitoring.md").read_text(encoding="utf-8")
    assert set(re.findall(r"`(mars_[a-z_]+)[`{]", page)) == {family.name for family in FAMILIES}


def test_reasons_have_a_state() -> None:
    """Every reason of a connection that is a word of the protocol; what belongs to streams never gets here."""
    from marsx.peer.wire import Reason

    assert {str(reason) for reason in Reason} - prometheus.CONNECTIONS.keys() == {
        "failed", "split", "missing", "behind"}
    assert set(prometheus.CONNECTIONS.values()) | {"connected", "failed"} == set(prometheus.CONNECTION_STATES)


def test_what_is_not_known_is_left_out(tree: SmallTree) -> None:
    """marsd is down and nothing was looked at: no zeros in place of what nobody knows."""
    shown = text(pictured(tree, daemon=Daemon(DOWN)))
    assert "mars_dir_free_bytes" not in shown and "mars_log_bytes" not in shown and "mars_device_writes" not in shown
    assert 'mars_peer_alive{host="b"}' not in shown and "mars_peer_connection_state" not in shown
    assert 'mars_daemon_state{state="down"} 1' in shown


def test_no_cluster() -> None:
    """An empty tree still says who is asked."""
    shown = text(picture(View([]), NOW, Seen("a", daemon=Daemon(RUNNING))))
    assert "mars_info{" in shown and "mars_resource" not in shown and values(shown)["mars_status_level"] == 3


def test_labels_are_escaped() -> None:
    """What is in quotes stays in quotes."""
    assert prometheus._braces({"a": 'x"\\\n}'}) == '{a="x\\"\\\\\\n}"}'
