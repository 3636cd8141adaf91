"""Fixtures of the device tests, and the check that nothing stays."""
from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.device import nullserver
from tests.device.harness import Mars, loops_of


@pytest.fixture(scope="session")
def null_library(tmp_path_factory: pytest.TempPathFactory) -> str:
    return nullserver.build(tmp_path_factory.mktemp("null"))


@pytest.fixture
def mars(tmp_path: Path, null_library: str) -> Iterator[Mars]:
    """A marsd directory, nothing started; at the end nothing of it may be left."""
    if os.geteuid() != 0 or not os.path.exists("/dev/fuse") or not os.path.exists("/dev/loop-control"):
        pytest.skip("needs root, /dev/fuse and /dev/loop-control")
    one = Mars(tmp_path, null_library)
    before = set(loops_of(one.prefix))
    try:
        yield one
    finally:
        one.clean()
        left = set(loops_of(one.prefix)) - before
        assert not left, f"loop devices left behind: {left}"
        assert not one.keeper(), "a keeper is left behind"
