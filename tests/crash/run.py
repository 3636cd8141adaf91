"""Enumerated crash states: record, cut, recover, check; counts at the end.

    python -m tests.crash.run [--seed N] [--states N] [--seconds S] [--jobs N] [--kinds primary,secondary]
    python -m tests.crash.run --state RECORDING,TAPE,CUT,NUMBER,power|kill

Recordings are made one after the other until so many distinct states were checked. A state that breaks a rule ends the
run with status 1; its recording is kept and the command that shows just this state is printed.
"""
from __future__ import annotations

import argparse
import ctypes
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.crash import recording
from tests.crash.checker import Checker, Violation
from tests.crash.recording import Recording
from tests.crash.states import State, Walk

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
START_EVERY = 100                   # of so many distinct states one is started as a whole


@dataclass
class Effort:
    """How much is to be done. `budget`: states of one power cut; `cuts`: share of the moments that are looked at;
    `end`: of time.monotonic()."""

    states: int
    budget: int
    cuts: float
    end: float

    def enough(self, count: Counter[str]) -> bool:
        """That many states, or no time."""
        return count["distinct"] >= self.states or time.monotonic() > self.end


def walk_states(walk: Walk, checker: Checker, effort: Effort) -> Iterator[State]:
    """The states of a tape, in the order of the cuts. Between two operations nothing changes but the promises, which
    only grow: one cut there, the last one, stands for all."""
    rng = random.Random(walk.seed)
    while walk.now < walk.tape.length:
        walk.step()
        if walk.changes_next() and rng.random() < effort.cuts:
            checker.count["cuts"] += 1
            for power in (True, False):
                yield from walk.states(effort.budget if power else 3, power)


def check_recording(one: Recording, folder: Path, effort: Effort, count: Counter[str]) -> None:
    """The states of one recording, as long as the effort goes. Adds to the counts."""
    checker = Checker(one, folder / "state", count)
    count["recordings"] += 1
    count["faulty"] += sum("fault" in phase for phase in one.phases)
    try:
        for number, tape in enumerate(one.tapes):
            checker.begin(number)
            count["operations"] += len(tape.file_ops) + len(tape.name_ops) + len(tape.syncs)
            count["power_phases"] += number > 0
            check_tape(checker, number, folder, effort)
    finally:
        checker.close()


def check_tape(checker: Checker, number: int, folder: Path, effort: Effort) -> None:
    """The states of one tape."""
    one, count = checker.recording, checker.count
    walk, started = Walk(one.tapes[number], one.seed), count["distinct"]
    for state in walk_states(walk, checker, effort):
        if effort.enough(count):
            return
        try:
            checker.check(state)
            if count["distinct"] >= started + START_EVERY:
                started = count["distinct"]
                checker.check_start(state, folder / "start")
        except Violation as err:
            raise Failed(one, number, state, err) from err


class Failed(Exception):
    """A state broke a rule."""

    def __init__(self, one: Recording, tape: int, state: State, why: Violation) -> None:
        super().__init__(str(why))
        self.recording, self.tape, self.state = one, tape, state


def report(err: Failed, keep: Path) -> str:
    """What a person needs to see just this state again."""
    state, one = err.state, err.recording
    file = keep / f"{one.kind}-{one.seed}-{os.getpid()}.rec"
    one.save(file)
    how = "power" if state.power else "kill"
    return (f"VIOLATION: {err}\n  {one.kind} seed {one.seed} (phases: {', '.join(one.phases)}), tape {err.tape}, "
            f"{how} at entry {state.cut}, state {state.number}; replay link "
            f"{next((v for k, v in state.links.items() if '/replay-' in k), '-')}\n"
            f"  again: python -m tests.crash.run --state {file},{err.tape},{state.cut},{state.number},{how}")


def campaign(seed: int, kinds: list[str], folder: Path, effort: Effort) -> Counter[str]:
    """Recordings until the effort is made."""
    count: Counter[str] = Counter()
    number = 0
    while not effort.enough(count):
        one = recording.make(seed * 1000 + number, kinds[number % len(kinds)], folder / "record")
        check_recording(one, folder, effort, count)
        number += 1
    return count


