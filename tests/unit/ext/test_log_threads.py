"""The engine of ext/log.h, ext/commit.h and ext/flush.h, and ext/reads.h, without Python, under the sanitizers."""
from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

TOP = Path(__file__).resolve().parents[3]
KINDS = {"thread": "-fsanitize=thread", "address": "-fsanitize=address,undefined"}

pytestmark = pytest.mark.skipif(shutil.which("gcc") is None, reason="no C compiler")


def run(tmp_path: Path, kind: str, name: str) -> None:
    """Compile tests/unit/ext/NAME.c with a sanitizer and run it in the directory; it has to say ok."""
    program = tmp_path / name
    subprocess.run(["gcc", "-std=gnu11", "-O1", "-g", "-Wall", "-Wextra", "-Wno-unused-function", "-Wno-sign-compare",
                    "-Werror", KINDS[kind], "-fno-sanitize-recover=all", "-D_GNU_SOURCE", f"-I{TOP / 'ext'}",
                    str(TOP / f"tests/unit/ext/{name}.c"), *map(str, sorted(TOP.glob("ext/xxh3_*.c"))),
                    "-o", str(program), "-lpthread"], check=True)
    # the sanitizer's shadow memory needs the old address layout
    done = subprocess.run(["setarch", "-R", str(program), str(tmp_path)], capture_output=True, text=True, check=False,
                          timeout=300, env={**os.environ, "ASAN_OPTIONS": "detect_leaks=0"})
    assert done.returncode == 0 and done.stdout == "ok\n", done.stderr[-4000:]


@pytest.mark.parametrize("kind", KINDS)
def test_writers_flushes_and_changes_of_the_log(tmp_path, kind):
    """Rules 1, 4, 8: no data race, every request answered once, the order of what is on top of the log is that of the
    log, every log a sound chain up to the end it was frozen at."""
    run(tmp_path, kind, "log_test")


@pytest.mark.parametrize("kind", KINDS)
def test_reads_in_flight(tmp_path, kind):
    """Every read that was given away is answered once, with its own bytes, before its thread ends."""
    run(tmp_path, kind, "reads_test")
