"""Runs the mutants: see tests/mutants/__init__.py. Ends with status 1 when one survives or cannot be tried."""
from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.mutants.table import MUTANTS, Mutant

TOP = Path(__file__).resolve().parents[2]
SECONDS = 120
PYTEST = ("-m", "pytest", "-q", "-x", "--no-header", "-p", "no:cacheprovider")
# A header is compiled into these extensions as far as the tests of the table need them.
BUILDS = {"ext/commit.h": ["marslog"], "ext/flush.h": ["marslog"], "ext/log.h": ["marslog", "marsshadow"],
          "ext/format.h": ["marsscan"], "ext/shadow.h": []}
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
    if not mutant.file.startswith("ext/") or mutant.test.startswith(OWN_BUILD):
        return []
    return [Path(mutant.file).stem] if mutant.file.endswith(".pyx") else BUILDS[mutant.file]


def call(tree: Path, *command: str, **environment: str) -> subprocess.CompletedProcess[str] | None:
    """Run a command in the copy; None when it hangs."""
    process = subprocess.Popen([sys.executable, *command], cwd=tree, env={**os.environ, **environment}, text=True,
                               stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True)
    try:
        output, _ = process.communicate(timeout=SECONDS)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, 9)
        process.communicate()
        return None
    return subprocess.CompletedProcess(command, process.returncode, output, "")


def verdict(tree: Path, mutant: Mutant) -> str:
    """"killed", or what is wrong."""
    names = extensions(mutant)
    if names:
        built = call(tree, "setup.py", "-q", "build_ext", "--inplace", MARS_EXT=",".join(names), MARS_BUILD="debug")
        if built is None or built.returncode:
            return f"DOES NOT BUILD\n{built.stdout[-3000:] if built else ''}"
    done = call(tree, *PYTEST, mutant.test)
    if done is None:
        return "killed (hang)"
    if done.returncode == 1 or done.returncode < 0:
        return "killed"
    return "SURVIVES" if done.returncode == 0 else f"CANNOT BE TRIED (pytest: {done.returncode})\n{done.stdout[-3000:]}"


def try_one(tree: Path, mutant: Mutant) -> str:
    """Change the copy, judge, change it back."""
    path = tree / mutant.file
    text = path.read_text(encoding="utf-8")
    if text.count(mutant.old) != 1:
        return "DOES NOT FIT the code any more"
    built = {so: so.read_bytes() for name in extensions(mutant) for so in (tree / "marsx/_ext").glob(f"{name}.*.so")}
    stamp = path.stat()
    path.write_text(text.replace(mutant.old, mutant.new), encoding="utf-8")
    try:
        return verdict(tree, mutant)
    finally:
        path.write_text(text, encoding="utf-8")
        os.utime(path, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
        for so, data in built.items():
            so.unlink(missing_ok=True)
            so.write_bytes(data)
            so.chmod(0o755)


def main() -> int:
    """All mutants, or those named."""
    parser = argparse.ArgumentParser(prog="make mutants ARGS=...")
    parser.add_argument("-k", default="", help="only names that contain this; rule-N: only those of rule N")
    args = parser.parse_args()
    chosen = [m for m in MUTANTS if args.k in m.name or args.k == f"rule-{m.rule}"]
    bad = 0
    with tempfile.TemporaryDirectory(prefix="marsx-mutants-") as place:
        tree = copy_tree(Path(place) / "tree")
        done = call(tree, *PYTEST, *sorted({mutant.test for mutant in chosen}))
        if done is None or done.returncode:
            print(f"the tests do not pass without any mutant\n{done.stdout[-3000:] if done else 'they hang'}")
            return 1
        for mutant in chosen:
            began = time.monotonic()
            said = try_one(tree, mutant)
            bad += not said.startswith("killed")
            print(f"rule {mutant.rule:2d}  {mutant.name:42s} {time.monotonic() - began:6.1f} s  {said}", flush=True)
    print(f"{len(chosen)} mutants, {len(chosen) - bad} killed")
    return 1 if bad or not chosen else 0


if __name__ == "__main__":
    sys.exit(main())
