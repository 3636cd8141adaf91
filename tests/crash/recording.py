"""Makes a recording: phases of `scenario` under the I/O layer, each ended by itself, by SIGKILL or by a power cut.

The workload is that of the seed; how its threads meet is the machine's, so a recording is kept (`save`) when a state of
it fails: the state is then found again in the file.
"""
from __future__ import annotations

import os
import pickle
import random
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

from marsx.base.position import LogPos
from marsx.log import reader
from marsx.log.record import BLOCK
from tests.crash.host import RESOURCE, UUID, make_host
from tests.crash.scenario import SIZE
from tests.crash.states import Walk
from tests.crash.tape import Parser, Tape
from tests.fault import iolayer

PHASES = 4
POWER_STATE = 40                    # not one of the simple ones
TOP = Path(__file__).resolve().parents[2]
SLOW = ("write *log-0* p={p} delay=0..2", "fdatasync *log-0* p={p} delay=0..8", "write */disk p={p} delay=0..1",
        "fdatasync */disk p={p} delay=0..2", "fsync * p={p} delay=0..1")
FAULTY = 0.4                        # share of the phases in which a disk fails or is full
FAULTS = ("fdatasync *log-0* {n} EIO", "fdatasync,fsync *log-0* {n} EIO", "fdatasync,fsync */mars/* {n} EIO",
          "write *log-0* {n} EIO",
          "write */disk {n} EIO", "fdatasync */disk {n} EIO", "fallocate *log-0* p=0.3 ENOSPC",
          "open,link,rename *log-0* p=0.5 ENOSPC", "write *log-0* p=0.03 ENOSPC", "symlink * p=0.05 ENOSPC")


@dataclass
class Recording:
    """`tapes`: one, and one more for each power cut in the run. A tape's host begins with what a power cut left of the
    one before: state number POWER_STATE of its last moment. `sources`: the logs that a secondary fetches, by name.
    `phases`: how each process ended."""

    seed: int
    kind: str
    host: str
    tapes: list[Tape] = field(default_factory=list)
    sources: dict[str, bytes] = field(default_factory=dict)
    phases: list[str] = field(default_factory=list)

    def save(self, path: Path) -> None:
        """Into a file."""
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(pickle.dumps(self))

    @staticmethod
    def load(path: Path) -> Recording:
        """Out of a file that save() wrote (trusted: our own)."""
        found = pickle.loads(path.read_bytes())
        assert isinstance(found, Recording)
        return found


def make(seed: int, kind: str, folder: Path) -> Recording:
    """Record `kind` ("primary" or "secondary") in an empty folder on a fast file system; the folder is removed."""
    folder.mkdir(parents=True)
    try:
        return _Maker(seed, kind, folder).make()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


class _Maker:
    """One recording under way."""

    def __init__(self, seed: int, kind: str, folder: Path) -> None:
        self.rng = random.Random(f"{seed}.{kind}.phases")
        self.root, self.folder = folder / "h", folder
        self.made = Recording(seed, kind, "a" if kind == "primary" else "b")
        self.seen = 0

    def make(self) -> Recording:
        """All phases."""
        one = self.made
        if one.kind == "secondary":
            one.sources = _sources(one.seed, self.folder / "s")
        make_host(self.root, one.host, SIZE, LogPos(1, "a", 0))
        if one.sources:
            (self.root / "source").mkdir()
            for name, data in one.sources.items():
                (self.root / "source" / name).write_bytes(data)
        self.rules = iolayer.Rules(self.folder / "rules")
        parser = Parser(str(self.root))
        for phase in range(PHASES):
            how = self.rng.choice(("by itself", "kill", "kill", "power cut", "power cut"))
            self.phase(parser, phase, how)
            if how == "power cut" and phase < PHASES - 1:
                one.tapes.append(_finished(parser.tape))
                self.cut_power(parser.tape)
                parser = Parser(str(self.root))
        one.tapes.append(_finished(parser.tape))
        return one

    def phase(self, parser: Parser, phase: int, how: str) -> None:
        """One process from its start to its end."""
        one, record = self.made, self.folder / "record"
        slow = [line.format(p=self.rng.choice((0.05, 0.3, 0.8))) for line in SLOW]
        if how != "by itself":
            where, most = self.rng.choice((("mars/*", 500), ("mars/*", 200), ("disk", 150)))
            number = self.rng.randrange(5, most)
            slow.append(f"write,fdatasync,fsync,rename,symlink {self.root}/{where} nth={number} kill")
        faulty, sound = self.rng.random() < FAULTY, len(slow)
        if faulty:
            chosen = self.rng.sample(FAULTS, self.rng.choice((1, 1, 2)))
            slow += [line.format(n=f"{self.rng.choice(('nth', 'from', 'from'))}={self.rng.randrange(3, 60)}")
                     for line in chosen]
        self.rules.set(*slow)
        Path(f"{self.rules.path}.hits").unlink(missing_ok=True)
        env = iolayer.environment(iolayer.build(), rules=self.rules.path, record=record, roots=[self.root],
                                  seed=one.seed + phase)
        env["MARS_CRASH_FAULTS"] = str(int(faulty))
        status = _run(one.kind, self.root, one.seed, phase, env)
        ended = how if status or how == "power cut" else "by itself"
        hit = any(line > sound for line, *_ in self.rules.hits())
        one.phases.append(f"{ended} after a fault" if hit else ended)
        entries = list(iolayer.read_record(record))
        parser.add(entries[self.seen:])
        self.seen = len(entries)
        parser.killed()

    def cut_power(self, tape: Tape) -> None:
        """The host is what a power cut at the end of the tape leaves."""
        walk = Walk(tape, self.made.seed)
        while walk.now < tape.length:
            walk.step()
        walk.restore(str(self.root), POWER_STATE)


def _finished(tape: Tape) -> Tape:
    tape.file_ops.sort(key=lambda op: op.issue)
    tape.name_ops.sort(key=lambda op: op.issue)
    return tape


def _run(kind: str, root: Path, seed: int, phase: int, env: dict[str, str]) -> int:
    """0: ended by itself; -9: killed as planned. Anything else is an error of the scenario, or of the product."""
    done = subprocess.run([sys.executable, "-m", "tests.crash.scenario", kind, str(root), str(seed), str(phase)],
                          cwd=TOP, env={**os.environ, **env}, capture_output=True, text=True, timeout=120)
    if done.returncode not in (0, -9):
        raise AssertionError(f"{kind} seed {seed} phase {phase}: exit {done.returncode}\n{done.stderr[-3000:]}")
    return done.returncode


def _sources(seed: int, root: Path) -> dict[str, bytes]:
    """Logs of a primary, as far as their groups go."""
    make_host(root, "a", SIZE, LogPos(1, "a", 0))
    for phase in range(2):
        _run("source", root, seed, phase, {})
    found = {}
    for entry in reader.list_logs(str(root / "mars/resource-data")):
        with reader.open_log(entry.path, UUID, RESOURCE) as log:
            end = BLOCK + reader.scan(log.fd, log.header).end
        found[os.path.basename(entry.path)] = Path(entry.path).read_bytes()[:end]
    return found
