"""Searches histories of `cluster_world`: `make sim SEED=N`, or `python -m tests.sim.cluster --seed N` for the story of
one of them."""
from __future__ import annotations

import argparse
import contextlib
import logging
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from marsx.daemon import logcopy
from tests.sim.cluster_world import World

SHM = "/dev/shm"


@dataclass
class Found:
    """What many histories held."""

    starts: int = 0
    forced: int = 0
    parted: int = 0
    damaged: int = 0
    salvaged: int = 0
    hopeless: int = 0
    failures: list[str] = field(default_factory=list)


@contextlib.contextmanager
def workplace(spare: Path) -> Iterator[str]:
    """A directory in memory if its file system takes O_DIRECT, else below `spare`."""
    place = tempfile.mkdtemp(prefix="marsx-sim-", dir=SHM if os.path.isdir(SHM) else spare)
    try:
        probe = os.path.join(place, "probe")
        try:
            os.close(os.open(probe, os.O_RDWR | os.O_CREAT | os.O_DIRECT, 0o600))
            yield place
        except OSError:
            yield str(spare)
    finally:
        shutil.rmtree(place, ignore_errors=True)


def tell(seed: int, place: str) -> tuple[World, str]:
    """One history, and what was wrong with it ("": nothing). In every other one copies publish at once what they
    have, in the others as seldom as in real life."""
    logcopy.VERSION_INTERVAL_S = 0.01 if seed % 2 else 1.0
    world = World(seed, os.path.join(place, f"sim-{seed}"))
    try:
        world.run()
    except Exception as error:
        return world, f"seed {seed}: {type(error).__name__}: {error}"
    return world, ""


def search(seeds: Iterable[int], place: str, most: int = 1) -> Found:
    """Until so many have failed."""
    found = Found()
    for seed in seeds:
        world, failure = tell(seed, place)
        found.starts, found.forced = found.starts + world.starts, found.forced + bool(world.forced)
        found.parted += world.parted
        found.damaged, found.salvaged = found.damaged + bool(world.damaged), found.salvaged + bool(world.salvaged)
        found.hopeless += world.hopeless
        if failure:
            found.failures.append(f"{failure}\n(again: python -m tests.sim.cluster --seed {seed})")
            if len(found.failures) >= most:
                break
    return found


def main() -> int:
    """Status 1 when a history broke a rule."""
    parser = argparse.ArgumentParser(prog="python -m tests.sim.cluster")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--count", type=int, default=1)
    args = parser.parse_args()
    logging.disable(logging.CRITICAL)
    with workplace(Path(tempfile.gettempdir())) as place:
        if args.count == 1:
            world, failure = tell(args.seed, place)
            print("\n".join([*world.log, failure or "all rules held"]))
            return int(bool(failure))
        began = time.process_time()
        found = search(range(args.seed, args.seed + args.count), place, most=20)
    print("\n".join(found.failures))
    print(f"{args.count} histories from seed {args.seed}: {found.starts} times primary, {found.forced} with force, "
          f"{found.parted} split brains, {found.damaged} with damaged logs, {found.salvaged} where force ended them, "
          f"{found.hopeless} without a whole disk, {len(found.failures)} failures, {time.process_time() - began:.0f} s")
    return int(bool(found.failures))


if __name__ == "__main__":
    sys.exit(main())
