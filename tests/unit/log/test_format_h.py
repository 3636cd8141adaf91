"""ext/format.h against hostile bytes, under the address and undefined behaviour sanitizers; and as strict C11."""
from __future__ import annotations

import glob
import shutil
import subprocess
from pathlib import Path

import pytest

TOP = Path(__file__).resolve().parents[3]
KERNELS = sorted(glob.glob(str(TOP / "ext/xxh3_*.c")))

pytestmark = pytest.mark.skipif(shutil.which("gcc") is None, reason="no C compiler")


def build(target: Path, *flags: str) -> None:
    source = TOP / "tests/unit/log/format_fuzz.c"
    subprocess.run(["gcc", "-std=gnu11", f"-I{TOP / 'ext'}", *flags, str(source), *KERNELS, "-o", str(target)],
                   check=True)


def test_clean_under_all_warnings(tmp_path):
    """Whoever includes the header gets no warning from it, with and without _GNU_SOURCE."""
    source = tmp_path / "probe.c"
    source.write_text('#include "format.h"\nint probe(const uint8_t *b) { return mars_file_header_check(b); }\n')
    for flags in (["-std=c11"], ["-std=c11", "-D_GNU_SOURCE"]):
        subprocess.run(["gcc", *flags, "-O2", "-Wall", "-Wextra", "-Wpedantic", "-Wconversion", "-Wno-unused-function",
                        "-Wno-sign-conversion", "-Werror", f"-I{TOP / 'ext'}", "-c", str(source), "-o",
                        str(tmp_path / "probe.o")], check=True)


def test_hostile_bytes(tmp_path):
    """No read outside the group, no undefined sum, nothing accepted that reaches outside the device."""
    program = tmp_path / "fuzz"
    build(program, "-O1", "-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all")
    for seed in (1, 2):
        done = subprocess.run([str(program), str(seed), "3000"], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        _, accepted, _, refused = done.stdout.split()
        assert int(accepted) > 500 and int(refused) > 1000
