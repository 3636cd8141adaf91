"""Rule 27 simulated: entering and leaving emergency mode, power cuts at each step, the healing of members. The right
order breaks nothing; each wrong order is found."""
from __future__ import annotations

import pytest

from tests.sim.emergency_world import BROKEN, Wrong, run

RUNS = 3000


def test_the_order_of_rule_27_holds():
    """Rule 27: nothing flushed is lost, nobody reads anything old, no member calls a mixture consistent, and all are
    equal in the end."""
    crossed = 0
    for seed in range(RUNS):
        try:
            crossed += run(seed).crossed
        except Wrong as err:
            raise AssertionError(f"seed {seed}: {err}") from err
    assert RUNS // 2 < crossed < RUNS  # some runs never enter


@pytest.mark.parametrize("broken", BROKEN)
def test_each_wrong_order_is_found(broken):
    """Rule 27: the search would find an implementation that did this."""
    for seed in range(RUNS):
        try:
            run(seed, broken)
        except Wrong:
            return
    pytest.fail(f"{broken}: not found in {RUNS} runs")
