"""Kill rounds at random moments under file systems and databases (issue 3, "Real kills"): see `rounds.py`.

MARS_ROUNDS=200 plays more of them, ten on each new pair of hosts; MARS_SEED=n repeats a run. The seed is printed.
"""

import faulthandler
import os
import random
import sys

import pytest
from rounds import DECK, Rounds

ROUNDS = max(1, int(os.environ.get("MARS_ROUNDS", "10")))
HANGS_S = 600
SEED = int(os.environ.get("MARS_SEED") or random.SystemRandom().randrange(10**6))


@pytest.mark.parametrize("batch", range(-(-ROUNDS // len(DECK))))
def test_rounds(cluster, tmp_path, batch):
    """Rules 1, 3, 4, 8, 11, 12, 20: no kill loses anything acknowledged, and a worker's death is only a pause."""
    seed = SEED + batch
    print(f"MARS_SEED={seed}")
    rounds = Rounds(cluster("a", "b", data_size=1 << 20), tmp_path / "rounds", seed)
    for number in range(min(len(DECK), ROUNDS - batch * len(DECK))):
        faulthandler.dump_traceback_later(HANGS_S, exit=True, file=sys.__stderr__)  # pytest's would be for all of them
        print(rounds.play(number), flush=True)
    rounds.finish()
    print(f"{rounds.transactions} transactions are all there")
