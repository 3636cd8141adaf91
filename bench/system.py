#!/usr/bin/env python3
"""Whole-system measurements: fio on /dev/mars/data of real hosts, beside the same fio on what lies below it.

Groups of measurements, each on a set-up of its own (hosts in name spaces, `tools/hosts.py`):

    alone      a primary by itself, log and data on one disk      bench/speed.py
    crash      recovery after kill -9 with a long log             bench/speed.py
    pair       primary and secondary: replay, sync, lag, line     bench/pairs.py
    syncs      full sync and verify beside rsync and dd           bench/syncs.py
    huge       full sync of 5 TiB of zeros                        bench/syncs.py
    elsewhere  log and data on different disks                    bench/disks.py
    seek       disks with one arm                                 bench/disks.py
    many       100 resources; only when --only names it           bench/pairs.py

Usage: system.py [--pyz=FILE] [--seconds=N] [--rounds=N] [--size-mib=N] [--only=WORD,...] [--to=FILE]
A WORD names a group or a part of a measurement's name. Rows go to report.json as soon as they are there.
"""

import signal
import sys
import time
from pathlib import Path

TOP = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(TOP))

from bench import disks, pairs, report, speed, syncs  # noqa: E402
from bench.report import Row  # noqa: E402
from bench.rig import Group, Options  # noqa: E402
from tools.hosts import HostError  # noqa: E402

GROUPS = (speed.GROUP, speed.CRASH, pairs.GROUP, syncs.GROUP, syncs.BIG, disks.ELSEWHERE, disks.SEEK, pairs.CROWD)


def measure(group: Group, options: Options) -> list[Row]:
    """Set one group up and run what was chosen of it."""
    chosen = group.chosen(options.only)
    if not chosen:
        return []
    began = time.monotonic()
    with group.open(options) as bench:
        for one in chosen:
            print(f"-------- {group.name}: {one.__doc__.splitlines()[0]}", flush=True)
            one(bench)
            to = Path(options.to)
            report.save(to, report.merge(report.load(to), bench.rows))
    print(f"-------- {group.name}: {time.monotonic() - began:.0f} s", flush=True)
    return bench.rows


def main(argv: list[str]) -> int:
    """Measure, write the report."""
    rows: list[Row] = []
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))         # what was made is taken away then, too
    try:
        options = Options.parse(argv[1:])
        if not any(group.chosen(options.only) for group in GROUPS):
            raise ValueError(f"--only={options.only} names nothing; see the top of bench/system.py")
        for group in GROUPS:
            rows += measure(group, options)
    except (HostError, OSError, ValueError) as problem:
        print(f"bench: {problem}", file=sys.stderr)
        return 1
    missed = [row.name for row in rows if row.verdict() == "missed"]
    print(f"{len(rows)} rows in {options.to}; goals missed: {', '.join(missed) or 'none'}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv))
