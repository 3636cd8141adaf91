"""Runs the mutants: see tests/mutants/__init__.py. Ends with status 1 when one survives or cannot be tried."""
from __future__ import annotations

import argparse
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.mutants.mutant import Mutant
from tests.mutants.table import MUTANTS

TOP = Path(__file__).resolve().parents[2]
HANGS_S = 120                       # at least; more where the sound tests take longer
BASE_S = 1800
PYTEST = ("-m", "pytest", "-q", "-x", "--no-header", "-p", "no:cacheprovider")
STATES = ("-m", "tests.crash.run", "--jobs", "2", "--states", "16000", "--seconds", "900", "--cuts", "0.1", "--kinds")
STATES_S = 1500
# A header is compiled into these extensions as far as the tests of the table need them.
BUILDS = {"ext/commit.h": ["marslog"], "ext/flush.h": ["marslog"], "ext/space.h": ["marslog"],
          "ext/log.h": ["marslog", "marsshadow", "marsdirect"], "ext/format.h": ["marsscan"], "ext/shadow.h": [],
          "ext/direct.h": ["marsdirect"]}
# These compile the headers themselves.
OWN_BUILD = ("tests/unit/ext/test_log_threads.py", "tests/unit/ext/test_shadow.py")
SKIPPED = shutil.ignore_patterns(".git", "build", "dist", "__pycache__", ".pytest_cache", ".hypothesis", "*.pyz",
                                 ".mypy_cache", ".ruff_cache")


def copy_tree(to: Path) -> Path:
    """The tree with its built extensions; the tools of .venv are shared."""
    shutil.copytree(TOP, to, symlinks=True, ignore=SKIPPED)
    venv = to / ".venv"
    if not venv.exists():
        venv.symlink_to(TOP / ".venv")
    return to


def extensions(mutant: Mutant) -> list[str]:
    """What has to be built again."""
    names: set[str] = set()
    for file, _, _ in mutant.changes:
        if file.startswith("ext/") and not mutant.test.startswith(OWN_BUILD):
            names.update([Path(file).stem] if file.endswith(".pyx") else BUILDS[file])
    return sorted(names)


def call(tree: Path, seconds: float, *command: str, **environment: str) -> subprocess.CompletedProcess[str] | None:
    """Run a command in the copy; None when it hangs."""
    process = subprocess.Popen([sys.executable, *command], cwd=tree, env={**os.environ, **environment}, text=True,
                               stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True)
    try:
        output, _ = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        return None
    return subprocess.CompletedProcess(command, process.returncode, output, "")


def by_test(tree: Path, mutant: Mutant, seconds: float) -> str:
    """What its test says."""
    done = call(tree, seconds, *PYTEST, mutant.test)
    if done is None:
        return "killed (hang)"
    if done.returncode == 1 or done.returncode < 0:
        return "killed"
    return "SURVIVES" if done.returncode == 0 else f"CANNOT BE TRIED (pytest: {done.returncode})\n{done.stdout[-3000:]}"


def by_states(tree: Path, mutant: Mutant) -> str:
    """What the enumeration of crash states says."""
    done = call(tree, STATES_S, *STATES, mutant.test.partition(":")[2], "--keep", str(tree / "build/crash"))
    if done is None:
        return "CANNOT BE TRIED (the crash states hang)"
    if done.returncode == 0:
        return "SURVIVES"
    lines = [line for line in done.stdout.splitlines() if line.strip()] or [f"status {done.returncode}"]
    return "killed: " + next((line for line in lines if line.startswith("VIOLATION")), lines[-1])[:150]


def verdict(tree: Path, mutant: Mutant, names: list[str], seconds: float) -> str:
    """"killed", or what is wrong."""
    if names:
        built = call(tree, BASE_S, "setup.py", "-q", "build_ext", "--inplace", MARS_EXT=",".join(names),
                     MARS_BUILD="release" if mutant.by_states else "debug")
        if built is None or built.returncode:
            return f"DOES NOT BUILD\n{built.stdout[-3000:] if built else ''}"
    return by_states(tree, mutant) if mutant.by_states else by_test(tree, mutant, seconds)


def try_one(tree: Path, mutant: Mutant, seconds: float) -> str:
    """Change the copy, judge, change it back."""
    names = extensions(mutant)
    before = {tree / file: (tree / file).stat() for file, _, _ in mutant.changes}
    texts = {path: path.read_text(encoding="utf-8") for path in before}
    built = {so: so.read_bytes() for name in names for so in (tree / "marsx/_ext").glob(f"{name}.*.so")}
    try:
        for file, old, new in mutant.changes:
            text = (tree / file).read_text(encoding="utf-8")
            if text.count(old) != 1:
                return f"DOES NOT FIT {file} any more"
            (tree / file).write_text(text.replace(old, new), encoding="utf-8")
        return verdict(tree, mutant, names, seconds)
    finally:
        for path, stamp in before.items():
            path.write_text(texts[path], encoding="utf-8")
            os.utime(path, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
        for so, data in built.items():
            so.unlink(missing_ok=True)
            so.write_bytes(data)
            so.chmod(0o755)


def sound(tree: Path, chosen: list[Mutant]) -> float | None:
    """How long a test may take before it hangs: as long as all of them take without a mutant. None: they fail."""
    tests = sorted({mutant.test for mutant in chosen if not mutant.by_states})
    began = time.monotonic()
    done = call(tree, BASE_S, *PYTEST, *tests) if tests else None
    if tests and (done is None or done.returncode):
        print(f"the tests do not pass without any mutant\n{done.stdout[-3000:] if done else 'they hang'}")
        return None
    return max(HANGS_S, time.monotonic() - began)


def main() -> int:
    """All mutants, or those named."""
    parser = argparse.ArgumentParser(prog="make mutants ARGS=...")
    parser.add_argument("-k", default="", help="only names that contain one of these (a,b); rule-N: those of rule N")
    parser.add_argument("--by", choices=("tests", "states"), help="only those that a test, or the crash states, find")
    args = parser.parse_args()
    words = args.k.split(",")
    chosen = [m for m in MUTANTS if (f"rule-{m.rule}" in words or any(word in m.name for word in words))
              and (args.by is None or m.by_states == (args.by == "states"))]
    bad = 0
    with tempfile.TemporaryDirectory(prefix="marsx-mutants-") as place:
        tree = copy_tree(Path(place) / "tree")
        seconds = sound(tree, chosen)
        if seconds is None:
            return 1
        for mutant in chosen:
            began = time.monotonic()
            said = try_one(tree, mutant, seconds)
            bad += not said.startswith("killed")
            print(f"rule {mutant.rule:2d}  {mutant.name:46s} {time.monotonic() - began:6.1f} s  {said}", flush=True)
    print(f"{len(chosen)} mutants, {len(chosen) - bad} killed")
    return 1 if bad or not chosen else 0


if __name__ == "__main__":
    sys.exit(main())
