"""Drives the fuzzer: a child process runs case after case, this one watches it and keeps what made it fail.

The child writes each case into a file before it runs it, so whatever ends it (a sanitizer, a signal, an exception, a
hang) leaves the input behind; it goes into the corpus under a name that says what it is.
"""
from __future__ import annotations

import argparse
import hashlib
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from tests.fuzz.case import CORPUS, SUFFIX, Case, corpus

TOP = Path(__file__).resolve().parents[2]
ASAN = TOP / "build/asan/marsx/_ext"
HANG = 60.0                                 # seconds for one case; the slowest takes a fraction of one


def use_extensions(directory: Path) -> None:
    """Take marsx._ext from another directory; before anything imports them."""
    import marsx._ext
    marsx._ext.__path__.insert(0, str(directory))
    from marsx._ext import marsreplay, marsscan, marsshadow
    for module in (marsreplay, marsscan, marsshadow):
        assert Path(str(module.__file__)).parent == directory, f"{module.__name__} is not from {directory}"


def sanitizer_environment() -> dict[str, str]:
    """Environment of a python whose extensions are built with the sanitizers. Every object is memory of its own."""
    libraries = [subprocess.run(["gcc", f"-print-file-name=lib{name}.so"], capture_output=True, text=True,
                                check=True).stdout.strip() for name in ("asan", "ubsan")]
    return {**os.environ, "LD_PRELOAD": " ".join(libraries), "PYTHONMALLOC": "malloc",
            "ASAN_OPTIONS": "detect_leaks=0:halt_on_error=1:allocator_may_return_null=1",
            "UBSAN_OPTIONS": "halt_on_error=1:print_stacktrace=1"}


def name_of(case: Case, what: str = "") -> str:
    """File name of a case: what it is, and a hash."""
    words = re.sub(r"[^a-z0-9]+", "-", f"{case.target} {what or case.why}".lower()).strip("-")[:70]
    return f"{words}-{hashlib.sha256(case.pack()).hexdigest()[:8]}{SUFFIX}"


# ---- the child ----

def child(seed: int, seconds: float, state: Path) -> None:
    """The corpus, then new cases until the time is over. Prints how many, and the verdicts."""
    from tests.fuzz import make, targets
    verdicts: Counter[str] = Counter()
    end = time.monotonic() + seconds
    for path in corpus():
        case = Case.load(path)
        state.write_bytes(case.pack(1))
        verdicts[targets.run(case)] += 1
    for case in make.cases(seed):
        state.write_bytes(case.pack(1))
        verdicts[targets.run(case)] += 1
        if time.monotonic() > end:
            break
    state.unlink()
    print(f"{sum(verdicts.values())} cases, {len(verdicts)} different verdicts, seed {seed}")
    for verdict, count in verdicts.most_common():
        print(f"  {count:7d} {verdict}")


# ---- the parent ----

def watch(process: subprocess.Popen, state: Path) -> str:
    """Wait for the child; "" or what went wrong."""
    seen, since = 0, time.monotonic()
    while True:
        try:
            code = process.wait(1)
            return "" if code == 0 else f"ended with status {code}"
        except subprocess.TimeoutExpired:
            pass
        now = state.stat().st_mtime_ns if state.exists() else 0
        if now != seen:
            seen, since = now, time.monotonic()
        elif time.monotonic() - since > HANG:
            process.kill()
            process.wait()
            return f"hangs: one case took more than {HANG:.0f} s"


def fuzz(seed: int, seconds: float, normal: bool) -> int:
    """Run a child; 0 when nothing was found."""
    (TOP / "build").mkdir(exist_ok=True)
    state = TOP / f"build/fuzz-{os.getpid()}.case"
    command = [sys.executable, "-m", "tests.fuzz", "child", "--seed", str(seed), "--seconds", str(seconds),
               "--state", str(state)]
    environment = dict(os.environ)
    if not normal:
        command += ["--ext", str(ASAN)]
        environment = sanitizer_environment()
    process = subprocess.Popen(command, cwd=TOP, env=environment)
    wrong = None
    try:
        wrong = watch(process, state)
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
        for base in ("/dev/shm", tempfile.gettempdir()):        # a child that was killed leaves its directory behind
            for left in Path(base).glob(f"marsx-fuzz-{process.pid}-*"):
                shutil.rmtree(left, ignore_errors=True)
        if wrong is None:
            state.unlink(missing_ok=True)
    if not wrong:
        return 0
    print(f"fuzz: {wrong} (seed {seed})", file=sys.stderr)
    if state.exists():
        case = Case.parse(state.read_bytes())
        path = CORPUS / name_of(case)
        case.save(path)
        state.unlink()
        print(f"fuzz: the input is kept: {path}\n  why: {case.why}", file=sys.stderr)
    return 1


# ---- by hand ----

def replay(paths: list[Path]) -> int:
    """Run these cases here."""
    from tests.fuzz import targets
    for path in paths:
        print(path.name, "->", targets.run(Case.load(path)))
    return 0


def show(paths: list[Path]) -> int:
    """What a case is."""
    for path in paths:
        case = Case.load(path)
        print(path.name, case.target, case.why, case.params, {name: len(data) for name, data in case.files.items()})
    return 0


def collect(seed: int, seconds: float) -> int:
    """The smallest case for every verdict that the corpus does not have yet."""
    from tests.fuzz import make, targets
    have = {targets.run(Case.load(path)) for path in corpus()}
    best: dict[str, Case] = {}
    end = time.monotonic() + seconds
    for case in make.cases(seed):
        verdict = targets.run(case)
        if verdict not in have and (verdict not in best or len(case.pack()) < len(best[verdict].pack())):
            best[verdict] = case
        if time.monotonic() > end:
            break
    for verdict, case in best.items():
        case.save(CORPUS / name_of(case, verdict.partition(": ")[2]))
    print(f"{len(best)} new cases for {len(have)} + {len(best)} verdicts")
    return 0


def main() -> int:
    """See tests/fuzz/__init__.py."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz")
    parser.add_argument("do", choices=["run", "child", "replay", "show", "collect"])
    parser.add_argument("files", nargs="*", type=Path)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--state", type=Path)
    parser.add_argument("--ext", type=Path, help="directory of the extensions to use")
    parser.add_argument("--normal", action="store_true", help="run: with the normal build")
    args = parser.parse_args()
    if args.ext:
        use_extensions(args.ext)
    if args.do == "child":
        child(args.seed, args.seconds, args.state)
        return 0
    if args.do == "run":
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
        return fuzz(args.seed, args.seconds, args.normal)
    if args.do == "collect":
        return collect(args.seed, args.seconds)
    return {"replay": replay, "show": show}[args.do](args.files)
