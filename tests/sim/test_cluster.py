"""A whole cluster by seed: real planner, runner, merge, logs, recovery under anything that happens (`cluster_world`).

MARS_CLUSTER_SEEDS=FIRST:LAST chooses. A failure names its seed; `python -m tests.sim.cluster --seed N` tells its story
again, `make sim SEED=N` begins a new search there. That the checkers see broken rules is proved by the mutants whose
test stands here (`make mutants`).
"""
from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.sim.cluster import search, workplace

FIRST, LAST = map(int, os.environ.get("MARS_CLUSTER_SEEDS", "0:2000").split(":"))
PARTS = 4


@pytest.mark.parametrize("part", range(PARTS))
def test_cluster(part: int, tmp_path: Path) -> None:
    """Rules 7, 18 to 26: one primary unless forced; what was flushed stays; equal position, equal bytes; a split brain
    is told iff histories have parted, by all; the documented repair leads out."""
    size = (LAST - FIRST + PARTS - 1) // PARTS
    seeds = range(FIRST + part * size, min(LAST, FIRST + (part + 1) * size))
    with workplace(tmp_path) as place:
        found = search(seeds, place)
    assert not found.failures, "\n".join(found.failures)
    if len(seeds) > 100:
        assert found.starts > len(seeds), "hardly anything happened"
        assert found.forced > len(seeds) / 10 and found.parted, "nobody forced anything"
