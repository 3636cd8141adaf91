"""Makes a recording: phases of `scenario` under the I/O layer, each ended by itself or by SIGKILL, and their tape.

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
from tests.crash.tape import Parser, Tape
from tests.fault import iolayer

TOP = Path(__file__).resolve().parents[2]
SLOW = ("write *log-0* p={p} delay=0..2", "fdatasync *log-0* p={p} delay=0..3", "write */disk p={p} delay=0..1",
        "fdatasync */disk p={p} delay=0..2", "fsync * p={p} delay=0..1")


@dataclass
class Recording:
    """`sources`: the logs that a secondary fetches, by name. `phases`: how each ended."""

    seed: int
    kind: str
    host: str
    tape: Tape
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
        return _make(seed, kind, folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _make(seed: int, kind: str, folder: Path) -> Recording:
    rng = random.Random(f"{seed}.{kind}.phases")
    root, host, sources = folder / "h", "a" if kind == "primary" else "b", {}
    if kind == "secondary":
        sources = _sources(seed, folder / "s")
    make_host(root, host, SIZE, LogPos(1, "a", 0))
    if sources:
        (root / "source").mkdir()
        for name, data in sources.items():
            (root / "source" / name).write_bytes(data)
    parser = Parser(str(root))
    rules, record, library = iolayer.Rules(folder / "rules"), folder / "record", iolayer.build()
    done, phases = 0, []
    for phase in range(3):
        slow = [line.format(p=rng.choice((0.05, 0.2, 0.5))) for line in SLOW]
        end = f"kill at {rng.randrange(20, 700)}" if rng.random() < 0.7 else "by itself"
        if end != "by itself":
            slow.append(f"write,fdatasync,fsync,rename,symlink {root}/* nth={end.split()[-1]} kill")
        rules.set(*slow)
        env = iolayer.environment(library, rules=rules.path, record=record, roots=[root], seed=seed + phase)
        status = _run(kind, root, seed, phase, env)
        phases.append(end if status else "by itself")
        entries = list(iolayer.read_record(record))
        parser.add(entries[done:])
        done = len(entries)
        parser.killed()
    for ops in (parser.tape.file_ops, parser.tape.name_ops):
        ops.sort(key=lambda op: op.issue)                   # type: ignore[attr-defined]
    return Recording(seed, kind, host, parser.tape, sources, phases)


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
