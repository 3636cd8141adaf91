"""pytest-benchmark suites of this folder: `bench_*.py` are collected, and what they need of a disk is here.

Run: `pytest bench --benchmark-only --benchmark-json=build/bench.json`, then `python bench/report.py build/bench.json`.
"""

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

TOP = Path(__file__).resolve().parent.parent
if str(TOP) not in sys.path:
    sys.path.insert(0, str(TOP))


def pytest_collect_file(file_path: Path, parent: pytest.Collector) -> pytest.Collector | None:
    """Collect `bench_*.py` although the name is no test's; files that pytest takes by itself are left to it."""
    patterns = parent.config.getini("python_files")
    taken = any(file_path.match(pattern) for pattern in patterns) or parent.session.isinitpath(file_path)
    if file_path.match("bench_*.py") and not taken:
        return pytest.Module.from_parent(parent, path=file_path)
    return None


@pytest.fixture
def written_file(tmp_path: Path) -> Iterator[Path]:
    """A file of 256 MiB whose blocks are all written already: overwriting such space is what a recycled log does."""
    file = tmp_path / "written"
    block = os.urandom(1 << 20)
    with open(file, "wb", buffering=0) as opened:
        for _ in range(256):
            opened.write(block)
        os.fsync(opened.fileno())
    yield file
    file.unlink()
