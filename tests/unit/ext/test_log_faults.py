"""The volume when system calls are slow, fail, or are cut short: scenarios of shim_scenarios.py under log_shim.c."""
from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

TOP = Path(__file__).resolve().parents[3]

pytestmark = pytest.mark.skipif(shutil.which("gcc") is None, reason="no C compiler")


@pytest.fixture(scope="module")
def shim(tmp_path_factory: pytest.TempPathFactory) -> str:
    target = tmp_path_factory.mktemp("shim") / "log_shim.so"
    subprocess.run(["gcc", "-std=gnu11", "-O1", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC",
                    str(TOP / "tests/unit/ext/log_shim.c"), "-o", str(target)], check=True)
    return str(target)


@pytest.mark.parametrize(("name", "rule"), [
    ("copy_outside_the_lock", 8), ("failure_while_copying", 1), ("ack_order", 1), ("ack_fail", 1),
    ("flush_shares_nothing", 1), ("sync_fails", 1), ("sync_fails_under_waiting_flush", 1), ("many_flushes", 1),
    ("log_before_disk", 2), ("disk_sync_fails", 12), ("freeze_waits", 4), ("freeze_waits_for_space", 4),
    ("rotation_order", 4), ("read_back_pins", 9), ("no_space", 0), ("room_in_the_next_log", 0), ("no_promise", 4),
    ("small_rest", 0), ("short_writes", 0)])
def test_scenario(shim, tmp_path, name, rule):
    """Rules 1, 2, 3, 4, 9, 12 as the list says; the scenario's docstring is the claim."""
    command = [sys.executable, "-X", "dev", "-m", "tests.unit.ext.shim_scenarios", name, str(tmp_path)]
    done = subprocess.run(command, cwd=TOP,
                          env={**os.environ, "LD_PRELOAD": shim}, capture_output=True, text=True, check=False,
                          timeout=120)
    assert done.returncode == 0, f"rule {rule}: {done.stderr}{done.stdout}"
