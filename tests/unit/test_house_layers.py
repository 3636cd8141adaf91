"""Who may import whom, and who alone may do what. The tables are the rule; the code is walked with ast."""
from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

TOP = Path(__file__).resolve().parents[2]

# room -> what of marsx it may import. A name allows what lies below it.
MAY_IMPORT = {
    "": [],
    "base": ["base"],
    "_ext": [],
    "tree": ["base", "tree", "_ext.marstree"],
    "log": ["base", "log", "_ext.marsscan", "_ext.marssum"],
    "device": ["base", "device", "_ext.marsdev"],
    "volume": ["base", "log", "volume", "device.frontend", "_ext.marslog", "_ext.marsdirect", "_ext.marssum",
               "_ext.marsreplay"],
    "peer": ["base", "tree", "log", "peer", "_ext.marscmp", "_ext.marssum"],
    "daemon": ["base", "tree", "log", "device", "volume", "peer", "daemon"],
    "admin": ["base", "tree", "log.chain", "log.reader", "admin"],
    "monitor": ["base", "tree", "log.chain", "log.reader", "log.record", "monitor"],
}
# Files that may do more than their room, with the reason.
EXCEPTIONS = {
    "marsx/__main__.py": ["base.errors", "base.text"],  # tells the errors of all programs
    "marsx/admin/cluster.py": ["peer.join", "peer.tls", "peer.token"],  # joining happens before there is a marsd
    # marsd serves pictures of what it knows; a program that asked it over a socket for them would only add a process.
    "marsx/daemon/web.py": ["monitor.picture", "monitor.prometheus", "monitor.seen", "monitor.templates"],
}

# Calls that belong to one place: name of the call -> files or rooms that may make it.
ONLY_IN = {
    "os.fsync": ["marsx/base/durable.py", "marsx/base/disk.py"],
    "os.fdatasync": ["marsx/base/durable.py", "marsx/base/disk.py"],
    "os.sync": [],
    "os.fork": ["marsx/daemon/"],
    "threading.Thread": ["marsx/daemon/"],
}
# Every other extension has exactly one importer. Many need sums; write-back and replay share one window engine.
SHARED_EXTENSIONS = {"marssum", "marsreplay"}


def modules() -> list[Path]:
    """All Python files of the product."""
    return sorted((TOP / "marsx").rglob("*.py"))


def room_of(path: Path) -> str:
    """Package of a file; "" for files of marsx itself."""
    parts = path.relative_to(TOP / "marsx").parts
    return parts[0] if len(parts) > 1 else ""


@cache
def tree_of(path: Path) -> ast.Module:
    """Parsed source."""
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


def imports(path: Path, tree: ast.AST) -> Iterator[tuple[int, str]]:
    """(line, dotted name below marsx) of every import of the product; `from a import b` counts as a.b."""
    package = ["marsx", *path.relative_to(TOP / "marsx").parts[:-1]]
    for node in ast.walk(tree):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = package[:len(package) - node.level + 1] if node.level else []
            stem = ".".join([*base, *([node.module] if node.module else [])])
            names = [f"{stem}.{alias.name}" for alias in node.names]
        for name in names:
            if name.startswith("marsx."):
                yield node.lineno, name.removeprefix("marsx.")


def is_allowed(name: str, allowed: list[str]) -> bool:
    """True for one of `allowed` or something below it."""
    return any(name == one or name.startswith(one + ".") for one in allowed)


def violations(path: Path, tree: ast.AST) -> list[str]:
    """Imports of a file that its room may not have."""
    allowed = MAY_IMPORT[room_of(path)] + EXCEPTIONS.get(str(path.relative_to(TOP)), [])
    return [f"{path.relative_to(TOP)}:{line} imports marsx.{name}" for line, name in imports(path, tree)
            if not is_allowed(name, allowed) and name != "archive" and not name.startswith("__version__")]


def test_every_room_is_in_the_table() -> None:
    """A new package needs a row, and a docstring as its card."""
    rooms = {path.name for path in (TOP / "marsx").iterdir() if path.is_dir() and any(path.glob("*.py"))}
    assert rooms - set(MAY_IMPORT) == set()
    for room in sorted(rooms):
        card = TOP / "marsx" / room / "__init__.py"
        assert card.exists() and ast.get_docstring(tree_of(card)), f"{room}: no room card"
        assert len(tree_of(card).body) == 1, f"{card}: holds more than its docstring"


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(TOP)))
def test_imports_go_down(path: Path) -> None:
    """Late imports inside functions count like all others."""
    assert violations(path, tree_of(path)) == []


@pytest.mark.parametrize(("place", "code"), [
    ("marsx/base/x.py", "from marsx.tree import store"), ("marsx/tree/x.py", "import marsx.peer.wire"),
    ("marsx/volume/x.py", "from ..peer import wire"), ("marsx/admin/x.py", "from marsx import daemon"),
    ("marsx/monitor/x.py", "def f():\n    from marsx.log import writer"),
    ("marsx/peer/x.py", "import marsx._ext.marsdev"),
])
def test_the_walk_sees_violations(place: str, code: str) -> None:
    """The check itself finds each way to spell a forbidden import."""
    assert violations(TOP / place, ast.parse(code)) != []


def test_one_importer_per_extension() -> None:
    """Who touches C is one grep."""
    importers: dict[str, set[str]] = {}
    for path in modules():
        for _, name in imports(path, tree_of(path)):
            if name.startswith("_ext."):
                importers.setdefault(name.split(".")[1], set()).add(str(path.relative_to(TOP)))
    crowded = {name: sorted(files) for name, files in importers.items()
               if len(files) > 1 and name not in SHARED_EXTENSIONS}
    assert crowded == {}


def dotted(node: ast.AST) -> str:
    """`os.fsync` for the call os.fsync(...); "" for anything else."""
    if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
        return f"{node.value.id}.{node.attr}"
    return ""


def test_some_calls_have_one_place() -> None:
    """Flushing, forking and starting threads happen only where the contracts say."""
    found = []
    for path in modules():
        name = str(path.relative_to(TOP))
        for node in ast.walk(tree_of(path)):
            places = ONLY_IN.get(dotted(node))
            if places is not None and not any(name.startswith(place) for place in places):
                found.append(f"{name}:{node.lineno} uses {dotted(node)}")
    assert found == []
