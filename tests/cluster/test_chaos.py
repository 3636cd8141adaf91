"""Everything at once: commands and harms in any order on three real hosts (issue 6, "No sequence of commands and
failures silently loses or mixes data").

MARS_SEED=n repeats a run, MARS_STEPS=n makes it longer (`make test-long`). The seed is printed.
"""

import os

import pytest
from chaos_steps import Chaos

STEPS = int(os.environ.get("MARS_STEPS", "10"))
SEED = int(os.environ.get("MARS_SEED") or 1)
CALM = 5


@pytest.mark.parametrize("names", ["ab", "abc"])
def test_chaos(pair, tmp_path, names):
    """Rules 1, 4, 6, 11, 14, 18 to 24: no acknowledged write is lost without force, the device is always a state that
    was, and in the end all disks are equal."""
    print(f"MARS_SEED={SEED}")
    chaos = Chaos(pair(names, data_size=8 << 20), tmp_path / "chaos", SEED)
    chaos.settle()
    for number in range(1, STEPS + 1):
        chaos.step()
        if number % CALM == 0:
            chaos.settle()