def show(text: str, folder: Path) -> None:
    """One state again."""
    file, tape, cut, number, how = text.rsplit(",", 4)
    one = Recording.load(Path(file))
    checker, walk = Checker(one, folder / "state", Counter()), Walk(one.tapes[int(tape)], one.seed)
    for before in range(int(tape) + 1):
        checker.begin(before)
    while walk.now < int(cut):
        walk.step()
    power = how == "power"
    state = walk.state(int(number), power, *walk.open_ops(power))
    print(f"state {state.key.hex()}: logs { {n: len(d) for n, d in state.logs.items()} }, {state.partial} operations "
          f"not whole, promised: {checker.promises.at(state.cut, power)}")
    for rel, value in sorted(state.links.items()):
        print(f"  {rel} -> {value}")
    try:
        checker.check(state)
        checker.check_start(state, folder / "start")
        print(f"no rule is broken: recovered up to {checker.done[state.key]}")
    finally:
        checker.close()


def summary(count: Counter[str], begin: float) -> str:
    """The counts, and the time since `begin`."""
    used = os.times()
    cpu, seconds = used.user + used.system + used.children_user + used.children_system, time.monotonic() - begin
    return (f"{count['distinct']} distinct states ({count['power']} power cuts, {count['kill']} kills) of "
            f"{count['states']} made at {count['cuts']} cuts of {count['recordings']} recordings with "
            f"{count['operations']} operations ({count['power_phases']} go on after a power cut; in "
            f"{count['faulty']} phases a disk failed or was full)\n"
            f"{count['partial']} with operations lost or torn, {count['loss']} that lost answered writes which no "
            f"flush covered, {count['again']} recovered twice, {count['starts']} started as a whole,\n"
            f"{count['rot']} with a turned bit ({count['rot_named']} named as damage); {seconds:.0f} s, "
            f"{cpu:.0f} s of processor time")


def side_by_side(args: argparse.Namespace) -> tuple[Counter[str], list[str]]:
    """Several processes, each with seeds of its own. Their counts, and what they say of broken rules."""
    children = []
    for number in range(args.jobs):
        argv = [sys.executable, "-m", "tests.crash.run", "--seed", str(args.seed * 100 + number), "--json",
                "--states", str(-(-args.states // args.jobs)), "--seconds", str(args.seconds),
                "--budget", str(args.budget), "--cuts", str(args.cuts), "--kinds", args.kinds, "--keep", args.keep]
        children.append(subprocess.Popen(argv, cwd=recording.TOP, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                                         text=True))
    total: Counter[str] = Counter()
    errors = []
    for child in children:
        out, err = child.communicate()
        if child.returncode:
            errors.append(err)
        else:
            total += Counter(json.loads(out))
    return total, errors


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--states", type=int, default=20000)
    parser.add_argument("--seconds", type=float, default=1e9)
    parser.add_argument("--jobs", type=int, default=0)
    parser.add_argument("--budget", type=int, default=4, help="states of one power cut")
    parser.add_argument("--cuts", type=float, default=1.0, help="share of the moments that are looked at")
    parser.add_argument("--kinds", default="primary,primary,secondary")
    parser.add_argument("--keep", default=str(recording.TOP / "build/crash"))
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--state", default="")
    return parser.parse_args()


def keep_memory() -> None:
    """Images of a MiB come and go all the time: libc must not give each back to the kernel."""
    libc = ctypes.CDLL(None)
    for option in (_M_MMAP_THRESHOLD, _M_TRIM_THRESHOLD):
        assert libc.mallopt(option, 1 << 30)


def main() -> int:
    """See the module."""
    args = parse()
    keep_memory()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))     # folders are removed then, too
    begin = time.monotonic()
    if args.jobs:
        count, errors = side_by_side(args)
        print(f"seed {args.seed}: {summary(count, begin)}")
        print(*errors, sep="\n", file=sys.stderr)
        return 1 if errors else 0
    folder = Path(tempfile.mkdtemp(prefix="marsx-crash-", dir="/dev/shm"))
    try:
        if args.state:
            show(args.state, folder)
            return 0
        effort = Effort(args.states, args.budget, args.cuts, begin + args.seconds)
        count = campaign(args.seed, args.kinds.split(","), folder, effort)
        print(json.dumps(count) if args.json else f"seed {args.seed}: {summary(count, begin)}")
        return 0
    except Failed as err:
        print(report(err, Path(args.keep)), file=sys.stderr)
        return 1
    finally:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    sys.exit(main())
