"""ext/shadow.h: random puts and cuts against a plain array, under the address and undefined behaviour sanitizers."""
from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

TOP = Path(__file__).resolve().parents[3]

pytestmark = pytest.mark.skipif(shutil.which("gcc") is None, reason="no C compiler")


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> str:
    target = tmp_path_factory.mktemp("shadow") / "shadow_test"
    subprocess.run(["gcc", "-std=gnu11", "-O1", "-g", "-Wall", "-Wextra", "-Wno-unused-function", "-Werror",
                    "-fsanitize=address,undefined", "-fno-sanitize-recover=all", f"-I{TOP / 'ext'}",
                    str(TOP / "tests/unit/ext/shadow_test.c"), "-o", str(target)], check=True)
    return str(target)


def run(program: str, seed: int, rounds: int) -> tuple[int, int]:
    done = subprocess.run([program, str(seed), str(rounds)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"seed {seed}: {done.stderr}"
    word, full, depth = done.stdout.split()
    assert word == "ok"
    return int(full), int(depth)


@pytest.mark.parametrize("seed", [1, 2, 4, 5, 7, 8])
def test_random_changes(program, seed):
    """Every unit stands where the newest put said, cuts take only what is older than their limit (rule 2), no node is
    lost, every separator holds; the tree gets at least three levels."""
    full, depth = run(program, seed, 6000)
    assert full == 0 and depth >= 3


@pytest.mark.parametrize("seed", [3, 6, 9, 12])
def test_full_pool_changes_nothing(program, seed):
    """A pool of 64 nodes refuses some changes; a refused change leaves everything as it was."""
    full, _ = run(program, seed, 6000)
    assert full > 100
