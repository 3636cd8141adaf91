"""Fixtures of the admin room: a small tree, and marsadm on host b of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.unit.admin.small_tree import Admin, SmallTree


@pytest.fixture
def tree(tmp_path: Path) -> SmallTree:
    """A cluster of a and b with the resource data, a is its primary."""
    return SmallTree(tmp_path).cluster("a", "b").resource("data", "a", "b")


@pytest.fixture
def adm(tree: SmallTree, monkeypatch: pytest.MonkeyPatch) -> Admin:
    """marsadm on b."""
    return Admin(tree, monkeypatch)
